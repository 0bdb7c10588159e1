"""Which label a flipped sample is given: the next class, a given class, or one that the data set does not have."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..label_rules import AllToOne, LabelRule, MultiTarget, label_targets

#: Target rules by name; a class number and any label rule are taken as well.
TARGETS = ("cyclic", "extra")
#: The name of class K + 1 in a ClassLabel.
EXTRA = "extra"


def class_targets(target: Any, classes: int) -> np.ndarray:
    """Returns the label (C,) that the samples of each class are given; their own where they are not to be flipped.

    target ``cyclic``: the next class, the last one the first (paper 002 sec. 4.1.1); a class number: that class (sec. 4.6.1: 5 to
    6); ``extra``: class number C, which the data set does not have (sec. 4.9.1); or a label rule. Raises ``ValueError`` for others.
    """
    if isinstance(target, str):
        if target not in TARGETS:
            raise ValueError(f"target={target!r} is unknown: choose {', '.join(TARGETS)} or a class number in [0, {classes}).")
        return np.full(classes, classes) if target == "extra" else np.array(label_targets(MultiTarget(), classes))
    rule: LabelRule = AllToOne(int(target)) if isinstance(target, int | np.integer) and not isinstance(target, bool) else target
    return np.array(label_targets(rule, classes))
