"""The norms that perturbations are bounded by: one object a norm, which holds all that depends on it.

A new norm is a subclass of `Norm` and its row in `NORMS`: training, evaluation attacks, poisons, adversarial paths, the settings'
choices and the command line read that table.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..data.randomness import RowDraws


class Draws(Protocol):
    """Random numbers of B rows: float32 tensors (B, *shape), the next ones at every call."""

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1)."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        ...


@dataclass(frozen=True)
class GeneratorDraws:
    """The `Draws` of B ``rows`` on a device from one torch generator, which moves on."""

    generator: torch.Generator
    rows: int
    device: torch.device

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1)."""
        return torch.rand((self.rows, *shape), generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn((self.rows, *shape), generator=self.generator, device=self.device)


class Norm(ABC):
    """A norm and the geometry of its ball around 0.

    Tensors are (B, ...) with one vector for each row, or with ``per_token`` (B, L, D) with one for each of the L tokens. ``eps``
    and ``size`` are in the tensors' unit. No method changes its arguments but those that end with an underscore.

    Attributes:
        name: how settings call it.
        usual_eps: the radius that papers take for 32 x 32 colour images, in [0, 1] pixels.
        usual: the same as one writes it, for messages.
        max_eps: the largest radius that can be meant in [0, 1] pixels, whatever the size of the image; more is the 0-255 scale.
        signs_only: whether the direction depends on the gradient's signs alone, so that the gradient needs no unit.
    """

    name: ClassVar[str]
    usual_eps: ClassVar[float]
    usual: ClassVar[str]
    max_eps: ClassVar[float] = math.inf
    signs_only: ClassVar[bool] = False

    @abstractmethod
    def size(self, x: Tensor, per_token: bool = False) -> Tensor:
        """Returns the norm of each vector, in a shape that broadcasts against x."""

    @abstractmethod
    def dual_size(self, x: Tensor, per_token: bool = False) -> Tensor:
        """Returns the dual norm of each vector: the largest inner product with a vector of size 1. Shaped as `size`."""

    @abstractmethod
    def of_ones(self, count: int) -> float:
        """Returns the norm of a vector of ``count`` ones: the way from black to white of an image of so many numbers."""

    @abstractmethod
    def direction(self, grad: Tensor, per_token: bool = False) -> Tensor:
        """Returns for each vector the step of size 1 that an ascent takes; 0 where the gradient is 0."""

    @abstractmethod
    def project(self, delta: Tensor, eps: float, per_token: bool = False) -> Tensor:
        """Returns the point of the ball of radius ``eps`` >= 0 nearest to ``delta`` in the 2-norm; ``delta`` where it is inside."""

    @abstractmethod
    def random_start(self, like: Tensor, eps: float, draws: Draws, per_token: bool = False) -> Tensor:
        """Returns a random point of each ball, shaped and typed as float32 ``like``."""

    def step(self, grad: Tensor, size: float | Tensor) -> Tensor:
        """Returns ``size`` times the `direction` of (B, ...) gradients; ``size``: a number, or one for each row (B, 1, ...)."""
        return self.direction(grad).mul_(size)

    def cube(self, x: Tensor, eps: float) -> tuple[Tensor, Tensor] | None:
        """Returns the lowest and highest images within eps of x and in [0, 1] where all between are too; None for other balls."""
        return None

    def pull_(self, image: Tensor, x: Tensor, eps: float) -> Tensor:
        """Returns ``x + project(image - x, eps)``; overwrites ``image``."""
        return self.project(image.sub_(x), eps).add_(x)


class LInf(Norm):
    """The largest absolute value: the steepest ascent is the gradient's sign, the ball a cube (Goodfellow et al. 2015)."""

    name = "linf"
    usual_eps = 8 / 255
    usual = "8/255"
    max_eps = 1.0
    signs_only = True

    def size(self, x: Tensor, per_token: bool = False) -> Tensor:
        """As `Norm.size`."""
        return _by_vector(x.abs(), per_token, lambda rows: rows.amax(-1, keepdim=True))

    def dual_size(self, x: Tensor, per_token: bool = False) -> Tensor:
        """As `Norm.dual_size`."""
        return _by_vector(x.abs(), per_token, lambda rows: rows.sum(-1, keepdim=True))

    def of_ones(self, count: int) -> float:
        """As `Norm.of_ones`."""
        return 1.0

    def direction(self, grad: Tensor, per_token: bool = False) -> Tensor:
        """As `Norm.direction`."""
        return grad.sign()

    def project(self, delta: Tensor, eps: float, per_token: bool = False) -> Tensor:
        """As `Norm.project`."""
        return delta.clamp(-eps, eps)

    def random_start(self, like: Tensor, eps: float, draws: Draws, per_token: bool = False) -> Tensor:
        """Uniform in the cube."""
        return (draws.uniform(*like.shape[1:]) * 2 - 1) * eps

    def cube(self, x: Tensor, eps: float) -> tuple[Tensor, Tensor] | None:
        """As `Norm.cube`."""
        return (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)


class L2(Norm):
    """The Euclidean norm: the steepest ascent is the gradient over its norm."""

    name = "l2"
    usual_eps = 0.5
    usual = "0.5"

    def size(self, x: Tensor, per_token: bool = False) -> Tensor:
        """As `Norm.size`."""
        return _by_vector(x, per_token, lambda rows: rows.norm(dim=-1, keepdim=True))

    def dual_size(self, x: Tensor, per_token: bool = False) -> Tensor:
        """As `Norm.dual_size`."""
        return self.size(x, per_token)

    def of_ones(self, count: int) -> float:
        """As `Norm.of_ones`."""
        return count**0.5

    def direction(self, grad: Tensor, per_token: bool = False) -> Tensor:
        """As `Norm.direction`."""
        grad = grad / grad.abs().amax(dim=tuple(range(1, grad.dim())), keepdim=True).clamp_min(1e-30)  # squares would underflow
        return grad / self.size(grad, per_token).clamp_min(torch.finfo(grad.dtype).tiny)

    def project(self, delta: Tensor, eps: float, per_token: bool = False) -> Tensor:
        """As `Norm.project`."""
        return delta * (eps / self.size(delta, per_token).clamp_min(1e-30)).clamp_max(1.0)

    def random_start(self, like: Tensor, eps: float, draws: Draws, per_token: bool = False) -> Tensor:
        """A uniform direction with a radius uniform in [0, eps]."""
        noise = draws.normal(*like.shape[1:])
        size = self.size(noise, per_token)
        return noise / size.clamp_min(1e-30) * draws.uniform(*size.shape[1:]) * eps

    def step(self, grad: Tensor, size: float | Tensor) -> Tensor:
        # as `direction`, in one pass fewer: where the model is sure the gradient's squares are 0, so its largest entry becomes 1
        """As `Norm.step`, in one pass fewer than `direction` takes."""
        tiny = torch.finfo(grad.dtype).tiny
        unit = grad / grad.abs().amax(tuple(range(1, grad.dim())), keepdim=True).clamp_min(tiny)
        return unit.mul_(size / self.size(unit).clamp_min(1e-30))

    def pull_(self, image: Tensor, x: Tensor, eps: float) -> Tensor:
        """As `Norm.pull_`."""
        delta = image.sub_(x)
        scale = (eps / self.size(delta).clamp_min(1e-30)).clamp_max(1.0)
        return torch.addcmul(x, delta, scale)


class L1(Norm):
    """The sum of the absolute values, for sparse changes.

    The steepest ascent would move one coordinate a step. Tramer and Boneh 2019 ("Adversarial training and robustness for multiple
    perturbations", sparse l_1 descent) move by equal amounts the coordinates whose gradients are the largest; here one in
    ``ONE_IN`` = 100 (their percentile 99), at least one. Of equal gradients some are taken, so that no more are.

    References:
        Projection: Duchi, Shalev-Shwartz, Singer and Chandra 2008, "Efficient projections onto the l1-ball ...", figure 1.
    """

    name = "l1"
    usual_eps = 12.0
    usual = "12"
    ONE_IN: ClassVar[int] = 100

    def size(self, x: Tensor, per_token: bool = False) -> Tensor:
        """As `Norm.size`."""
        return _by_vector(x.abs(), per_token, lambda rows: rows.sum(-1, keepdim=True))

    def dual_size(self, x: Tensor, per_token: bool = False) -> Tensor:
        """As `Norm.dual_size`."""
        return _by_vector(x.abs(), per_token, lambda rows: rows.amax(-1, keepdim=True))

    def of_ones(self, count: int) -> float:
        """As `Norm.of_ones`."""
        return float(count)

    def direction(self, grad: Tensor, per_token: bool = False) -> Tensor:
        """As `Norm.direction`."""
        rows = grad if per_token else grad.flatten(1)
        places = rows.abs().topk(max(1, rows.shape[-1] // self.ONE_IN), dim=-1).indices
        signs = rows.gather(-1, places).sign()
        moves = signs / signs.abs().sum(-1, keepdim=True).clamp_min(1.0)
        return torch.zeros_like(rows).scatter_(-1, places, moves).view_as(grad)

    def project(self, delta: Tensor, eps: float, per_token: bool = False) -> Tensor:
        """As `Norm.project`: every absolute value is lowered by theta >= 0, to 0 at least, so that their sum is at most eps.

        theta = (u_1 + ... + u_r - eps) / r for the values u in falling order and the largest r with u_r > theta. O(n log n) for n
        numbers, exact up to rounding; differentiable.
        """
        rows = delta if per_token else delta.flatten(1)
        size = rows.abs()
        falling = size.sort(dim=-1, descending=True).values
        falling = falling if falling.device.type == "mps" else falling.double()
        over = falling.cumsum(-1) - eps
        count = torch.arange(1, rows.shape[-1] + 1, device=rows.device)
        last = (falling * count > over).sum(-1, keepdim=True).clamp_min(1)
        theta = (over.gather(-1, last - 1) / last).clamp_min(0.0).to(size.dtype)
        return (rows.sign() * (size - theta).clamp_min(0.0)).view_as(delta)

    def random_start(self, like: Tensor, eps: float, draws: Draws, per_token: bool = False) -> Tensor:
        """Uniform in the ball: n of n + 1 exponential numbers over the sum of all, with random signs."""
        u = draws.uniform(*like.shape[1:]) * 2 - 1
        lengths = _exponential(u.abs())
        total = self.size(lengths, per_token)
        total = total + _exponential(draws.uniform(*total.shape[1:]))
        return u.sign() * lengths / total * eps


#: The norms by name.
NORMS: Mapping[str, Norm] = {norm.name: norm for norm in (LInf(), L2(), L1())}


def find_norm(name: Any) -> Norm:
    """Returns a norm of `NORMS`. Raises a one-line ``ValueError``, listing the names, for another name."""
    if not isinstance(name, str) or name not in NORMS:
        raise ValueError(f"norm={name!r} is unknown: choose one of {', '.join(NORMS)}.")
    return NORMS[name]


def _by_vector(x: Tensor, per_token: bool, reduce: Any) -> Tensor:
    """``reduce`` ((..., n) -> (..., 1)) of each vector, in a shape that broadcasts against x."""
    return reduce(x) if per_token else reduce(x.flatten(1)).view(-1, *[1] * (x.dim() - 1))


def _exponential(u: Tensor) -> Tensor:
    """Exponentially distributed numbers from uniform ones in [0, 1]; finite at 1."""
    return -torch.log1p(-u.clamp_max(1 - 2.0**-24))


@dataclass(frozen=True)
class Ball:
    """The ball of radius ``eps`` >= 0 of a norm around 0: one per row of (B, ...) tensors, or per token of (B, L, D).

    Raises:
        ValueError: for a norm that is not in `NORMS`.
    """

    norm: str
    eps: float
    per_token: bool = False

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r} has no ball: choose one of {', '.join(NORMS)}.")

    @property
    def rule(self) -> Norm:
        """The norm itself."""
        return NORMS[self.norm]

    def size(self, x: Tensor) -> Tensor:
        """Returns the norm of each row or token, in a shape that broadcasts against x."""
        return self.rule.size(x, self.per_token)

    def direction(self, grad: Tensor) -> Tensor:
        """Returns the step of unit size that an ascent takes."""
        return self.rule.direction(grad, self.per_token)

    def project(self, delta: Tensor) -> Tensor:
        """Returns the point of the ball nearest to ``delta``."""
        return self.rule.project(delta, self.eps, self.per_token)

    def ascend(self, delta: Tensor, grad: Tensor, size: float) -> Tensor:
        """Returns ``delta`` after a step of ``size`` (downhill where below 0) and the projection on the ball."""
        return self.project(delta.add(self.direction(grad), alpha=size))

    def random_start(self, like: Tensor, draws: Draws) -> Tensor:
        """Returns a random point of the ball for each row of ``like``: see the norms' own methods."""
        return self.rule.random_start(like, self.eps, draws, self.per_token)


@dataclass(frozen=True)
class HybridBall:
    """A ball for each row of (B, ...) tensors: ``l2`` where ``in_l2`` (B,) is true, else ``linf``.

    Guarantee: every row is bit for bit what its own `Ball` makes of it. The other ball's result is made too and dropped: picking
    the rows first would need their number on the host.

    References:
        ERAT eq. 7.
    """

    linf: Ball
    l2: Ball
    in_l2: Tensor

    def pick(self, linf: Tensor, l2: Tensor) -> Tensor:
        """Returns the rows (B, ...) of the two balls' results that count."""
        return torch.where(self.in_l2.view(-1, *[1] * (linf.dim() - 1)), l2, linf)

    def direction(self, grad: Tensor) -> Tensor:
        """As `Ball.direction`."""
        return self.pick(self.linf.direction(grad), self.l2.direction(grad))

    def project(self, delta: Tensor) -> Tensor:
        """As `Ball.project`."""
        return self.pick(self.linf.project(delta), self.l2.project(delta))

    def random_start(self, like: Tensor, draws: RowDraws) -> Tensor:
        """As `Ball.random_start`; both balls draw from the draws' state of now."""
        twin = draws.copy()
        return self.pick(self.linf.random_start(like, twin), self.l2.random_start(like, draws))


AnyBall = Ball | HybridBall


def draw_in_l2(rows: Tensor, seed: int, step: int) -> Tensor:
    """Returns which samples of the step are perturbed in the l_2 ball, bool (B,): each with probability 1/2.

    Guarantee: a function of seed, step and row alone; it depends neither on how a step is cut into micro-batches and over
    processes, nor on what was drawn before.

    Args:
        rows: the samples' places in the step (B,).
        seed: of the run.
        step: the optimizer step.

    References:
        ERAT eq. 7.
    """
    return RowDraws(rows, "hybrid", seed, step).uniform() < 0.5
