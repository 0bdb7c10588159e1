"""Auto-PGD (Croce and Hein 2020): gradient ascent with momentum whose step size follows the loss's progress."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..perturbations.region import Region
from .base import Draws, Forward
from .pgd import Loss, check, check_classes, cross_entropy, input_gradient, likely_targets, look, margin, worst_run

MOMENTUM = 0.75
#: The norms that AutoAttack's members are published for and offered in.
AUTOATTACK_NORMS = ("linf", "l2")


def dlr(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Returns the difference-of-logits ratio -(z_y - max_{k != y} z_k) / (z_1 - z_3 + 1e-12), (B,), z_1 >= z_2 >= ...; K >= 3.

    References:
        Croce and Hein 2020, eq. 6; 1e-12 is from the authors' code.
    """
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Returns -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2 + 1e-12), (B,); K >= 4.

    References:
        Croce and Hein 2020, eq. 7; 1e-12 is from the authors' code.
    """
    top = logits.topk(4, dim=1).values
    return margin(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr, "dlr-targeted": targeted_dlr}
MIN_CLASSES = {"ce": 2, "dlr": 3, "dlr-targeted": 4}


def checkpoints(steps: int) -> list[int]:
    """Returns w_j = ceil(p_j steps), ascending: p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06) <= 1.

    References:
        Croce and Hein 2020, sec. 3.1.
    """
    percent, width, out = 0, 22, [0]
    while percent + width <= 100:
        percent += width
        out.append(-(-percent * steps // 100))  # in whole percents: 0.41 * 100 is not above 41
        width = max(width - 3, 6)
    return sorted(set(out))


@dataclass(frozen=True)
class APGD:
    """APGD: PGD with momentum and a step that starts at 2 eps and follows the loss's progress.

    z = P(x_k + eta direction(grad)), x_{k+1} = P(x_k + a (z - x_k) + (1 - a)(x_k - x_{k-1})), a = 0.75 (1 in the first step), P:
    onto the ball of radius eps, then the clip to [0, 1]. At each of the `checkpoints` eta is halved, and the search returns to
    its best point, where the loss rose in fewer than rho of the window's steps (condition 1) or where neither eta nor the best
    loss changed since the last checkpoint (condition 2). A sample that is wrong at x is returned as it is; a row leaves with its
    first iterate that fools; the others' result is the point of the highest loss over all runs.

    Args:
        eps: the radius, in [0, 1] pixels.
        norm: ``linf`` or ``l2``.
        steps: gradient steps of a run.
        restarts: runs, for each target where targeted.
        loss: ``ce`` (2 classes or more), ``dlr`` (3) or ``dlr-targeted`` (4: ``restarts`` runs towards each of the min(targets, K
            - 1) wrong classes of the highest clean logits).
        targets: the number of classes that targeted runs go to.
        rho: in [0, 1], of condition 1.
        random_start: noise scaled to reach the ball's edge, as in the authors' code: max |delta| = eps (linf), ||delta|| = eps
        (l2). name: how the report calls it.

    Raises:
        ValueError: for settings out of range, another norm, and fewer classes than the loss needs.

    References:
        Croce and Hein 2020, "Reliable evaluation of adversarial robustness ...", algorithm 1. Where the authors' code departs
        from the paper this follows the paper: condition 1 is strict, compares f(x_1) with f(x_0) (the code: with 0) and after a
        return with the best point's loss; condition 2 holds at the first checkpoint too. As in the code, the window ends with the
        newest point, not one before it.
    """

    eps: float
    norm: str = "linf"
    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    targets: int = 9
    rho: float = 0.75
    random_start: bool = True
    name: str = "apgd"

    def __post_init__(self) -> None:
        check(
            self.eps,
            self.norm,
            self.loss,
            LOSSES,
            norms=AUTOATTACK_NORMS,
            steps=self.steps,
            restarts=self.restarts,
            targets=self.targets,
        )
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho={self.rho!r} must be in [0, 1]: give for instance 0.75.")

    @property
    def min_classes(self) -> int:
        """The fewest classes the loss is defined for."""
        return MIN_CLASSES[self.loss]

    @property
    def forwards(self) -> int:
        """The most forward passes over a batch."""
        return 1 + self.restarts * (self.targets if self.loss == "dlr-targeted" else 1) * (self.steps + 1)

    @torch.no_grad()
    def __call__(self, forward: Forward, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Returns images within eps of x: as `Attack.__call__`."""
        out = x.detach().clone()
        if not len(x):
            return out
        logits = forward(out)
        check_classes(f"{self.name} (loss='{self.loss}')", self.min_classes, logits)
        targets = likely_targets(logits, y, self.targets) if self.loss == "dlr-targeted" else None
        keep = (logits.argmax(1) == y).nonzero().flatten()

        def run(x: Tensor, y: Tensor, draws: Draws, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            return self._run(forward, x, y, draws, target)

        of_kept = None if targets is None else targets[keep]
        out[keep] = worst_run(run, out[keep], y[keep], draws.only(keep), of_kept, self.restarts)
        return out

    def _start(self, within: Region, x: Tensor, draws: Draws) -> Tensor:
        if not self.random_start:
            return x
        if self.norm == "linf":
            noise = draws.uniform(*x.shape[1:]) * 2 - 1
            noise = noise / noise.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-30)
        else:
            noise = within.norm.direction(draws.normal(*x.shape[1:]))
        return within.project_(x + noise * self.eps)

    def _run(self, forward: Forward, x: Tensor, y: Tensor, draws: Draws, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        within, loss, checks = Region(self.norm, self.eps, x), LOSSES[self.loss], checkpoints(self.steps)
        start = self._start(within, x, draws)
        out, final = start.clone(), x.new_full((len(x),), -math.inf)
        fooled = torch.ones(len(x), dtype=torch.bool, device=x.device)
        wide = (-1, 1, 1, 1)
        s = {  # one row per sample that is still right
            "left": torch.arange(len(x), device=x.device), "y": y, "image": start, "previous": start,
            "best": start, "best_grad": torch.zeros_like(x), "best_loss": final.clone(), "checked_loss": final.clone(),
            "last_loss": -final, "rises": torch.zeros_like(final), "eta": torch.full_like(final, 2 * self.eps),
            "halved": ~fooled,
        }  # fmt: skip
        if target is not None:
            s["target"] = target
        for k in range(self.steps + 1):
            leaf, logits, losses = look(forward, s["image"], loss, s["y"], s.get("target"))
            keep = (logits.argmax(1) == s["y"]).nonzero().flatten()
            last = k == self.steps or not len(keep)
            grad = torch.zeros_like(leaf) if last else input_gradient(losses, leaf)
            losses = losses.detach()
            if len(keep) < len(leaf):
                out[s["left"]] = s["image"]  # final for the rows that leave here
                s, within = {name: rows[keep] for name, rows in s.items()}, within.only(keep)
                grad, losses = grad[keep], losses[keep]
            better = losses > s["best_loss"]
            s["best"] = torch.where(better.view(wide), s["image"], s["best"])
            s["best_grad"] = torch.where(better.view(wide), grad, s["best_grad"])
            s["best_loss"] = torch.where(better, losses, s["best_loss"])
            if last:
                break
            s["rises"] += losses > s["last_loss"]
            s["last_loss"] = losses
            if k == 0:
                s["checked_loss"] = s["best_loss"]
            elif k in checks:
                width = k - checks[checks.index(k) - 1]
                stuck = ~s["halved"] & (s["best_loss"] == s["checked_loss"])
                halve = (s["rises"] < self.rho * width) | stuck
                s["eta"] = torch.where(halve, s["eta"] / 2, s["eta"])
                s["image"] = torch.where(halve.view(wide), s["best"], s["image"])
                grad = torch.where(halve.view(wide), s["best_grad"], grad)
                s["last_loss"] = torch.where(halve, s["best_loss"], s["last_loss"])
                s["halved"], s["checked_loss"], s["rises"] = halve, s["best_loss"], torch.zeros_like(losses)
            at = s["image"]
            z = within.step(at, grad, s["eta"].view(wide))
            if k > 0:  # at + MOMENTUM (z - at) + (1 - MOMENTUM) (at - previous)
                z.mul_(MOMENTUM).add_(at, alpha=2 - 2 * MOMENTUM).sub_(s["previous"], alpha=1 - MOMENTUM)
                z = within.project_(z)
            s["image"], s["previous"] = z, at
        out[s["left"]], final[s["left"]], fooled[s["left"]] = s["best"], s["best_loss"], False
        return out, final, fooled
