"""Confident learning: the joint distribution of given and true labels says how many labels are wrong, margins say which.

Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in dataset labels".
"""

from __future__ import annotations

import numpy as np
import torch

from ..selection.noise_rate import confident_joint
from .detection import Detection, choice_setting, top, whole
from .evidence import Evidence

RANKINGS = ("normalized-margin", "self-confidence")


def confident_learning(evidence: Evidence, rate: float | None, seed: int, *, ranking: str = "normalized-margin") -> Detection:
    """Flagged by "prune by noise rate" (paper sec. 3.2): of the samples given i, for each j != i, the ``N Q_ij`` (rounded) with the
    largest ``p_j - p_i``; Q is the calibrated joint (`noise_rate.confident_joint`, eq. 1 to 3).

    Score, in [0, 1]: ``normalized-margin``, ``(1 - p_y + max_{j != y} p_j) / 2``, or ``self-confidence``, ``1 - p_y``.
    The probs should be out-of-sample, or means over training: a model that has learned the wrong labels by heart gives none away.
    told: ``joint`` (C, C) of given (row) and true label, ``noise_rate``, its mass off the diagonal. rate, seed: without effect.
    """
    choice_setting("ranking", ranking, RANKINGS)
    assert evidence.probs is not None
    probs, labels = evidence.probs.astype(np.float64), evidence.labels
    joint, noise_rate = confident_joint(torch.from_numpy(probs), torch.from_numpy(labels), evidence.classes)
    everyone = np.arange(len(labels))
    own, others = probs[everyone, labels], probs.copy()
    others[everyone, labels] = -1.0
    rest = others.max(1) if evidence.classes > 1 else np.zeros(len(labels))
    scores = (1.0 - own if ranking == RANKINGS[1] else (1.0 - own + rest) / 2).clip(0.0, 1.0)
    flagged = np.zeros(len(labels), dtype=bool)
    for given in range(evidence.classes):
        rows = np.flatnonzero(labels == given)
        for true in range(evidence.classes):
            if given != true and len(rows):
                flagged[rows] |= top(probs[rows, true] - own[rows], whole(float(joint[given, true]) * len(labels)))
    return Detection("confident-joint", scores, flagged, {"joint": joint.numpy(), "noise_rate": noise_rate})
