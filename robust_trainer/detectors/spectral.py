"""Spectral signatures: poisoned samples of a class stand out along its features' first singular direction.

The authors' code differs from their Algorithm 1 in the score and in the rule, so both are here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import svds
from transformers.utils import logging

from .detection import Detection, each_class, share_setting, top, whole
from .evidence import Evidence

logger = logging.get_logger(__name__)

_DENSE = 1000  # up to this side the whole Gram matrix is quick


def spectral(evidence: Evidence, rate: float | None, seed: int, *, most: float = 0.5) -> Detection:
    """Returns suspicion by the paper's algorithm: scores ``((R_i - mean R) . v)^2``, in [0, inf), in the features' unit squared.

    v is the first right-singular vector of a given class's centred features R (n, D). The ``1.5 rate n`` highest of each class are
    flagged, rounded. Classes of one or two samples score 0 and none is flagged. Scores of different classes are compared as they
    are.

    Args:
        evidence: with features.
        rate: the expected share of poison in a class.
        seed: without effect.
        most: largest share of a class that is flagged, in (0, 1].

    Raises:
        ValueError: without a rate.

    References:
        Tran, Li and Madry 2018, "Spectral signatures in backdoor attacks", Algorithm 1.
    """
    if rate is None:
        raise ValueError("rate=None: detector 'spectral' removes 1.5 times the expected share of poison; give rate.")
    share = min(1.5 * rate, share_setting("most", most))
    scores, flagged = np.zeros(len(evidence)), np.zeros(len(evidence), dtype=bool)
    for _, rows in each_class(evidence):
        if len(rows) > 2:
            features = _features(evidence, rows)
            centred = features - features.mean(0)
            scores[rows] = (centred @ first_direction(centred)) ** 2
            flagged[rows] = top(scores[rows], min(whole(share * len(rows)), int(most * len(rows))))
    return Detection("spectral", scores, flagged)


def spectral_code(evidence: Evidence, rate: float | None, seed: int, *, percentile: float = 85, most: float = 0.5) -> Detection:
    """Returns suspicion as the authors' code has it: scores ``|R_i . v|``, in [0, inf).

    The features R are NOT centred, v is that of the centred ones. The code looks at the attacker's target class alone; here at
    every class. Classes of one or two samples score 0.

    Args:
        evidence: with features.
        rate: without effect.
        seed: without effect.
        percentile: scores strictly above this one of the class are flagged, in [0, 100].
        most: largest share of a class that is flagged, in (0, 1].

    Returns:
        The detection; in ``details`` ``threshold`` per class.

    References:
        Tran, Li and Madry 2018, "Spectral signatures in backdoor attacks": the authors' code.
    """
    if isinstance(percentile, bool) or not isinstance(percentile, int | float) or not 0 <= percentile <= 100:
        raise ValueError(f"percentile={percentile!r}: expected a number from 0 to 100.")
    share_setting("most", most)
    scores, flagged = np.zeros(len(evidence)), np.zeros(len(evidence), dtype=bool)
    thresholds: dict[int, Any] = {}
    at_it = 0
    for label, rows in each_class(evidence):
        if len(rows) > 2:
            features = _features(evidence, rows)
            scores[rows] = np.abs(features @ first_direction(features - features.mean(0)))
            thresholds[label] = float(np.percentile(scores[rows], percentile))
            at_it += int((scores[rows] == thresholds[label]).sum() > 1)
            flagged[rows] = (scores[rows] > thresholds[label]) & top(scores[rows], int(most * len(rows)))
    if at_it:
        logger.warning(
            f"detector 'spectral-code': in {at_it} classes several samples have the very score of percentile {percentile:g}, "
            "and none of these is flagged: give another percentile, or look at detection.scores."
        )
    return Detection("spectral-code", scores, flagged, {"threshold": thresholds})


def first_direction(centred: np.ndarray) -> np.ndarray:
    """Returns the first right-singular vector (D,), of length 1, up to its sign; zeros where all rows are zero.

    Args:
        centred: (n, D) float64.
    """
    size = np.abs(centred).max()
    if size == 0:
        return np.zeros(centred.shape[1])
    scaled = centred / size
    n, width = scaled.shape
    side = min(n, width)
    if side > _DENSE:
        start = np.random.default_rng(0).normal(size=side)
        return svds(scaled, k=1, v0=start, return_singular_vectors="vh")[2][0]
    gram = scaled.T @ scaled if width <= n else scaled @ scaled.T
    vector = eigh(gram, subset_by_index=[side - 1, side - 1])[1][:, 0]
    vector = vector if width <= n else scaled.T @ vector
    return vector / np.linalg.norm(vector)


def _features(evidence: Evidence, rows: np.ndarray) -> np.ndarray:
    assert evidence.features is not None
    return evidence.features[rows].astype(np.float64)
