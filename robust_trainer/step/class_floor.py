"""No class is left out whole where classes differ in size: which of its samples are kept in an epoch, whatever the rule says.

A network learns rare classes last, so their scores are high however right their labels are, and a rule that ranks drops them first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..ledger.class_counts import trusted_by_class
from ..selection.allocation import class_floors
from ..selection.ranking import smallest, tie_order
from ..types import Progress
from .records import MicroBatch, Run


class ClassFloor:
    """The samples that are kept whatever the rule says: of each class those with the smallest scores, as many as `class_floors`.

    Chosen as an epoch starts, by the scores that the ledger remembers. What the epoch needs is in the run's states, so in
    checkpoints; where no class is rare there is nothing to keep, to look up or to save.

    Guarantee: a sample whose score is not finite is not kept by it.

    Args:
        run: of the training.
    """

    def __init__(self, run: Run):
        self.run = run
        self._asked = run.recipe.class_floor > 0 and run.recipe.selection is not None and run.problem.one_class
        self._counted, self._epoch = False, -1
        self._told: list[int] = []
        if run.ledger is not None and run.ledger.given is not None:
            self.count(run.ledger.given)
            run.ledger.given = None

    @property
    def _state(self) -> dict[str, Tensor]:
        return self.run.states.get("floor", {})

    def count(self, labels: Tensor) -> None:
        """Finds the classes that have a floor and their samples, once.

        Args:
            labels: the given labels (N,), -1 where unknown.
        """
        run = self.run
        if self._counted or not self._asked or "floor" in run.states:
            return
        self._counted = True
        known = (labels >= 0).nonzero().flatten()
        labels = labels[known].long()
        sizes = torch.bincount(labels)
        floors = class_floors(sizes, run.recipe.class_floor)
        rows = known[floors[labels] > 0]
        if len(rows):
            classes, place = labels[floors[labels] > 0].unique(return_inverse=True)
            state = {"rows": rows, "classes": place, "counts": floors[classes]}
            run.states["floor"] = {name: tensor.to(run.device) for name, tensor in state.items()}

    def kept_whole(self) -> Tensor | None:
        """Returns the positions of the samples of classes that are kept whole, None for none."""
        state = self._state
        if not state:
            return None
        whole = torch.bincount(state["classes"], minlength=len(state["counts"])) == state["counts"]
        return state["rows"][whole[state["classes"]]]

    def open_epoch(self, progress: Progress) -> None:
        """At an epoch's first step: chooses the samples, by what the ledger remembers.

        Args:
            progress: where training stands.
        """
        epoch, ledger = int(progress.epoch), self.run.ledger
        if epoch == self._epoch or not self._asked or ledger is None:
            return
        if epoch > 0:
            self.count(ledger.label)  # of a data set that does not tell its labels itself
        resumed = self._epoch < 0 and progress.epoch - epoch > 1e-9 and "keep" in self._state
        self._epoch = epoch
        if self._state and not resumed:
            self._state["keep"] = self.chosen(ledger.ema_score)

    def chosen(self, scores: Tensor) -> Tensor:
        """Returns the samples that are kept by these scores, bool (N,).

        Args:
            scores: of all samples (N,).
        """
        state, keep = self._state, torch.zeros_like(scores, dtype=torch.bool)
        if state:
            order = tie_order(len(state["rows"]), self.run.seed, scores.device)
            rows, classes = state["rows"][order], state["classes"][order]
            keep[rows] = smallest(scores[rows], classes, state["counts"]) & scores[rows].isfinite()
        return keep

    def warning(self) -> str:
        """Returns which classes the selection leaves hardly anybody of, each class once, in words; '' for none."""
        run = self.run
        asked = run.ledger is not None and run.recipe.selection is not None and run.problem.one_class
        counts = trusted_by_class(run.ledger) if asked and run.ledger is not None else None
        if counts is None:
            return ""
        new = counts.few & ~np.isin(np.arange(len(counts.samples)), self._told)
        self._told += np.flatnonzero(new).tolist()
        if not new.any():
            return ""
        return (
            f"the selection trusts hardly any sample of class {counts.told(new)}: if their labels are right, set "
            "per_class=True or rebalance=True, or lower noise_rate."
        )

    def raised(self, weights: Sequence[Tensor], scores: Sequence[Tensor], batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Returns the weights of a rule with 1 in place of 0 for the samples that are kept, without a host sync.

        Args:
            weights: (M, B) of each micro-batch.
            scores: (M, B) of each micro-batch.
            batches: the micro-batches.
        """
        keep = self._state.get("keep")
        if keep is None or any(batch.index is None for batch in batches):
            return list(weights)
        return [
            torch.where(keep[batch.positions] & score.isfinite() & (weight <= 0), torch.ones_like(weight), weight)
            for weight, score, batch in zip(weights, scores, batches)
        ]
