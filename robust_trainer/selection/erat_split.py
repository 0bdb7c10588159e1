"""ERAT's split of the data set: samples whose labels are used, and samples whose labels are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..types import Progress
from .allocation import allocate_integers, class_scores, sampling_rates
from .ranking import minmax, smallest, tie_order

SCALES = ("none", "minmax")


@dataclass(frozen=True)
class Split:
    """The labelled and the unlabelled part of the data set, decided from scores of all samples at each epoch's start.

    As many samples as have a score of at most the mean (eq. 2) are kept: those with the smallest scores of each class, in the
    numbers of eq. 5.

    Args:
        rebalance: False keeps those at most the mean themselves (table VI "w/o RB").
        eta: of eq. 4, in [0, 1]; 0 gives all classes the same number. The paper says that 1 means no rebalancing; by eq. 4 it
            does not.
        scale: one of SCALES: ``none``, scores as they are, 1 - S_k at least 0.001 in eq. 4; ``minmax``, stretched to [0, 1] (the
            authors' code).
        warmup_epochs: finished epochs before which everybody is kept, >= 0.

    References:
        ERAT eq. 1 to 5 and sec. IV.B.
    """

    rebalance: bool = True
    eta: float = 0.1
    scale: str = "none"
    warmup_epochs: float = 10.0
    settings: ClassVar[Mapping[str, str]] = {"rebalance_eta": "eta", "score_scale": "scale"}

    @property
    def memory(self) -> str:
        """``scan``: decided from scores of the whole data set."""
        return "scan"

    def decides(self, progress: Progress) -> bool:
        """Returns whether an epoch that starts now is decided from such scores."""
        return progress.epoch + 1e-9 >= self.warmup_epochs

    def filter_active(self, progress: Progress) -> bool:
        """Returns whether being left out means distrust."""
        return self.decides(progress)

    def keep_mask(self, scores: Tensor, seen: Tensor, labels: Tensor, classes: int, progress: Progress, kept: Tensor) -> Tensor:
        """Returns the samples to keep over the next epoch, bool (N,).

        Guarantee: a sample whose score is not finite is not kept.

        Args:
            scores: of all samples (N,).
            seen: without effect.
            labels: the classes (N,).
            classes: number of classes.
            progress: where training stands.
            kept: those of the last epoch (N,), whose scores make the classes' means (eq. 3).
        """
        exact = scores.double().cpu()
        finite = exact.isfinite()
        below = finite & (exact <= exact[finite].mean() + 1e-9)
        if not self.rebalance:
            return below.to(scores.device)
        classes_of, level = labels.cpu(), minmax(exact)
        scaled = level if self.scale == "minmax" else exact.nan_to_num(nan=2.0, posinf=2.0)
        rates = sampling_rates(class_scores(scaled, classes_of, kept.cpu() & finite, classes), self.eta)
        counts = allocate_integers(int(below.sum()), rates, torch.bincount(classes_of[finite], minlength=classes))
        order = tie_order(len(exact), progress.seed, exact.device)
        mask = torch.empty_like(finite)
        mask[order] = smallest(exact[order], classes_of[order], counts)
        return (mask & finite).to(scores.device)

    def new_state(self, classes: int, peers: int, device: torch.device) -> dict[str, Tensor]:
        """Returns an empty state: nothing is carried from one step to the next."""
        return {}

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor:
        """Returns ones, (M, B): before the first decision everybody is kept."""
        return torch.ones_like(scores)

    def divisor(self, weights: Tensor) -> Tensor:
        """Returns the number of kept samples, (M,)."""
        return weights.sum(1)
