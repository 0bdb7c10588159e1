"""The class graph: which samples of a class lie within gamma of each other; a cover and a colouring of it."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from sklearn.cluster import MiniBatchKMeans
from sklearn.neighbors import radius_neighbors_graph

logger = logging.getLogger(__name__)
#: Norm -> p of the distance.
NORMS = {"l1": 1.0, "l2": 2.0, "linf": float("inf")}
SEARCHES = ("auto", "exact", "approximate")
#: Points of one class from which on the search in l2 is approximate, and a warning is given in the other norms.
LARGE = 20_000
#: Edges (each counted twice) that a graph may have: 2 GB.
MOST_EDGES = 4 * 10**8
_BLOCK = 1024
_FIRST, _PAIRS = 96, 8192  # coordinates that are looked at first, and pairs that are looked at in all of them at once
_CELL, _PROBES = 200, 12  # points of a cell, and cells that are searched for the neighbours of one


def class_graph(points: np.ndarray, gamma: float, norm: str = "l2", *, search: str = "auto", seed: int = 0) -> sparse.csr_array:
    """Returns the class graph as a boolean CSR matrix (n, n), symmetric, without loops: an edge where ||x_i - x_j|| <= gamma.

    Args:
        points: of one class, (n, d).
        gamma: distance > 0, in the points' unit.
        norm: l1, l2 or linf.
        search: ``exact`` compares all pairs; ``approximate``, in l2 only, those whose cells (of about 200 points, by k-means) are
            near each other, so it misses a few edges (3 % on MNIST) but invents none; ``auto``: in l2 approximate from 20,000
            points on, else exact.
        seed: of the cells.

    Raises:
        ValueError: for settings out of range, and for a graph of more than 4e8 entries.

    References:
        Crafting definition 1.
    """
    check_graph(gamma, norm, search)
    points = np.ascontiguousarray(points, dtype=np.float32)
    n = len(points)
    if search == "approximate" or (search == "auto" and norm == "l2" and n >= LARGE):
        blocks = _in_cells(points, gamma, seed)
    elif norm == "l2":
        graph = sparse.csr_array(radius_neighbors_graph(points, gamma, metric="euclidean"), dtype=bool)
        _refuse(graph.nnz, gamma)
        return graph
    else:
        if n >= LARGE:
            logger.warning(
                "class graph: all pairs of %s points are compared in %s, which takes minutes; norm='l2' has a faster search",
                f"{n:,}", norm,
            )  # fmt: skip
        blocks = _all_pairs(points, gamma, norm)
    rows, columns, total = [], [], 0
    for row, column in blocks:
        total += 2 * len(row)
        _refuse(total, gamma)
        rows.append(row)
        columns.append(column)
    one = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32)
    other = np.concatenate(columns) if columns else np.zeros(0, dtype=np.int32)
    half = sparse.csr_array((np.ones(len(one), dtype=bool), (one, other)), shape=(n, n))
    graph = sparse.csr_array(half + half.T)
    graph.sort_indices()
    return graph


def usual_gamma(points: np.ndarray, norm: str, degree: int, seed: int = 0, look_at: int = 128) -> float:
    """Returns the distance at which half of the points have at least ``degree`` neighbours.

    Args:
        points: (n, d).
        norm: l1, l2 or linf.
        degree: number of neighbours, >= 1.
        seed: of the points that are looked at.
        look_at: their number.
    """
    points = np.ascontiguousarray(points, dtype=np.float32)
    chosen = np.random.default_rng(seed).permutation(len(points))[:look_at]
    away = _distances(points[chosen], points, norm)
    return float(np.median(np.partition(away, min(degree, len(points) - 1), axis=1)[:, min(degree, len(points) - 1)]))


def degrees(graph: sparse.csr_array) -> np.ndarray:
    """Returns the number of neighbours of each point (n,)."""
    return np.diff(graph.indptr)


def dominating_order(graph: sparse.csr_array, count: int, ties: np.ndarray) -> np.ndarray:
    """Returns ``count`` different points, each covering the most points that those before it leave uncovered.

    A point covers itself and its neighbours. Once nobody covers any more the cover starts anew, without those that were chosen.

    Guarantee: the greedy rule is within ln n + 1 of the smallest dominating set, and of 1 - 1/e of the largest cover by so many
    points.

    Args:
        graph: (n, n), symmetric, without loops.
        count: number of points; n where it is more.
        ties: among equals the smallest of these (n,) wins.
    """
    n = graph.shape[0]
    covered, chosen = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    order: list[int] = []
    while len(order) < min(count, n):
        covered[:] = False
        heap = [(-int(d) - 1, int(t), v) for v, (d, t) in enumerate(zip(degrees(graph), ties)) if not chosen[v]]
        heapq.heapify(heap)
        while heap and len(order) < count and not covered.all():
            gain, tie, v = heapq.heappop(heap)
            near = _near(graph, v)
            now = -int(len(near) - covered[near].sum()) - int(not covered[v])
            if now != gain:  # gains only fall, so the first that is up to date is the largest
                if now < 0:
                    heapq.heappush(heap, (now, tie, v))
                continue
            order.append(v)
            chosen[v] = covered[v] = True
            covered[near] = True
    return np.array(order, dtype=np.int64)


def colour(graph: sparse.csr_array) -> np.ndarray:
    """Returns colours (n,) from 0 on, so that no point has the colour of a neighbour or of a neighbour's neighbour.

    Greedy, by falling degree, the lowest colour that is free. Guarantee: at most 1 + max degree^2 colours.

    Args:
        graph: (n, n), symmetric, without loops.

    References:
        Crafting sec. 4.8.
    """
    colours = np.full(graph.shape[0], -1, dtype=np.int64)
    for v in np.argsort(-degrees(graph), kind="stable").tolist():
        near = _near(graph, v)
        reach = np.concatenate([near, *(_near(graph, int(u)) for u in near)]) if len(near) else near
        used = np.unique(colours[reach])
        used = used[used >= 0]
        gap = np.flatnonzero(used != np.arange(len(used)))
        colours[v] = gap[0] if len(gap) else len(used)
    return colours


def is_colouring(graph: sparse.csr_array, colours: np.ndarray) -> bool:
    """Returns whether neighbours, and neighbours of one point, all have different colours (n,)."""
    for v in range(graph.shape[0]):
        around = colours[np.append(_near(graph, v), v)]
        if len(np.unique(around)) != len(around):
            return False
    return True


def check_graph(gamma: float | None, norm: str, search: str) -> None:
    """Raises a one-line ``ValueError`` for settings of a class graph that are out of range."""
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown: choose one of {', '.join(NORMS)}.")
    if search not in SEARCHES:
        raise ValueError(f"search={search!r} is unknown: choose one of {', '.join(SEARCHES)}.")
    if search == "approximate" and norm != "l2":
        raise ValueError(f"search='approximate' is for norm='l2', got norm={norm!r}, where it finds few edges: leave it out.")
    if gamma is not None and (isinstance(gamma, bool) or not isinstance(gamma, int | float | np.number) or not gamma > 0):
        raise ValueError(f"gamma={gamma!r} must be a distance > 0, in the unit of the space: leave it out for a usual one.")


def _near(graph: sparse.csr_array, v: int) -> np.ndarray:
    return graph.indices[graph.indptr[v] : graph.indptr[v + 1]]


def _distances(a: np.ndarray, b: np.ndarray, norm: str) -> np.ndarray:
    """(n, m); l2 through products, in float64 for their rounding."""
    one, other = torch.from_numpy(a), torch.from_numpy(b)
    if norm == "l2":
        return torch.cdist(one.double(), other.double(), compute_mode="use_mm_for_euclid_dist").numpy()
    return torch.cdist(one, other, p=NORMS[norm]).numpy()


def _within(a: np.ndarray, b: np.ndarray, gamma: float, norm: str, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in a (n, d) and b (m, d) of the pairs within gamma in l1 or linf.

    first: coordinates that are looked at before the others. A pair that is too far apart in them is too far apart, which most are.
    """
    if len(first) == a.shape[1]:
        return np.nonzero(_distances(a, b, norm) <= gamma)  # type: ignore[return-value]
    row, column = np.nonzero(_distances(a[:, first], b[:, first], norm) <= gamma * (1 + 1e-6))
    if len(row) > 0.2 * len(a) * len(b):
        return np.nonzero(_distances(a, b, norm) <= gamma)  # type: ignore[return-value]
    near = np.empty(len(row), dtype=bool)
    for start in range(0, len(row), _PAIRS):
        part = slice(start, start + _PAIRS)
        away = np.abs(a[row[part]] - b[column[part]])
        near[part] = (away.max(axis=1) if norm == "linf" else away.sum(axis=1)) <= gamma
    return row[near], column[near]


def _first(points: np.ndarray) -> np.ndarray:
    """The coordinates in which points differ most."""
    return np.sort(np.argsort(-points.var(axis=0), kind="stable")[:_FIRST])


def _all_pairs(points: np.ndarray, gamma: float, norm: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs i < j within gamma, block by block."""
    first = _first(points)
    for start in range(0, len(points), _BLOCK):
        row, column = _within(points[start : start + _BLOCK], points[start:], gamma, norm, first)
        keep = row < column
        yield (row[keep] + start).astype(np.int32), (column[keep] + start).astype(np.int32)


def _in_cells(points: np.ndarray, gamma: float, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs i < j within gamma in l2, of cells near each other."""
    count = max(1, len(points) // _CELL)
    cells = MiniBatchKMeans(count, init="random", random_state=seed, batch_size=2048, n_init=1, max_iter=3).fit(points)
    members = [np.flatnonzero(cells.labels_ == c) for c in range(count)]
    centres = cells.cluster_centers_.astype(np.float32)
    between = _distances(centres, centres, "l2")
    np.fill_diagonal(between, -1)
    nearest = np.argsort(between, axis=1)[:, :_PROBES]
    pairs = np.unique(np.sort(np.stack([np.arange(count).repeat(nearest.shape[1]), nearest.ravel()], axis=1), axis=1), axis=0)
    for one in range(count):
        others = np.concatenate([members[c] for c in pairs[pairs[:, 0] == one, 1]])
        for start in range(0, len(members[one]), _BLOCK):
            part = members[one][start : start + _BLOCK]
            row, column = np.nonzero(_distances(points[part], points[others], "l2") <= gamma)
            i, j = part[row], others[column]
            keep = (cells.labels_[j] != one) | (i < j)
            yield i[keep].astype(np.int32), j[keep].astype(np.int32)


def _refuse(entries: int, gamma: float) -> None:
    if entries > MOST_EDGES:
        raise ValueError(f"gamma={gamma:g} joins more than {MOST_EDGES // 2:,} pairs: give a smaller one.")
