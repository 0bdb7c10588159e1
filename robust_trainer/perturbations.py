"""What to perturb: the inner maximisation. All numbers are in the [0, 1] pixel scale, whatever the model's normalisation.

For text they count in the size of a word embedding (`fronts.EmbeddingSpace`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .fronts import Space

NORMS = ("linf", "l2")
SCOPES = ("batch", "sample")
UNIFORM = "uniform"


@dataclass(frozen=True)
class Ball:
    """The l_inf or l_2 ball of radius ``eps`` >= 0 around 0: one per row of (B, ...) tensors, or per token of (B, L, D)."""

    norm: str
    eps: float
    per_token: bool = False

    def size(self, x: Tensor) -> Tensor:
        """The 2-norm of each row or token, in a shape that broadcasts against x."""
        if self.per_token:
            return x.norm(dim=-1, keepdim=True)
        return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))

    def direction(self, grad: Tensor) -> Tensor:
        """Steepest ascent of unit size per sample: sign of the gradient (linf) or gradient over its 2-norm (l2)."""
        if self.norm == "linf":
            return grad.sign()
        grad = grad / grad.abs().amax(dim=tuple(range(1, grad.dim())), keepdim=True).clamp_min(1e-30)  # squares would underflow
        return grad / self.size(grad).clamp_min(torch.finfo(grad.dtype).tiny)

    def project(self, delta: Tensor) -> Tensor:
        """The point of the ball nearest to ``delta``."""
        if self.norm == "linf":
            return delta.clamp(-self.eps, self.eps)
        return delta * (self.eps / self.size(delta).clamp_min(1e-30)).clamp_max(1.0)

    def random_start(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform in the cube (linf); uniform direction with a radius uniform in [0, eps] (l2)."""
        if self.norm == "linf":
            return (torch.rand(like.shape, generator=generator, device=like.device) * 2 - 1) * self.eps
        noise = torch.randn(like.shape, generator=generator, device=like.device)
        size = self.size(noise)
        radius = torch.rand(size.numel(), generator=generator, device=like.device)
        return noise / size.clamp_min(1e-30) * radius.view_as(size) * self.eps


@dataclass(frozen=True)
class Perturbation:
    """FGSM (steps = 1) and PGD, in the l_inf or l_2 ball, for each sample or for the batch as a whole.

    eps: radius in [0, 1] pixels. step_size: in the same unit; default eps for one step, 2.5 eps / steps for more.
    scope ``sample``: the usual attack, each sample has its own delta. scope ``batch``: ONE perturbation c for the whole
    batch, the per-sample directions averaged over the kept samples,
    c <- project(c + step_size / |kept| * sum_kept direction(grad_i))  (paper 000 eq. 5; with several steps its iteration).
    The result x + delta is always clipped to the valid pixel range, the random start too (TRADES' code leaves that outside).
    random_start: uniform in the ball, or Gaussian of standard deviation ``start_std`` where that is a number (TRADES: 0.001).
    inner_loss: what is maximised, a name of `adversarial_losses.INNER`; "objective" is the method's own loss on labels.
    attack_mode: ``eval`` or ``train``, the model's mode while crafting; BatchNorm's running statistics stay as they were.
    """

    eps: float
    step_size: float | None = None
    steps: int = 1
    norm: str = "linf"
    scope: str = "batch"
    random_start: bool = False
    start_std: float | str = UNIFORM
    attack_mode: str = "eval"
    inner_loss: str = "objective"

    @property
    def size(self) -> float:
        if self.step_size is not None:
            return self.step_size
        return self.eps if self.steps == 1 else 2.5 * self.eps / self.steps

    def start(self, x: Tensor, space: Space, generator: torch.Generator) -> Tensor:
        """The first delta, in pixels: (B, ...) for scope ``sample``, (1, ...) for scope ``batch``; zeros without a random start."""
        rows = x if self.scope == "sample" else x[:1]
        if not self.random_start:
            return torch.zeros_like(rows, dtype=torch.float32)
        if not isinstance(self.start_std, str):
            delta = torch.randn(rows.shape, generator=generator, device=x.device) * self.start_std
        else:
            delta = space.ball(self.norm, self.eps).random_start(rows.float(), generator)
        return delta if self.scope == "batch" else space.clip(x, delta)

    def step(
        self, x: Tensor, delta: Tensor, grad: Tensor, keep: Tensor, space: Space, total: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The next delta from the loss's gradient with respect to the model's input.

        x, grad: (B, ...) in the model's units. keep: (B,) in [0, 1]; samples of weight 0 steer nothing, and in scope
        ``sample`` stay unperturbed. total: sums a tensor over the processes.
        """
        ball = space.ball(self.norm, self.eps)
        weight = keep.float().view(-1, *[1] * (x.dim() - 1))
        grad = grad.float()
        direction = ball.direction(grad if self.norm == "linf" else space.to_pixel_gradient(grad))  # signs need no units
        if self.scope == "batch":
            summed = total(torch.cat([(direction * weight).sum(0).flatten(), weight.sum().view(1)]))
            mean = (summed[:-1] / summed[-1].clamp_min(1.0)).view_as(delta)
            return ball.project(delta + self.size * mean)
        moved = ball.project(delta.add(direction, alpha=self.size))
        if self.steps > 1:  # the last word on the range is `apply`'s
            moved = space.clip(x, moved)
        return moved.mul_(weight > 0)

    def apply(self, x: Tensor, delta: Tensor, space: Space) -> Tensor:
        """x_adv in the model's units and dtype, inside the valid range; exactly x where delta is 0."""
        return space.add(x, delta)
