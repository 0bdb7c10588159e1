"""Backdoor poisoning of a `datasets` data set: a fraction for training, every image for testing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import PIL.Image

from ...data import columns
from ...data.decode import as_array, check_pixels, decode_image, is_plain, open_image
from ...data.label_rules import LabelRule, label_targets
from ...data.mapping import ATTACK_TARGET, CLEAN_LABEL, IS_CORRUPTED, map_columns, relabelled
from ...data.randomness import key_limits, sample_keys
from ..rates import log_rates

logger = logging.getLogger(__name__)

_REVISION = 2  # enters the cache fingerprint: raise it when the output for the same settings changes

#: image -> image of the same kind: a PIL image, an array or a nested list.
Trigger = Callable[[Any], Any]


def poison(
    dataset: datasets.Dataset,
    *,
    trigger: Trigger | None,
    rate: float,
    label_rule: str | LabelRule = "multi-target",
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    num_classes: int | None = None,
    stratified: bool = False,
    num_proc: int | None = None,
    **map_kwargs: Any,
) -> datasets.Dataset:
    """Returns the data set with exactly ``round(rate * N)`` samples given the trigger and the attacker's label.

    Adds ``is_corrupted`` (bool) and ``clean_label``; on a second call ``clean_label`` stays the first one's and ``is_corrupted``
    tells either. Features and format are kept, untouched images keep their bytes (but those that are transparent, or of another
    mode than L and RGB, are stored in every row as `decode_image` makes them, lest the mode tell the poison), poisoned ones are
    stored as lossless PNG.

    Guarantee: the choice is a function of (seed, row number) alone. So a second call on the same rows needs another seed, or it
    picks the same rows again.

    Args:
        dataset: images and integer labels.
        trigger: `PatchTrigger`, `BlendTrigger`, or any picklable image -> image; None flips labels only.
        rate: fraction of all samples in [0, 1).
        label_rule: 'multi-target' (i -> i+1 mod C), 'all-to-one' (target 0) or a rule object; samples whose label the rule keeps
            are never chosen.
        seed: of the choice.
        image_column: default the one that holds images.
        label_column: default label or labels.
        num_classes: where the label feature does not tell.
        stratified: whether every eligible class gives the same share.
        num_proc: of `Dataset.map`.
        map_kwargs: of `Dataset.map`.

    Raises:
        ValueError: for bad settings, missing columns, no rows, string or out-of-range labels, and unusable images.

    References:
        Backdoor sec. 5: flip labels systematically, then put the trigger on exactly the flipped samples.
    """
    columns.check_dataset(dataset)
    label_column = columns.label_column(dataset, label_column)
    labels, classes = columns.read_labels(dataset, label_column, num_classes)
    targets = label_targets(label_rule, classes)
    limits = key_limits(labels, targets, rate, seed, stratified)
    if trigger is not None or image_column is not None:
        image_column = columns.image_column(dataset, image_column)
    backdoor = BackdoorMap(trigger, targets, limits, seed, image_column, label_column, _mode(dataset, image_column))
    added = {IS_CORRUPTED: datasets.Value("bool"), CLEAN_LABEL: dataset.features[label_column]}
    map_kwargs = {"desc": "poison", "num_proc": num_proc, **map_kwargs}
    poisoned = map_columns(dataset, backdoor, added, undecoded=[image_column], **map_kwargs)
    log_rates(logger, "poison", poisoned, rate)
    return poisoned


def trigger_all(
    dataset: datasets.Dataset,
    trigger: Trigger,
    *,
    label_rule: str | LabelRule | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    num_classes: int | None = None,
    num_proc: int | None = None,
    **map_kwargs: Any,
) -> datasets.Dataset:
    """Returns the data set with the trigger on EVERY image and the labels untouched: the poisoned test set.

    Adds ``is_corrupted`` (True), ``clean_label`` and, with a ``label_rule``, ``attack_target``: the label that the attacker wants
    for the sample's clean label, for the attack success rate.

    Args:
        dataset: as for `poison`, and so are the other arguments.
        trigger: image -> image.
        label_rule: None, or as for `poison`.
        image_column: default the one that holds images.
        label_column: default label or labels.
        num_classes: where the label feature does not tell.
        num_proc: of `Dataset.map`.
        map_kwargs: of `Dataset.map`.

    Raises:
        ValueError: as `poison`.

    References:
        Backdoor sec. 5: poison accuracy is the accuracy on it against the true label.
    """
    columns.check_dataset(dataset)
    label_column = columns.label_column(dataset, label_column)
    image_column = columns.image_column(dataset, image_column)
    _, classes = columns.read_labels(dataset, label_column, num_classes)
    targets = None if label_rule is None else label_targets(label_rule, classes)
    added = {IS_CORRUPTED: datasets.Value("bool"), CLEAN_LABEL: dataset.features[label_column]}
    if targets is not None:
        added[ATTACK_TARGET] = dataset.features[label_column]
    stamp = TriggerMap(trigger, targets, image_column, label_column, _mode(dataset, image_column))
    return map_columns(dataset, stamp, added, undecoded=[image_column], num_proc=num_proc, **{"desc": "trigger", **map_kwargs})


@dataclass(frozen=True)
class BackdoorMap:
    """Returns the changed columns of a batch, for ``dataset.map(fn, batched=True, with_indices=True)``.

    A row is poisoned when its class has a limit and ``sample_keys(seed, index)`` is at most that limit; its label becomes
    ``targets[label]`` and its image ``trigger(image)``. targets and limits have one entry per class (`rules.label_targets`,
    `rules.key_limits`). `poison` builds it and gives `Dataset.map` the features; it pickles, and holds no per-sample data.
    """

    trigger: Trigger | None
    targets: tuple[int, ...]
    limits: tuple[int | None, ...]
    seed: int
    image_column: str | None
    label_column: str
    image_mode: str | None = None
    revision: int = field(default=_REVISION, repr=False)

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, list]:
        """Returns the changed columns of a batch of rows at these positions."""
        labels = np.asarray(batch[self.label_column], dtype=np.int64)
        limits = np.array([limit or 0 for limit in self.limits], dtype=np.uint64)
        allowed = np.array([limit is not None for limit in self.limits])
        chosen = allowed[labels] & (sample_keys(self.seed, indices) <= limits[labels])
        out = relabelled(batch, self.label_column, labels, np.where(chosen, np.asarray(self.targets)[labels], labels))
        if self.trigger is not None and self.image_column is not None:
            out[self.image_column] = _stamp(self.trigger, batch[self.image_column], chosen, indices, self)
        return out


@dataclass(frozen=True)
class TriggerMap:
    """Returns the changed columns of a batch with the trigger on every image, for `Dataset.map` as `BackdoorMap`."""

    trigger: Trigger
    targets: tuple[int, ...] | None
    image_column: str
    label_column: str
    image_mode: str | None = None
    revision: int = field(default=_REVISION, repr=False)

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, list]:
        """Returns the changed columns of a batch of rows at these positions."""
        clean = list(batch[CLEAN_LABEL] if CLEAN_LABEL in batch else batch[self.label_column])
        every = np.ones(len(clean), dtype=bool)
        out = {CLEAN_LABEL: clean, IS_CORRUPTED: every.tolist()}
        if self.targets is not None:
            out[ATTACK_TARGET] = [self.targets[label] for label in clean]
        out[self.image_column] = _stamp(self.trigger, batch[self.image_column], every, indices, self)
        return out


def _mode(dataset: datasets.Dataset, name: str | None) -> str | None:
    feature = dataset.features[name] if name is not None else None
    return feature.mode if isinstance(feature, datasets.Image) else None


def _stamp(trigger: Trigger, images: Sequence[Any], chosen: np.ndarray, indices: Sequence[int], settings: Any) -> list:
    """The images with the trigger on the chosen ones; a ``ValueError`` names the row."""
    stamped = []
    for image, hit, index in zip(images, chosen, indices):
        try:
            stamped.append(_stamp_one(trigger, image, bool(hit), settings.image_mode))
        except (ValueError, OSError) as error:
            raise ValueError(f"'{settings.image_column}' in row {index}: {error}") from error
    return stamped


def _stamp_one(trigger: Trigger, image: Any, hit: bool, mode: str | None) -> Any:
    if image is None:
        raise ValueError("image is None: filter such rows out.")
    if isinstance(image, Mapping):  # an undecoded Image: {"bytes", "path"}
        if not hit and (mode is not None or _stays(image)):
            return image
        picture = decode_image(image, mode)
        return datasets.Image().encode_example(trigger(picture) if hit else picture)
    if isinstance(image, PIL.Image.Image):
        return trigger(image) if hit else decode_image(image)
    check_pixels(as_array(image) if isinstance(image, list) else np.asarray(image))
    return trigger(image) if hit else image


def _stays(image: Mapping[str, Any]) -> bool:
    """Whether an image without the trigger keeps its bytes: its mode is one that images with it have; reads the header only."""
    with open_image(image) as opened:
        return is_plain(opened)
