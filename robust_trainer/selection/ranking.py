"""Ranks of scores within groups. A stable order: ties go by position, NaN comes last."""

from __future__ import annotations

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


def smallest(scores: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Returns which samples are among the ``counts[k]`` smallest scores of their class k, bool (n,).

    Args:
        scores: (n,); NaN counts as infinity.
        labels: the classes (n,).
        counts: how many of each class, int64 (C,).
    """
    rank, _ = rank_within(scores.nan_to_num(nan=torch.inf), labels, len(counts))
    return rank < counts.to(labels.device)[labels]


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
