"""What a detector answers, and what the rules share: classes one by one, the top share, an order that no order of rows changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .evidence import Evidence


@dataclass(frozen=True, eq=False)
class Detection:
    """A detector's answer on N samples, in the data set's order.

    Attributes:
        name: of the detector.
        scores: (N,) float64, finite, HIGHER = MORE SUSPICIOUS.
        flagged: (N,) bool, those that the rule would remove.
        details: what else the rule computed, by name (per class where it works so).
    """

    name: str
    scores: np.ndarray
    flagged: np.ndarray
    details: Mapping[str, Any] = field(default_factory=dict)


def each_class(evidence: Evidence) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each given class that has samples, and their positions, ascending.

    Args:
        evidence: of all samples.
    """
    order = np.argsort(evidence.labels, kind="stable")
    labels, starts = np.unique(evidence.labels[order], return_index=True)
    yield from zip(labels.tolist(), np.split(order, starts[1:]))


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns which of the scores are the ``count`` highest, bool (n,); ties go by position.

    Args:
        scores: (n,).
        count: how many; none for a negative number.
    """
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(-scores, kind="stable")[: max(count, 0)]] = True
    return chosen


def tied(evidence: Evidence, detection: Detection) -> int:
    """Returns how many samples are not flagged that have the very score of one of their class that is, the least of these.

    Args:
        evidence: of all samples.
        detection: on them.
    """
    _, place = np.unique(evidence.labels, return_inverse=True)
    least = np.full(len(place), np.inf)
    np.minimum.at(least, place[detection.flagged], detection.scores[detection.flagged])
    return int((~detection.flagged & (detection.scores == least[place])).sum())


def whole(share: float) -> int:
    """Returns the whole number nearest to ``share``, halves up."""
    return int(np.floor(share + 0.5 + 1e-9))


def settled_order(rows: np.ndarray) -> np.ndarray:
    """Returns an order of the rows that depends on what they hold and not on how they came, so that random draws fall alike.

    Args:
        rows: (n, D).
    """
    weights = np.random.default_rng(0).normal(size=rows.shape[1])
    keys = (np.ascontiguousarray(rows, dtype=np.float64) * weights).sum(1)
    return np.argsort(keys, kind="stable")


def share_setting(name: str, value: Any, zero: bool = False) -> float:
    """Returns a setting as a float in (0, 1], or in [0, 1] with ``zero``.

    Raises:
        ValueError: for another value, naming the setting.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 <= value <= 1 if zero else 0 < value <= 1):
        raise ValueError(f"{name}={value!r}: expected a share {'from' if zero else 'above'} 0 to 1.")
    return float(value)


def count_setting(name: str, value: Any) -> int:
    """Returns a setting as a whole number of at least 1.

    Raises:
        ValueError: for another value, naming the setting.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least 1.")
    return value


def choice_setting(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Returns a setting that is one of the choices.

    Raises:
        ValueError: for another value, naming the setting.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}.")
    return str(value)
