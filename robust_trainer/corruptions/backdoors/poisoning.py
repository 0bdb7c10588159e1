"""Backdoor poisoning of a `datasets` data set: a fraction for training, every row for testing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import PIL.Image

from ...data import audio, columns, texts
from ...data.decode import as_array, check_pixels, decode_image, is_plain, open_image
from ...data.label_rules import ANY_OTHER, BackdoorLabels, BackdoorRule, LabelRule, backdoor_labels
from ...data.mapping import ATTACK_TARGET, CLEAN_LABEL, IS_CORRUPTED, IS_COVER, map_columns, relabelled
from ...data.randomness import check_rate, key_limits, sample_keys, smallest, stream_seed, uniforms
from ..rates import log_rates
from .pixel_trigger import trigger_at
from .sounds import AudioTrigger
from .texts import TextTrigger

logger = logging.getLogger(__name__)

_REVISION = 4  # enters the cache fingerprint: raise it when the output for the same settings changes
_COVERS, _LABELS = 1, 2  # streams of keys beside the choice of the poisoned rows

#: input -> input of the same kind: a PIL image, an array, a nested list, a text, or a sound. One that differs from row to row, or
#: between training and test, has ``at(row, training=, cover=)`` as `PixelTrigger` has it.
Trigger = Callable[[Any], Any]


def poison(
    dataset: datasets.Dataset,
    *,
    trigger: Trigger | None,
    rate: float,
    label_rule: str | LabelRule | BackdoorRule = "multi-target",
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    num_classes: int | None = None,
    stratified: bool = False,
    num_proc: int | None = None,
    cover_rate: float | None = None,
    text_column: str | None = None,
    audio_column: str | None = None,
    **map_kwargs: Any,
) -> datasets.Dataset:
    """Returns the data set with exactly ``round(rate * N)`` samples given the trigger and the attacker's label.

    Adds ``is_corrupted`` (bool: the row was poisoned, also where a clean-label rule keeps its label) and ``clean_label``; on a
    second call ``clean_label`` stays the first one's and ``is_corrupted`` tells either. Features and format are kept, untouched
    images keep their bytes (but those that are transparent, or of another mode than L and RGB, are stored in every row as
    `decode_image` makes them, lest the mode tell the poison), poisoned ones are stored as lossless PNG.

    Covers: some attacks put the trigger, or a variant of it, on further rows that keep their label, ``round(cover_rate * N)`` of
        them; rows that an earlier call has poisoned, or made covers, are not among them.
    A column ``is_cover`` then marks them; they are not ``is_corrupted``, since their label is right and they teach no backdoor.
    What a detector says of them is neither a hit nor a false alarm: leave them out of both counts. Removing them alone helps the
    attacker.

    Guarantee: every choice is a function of (seed, row number) alone. So a second call on the same rows needs another seed, or it
    picks the same rows again.

    Args:
        dataset: images, texts or sounds, and integer labels.
        trigger: of a class in `TRIGGERS`, as ``PatchTrigger()``, or any picklable input -> input; None flips labels only.
        rate: fraction of all samples in [0, 1).
        label_rule: 'multi-target' (i -> i+1 mod C), 'all-to-one' (target 0), 'source-specific' (class 1 -> 0), 'untargeted' (any
            other class, drawn), 'clean-label' (only rows of class 0, which keep their label), or a rule object; samples that the
            rule does not move are never chosen.
        seed: of the choice.
        image_column: default the one that holds images.
        label_column: default label or labels.
        num_classes: where the label feature does not tell.
        stratified: whether every eligible class gives the same share.
        num_proc: of `Dataset.map`.
        cover_rate: fraction of all samples that become covers, in [0, 1); None: ``rate`` times the rule's or trigger's own share
            (source-specific 1, warp 2, adaptive-blend and adaptive-patch 1, others 0), or all rows that are left where these are
            fewer.
        text_column: for a `TextTrigger`, or any trigger of texts; default the one that holds texts.
        audio_column: for an `AudioTrigger`, or any trigger of sounds; default the one that holds sounds.
        map_kwargs: of `Dataset.map`.

    Raises:
        ValueError: for bad settings, missing columns, no rows, string or out-of-range labels, and unusable inputs.

    References:
        Backdoor sec. 5: flip labels systematically, then put the trigger on exactly the flipped samples.
    """
    columns.check_dataset(dataset)
    label_column = columns.label_column(dataset, label_column)
    labels, classes = columns.read_labels(dataset, label_column, num_classes)
    rule = backdoor_labels(label_rule, classes)
    limits = key_limits(labels, eligible_classes(rule), rate, seed, stratified)
    if trigger is not None or image_column is not None:
        given = (image_column, text_column, audio_column)
        image_column, text_column, audio_column = _input_columns(dataset, trigger, *given, label_column)
    covers: tuple[int | None, ...] = (None,) * classes
    if trigger is not None:
        share = rule.cover_share if rule.cover_share is not None else getattr(trigger, "cover_share", 0.0)
        covers = _cover_limits(labels, limits, rule.covers, rate * share, cover_rate, seed, _marked(dataset))
    elif cover_rate:
        raise ValueError(f"cover_rate={cover_rate!r} without a trigger changes nothing: give a trigger, or leave it out.")
    backdoor = BackdoorMap(
        trigger, rule.given, limits, seed, image_column, label_column, _mode(dataset, image_column), covers,
        rule.cover_share is not None, text_column, audio_column,
    )  # fmt: skip
    added = {IS_CORRUPTED: datasets.Value("bool"), CLEAN_LABEL: dataset.features[label_column]}
    if any(limit is not None for limit in covers):
        added[IS_COVER] = datasets.Value("bool")
    map_kwargs = {"desc": "poison", "num_proc": num_proc, **map_kwargs}
    poisoned = map_columns(dataset, backdoor, added, undecoded=[image_column, audio_column], **map_kwargs)
    log_rates(logger, "poison", poisoned, rate)
    return poisoned


def trigger_all(
    dataset: datasets.Dataset,
    trigger: Trigger,
    *,
    label_rule: str | LabelRule | BackdoorRule | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    num_classes: int | None = None,
    num_proc: int | None = None,
    text_column: str | None = None,
    audio_column: str | None = None,
    **map_kwargs: Any,
) -> datasets.Dataset:
    """Returns the data set with the trigger on EVERY image, text or sound and the labels untouched: the poisoned test set.

    Adds ``is_corrupted`` (True), ``clean_label`` and, with a ``label_rule``, ``attack_target``: the label that the attacker wants
    for the sample's clean label, for the attack success rate; the clean label itself where the attacker wants nothing (other
    classes than the source), -1 where any wrong label will do (untargeted).

    Args:
        dataset: as for `poison`, and so are the other arguments.
        trigger: input -> input, as the attacker shows it to the network.
        label_rule: None, or as for `poison`.
        image_column: default the one that holds images.
        label_column: default label or labels.
        num_classes: where the label feature does not tell.
        num_proc: of `Dataset.map`.
        text_column: for a trigger of texts.
        audio_column: for a trigger of sounds.
        map_kwargs: of `Dataset.map`.

    Raises:
        ValueError: as `poison`.

    References:
        Backdoor sec. 5: poison accuracy is the accuracy on it against the true label.
    """
    columns.check_dataset(dataset)
    label_column = columns.label_column(dataset, label_column)
    given = (image_column, text_column, audio_column)
    image_column, text_column, audio_column = _input_columns(dataset, trigger, *given, label_column)
    _, classes = columns.read_labels(dataset, label_column, num_classes)
    targets = None if label_rule is None else backdoor_labels(label_rule, classes).wanted
    added = {IS_CORRUPTED: datasets.Value("bool"), CLEAN_LABEL: dataset.features[label_column]}
    if targets is not None:
        added[ATTACK_TARGET] = dataset.features[label_column]
    stamp = TriggerMap(trigger, targets, image_column, label_column, _mode(dataset, image_column), text_column, audio_column)
    coded = [image_column, audio_column]
    return map_columns(dataset, stamp, added, undecoded=coded, num_proc=num_proc, **{"desc": "trigger", **map_kwargs})


@dataclass(frozen=True)
class BackdoorMap:
    """Returns the changed columns of a batch, for ``dataset.map(fn, batched=True, with_indices=True)``.

    A row is poisoned when its class has a limit and ``sample_keys(seed, index)`` is at most that limit; its label becomes
    ``targets[label]``, or any other class where that is -1, and its input ``trigger(input)``. A row that is not poisoned is a cover
    when its class has a limit in ``covers`` and its key of another stream is at most that. targets and limits have one entry per
    class (`label_rules.backdoor_labels`, `randomness.key_limits`). `poison` builds it and gives `Dataset.map` the features; it
    pickles, and holds no per-sample data.
    """

    trigger: Trigger | None
    targets: tuple[int, ...]
    limits: tuple[int | None, ...]
    seed: int
    image_column: str | None
    label_column: str
    image_mode: str | None = None
    covers: tuple[int | None, ...] = ()
    covers_are_triggered: bool = False
    text_column: str | None = None
    audio_column: str | None = None
    revision: int = field(default=_REVISION, repr=False)

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, list]:
        """Returns the changed columns of a batch of rows at these positions."""
        labels = np.asarray(batch[self.label_column], dtype=np.int64)
        chosen = _within(self.limits, labels, sample_keys(self.seed, indices))
        targets = np.asarray(self.targets)[labels]
        if ANY_OTHER in self.targets:
            steps = (uniforms(stream_seed(self.seed, _LABELS), indices) * (len(self.targets) - 1)).astype(np.int64)
            targets = np.where(targets == ANY_OTHER, (labels + 1 + steps) % len(self.targets), targets)
        out = relabelled(batch, self.label_column, labels, np.where(chosen, targets, labels))
        corrupted = np.asarray(out[IS_CORRUPTED]) | chosen  # also where the label is kept
        out[IS_CORRUPTED] = corrupted.tolist()
        cover = np.zeros_like(chosen)
        if any(limit is not None for limit in self.covers):
            cover = ~chosen & _within(self.covers, labels, sample_keys(stream_seed(self.seed, _COVERS), indices)) & ~_marked(batch)
        if IS_COVER in batch or any(limit is not None for limit in self.covers):
            before = np.asarray(batch[IS_COVER], dtype=bool) if IS_COVER in batch else np.zeros_like(cover)
            out[IS_COVER] = ((before | cover) & ~corrupted).tolist()
        column = self.text_column or self.audio_column or self.image_column
        if self.trigger is not None and column is not None:
            marks = [bool(c) and not self.covers_are_triggered for c in cover]
            triggers = [
                trigger_at(self.trigger, int(i), training=True, cover=mark) if hit else None
                for i, hit, mark in zip(indices, chosen | cover, marks)
            ]
            out[column] = _stamp(triggers, batch[column], indices, column, self.image_mode, column != self.image_column)
        return out


@dataclass(frozen=True)
class TriggerMap:
    """Returns the changed columns of a batch with the trigger on every image, text or sound, for `Dataset.map` as `BackdoorMap`."""

    trigger: Trigger
    targets: tuple[int, ...] | None
    image_column: str | None
    label_column: str
    image_mode: str | None = None
    text_column: str | None = None
    audio_column: str | None = None
    revision: int = field(default=_REVISION, repr=False)

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, list]:
        """Returns the changed columns of a batch of rows at these positions."""
        clean = list(batch[CLEAN_LABEL] if CLEAN_LABEL in batch else batch[self.label_column])
        out: dict[str, list] = {CLEAN_LABEL: clean, IS_CORRUPTED: [True] * len(clean)}
        if self.targets is not None:
            out[ATTACK_TARGET] = [self.targets[label] for label in clean]
        column = self.text_column or self.audio_column or self.image_column
        assert column is not None
        triggers = [trigger_at(self.trigger, int(i), training=False) for i in indices]
        out[column] = _stamp(triggers, batch[column], indices, column, self.image_mode, column != self.image_column)
        return out


def eligible_classes(rule: BackdoorLabels) -> tuple[int, ...]:
    """Returns for `key_limits` a class' own number where its rows are not to be poisoned, else another number.

    Args:
        rule: of the C classes.
    """
    return tuple(ANY_OTHER if moved else c for c, moved in enumerate(rule.poisoned))


def within_limits(limits: tuple[int | None, ...], labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns which rows (N,) of a data set `poison` chooses, as booleans.

    Args:
        limits: of `key_limits` with the same seed.
        labels: of all rows (N,).
        seed: of the choice.
    """
    return _within(limits, labels, sample_keys(seed, np.arange(len(labels))))


def _within(limits: tuple[int | None, ...], labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whether each row's key (N,) is at most its class' limit; None: no row of the class."""
    tops = np.array([limit or 0 for limit in limits], dtype=np.uint64)
    allowed = np.array([limit is not None for limit in limits])
    return allowed[labels] & (keys <= tops[labels])


def _marked(rows: datasets.Dataset | Mapping[str, Any]) -> np.ndarray:
    """Whether each row is corrupted or a cover by an earlier call (N,); one False for all where no column tells."""
    known = rows.column_names if isinstance(rows, datasets.Dataset) else rows
    marks = [np.asarray(rows[name][:], dtype=bool) for name in (IS_CORRUPTED, IS_COVER) if name in known]
    return np.logical_or.reduce(marks) if marks else np.zeros(1, dtype=bool)


def _cover_limits(
    labels: np.ndarray, limits: tuple[int | None, ...], classes: tuple[bool, ...], usual: float, rate: float | None, seed: int,
    marked: np.ndarray,
) -> tuple[int | None, ...]:  # fmt: skip
    """The largest key of a cover in each class, for exactly round(rate * N) covers among rows neither poisoned nor marked."""
    if rate is not None:
        check_rate(rate, "cover_rate")
    free = np.asarray(classes)[labels] & ~within_limits(limits, labels, seed) & ~marked
    wanted, left = round((usual if rate is None else rate) * len(labels)), int(free.sum())
    if rate is not None and wanted > left:
        raise ValueError(
            f"cover_rate={rate} asks for {wanted} of {len(labels)} samples but {left} are neither poisoned, nor covers, nor of a "
            f"class without covers: give at most {left / len(labels):.4g}."
        )
    limit = smallest(sample_keys(stream_seed(seed, _COVERS), np.flatnonzero(free)), min(wanted, left))
    return tuple(limit if allowed else None for allowed in classes)


def _input_columns(
    dataset: datasets.Dataset, trigger: Trigger | None, image: str | None, text: str | None, audio_name: str | None, label: str
) -> tuple[str | None, str | None, str | None]:
    """The column of images, that of texts, or that of sounds, that a trigger is put into; the others are None."""
    if trigger is not None and (not callable(trigger) or isinstance(trigger, type)):
        raise ValueError(
            f"trigger={str(trigger):.60} is no trigger: give for instance PatchTrigger(), TRIGGERS['patch'].make(), or a function "
            "of an image."
        )
    given = {"image_column": image, "text_column": text, "audio_column": audio_name}
    kind = "text_column" if isinstance(trigger, TextTrigger) else "audio_column" if isinstance(trigger, AudioTrigger) else None
    kind = kind or next((name for name in ("text_column", "audio_column") if given[name] is not None), "image_column")
    others = [name for name, value in given.items() if value is not None and name != kind]
    if others:
        words = {"text_column": "texts", "audio_column": "sounds", "image_column": "images"}[kind]
        what = f"{kind}={given[kind]!r}" if given[kind] is not None else f"a trigger for {words}"
        raise ValueError(f"{others[0]}={given[others[0]]!r} and {what} are given: leave one of them out.")
    if kind == "image_column":
        return columns.image_column(dataset, image), None, None
    if kind == "audio_column":
        return None, None, audio.audio_column(dataset, audio_name)
    column = texts.text_column(dataset, text, label)
    texts.check_texts(dataset, "dataset: ", column, column)
    return None, column, None


def _mode(dataset: datasets.Dataset, name: str | None) -> str | None:
    feature = dataset.features[name] if name is not None else None
    return feature.mode if isinstance(feature, datasets.Image) else None


def _stamp(
    triggers: Sequence[Trigger | None], values: Sequence[Any], indices: Sequence[int], column: str, mode: str | None, plain: bool
) -> list:
    """The inputs, each with its trigger where it has one; a ``ValueError`` names the row. plain: no images, so left alone."""
    stamped = []
    for value, trigger, index in zip(values, triggers, indices):
        try:
            if plain:
                stamped.append(value if trigger is None else trigger(value))
            else:
                stamped.append(_stamp_one(trigger, value, mode))
        except (ValueError, OSError) as error:
            raise ValueError(f"'{column}' in row {index}: {error}") from error
    return stamped


def _stamp_one(trigger: Trigger | None, image: Any, mode: str | None) -> Any:
    if image is None:
        raise ValueError("image is None: filter such rows out.")
    if isinstance(image, Mapping):  # an undecoded Image: {"bytes", "path"}
        if trigger is None and (mode is not None or _stays(image)):
            return image
        picture = decode_image(image, mode)
        return datasets.Image().encode_example(picture if trigger is None else trigger(picture))
    if isinstance(image, PIL.Image.Image):
        return decode_image(image) if trigger is None else trigger(image)
    check_pixels(as_array(image) if isinstance(image, list) else np.asarray(image))
    return image if trigger is None else trigger(image)


def _stays(image: Mapping[str, Any]) -> bool:
    """Whether an image without the trigger keeps its bytes: its mode is one that images with it have; reads the header only."""
    with open_image(image) as opened:
        return is_plain(opened)
