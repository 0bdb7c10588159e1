"""Numbers as people write them: 0.03, "0.03", "8/255"."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def fraction(name: str, value: Any) -> float:
    """The finite float that a number or a text such as ``8/255``, ``0.03`` or ``1e-2`` stands for; its range is not looked at.

    name: the argument's, for the message. Raises a one-line ``ValueError`` for anything else, NaN, infinity and x/0.
    """
    number = math.nan
    if isinstance(value, str):
        parts = value.split("/")
        try:
            number = float(parts[0]) / (float(parts[1]) if len(parts) == 2 else 1.0)
        except (ValueError, ZeroDivisionError):
            pass
        if len(parts) > 2:
            number = math.nan
    elif isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name}={value!r} is no finite number: give for instance 8/255 or 0.03.")
    return number
