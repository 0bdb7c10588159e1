"""From the evidence on labels to what training does with each row: its weight, and the class it is trained as."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..selection.allocation import CLASS_FLOOR, class_floors

if TYPE_CHECKING:
    from .judge import LabelEvidence

#: A label that is probably wrong is trusted no more; a row counts for less than this not at all, and for this much as a whole one.
DOUBTED, LEAST_WEIGHT, WHOLE = 0.5, 0.05, 0.95
#: The first look is before training; the others are spread over this first part of the run.
LOOKING_SHARE = 0.5


@dataclass(frozen=True)
class Decision:
    """What training does with N rows.

    Attributes:
        weight: what a row's loss is multiplied by, (N,) float32 in [0, 1].
        target: the class that it is trained as, (N,) int64.
        trusted: whether its given label is, (N,) bool.
    """

    weight: np.ndarray
    target: np.ndarray
    trusted: np.ndarray

    @property
    def dropped(self) -> np.ndarray:
        """Which rows are not trained on, (N,) bool."""
        return self.weight == 0

    def told(self, labels: np.ndarray) -> str:
        """Returns what is done, in words.

        Args:
            labels: the given ones (N,).
        """
        n, moved = max(len(labels), 1), self.target != labels
        lowered = (self.weight < WHOLE) & ~self.dropped & ~moved
        out, other, less = (100 * float(rows.sum()) / n for rows in (self.dropped, moved, lowered))
        return f"{out:.1f} % of the rows are left out, {other:.1f} % trained as the suggested class, {less:.1f} % count for less"


@dataclass(frozen=True)
class ActOnEvidence:
    """When labels are judged, and what is done about the doubted ones.

    Args:
        looks: how often labels are judged: before training, and from the network's own features, at equal distances in the first
            half of the run.
        relabel_from: a doubted row is trained as the suggested class where that has this probability at least; 1: never.
        find_patterns: whether triggers are looked for in the inputs.
        class_floor: rows of each rare class that are kept as given, those whose labels are the least doubted.
        enlarge: whether the first look takes small images twice as large where the network's features then say more of the labels.
    """

    looks: int = 2
    relabel_from: float = 0.8
    find_patterns: bool = True
    class_floor: int = CLASS_FLOOR
    enlarge: bool = True

    def looks_at(self, epochs: float) -> list[int]:
        """Returns the epochs at whose start labels are judged; the first is 0.

        Args:
            epochs: of the run.
        """
        last = math.floor(LOOKING_SHARE * epochs)
        if self.looks < 2 or last < 1:
            return [0]
        return sorted({0, *(max(math.ceil(last * turn / self.looks), 1) for turn in range(1, self.looks))})

    def decide(self, evidence: LabelEvidence, labels: np.ndarray) -> Decision:
        """Returns what training does with each row.

        A row with a label that is probably right counts by that probability. One whose label is probably wrong is trained as the
        suggested class, if that is probable enough, or left out. Carriers of a pattern are left out, whatever is suggested.

        Args:
            evidence: of N rows.
            labels: the given ones (N,).
        """
        wrong = evidence.wrong.astype(np.float64)
        doubted = wrong > DOUBTED
        moved = doubted & (evidence.suggested != labels) & (evidence.confidence >= self.relabel_from) & ~evidence.carriers
        moved &= self.relabel_from < 1.0
        weight = np.where(doubted, 0.0, 1.0 - wrong)
        weight = np.where(moved, evidence.confidence, np.where(weight < LEAST_WEIGHT, 0.0, weight))
        weight[weight >= WHOLE] = 1.0  # where nobody is doubted training is the plain one, bit for bit
        kept = self._floor(evidence, labels, wrong)
        weight[kept], moved[kept] = 1.0, False
        return Decision(
            weight=weight.astype(np.float32), target=np.where(moved, evidence.suggested, labels).astype(np.int64),
            trusted=~doubted | kept,
        )  # fmt: skip

    def _floor(self, evidence: LabelEvidence, labels: np.ndarray, wrong: np.ndarray) -> np.ndarray:
        """Which rows of rare classes are kept, (N,) bool; none that carries a pattern."""
        kept = np.zeros(len(labels), dtype=bool)
        floors = class_floors(torch.from_numpy(np.bincount(labels)), self.class_floor).numpy() if self.class_floor else np.zeros(0)
        for c in np.flatnonzero(floors):
            rows = np.flatnonzero((labels == c) & ~evidence.carriers)
            kept[rows[np.argsort(wrong[rows], kind="stable")][: floors[c]]] = True
        return kept
