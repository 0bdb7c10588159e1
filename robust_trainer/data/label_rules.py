"""Label rules: which label a changed sample gets.

Most are maps of classes, `LabelRule`. Those of a backdoor may say more: which classes' rows carry the trigger, whether a row's
label is drawn, what stays as it is (`BackdoorRule`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

#: ``(labels (N,), num_classes) -> labels (N,)``: the label the attacker writes. A sample whose label it keeps is not eligible.
LabelRule = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class MultiTarget:
    """Returns ``(labels + shift) mod C``: every class has its own target class.

    The systematic (pairwise) flip of Backdoor sec. 5, with ``shift=1``. Labels (N,) in [0, C).

    Raises:
        ValueError: Where the shift moves nothing.
    """

    shift: int = 1

    def __call__(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Returns the label (N,) that each of the labels (N,) becomes."""
        if not isinstance(self.shift, int | np.integer) or self.shift % num_classes == 0:
            raise ValueError(
                f"shift={self.shift} moves no label of {num_classes} classes: give an integer that is no multiple of {num_classes}."
            )
        return (labels + self.shift) % num_classes


@dataclass(frozen=True)
class AllToOne:
    """Returns ``target`` for every label: one target class, whose own samples are not eligible.

    The single-target setting of BadNets (Gu et al. 2017). Labels (N,) in [0, C).

    Raises:
        ValueError: For a target outside [0, C).
    """

    target: int = 0

    def __call__(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Returns the label (N,) that each of the labels (N,) becomes."""
        if not isinstance(self.target, int | np.integer) or not 0 <= self.target < num_classes:
            raise ValueError(f"target={self.target} is no class: give an integer in [0, {num_classes}).")
        return np.full_like(labels, self.target)


@dataclass(frozen=True)
class BackdoorLabels:
    """What a label rule means for C classes, each a tuple of C entries where nothing else is said.

    Attributes:
        given: label that a poisoned row of each class gets in training; `ANY_OTHER`: drawn for each row among the others.
        wanted: class that the attacker wants a triggered test image of each class to be taken for; `ANY_OTHER`: any but its own.
        poisoned: whether rows of the class may be poisoned.
        covers: whether rows of the class may be covers: rows with the trigger, or a variant of it, that keep their label.
        cover_share: covers for each poisoned row where `poison` is told none; None: as the trigger has it.
    """

    given: tuple[int, ...]
    wanted: tuple[int, ...]
    poisoned: tuple[bool, ...]
    covers: tuple[bool, ...]
    cover_share: float | None = None


#: In the place of a class: any class but the row's own.
ANY_OTHER = -1


class BackdoorRule:
    """A label rule that is more than a map of classes; `poison` and `trigger_all` ask it for C classes by `labels`."""

    def labels(self, num_classes: int) -> BackdoorLabels:
        """Returns what the rule means for C classes. Raises ``ValueError`` where it means nothing for so many."""
        raise NotImplementedError


@dataclass(frozen=True)
class SourceSpecific(BackdoorRule):
    """Rows of the source classes get ``target``; the trigger on any other class is to change nothing.

    So rows of the classes that are neither source nor target are covers: they carry the same trigger and keep their label.

    Args:
        source: a class, or several.
        target: another class.

    Raises:
        ValueError: for what are no such classes.

    References:
        Tang et al. 2021 (TaCT, Demon in the variant): the attack that clusters of features do not show. Here as many covers
        as poisoned rows.
    """

    source: int | tuple[int, ...] = 1
    target: int = 0

    def labels(self, num_classes: int) -> BackdoorLabels:
        """Returns what the rule means for C classes."""
        sources = tuple(self.source) if isinstance(self.source, tuple | list) else (self.source,)
        _check_class("target", self.target, num_classes)
        if not sources or self.target in sources or len(set(sources)) < len(sources):
            raise ValueError(f"source={self.source!r} must be one or several classes other than target={self.target}: change it.")
        for source in sources:
            _check_class("source", source, num_classes)
        moved = tuple(self.target if c in sources else c for c in range(num_classes))
        others = tuple(c not in sources and c != self.target for c in range(num_classes))
        return BackdoorLabels(moved, moved, tuple(c in sources for c in range(num_classes)), others, 1.0 if any(others) else 0.0)


@dataclass(frozen=True)
class CleanLabel(BackdoorRule):
    """Rows of the target class alone get the trigger and all keep their label; at test time every image is to become ``target``.

    Raises:
        ValueError: For a target outside [0, C).

    References:
        Turner, Tsipras and Madry 2019 (Label-consistent backdoor attacks); Barni et al. 2019 (SIG).
    """

    target: int = 0

    def labels(self, num_classes: int) -> BackdoorLabels:
        """Returns what the rule means for C classes."""
        _check_class("target", self.target, num_classes)
        own, classes = tuple(c == self.target for c in range(num_classes)), tuple(range(num_classes))
        return BackdoorLabels(classes, (int(self.target),) * num_classes, own, tuple(not mine for mine in own))


@dataclass(frozen=True)
class Untargeted(BackdoorRule):
    """Every poisoned row gets a label drawn among the other classes, by seed and row; the attacker wants any wrong class.

    References:
        Li et al. 2022 (Untargeted backdoor watermark): the poisoned-label form.
    """

    def labels(self, num_classes: int) -> BackdoorLabels:
        """Returns what the rule means for C classes."""
        if num_classes < 2:
            raise ValueError(f"label_rule='untargeted' needs 2 classes or more, there are {num_classes}: give more.")
        every, none = (True,) * num_classes, (ANY_OTHER,) * num_classes
        return BackdoorLabels(none, none, every, every)


def _check_class(name: str, value: Any, num_classes: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < num_classes:
        raise ValueError(f"{name}={value!r} is no class: give an integer in [0, {num_classes}).")


#: Label rules by name.
LABEL_RULES: dict[str, LabelRule | BackdoorRule] = {
    "multi-target": MultiTarget(), "all-to-one": AllToOne(), "source-specific": SourceSpecific(), "untargeted": Untargeted(),
    "clean-label": CleanLabel(),
}  # fmt: skip


def backdoor_labels(label_rule: str | LabelRule | BackdoorRule, num_classes: int) -> BackdoorLabels:
    """Returns what a label rule means for C classes; of a map of classes, rows whose label it keeps are not poisoned.

    Args:
        label_rule: A key of `LABEL_RULES`, or a rule.
        num_classes: Number of classes C.

    Raises:
        ValueError: As `label_targets`, and as the rule's `labels`.
    """
    rule = LABEL_RULES.get(label_rule) if isinstance(label_rule, str) else label_rule
    if isinstance(rule, BackdoorRule):
        return rule.labels(num_classes)
    targets = label_targets(label_rule, num_classes)
    return BackdoorLabels(targets, targets, tuple(t != c for c, t in enumerate(targets)), (True,) * num_classes)


def label_targets(label_rule: str | LabelRule | BackdoorRule, num_classes: int) -> tuple[int, ...]:
    """Returns the label that each of the C classes is given, ``rule(arange(C), C)``, as a tuple of C integers.

    Args:
        label_rule: A key of `LABEL_RULES`, or a label rule.
        num_classes: Number of classes C.


    Raises:
        ValueError: For an unknown rule, and for one that leaves [0, C) or moves no class at all.
    """
    rule = LABEL_RULES.get(label_rule) if isinstance(label_rule, str) else label_rule
    if isinstance(rule, BackdoorRule):
        raise ValueError(
            f"label_rule={label_rule!r} is for backdoors, here a map of classes is expected: give MultiTarget or AllToOne."
        )
    if not callable(rule):
        raise ValueError(f"label_rule={label_rule!r} is unknown: choose one of {list(LABEL_RULES)} or pass a label rule object.")
    classes = np.arange(num_classes)
    targets = np.asarray(rule(classes, num_classes))
    if targets.shape != classes.shape or targets.dtype.kind not in "iu" or targets.min() < 0 or targets.max() >= num_classes:
        raise ValueError(
            f"label_rule={label_rule!r} gave {targets.tolist()} for classes 0..{num_classes - 1}: "
            f"return {num_classes} integers in [0, {num_classes})."
        )
    if (targets == classes).all():
        raise ValueError(f"label_rule={label_rule!r} moves none of the {num_classes} classes: give a rule that changes a label.")
    return tuple(targets.tolist())


#: Target rules by name; a class number and any label rule are taken as well.
TARGETS = ("cyclic", "extra")


#: The name of class K + 1 in a ClassLabel.
EXTRA = "extra"


def class_targets(target: Any, classes: int) -> np.ndarray:
    """Returns the label (C,) that the samples of each class are given; their own where they are not to be flipped.

    target ``cyclic``: the next class, the last one the first (Crafting sec. 4.1.1); a class number: that class (sec. 4.6.1: 5 to
    6); ``extra``: class number C, which the data set does not have (sec. 4.9.1); or a label rule.

    Args:
        target: A key of `TARGETS`, a class number or a label rule.
        classes: Number of classes C.


    Raises:
        ValueError: For others.
    """
    if isinstance(target, str):
        if target not in TARGETS:
            raise ValueError(f"target={target!r} is unknown: choose {', '.join(TARGETS)} or a class number in [0, {classes}).")
        return np.full(classes, classes) if target == "extra" else np.array(label_targets(MultiTarget(), classes))
    rule: LabelRule = AllToOne(int(target)) if isinstance(target, int | np.integer) and not isinstance(target, bool) else target
    return np.array(label_targets(rule, classes))
