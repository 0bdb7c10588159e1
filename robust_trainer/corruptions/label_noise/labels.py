"""Label noise in a `datasets` data set: drawn by rule, by a transition matrix or per instance."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np

from ...data import columns
from ...data.features import FeatureReader
from ...data.mapping import CLEAN_LABEL, IS_CORRUPTED, map_columns, relabelled
from ...data.randomness import check_seed, cut_index, key_cuts, key_limits, key_quantile, sample_keys, shares, smallest, stream_seed
from ..rates import log_rates
from .instance import check_size, instance_noise_map
from .transitions import check_class_map, check_noise, noise_transition

logger = logging.getLogger(__name__)

_REVISION = 1  # enters the cache fingerprint: raise it when the output for the same settings changes
_TARGET_STREAM, _TIE_STREAM = 1, 2


def corrupt_labels(
    dataset: datasets.Dataset,
    noise: str,
    *,
    rate: float | None = None,
    seed: int = 0,
    class_map: str | Mapping[Any, Any] | None = None,
    transition_matrix: Any = None,
    feature_columns: str | Sequence[str] | None = None,
    rate_of: str = "source",
    exact: bool = True,
    stratified: bool = False,
    label_column: str | None = None,
    num_classes: int | None = None,
    num_proc: int | None = None,
    **map_kwargs: Any,
) -> datasets.Dataset:
    """Returns the data set with wrong labels; adds ``is_corrupted`` (the label changed) and ``clean_label``.

    ``noise`` is one of

    - 'symmetric': a label of the OTHER C - 1 classes, uniform; the rate is the share of wrong labels.
    - 'symmetric-redraw': a label of all C classes, the true one included: the effective rate is (C - 1) / C * rate.
    - 'pairflip': i -> i + 1 mod C; exact, the same rows as ``poison(label_rule='multi-target')`` with that seed.
    - 'asymmetric': i -> class_map[i], all at once on the clean labels. NRAT's own code flips class after class on labels already
      flipped, so that some cats become dogs and then cats again: its "40 %" is about 19 % overall, here it is 20 %.
    - 'transition': a row-stochastic transition_matrix (C, C), and no rate.
    - 'instance': part-dependent noise, see `InstanceNoiseMap`.

    On a second call ``clean_label`` stays the first one's and ``is_corrupted`` says whether either changed the label. Nominal and
    realised rates are logged; `nominal_rates`, `realised_rates` and `realised_transition` return them.

    Guarantee: everything is keyed by (seed, row number): batch size, shards and processes do not matter. So a second call on the
    same rows needs another seed.

    Args:
        dataset: one split with class labels.
        noise: the kind, see above.
        rate: share of labels, in [0, 1).
        seed: of the draws.
        class_map: of 'asymmetric': {source: target} of class numbers or names, or 'cifar10' or 'nrat' (9->1, 2->0, 3->5, 5->3,
            4->7).
        transition_matrix: of 'transition', (C, C).
        feature_columns: of 'instance': numeric columns, or images; default the images. They are standardised over the data set:
            images per channel, other columns per number.
        rate_of: of 'asymmetric': whether the rate counts the samples of each source class ('source': half of it overall with
            these maps) or of the whole data set ('all').
        exact: True: exactly ``round(rate * N)`` rows are chosen ('symmetric-redraw': redrawn); 'asymmetric' chooses
            ``round(rate * n)`` of the n rows of each source class; 'transition' gives each class its labels in exact counts
            (largest remainder). False: every label is drawn on its own from its row of the matrix (`noise_transition`).
        stratified: an equal share of every class, where the count is over the data set.
        label_column: default label or labels.
        num_classes: C; default what the column says.
        num_proc: processes of `Dataset.map`.
        map_kwargs: of `Dataset.map`.

    Raises:
        ValueError: for bad settings (see `noise_transition`), a rate that the eligible classes cannot supply, missing columns, no
            rows, and labels that are no integers in [0, C).

    References:
        Dissertation table 4.1; NRAT sec. 4; Han et al. 2018, "Co-teaching"; Xia et al. 2020, "Part-dependent label noise".
    """
    labels, classes, label_column, names = _read(dataset, label_column, num_classes)
    check_noise(noise, rate, class_map, transition_matrix, rate_of)
    check_seed(seed)
    if stratified and (noise == "instance" or not exact):
        raise ValueError(f"stratified=True does not fit noise={noise!r}, exact={exact}: drop it.")
    function: Any
    if noise == "instance":
        check_size(classes)
        reader = FeatureReader.of(dataset, feature_columns, exclude=label_column).standardised(dataset)
        function = instance_noise_map(reader, float(rate or 0), len(labels), classes, seed, label_column, exact)
        nominal = np.full(classes, rate)
    else:
        if feature_columns is not None:
            raise ValueError(f"feature_columns is given but noise={noise!r} reads no features: leave it out.")
        matrix = _matrix(labels, classes, noise, rate, class_map, transition_matrix, rate_of, names)
        nominal = 1 - matrix.diagonal()
        limits = _limits(labels, matrix, noise, rate, rate_of, seed, exact, stratified)
        if noise == "symmetric-redraw":
            cuts = key_quantile(np.cumsum(np.full_like(matrix, 1 / classes), axis=1))
        else:
            cuts = _exact_cuts(labels, matrix, limits, seed) if noise == "transition" and exact else _cuts(matrix)
        function = LabelNoiseMap(limits, cuts, seed, label_column)
    added = {IS_CORRUPTED: datasets.Value("bool"), CLEAN_LABEL: dataset.features[label_column]}
    read = function.reader.columns if noise == "instance" else ()
    noisy = map_columns(dataset, function, added, undecoded=read, num_proc=num_proc, **{"desc": noise, **map_kwargs})
    log_rates(logger, f"corrupt_labels {noise}", noisy, nominal, label_column)
    return noisy


def nominal_rates(
    dataset: datasets.Dataset,
    noise: str,
    *,
    rate: float | None = None,
    class_map: str | Mapping[Any, Any] | None = None,
    transition_matrix: Any = None,
    rate_of: str = "source",
    label_column: str | None = None,
    num_classes: int | None = None,
) -> np.ndarray:
    """Returns the rate (C,) at which `corrupt_labels` with these settings is to give each class wrong labels, for `realised_rates`.

    For 'instance' it is the mean asked for; the truncation to [0, 1] lifts small ones when ``exact=False`` (0.1 becomes 0.129).

    Args:
        dataset: the clean one.
        noise: as in `corrupt_labels`, like all that follow.
        rate: share of labels, in [0, 1).
        class_map: of 'asymmetric'.
        transition_matrix: of 'transition', (C, C).
        rate_of: of 'asymmetric'.
        label_column: default label or labels.
        num_classes: C.

    Raises:
        ValueError: as `corrupt_labels`.
    """
    labels, classes, _, names = _read(dataset, label_column, num_classes)
    check_noise(noise, rate, class_map, transition_matrix, rate_of)
    if noise == "instance":
        return np.full(classes, float(rate or 0))
    return 1 - _matrix(labels, classes, noise, rate, class_map, transition_matrix, rate_of, names).diagonal()


@dataclass(frozen=True, eq=False)
class LabelNoiseMap:
    """A callable for ``dataset.map(fn, batched=True, with_indices=True)``: label noise by a transition matrix.

    A row is chosen when its class has a limit and ``sample_keys(seed, index)`` is at most that limit; a second key, independent of
    the first, then falls into one of the C ranges that end at ``cuts[label]`` (C, C), and that range is the new label.
    `corrupt_labels` builds it; it pickles, and holds no per-sample data.

    Args:
        limits: per class the largest key that is chosen; None: no row is.
        cuts: ends of the second key's ranges (C, C), uint64.
        seed: of the keys.
        label_column: the column of the labels.
        revision: part of the cache fingerprint.
    """

    limits: tuple[int | None, ...]
    cuts: np.ndarray = field(repr=False)
    seed: int
    label_column: str
    revision: int = field(default=_REVISION, repr=False)

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, list]:
        """Returns the changed columns of a batch.

        Args:
            batch: columns by name.
            indices: the rows' positions in the data set.
        """
        labels = np.asarray(batch[self.label_column], dtype=np.int64)
        limits = np.array([limit or 0 for limit in self.limits], dtype=np.uint64)
        allowed = np.array([limit is not None for limit in self.limits])
        chosen = allowed[labels] & (sample_keys(self.seed, indices) <= limits[labels])
        new, rows = labels.copy(), np.flatnonzero(chosen)
        keys = sample_keys(stream_seed(self.seed, _TARGET_STREAM), np.asarray(indices)[rows])
        new[rows] = cut_index(keys, self.cuts[labels[rows]])
        return relabelled(batch, self.label_column, labels, new)


def _read(dataset: Any, name: str | None, num_classes: int | None) -> tuple[np.ndarray, int, str, Sequence[str] | None]:
    columns.check_dataset(dataset)
    name = columns.label_column(dataset, name)
    labels, classes = columns.read_labels(dataset, name, num_classes)
    return labels, classes, name, getattr(dataset.features[name], "names", None)


def _matrix(
    labels: np.ndarray, classes: int, noise: str, rate: Any, class_map: Any, matrix: Any, rate_of: str, names: Any
) -> np.ndarray:
    if rate_of == "all":
        sources = list(check_class_map(class_map, classes, names))
        eligible, count = int(np.isin(labels, sources).sum()), round(rate * len(labels))
        if count > eligible or (eligible and count == eligible):
            raise ValueError(
                f"rate={rate} of all {len(labels)} samples is {count}, but the source classes of class_map hold {eligible}: "
                f"give a rate below {eligible / len(labels):.4g}."
            )
        rate = rate * len(labels) / max(eligible, 1)
    return noise_transition(noise, classes, rate, class_map=class_map, transition_matrix=matrix, class_names=names)


def _limits(
    labels: np.ndarray, matrix: np.ndarray, noise: str, rate: Any, rate_of: str, seed: int, exact: bool, stratified: bool
) -> tuple[int | None, ...]:
    """Per class the largest key that is chosen; 'symmetric-redraw' chooses what is redrawn, the others what is changed."""
    classes, keys = len(matrix), sample_keys(seed, np.arange(len(labels)))
    leave = np.full(classes, rate) if noise == "symmetric-redraw" else 1 - matrix.diagonal()
    if not exact:
        return tuple(max(key - 1, 0) if r > 0 else None for r, key in zip(leave, key_quantile(leave).tolist()))
    if noise in ("symmetric", "symmetric-redraw", "pairflip") or rate_of == "all":
        same = np.arange(classes)
        moved = np.where(leave > 0, (same + 1) % classes, same)  # to which class does not matter here
        return key_limits(labels, tuple(moved.tolist()), rate, seed, stratified)
    if noise == "asymmetric":
        return tuple(smallest(keys[labels == c], round(r * int((labels == c).sum()))) for c, r in enumerate(leave.tolist()))
    counts = _counts(labels, matrix, seed)
    return tuple(smallest(keys[labels == c], int(counts[c].sum() - counts[c, c])) for c in range(classes))


def _counts(labels: np.ndarray, matrix: np.ndarray, seed: int) -> np.ndarray:
    """How many samples of each class (row) get each label (column), by largest remainder."""
    ties = stream_seed(seed, _TIE_STREAM)
    sizes = np.bincount(labels, minlength=len(matrix)).tolist()
    return np.stack([shares(size, row, stream_seed(ties, c)) for c, (size, row) in enumerate(zip(sizes, matrix))])


def _cuts(matrix: np.ndarray) -> np.ndarray:
    """Ends of the ranges of the second key, one row per class: the law of the new label where it changes."""
    others = matrix * (1 - np.eye(len(matrix)))
    totals = others.sum(axis=1, keepdims=True)
    law = np.where(totals > 0, others / np.where(totals > 0, totals, 1), 1 / len(matrix))  # without others nobody is chosen
    return key_quantile(np.cumsum(law, axis=1))


def _exact_cuts(labels: np.ndarray, matrix: np.ndarray, limits: tuple[int | None, ...], seed: int) -> np.ndarray:
    """The ends that give the chosen samples of each class their new labels in exact counts."""
    indices = np.arange(len(labels))
    keys, second = sample_keys(seed, indices), sample_keys(stream_seed(seed, _TARGET_STREAM), indices)
    counts = _counts(labels, matrix, seed) * (1 - np.eye(len(matrix), dtype=int))
    out = np.zeros(matrix.shape, dtype=np.uint64)
    for c, limit in enumerate(limits):
        if limit is not None:
            out[c] = key_cuts(second[(labels == c) & (keys <= np.uint64(limit))], counts[c])
    return out
