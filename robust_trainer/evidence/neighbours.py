"""Nearest neighbours of rows of features by cosine similarity, in a data set or across two.

``N`` rows of ``D`` features; the search holds a tile of similarities at a time, never all N x N of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .approximate import FEWEST, approximate_neighbours, load_faiss
from .exact import exact_neighbours, full_precision, wide_type

INDEXES = ("auto", "exact", "approximate")
#: Pairs of rows up to which ``auto`` searches exactly, on a CPU and on an accelerator: 200,000 and 2 million rows.
MOST_PAIRS, MOST_PAIRS_ON_ACCELERATOR = 200_000**2, 2_000_000**2
#: Bytes of similarities that are held at a time.
CHUNK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Neighbours:
    """The k most similar rows of each row, the most similar first, equally similar ones by row number. On the CPU.

    Attributes:
        index: row numbers of the neighbours among the rows searched, (N, k) int64.
        similarity: cosine similarity in [-1, 1], (N, k) float32; 0 to and from rows that are all zero.
        searched: number of rows that were searched.
        within: whether the N rows are themselves the rows searched; then no row is its own neighbour.
    """

    index: Tensor
    similarity: Tensor
    searched: int
    within: bool

    def __len__(self) -> int:
        return len(self.index)


@torch.no_grad()
def normalise(features: np.ndarray | Tensor, *, centre: Tensor | None = None, device: str | torch.device | None = None) -> Tensor:
    """Returns the rows, centred and scaled to length 1, (N, D) float32: their scalar products are cosine similarities.

    A row that equals the centre has no direction and becomes zeros; nothing is similar to it.

    Args:
        features: (N, D), finite numbers; a numpy array or a tensor, float16 as well, on any device.
        centre: (D,), subtracted from each row (``centre_of`` other rows, for instance); None: the mean row.
        device: of the result; None: the features' own.

    Raises:
        ValueError: unless features are a finite (N, D) table, and the centre a finite (D,).
    """
    features = _check_table(features, "features")
    if centre is None:
        centre = centre_of(features)
    elif tuple(centre.shape) != (features.shape[1],) or not bool(torch.isfinite(centre).all()):
        raise ValueError(f"centre is of shape {tuple(centre.shape)}, expected {features.shape[1]} finite numbers: see centre_of.")
    return _normalise(features, "features", centre, device)


def _normalise(features: Any, name: str, centre: Tensor, device: Any) -> Tensor:
    """Returns what `normalise` does; the name is for messages."""
    device = torch.device(device) if device is not None else _device_of(features)
    rows = torch.empty(features.shape, dtype=torch.float32, device=device)
    for start, block in _blocks(features, name, device):
        wide = block.to(wide_type(block.device))
        middle = centre.to(wide)
        away = wide - middle
        length = away.norm(dim=1, keepdim=True)
        still = length <= 1e-6 * (wide.norm(dim=1, keepdim=True) + middle.norm())  # what rounding leaves of a row at the centre
        rows[start : start + len(block)] = torch.where(still, 0.0, away / length.masked_fill(still, 1.0))
    return rows


@torch.no_grad()
def centre_of(features: np.ndarray | Tensor) -> Tensor:
    """Returns the mean row, (D,) float64, on the CPU.

    Args:
        features: (N, D), as `normalise` takes them.

    Raises:
        ValueError: unless features are a finite (N, D) table.
    """
    features = _check_table(features, "features")
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for _, block in _blocks(features, "features", _device_of(features)):
        total += block.to(wide_type(block.device)).sum(0).cpu().double()
    return total / len(features)


@torch.no_grad()
def find_neighbours(
    features: np.ndarray | Tensor,
    k: int,
    *,
    queries: np.ndarray | Tensor | None = None,
    among: np.ndarray | Tensor | None = None,
    index: str = "auto",
    normalised: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    device: str | torch.device | None = None,
) -> Neighbours:
    """Returns the k nearest neighbours of each row by cosine similarity, after the features' mean row was subtracted.

    The exact search computes similarities in float32, and those that may be among the k once more in float64. Its result depends
    neither on the size of the chunks nor on the order in which the rows are visited. The approximate search finds candidates by an
    inverted index on the CPU (faiss, the extra ``neighbours``) and computes their similarities in float64 as well; it misses a few
    neighbours, mostly late ones, and of equally similar rows it may name others than the first.

    Args:
        features: the rows to search, (N, D), finite; a numpy array or a tensor, float16 as well, on any device.
        k: neighbours of each row, >= 1; fewer are returned where there are not so many other rows.
        queries: rows whose neighbours among ``features`` are sought, (Q, D), such as another split's; None: the features
            themselves, each row's own place left out.
        among: bool (N,), the rows of ``features`` that may be neighbours; None: all.
        index: ``exact``, ``approximate`` (exact nevertheless below 4,096 rows), or ``auto``: exact up to 200,000 rows on a CPU and
            2 million on an accelerator.
        normalised: True: rows are `normalise`'s already and are taken as they are.
        chunk_bytes: bytes of similarities that are held at a time.
        device: where to search; None: where the features are. The result is on the CPU.

    Raises:
        ValueError: for features that are no finite (N, D) table, settings out of range, and where the extra is needed and missing.
    """
    if index not in INDEXES:
        raise ValueError(f"index={index!r}, expected one of {', '.join(INDEXES)}.")
    check_whole("k", k)
    check_whole("chunk_bytes", chunk_bytes)
    features = _check_table(features, "features")
    width = features.shape[1]
    if queries is not None:
        queries = _check_table(queries, "queries")
        if queries.shape[1] != width:
            raise ValueError(f"queries have {queries.shape[1]} features and the rows searched {width}: give both of one encoder.")
    allowed = None if among is None else check_mask(among, len(features)).nonzero()[:, 0]
    if allowed is not None and not len(allowed):
        raise ValueError("among marks no row, expected at least one that may be a neighbour.")
    across = len(features) if allowed is None else len(allowed)
    where = torch.device(device) if device is not None else _device_of(features)
    if index == "auto":
        most = MOST_PAIRS if where.type == "cpu" else MOST_PAIRS_ON_ACCELERATOR
        index = "exact" if len(features if queries is None else queries) * across <= most else "approximate"
    if index == "approximate":
        load_faiss()  # fails before work starts
    if normalised:
        base = _as_normalised(features, "features", device)
        asked = None if queries is None else _as_normalised(queries, "queries", device)
    else:
        centre = centre_of(features)
        base = _normalise(features, "features", centre, device)
        asked = None if queries is None else _normalise(queries, "queries", centre, device)
    columns = base if allowed is None else base[allowed.to(base.device)]
    own = None
    if asked is None:
        own = torch.arange(len(base))
        if allowed is not None:  # the place of each row among the columns, -1 where it is not there
            own = torch.full((len(base),), -1).index_put((allowed,), torch.arange(len(allowed)))
    k = min(k, len(columns) - (own is not None))
    with full_precision(base.device):
        search = approximate_neighbours if index == "approximate" and across >= FEWEST else exact_neighbours
        number, similarity = search(base if asked is None else asked.to(base.device), columns, own, k, chunk_bytes)
    return Neighbours(number if allowed is None else allowed[number], similarity, len(base), own is not None)


def _blocks(features: Any, name: str, device: torch.device, rows: int = 16384) -> Iterator[tuple[int, Tensor]]:
    """Yields the first row's number and rows in float32 on the device, some at a time; refuses rows that are not finite."""
    for start in range(0, len(features), rows):
        block = features[start : start + rows]
        if isinstance(block, Tensor):
            block = block.detach()
        else:
            with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is refused
                block = torch.from_numpy(np.array(block, dtype=np.float32))
        block = block.to(device=device, dtype=torch.float32)
        bad = ~torch.isfinite(block).all(1)
        if bool(bad.any()):
            row = start + int(bad.nonzero()[0, 0])
            raise ValueError(f"{name}: row {row} holds NaN or infinity, expected finite numbers: leave such rows out.")
        yield start, block


def _as_normalised(features: Any, name: str, device: Any) -> Tensor:
    """Returns rows that `normalise` made, on the device."""
    device = torch.device(device) if device is not None else _device_of(features)
    rows = torch.empty(features.shape, dtype=torch.float32, device=device)
    for start, block in _blocks(features, name, device):
        if bool((block.norm(dim=1) > 1.01).any()):
            raise ValueError(f"{name} hold rows longer than 1, expected those that normalise returns: leave normalised=True out.")
        rows[start : start + len(block)] = block
    return rows


def _device_of(features: Any) -> torch.device:
    return features.device if isinstance(features, Tensor) else torch.device("cpu")


def _check_table(features: Any, name: str) -> Any:
    """Returns the features, an array or a tensor of numbers, (N, D)."""
    if not isinstance(features, np.ndarray | Tensor):
        raise ValueError(f"{name} are of type {type(features).__name__}, expected a numpy array or a tensor (rows, features).")
    shape = tuple(features.shape)
    if len(shape) != 2 or not shape[0] or not shape[1]:
        raise ValueError(f"{name} are of shape {shape}, expected (rows, features), one row at least: flatten further axes.")
    real = not features.is_complex() if isinstance(features, Tensor) else features.dtype.kind in "fiub"
    if not real:
        raise ValueError(f"{name} are of dtype {features.dtype}, expected real numbers: float16 or float32.")
    return features


def check_mask(among: Any, rows: int) -> Tensor:
    """Returns a mask of rows, (rows,) bool, on the CPU.

    Args:
        among: as given.
        rows: that it must have.

    Raises:
        ValueError: for what is no such mask.
    """
    mask = torch.as_tensor(np.array(among) if not isinstance(among, Tensor) else among).cpu()
    if mask.dtype != torch.bool or tuple(mask.shape) != (rows,):
        raise ValueError(f"among is {mask.dtype} of shape {tuple(mask.shape)}, expected bool ({rows},): one for each row searched.")
    return mask


def check_whole(name: str, value: Any) -> None:
    """Checks that a setting is a whole number >= 1.

    Args:
        name: of the setting.
        value: as given.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r}, expected a whole number >= 1.")
