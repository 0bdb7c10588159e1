"""Exact search for the most similar rows: tile by tile in float32, and what may be among the k once more in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_COLUMNS = 32768  # of a tile
_CACHED = 32 * 2**20  # bytes of a work array on a CPU: larger ones come from new pages each time
_SPARE = 8  # candidates beyond k, so that rounding in the fast search does not decide who is among the k
_LOW = 0xFFFFFFFF  # the half of a sort key that holds the row number


def exact_neighbours(asked: Tensor, columns: Tensor, own: Tensor | None, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Returns for each row asked the k most similar columns and their similarity, (Q, k) int64 and float32, on the CPU.

    Args:
        asked: rows whose neighbours are sought, of length 1, (Q, D).
        columns: rows that may be neighbours, of length 1, (N, D), on the same device.
        own: each row's own place among the columns, which is left out, (Q,) on the CPU, -1 where it is not there; None: no row is.
        k: how many, as many as there are at most.
        chunk_bytes: bytes of similarities that are held at a time.
    """
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
        found, exact = best_of(rows, columns, candidate, value > -2.0, k, chunk_bytes)
        if wanted < len(columns) and k:
            close = (value[:, k - 1] - value[:, -1] <= 2 * noise).nonzero()[:, 0]  # others may be as similar as the k-th
            if len(close):
                found[close], exact[close] = _slow(rows[close], columns, None if place is None else place[close], k, chunk_bytes)
        index.append(found.cpu())
        similarity.append(exact.cpu())
    return torch.cat(index), torch.cat(similarity)


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


def best_of(rows: Tensor, columns: Tensor, candidate: Tensor, real: Tensor, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Returns the k best of the candidates in order and their similarity, by float64; candidates not ``real`` come last.

    Args:
        rows: (n, D).
        columns: (N, D).
        candidate: numbers of columns, (n, c).
        real: bool (n, c).
        k: how many.
        chunk_bytes: as of `exact_neighbours`.
    """
    index, similarity = [], []
    wide, width = wide_type(rows.device), columns.shape[1]
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
    """Returns what `exact_neighbours` does, all of it in float64: for rows with many neighbours of one and the same similarity."""
    across = min(_COLUMNS // 8, len(columns), max(1, chunk_bytes // 24))
    high = max(1, chunk_bytes // (24 * across))
    index, similarity = [], []
    for part in torch.arange(len(rows), device=rows.device).split(high):
        wide, best = rows[part].to(wide_type(rows.device)), None
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


def wide_type(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 where a device has no more.

    Args:
        device: of the numbers.
    """
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products of float32 in float32, whatever shortcuts (TF32, bfloat16, autocast) the run allows.

    Args:
        device: where they are computed.
    """
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
