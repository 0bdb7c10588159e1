"""Samples with numbers to predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from .base import Problem, check_numbers, described, full_precision, matching_values


class Regression(Problem):
    """K numbers a sample, (B,) or (B, K), in the targets' unit."""

    name: ClassVar[str] = "regression"
    labels_are: ClassVar[str] = "regression values"
    objective: ClassVar[str] = "mse"

    def check_labels(self, name: str, labels: Any, outputs: int | None, index: Sequence[int]) -> None:
        """Raises ``ValueError`` for targets that are not finite floats of shape (B,) or (B, outputs)."""
        if isinstance(labels, Tensor) and not labels.is_floating_point():
            raise ValueError(
                f"'{name}' is {described(labels)}, class numbers it seems, but problem_type='regression': cast the column "
                "to float, or set problem_type='single_label_classification'."
            )
        check_numbers(self, name, labels, outputs, index, unit=False)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the squared error (M, B), the mean over outputs."""
        values, targets = matching_values("mse", logits, targets)
        return (values - targets).square().mean(-1)

    def loss_score(self, logits: Tensor, targets: Tensor, huber_delta: float | None = None) -> Tensor:
        """Returns the squared error (M, B), or Huber's loss where a delta is given."""
        return self.loss(logits, targets) if huber_delta is None else huber(logits, targets, huber_delta)

    def gradient_norm(self, logits: Tensor, targets: Tensor, huber_delta: float | None = None) -> Tensor:
        """Returns ``||yhat - y||_2`` (M, B); with a delta ``||clip(yhat - y, -delta, delta)||_2``."""
        values = full_precision(logits)
        residuals = values - targets.to(values.dtype)
        if huber_delta is not None:
            residuals = residuals.clamp(-huber_delta, huber_delta)
        return residuals.square().sum(-1).sqrt()


def huber(logits: Tensor, targets: Tensor, delta: float) -> Tensor:
    """Returns the mean over outputs (M, B) of r^2 / 2 where |r| <= delta, else delta (|r| - delta / 2).

    References:
        Huber 1964, "Robust estimation of a location parameter", in torch's form (``huber_loss``).
    """
    values, targets = matching_values("huber", logits, targets)
    return F.huber_loss(values, targets, reduction="none", delta=delta).mean(-1)


REGRESSION = Regression()
