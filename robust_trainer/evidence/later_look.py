"""The share of wrong labels at a later look: what was found before, together with what the network's own features say now."""

from __future__ import annotations

import torch
from torch import Tensor

from ..selection.noise_rate import RateEstimate
from .label_model import fit_label_model, rate_of
from .neighbours import normalise
from .ridge import LeaveOneOutRidge

#: An interval is taken to be no narrower than this; of fewer rows nothing is told.
NARROWEST, FEWEST_ROWS = 1e-3, 50


def refined_rate(
    earlier: RateEstimate, agreement: float, features: Tensor, labels: Tensor, classes: int, carriers: Tensor, seed: int = 0
) -> RateEstimate:
    """Returns the share of wrong labels among the rows without a pattern: the mean of both looks', each weighted by 1 / width^2.

    The width is that of the 95 % interval, so this is inverse-variance weighting. Of a network from scratch the later look tells
    much more, of a pretrained one often less; where it predicts fewer of the labels it does not count. The rows are the same ones,
    so the interval is the mean of both and not smaller. Where it tells fewer wrong labels than can be, the network may have learned
    them: then the rate counts that `fit_label_model` finds.

    Args:
        earlier: the rate in force, of rows without a pattern.
        agreement: share of the labels that the earlier look's features predicted.
        features: of the later look, (N, D), any scale.
        labels: the given ones, int64 (N,).
        classes: C.
        carriers: rows that are known to carry a pattern, bool (N,).
        seed: of what is drawn among many rows.
    """
    kept = ~carriers
    if int(kept.sum()) < FEWEST_ROWS:
        return earlier
    rows, given = normalise(features[kept]), labels[kept]
    targets, ridge = torch.nn.functional.one_hot(given, classes).float(), LeaveOneOutRidge(rows)
    scores = ridge.left_out(targets, ridge.best_penalty(targets))
    if float((scores.argmax(1) == given).double().mean()) < agreement:
        return earlier
    own = rate_of(scores, given, classes)
    return weighted_mean(earlier, own if own.high >= earlier.low else fit_label_model(rows, given, classes, seed).rate)


def weighted_mean(one: RateEstimate, other: RateEstimate) -> RateEstimate:
    """Returns the mean of two estimates of one rate, and of the ends of their intervals, weighted by 1 / width^2.

    Args:
        one: an estimate.
        other: another one.
    """
    first, second = (max(estimate.high - estimate.low, NARROWEST) ** -2 for estimate in (one, other))
    share = second / (first + second)
    rate, low, high = ((1.0 - share) * getattr(one, end) + share * getattr(other, end) for end in ("rate", "low", "high"))
    return RateEstimate(rate, low, high, other.n)
