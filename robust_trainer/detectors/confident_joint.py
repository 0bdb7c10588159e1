"""Confident learning: the joint distribution of given and true labels says how many labels are wrong, margins say which."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from ..data.labels import rows_by_class
from ..selection.noise_rate import confident_joint
from .detection import Detection, choice_setting, top
from .evidence import Evidence

RANKINGS = ("normalized-margin", "self-confidence")


def confident_learning(evidence: Evidence, rate: float | None, seed: int, *, ranking: str = "normalized-margin") -> Detection:
    """Returns suspicion by confident learning, flagged by "prune by noise rate" (sec. 3.2).

    Of the samples labelled i, for each j != i, the ``N Q_ij`` (rounded) with the largest ``p_j - p_i`` are flagged; Q is the
    calibrated joint. Joint and flags are cleanlab's where it is installed (the extra ``detect``), else this package's own
    (`flag_by_joint`); they differ by rounding.

    Args:
        evidence: with probs, which should be out-of-sample, or means over training: a model that has learned the wrong labels by
            heart gives none away.
        rate: without effect.
        seed: without effect.
        ranking: the score, in [0, 1]: ``normalized-margin``, ``(1 - p_y + max_{j != y} p_j) / 2``, or ``self-confidence``,
            ``1 - p_y``.

    Returns:
        The detection; in ``details`` ``joint`` (C, C) of given (row) and true label, ``noise_rate``, its mass off the diagonal, and
        ``cleanlab``, whether it is theirs.

    References:
        Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in dataset labels", eq. 1 to 3.
    """
    choice_setting("ranking", ranking, RANKINGS)
    assert evidence.probs is not None
    probs, labels = evidence.probs.astype(np.float64), evidence.labels
    rows = np.arange(len(labels))
    labelled, others = probs[rows, labels], probs.copy()
    others[rows, labels] = -1.0
    rest = others.max(1) if evidence.classes > 1 else np.zeros(len(labels))
    scores = (1.0 - labelled if ranking == RANKINGS[1] else (1.0 - labelled + rest) / 2).clip(0.0, 1.0)
    theirs = flag_by_cleanlab(probs, labels)
    joint, flagged = theirs if theirs is not None else flag_by_joint(probs, labels)
    noise_rate = max(float(1.0 - np.trace(joint)), 0.0)
    return Detection("confident-joint", scores, flagged, {"joint": joint, "noise_rate": noise_rate, "cleanlab": theirs is not None})


def flag_by_cleanlab(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the joint (C, C) and the flags (N,) by cleanlab; None where it is not installed.

    Args:
        probs: predicted probabilities (N, C).
        labels: the given labels (N,).
    """
    try:
        from cleanlab.count import estimate_joint
        from cleanlab.filter import find_label_issues
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "May not flag all", UserWarning)  # of a class of one sample, or of none
        return estimate_joint(labels, probs), find_label_issues(labels, probs, filter_by="prune_by_noise_rate", n_jobs=1)


def flag_by_joint(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the joint (C, C) and the flags (N,) by the joint that trainings estimate the noise rate with.

    Args:
        probs: predicted probabilities (N, C).
        labels: the given labels (N,).
    """
    classes = probs.shape[1]
    joint = confident_joint(torch.from_numpy(probs), torch.from_numpy(labels), classes)[0].numpy()
    flagged = np.zeros(len(labels), dtype=bool)
    parts = rows_by_class(labels, classes)
    np.fill_diagonal(counts := np.floor(joint * len(labels) + 0.5 + 1e-9).astype(np.int64), 0)
    for label, true in np.argwhere(counts > 0).tolist():  # no more pairs than samples, however many classes there are
        rows = parts[label]
        flagged[rows] |= top(probs[rows, true] - probs[rows, label], int(counts[label, true]))
    return joint, flagged
