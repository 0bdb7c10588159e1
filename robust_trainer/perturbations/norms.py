"""The norms that perturbations are bounded by: steepest ascent, projection and random start of each ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

#: The norms that have a ball.
BALLS = ("linf", "l2")


@dataclass(frozen=True)
class Ball:
    """The l_inf or l_2 ball of radius ``eps`` >= 0 around 0: one per row of (B, ...) tensors, or per token of (B, L, D).

    Raises ``ValueError`` for another norm.
    """

    norm: str
    eps: float
    per_token: bool = False

    def __post_init__(self) -> None:
        if self.norm not in BALLS:
            raise ValueError(f"norm={self.norm!r} has no ball: choose one of {', '.join(BALLS)}.")

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
class HybridBall:
    """A ball for each row of (B, ...) tensors: ``l2`` where ``second`` (B,) is true, else ``linf`` (paper 003 eq. 7).

    Every row is bit for bit what its own `Ball` makes of it. The other ball's result is made too and dropped: picking the rows
    first would need their number on the host.
    """

    linf: Ball
    l2: Ball
    second: Tensor

    def pick(self, linf: Tensor, l2: Tensor) -> Tensor:
        """The rows (B, ...) of the two balls' results that count."""
        return torch.where(self.second.view(-1, *[1] * (linf.dim() - 1)), l2, linf)

    def direction(self, grad: Tensor) -> Tensor:
        """As `Ball.direction`."""
        return self.pick(self.linf.direction(grad), self.l2.direction(grad))

    def project(self, delta: Tensor) -> Tensor:
        """As `Ball.project`."""
        return self.pick(self.linf.project(delta), self.l2.project(delta))

    def random_start(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """As `Ball.random_start`; both balls draw from the generator's state of now."""
        twin = generator.clone_state()
        return self.pick(self.linf.random_start(like, twin), self.l2.random_start(like, generator))


AnyBall = Ball | HybridBall


def draw_second(index: Tensor, seed: int, step: int) -> Tensor:
    """Which samples of the step are perturbed in the l_2 ball, bool like ``index`` (B,): each with probability 1/2.

    Paper 003 eq. 7. A hash of seed, step and index: the draw depends neither on how a step is cut into micro-batches
    and over processes, nor on what was drawn before.
    """
    key = hash((seed, step)) % 2**64
    bits = _mix((index.long() ^ (key >> 32)) & _MASK)
    return _mix(bits ^ (key & _MASK)) >= 2**31


_MASK = 0xFFFFFFFF


def _mix(bits: Tensor) -> Tensor:
    """A bijection of [0, 2^32) after which every bit depends on every bit; no product leaves the range of int64."""
    for _ in range(2):
        bits = (((bits >> 16) ^ bits) * 0x45D9F3B) & _MASK
    return (bits >> 16) ^ bits


class Space(Protocol):
    """The units of eps, and the valid range. x: in the model's units; delta and pixel gradients: in the units of eps."""

    def check(self, x: Tensor) -> None: ...

    def ball(self, norm: str, eps: float) -> Ball: ...

    def to_pixel_gradient(self, grad: Tensor) -> Tensor: ...

    def clip(self, x: Tensor, delta: Tensor) -> Tensor: ...

    def add(self, x: Tensor, delta: Tensor) -> Tensor: ...
