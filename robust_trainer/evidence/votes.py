"""The votes of a row's neighbours on its label."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .neighbours import Neighbours, check_mask, check_whole


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
    check_whole("classes", classes)
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


def _check_labels(labels: Any, rows: int, classes: int, among: Any) -> tuple[Tensor, Tensor | None]:
    """Returns labels (rows,) int64 with 0 for those that do not count, and which count, None for all."""
    given = torch.as_tensor(np.array(labels) if not isinstance(labels, Tensor) else labels).cpu()
    if given.dtype.is_floating_point or given.dtype.is_complex or tuple(given.shape) != (rows,):
        raise ValueError(f"labels are {given.dtype} of shape {tuple(given.shape)}, expected class numbers ({rows},).")
    given = given.long()
    trusted = None if among is None else check_mask(among, rows)
    outside = (given < 0) | (given >= classes) if trusted is None else ((given < 0) | (given >= classes)) & trusted
    if bool(outside.any()):
        row = int(outside.nonzero()[0, 0])
        raise ValueError(f"label {int(given[row])} of row {row}, expected a class number in [0, {classes}): mend it or use among.")
    return (given if trusted is None else given.masked_fill(~trusted, 0)), trusted
