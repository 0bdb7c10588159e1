"""Some rows of a batch, whatever its inputs are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def rows_of(inputs: Mapping[str, Any], rows: Tensor | slice, size: int) -> dict[str, Any]:
    """Returns a batch's inputs, cut to some of its rows; what has no entry for each row stays as it is.

    Args:
        inputs: tensors, arrays, lists and tuples, and mappings of these.
        rows: bool (B,), numbers, some of them more than once perhaps, or a slice.
        size: B.
    """
    return {name: _cut(value, rows, size) for name, value in inputs.items()}


def _cut(value: Any, rows: Tensor | slice, size: int) -> Any:
    if isinstance(value, Mapping):
        return rows_of(value, rows, size)
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and len(value) == size else value
    if isinstance(value, np.ndarray):
        chosen = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return value[chosen] if value.ndim and len(value) == size else value
    if not isinstance(value, list | tuple):
        return value
    if len(value) == size:
        numbers = range(size)[rows] if isinstance(rows, slice) else torch.arange(size)[rows.cpu()].tolist()
        parts = [value[number] for number in numbers]
    else:  # may be several tensors, each with all rows
        parts = [_cut(part, rows, size) if isinstance(part, Tensor | np.ndarray) else part for part in value]
    return parts if isinstance(value, list) else tuple(parts)
