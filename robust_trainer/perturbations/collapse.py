"""Catastrophic overfitting of single-step adversarial training, told by a probe while training.

Wong, Rice and Kolter 2020, "Fast is better than free", sec. 5.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

#: A fall: PGD's accuracy below this share of the best so far, by GAP at least, and by GAP below that on the step's own examples.
SHARE, GAP = 0.5, 0.2
#: The best counts where it is so much above naming the commonest label, which an untrained network does and no attack lowers.
MARGIN = 0.1
#: Never robust: PGD's accuracy so far below that on the step's own examples, and under this share of it.
WIDE, REST = 0.5, 0.25
#: The key that is logged, 1.0 from the collapse on.
COLLAPSED = "catastrophic_overfitting"


def collapse(history: Sequence[Mapping[str, Any]], logs: Mapping[str, float]) -> dict[str, float]:
    """Returns what to add to a training log that holds the probe's accuracies: nothing, or `COLLAPSED`. Warns once.

    Two logs in a row must show the collapse, since one probe of 64 samples has a standard error of up to 0.06.

    Args:
        history: the Trainer's earlier logs.
        logs: the new one. ``fgsm_accuracy`` and ``pgd_accuracy`` are on training samples against their given labels, in [0, 1];
            beside them is ``majority_accuracy``, that of naming the commonest label.
    """
    if "pgd_accuracy" not in logs:
        return {}
    before = [row for row in history if "pgd_accuracy" in row]
    if any(COLLAPSED in row for row in before):
        return {COLLAPSED: 1.0}
    best = max((row["pgd_accuracy"] for row in before if _learned(row)), default=0.0)
    if not before or not (_lost(before[-1], best) and _lost(logs, best)):
        return {}
    logger.warning(
        f"catastrophic overfitting: PGD-10 accuracy on training samples is {logs['pgd_accuracy']:.3f} (best so far {best:.3f}), "
        f"that on the single-step examples {logs['fgsm_accuracy']:.3f}. The model is not robust: go back to an earlier "
        "checkpoint, lower step_size or eps, or use pgd-at (docs/guides/adversarial_training.md)."
    )
    return {COLLAPSED: 1.0}


def _learned(row: Mapping[str, float]) -> bool:
    return row["pgd_accuracy"] > row.get("majority_accuracy", 0.0) + MARGIN


def _lost(row: Mapping[str, float], best: float) -> bool:
    pgd, fgsm = row["pgd_accuracy"], row["fgsm_accuracy"]
    fell = pgd < SHARE * best and best - pgd > GAP and fgsm - pgd > GAP
    return fell or (fgsm - pgd > WIDE and pgd < REST * fgsm)
