"""Adversarial weight perturbation (AWP): the loss is minimised at the worst weights nearby.

Wu, Xia and Wang 2020, "Adversarial weight perturbation helps robust generalization".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..models.sharding import norms, own_part


@dataclass(frozen=True)
class WeightPerturbation:
    """Every layer's weights w are moved to w + v, v = gamma ||w|| g / ||g||, for the training forward and backward.

    g is the gradient of the step's whole loss at w, over all its micro-batches and processes; norms are per weight tensor. As in
    the authors' code only weights of two or more dimensions move: no biases, no normalisation layers. Against it, the weights
    return to w BEFORE the optimizer steps, so that momentum sees the gradient at w + v but weight decay and checkpoints see w; no
    network is copied.

    Args:
        gamma: the size of v relative to w, >= 0.
        warmup_epochs: finished epochs before the first perturbation.

    References:
        Wu et al. 2020; NRAT eq. 18.
    """

    gamma: float = 0.01
    warmup_epochs: float = 0.0
    settings: ClassVar[Mapping[str, str]] = {"awp_gamma": "gamma", "awp_warmup_epochs": "warmup_epochs"}

    def weights(self, model: nn.Module) -> list[nn.Parameter]:
        """Returns the weights that move: trainable, named ``weight``, of two or more dimensions."""
        named = [(name.rsplit(".", 1)[-1], p) for name, p in model.named_parameters() if p.requires_grad]
        return [p for name, p in named if p.dim() > 1 and "weight" in name]

    def offsets(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Returns v for each weight; zero where the gradient is zero or not finite.

        Args:
            weights: the weights that move.
            gradients: theirs, of the step's whole loss.

        Returns:
            As the weights are; of sharded ones the part that this process holds.
        """
        out = []
        sizes = norms([*gradients, *weights])
        for weight, gradient, size, length in zip(weights, gradients, sizes, sizes[len(weights) :]):
            scale = self.gamma * length / size
            scale = torch.where(torch.isfinite(scale) & (size > 0), scale, torch.zeros_like(scale))
            out.append((torch.nan_to_num(own_part(gradient).float(), 0.0, 0.0, 0.0) * scale).to(weight.dtype))
        return out


@dataclass
class PerturbedWeights:
    """The weights of one optimizer step, moved and restored around every backward.

    Guarantee: after `restore` they are bit for bit what they were before `apply`.

    Args:
        weights: that move.
        offsets: of each, as `WeightPerturbation.offsets` returns them.
        fresh: called before the weights change: the next forward is to see it (`models.sharding.reshard`).
    """

    weights: list[nn.Parameter]
    offsets: list[Tensor]
    fresh: Callable[[], None] = lambda: None
    backup: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def apply(self) -> None:
        """Moves the weights, w <- w + v. Does nothing where they are moved already."""
        if not self.backup:
            self.fresh()
            self.backup = [own_part(weight).clone() for weight in self.weights]
            for weight, offset in zip(self.weights, self.offsets):
                own_part(weight).add_(offset)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts w back, from a copy: adding and subtracting would leave a residue."""
        if self.backup:
            self.fresh()
            for weight, before in zip(self.weights, self.backup):
                own_part(weight).copy_(before)
            self.backup = []


def sum_over_processes(gradients: Sequence[Tensor], total: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Returns the gradients summed over the processes, in one exchange; of sharded weights they are means, summed already."""
    own = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    flat = total(torch.cat([gradient.float().flatten() for gradient in own])) if own else torch.empty(0)
    sums = iter(part.view_as(gradient) for part, gradient in zip(flat.split([g.numel() for g in own]), own))
    return [gradient * gradient.device_mesh.size() if isinstance(gradient, DTensor) else next(sums) for gradient in gradients]
