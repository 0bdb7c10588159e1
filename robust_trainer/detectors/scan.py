"""SCAn: a class whose features are two groups rather than one is contaminated, by a likelihood-ratio test against all classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from .detection import Detection, count_setting, each_class, settled_order
from .evidence import Evidence

#: A class whose normalised statistic lies above e^2 is contaminated (sec. 4.3).
THRESHOLD = float(np.exp(2.0))
_ROUNDS, _CLOSE = 100, 1e-5
#: A normal distribution's standard deviation in its median absolute deviations.
_DEVIATION = 1.4826


def scan(
    evidence: Evidence, rate: float | None, seed: int, *, threshold: float = THRESHOLD, components: int = 32
) -> Detection:  # fmt: skip
    """Returns suspicion by SCAn, statistical contamination analysis; needs the features of some clean rows of every class.

    A feature vector is its class's identity and a variation, ``r = mu_class + e`` (eq. 2), both normal; their covariances S_mu and
    S_e come from the clean rows by an EM algorithm. Each given class is then split into two groups of covariance S_e
    (untangling, eq. 5), and

        J = (1/n) sum_i ((r_i - mu)' S_e^-1 (r_i - mu) - (r_i - mu_group)' S_e^-1 (r_i - mu_group))

    is twice the log of the likelihood ratio of two groups over one, a sample. J's distance above the median of all classes, in
    median absolute deviations times 1.4826, says how contaminated a class is (eq. 10); above ``threshold`` the group with the
    smaller share of the class's clean rows is flagged. Where all classes are contaminated alike, as by all-to-all poison, none
    stands out: the test is made for few target classes.

    The score is the class's statistic times how far a sample lies towards the suspicious group, in [0, inf): 0 at the other group's
    centre and beyond, 1 at its own. Classes of fewer than 4 samples score 0. Guarantee: the order of the rows has no effect.

    Args:
        evidence: with features, and the features of clean rows.
        rate: without effect.
        seed: of the split's starts.
        threshold: of the normalised statistic, e^2 in the paper.
        components: principal components of the rows to judge that features are reduced to first, >= 1, fewer where there are fewer
            clean rows than four times as many: S_e cannot be told from less (the paper has no such step). Those of the clean rows
            alone leave the trigger's direction out.

    Returns:
        The detection; in ``details`` per class ``statistic`` (normalised) and ``ratio`` (J), and ``components``.

    Raises:
        ValueError: where fewer than two classes have two clean rows.

    References:
        Tang, Wang, Tang and Zhang 2021, "Demon in the variant: statistical analysis of DNNs for robust backdoor contamination
        detection", sec. 4.
    """
    count_setting("components", components)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold >= 0:
        raise ValueError(f"threshold={threshold!r}: expected a number of at least 0.")
    clean = evidence.clean
    assert evidence.features is not None and clean is not None and clean.features is not None
    sizes = np.bincount(clean.labels)
    if (sizes >= 2).sum() < 2:
        raise ValueError(f"{int((sizes >= 2).sum())} classes have 2 clean rows: detector 'scan' needs some of every class.")
    order = settled_order(clean.features)
    known, known_labels = clean.features[order].astype(np.float64), clean.labels[order]
    kept = max(min(components, known.shape[1], len(known) // 4), 1)
    inspected = evidence.features[settled_order(evidence.features)].astype(np.float64)
    reduction = PCA(kept, svd_solver="full").fit(inspected)
    known = reduction.transform(known)
    identity, variation = covariances(known, known_labels)
    whiten = cholesky(np.linalg.inv(variation), lower=True)  # distances of x @ whiten are those of S_e^-1
    centre = known.mean(0)
    scores, flagged = np.zeros(len(evidence)), np.zeros(len(evidence), dtype=bool)
    found: dict[int, tuple[float, np.ndarray, np.ndarray, np.ndarray]] = {}
    for label, rows in each_class(evidence):
        rows = rows[settled_order(evidence.features[rows])]
        x = reduction.transform(evidence.features[rows].astype(np.float64))
        if len(rows) < 4 or np.ptp(x, 0).max() == 0:
            continue
        together = np.concatenate([x, known[known_labels == label]]) - centre
        ratio, second, towards = _untangled(together, identity, variation, whiten, seed)
        own, other = second[len(rows) :], ~second[len(rows) :]
        if own.sum() > other.sum() or (own.sum() == other.sum() and 2 * second.sum() > len(second)):
            second, towards = ~second, 1 - towards  # the clean rows' group is the first; else the larger one
        found[label] = ratio, rows, second[: len(rows)], towards[: len(rows)]
    ratios = np.array([ratio for ratio, *_ in found.values()])
    statistics: dict[int, float] = {}
    if len(found):
        median = np.median(ratios)
        deviation = max(_DEVIATION * float(np.median(np.abs(ratios - median))), 1e-12)
    for label, (ratio, rows, second, towards) in found.items():
        statistics[label] = max(float((ratio - median) / deviation), 0.0)
        scores[rows] = statistics[label] * towards.clip(0.0, None)
        flagged[rows] = second & (statistics[label] > threshold)
    details: dict[str, Any] = {"statistic": statistics, "ratio": {k: v[0] for k, v in found.items()}, "components": kept}
    return Detection("scan", scores, flagged, details)


def covariances(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the covariances of the classes' identities and of the variation, (D, D) each, by EM.

    Expectation: ``mu_c = S_mu (S_mu + S_e / n_c)^-1 mean_c``, with the overall mean as origin. Maximisation: S_mu is the covariance
    of the samples' ``mu``, S_e that of ``r - mu``. Both get a thousandth of their mean variance on the diagonal.

    Args:
        features: of clean samples, (N, D).
        labels: (N,).

    References:
        Tang et al. 2021, sec. 4.2; Chen et al. 2012, "Bayesian face revisited".
    """
    _, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    x = features - features.mean(0)
    means = np.zeros((len(sizes), x.shape[1]))
    np.add.at(means, place, x)
    means /= sizes[:, None]
    mu = means
    identity, variation = _covariance(mu[place]), _covariance(x - mu[place])
    for _ in range(_ROUNDS):
        shrunk = [identity @ cho_solve(cho_factor(identity + variation / n), mean) for n, mean in zip(sizes, means)]
        mu = np.stack(shrunk)
        before, identity, variation = (identity, variation), _covariance(mu[place]), _covariance(x - mu[place])
        if sum(float(np.linalg.norm(a - b)) for a, b in zip(before, (identity, variation))) < _CLOSE:
            break
    return identity, variation


def _covariance(rows: np.ndarray) -> np.ndarray:
    found = np.atleast_2d(np.cov(rows, rowvar=False))
    return found + np.eye(len(found)) * max(1e-3 * float(np.trace(found)) / len(found), 1e-12)


def _untangled(
    x: np.ndarray, identity: np.ndarray, variation: np.ndarray, whiten: np.ndarray, seed: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """J of the best split, who is in the second group, and how far each lies from the first centre (0) to the second (1)."""
    white = x @ whiten
    split = KMeans(2, n_init=10, random_state=seed).fit(white)
    mu = identity @ cho_solve(cho_factor(identity + variation / len(x)), x.mean(0)) @ whiten
    alone = np.square(white - mu).sum(1)
    grouped = np.square(white - split.cluster_centers_[split.labels_]).sum(1)
    first, second = split.cluster_centers_
    line = second - first
    return float((alone - grouped).mean()), split.labels_ == 1, (white - first) @ line / (line @ line)
