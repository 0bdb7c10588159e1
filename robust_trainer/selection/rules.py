"""Which samples to train on: scores -> weights in [0, 1]. One rule with parameters, by rank; three simple ones.

Without memory a sample is ranked in its step (all processes and accumulation steps together), as the papers do. With memory it is
ranked in the whole data set by what the ledger remembers of it, decided anew at the start of every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..data.randomness import keyed_seed
from ..types import Progress, SelectionRule
from .allocation import allocate_integers, class_scores, rebalanced_shares, sampling_rates
from .ranking import minmax, rank_within, share_dtype, smallest, tie_order
from .rates import decay_share, ramp_share

#: ``noise_rate``s that are estimated while training, and the estimator's kind that each means.
ESTIMATED = {"auto": "held-out", "confident-joint": "confident-joint"}
#: Who trains on what a network keeps: the next one, or any other, drawn anew at each step.
EXCHANGES = ("next", "shuffled")
MEMORIES = ("none", "ema", "scan")
#: What a sample is ranked among: the samples of its optimizer step, as the papers have it, or at least the latest POOL samples.
RANK_AMONG = ("batch", "recent")
#: With ``recent`` a batch smaller than this is ranked together with the latest scores before it.
POOL = 128
_TIE = 1e-4


@dataclass(frozen=True)
class KeepByScore:
    """Keeps the samples with the smallest scores; drops the share ``rate(progress)`` with the largest.

    Guarantee: the kept share over an epoch is the asked one for any batch size; rate 0 keeps everybody.

    Args:
        noise_rate: expected share of corrupted samples, in [0, 1), or a key of ESTIMATED: the run's own estimate; nobody is dropped
            before the first one.
        rate_multiplier: factor on it, > 0; above 1 drops more than expected (over-estimating is safe, Dissertation table 4.4).
        max_drop_rate: upper limit of the product, in (0, 1).
        drop_schedule: one of SCHEDULES: ``constant``; ``ramp``, up to the rate (`rates.ramp_share`); ``decay``, the
            kept share down from 1 (`rates.decay_share`).
        drop_ramp_epochs: epochs that ``ramp`` takes, > 0.
        drop_ramp_steps: optimizer steps that ``ramp`` takes instead, in four stairs.
        drop_ramp_from: share of the final rate where ``ramp`` starts, in [0, 1]; 0 in the papers.
        per_class: rank within each label, dropping the same share of each.
        memory: ``none`` (papers); ``ema`` of the ledger's scores (m <- m / 2 + score / 2, each epoch);
            ``scan``: all samples are scored anew at each epoch's start, in evaluation mode. In force from the first epoch
            after ``memory_after_epochs`` and ``drop_ramp_steps``; before, ranks are those of ``rank_among``.
        memory_after_epochs: finished epochs after which memory decides, >= 1.
        peer_exchange: with M networks, ``next``: each trains on what the one before it keeps (co-teaching); ``shuffled``: on what
            some other one keeps, all such orders equally likely, drawn from the run's seed and step (RCA with K networks); None:
            on what it keeps itself. For two networks both are one.
        rebalance: rank within each label too, but the kept ones are shared out over the labels as ERAT does, from scores stretched
            to [0, 1] and averaged over all samples of a label that are ranked together.
        rebalance_eta: eta of ERAT eq. 4, in [0, 1].
        rate_decay_share: alpha of ``decay``, a share of all epochs in (0, 1].
        rank_among: without memory, ``batch``: the samples of the step, as in the papers; ``recent``: at least the latest POOL.

    References:
        Han et al. 2018, "Co-teaching" (small loss); Backdoor Algorithm 1 and Dissertation Algorithms 3 to 5 (PRL); ERAT eq. 3 to 5
        (``rebalance``).
    """

    noise_rate: float | str
    rate_multiplier: float = 1.0
    max_drop_rate: float = 0.99
    drop_schedule: str = "constant"
    drop_ramp_epochs: float = 10
    drop_ramp_steps: int | None = None
    drop_ramp_from: float = 0.0
    per_class: bool = False
    memory: str = "none"
    memory_after_epochs: int = 1
    peer_exchange: str | None = None
    rebalance: bool = False
    rebalance_eta: float = 0.1
    rate_decay_share: float = 0.5
    rank_among: str = "recent"

    def _asked_rate(self, progress: Progress) -> float:
        """The expected share times its factor, before the upper limit."""
        noise_rate = (progress.noise_rate or 0.0) if isinstance(self.noise_rate, str) else self.noise_rate
        return noise_rate * self.rate_multiplier

    def rate(self, progress: Progress) -> float:
        """Returns the share that is dropped at this moment, in [0, 1).

        Args:
            progress: where training stands.
        """
        asked = self._asked_rate(progress)
        if self.drop_schedule == "ramp":
            asked *= ramp_share(progress, self.drop_ramp_epochs, self.drop_ramp_steps, self.drop_ramp_from)
        elif self.drop_schedule == "decay":
            asked *= decay_share(progress, self.rate_decay_share)
        return min(asked, self.max_drop_rate)

    def filter_active(self, progress: Progress) -> bool:
        """Returns whether at least half of the final share is dropped by now, so that being left out means distrust."""
        return 0.0 < min(self._asked_rate(progress), self.max_drop_rate) <= 2.0 * self.rate(progress) + 1e-9

    def decides(self, progress: Progress) -> bool:
        """Returns whether an epoch that starts now is decided from memory."""
        ramped = self.drop_schedule != "ramp" or self.drop_ramp_steps is None or progress.global_step >= self.drop_ramp_steps
        return self.memory != "none" and int(progress.epoch) >= self.memory_after_epochs and ramped

    def new_state(self, classes: int, peers: int, device: torch.device) -> dict[str, Tensor]:
        """Returns what is carried from one step to the next: the fractions owed per group, and the latest scores.

        Args:
            classes: number of classes.
            peers: M, the number of networks.
            device: where the scores are.
        """
        groups = peers * (classes if self.per_class or self.rebalance else 1)
        return {
            "owed": torch.zeros(groups, dtype=share_dtype(device), device=device),
            "pool_scores": torch.zeros(peers, 0, device=device),
            "pool_labels": torch.zeros(0, dtype=torch.long, device=device),
        }

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor:
        """Returns weights 0 or 1, (M, B), for one whole optimizer step.

        With ``rank_among="batch"``, and in any batch of POOL samples or more, the (1 - rate) B smallest are kept, rounded down,
        ties by position; the fraction is carried to the next batch: 8 samples at rate 0.3 keep 5, 6, 5, 6, 6. With ``recent`` a
        smaller batch is ranked among the latest POOL scores and keeps those that are among the (1 - rate) POOL smallest,
        corrected by what is owed.

        Args:
            scores: (M, B), higher is more suspicious.
            labels: the classes (B,).
            progress: where training stands.
            state: of `new_state`; updated in place.
        """
        rate = self.rate(progress)
        if rate <= 0:
            return torch.ones_like(scores)
        peers, size = scores.shape
        pool_scores = torch.cat([scores, state["pool_scores"]], 1)
        pool_labels = torch.cat([labels, state["pool_labels"]])
        groups = self._groups(pool_labels, peers, state["owed"].numel())
        rank, count = rank_within(pool_scores, groups, state["owed"].numel())
        share = torch.full_like(count, 1.0 - rate)
        if self.rebalance:
            share = rebalanced_shares(pool_scores, pool_labels, count.view(peers, -1), 1.0 - rate, self.rebalance_eta).flatten()
        asked = (share * count).gather(0, groups.flatten()).view_as(rank)
        owed = state["owed"].gather(0, groups.flatten()).view_as(rank)
        keep = (rank + 1 <= asked + owed + _TIE)[:, :size]
        batch_groups = groups[:, :size].flatten()
        # asked minus kept, per group: what the next batches still owe
        error = share[batch_groups] - keep.flatten().to(state["owed"].dtype)
        state["owed"].scatter_add_(0, batch_groups, error)
        room = max(POOL - size, 0) if self.rank_among == "recent" else 0
        state["pool_scores"] = pool_scores[:, :room].detach()
        state["pool_labels"] = pool_labels[:room]
        return self._exchanged(keep, progress).to(scores.dtype)

    def _exchanged(self, keep: Tensor, progress: Progress) -> Tensor:
        peers = len(keep)
        if self.peer_exchange is None or peers == 1:
            return keep
        if self.peer_exchange == "next" or peers == 2:
            return keep.roll(1, 0)
        order = derangement(peers, keyed_seed("exchange", progress.seed, progress.global_step))
        return torch.stack([keep[i] for i in order])  # a list as an index would be copied to the device, which waits

    def divisor(self, weights: Tensor) -> Tensor:
        """Returns the number of kept samples, (M,), which a step's sum is divided by.

        Args:
            weights: (M, B).
        """
        return weights.sum(1)

    def keep_mask(
        self, memory: Tensor, seen: Tensor, labels: Tensor, classes: int, progress: Progress, kept: Tensor | None = None
    ) -> Tensor:
        """Returns the samples to keep over the next epoch, bool (N,).

        Exactly round((1 - rate) n_c) of each class c (or of all, without ``per_class``; with ``rebalance`` as many of all, shared
        out over the classes); unseen samples are kept. Of equal scores those that the run's seed draws.

        Args:
            memory: remembered scores (N,).
            seen: how often each sample was seen, (N,).
            labels: the classes (N,).
            classes: number of classes.
            progress: where training stands.
            kept: those of the last epoch, which this rule does not look at.
        """
        rate, known = self.rate(progress), seen > 0

        def order() -> Tensor:
            return tie_order(len(memory), progress.seed, memory.device)

        if self.rebalance:
            mask, rows = torch.ones_like(known), known.nonzero().flatten()
            scores, row_labels = memory[rows].double().cpu(), labels[rows].cpu()
            sizes = torch.bincount(row_labels, minlength=classes)
            everybody = torch.ones_like(row_labels, dtype=torch.bool)
            rates = sampling_rates(class_scores(minmax(scores), row_labels, everybody, classes), self.rebalance_eta)
            counts = allocate_integers(round((1.0 - rate) * len(rows)), rates, sizes)
            place = known.cumsum(0) - 1
            chosen = smallest(memory[rows].cpu(), row_labels, counts, lambda: place[(first := order())[known[first]]].cpu())
            mask[rows] = chosen.to(mask.device)
            return mask
        groups, total = (labels, classes) if self.per_class else (torch.zeros_like(labels), 1)
        # unseen samples sit in a group of their own, of which nothing is dropped
        groups = torch.where(known, groups, torch.full_like(groups, total))
        count = torch.bincount(groups, minlength=total + 1).to(share_dtype(memory.device))
        return smallest(memory, groups, ((1.0 - rate) * count).round().long(), order) | ~known

    def _groups(self, labels: Tensor, peers: int, total: int) -> Tensor:
        base = labels if self.per_class or self.rebalance else torch.zeros_like(labels)
        step = total // peers
        return base.unsqueeze(0) + step * torch.arange(peers, device=labels.device).unsqueeze(1)


@dataclass(frozen=True)
class _Simple:
    """A rule that looks at each sample alone, or at its group: no state, no memory."""

    @property
    def memory(self) -> str:
        """``none``: every step decides anew."""
        return "none"

    def new_state(self, classes: int, peers: int, device: torch.device) -> dict[str, Tensor]:
        """Returns an empty state: nothing is carried from one step to the next."""
        return {}

    def divisor(self, weights: Tensor) -> Tensor:
        """Returns the number of kept samples, (M,)."""
        return weights.sum(1)

    def filter_active(self, progress: Progress) -> bool:
        """Returns False: being left out of a step does not mean distrust."""
        return False


@dataclass(frozen=True)
class KeepSmallest(_Simple):
    """Keeps one sample, that with the smallest score, of each group of a step: Min-SGD, with the loss as score.

    Args:
        group: number of consecutive samples of a group; None: the whole step.

    References:
        Shah et al. 2020, "Choosing the sample with lowest loss makes SGD robust" (MKL-SGD); a baseline of Dissertation tables 4.1
        and 4.2.
    """

    group: int | None = None
    settings: ClassVar[Mapping[str, str]] = {"min_sgd_group": "group"}

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor:
        """Returns weights 0 or 1, (M, B)."""
        peers, size = scores.shape
        group = self.group or size
        padded = torch.nn.functional.pad(scores.nan_to_num(nan=torch.inf), (0, -size % group), value=torch.inf)
        best = padded.view(peers, -1, group).argmin(2, keepdim=True)
        keep = torch.zeros_like(padded).view(peers, -1, group).scatter_(2, best, 1.0)
        return keep.view(peers, -1)[:, :size]


@dataclass(frozen=True)
class KeepDisputed(_Simple):
    """Keeps the samples that the networks predict differently: scores are 1 where all agree and 0 where not.

    Args:
        warmup_epochs: first epochs in which everybody is kept: with 0 two networks that agree from the start, on whatever class,
            never learn.

    References:
        Malach and Shalev-Shwartz 2017, "Decoupling 'when to update' from 'how to update'"; a baseline of Dissertation table 4.2.
    """

    warmup_epochs: float = 1.0

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor:
        """Returns weights 0 or 1, (M, B)."""
        return torch.ones_like(scores) if progress.epoch < self.warmup_epochs else (scores < 0.5).to(scores.dtype)


@dataclass(frozen=True)
class ClipSamples(_Simple):
    """Weighs a sample by min(1, norm / score): its gradient, whose norm is the score, is clipped to ``norm``, then averaged.

    Guarantee: a sample whose norm is not finite gets weight 0.

    Args:
        norm: the largest norm of a sample's gradient, > 0.

    References:
        Ignormclip, a baseline of Dissertation table 4.1.
    """

    norm: float = 1.0
    settings: ClassVar[Mapping[str, str]] = {"sample_clip_norm": "norm"}

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor:
        """Returns weights in [0, 1], (M, B)."""
        return torch.where(scores.isfinite(), (self.norm / scores.clamp_min(1e-12)).clamp_max(1.0), torch.zeros_like(scores))

    def divisor(self, weights: Tensor) -> Tensor:
        """Returns the number of all samples, (M,): clipping shortens a gradient, it does not leave it out of the mean."""
        return torch.full_like(weights[:, 0], weights.shape[1])


def derangement(size: int, seed: int) -> list[int]:
    """Returns a permutation of ``size`` places that leaves none where it is, drawn uniformly from these.

    Args:
        size: number of places, >= 2.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    order = list(range(size))
    while any(place == source for place, source in enumerate(order)):
        order = torch.randperm(size, generator=generator).tolist()
    return order


#: What the setting ``rule`` may name in place of a method's own rule: name -> factory, a class or function. Its parameters that are
#: named as settings get the method's values. Those of users are registered here, too.
RULES: dict[str, Callable[..., SelectionRule]] = {}
