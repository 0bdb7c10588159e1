"""The share of wrong labels, from how often labels disagree with predictions that have not seen them, by confidence."""

from __future__ import annotations

import math

import numpy as np

from ..selection.noise_rate import RateEstimate

#: Rates that are tried; rows are put into so many bins by their margin.
RATES = np.concatenate([[0.0, 0.0025, 0.005, 0.0075], np.arange(0.01, 0.9, 0.01)])
BINS = 256
#: How fast errors fall with the margin, in its standard deviations, and how many frequencies of errors at margin 0 are tried: from
#: 1/2, where two classes share all of the doubt, to 1 - 1/C, where all do (of clean data sets here it was 0.63 to 0.75).
SLOPES, STARTS = np.geomspace(0.3, 12.0, 40), 9
#: Prior probability that no label is wrong, the largest rate of the flat prior otherwise, and the rate beyond which an interval has
#: to begin for the first to be given up.
CLEAN, LARGEST, SURE = 0.5, 0.6, 0.01
#: Half the drop of twice the log-likelihood that bounds a 95 % interval.
_DROP = 1.92


def wrong_label_rate(margins: np.ndarray, disagrees: np.ndarray, classes: int) -> RateEstimate:
    """Returns the share of wrong labels, with the 95 % interval of its likelihood.

    Errors of a model become rarer the larger its margin, wrong labels do not: what is left of the disagreement at large margins is
    theirs. Psychometricians call it the lapse rate of a curve. With margin m in standard deviations, the model errs with
    g(m) = 1 / (1 + exp(a + b m)), at m = 0 between 1/2 and 1 - 1/C, and label and prediction disagree with
    r + (1 - r C / (C - 1)) g(m). The rate r is its mean over a flat prior or, where the interval holds 1 % or less, over
    one that puts half of its weight on no wrong label: a rate that the data hardly tell is told as small.

    Args:
        margins: largest score less the second, (N,), of predictions that have not seen the row's label.
        disagrees: bool (N,), whether the row's label is another class than the predicted.
        classes: C, >= 2.

    References:
        Wichmann and Hill 2001, "The psychometric function: I. Fitting, sampling, and goodness of fit", eq. 1.
    """
    n = len(margins)
    if n == 0 or classes < 2:
        return RateEstimate(0.0, 0.0, 1.0, n)
    m = margins.astype(np.float64) / max(float(np.std(margins)), 1e-12)
    order = np.argsort(m, kind="stable")
    edges = np.linspace(0, n, min(BINS, n) + 1).astype(int)[:-1]
    count = np.diff(np.append(edges, n)).astype(np.float64)
    hits = np.add.reduceat(disagrees[order].astype(np.float64), edges)
    middle = np.add.reduceat(m[order], edges) / count
    start = np.zeros(1) if classes == 2 else np.linspace(-math.log(classes - 1), 0.0, STARTS)
    errs = 1.0 / (1.0 + np.exp(np.clip(start[:, None, None] + SLOPES[None, :, None] * middle, -50.0, 50.0)))
    chance = classes / (classes - 1)
    rates = RATES[RATES * chance < 1.0]
    likelihood = np.array([_log_likelihood(np.clip(r + (1.0 - r * chance) * errs, 1e-9, 1 - 1e-9), hits, count) for r in rates])
    inside = rates[likelihood >= likelihood.max() - _DROP]
    weight = np.exp(likelihood - likelihood.max())
    width = np.gradient(rates) * (rates <= LARGEST)
    slab = float((weight * width).sum() / LARGEST)
    mean = float((weight * width * rates).sum() / LARGEST)
    clean = CLEAN if inside.min() <= SURE else 0.0
    rate = (1.0 - clean) * mean / max((1.0 - clean) * slab + clean * float(weight[0]), 1e-300)
    rate = min(max(rate, 0.0), float(inside.max()))
    return RateEstimate(rate, min(float(inside.min()), rate), float(inside.max()), n)


def _log_likelihood(p: np.ndarray, hits: np.ndarray, count: np.ndarray) -> float:
    """The largest over all curves."""
    return float((np.log(p) @ hits + np.log1p(-p) @ (count - hits)).max())
