"""Samples without labels: the model itself returns a loss and a score of each (`anomaly.AnomalyOutput`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Problem, full_precision

#: Keys that hold labels in a batch whose labels are left out.
LABEL_KEYS = ("labels", "label", "label_ids")


class Unlabelled(Problem):
    """No labels: the outputs (M, B, 2) are the model's own loss and score of each sample. No ``problem_type`` names it."""

    name: ClassVar[str] = "unsupervised"
    labels_are: ClassVar[str] = "samples without labels"
    objective: ClassVar[str] = "model"
    labelled: ClassVar[bool] = False

    def split(self, inputs: Mapping[str, Any], label_names: Sequence[str]) -> tuple[dict[str, Any], Tensor]:
        """Returns the inputs without what holds labels, and zeros (B, 1) in the targets' place."""
        rest = without_labels(inputs, label_names)
        first = next(v for v in rest.values() if isinstance(v, Tensor))
        return rest, torch.zeros(len(first), 1, device=first.device)

    def check_labels(self, name: str, labels: Any, outputs: int | None, index: Sequence[int]) -> None:
        """Any labels may lie beside the samples; none is read."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the model's own losses (M, B)."""
        return full_precision(logits)[..., 0]

    def loss_score(self, logits: Tensor, targets: Tensor, huber_delta: float | None = None) -> Tensor:
        """Returns the model's own scores (M, B): a reconstruction error, a negative log-likelihood."""
        return full_precision(logits)[..., 1]

    def gradient_norm(self, logits: Tensor, targets: Tensor, huber_delta: float | None = None) -> Tensor:
        """Returns the model's own scores (M, B): for a squared reconstruction error they have the order of its gradient's norm."""
        return full_precision(logits)[..., 1]

    def read(self, outputs: Any, logits: Tensor | None, targets: Tensor, method: str) -> Tensor:
        """Returns loss and score (M, B, 2). Raises ``ValueError`` where the model returned no loss of each sample."""
        both = outputs.get("peer_losses") if isinstance(outputs, dict) else None  # (B, M, 2)
        if both is None:
            both = losses_and_scores(outputs, len(targets), f"method '{method}'").unsqueeze(1)
        return both.transpose(0, 1)


def without_labels(inputs: Mapping[str, Any], label_names: Sequence[str] | None) -> dict[str, Any]:
    """Returns a batch without what holds labels.

    Args:
        inputs: the batch.
        label_names: names of labels beside the usual ones.
    """
    names = (*(label_names or ()), *LABEL_KEYS)
    return {k: v for k, v in inputs.items() if k not in names}


def losses_and_scores(outputs: Any, size: int, reader: str) -> Tensor:
    """Returns each sample's ``losses`` and ``scores`` in one network's output (B, 2), the losses twice where it has no scores.

    Args:
        outputs: what the network returned.
        size: B.
        reader: who needs them, for the message.

    Raises:
        ValueError: where they are not of shape (size,).
    """
    fields = outputs if isinstance(outputs, dict) else {}
    losses: Any = fields.get("losses")
    scores: Any = losses if fields.get("scores") is None else fields["scores"]
    for one, many, value in (("loss", "losses", losses), ("score", "scores", scores)):
        if value is None or value.shape != (size,):
            got = "none" if value is None else str(tuple(value.shape))
            raise ValueError(
                f"{reader} needs one {one} per sample of shape ({size},), the model's {many} are {got}: return an AnomalyOutput, "
                "see docs/guides/anomaly.md."
            )
    return torch.stack([losses, scores.detach()], 1)


UNLABELLED = Unlabelled()
