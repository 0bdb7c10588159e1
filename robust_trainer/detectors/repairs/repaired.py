"""What a repair answers, and the check of a setting that the repairs share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn


@dataclass(frozen=True, eq=False)
class Repaired:
    """A repair's answer.

    Attributes:
        name: of the repair.
        model: the repaired copy, in the mode that the given model was in.
        flagged: (N,) bool, the training rows that were taken for poison; None where the repair judges no rows.
        details: what else the repair found out, by name.
    """

    name: str
    model: nn.Module
    flagged: np.ndarray | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def number_setting(name: str, value: Any) -> float:
    """Returns a setting as a finite float above 0.

    Raises:
        ValueError: for another value, naming the setting.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r}: expected a number above 0.")
    return float(value)
