"""Catastrophic overfitting of single-step adversarial training, told by a probe while training (Wong et al. 2020, sec. 5.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

#: A collapse: PGD's accuracy below this share of the best so far, and this much below the accuracy on the step's own examples.
SHARE, GAP = 0.5, 0.2
#: The key that is logged, 1.0 from the collapse on.
COLLAPSED = "catastrophic_overfitting"


def collapse(history: Sequence[Mapping[str, Any]], logs: Mapping[str, float]) -> dict[str, float]:
    """What to add to a training log that holds the probe's ``fgsm_accuracy`` and ``pgd_accuracy``: nothing, or `COLLAPSED`.

    history: the Trainer's earlier logs. Accuracies are on training samples against their given labels, in [0, 1]. Warns once.
    """
    if "pgd_accuracy" not in logs:
        return {}
    before = [row for row in history if "pgd_accuracy" in row]
    if any(COLLAPSED in row for row in before):
        return {COLLAPSED: 1.0}
    pgd, fgsm = logs["pgd_accuracy"], logs["fgsm_accuracy"]
    best = max((row["pgd_accuracy"] for row in before), default=0.0)
    if not (pgd < SHARE * best and pgd < fgsm - GAP):
        return {}
    logger.warning(
        f"catastrophic overfitting: PGD-10 accuracy on training samples fell to {pgd:.3f} (best so far {best:.3f}) while that on "
        f"the single-step examples is {fgsm:.3f}. The model is no longer robust: go back to an earlier checkpoint, lower step_size "
        "or eps, or use pgd-at (docs/adversarial_training.md)."
    )
    return {COLLAPSED: 1.0}
