"""ERAT's split of the data set into trusted and distrusted samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import Progress
from .allocation import allocate_integers, class_scores, sampling_rates
from .ranking import minmax, smallest

SCALES = ("none", "minmax")


@dataclass(frozen=True)
class Split:
    """The labelled and the unlabelled part of the data set, decided from scores of all samples at each epoch's start.

    As many samples as have a score of at most the mean (paper 003 eq. 2) are trusted, those with the smallest scores of each class
    in the numbers of eq. 5; without ``rebalance`` those at most the mean themselves (table VI "w/o RB"). Before ``warmup_epochs``
    everybody is.
    eta: in [0, 1]; 0 gives all classes the same number. The paper says that 1 means no rebalancing; by eq. 4 it does not.
    scale: ``none``, scores as they are, 1 - S_k at least 0.001 in eq. 4; ``minmax``, stretched to [0, 1] (the authors' code).
    """

    rebalance: bool = True
    eta: float = 0.1
    scale: str = "none"
    warmup_epochs: float = 10.0

    @property
    def memory(self) -> str:
        """Decided from a scan of the whole data set."""
        return "scan"

    def decides(self, progress: Progress) -> bool:
        """Whether an epoch that starts now is decided by a scan."""
        return progress.epoch + 1e-9 >= self.warmup_epochs

    def filter_active(self, progress: Progress) -> bool:
        """Whether being left out means distrust."""
        return self.decides(progress)

    def keep_mask(self, scores: Tensor, seen: Tensor, labels: Tensor, classes: int, progress: Progress, kept: Tensor) -> Tensor:
        """The samples to trust over the next epoch, bool (N,), from the scores (N,), NaN never. kept: those of the last epoch."""
        exact = scores.double().cpu()
        finite = exact.isfinite()
        below = finite & (exact <= exact[finite].mean() + 1e-9)
        if not self.rebalance:
            return below.to(scores.device)
        given, level = labels.cpu(), minmax(exact)
        scaled = level if self.scale == "minmax" else exact.nan_to_num(nan=2.0, posinf=2.0)
        rates = sampling_rates(class_scores(scaled, given, kept.cpu() & finite, classes), self.eta)
        counts = allocate_integers(int(below.sum()), rates, torch.bincount(given[finite], minlength=classes))
        return (smallest(exact, given, counts) & finite).to(scores.device)

    def new_state(self, classes: int, peers: int, device: torch.device) -> dict[str, Tensor]:
        return {}

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor:
        """All ones, (M, B): before the first scan everybody is trusted."""
        return torch.ones_like(scores)

    def divisor(self, weights: Tensor) -> Tensor:
        """The kept samples, (M,)."""
        return weights.sum(1)
