"""How many labels of each class are flipped, to which label, and how a range of scores is chosen from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import datasets
import numpy as np

from ...data import columns
from ...data.label_rules import EXTRA, class_targets
from ...data.mapping import CLEAN_LABEL, IS_CORRUPTED, map_columns, relabelled, with_feature
from ...data.pixels import image_column as find_image
from ...data.randomness import check_rate, check_seed, sample_keys, shares
from ..rates import log_rates

logger = logging.getLogger(__name__)
_REVISION = 1  # enters the cache fingerprint: raise it when the output for the same settings changes


class Flips(TypedDict, total=False):
    """What every strategy takes, by keyword.

    Attributes:
        rate: share of all rows to flip, in [0, 1), rounded; split over the classes that are flipped in proportion to their sizes
            (largest remainder).
        budget: the number of rows, instead.
        seed: of every draw.
        target: as in `class_targets`: cyclic, extra, a class number or a label rule.
        source: the class number or numbers whose samples are flipped; default all that the target moves.
        label_column: default label or labels.
        image_column: default the only one.
        num_classes: C; default what the column says.
        num_proc: processes of `Dataset.map`.
    """

    rate: float | None
    budget: int | None
    seed: int
    target: Any
    source: int | Sequence[int] | None
    label_column: str | None
    image_column: str | None
    num_classes: int | None
    num_proc: int | None


@dataclass(frozen=True, eq=False)
class FlipPlan:
    """How many labels of each class are flipped, and to what.

    Attributes:
        labels: (N,).
        classes: C.
        counts: how many of each class are flipped, C numbers.
        targets: what to, (C,).
        keys: random ranks by the seed, (N,).
        names: of the classes.
        seed: of every draw.
        label_column: the column of the labels.
        image_column: of the images, where one was named.
        num_proc: processes of `Dataset.map`.
    """

    labels: np.ndarray
    classes: int
    counts: list[int]
    targets: np.ndarray
    keys: np.ndarray
    names: list[str]
    seed: int
    label_column: str
    image_column: str | None
    num_proc: int | None

    def labelled(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """Returns the data set whose label column has room for the targets: a ClassLabel gets the class `EXTRA`.

        Args:
            dataset: of which this is the plan.
        """
        feature = dataset.features[self.label_column]
        if not isinstance(feature, datasets.ClassLabel) or max(self.targets) < feature.num_classes:
            return dataset
        names = list(feature.names)
        new = next(n for n in (EXTRA, *(f"{EXTRA}-{i}" for i in range(len(names) + 1))) if n not in names)
        return with_feature(dataset, self.label_column, datasets.ClassLabel(names=[*names, new]))


def plan_flips(
    dataset: datasets.Dataset,
    *,
    rate: float | None = None,
    budget: int | None = None,
    seed: int = 0,
    target: Any = "cyclic",
    source: int | Sequence[int] | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    num_classes: int | None = None,
    num_proc: int | None = None,
) -> FlipPlan:
    """Returns the plan of a crafted noise.

    Args:
        dataset: one split with class labels.
        rate: of `Flips`, like all that follow.
        budget: the number of rows.
        seed: of every draw.
        target: what labels become.
        source: the classes that are flipped.
        label_column: default label or labels.
        image_column: default the only one.
        num_classes: C.
        num_proc: processes of `Dataset.map`.

    Raises:
        ValueError: for both or neither of rate and budget, either out of range, a source that the target does not move, and a
            class that has fewer samples than are to be flipped.
    """
    columns.check_dataset(dataset)
    label_column = columns.label_column(dataset, label_column)
    labels, classes = columns.read_labels(dataset, label_column, num_classes)
    check_seed(seed)
    if (rate is None) == (budget is None):
        raise ValueError(f"rate={rate!r} and budget={budget!r}: give one of them, the share of all rows to flip or their number.")
    if rate is not None:
        check_rate(rate)
    elif isinstance(budget, bool) or not isinstance(budget, int | np.integer) or budget < 0:
        raise ValueError(f"budget={budget!r} must be a whole number of labels >= 0: give for instance 100.")
    count = round(rate * len(labels)) if rate is not None else int(budget or 0)
    targets = class_targets(target, classes)
    names = [str(n) for n in getattr(dataset.features[label_column], "names", None) or range(classes)]
    sizes = np.bincount(labels, minlength=classes)
    movable = _sources(source, targets, classes)
    per_class = np.where(movable, sizes, 0)
    counts = shares(count, per_class) if per_class.sum() else np.zeros(classes, dtype=int)
    if count > per_class.sum() or (counts > per_class).any():
        asked = f"rate={rate:g} is {count} labels" if rate is not None else f"budget={count} labels"
        where = ", ".join(names[c] for c in np.flatnonzero(movable)[:5])
        raise ValueError(f"{asked} but class {where} has {per_class.sum()} samples: give at most so many.")
    image = find_image(dataset, image_column) if image_column is not None else None
    keys = sample_keys(seed, np.arange(len(labels)))
    return FlipPlan(labels, classes, counts.tolist(), targets, keys, names, seed, label_column, image, num_proc)


def rank_in_range(scores: np.ndarray, keys: np.ndarray, quantiles: tuple[float, float] | None) -> np.ndarray:
    """Returns positions (M,) in the order in which they are to be flipped.

    Args:
        scores: (n,).
        keys: random ranks (n,), which order equal scores.
        quantiles: None: by falling score. (low, high) in [0, 1]: those whose rank by rising score, (r + 1/2) / n, is in the range,
            by their keys, so at random.

    Raises:
        ValueError: for other ranges.
    """
    if quantiles is None:
        return np.lexsort((keys, -np.asarray(scores, dtype=np.float64)))
    try:
        low, high = (float(q) for q in quantiles)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise ValueError(f"quantiles={quantiles!r} must be (low, high) with 0 <= low < high <= 1: give for instance (0.5, 0.9).")
    order = np.lexsort((keys, scores))
    place = (np.arange(len(order)) + 0.5) / max(len(order), 1)
    chosen = order[(place >= low) & (place <= high)]
    return chosen[np.argsort(keys[chosen])]


@dataclass(frozen=True, eq=False)
class CraftedMap:
    """A callable for ``dataset.map(fn, batched=True, with_indices=True)`` that gives row i the label ``new[i]``.

    Args:
        new: labels (N,).
        label_column: the column of the labels.
        revision: part of the cache fingerprint.
    """

    new: np.ndarray = field(repr=False)
    label_column: str
    revision: int = field(default=_REVISION, repr=False)

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, list]:
        """Returns the changed columns of a batch.

        Args:
            batch: columns by name.
            indices: the rows' positions in the data set.
        """
        labels = np.asarray(batch[self.label_column], dtype=np.int64)
        return relabelled(batch, self.label_column, labels, self.new[np.asarray(indices)])


def flip(dataset: datasets.Dataset, name: str, plan: FlipPlan, choose: Callable[[np.ndarray], np.ndarray]) -> datasets.Dataset:
    """Returns the data set with the labels of chosen rows flipped.

    Args:
        dataset: of which ``plan`` is.
        name: how the noise is called in the log.
        plan: how many rows of each class, and to what.
        choose: positions of a class's rows -> the positions to flip, the first first.

    Raises:
        ValueError: where ``choose`` returns fewer rows than are to be flipped.
    """
    new = plan.labels.copy()
    for c, count in enumerate(plan.counts):
        if count:
            chosen = choose(np.flatnonzero(plan.labels == c))
            if len(chosen) < count:
                raise ValueError(
                    f"{name}: {count} samples of class {plan.names[c]} are wanted and {len(chosen)} to choose from: lower the rate "
                    "or budget, or widen quantiles."
                )
            new[chosen[:count]] = plan.targets[c]
    clean = dataset.features[plan.label_column]
    shown = plan.labelled(dataset)
    added = {IS_CORRUPTED: datasets.Value("bool"), CLEAN_LABEL: clean}
    noisy = map_columns(shown, CraftedMap(new, plan.label_column), added, num_proc=plan.num_proc, desc=name)
    log_rates(logger, f"craft_labels {name}", noisy, sum(plan.counts) / len(new), plan.label_column)
    return noisy


def _sources(source: Any, targets: np.ndarray, classes: int) -> np.ndarray:
    """Whether each class's samples may be flipped (C,)."""
    movable = targets != np.arange(classes)
    if source is None:
        return movable
    sources: list[Any] = [source] if isinstance(source, int | np.integer) else list(source)
    for c in sources:
        if isinstance(c, bool) or not isinstance(c, int | np.integer) or not 0 <= c < classes:
            raise ValueError(f"source={source!r} holds {c!r}, no class: give class numbers in [0, {classes}).")
        if not movable[c]:
            raise ValueError(f"source={source!r}: class {c} is the target already, so none of its labels can be flipped: drop it.")
    return movable & np.isin(np.arange(classes), sources)
