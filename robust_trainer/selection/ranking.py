"""Ranks of scores within groups. A stable order: ties go by position, NaN comes last."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..data.randomness import keyed_seed


def rank_within(scores: Tensor, groups: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Returns the 0-based rank of each score among those of its group, and the sizes of the groups.

    Args:
        scores: any shape.
        groups: the group of each score, int64 in [0, total), of the same shape.
        total: number of groups.

    Returns:
        Ranks int64, of the scores' shape, and sizes (total,) in `share_dtype`.
    """
    flat_scores, flat_groups = scores.flatten(), groups.flatten()
    order = torch.argsort(flat_scores, stable=True)
    order = order[torch.argsort(flat_groups[order], stable=True)]
    count = torch.zeros(total, dtype=share_dtype(scores.device), device=scores.device)
    count.scatter_add_(0, flat_groups, torch.ones_like(flat_groups, dtype=count.dtype))
    start = (count.cumsum(0) - count).long()
    position = torch.arange(flat_scores.numel(), device=scores.device)
    rank = torch.empty_like(position)
    rank[order] = position - start[flat_groups[order]]
    return rank.view(scores.shape), count


def smallest(scores: Tensor, labels: Tensor, counts: Tensor, ties: Callable[[], Tensor] | None = None) -> Tensor:
    """Returns which samples are among the ``counts[k]`` smallest scores of their class k, bool (n,).

    Of float32 one sort of 64 bits a sample tells the largest score that is kept of each class: of a whole data set it takes a
    fraction of the time and the memory of ranks.

    Args:
        scores: (n,); NaN counts as infinity.
        labels: the classes (n,), int64 in [0, C).
        counts: how many of each class, int64 (C,).
        ties: called for the order (n,) in which equal scores are ranked, where it matters; None: by position.
    """
    scores, counts = scores.nan_to_num(nan=torch.inf), counts.to(labels.device)
    if scores.dtype != torch.float32 or scores.device.type == "mps":
        order = torch.arange(len(scores), device=scores.device) if ties is None else ties()
        keep = torch.zeros_like(labels, dtype=torch.bool)
        keep[order] = rank_within(scores[order], labels[order], len(counts))[0] < counts[labels[order]]
        return keep
    key = (labels << 32) + _in_order(scores)
    ordered = torch.from_numpy(np.sort(key.numpy())) if key.device.type == "cpu" else key.sort().values
    sizes = torch.bincount(labels, minlength=len(counts))
    counts = counts.clamp_min(0).minimum(sizes)
    none = torch.iinfo(torch.int64).min
    place = (sizes.cumsum(0) - sizes + counts - 1).clamp_min(0)
    largest = torch.where(counts > 0, ordered[place], none) if len(ordered) else torch.full_like(counts, none)
    del ordered
    largest = largest[labels]
    keep = key <= largest
    surplus = torch.bincount(labels[keep], minlength=len(counts)) - counts
    if bool((surplus > 0).any()):
        rows = ((key == largest) & (surplus > 0)[labels]).nonzero().flatten()
        if ties is not None:
            tied = torch.zeros_like(keep)
            tied[rows] = True
            order = ties()
            rows = order[tied[order]]
        classes = labels[rows]
        last = torch.arange(len(rows), 0, -1, device=rows.device)
        keep[rows[rank_within(last, classes, len(counts))[0] < surplus[classes]]] = False
    return keep


def _in_order(scores: Tensor) -> Tensor:
    """Integers in the order of finite or infinite float32 scores, int64 in [-2**31, 2**31)."""
    bits = (scores + 0.0).view(torch.int32)  # so that -0.0 is 0.0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


def minmax(scores: Tensor) -> Tensor:
    """Returns the scores moved and stretched to [0, 1]; NaN and infinity become 1."""
    finite = scores.isfinite()
    low = torch.where(finite, scores, torch.full_like(scores, torch.inf)).min()
    high = torch.where(finite, scores, torch.full_like(scores, -torch.inf)).max()
    return torch.where(finite, (scores - low) / (high - low).clamp_min(1e-30), torch.ones_like(scores))


def share_dtype(device: torch.device) -> torch.dtype:
    """Returns the type that shares of groups are counted in: float64, but for Apple's MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def tie_order(size: int, seed: int, device: torch.device) -> Tensor:
    """Returns an order of ``size`` samples, drawn by the seed, in which equal scores of a whole data set are ranked.

    By position, the last rows would go: of a data set that is sorted by class, the last classes.

    Args:
        size: number of samples.
        seed: of the run.
        device: where the scores are.
    """
    return torch.randperm(size, generator=torch.Generator().manual_seed(keyed_seed("ties", seed))).to(device)
