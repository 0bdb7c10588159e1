"""Isolation forest: samples that random cuts of the features soon leave alone."""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import IsolationForest

from .detection import Detection, count_setting, each_class, settled_order, top, whole
from .evidence import Evidence

_BORDER = 0.5  # the score of a sample as deep in the trees as the average


def isolation_forest(evidence: Evidence, rate: float | None, seed: int, *, per_class: bool = True, trees: int = 100) -> Detection:
    """Returns suspicion by scikit-learn's forest: scores ``2^(-E[depth] / c(n))``, in (0, 1].

    Classes of one or two samples score 0.5 and none is flagged. Guarantee: the order of the rows has no effect.

    Args:
        evidence: with features.
        rate: flags the ``rate n`` highest of each forest, rounded, at most half; None: scores above 0.5, the paper's border.
        seed: of the forests.
        per_class: a forest for each given class, or one for all samples.
        trees: of a forest, >= 1.

    References:
        Liu, Ting and Zhou 2008, "Isolation forest", eq. 2.
    """
    count_setting("trees", trees)
    if not isinstance(per_class, bool):
        raise ValueError(f"per_class={per_class!r}: expected True or False.")
    assert evidence.features is not None
    scores, flagged = np.full(len(evidence), _BORDER), np.zeros(len(evidence), dtype=bool)
    groups = [rows for _, rows in each_class(evidence)] if per_class else [np.arange(len(evidence))]
    for rows in groups:
        if len(rows) <= 2:
            continue
        rows = rows[settled_order(evidence.features[rows])]
        features = evidence.features[rows]
        scores[rows] = -IsolationForest(n_estimators=trees, random_state=seed).fit(features).score_samples(features)
        chosen = scores[rows] > _BORDER if rate is None else top(scores[rows], min(whole(rate * len(rows)), len(rows) // 2))
        flagged[rows] = chosen
    return Detection("isolation-forest", scores, flagged)
