"""Whether to shake the weights: adversarial weight perturbation (AWP), Wu et al. 2020; paper 004 eq. 18."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class WeightPerturbation:
    """Every layer's weights w are moved to w + v, v = gamma ||w|| g / ||g||, for the training forward and backward (eq. 18).

    g is the gradient of the step's whole loss at w, over all its micro-batches and processes; norms are per weight tensor.
    gamma >= 0 is the size of v relative to w. warmup_epochs: finished epochs before the first shake. As in the authors' code only
    weights of two or more dimensions move: no biases, no normalisation layers. Against it, the weights return to w BEFORE the
    optimizer steps, so that momentum sees the gradient at w + v but weight decay and checkpoints see w; no network is copied.
    """

    gamma: float = 0.01
    warmup_epochs: float = 0.0

    def weights(self, model: nn.Module) -> list[nn.Parameter]:
        """The weights that move: trainable, named ``weight``, of two or more dimensions."""
        named = [(name.rsplit(".", 1)[-1], p) for name, p in model.named_parameters() if p.requires_grad]
        return [p for name, p in named if p.dim() > 1 and "weight" in name]

    def offsets(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """v for each weight; zero where the gradient is zero or not finite."""
        out = []
        for weight, gradient in zip(weights, gradients):
            size = gradient.float().norm()
            scale = self.gamma * weight.detach().float().norm() / size
            scale = torch.where(torch.isfinite(scale) & (size > 0), scale, torch.zeros_like(scale))
            out.append((torch.nan_to_num(gradient.float(), 0.0, 0.0, 0.0) * scale).to(weight.dtype))
        return out


@dataclass
class PerturbedWeights:
    """The weights of one optimizer step: moved and restored around every backward, bit for bit."""

    weights: list[nn.Parameter]
    offsets: list[Tensor]
    backup: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def apply(self) -> None:
        """w <- w + v. Does nothing where they are moved already."""
        if not self.backup:
            self.backup = [weight.detach().clone() for weight in self.weights]
            for weight, offset in zip(self.weights, self.offsets):
                weight.add_(offset)

    @torch.no_grad()
    def restore(self) -> None:
        """w + v <- w, from a copy: adding and subtracting would leave a residue."""
        if self.backup:
            for weight, before in zip(self.weights, self.backup):
                weight.copy_(before)
            self.backup = []


def sum_over_processes(gradients: Sequence[Tensor], total: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The gradients summed over the processes, in one exchange."""
    flat = total(torch.cat([gradient.float().flatten() for gradient in gradients]))
    return [part.view_as(gradient) for part, gradient in zip(flat.split([g.numel() for g in gradients]), gradients)]
