"""Label rules: which label a changed sample gets, by its class."""

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


LABEL_RULES: dict[str, LabelRule] = {"multi-target": MultiTarget(), "all-to-one": AllToOne()}


def label_targets(label_rule: str | LabelRule, num_classes: int) -> tuple[int, ...]:
    """Returns the label that each of the C classes is given, ``rule(arange(C), C)``, as a tuple of C integers.

    Args:
        label_rule: A key of `LABEL_RULES`, or a label rule.
        num_classes: Number of classes C.


    Raises:
        ValueError: For an unknown rule, and for one that leaves [0, C) or moves no class at all.
    """
    rule = LABEL_RULES.get(label_rule) if isinstance(label_rule, str) else label_rule
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
