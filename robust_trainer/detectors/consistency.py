"""Feature consistency towards transformations (FCT): the features of poisoned images change most when the image is moved."""

from __future__ import annotations

import numpy as np

from .detection import Detection, share_setting, top, whole
from .evidence import Evidence


def feature_consistency(evidence: Evidence, rate: float | None, seed: int, *, share: float = 0.05) -> Detection:
    """Returns suspicion by FCT: scores ``mean((f(t(x)) - f(x))^2)`` over the features, in [0, inf).

    The paper takes the features of a network that has had few epochs, without augmentation, and then a loss that moves the class
    means apart (`repair` "d-br" does so). Here they are those of the network at hand.

    Args:
        evidence: with consistency.
        rate: share that is flagged, rounded; None: ``share``.
        seed: without effect.
        share: the paper's share of rows that count as poisoned, in (0, 1].

    Returns:
        The detection; in ``details`` ``threshold``, the smallest score that was flagged (None for nobody).

    References:
        Chen, Wu and Wang 2022, "Effective backdoor defense by exploiting sensitivity of poisoned samples", eq. 1.
    """
    share = share_setting("share", share) if rate is None else rate
    assert evidence.consistency is not None
    scores = evidence.consistency.astype(np.float64)
    flagged = top(scores, whole(share * len(evidence)))
    return Detection("fct", scores, flagged, {"threshold": float(scores[flagged].min()) if flagged.any() else None})
