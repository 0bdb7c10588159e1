"""Nearest neighbours of rows of features by cosine similarity, and their votes on the rows' labels.

``N`` rows of ``D`` features; the search holds a tile of similarities at a time, never all N x N of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .approximate import FEWEST, candidates, load_faiss

INDEXES = ("auto", "exact", "approximate")
#: Pairs of rows up to which ``auto`` searches exactly, on a CPU and on an accelerator: 200,000 and 2 million rows.
MOST_PAIRS, MOST_PAIRS_ON_ACCELERATOR = 200_000**2, 2_000_000**2
#: Bytes of similarities that are held at a time.
CHUNK_BYTES = 128 * 2**20
_COLUMNS = 32768  # of a tile
_CACHED = 32 * 2**20  # bytes of a work array on a CPU: larger ones come from new pages each time
_SPARE = 8  # candidates beyond k, so that rounding in the fast search does not decide who is among the k
_MORE = 60  # and in the approximate search, so that rounding in its codes does not
_LOW = 0xFFFFFFFF  # the half of a sort key that holds the row number


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
        wide = block.to(_wide(block.device))
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
        total += block.to(_wide(block.device)).sum(0).cpu().double()
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
    _check_whole("k", k)
    _check_whole("chunk_bytes", chunk_bytes)
    features = _check_table(features, "features")
    width = features.shape[1]
    if queries is not None:
        queries = _check_table(queries, "queries")
        if queries.shape[1] != width:
            raise ValueError(f"queries have {queries.shape[1]} features and the rows searched {width}: give both of one encoder.")
    allowed = None if among is None else _check_mask(among, len(features)).nonzero()[:, 0]
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
    with _full_precision(base.device):
        search = _approximate if index == "approximate" and across >= FEWEST else _exact
        number, similarity = search(base if asked is None else asked.to(base.device), columns, own, k, chunk_bytes)
    return Neighbours(number if allowed is None else allowed[number], similarity, len(base), own is not None)


@torch.no_grad()
def vote(neighbours: Neighbours, labels: np.ndarray | Tensor, classes: int, among: np.ndarray | Tensor | None = None) -> Tensor:
    """Returns each class's share of the neighbours' votes on each row, (N, C) float32: a row sums to 1, or to 0 where nobody votes.

    A neighbour's vote for its own label weighs as much as its similarity; those of negative similarity have none.

    Args:
        neighbours: of each row.
        labels: class numbers of the rows searched.
        classes: C, >= 1.
        among: bool, the rows searched whose votes count, the trusted ones for instance; None: all. Labels of others are not read.

    Raises:
        ValueError: for labels or ``among`` of another length, and labels that count and are no class number in [0, C).
    """
    _check_whole("classes", classes)
    labels, trusted = _check_labels(labels, neighbours.searched, classes, among)
    shares = torch.zeros(len(neighbours), classes)
    for start in range(0, len(neighbours), 65536):
        rows = slice(start, start + 65536)
        shares[rows].scatter_add_(1, labels[neighbours.index[rows]], _weights(neighbours, rows, trusted))
    return shares.div_(shares.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))


def _weights(neighbours: Neighbours, rows: slice, trusted: Tensor | None) -> Tensor:
    """Returns what the votes of these rows' neighbours weigh, (n, k)."""
    weight = neighbours.similarity[rows].clamp_min(0.0)
    return weight if trusted is None else weight * trusted[neighbours.index[rows]]


def _exact(asked: Tensor, columns: Tensor, own: Tensor | None, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Returns for each row asked the k most similar columns and their similarity, (Q, k) int64 and float32, on the CPU."""
    across = min(_COLUMNS, len(columns), max(1, chunk_bytes // 4))
    high = max(1, min(len(asked), chunk_bytes // (4 * across)))
    wanted = min(k + _SPARE, len(columns))
    noise = 4 * columns.shape[1] ** 0.5 * 2.0**-24  # of a similarity in float32
    room = columns.new_empty(high * across)  # one array for all tiles: new ones cost a third more time
    index, similarity = [], []
    for start in range(0, len(asked), high):
        rows = asked[start : start + high]
        place = None if own is None else own[start : start + high].to(rows.device)
        value, candidate = _fast(rows, columns, place, wanted, room, across)
        found, exact = _sharp(rows, columns, candidate, value > -2.0, k, chunk_bytes)
        if wanted < len(columns) and k:
            close = (value[:, k - 1] - value[:, -1] <= 2 * noise).nonzero()[:, 0]  # others may be as similar as the k-th
            if len(close):
                found[close], exact[close] = _slow(rows[close], columns, None if place is None else place[close], k, chunk_bytes)
        index.append(found.cpu())
        similarity.append(exact.cpu())
    return torch.cat(index), torch.cat(similarity)


def _approximate(asked: Tensor, columns: Tensor, own: Tensor | None, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Returns what `_exact` does, but for neighbours that the index misses; some candidates more than k are compared in float64."""
    index = torch.zeros(len(asked), k, dtype=torch.int64)
    similarity = torch.zeros(len(asked), k)
    lacking = []
    for rows, candidate in candidates(asked.cpu(), columns.cpu(), min(k + max(k, _MORE), len(columns))):
        real = candidate >= 0
        if own is not None:
            real &= candidate != own[rows, None]
        lacking.append(rows[real.sum(1) < k])
        there = [part.to(asked.device) for part in (rows, candidate.clamp_min(0), real)]
        found, exact = _sharp(asked[there[0]], columns, there[1], there[2], k, chunk_bytes)
        index[rows], similarity[rows] = found.cpu(), exact.cpu()
    if len(rest := torch.cat(lacking)):
        place = None if own is None else own[rest]
        index[rest], similarity[rest] = _exact(asked[rest.to(asked.device)], columns, place, k, chunk_bytes)
    return index, similarity


def _fast(rows: Tensor, columns: Tensor, place: Tensor | None, wanted: int, room: Tensor, across: int) -> tuple[Tensor, Tensor]:
    """Returns similarities in float32 and numbers of the most similar columns, in descending order; the own column has -3."""
    value = rows.new_full((len(rows), 0), 0.0)
    number = torch.zeros(len(rows), 0, dtype=torch.int64, device=rows.device)
    for start in range(0, len(columns), across):
        block = columns[start : start + across]
        tile = torch.mm(rows, block.T, out=room[: len(rows) * len(block)].view(len(rows), len(block)))
        _hide(tile, place, start, -3.0)
        best, at = tile.topk(min(wanted, tile.shape[1]), dim=1)
        value, number = torch.cat([value, best], 1), torch.cat([number, at + start], 1)
        if value.shape[1] > wanted:
            value, at = value.topk(wanted, dim=1)
            number = number.gather(1, at)
    value, at = value.sort(1, descending=True)
    return value, number.gather(1, at)


def _sharp(rows: Tensor, columns: Tensor, candidate: Tensor, real: Tensor, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Returns the k best of the candidates in order and their similarity, by float64; candidates not ``real`` come last."""
    index, similarity = [], []
    wide, width = _wide(rows.device), columns.shape[1]
    most = min(chunk_bytes, _CACHED) if rows.device.type == "cpu" else chunk_bytes
    size = max(1, most // (12 * max(1, candidate.shape[1]) * width))
    for part in torch.arange(len(rows), device=rows.device).split(size):
        near = columns.index_select(0, candidate[part].flatten()).view(len(part), -1, width)
        exact = torch.bmm(near.to(wide), rows[part].to(wide)[:, :, None])[:, :, 0]
        key = _sort_key(exact, candidate[part]).masked_fill(~real[part], torch.iinfo(torch.int64).min)
        number, value = _from_key(key.sort(1, descending=True)[0][:, :k])
        index.append(number)
        similarity.append(value)
    return torch.cat(index), torch.cat(similarity)


def _slow(rows: Tensor, columns: Tensor, place: Tensor | None, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Returns what `_exact` does, all of it in float64: for rows with many neighbours of one and the same similarity."""
    across = min(_COLUMNS // 8, len(columns), max(1, chunk_bytes // 24))
    high = max(1, chunk_bytes // (24 * across))
    index, similarity = [], []
    for part in torch.arange(len(rows), device=rows.device).split(high):
        wide, best = rows[part].to(_wide(rows.device)), None
        for start in range(0, len(columns), across):
            block = columns[start : start + across]
            numbers = torch.arange(start, start + len(block), device=rows.device)
            key = _sort_key(wide @ block.to(wide).T, numbers)
            _hide(key, None if place is None else place[part], start, torch.iinfo(torch.int64).min)
            key = key if best is None else torch.cat([best, key], 1)
            best = key.topk(min(k, key.shape[1]), dim=1)[0]
        assert best is not None
        number, value = _from_key(best.sort(1, descending=True)[0])
        index.append(number)
        similarity.append(value)
    return torch.cat(index), torch.cat(similarity)


def _hide(tile: Tensor, place: Tensor | None, start: int, value: float) -> None:
    """Writes the value into each row's own column, where the tile (columns from ``start`` on) has it."""
    if place is not None:
        here = ((place >= start) & (place < start + tile.shape[1])).nonzero()[:, 0]
        tile[here, place[here] - start] = value


def _sort_key(similarity: Tensor, number: Tensor) -> Tensor:
    """Returns int64 keys that sort by similarity, rounded to float32, and where that is equal by the smaller number first."""
    bits = similarity.clamp(-1.0, 1.0).float().view(torch.int32).long()
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return (ordered << 32) + (_LOW - number)


def _from_key(key: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the numbers and the similarities in float32 of keys."""
    ordered = key >> 32
    bits = torch.where(ordered < 0, -ordered, ordered).int().view(torch.float32)
    return _LOW - (key & _LOW), torch.where(ordered < 0, -bits, bits)


def _wide(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 where a device has no more."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Products of float32 in float32, whatever shortcuts (TF32, bfloat16, autocast) the run allows."""
    newer = hasattr(torch.backends, "fp32_precision")
    products: list[Any] = [getattr(torch.backends, name).matmul for name in ("cuda", "mkldnn")] if newer else []
    # torch >= 2.9 refuses the older question where a run, such as the Trainer's with tf32=True, has answered the newer one
    before = [p.fp32_precision for p in products] if newer else [torch.get_float32_matmul_precision()]
    try:
        for product in products:
            product.fp32_precision = "ieee"
        if not newer:
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for product, precision in zip(products, before, strict=False):
            product.fp32_precision = precision
        if not newer:
            torch.set_float32_matmul_precision(before[0])


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


def _check_mask(among: Any, rows: int) -> Tensor:
    """Returns a mask of rows, (rows,) bool, on the CPU."""
    mask = torch.as_tensor(np.array(among) if not isinstance(among, Tensor) else among).cpu()
    if mask.dtype != torch.bool or tuple(mask.shape) != (rows,):
        raise ValueError(f"among is {mask.dtype} of shape {tuple(mask.shape)}, expected bool ({rows},): one for each row searched.")
    return mask


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r}, expected a whole number >= 1.")


def _check_labels(labels: Any, rows: int, classes: int, among: Any) -> tuple[Tensor, Tensor | None]:
    """Returns labels (rows,) int64 with 0 for those that do not count, and which count, None for all."""
    given = torch.as_tensor(np.array(labels) if not isinstance(labels, Tensor) else labels).cpu()
    if given.dtype.is_floating_point or given.dtype.is_complex or tuple(given.shape) != (rows,):
        raise ValueError(f"labels are {given.dtype} of shape {tuple(given.shape)}, expected class numbers ({rows},).")
    given = given.long()
    trusted = None if among is None else _check_mask(among, rows)
    outside = (given < 0) | (given >= classes) if trusted is None else ((given < 0) | (given >= classes)) & trusted
    if bool(outside.any()):
        row = int(outside.nonzero()[0, 0])
        raise ValueError(f"label {int(given[row])} of row {row}, expected a class number in [0, {classes}): mend it or use among.")
    return (given if trusted is None else given.masked_fill(~trusted, 0)), trusted
