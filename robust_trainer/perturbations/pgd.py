"""What to perturb: the attack of the inner maximisation. All numbers are in [0, 1] pixels, whatever the model's normalisation.

For text they count in the size of a word embedding (`inputs.EmbeddingSpace`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.randomness import RowDraws
from .inputs import Space
from .norms import NORMS, AnyBall, Ball, HybridBall

#: What a `Perturbation` may be bounded by: a ball for all samples, a ball drawn for each sample, both balls for each sample.
NORM_CHOICES = (*NORMS, "hybrid", "both")
SCOPES = ("batch", "sample")
UNIFORM = "uniform"


@dataclass(frozen=True)
class Perturbation:
    """FGSM (steps = 1) and PGD, in the ball of any norm, for each sample or for the batch as a whole.

    scope ``sample``: the usual attack, each sample has its own delta. scope ``batch``: ONE perturbation c for the whole batch, the
    per-sample directions averaged over the kept samples, c <- project(c + step_size / |kept| * sum_kept direction(grad_i)).
    norm ``hybrid``: every sample in the l_inf ball of radius eps or the l_2 ball of radius eps_l2, drawn with probability 1/2 each
    (`draw_in_l2`), in one loop. norm ``both``: every sample in the one and, beside it, in the other.
    The result x + delta is always clipped to the valid pixel range, the random start too (TRADES' code leaves that outside).

    Args:
        eps: radius in [0, 1] pixels.
        step_size: in the same unit; default eps for one step, 2.5 eps / steps for more.
        steps: the number of steps >= 1.
        norm: one of `NORM_CHOICES`.
        scope: ``batch`` or ``sample``.
        random_start: whether to start at a random point of the ball.
        start_std: ``uniform``: the norm's own random point; a number: Gaussian noise of that standard deviation (TRADES: 0.001).
        attack_mode: ``eval`` or ``train``, the model's mode while crafting; BatchNorm's running statistics stay as they were.
        inner_loss: what is maximised, a name of `losses.adversarial.INNER`; ``objective`` is the method's own loss on labels.
        eps_l2: the l_2 radius of norms ``hybrid`` and ``both``; other norms do not look at it.
        step_size_l2: the l_2 step there; default as step_size is from eps.

    Raises:
        ValueError: for norm ``hybrid`` in scope ``batch``.

    References:
        scope ``batch``: Backdoor eq. 5, with several steps its iteration. Norm ``hybrid``: ERAT eq. 7 and 10, which writes the
        gradient's sign for all norms; here the step in the l_2 ball is the gradient over its 2-norm.
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
    eps_l2: float = 0.5
    step_size_l2: float | None = None

    def __post_init__(self) -> None:
        if self.norm == "hybrid" and self.scope == "batch":
            raise ValueError("norm='hybrid' draws a ball for each sample, got scope='batch': set scope='sample', or norm='both'.")

    @property
    def size(self) -> float:
        """The length of a step."""
        return self._size(self.step_size, self.eps)

    @property
    def size_l2(self) -> float:
        """The length of a step in the l_2 ball of norms ``hybrid`` and ``both``."""
        return self._size(self.step_size_l2, self.eps_l2)

    def _size(self, size: float | None, eps: float) -> float:
        if size is not None:
            return size
        return eps if self.steps == 1 else 2.5 * eps / self.steps

    def single(self) -> tuple[Perturbation, ...]:
        """The loops of a step, one after the other: this attack, or for norm ``both`` those in the l_inf and in the l_2 ball."""
        if self.norm != "both":
            return (self,)
        return replace(self, norm="linf"), replace(self, norm="l2", eps=self.eps_l2, step_size=self.step_size_l2)

    def ball(self, space: Space, in_l2: Tensor | None = None) -> AnyBall:
        """The step's ball. in_l2: for norm ``hybrid`` the samples (B,) that are perturbed in the l_2 ball."""
        if self.norm != "hybrid":
            return space.ball(self.norm, self.eps)
        assert in_l2 is not None
        return HybridBall(space.ball("linf", self.eps), space.ball("l2", self.eps_l2), in_l2)

    def start(self, x: Tensor, space: Space, ball: AnyBall, draws: RowDraws) -> Tensor:
        """The first delta, in pixels: (B, ...) for scope ``sample``, (1, ...) for scope ``batch``; zeros without a random start.

        Args:
            x: (B, ...) in the model's units.
            space: x's units and range.
            ball: of `ball`.
            draws: of as many rows as delta has.
        """
        rows = x if self.scope == "sample" else x[:1]
        if not self.random_start:
            return torch.zeros_like(rows, dtype=torch.float32)
        if not isinstance(self.start_std, str):
            delta = draws.normal(*rows.shape[1:]) * self.start_std
        else:
            delta = ball.random_start(rows.float(), draws)
        return delta if self.scope == "batch" else space.clip(x, delta)

    def step(
        self, x: Tensor, delta: Tensor, grad: Tensor, keep: Tensor, space: Space, ball: AnyBall, total: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The next delta from the loss's gradient with respect to the model's input.

        Args:
            x: (B, ...) in the model's units.
            delta: the present one, in pixels; (1, ...) in scope ``batch``.
            grad: like x.
            keep: (B,) in [0, 1]; samples of weight 0 steer nothing, and in scope ``sample`` stay unperturbed.
            space: x's units and range.
            ball: of `ball`.
            total: sums a tensor over the processes.
        """
        weight = keep.float().view(-1, *[1] * (x.dim() - 1))
        grad = grad.float()
        if isinstance(ball, HybridBall):
            in_linf = ball.linf.ascend(delta, _in_units(ball.linf, grad, space), self.size)
            moved = ball.pick(in_linf, ball.l2.ascend(delta, _in_units(ball.l2, grad, space), self.size_l2))
        elif self.scope == "batch":
            direction = ball.direction(_in_units(ball, grad, space))
            summed = total(torch.cat([(direction * weight).sum(0).flatten(), weight.sum().view(1)]))
            mean = (summed[:-1] / summed[-1].clamp_min(1.0)).view_as(delta)
            return ball.project(delta + self.size * mean)
        else:
            moved = ball.ascend(delta, _in_units(ball, grad, space), self.size)
        if self.steps > 1:  # the last word on the range is `apply`'s
            moved = space.clip(x, moved)
        return moved.mul_(weight > 0)

    def apply(self, x: Tensor, delta: Tensor, space: Space) -> Tensor:
        """x_adv in the model's units and dtype, inside the valid range; exactly x where delta is 0."""
        return space.add(x, delta)


def _in_units(ball: Ball, grad: Tensor, space: Space) -> Tensor:
    return grad if ball.rule.signs_only else space.to_pixel_gradient(grad)
