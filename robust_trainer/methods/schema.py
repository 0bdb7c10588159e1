"""What one setting is: its type, range, default and help, and the one-line errors that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..reporting.suggest import did_you_mean
from .units import fraction


@dataclass(frozen=True)
class Range:
    """A set of numbers, in words and as a test.

    Attributes:
        words: as they follow "must be", e.g. ``in [0, 1)``.
        holds: whether a finite number is in it.
    """

    words: str
    holds: Callable[[Any], bool]


POSITIVE = Range("> 0", lambda v: v > 0)
NOT_NEGATIVE = Range(">= 0", lambda v: v >= 0)
SHARE = Range("in [0, 1]", lambda v: 0 <= v <= 1)
SHARE_BELOW_ONE = Range("in [0, 1)", lambda v: 0 <= v < 1)
SHARE_ABOVE_ZERO = Range("in (0, 1]", lambda v: 0 < v <= 1)
SHARE_INSIDE = Range("in (0, 1)", lambda v: 0 < v < 1)


def at_least(least: int) -> Range:
    """Returns the whole numbers from ``least`` on.

    Args:
        least: the smallest of them.
    """
    return Range(f"a whole number >= {least}", lambda v: isinstance(v, int) and v >= least)


@dataclass(frozen=True)
class Setting:
    """One row of the schema (`robust_trainer.methods.settings.SETTINGS`).

    Attributes:
        name: as users write it.
        help: what it is, in one phrase that stands in messages, in ``--help`` and in the reference.
        default: its value where no row of `METHODS` has another.
        parts: the parts of a method that it belongs to; a method with one of them takes it.
        kind: float, int, bool or str.
        range: the numbers that it may be, None for text and switches.
        unit: of the numbers.
        choices: the words that it may be, asked each time, since registering adds some; None for numbers and switches.
        words: texts that may stand in a number's place.
        optional: whether None may be given.
        pixels: whether it is a size in the [0, 1] pixel scale, where people write ``8/255``.
        field: whether it is a field of `RobustConfig`; the others go through ``method_settings``.
        implicit: whether a method's settings hold it only where it is given; at its default it is as if not there.
        idle: the other settings and the method's parts -> why the setting has no effect beside them and the mend, or None.
    """

    name: str
    help: str
    default: Any
    parts: tuple[str, ...]
    kind: type = float
    range: Range | None = None
    unit: str = ""
    choices: Callable[[], Collection[str]] | None = None
    words: tuple[str, ...] = ()
    optional: bool = False
    pixels: bool = False
    field: bool = False
    implicit: bool = False
    idle: Callable[[Mapping[str, Any], Collection[str]], str | None] | None = None

    def annotation(self) -> str:
        """Returns the type of its field in `RobustConfig`, where None is the method's own value."""
        text = " | str" if self.kind is not str and (self.words or self.pixels) else ""
        return f"{self.kind.__name__}{text} | None"

    def expected(self) -> str:
        """Returns the values that it may have, in words."""
        if self.kind is bool:
            return "true or false"
        if self.choices is not None:
            return f"one of {', '.join(self.choices())}" + (", or None" if self.optional else "")
        assert self.range is not None
        others = [repr(word) for word in self.words] + (["None"] if self.optional else [])
        number = f"{self.range.words} {self.unit}".rstrip()
        return f"{number}, or {' or '.join(others)}" if others else number

    def read(self, value: Any) -> Any:
        """Returns the value that was meant, where text stands for a number or a switch; whether it is in range is not looked at.

        Args:
            value: from Python, YAML, JSON or the command line.

        Raises:
            ValueError: for the text of a size in pixels that is no number.
        """
        if not isinstance(value, str) or value in self.words or (self.choices is not None and value in self.choices()):
            return value
        text = value.strip().lower()
        if self.optional and text in ("none", "null"):
            return None
        if self.kind is bool:
            return {"true": True, "false": False}.get(text, value)
        if self.choices is not None:
            return value
        if self.pixels:
            return fraction(self.name, value)
        try:
            return int(text) if self.kind is int else fraction(self.name, text)
        except ValueError:
            return value

    def check(self, value: Any) -> None:
        """Refuses a value that the setting cannot have.

        Args:
            value: as `read` returns it.

        Raises:
            ValueError: in one line, with the name, the value and what is expected.
        """
        if (value is None and self.optional) or (isinstance(value, str) and value in self.words):
            return
        if self.choices is not None:
            names = self.choices()
            if not isinstance(value, str) or value not in names:
                hint = did_you_mean(value, names)
                mend = f"choose {self.expected()}" if names else f"register a {self.name} first"
                raise ValueError(f"{self.name}={value!r} is unknown: {hint}{mend}.")
            return
        within = self.range is not None and _is_number(value) and self.range.holds(value)
        fits = isinstance(value, bool) if self.kind is bool else within
        if not fits:
            raise ValueError(f"{self.name}={value!r} must be {self.expected()} ({self.help}).")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
