"""Spectral signatures: poisoned samples of a class stand out along its features' first singular direction.

Tran, Li and Madry 2018, "Spectral signatures in backdoor attacks", Algorithm 1. The authors' code differs from it in the score and
in the rule, so both are here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import svds

from .detection import Detection, each_class, share_setting, top, whole
from .evidence import Evidence

_DENSE = 1000  # up to this side the whole Gram matrix is quick


def spectral(evidence: Evidence, rate: float | None, seed: int, *, most: float = 0.5) -> Detection:
    """The paper's Algorithm 1, for each given class: score ``((R_i - mean R) . v)^2``, in [0, inf), in the features' unit squared.

    v is the first right-singular vector of the class's centred features R (n, D). Flagged: the ``1.5 rate n`` highest of each
    class, rounded, but at most ``most`` of it; rate is the expected share of poison in a class. Classes of one or two samples
    score 0 and none is flagged. Scores of different classes are compared as they are. seed: without effect.
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
    """As the authors' code has it: score ``|R_i . v|``, the features NOT centred, v that of the centred ones; in [0, inf).

    Flagged: scores strictly above the class's ``percentile``, at most ``most`` of the class. The code looks at the attacker's
    target class alone; here at every class. Classes of one or two samples score 0. rate, seed: without effect.
    """
    if isinstance(percentile, bool) or not isinstance(percentile, int | float) or not 0 <= percentile <= 100:
        raise ValueError(f"percentile={percentile!r}: expected a number from 0 to 100.")
    share_setting("most", most)
    scores, flagged = np.zeros(len(evidence)), np.zeros(len(evidence), dtype=bool)
    told: dict[int, Any] = {}
    for label, rows in each_class(evidence):
        if len(rows) > 2:
            features = _features(evidence, rows)
            scores[rows] = np.abs(features @ first_direction(features - features.mean(0)))
            told[label] = float(np.percentile(scores[rows], percentile))
            flagged[rows] = (scores[rows] > told[label]) & top(scores[rows], int(most * len(rows)))
    return Detection("spectral-code", scores, flagged, {"threshold": told})


def first_direction(centred: np.ndarray) -> np.ndarray:
    """The first right-singular vector (D,) of float64 (n, D), of length 1, up to its sign; zeros where all rows are zero."""
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
