"""Loss isolation: backdoored samples are learned first, so early in training the lowest losses are suspicious.

Li et al. 2021, "Anti-backdoor learning: training clean models on poisoned data" (ABL), its first stage: train for some epochs with
local gradient ascent (`isolation_recipe`), then isolate a small share of the samples by their losses (`loss_isolation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from ..losses.standard import CrossEntropy
from ..methods.recipe import Recipe
from ..problems import SINGLE_LABEL, Problem
from ..selection.scores import loss
from ..types import ForwardOutput
from .detection import Detection, share_setting, top, whole
from .evidence import Evidence


def loss_isolation(evidence: Evidence, rate: float | None, seed: int, *, share: float = 0.01) -> Detection:
    """ABL's isolation: score ``-loss``, in (-inf, 0]; flagged: the ``rate N`` lowest losses, rounded, of all classes together.

    rate None: ``share``, the paper's isolation ratio of 1 %. The losses are meant to be early ones: the paper takes them after
    20 epochs of `isolation_recipe`. On wrong labels without a trigger the order is the reverse: they have HIGH losses.
    told: ``threshold``, the largest loss that was flagged (None for nobody). seed: without effect.
    """
    share = share_setting("share", share) if rate is None else rate
    assert evidence.losses is not None
    scores = -evidence.losses.astype(np.float64) + 0.0
    flagged = top(scores, whole(share * len(evidence)))
    return Detection("loss-isolation", scores, flagged, {"threshold": float(-scores[flagged].min()) if flagged.any() else None})


@dataclass(frozen=True)
class LocalGradientAscent:
    """``sign(l - gamma) l`` per sample, (M, B), with l its cross-entropy in nats (Li et al. 2021, eq. 3, L_LGA).

    A sample whose loss falls below gamma is pushed back up, so that only what is learned easily stays low. The sign is each
    sample's own, as in the paper; the authors' code takes that of the batch's mean loss. gamma >= 0 in nats (paper: 0.5); 0 is the
    cross-entropy. Raises ``ValueError`` for another.
    """

    gamma: float = 0.5
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)

    def __post_init__(self) -> None:
        if isinstance(self.gamma, bool) or not isinstance(self.gamma, int | float) or not 0 <= self.gamma < float("inf"):
            raise ValueError(f"gamma={self.gamma!r}: expected a loss in nats of at least 0, such as 0.5.")

    def __call__(self, view: ForwardOutput, targets: Tensor) -> Tensor:
        losses = CrossEntropy()(view, targets)
        return (losses.detach() - self.gamma).sign() * losses


def isolation_recipe(gamma: float = 0.5) -> Recipe:
    """ABL's first stage for ``RobustTrainer(recipe=isolation_recipe())``: `LocalGradientAscent` on all samples.

    Nobody is left out; the ledger keeps each sample's cross-entropy. Train it for about 20 epochs (paper).
    """
    return Recipe("loss-isolation", loss, LocalGradientAscent(gamma), settings={"gamma": gamma})
