"""What is minimised: (View, targets) -> one differentiable loss per sample, (M, B); and the relabelling of bootstrap."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .recipe import View


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy per sample, (M, B), for labels (M, B) or class mixtures (M, B, C).

    ``label_smoothing`` in [0, 1) is the share of a uniform distribution over all classes, as in the Trainer's own smoother.
    """

    label_smoothing: float = 0.0

    def __call__(self, view: View, targets: Tensor) -> Tensor:
        logits = view.logits.float()
        flat = targets.flatten() if targets.dim() == 2 else targets.flatten(0, 1).to(logits.dtype)
        losses = F.cross_entropy(
            logits.flatten(0, 1), flat, reduction="none", label_smoothing=self.label_smoothing
        )
        return losses.view(logits.shape[:2])


@dataclass(frozen=True)
class UserLoss:
    """The user's ``compute_loss_func``, honoured where it returns one loss per sample, shape (B,).

    Raises ``ValueError`` when it returns a scalar, since a batch mean cannot leave samples out.
    """

    func: Callable[..., Tensor]

    def __call__(self, view: View, targets: Tensor) -> Tensor:
        # the Trainer hands over num_items_in_batch; a per-sample loss has no use for it, so it is told there is none
        extra: dict[str, Any] = {}
        parameters = inspect.signature(self.func).parameters
        if "num_items_in_batch" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            extra["num_items_in_batch"] = None
        losses = self.func(view.outputs, targets[0], **extra)
        expected = (view.targets.shape[0],)
        if not isinstance(losses, Tensor) or tuple(losses.shape) != expected:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"compute_loss_func returned shape {got}, but a robust method weighs samples and needs one loss per sample, "
                f"shape {expected}: return the loss with reduction='none', or drop the method."
            )
        return losses.float().unsqueeze(0)


@dataclass(frozen=True)
class HardBootstrap:
    """Targets ``beta * onehot(y) + (1 - beta) * onehot(argmax z)``, (M, B, C); beta in [0, 1] is the weight of the given label.

    Consistency-based noisy-label learning (paper 000, table 1: y <- a*y + (1 - a)*y_pred; its a is not stated, 0.8 is the
    value of the authors' related code). beta = 1 is the standard loss.
    """

    beta: float = 0.8

    @torch.no_grad()
    def __call__(self, view: View) -> Tensor:
        logits = view.logits
        mixed = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(torch.float32) * (1.0 - self.beta)
        given = view.targets.expand(logits.shape[0], -1).unsqueeze(-1)
        return mixed.scatter_add(-1, given, torch.full_like(given, self.beta, dtype=torch.float32))
