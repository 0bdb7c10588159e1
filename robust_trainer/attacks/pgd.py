"""Projected gradient ascent on the pixels, and what `apgd` shares with it: a look at a point, the targets, the worst run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..perturbations.norms import NORMS, find_norm
from ..perturbations.region import Region
from .base import Draws, Forward

#: logits (B, K), labels (B,), targets (B,) or None (untargeted) -> (B,), to be maximised.
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
#: x, y, draws, target of the rows still right -> images, their loss (B,), fooled (B,).
Run = Callable[[Tensor, Tensor, Draws, Tensor | None], tuple[Tensor, Tensor, Tensor]]


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Returns the cross-entropy to the label (B,), or minus that to the target."""
    if target is None:
        return torch.nn.functional.cross_entropy(logits, y, reduction="none")
    return -torch.nn.functional.cross_entropy(logits, target, reduction="none")


def margin(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Returns max_{k != y} z_k - z_y, or z_t - z_y, (B,): above 0 where the model is wrong.

    References:
        Carlini and Wagner 2017, f_6, unclamped: the clamp at 0 would leave a sample that is wrong already without a gradient.
    """
    index = y.unsqueeze(1)
    other = logits.scatter(1, index, -math.inf).amax(1, keepdim=True) if target is None else logits.gather(1, target.unsqueeze(1))
    return (other - logits.gather(1, index)).squeeze(1)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin}


def check(
    eps: float, norm: str, loss: str, losses: dict[str, Loss], *, norms: Collection[str] = tuple(NORMS), **counts: int
) -> None:
    """Raises a one-line ``ValueError`` where a setting of an attack cannot be meant; norms: those that the attack exists in."""
    rule = find_norm(norm)
    if norm not in norms:
        raise ValueError(
            f"norm={norm!r} is not offered by apgd, fab, square and autoattack: choose {' or '.join(norms)}, or attack with "
            "pgd-K or cw-K."
        )
    if not 0 <= eps < math.inf or eps > rule.max_eps:
        raise ValueError(f"eps={eps!r} must be a radius in [0, 1] pixels: give for instance {rule.usual}.")
    if loss not in losses:
        raise ValueError(f"loss={loss!r}: choose one of {', '.join(losses)}.")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value!r} must be at least 1: give for instance {name}={20 if name == 'steps' else 1}.")


def check_classes(attack: str, least: int, logits: Tensor) -> None:
    """Raises ``ValueError`` unless the logits are (B, K) with K >= ``least``."""
    if logits.dim() != 2 or logits.shape[1] < least:
        raise ValueError(f"{attack} needs logits (B, K) of K >= {least} classes, got {tuple(logits.shape)}: choose another.")


def look(forward: Forward, image: Tensor, loss: Loss, y: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a leaf at ``image``, its logits (B, K), detached, and its losses (B,), which still hold the graph."""
    with torch.enable_grad():
        leaf = image.detach().requires_grad_(True)
        logits = forward(leaf)
        return leaf, logits.detach(), loss(logits, y, target)


def input_gradient(losses: Tensor, leaf: Tensor) -> Tensor:
    """Returns d losses_i / d leaf_i, like ``leaf``; 0 where it is NaN or where the loss does not depend on the input."""
    grad = None
    if losses.requires_grad:
        (grad,) = torch.autograd.grad(losses, leaf, torch.ones_like(losses), allow_unused=True)
    return torch.zeros_like(leaf) if grad is None else grad.nan_to_num(nan=0.0)


def likely_targets(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """Returns the wrong classes by descending logit, (B, min(count, K - 1))."""
    order = logits.scatter(1, y.unsqueeze(1), -math.inf).argsort(dim=1, descending=True, stable=True)
    return order[:, : min(count, logits.shape[1] - 1)]


def worst_run(run: Run, x: Tensor, y: Tensor, draws: Draws, targets: Tensor | None, restarts: int) -> Tensor:
    """Returns of ``restarts`` runs for each target the first image that fools, else that of the highest loss; fooled rows leave.

    Args:
        run: one run on the rows that are left.
        x: clean images (B, C, H, W).
        y: labels (B,).
        draws: B streams of random numbers.
        targets: (B, T), or None for untargeted runs.
        restarts: runs for each target.
    """
    out, score = x.clone(), torch.full_like(x[:, 0, 0, 0], -math.inf)
    left = torch.arange(len(x), device=x.device)
    for column in [None] * restarts if targets is None else targets.unbind(1) * restarts:
        if not len(left):
            break
        image, loss, fooled = run(x[left], y[left], draws, None if column is None else column[left])
        better = fooled | (loss > score[left])
        out[left] = torch.where(better.view(-1, 1, 1, 1), image, out[left])
        score[left] = torch.where(better, loss, score[left])
        keep = (~fooled).nonzero().flatten()
        if len(keep) < len(left):
            left, draws = left[keep], draws.only(keep)
    return out


@dataclass(frozen=True)
class PGD:
    """PGD-k: x_adv <- clip(x + P(x_adv + step_size direction(grad) - x)), ``steps`` times.

    P projects on the ball of radius eps, the clip to [0, 1] comes after it; direction is the norm's: the gradient's sign (linf),
    the gradient over its 2-norm (l2; 0 where it is 0), the signs of its largest hundredth (l1). Of several runs: the first that
    fools, else the one of the highest loss. A sample that is wrong at x is attacked like any other.

    Args:
        eps: the radius, in [0, 1] pixels.
        norm: a name of `perturbations.norms.NORMS`.
        steps: gradient steps of a run.
        step_size: in [0, 1] pixels; None: the larger of eps / 4 and 2.5 eps / steps.
        restarts: runs, for each target where targeted.
        targeted: runs towards each of the ``targets`` wrong classes of the highest clean logits; any wrong class counts.
        loss: ``ce``, or ``margin`` (CW-k: PGD on Carlini and Wagner's loss).
        random_start: whether to start at the norm's random point of the ball, clipped.
        early_stop: a row leaves with its first iterate that fools the model, so fewer rows are visited and no row is judged by
            its last iterate alone. False: the last iterate, as in the papers' loops.
        targets: the number of classes that targeted runs go to.
        name: how the report calls it.

    Raises:
        ValueError: for settings out of range, and below 2 classes.

    References:
        Madry et al. 2018, sec. 2.1.
    """

    eps: float
    norm: str = "linf"
    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    targeted: bool = False
    loss: str = "ce"
    random_start: bool = True
    early_stop: bool = True
    targets: int = 9
    name: str = "pgd"
    min_classes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check(self.eps, self.norm, self.loss, LOSSES, steps=self.steps, restarts=self.restarts, targets=self.targets)
        if self.step_size is not None and not (0 < self.step_size < math.inf or self.step_size == self.eps == 0):
            raise ValueError(f"step_size={self.step_size!r} must be above 0: leave it out for max(eps/4, 2.5*eps/steps).")

    @property
    def forwards(self) -> int:
        """The most forward passes over a batch."""
        runs = self.restarts * (self.targets if self.targeted else 1)
        return self.targeted + runs * (self.steps + (runs > 1))

    @property
    def size(self) -> float:
        """The length of a step, in [0, 1] pixels."""
        return max(self.eps / 4, 2.5 * self.eps / self.steps) if self.step_size is None else self.step_size

    @torch.no_grad()
    def __call__(self, forward: Forward, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Returns images within eps of x: as `Attack.__call__`."""
        x = x.detach()
        if not len(x):
            return x.clone()
        targets = None
        if self.targeted:
            logits = forward(x)
            check_classes(self.name, self.min_classes, logits)
            targets = likely_targets(logits, y, self.targets)
        judged = self.restarts * (1 if targets is None else targets.shape[1]) > 1  # one run has no rival: spare its last forward

        def run(x: Tensor, y: Tensor, draws: Draws, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            return self._run(forward, x, y, draws, target, judged)

        return worst_run(run, x, y, draws, targets, self.restarts)

    def _run(
        self, forward: Forward, x: Tensor, y: Tensor, draws: Draws, target: Tensor | None, judged: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        within, loss, size = Region(self.norm, self.eps, x), LOSSES[self.loss], self.size
        out, left = x.clone(), torch.arange(len(x), device=x.device)
        final, fooled = x.new_zeros(len(x)), torch.ones(len(x), dtype=torch.bool, device=x.device)
        image = within.random_start(draws) if self.random_start else x
        for _ in range(self.steps):
            leaf, logits, losses = look(forward, image, loss, y, target)
            check_classes(self.name, self.min_classes, logits)
            keep = (logits.argmax(1) == y).nonzero().flatten() if self.early_stop else left
            if len(keep) == len(left):
                grad = input_gradient(losses, leaf)
            else:
                out[left] = image  # final for the rows that leave here
                if not len(keep):
                    return out, final, fooled
                grad = input_gradient(losses, leaf)[keep]
                image, within, y, left = image[keep], within.only(keep), y[keep], left[keep]
                target = None if target is None else target[keep]
            image = within.step(image, grad, size)
        out[left] = image
        if judged:
            logits = forward(image)
            final[left], fooled[left] = loss(logits, y, target), logits.argmax(1) != y
        return out, final, fooled
