"""Samples with several labels each: K numbers in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from .base import Problem, check_numbers, full_precision, matching_values


class MultiLabel(Problem):
    """Any number of K labels a sample: (B, K) in [0, 1]."""

    name: ClassVar[str] = "multi_label_classification"
    labels_are: ClassVar[str] = "sets of labels"
    objective: ClassVar[str] = "bce"

    def check_labels(self, name: str, labels: Any, outputs: int | None, index: Sequence[int]) -> None:
        """Raises ``ValueError`` for targets that are not of shape (B, outputs) or outside [0, 1]."""
        check_numbers(self, name, labels, outputs, index, unit=True)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the binary cross-entropy of sigmoid(z), (M, B), in nats, the mean over labels."""
        values, targets = matching_values("bce", logits, targets)
        return F.binary_cross_entropy_with_logits(values, targets, reduction="none").mean(-1)

    def gradient_norm(self, logits: Tensor, targets: Tensor, huber_delta: float | None = None) -> Tensor:
        """Returns ``||sigmoid(z) - y||_2``, (M, B), in [0, sqrt K]."""
        values = full_precision(logits)
        targets = targets.to(values.dtype)
        # sigmoid(z) - y, exact near 0 at both ends
        residuals = (1.0 - targets) * values.sigmoid() - targets * (-values).sigmoid()
        return residuals.square().sum(-1).sqrt()

    def predictions(self, logits: Tensor) -> Tensor:
        """Returns which labels are predicted, those of a logit above 0, bool (M, B, K)."""
        return logits > 0


MULTI_LABEL = MultiLabel()
