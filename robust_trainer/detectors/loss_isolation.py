"""Loss isolation: backdoored samples are learned first, so early in training the lowest losses are suspicious.

The first stage of anti-backdoor learning (ABL): train for some epochs with local gradient ascent (`isolation_recipe`), then isolate
a small share of the samples by their losses (`loss_isolation`).
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
    """Returns suspicion by low loss: scores ``-loss``, in (-inf, 0]; the lowest losses of all classes together are flagged.

    On wrong labels without a trigger the order is the reverse: they have HIGH losses.

    Args:
        evidence: with losses, early ones: the paper takes them after 20 epochs of `isolation_recipe`.
        rate: share that is flagged, rounded; None: ``share``.
        seed: without effect.
        share: the paper's isolation ratio, in (0, 1].

    Returns:
        The detection; in ``details`` ``threshold``, the largest loss that was flagged (None for nobody).

    References:
        Li et al. 2021, "Anti-backdoor learning: training clean models on poisoned data".
    """
    share = share_setting("share", share) if rate is None else rate
    assert evidence.losses is not None
    scores = -evidence.losses.astype(np.float64) + 0.0
    flagged = top(scores, whole(share * len(evidence)))
    return Detection("loss-isolation", scores, flagged, {"threshold": float(-scores[flagged].min()) if flagged.any() else None})


@dataclass(frozen=True)
class LocalGradientAscent:
    """``sign(l - gamma) l`` per sample, (M, B), with l its cross-entropy in nats.

    A sample whose loss falls below gamma is pushed back up, so that only what is learned easily stays low. The sign is each
    sample's own, as in the paper; the authors' code takes that of the batch's mean loss.

    Args:
        gamma: >= 0 in nats (paper: 0.5); 0 is the cross-entropy.

    Raises:
        ValueError: for another gamma.

    References:
        Li et al. 2021, "Anti-backdoor learning", eq. 3, L_LGA.
    """

    gamma: float = 0.5
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)

    def __post_init__(self) -> None:
        if isinstance(self.gamma, bool) or not isinstance(self.gamma, int | float) or not 0 <= self.gamma < float("inf"):
            raise ValueError(f"gamma={self.gamma!r}: expected a loss in nats of at least 0, such as 0.5.")

    def __call__(self, view: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the losses (M, B) of a forward pass; targets: (M, B)."""
        losses = CrossEntropy()(view, targets)
        return (losses.detach() - self.gamma).sign() * losses


def isolation_recipe(gamma: float = 0.5) -> Recipe:
    """Returns ABL's first stage, for ``RobustTrainer(recipe=isolation_recipe())``: `LocalGradientAscent` on all samples.

    Nobody is left out; the ledger keeps each sample's cross-entropy. Train it for about 20 epochs (paper).

    Args:
        gamma: of `LocalGradientAscent`.
    """
    return Recipe("loss-isolation", loss, LocalGradientAscent(gamma), settings={"gamma": gamma})
