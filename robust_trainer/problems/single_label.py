"""Samples with one class label each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from .base import Problem, described, full_precision


class SingleLabel(Problem):
    """One class label a sample: integers in [0, C)."""

    name: ClassVar[str] = "single_label_classification"
    labels_are: ClassVar[str] = "class labels"
    objective: ClassVar[str] = "ce"
    one_class: ClassVar[bool] = True

    def targets(self, labels: Tensor) -> Tensor:
        """Returns the class labels (B,)."""
        return labels.long()

    def model_labels(self, labels: Tensor) -> Tensor:
        """Returns the class labels (B,) as int64, which every loss takes; what is no integer stays, and is refused there."""
        return labels if labels.is_floating_point() else labels.long()

    def classes_of(self, targets: Tensor) -> Tensor:
        """Returns the class labels (B,)."""
        return targets

    def ledger_labels(self, targets: Tensor) -> Tensor:
        """Returns the class labels (B,)."""
        return targets

    def check_labels(self, name: str, labels: Any, outputs: int | None, index: Sequence[int]) -> None:
        """Raises ``ValueError`` for labels that are not integers of shape (B,) in [0, outputs)."""
        several = isinstance(labels, Tensor) and labels.dim() > 1 and not labels.is_floating_point()
        if several and bool((labels > 1).any()):
            raise ValueError(
                f"'{name}' is {described(labels)}, several class numbers a sample (of tokens, pixels?), expected one, shape (B,): "
                "robust methods weigh samples of one label; use a sequence or image classification model, or method=None."
            )
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1:
            raise ValueError(
                f"'{name}' is {described(labels)}, expected integer class labels of shape (B,): robust methods need one class "
                "number per sample; encode names with dataset.class_encode_column(...), one-hot rows with argmax; for numbers to "
                "predict or several labels a sample set problem_type='regression' or 'multi_label_classification'."
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (outputs is not None and high >= outputs):
            value = low if low < 0 else high
            row = index[int((labels == value).nonzero()[0])]
            upper = "C" if outputs is None else outputs
            raise ValueError(f"'{name}' is {value} in training row {row}, expected [0, {upper}): repair the label or num_labels.")

    def check_targets(self, targets: Tensor, outputs: int) -> None:
        """Raises ``ValueError`` for a label (B,) that is no class of the model."""
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= outputs:
            bad = low if low < 0 else high
            raise ValueError(f"label {bad} in the batch, the model has {outputs} outputs: repair the label or the model.")

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Returns the cross-entropy (M, B), in nats, of labels (M, B) or of mixtures of classes (M, B, C)."""
        logits = full_precision(logits)
        flat = targets.flatten() if targets.dim() == 2 else targets.flatten(0, 1).to(logits.dtype)
        losses = F.cross_entropy(logits.flatten(0, 1), flat, reduction="none", label_smoothing=label_smoothing)
        return losses.view(logits.shape[:2])

    def evaluation_loss(self, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Returns the mean cross-entropy of logits (B, C), scalar."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)

    def gradient_norm(self, logits: Tensor, targets: Tensor, huber_delta: float | None = None) -> Tensor:
        """Returns ``||softmax(z) - onehot(y)||_2``, (M, B), in [0, sqrt 2]."""
        # ||p - e_y||^2 = sum_{k != y} p_k^2 + (1 - p_y)^2, with 1 - p_y as the sum of the others to stay exact near 0
        others = full_precision(logits).softmax(-1).scatter(-1, targets.unsqueeze(-1), 0.0)
        return (others.square().sum(-1) + others.sum(-1).square()).sqrt()

    def predictions(self, logits: Tensor) -> Tensor:
        """Returns the class with the largest logit, (M, B, 1)."""
        return logits.argmax(-1, keepdim=True)

    def _one_network(self, logits: Tensor | None) -> Tensor | None:
        return None if logits is None else logits.unsqueeze(0)

    def _expected(self, size: int) -> str:
        return f"classification logits of shape ({size}, C)"

    def _check_width(self, rows: Tensor, targets: Tensor) -> None:
        """Labels outside the classes are told by `check_labels` and `check_targets`."""


SINGLE_LABEL = SingleLabel()
