"""What a model of unlabelled rows returns: its own loss and its own suspicion of every row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class AnomalyOutput(ModelOutput):
    """loss: mean of losses, scalar; losses (B,): what is minimised; scores (B,): detached, higher = more abnormal.

    Args:
        reconstruction: (B, d), of autoencoders.
    """

    loss: Tensor | None = None
    losses: Tensor | None = None
    scores: Tensor | None = None
    reconstruction: Tensor | None = None
