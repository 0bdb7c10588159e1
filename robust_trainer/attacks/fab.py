"""FAB: the nearest wrong prediction, by projections onto the linearised decision boundary within the box [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..perturbations.norms import NORMS, Ball
from .apgd import AUTOATTACK_NORMS
from .base import Draws, Forward
from .pgd import LOSSES, check, check_classes, likely_targets, margin

#: How far beyond eps, relative to it, a point may lie to be pulled back onto the ball; float32 has 6e-8.
TOLERANCE = 1e-6
SEARCH_STEPS = 3


def step_to_hyperplane(x: Tensor, w: Tensor, value: Tensor, norm: str) -> Tensor:
    """Returns the shortest d (B, N) with w.d = -value and x + d in [0, 1]; as far as the box allows where no such d exists.

    The optimum is d_i = sign(u_i) min(t, room_i) for l_inf and sign(u_i) min(t |u_i|, room_i) for l_2, where u = -sign(value) w and
    room_i is the way to the edge of the box; u.d is piecewise linear in t, so one sort finds t exactly, O(N log N). Entries of w
    below 1e-12 of its largest count as 0.

    Args:
        x: (B, N) in [0, 1].
        w: the gradient (B, N) of the linear function.
        value: its value at x, (B,).
        norm: ``linf`` or ``l2``.

    References:
        Croce and Hein 2020, FAB: the projection on a hyperplane within the box.
    """
    scale = w.abs().amax(1).clamp_min(torch.finfo(w.dtype).tiny)
    u = -w / scale[:, None] * torch.where(value < 0, -1.0, 1.0).to(w.dtype)[:, None]
    size = u.abs()
    size = torch.where(size > 1e-12, size, torch.zeros_like(size))
    room = torch.where(u > 0, 1 - x, x)
    speed = (size > 0).to(w.dtype) if norm == "linf" else size  # |d_i| = min(t speed_i, room_i)
    full_at = torch.where(size > 0, room / speed.clamp_min(1e-12), torch.zeros_like(room))

    full_at, order = full_at.sort(1)
    slope = (size * speed).gather(1, order)
    filled = (size * room).gather(1, order)
    before = filled.cumsum(1) - filled  # what the entries already at the edge contribute
    moving = slope.flip(1).cumsum(1).flip(1)  # the slope of those still moving
    goal = (value.abs() / scale)[:, None]
    place = torch.searchsorted((before + full_at * moving).contiguous(), goal.contiguous())
    beyond = place == x.shape[1]
    place = place.clamp_max(x.shape[1] - 1)
    t = (goal - before.gather(1, place)) / moving.gather(1, place).clamp_min(torch.finfo(w.dtype).tiny)
    length = torch.where(beyond, room, torch.minimum(t.clamp_min(0) * speed, room))
    return u.sign() * torch.where(size > 0, length, torch.zeros_like(length))


def _length(delta: Tensor, norm: str) -> Tensor:
    return NORMS[norm].size(delta).flatten()


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


class _Nearest:
    """The nearest wrong prediction seen in one run, per row: point (n, C, H, W), its distance to x and its margin (n,)."""

    def __init__(self, x: Tensor, y: Tensor, ball: Ball):
        self.x, self.y, self.ball = x, y, ball
        self.point = x.clone()
        self.distance = torch.full_like(x[:, 0, 0, 0], torch.inf)
        self.margin = torch.zeros_like(self.distance)

    @torch.no_grad()
    def offer(self, forward: Forward, candidate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates as judged (a rounding outside the ball: pulled onto it), which are wrong (n,), their margins (n,)."""
        eps, delta = self.ball.eps, candidate - self.x
        distance = _length(delta, self.ball.norm)
        near = (distance > eps) & (distance <= eps * (1 + TOLERANCE))
        candidate = torch.where(_rows(near, delta), (self.x + self.ball.project(delta)).clamp(0, 1), candidate)
        distance = torch.where(near, torch.full_like(distance, eps), distance)
        logits = forward(candidate)
        wrong, gap = logits.argmax(1) != self.y, margin(logits, self.y)
        closer = wrong & (distance < self.distance)
        self.point = torch.where(_rows(closer, delta), candidate, self.point)
        self.distance = torch.where(closer, distance, self.distance)
        self.margin = torch.where(closer, gap, self.margin)
        return candidate, wrong, gap

    def search(self, forward: Forward, clean_margin: Tensor) -> None:
        """Moves the points towards x on the segment between them: regula falsi on the margin, 1/10 off to the wrong side."""
        if not self.distance.isfinite().any():
            return
        delta = self.point - self.x
        low, high = torch.zeros_like(clean_margin), torch.ones_like(clean_margin)
        low_margin, high_margin = clean_margin, self.margin
        for _ in range(SEARCH_STEPS):
            root = low + (high - low) * (-low_margin / (high_margin - low_margin).clamp_min(1e-12)).clamp(0, 1)
            at = root + 0.1 * (high - root)
            _, wrong, gap = self.offer(forward, (self.x + _rows(at, delta) * delta).clamp(0, 1))
            low, low_margin = torch.where(wrong, low, at), torch.where(wrong, low_margin, gap)
            high, high_margin = torch.where(wrong, at, high), torch.where(wrong, gap, high_margin)


@dataclass(frozen=True)
class FAB:
    """The nearest misclassified image found if within eps of x, else x: the Fast Adaptive Boundary attack.

    With d and d_0 the steps from x_i and from x to the boundary hyperplane linearised at x_i (`step_to_hyperplane`):

        alpha = min(|d| / (|d| + |d_0|), alpha_max)
        x_{i+1} = clip((1 - alpha) (x_i + eta d) + alpha (x + eta d_0))
        if x_{i+1} is wrong: remembered if the nearest so far, then x_{i+1} = (1 - beta) x + beta x_{i+1}

    A run ends with 3 steps of search on the segment to x. Rows with a point within eps stop after their run. A point up to 1e-6 eps
    outside is pulled onto the ball before it is judged. Forwards: at most 1 + runs (2 steps + 3), where runs = restarts, times the
    classes if targeted.

    Args:
        eps: in [0, 1] pixels, >= 0: bounds what is returned and the random starts, not the search.
        norm: ``linf`` or ``l2``.
        steps: per run.
        restarts: runs; those after the first start at distance min(nearest so far, eps) / 2.
        targeted: False: each step linearises all K - 1 differences z_k - z_y, one backward each, and takes the nearest by the dual
            norm, without the box. True ("fab-t"): only z_t - z_y, for t in turn the min(targets, K - 1) wrong classes of the
            highest logits at x.
        targets: the number of classes that targeted runs go to.
        alpha_max: in [0, 1].
        eta: >= 1.
        beta: in [0, 1].

    Raises:
        ValueError: for another norm and numbers out of range, and for logits not (B, K >= 2).

    References:
        Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", algorithm 1;
        alpha_max, eta and beta are the paper's. AutoAttack's code forgets the nearest point between restarts and has no search on
        the segment; here it is regula falsi on the margin.
    """

    eps: float
    norm: str = "linf"
    steps: int = 100
    restarts: int = 1
    targeted: bool = False
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        check(
            self.eps,
            self.norm,
            "margin",
            LOSSES,
            norms=AUTOATTACK_NORMS,
            steps=self.steps,
            restarts=self.restarts,
            targets=self.targets,
        )
        for name, value, usual in (("alpha_max", self.alpha_max, 0.1), ("beta", self.beta, 0.9)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r} must lie in [0, 1]: give for instance {usual}.")
        if not self.eta >= 1:
            raise ValueError(f"eta={self.eta!r} must be at least 1 to cross the boundary: give for instance 1.05.")

    @property
    def name(self) -> str:
        """How the report calls it."""
        return "fab-t" if self.targeted else "fab"

    @property
    def forwards(self) -> int:
        """The most forward passes over a batch."""
        return 1 + self.restarts * (self.targets if self.targeted else 1) * (2 * self.steps + SEARCH_STEPS)

    def __call__(self, forward: Forward, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Returns images within eps of x: as `Attack.__call__`."""
        with torch.no_grad():
            logits = forward(x)
        check_classes(self.name, 2, logits)
        out, clean_margin = x.clone(), margin(logits, y)
        nearest = torch.where(logits.argmax(1) == y, torch.inf, 0.0).to(x)
        ranked = likely_targets(logits, y, self.targets if self.targeted else 1)
        for run in range(ranked.shape[1] * self.restarts):
            rows = (nearest > self.eps).nonzero().flatten()
            if not len(rows):
                break
            target = ranked[rows, run // self.restarts] if self.targeted else None
            start = x[rows]
            if run % self.restarts:
                start = self._random_start(start, nearest[rows], draws.only(rows))
            closest = self._run(forward, x[rows], y[rows], start, target)
            closest.search(forward, clean_margin[rows])
            closer = (closest.distance < nearest[rows]) & (closest.distance <= self.eps)
            out[rows[closer]] = closest.point[closer]
            nearest[rows] = torch.minimum(nearest[rows], closest.distance)
        return out

    def _random_start(self, x: Tensor, nearest: Tensor, draws: Draws) -> Tensor:
        shape = x.shape[1:]
        noise = draws.uniform(*shape) * 2 - 1 if self.norm == "linf" else draws.normal(*shape)
        radius = nearest.clamp_max(self.eps) / 2
        return (x + noise.to(x) * _rows(radius / _length(noise, self.norm).to(x).clamp_min(1e-12), x)).clamp(0, 1)

    def _run(self, forward: Forward, x: Tensor, y: Tensor, start: Tensor, target: Tensor | None) -> _Nearest:
        closest, point = _Nearest(x, y, Ball(self.norm, self.eps)), start
        flat = x.flatten(1)
        for _ in range(self.steps):
            value, w = self._linearise(forward, point, y, target)
            d = step_to_hyperplane(point.flatten(1), w, value, self.norm).view_as(x)
            value_0 = value + (w * (flat - point.flatten(1))).sum(1)
            d_0 = step_to_hyperplane(flat, w, value_0, self.norm).view_as(x)
            way, way_0 = (_length(step, self.norm).clamp_min(1e-8) for step in (d, d_0))
            alpha = _rows((way / (way + way_0)).clamp_max(self.alpha_max), x)
            point = ((1 - alpha) * (point + self.eta * d) + alpha * (x + self.eta * d_0)).clamp(0, 1)
            point, wrong, _ = closest.offer(forward, point)
            point = torch.where(_rows(wrong, x), (1 - self.beta) * x + self.beta * point, point)
        return closest

    def _linearise(self, forward: Forward, x: Tensor, y: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """Value (n,) and gradient (n, N) at x of z_t - z_y for the target, or the class of the nearest boundary; 0 without one."""
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = forward(leaf)
            classes = logits.shape[1]
            others = [(y + k) % classes for k in range(1, classes)] if target is None else [target]
            label = logits.gather(1, y[:, None])
            differences = [(logits.gather(1, other[:, None]) - label).squeeze(1) for other in others]
        value, gradient = torch.zeros_like(y, dtype=x.dtype), torch.zeros_like(x).flatten(1)
        nearest = torch.full_like(value, torch.inf)
        for k, difference in enumerate(differences):
            if not difference.requires_grad:
                continue
            more = k + 1 < len(differences)
            (w,) = torch.autograd.grad(difference.sum(), leaf, retain_graph=more, allow_unused=True, materialize_grads=True)
            w = w.flatten(1).nan_to_num(0.0, 0.0, 0.0)
            dual = NORMS[self.norm].dual_size(w).flatten()
            distance = torch.where(dual > 0, difference.detach().abs() / dual, torch.inf)
            closer = distance < nearest
            value, nearest = torch.where(closer, difference.detach(), value), torch.where(closer, distance, nearest)
            gradient = torch.where(closer[:, None], w, gradient)
        return value, gradient
