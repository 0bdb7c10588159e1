"""Activation clustering: the features of a poisoned class fall into two clusters, and the poison is the smaller one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score

from .detection import Detection, choice_setting, count_setting, each_class, settled_order, share_setting
from .evidence import Evidence

REDUCTIONS = ("ica", "pca")
_SILHOUETTE_ROWS = 2000  # its cost grows with the square


def activation_clustering(
    evidence: Evidence,
    rate: float | None,
    seed: int,
    *,
    components: int = 10,
    reduction: str = "ica",
    size_threshold: float = 0.35,
) -> Detection:
    """Returns suspicion by 2-means of each given class, its features reduced first.

    A class counts as poisoned where its smaller cluster has a share below ``size_threshold`` (the paper's relative-size rule);
    flagged are the smaller clusters of those classes. The paper has no score. Here it is ``s d_large / (d_large + d_small)``, in
    [0, 1], from the distances to both centres, above s / 2 inside the smaller cluster; s is the class's silhouette, at least 0 (of
    2000 samples of a larger class), so that a class that does not split scores near 0. On multi-target poison, where every class
    splits, this weight helps less. Classes of fewer than 4 samples, or of one feature vector, score 0.

    Guarantee: the order of the rows has no effect.

    Args:
        evidence: with features.
        rate: without effect.
        seed: of FastICA and 2-means.
        components: columns after the reduction, >= 1. FastICA of a class with fewer than some 30 samples per component finds
            directions of its own making, and the poison is lost among them: take fewer, or ``pca``.
        reduction: ``ica``, FastICA as in the paper, or ``pca``.
        size_threshold: in (0, 1]; the default is that of common implementations.

    Returns:
        The detection; in ``details`` per class ``smaller`` (share), ``silhouette``, ``poisoned``, and ``unconverged``: classes
        whose FastICA stopped early.

    References:
        Chen et al. 2018, "Detecting backdoor attacks on deep neural networks by activation clustering".
    """
    count_setting("components", components)
    choice_setting("reduction", reduction, REDUCTIONS)
    limit = share_setting("size_threshold", size_threshold)
    assert evidence.features is not None
    scores, flagged = np.zeros(len(evidence)), np.zeros(len(evidence), dtype=bool)
    details: dict[str, Any] = {"smaller": {}, "silhouette": {}, "poisoned": {}, "unconverged": []}
    for label, rows in each_class(evidence):
        rows = rows[settled_order(evidence.features[rows])]
        reduced, converged = _reduced(evidence.features[rows].astype(np.float64), components, reduction, seed)
        if len(rows) < 4 or reduced.shape[1] == 0:
            continue
        clusters = KMeans(2, n_init=10, random_state=seed).fit(reduced)
        sizes = np.bincount(clusters.labels_, minlength=2)
        small = int(sizes[1] < sizes[0])
        share = float(sizes[small] / len(rows))
        sample = _SILHOUETTE_ROWS if len(rows) > _SILHOUETTE_ROWS else None
        silhouette = float(silhouette_score(reduced, clusters.labels_, sample_size=sample, random_state=seed))
        distance = clusters.transform(reduced)
        total = distance.sum(1)
        closeness = np.divide(distance[:, 1 - small], total, out=np.full(len(rows), 0.5), where=total > 0)
        scores[rows] = max(silhouette, 0.0) * closeness
        flagged[rows] = (clusters.labels_ == small) & (share < limit)
        details["smaller"][label], details["silhouette"][label], details["poisoned"][label] = share, silhouette, share < limit
        if not converged:
            details["unconverged"].append(label)
    return Detection("activation-clustering", scores, flagged, details)


def _reduced(features: np.ndarray, components: int, reduction: str, seed: int) -> tuple[np.ndarray, bool]:
    """At most ``components`` columns, no more than the centred features' rank, and whether FastICA converged."""
    spread = np.abs(features - features.mean(0)).max()
    noise = np.finfo(np.float32).eps * max(features.shape) * np.abs(features).max()
    if spread <= noise:
        return np.empty((len(features), 0)), True
    analysis = PCA(min(components, *features.shape), random_state=seed)
    principal = analysis.fit_transform(features)
    kept = int((analysis.singular_values_ > max(noise, 1e-6 * analysis.singular_values_[0])).sum())
    principal = principal[:, :kept]
    if reduction == "pca":
        return principal, True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # FastICA begins with these principal components anyway
        independent = FastICA(kept, whiten="unit-variance", random_state=seed, max_iter=500, tol=1e-3).fit_transform(principal)
    for other in (w for w in caught if not issubclass(w.category, ConvergenceWarning)):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return independent, len(caught) == 0
