"""The vocabulary every room speaks: B samples in a batch, C classes (or outputs), M peers (1 for ordinary training)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

#: As transformers' ``problem_type``.
SINGLE, REGRESSION, MULTI = PROBLEMS = ("single_label_classification", "regression", "multi_label_classification")
#: No labels: the model itself returns a loss and a score of each sample (`anomaly.AnomalyOutput`). No ``problem_type`` names it.
UNSUPERVISED = "unsupervised"


@dataclass(frozen=True)
class Progress:
    """Where training stands: ``epoch`` counts finished epochs as a float (0.0 at the start), as the trainer's state does.

    noise_rate: the share of corrupted samples estimated so far (``noise_rate="auto"``), None before the first estimate. seed: of
    the run, for what is drawn in a step.
    """

    epoch: float
    max_epochs: float
    global_step: int = 0
    noise_rate: float | None = None
    seed: int = 0


@dataclass
class ForwardOutput:
    """One forward pass kept together: logits (M, B, C), what is to be predicted and, where known, sample indices (B,).

    targets: class labels (B,), or for the problems ``regression`` and ``multi_label_classification`` floats (B, C).
    For the problem ``unsupervised`` the logits are (M, B, 2): what the model returned as each sample's loss and score.
    gradient_norms: (M, B), the norm of each sample's gradient over all parameters, for methods that ask for it.
    """

    logits: Tensor
    targets: Tensor
    index: Tensor | None = None
    outputs: Any = None
    problem: str = SINGLE
    gradient_norms: Tensor | None = None

    def given(self) -> Tensor:
        """The targets as the objectives take them: one row per peer."""
        return self.targets.expand(self.logits.shape[0], *self.targets.shape)


class Score(Protocol):
    """``ForwardOutput -> (M, B)``, detached; HIGHER = MORE SUSPICIOUS, everywhere."""

    def __call__(self, view: ForwardOutput) -> Tensor: ...


class Selection(Protocol):
    """Whom to trust: weights (M, B) in [0, 1] for scores (M, B) of one whole optimizer step, and what they are divided by."""

    @property
    def memory(self) -> str: ...

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor: ...

    def new_state(self, classes: int, peers: int, device: torch.device) -> dict[str, Tensor]: ...

    def divisor(self, weights: Tensor) -> Tensor: ...

    def filter_active(self, progress: Progress) -> bool: ...


#: ``ForwardOutput -> targets``: (M, B) labels or (M, B, C) mixtures that replace the given labels (bootstrap).
Relabel = Callable[[ForwardOutput], Tensor]
#: ``(ForwardOutput, targets) -> (M, B)`` differentiable losses, one per sample.
Objective = Callable[[ForwardOutput, Tensor], Tensor]
