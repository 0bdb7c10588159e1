"""Per-sample numbers that say how suspicious a sample is: (M, B), detached, higher = more suspicious."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .recipe import View


@torch.no_grad()
def loss(view: View) -> Tensor:
    """Cross-entropy of the given label, in nats, in [0, inf) (self-paced learning; paper 001 ch. 4, paper 000 table 1)."""
    logits = view.logits.float()
    targets = view.targets.expand(logits.shape[0], -1)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


@torch.no_grad()
def loss_layer_gradient_norm(view: View) -> Tensor:
    """``||softmax(z) - onehot(y)||_2``, in [0, sqrt 2]: the norm of the cross-entropy's gradient with respect to the logits.

    PRL(L): paper 001 sec. 4.4, paper 000 sec. 3.1. The authors' code uses its square; the order of the samples is the same.
    """
    probs = view.logits.float().softmax(-1)
    given = view.targets.expand(probs.shape[0], -1).unsqueeze(-1)
    # ||p - e_y||^2 = sum_{k != y} p_k^2 + (1 - p_y)^2, with 1 - p_y as the sum of the others to stay exact near 0
    others = probs.scatter(-1, given, 0.0)
    return (others.square().sum(-1) + others.sum(-1).square()).sqrt()


SCORES = {"loss": loss, "prl-l": loss_layer_gradient_norm}
