"""How many samples of each given class there are, and how many of them are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..reporting.safe_text import plain
from ..selection.allocation import CLASS_FLOOR
from .ledger import SampleLedger

#: Classes that a message names, and characters of a name.
TOLD, NAME = 20, 60


@dataclass(frozen=True)
class ClassCounts:
    """Samples of each given class (C,), and how many of them are left (C,).

    Args:
        names: of the classes; by number where they have none.
        samples: of each class.
        left: of these, not left out.
    """

    names: Sequence[str]
    samples: np.ndarray
    left: np.ndarray

    @property
    def few(self) -> np.ndarray:
        """Whether hardly anybody of a class is left, (C,): fewer than a quarter of it, and than CLASS_FLOOR."""
        return (self.samples > 0) & (self.left < np.clip(self.samples // 4, 1, CLASS_FLOOR))

    def rows(self) -> list[dict[str, Any]]:
        """Returns the classes that have samples, for results.json: name, samples, kept (those left) and few."""
        few = self.few
        return [
            {"class": self.name(int(c)), "samples": int(self.samples[c]), "kept": int(self.left[c]), "few": bool(few[c])}
            for c in np.flatnonzero(self.samples)
        ]

    def told(self, chosen: np.ndarray) -> str:
        """Returns the chosen classes in words, safe to print: ``cat (2 of 140), dog (0 of 9) and 3 more``.

        Args:
            chosen: bool (C,).
        """
        rows = np.flatnonzero(chosen)
        shown = [f"{self.name(int(c))} ({self.left[c]:,} of {self.samples[c]:,})" for c in rows[:TOLD]]
        return ", ".join(shown) + (f" and {len(rows) - TOLD} more" if len(rows) > TOLD else "")

    def name(self, number: int) -> str:
        """Returns a class's name, safe to print, or its number.

        Args:
            number: of the class.
        """
        return plain(self.names[number], NAME) if number < len(self.names) else str(number)


def count_classes(names: Sequence[str], label: np.ndarray, left: np.ndarray) -> ClassCounts:
    """Returns the counts of labelled samples.

    Args:
        names: of the classes.
        label: given classes (N,), -1 for none.
        left: which samples are left, bool (N,).
    """
    known = label >= 0
    samples = np.bincount(label[known], minlength=len(names))
    return ClassCounts(names, samples, np.bincount(label[known & left], minlength=len(samples)))


def trusted_by_class(ledger: SampleLedger) -> ClassCounts | None:
    """Returns of the samples that training saw how many of each class the filter does not distrust; None without classes.

    Args:
        ledger: of the run.
    """
    label, seen = (ledger.columns[name].cpu().numpy() for name in ("label", "seen"))
    label = np.where(seen > 0, label.astype(np.int64), -1)
    if not (label >= 0).any():
        return None
    return count_classes(tuple(ledger.run.get("names") or ()), label, ~ledger.distrusted().cpu().numpy())
