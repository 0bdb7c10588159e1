"""From the ledger's columns to a suspicion in [0, 1], a suggested label, the share of wrong labels and what is given for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..selection.thresholds import Threshold, of_share, of_spread

#: A label is called wrong where the model prefers another class by this part of that class's typical margin, at least by LEAST
#: (in logits: odds of e to 1). STEEP: how fast suspicion grows, per typical margin.
CUT, LEAST, STEEP = 0.5, 1.0, 3.0
#: Of the scores of numbers: the cut is so many robust standard deviations above their median.
DEVIATIONS = 3.0
MEANING = (
    "Suspicion is a logistic curve over the area under the margin (AUM), the mean over the visits of training of the given label's "
    "logit less the largest other. 0.5 is the cut: there the model preferred another class by half of the margin that trusted "
    "samples of that class have, and by 1 at least. A typical trusted sample has 0.01; one just as far on the wrong side 0.8."
)
#: The ledger's columns that hold what a run judged by features.
VERDICT = ("label_wrong", "suggested", "suggested_confidence", "carrier")
#: Added to MEANING where the run has judged the labels by features.
VERDICT_MEANING = (
    " Where the run's own verdict by features gives the label a larger probability to be wrong (label_wrong in the ledger), "
    "suspicion is that. Labels that training alone doubts are above 0.5 only as far as the upper end of that verdict's rate leaves "
    "room (the rate itself, where its interval begins at 0), the most suspicious first; the others stand just below."
)
#: What is held back stays so close below the cut, in its order.
_BELOW = 1e-3
NUMBERS_MEANING = (
    "Suspicion is s / (s + cut) of a sample's mean score s over the visits of training. 0: the target is predicted exactly. 0.5: "
    "the score is at the cut, {cut}. Towards 1: far beyond it."
)


@dataclass(frozen=True)
class Suspicion:
    """Per sample (N,): suspicion in [0, 1], suggested label (-1 for none) and confidence in it in [0, 1]; what suspicion means.

    note: what equal scores did to the cut, '' for nothing.
    """

    suspicion: np.ndarray
    suggested: np.ndarray
    confidence: np.ndarray
    meaning: str
    note: str = ""


def judge(rows: Mapping[str, np.ndarray], classes: int) -> Suspicion:
    """What the ledger's ``rows`` (`SampleLedger.rows`) say of each sample's label, from the margins of class labels.

    With a a sample's area under the margin, r its rival class, A_r the median of the positive areas of the samples given r and A
    the median of the A_r, at least 1: the cut is c = -max(A_r / 2, 1) and suspicion 1 / (1 + exp(3 (a - c) / A)). A sample that was
    never visited has suspicion 0, as has one without a rival (there is one class); one whose predictions were not finite has 1.
    From suspicion 1/2 on the rival is suggested, with its running confidence; below, the given label, with confidence (1 + m) / 2
    for the mean margin m of probabilities.

    Args:
        rows: Columns (N,) of `SampleLedger.rows`.
        classes: Number of classes C.
    """
    label, seen, area = rows["label"].astype(np.int64), rows["seen"] > 0, rows["aum"].astype(np.float64)
    rival, finite = rows["rival"].astype(np.int64), np.isfinite(area)
    a = np.where(finite, area, 0.0)
    typical = _typical(a, label, finite & seen & (a > 0) & (label >= 0), classes)
    scale = max(float(np.median(typical[typical > 0])) if (typical > 0).any() else 0.0, LEAST)
    cut = -np.maximum(CUT * typical[rival.clip(0)], LEAST) if classes else -LEAST
    suspicion = 1.0 / (1.0 + np.exp(np.clip(STEEP * (a - cut) / scale, -700.0, 700.0)))
    suspicion = np.where(seen & (rival >= 0), np.where(finite, suspicion, 1.0), 0.0)
    m = np.nan_to_num(rows["margin"].astype(np.float64))
    doubted = (suspicion >= 0.5) & (rival >= 0)
    suggested = np.where(doubted, rival, label)
    confidence = np.where(doubted, rows["rival_confidence"], (1.0 + m) / 2.0) * seen
    return Suspicion(suspicion, suggested, confidence, MEANING)


def has_verdict(rows: Mapping[str, np.ndarray]) -> bool:
    """Whether the run has judged its labels by features, and these said something of them (method auto).

    Args:
        rows: Columns (N,) of `SampleLedger.rows`.
    """
    return rows.keys() >= set(VERDICT) and bool((rows["suggested"] >= 0).any())


def with_verdict(judged: Suspicion, rows: Mapping[str, np.ndarray], most: float = 1.0) -> Suspicion:
    """What training says of each label, together with the run's verdict by features: the larger of the two suspicions.

    Where the verdict's is the larger one, and 1/2 or more, the class is suggested that it suggests, with its probability. A network
    that learned little doubts many right labels: of what it alone doubts only so many are above 1/2 as ``most`` leaves room for.

    Args:
        judged: What training says (`judge`).
        rows: Columns (N,) of `SampleLedger.rows`, with a verdict (`has_verdict`).
        most: Share of the rows that may be above 1/2 so, in [0, 1].
    """
    wrong = np.nan_to_num(rows["label_wrong"].astype(np.float64))
    alone = (judged.suspicion >= 0.5) & (wrong < 0.5)
    room = max(int(most * len(wrong)) - int((wrong >= 0.5).sum()), 0)
    if alone.sum() > room:
        back = np.flatnonzero(alone)[np.argsort(-judged.suspicion[alone], kind="stable")[room:]]
        held, suggested, confidence = judged.suspicion.copy(), judged.suggested.copy(), judged.confidence.copy()
        held[back] = 0.5 - _BELOW * (1.0 + np.arange(len(back))) / len(back)
        suggested[back] = rows["label"][back]
        confidence[back] = (1.0 + np.nan_to_num(rows["margin"][back].astype(np.float64))) / 2.0
        judged = replace(judged, suspicion=held, suggested=suggested, confidence=confidence)
    told = (wrong >= 0.5) & (wrong > judged.suspicion) & (rows["suggested"] >= 0)
    judged = replace(judged, confidence=np.where((rows["seen"] == 0) & (rows["suggested"] >= 0), 1.0 - wrong, judged.confidence))
    return replace(
        judged, suspicion=np.maximum(judged.suspicion, wrong),
        suggested=np.where(told, rows["suggested"].astype(np.int64), judged.suggested),
        confidence=np.where(told, rows["suggested_confidence"], judged.confidence), meaning=judged.meaning + VERDICT_MEANING,
    )  # fmt: skip


def _typical(area: np.ndarray, label: np.ndarray, trusted: np.ndarray, classes: int) -> np.ndarray:
    """The median area of each class's trusted samples (C,), 0 where there are none."""
    out = np.zeros(classes)
    order = np.argsort(label[trusted], kind="stable")
    kinds, starts = np.unique(label[trusted][order], return_index=True)
    for kind, part in zip(kinds, np.split(area[trusted][order], starts[1:])):
        out[kind] = np.median(part)
    return out


def judge_numbers(rows: Mapping[str, np.ndarray], rate: float | None) -> Suspicion:
    """The same where targets are numbers or several labels: s / (s + cut) of the mean score s, counted from the least if below 0.

    The cut is the (1 - rate) quantile of the scores for the ``rate`` that the run was told, else median + 3 * 1.4826 * MAD.

    Args:
        rows: Columns (N,) of `SampleLedger.rows`.
        rate: The noise rate that the run was given, None for none.
    """
    seen = rows["seen"] > 0
    score = np.where(seen, rows["mean_score"], 0.0).astype(np.float64)
    finite = np.isfinite(score)
    low = min(float(score[finite].min(initial=0.0)), 0.0)  # a loss of the user's may be negative
    score = np.where(seen, score - low, 0.0)
    known = score[seen & finite]
    found = Threshold(0.0)
    if len(known) and rate is not None and 0.0 < rate < 1.0:
        found = of_share(known, rate)
    elif len(known):
        middle = float(np.median(known))
        found = of_spread(known, middle, float(np.median(np.abs(known - middle))), DEVIATIONS)
    cut = max(found.value * (1.0 + 1e-9), 1e-12)  # a score that all samples share is not beyond the cut
    suspicion = np.where(finite, score / (np.where(finite, score, 0.0) + cut), 1.0)
    none = np.full(len(score), -1, dtype=np.int64)
    meaning = NUMBERS_MEANING.format(cut=f"{cut + low:.4g}")
    return Suspicion(suspicion, none, np.zeros(len(score)), meaning, found.note and f"Equal scores: {found.note}.")


def transition_matrix(label: np.ndarray, suggested: np.ndarray, classes: int) -> np.ndarray:
    """(C, C): row i, how the samples whose label should be i (``suggested``) are labelled; sums to 1, where there are none at i.

    Args:
        label: Given labels (N,).
        suggested: Suggested labels (N,).
        classes: Number of classes C.
    """
    known = (label >= 0) & (suggested >= 0)
    counts = np.bincount(suggested[known] * classes + label[known], minlength=classes * classes).reshape(classes, classes)
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), np.eye(classes))
