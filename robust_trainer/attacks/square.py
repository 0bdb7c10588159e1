"""Square Attack: random search by squares, from the logits alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .apgd import AUTOATTACK_NORMS
from .base import Draws, Forward
from .pgd import LOSSES, check, check_classes, margin

#: Queries after which p is halved once more, for a budget of 10,000 (the authors' code).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
#: Queries whose random numbers are drawn at once: speed only, the numbers do not depend on it.
CHUNK = 100


@lru_cache(maxsize=32)
def pyramid(side: int) -> Tensor:
    """Returns the (side, side) l_2 update of unit 2-norm, float64: a positive upper and a negative lower hill.

    Each hill of h1 x h2 pixels is sum_{q = m}^{M} 1 / (q + 1)^2, where m is the l_inf distance to its centre
    (h1 // 2, h2 // 2) and M = max(h1 // 2, h2 // 2).

    References:
        Andriushchenko et al. 2020, eta.
    """

    def hill(h1: int, h2: int) -> Tensor:
        top = max(h1 // 2, h2 // 2)
        heights = (torch.arange(1, top + 2, dtype=torch.float64) ** -2).flip(0).cumsum(0).flip(0)
        away_h, away_w = ((torch.arange(n) - n // 2).abs() for n in (h1, h2))
        return heights[torch.maximum(away_h[:, None], away_w[None])]

    both = torch.cat([hill(side // 2, side), -hill(side - side // 2, side)]) if side > 1 else -torch.ones(1, 1, dtype=torch.float64)
    return both / both.norm()


def _judge(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The margin max_{k != y} z_k - z_y (B,), and whether the prediction is wrong (B,)."""
    return margin(logits, y), logits.argmax(1) != y


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _corner(uniform: Tensor, span: int) -> Tensor:
    """An integer in 0 .. span, each equally likely."""
    return (uniform * (span + 1)).long().clamp_max(span)


def _inside(corner: Tensor, side: int, length: int) -> Tensor:
    """Which of 0 .. length - 1 lie in [corner, corner + side): (B, length)."""
    at = torch.arange(length, device=corner.device)
    return (at >= corner[:, None]) & (at < corner[:, None] + side)


def _norm(x: Tensor, *dims: int) -> Tensor:
    return x.square().sum(dims, keepdim=True).sqrt()


@dataclass(frozen=True)
class Square:
    """Images on the edge of the ball around x, clipped to [0, 1], of the highest margin that a random search found.

    A change is kept if the margin max_{k != y} z_k - z_y rises or the prediction is wrong, which ends it. Forwards, all without
    gradients: at most 1 + restarts (1 + queries). Any image size.

    linf: starts from vertical stripes of +-eps; each query sets a square to x +- eps, one sign per channel. l2: starts from a
    grid of pyramids of side min(H, W) // 5, at least 1; each query moves the 2-norm of one window onto another, shaped as there
    plus a pyramid of random signs and direction, and rescales the whole to eps. The side is the integer nearest to sqrt(p H W),
    at least 1 (linf) or 3 and odd (l2), at most min(H, W). p starts at p_init and is halved after 10, 50, 200, 500, 1000, 2000,
    4000, 6000 and 8000 queries.

    Args:
        eps: in [0, 1] pixels, >= 0.
        norm: ``linf`` or ``l2``.
        queries: search steps per restart.
        p_init: the first share of the image that a square has, in (0, 1].
        restarts: runs.
        rescaled: whether the queries at which p is halved are of 10,000, scaled to ``queries``. AutoAttack: False.

    Raises:
        ValueError: for another norm and numbers out of range, and for logits not (B, K >= 2).

    References:
        Andriushchenko, Croce, Flammarion and Hein 2020, "Square Attack: a query-efficient black-box adversarial attack via random
        search", algorithms 1 to 3. AutoAttack's code: squares and signs are the batch's, not each sample's own; squares do not
        reach the last row and column; the 2-norm of the two windows is of all channels, not per channel.
    """

    eps: float
    norm: str = "linf"
    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    rescaled: bool = False

    def __post_init__(self) -> None:
        check(self.eps, self.norm, "margin", LOSSES, norms=AUTOATTACK_NORMS, queries=self.queries, restarts=self.restarts)
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init={self.p_init!r} must lie in (0, 1]: give for instance 0.8.")

    @property
    def name(self) -> str:
        """How the report calls it."""
        return "square"

    @property
    def forwards(self) -> int:
        """The most forward passes over a batch."""
        return 1 + self.restarts * (1 + self.queries)

    def side(self, query: int, height: int, width: int) -> int:
        """The side of the square in pixels at that query, counted from 0."""
        count = query * 10000 // self.queries if self.rescaled else query
        p = self.p_init / 2 ** sum(count > after for after in HALVINGS)
        side = max(round((p * height * width) ** 0.5), 1 if self.norm == "linf" else 3)
        side += self.norm == "l2" and side % 2 == 0
        return min(side, height, width)

    @torch.no_grad()
    def __call__(self, forward: Forward, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Returns images within eps of x: as `Attack.__call__`."""
        out = x.clone()
        logits = forward(x)
        check_classes(self.name, 2, logits)
        highest, wrong = _judge(logits, y)
        rows = (~wrong).nonzero().flatten()
        for _ in range(self.restarts):
            if not len(rows):
                break
            point, gap, wrong = self._search(forward, x[rows], y[rows], draws.only(rows))
            better = wrong | (gap > highest[rows])
            out[rows[better]] = point[better]
            highest[rows] = torch.maximum(gap, highest[rows])
            rows = rows[~wrong]
        return out

    def _search(self, forward: Forward, x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """One restart: the best point (n, C, H, W), its margin and whether it is wrong (n,)."""
        channels, height, width = x.shape[1:]
        start, change, numbers = (self._stripes, self._square, 2) if self.norm == "linf" else (self._grid, self._windows, 5)
        best = start(x, draws)
        gap, wrong = _judge(forward(best), y)
        all_best, all_gap, all_wrong = best.clone(), gap.clone(), wrong.clone()
        rows, gone, chunk = torch.arange(len(x), device=x.device), wrong, x.new_empty(len(x), 0, 0)
        for query in range(self.queries):
            if gone.any():
                stay = ~gone
                all_best[rows], all_gap[rows], all_wrong[rows[gone]] = best, gap, True
                rows, x, y, best, gap, chunk, gone = (t[stay] for t in (rows, x, y, best, gap, chunk, gone))
                draws = draws.only(stay)
            if not len(rows):
                break
            if query % CHUNK == 0:
                chunk = draws.uniform(min(CHUNK, self.queries - query), numbers + channels).to(x)
            new = change(x, best, chunk[:, query % CHUNK], self.side(query, height, width))
            new_gap, gone = _judge(forward(new), y)
            better = gone | (new_gap > gap)
            best, gap = torch.where(better[:, None, None, None], new, best), torch.where(better, new_gap, gap)
        all_best[rows], all_gap[rows], all_wrong[rows] = best, gap, gone
        return all_best, all_gap, all_wrong

    def _stripes(self, x: Tensor, draws: Draws) -> Tensor:
        signs = _signs(draws.uniform(x.shape[1], x.shape[3])).to(x)
        return (x + self.eps * signs[:, :, None]).clamp(0, 1)

    def _square(self, x: Tensor, best: Tensor, numbers: Tensor, side: int) -> Tensor:
        """``numbers``: (n, 2 + C) uniform: row, column, one sign per channel."""
        height, width = x.shape[2:]
        row, column = _corner(numbers[:, 0], height - side), _corner(numbers[:, 1], width - side)
        square = _inside(row, side, height)[:, None, :, None] & _inside(column, side, width)[:, None, None]
        return torch.where(square, (x + self.eps * _signs(numbers[:, 2:]).to(x)[:, :, None, None]).clamp(0, 1), best)

    def _grid(self, x: Tensor, draws: Draws) -> Tensor:
        """``numbers`` per sample: rows * columns * (1 + C) uniform: a direction and one sign per channel of each tile."""
        n, channels, height, width = x.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        numbers = draws.uniform(rows, columns, 1 + channels).to(x)
        tile = pyramid(side).to(x)
        upright = (numbers[..., 0] < 0.5)[..., None, None]
        tiles = torch.where(upright, tile, tile.T)[:, None] * _signs(numbers[..., 1:]).to(x).permute(0, 3, 1, 2)[..., None, None]
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        delta = torch.zeros_like(x)
        grid = tiles.permute(0, 1, 2, 4, 3, 5).reshape(n, channels, rows * side, columns * side)
        delta[:, :, top : top + rows * side, left : left + columns * side] = grid
        return self._to_sphere(x, delta)

    def _windows(self, x: Tensor, best: Tensor, numbers: Tensor, side: int) -> Tensor:
        """numbers: (n, 5 + C) uniform: row, column of the window that gains, of the one that pays, direction, signs."""
        n, channels, height, width = x.shape
        row, column, row_2, column_2 = (
            _corner(numbers[:, i], length - side) for i, length in enumerate((height, width, height, width))
        )
        pays = _inside(row_2, side, height)[:, None, :, None] & _inside(column_2, side, width)[:, None, None]
        either = pays | (_inside(row, side, height)[:, None, :, None] & _inside(column, side, width)[:, None, None])
        span = torch.arange(side, device=x.device)
        window = (
            torch.arange(n, device=x.device)[:, None, None, None],
            torch.arange(channels, device=x.device)[:, None, None],
            (row[:, None] + span)[:, None, :, None],
            (column[:, None] + span)[:, None, None],
        )
        delta = best - x
        tile = pyramid(side).to(x)
        tile = torch.where((numbers[:, 4] < 0.5)[:, None, None], tile, tile.T)[:, None]
        old = delta[window]
        shape = tile * _signs(numbers[:, 5:]).to(x)[:, :, None, None] + old / _norm(old, 2, 3).clamp_min(1e-12)
        unused = (self.eps**2 - _norm(delta, 1, 2, 3).square()).clamp_min(0)
        available = (_norm(delta * either, 2, 3).square() + unused / channels).sqrt()
        delta = delta.masked_fill(pays, 0)
        delta[window] = shape / _norm(shape, 2, 3).clamp_min(1e-12) * available
        return self._to_sphere(x, delta)

    def _to_sphere(self, x: Tensor, delta: Tensor) -> Tensor:
        return (x + delta * (self.eps / _norm(delta, 1, 2, 3).clamp_min(1e-12))).clamp(0, 1)
