"""Class-rebalanced selection: how many samples of each class to trust (paper 003 "ERAT", eq. 3 to 5).

The score of a class is the mean score of its samples, S_k; its rate R_k = (1 - S_k)^eta / sum_j (1 - S_j)^eta (eq. 4); of a budget
of n samples it gets d_k = n R_k (eq. 5), but no more than it has. What a class cannot supply is handed on to the others by their
rates, which the authors' code does not do (there the selection just gets smaller).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: (1 - S_k) of eq. 4 is no number to take a power of where S_k > 1, and eq. 1's score goes up to 2.
FLOOR = 1e-3


def class_scores(scores: Tensor, labels: Tensor, member: Tensor, classes: int) -> Tensor:
    """The mean score of each class over the samples of which ``member`` (n,) is true, (C,) (paper 003 eq. 3).

    Of a class without such samples: over all that it has; NaN for a class that has none.
    """

    def mean(chosen: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.zeros(classes, dtype=scores.dtype, device=scores.device).scatter_add_(0, labels, chosen)
        return torch.zeros_like(count).scatter_add_(0, labels, scores * chosen) / count, count

    among, count = mean(member.to(scores.dtype))
    return torch.where(count > 0, among, mean(torch.ones_like(scores))[0])


def sampling_rates(class_score: Tensor, eta: float) -> Tensor:
    """R_k of each class, (C,), summing to 1; 0 for a class of score NaN (paper 003 eq. 4; 1 - S_k at least FLOOR)."""
    share = torch.where(class_score.isnan(), torch.zeros_like(class_score), (1.0 - class_score).clamp_min(FLOOR) ** eta)
    return share / share.sum().clamp_min(1e-30)


def allocate(budget: Tensor, rates: Tensor, capacity: Tensor) -> Tensor:
    """min(capacity, level x rates) of each class, (C,), with the level at which they sum to the budget. Real numbers, no host sync.

    budget: scalar of at most capacity's sum. Classes are filled up in the order in which they run out.
    """
    order = torch.argsort(capacity / rates.clamp_min(1e-30), stable=True)
    size, rate = capacity[order], rates[order]
    before = size.cumsum(0) - size
    still = rate.flip(0).cumsum(0).flip(0).clamp_min(1e-30)
    level = (budget - before) / still
    reached = (rate > 0) & (level * rate <= size + 1e-9)  # this class, and so all after it, can supply its share
    first = reached.to(torch.int32).argmax()
    last = torch.where(reached.any(), level[first], torch.full_like(level[first], torch.inf))
    return torch.where(rates > 0, torch.minimum(capacity, last * rates), torch.zeros_like(rates))


def allocate_integers(budget: int, rates: Tensor, capacity: Tensor) -> Tensor:
    """`allocate` in whole samples, int64 (C,), summing to the budget: what rounding down leaves goes to the largest remainders."""
    exact = allocate(torch.tensor(float(budget), dtype=torch.float64), rates.double().cpu(), capacity.double().cpu())
    whole = (exact + 1e-9).floor()
    left = budget - int(whole.sum())
    room = torch.where(whole < capacity.double().cpu(), exact - whole, torch.full_like(exact, -1.0))
    whole[torch.argsort(room, descending=True, stable=True)[:left]] += 1
    return torch.minimum(whole, capacity.double().cpu()).long()


def smallest(scores: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Which samples are among the ``counts[k]`` smallest scores of their class k, bool (n,); ties go by position, NaN last."""
    order = torch.argsort(scores.nan_to_num(nan=torch.inf), stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels, minlength=len(counts))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[labels[order]]
    return rank < counts.to(labels.device)[labels]


def minmax(scores: Tensor) -> Tensor:
    """The scores moved and stretched to [0, 1]; NaN and infinity become 1."""
    finite = scores.isfinite()
    low = torch.where(finite, scores, torch.full_like(scores, torch.inf)).min()
    high = torch.where(finite, scores, torch.full_like(scores, -torch.inf)).max()
    return torch.where(finite, (scores - low) / (high - low).clamp_min(1e-30), torch.ones_like(scores))
