"""The score beyond which a sample counts as bad, and what is to be said where many samples have that very score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: A standard deviation is so many median, or mean, absolute deviations of a normal distribution.
MEDIAN_DEVIATION, MEAN_DEVIATION = 1.4826, 1.2533


@dataclass(frozen=True)
class Threshold:
    """A score is bad beyond ``value``; ``note``: what equal scores did to it, in words, '' for nothing."""

    value: float
    note: str = ""


def of_share(scores: np.ndarray, share: float) -> Threshold:
    """Returns the threshold beyond which the ``share`` with the highest scores lies.

    It is the (1 - share) quantile. Where several samples have that very score, they are taken in, if they are no more than half
    of all samples and that comes closer to the share, or nobody would be left; else they are left out.

    Args:
        scores: (n,), finite, n >= 1.
        share: in (0, 1).
    """
    value, n = float(np.quantile(scores, 1.0 - share)), len(scores)
    equal, beyond = int((scores == value).sum()), int((scores > value).sum())
    asked, within, below = share * n, equal + beyond, scores[scores < value]
    if equal < 2 or asked - beyond <= 1.0 + 1e-9:
        return Threshold(value)
    if within <= n / 2 and len(below) and (beyond == 0 or within - asked <= asked - beyond):
        value, taken = float(below.max()), within
    else:
        taken = beyond
    note = f"{equal} of {n} samples have one score, at the cut: {taken} are beyond it, not the {asked:.0f} asked for"
    return Threshold(value, note)


def of_spread(scores: np.ndarray, middle: float, half_width: float, deviations: float) -> Threshold:
    """Returns the threshold so many robust standard deviations above the middle.

    Where more than half of the scores are one, no spread of them is left to measure; then the mean absolute deviation counts.

    Args:
        scores: (n,), finite, n >= 1.
        middle: of the usual scores.
        half_width: the median absolute deviation, or what stands for it.
        deviations: how many standard deviations.
    """
    if half_width > 0:
        return Threshold(middle + deviations * MEDIAN_DEVIATION * half_width)
    spread, equal = float(np.abs(scores - middle).mean()), int((scores == middle).sum())
    note = f"{equal} of {len(scores)} samples have one score, so the others' distance from it is measured by their mean"
    return Threshold(middle + deviations * MEAN_DEVIATION * spread, note if spread > 0 else "all samples have one score")
