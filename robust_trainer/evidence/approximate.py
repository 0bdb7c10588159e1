"""Approximate search for the most similar rows: candidates from an inverted index (faiss) of compressed codes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .exact import best_of, exact_neighbours

#: Rows from which on an index pays; exact search is as fast for fewer.
FEWEST = 4096
_PROBED = 64  # cells that are searched for a row's neighbours
_ROWS_PER_CELL = 48  # that the cells are fitted on
_SHORT = 64  # features up to which rows are compared as they are
_AT_ONCE = 16384
_MORE = 60  # candidates beyond k, so that rounding in the codes does not decide who is among the k


def load_faiss() -> Any:
    """Returns the module faiss.

    Raises:
        ValueError: where it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "approximate search needs faiss, which is not installed: pip install 'robust-trainer[neighbours]', or index='exact'."
        ) from None
    return faiss


def approximate_neighbours(asked: Tensor, columns: Tensor, own: Tensor | None, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Returns what `exact_neighbours` does, but for neighbours that the index misses; of more than k candidates by float64.

    Args:
        asked: as of `exact_neighbours`, like the others.
        columns: N >= `FEWEST`.
        own: each row's own place.
        k: how many.
        chunk_bytes: of a work array.
    """
    index = torch.zeros(len(asked), k, dtype=torch.int64)
    similarity = torch.zeros(len(asked), k)
    lacking = []
    for rows, candidate in candidates(asked.cpu(), columns.cpu(), min(k + max(k, _MORE), len(columns))):
        real = candidate >= 0
        if own is not None:
            real &= candidate != own[rows, None]
        lacking.append(rows[real.sum(1) < k])
        there = [part.to(asked.device) for part in (rows, candidate.clamp_min(0), real)]
        found, exact = best_of(asked[there[0]], columns, there[1], there[2], k, chunk_bytes)
        index[rows], similarity[rows] = found.cpu(), exact.cpu()
    if len(rest := torch.cat(lacking)):
        place = None if own is None else own[rest]
        index[rest], similarity[rest] = exact_neighbours(asked[rest.to(asked.device)], columns, place, k, chunk_bytes)
    return index, similarity


def candidates(asked: Tensor, columns: Tensor, wanted: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields positions of rows asked, (n,), and for each of them rows of ``columns`` that may be its nearest, (n, wanted).

    All positions come once, rows of one cell one after the other: they share candidates, which are then in the CPU's cache. Numbers
    are -1 where too few were found.

    Args:
        asked: rows whose neighbours are sought, normalised, (Q, D) on the CPU.
        columns: rows that may be neighbours, normalised, (N, D) on the CPU, N >= `FEWEST`.
        wanted: candidates of each row.

    References:
        Jégou, Douze and Schmid 2011 (inverted index, product quantisation); André, Kermarrec and Le Scouarnec 2015 (codes of 4 bits
        that are compared in registers).
    """
    faiss = load_faiss()
    index = _fitted(faiss, columns)
    short = -columns.shape[1] % 4
    cell = torch.cat(
        [torch.from_numpy(index.quantizer.search(part.numpy(), 1)[1]) for part in pad(asked, (0, short)).split(_AT_ONCE)]
    )
    for rows in cell[:, 0].argsort(stable=True).split(_AT_ONCE):
        yield rows, torch.from_numpy(index.search(pad(asked[rows], (0, short)).numpy(), wanted)[1])


def _fitted(faiss: Any, columns: Tensor) -> Any:
    """Returns an index that holds the rows: as they are where they are short, else 4 bits for 2 or 4 features each."""
    rows, width = columns.shape
    cells = 2 ** round(math.log2(2 * rows**0.5))
    short = -width % 4
    code = "Flat" if width <= _SHORT else f"PQ{(width + short) // (2 if width <= 4 * _SHORT else 4)}x4fs"
    index = faiss.index_factory(width + short, f"IVF{cells},{code}", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(_PROBED, cells)
    index.cp.niter, index.cp.spherical = 8, True
    index.cp.min_points_per_centroid = 1  # no warning where rows are few
    index.cp.max_points_per_centroid = _ROWS_PER_CELL
    some = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[: max(_ROWS_PER_CELL * cells, FEWEST)]
    index.train(pad(columns[some], (0, short)).numpy())
    for part in columns.split(_AT_ONCE):
        index.add(pad(part, (0, short)).numpy())
    return index
