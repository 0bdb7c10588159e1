"""Class-rebalanced selection: how many samples of each class to keep.

The score of a class is the mean score of its samples, S_k; its rate R_k = (1 - S_k)^eta / sum_j (1 - S_j)^eta (ERAT eq. 4); of a
budget of n samples it gets d_k = n R_k (eq. 5), but no more than it has. What a class cannot supply is handed on to the others by
their rates, which the authors' code does not do (there the selection just gets smaller).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ranking import minmax

#: A class is rare where it has fewer samples than this part of what classes have on average.
RARE = 0.5
#: Samples of each class that are kept whatever their scores, where a class is rare (docs/background/decisions.md).
CLASS_FLOOR = 10
#: (1 - S_k) of eq. 4 is no number to take a power of where S_k > 1, and eq. 1's score goes up to 2.
FLOOR = 1e-3


def class_scores(scores: Tensor, labels: Tensor, member: Tensor, classes: int) -> Tensor:
    """Returns the mean score of each class, (C,), over its member samples.

    Args:
        scores: (n,).
        labels: the classes (n,).
        member: bool (n,), which samples count. Of a class without such samples all count.
        classes: C, the number of classes.

    Returns:
        S_k, (C,); NaN for a class that has no sample.

    References:
        ERAT eq. 3.
    """

    def mean(chosen: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.zeros(classes, dtype=scores.dtype, device=scores.device).scatter_add_(0, labels, chosen)
        return torch.zeros_like(count).scatter_add_(0, labels, scores * chosen) / count, count

    among, count = mean(member.to(scores.dtype))
    return torch.where(count > 0, among, mean(torch.ones_like(scores))[0])


def sampling_rates(class_score: Tensor, eta: float) -> Tensor:
    """Returns R_k of each class, (C,), summing to 1.

    Args:
        class_score: S_k, (C,); a class of score NaN gets rate 0. 1 - S_k counts as at least FLOOR.
        eta: in [0, 1]; 0 gives all classes the same rate.

    References:
        ERAT eq. 4.
    """
    share = torch.where(class_score.isnan(), torch.zeros_like(class_score), (1.0 - class_score).clamp_min(FLOOR) ** eta)
    return share / share.sum().clamp_min(1e-30)


def allocate(budget: Tensor, rates: Tensor, capacity: Tensor) -> Tensor:
    """Returns how much each class gives, (C,): min(capacity, level x rates), with the level at which they sum to the budget.

    Classes are filled up in the order in which they run out. Real numbers, without a host sync.

    Args:
        budget: scalar, at most the sum of the capacities.
        rates: of each class, (C,), >= 0.
        capacity: what each class has, (C,).

    References:
        ERAT eq. 5, with what a class cannot supply handed on.
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
    """Returns `allocate` in whole samples, int64 (C,), summing to the budget.

    What rounding down leaves goes to the largest remainders.

    Args:
        budget: at most the sum of the capacities.
        rates: of each class, (C,), >= 0.
        capacity: the number of samples of each class, (C,).
    """
    exact = allocate(torch.tensor(float(budget), dtype=torch.float64), rates.double().cpu(), capacity.double().cpu())
    whole = (exact + 1e-9).floor()
    left = budget - int(whole.sum())
    room = torch.where(whole < capacity.double().cpu(), exact - whole, torch.full_like(exact, -1.0))
    whole[torch.argsort(room, descending=True, stable=True)[:left]] += 1
    return torch.minimum(whole, capacity.double().cpu()).long()


def rebalanced_shares(scores: Tensor, labels: Tensor, count: Tensor, kept: float, eta: float) -> Tensor:
    """Returns which share of each class's samples each network keeps, (M, C), so that ``kept`` of all are.

    Args:
        scores: (M, n), stretched to [0, 1] for each network before the classes' means are taken.
        labels: the classes (n,).
        count: the number of samples of each class, (M, C).
        kept: share of all samples to keep, in (0, 1].
        eta: of `sampling_rates`.
    """
    everybody = torch.ones_like(labels, dtype=torch.bool)
    shares = []
    for row, sizes in zip(scores, count):
        rates = sampling_rates(class_scores(minmax(row).to(sizes.dtype), labels, everybody, sizes.numel()), eta)
        shares.append(allocate(kept * sizes.sum(), rates, sizes) / sizes.clamp_min(1.0))
    return torch.stack(shares)


def class_floors(sizes: Tensor, least: int) -> Tensor:
    """Returns how many samples of each class are to be kept at least, int64 (C,).

    Of a rare class, which has less than RARE of the mean size, ``least`` samples, or all where it has fewer; beside rare classes
    the same of the others, but half of theirs at most.

    Guarantee: where no class is rare there is no floor, so on balanced data a method is its paper's.

    Args:
        sizes: number of samples of each class, (C,), int64.
        least: samples of a class, 0 for no floor.
    """
    present = (sizes > 0).sum()
    rare = (sizes > 0) & (sizes * present < RARE * sizes.sum())
    floors = torch.where(rare, sizes, sizes // 2).clamp_max(least)
    return torch.where(rare.any(), floors, torch.zeros_like(floors))
