"""Whom to trust: scores -> weights in [0, 1]. One rule with parameters, by the rank of a sample's score; three simple ones.

Without memory a sample is ranked in its batch (all processes and accumulation steps together), as the papers do. With
memory it is ranked in the whole data set by what the ledger remembers of it, decided anew at the start of every epoch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import Progress
from .allocation import allocate, allocate_integers, class_scores, minmax, sampling_rates, smallest

#: ``noise_rate``s that are estimated while training, and the estimator's kind that each means.
ESTIMATED = {"auto": "held-out", "confident-joint": "confident-joint"}

SCHEDULES = ("constant", "ramp", "relax", "decay")
#: Who trains on what a network trusts: the next one, or any other, drawn anew at each step.
EXCHANGES = ("next", "shuffled")
MEMORIES = ("none", "mean", "ema", "scan")
#: What a sample is ranked among: the samples of its optimizer step, as the papers have it, or at least the latest POOL samples.
RANK_AMONG = ("batch", "recent")
#: With ``recent`` a batch smaller than this is ranked together with the latest scores before it.
POOL = 128
_TIE = 1e-4


@dataclass(frozen=True)
class KeepByScore:
    """Keep the samples with the smallest scores; drop the ``rate(progress)`` share with the largest.

    noise_rate: expected share of corrupted samples, in [0, 1), or a key of ESTIMATED: the run's own estimate, nobody is dropped
    before the first one. rate_multiplier: factor on it (> 1 drops more than expected; over-estimating is safe, paper 001 table
    4.4).
    max_drop_rate: upper limit of the product, in (0, 1). peer_exchange: ``next``, each of the M peers trains on what the peer
    before it
    trusts (co-teaching; paper 001 Algorithm 5); ``shuffled``, on what some other one trusts, all such orders equally likely, drawn
    from the run's seed and step (RCA with K networks; paper 001 sec. 2.4); None: on what it trusts itself. For two both are one.
    drop_schedule: ``constant``; ``ramp`` from ``drop_ramp_from`` x rate (0 in the papers) to the rate over ``drop_ramp_epochs``
    (paper 001 sec. 4, R(T) = min(T/Tk * rate, rate), T from 1)
    or, where given, in four stairs over ``drop_ramp_steps`` optimizer steps; ``relax`` from ``relax_from`` down to
    the rate over ``drop_ramp_epochs``; ``decay`` from 0 in the first epoch to the rate over the share ``rate_decay_share`` (alpha)
    of all epochs: the kept share is beta = max(1 - t eps / (alpha max_epoch), 1 - eps) in epoch t = 0, 1, ... (paper 001
    Algorithm 1).
    per_class: rank within each given label, dropping the same share of each. rebalance: within each given label too, but the kept
    ones are shared out over the labels as ERAT does (paper 003 eq. 3 to 5, with ``rebalance_eta``), from scores stretched to
    [0, 1] (`rebalance.minmax`) and averaged over all samples of a label that are ranked together.
    memory: ``none`` (papers), ``mean`` or ``ema`` (m <- memory_decay m + (1 - memory_decay) score, each epoch) of the ledger's
    scores, or ``scan``: all samples are scored anew at each epoch's start, in evaluation mode; in force from the first epoch after
    ``memory_after_epochs`` and ``drop_ramp_steps``; before, ranks are those in the batch.
    """

    noise_rate: float | str
    rate_multiplier: float = 1.0
    max_drop_rate: float = 0.99
    drop_schedule: str = "constant"
    drop_ramp_epochs: float = 10
    drop_ramp_steps: int | None = None
    drop_ramp_from: float = 0.0
    relax_from: float = 0.6
    per_class: bool = False
    memory: str = "none"
    memory_decay: float = 0.5
    memory_after_epochs: int = 1
    peer_exchange: str | None = None
    rebalance: bool = False
    rebalance_eta: float = 0.1
    rate_decay_share: float = 0.5
    rank_among: str = "recent"

    def rate(self, progress: Progress) -> float:
        """The share dropped at this moment, in [0, 1)."""
        noise_rate = (progress.noise_rate or 0.0) if isinstance(self.noise_rate, str) else self.noise_rate
        asked = noise_rate * self.rate_multiplier
        final = min(asked, self.max_drop_rate)
        if self.drop_schedule == "ramp":
            if self.drop_ramp_steps is not None:
                done = (progress.global_step * 4 // self.drop_ramp_steps + 1) / 4
            else:  # whole epochs, as in the papers; a ramp shorter than four has four stairs
                stair = min(1.0, self.drop_ramp_epochs / 4)
                done = (int(progress.epoch / stair + 1e-9) + 1) * stair / self.drop_ramp_epochs
            return min(asked * (self.drop_ramp_from + (1.0 - self.drop_ramp_from) * min(done, 1.0)), self.max_drop_rate)
        if self.drop_schedule == "decay":
            return min(
                asked * min(int(progress.epoch + 1e-9) / (self.rate_decay_share * progress.max_epochs), 1.0), self.max_drop_rate
            )
        if self.drop_schedule == "relax" and final > 0 and self.relax_from > final:
            return self.relax_from + (final - self.relax_from) * min(progress.epoch / self.drop_ramp_epochs, 1.0)
        return final

    def filter_active(self, progress: Progress) -> bool:
        """Whether at least half of the final share is dropped by now, so that being left out means distrust."""
        final = (progress.noise_rate or 0.0) if isinstance(self.noise_rate, str) else self.noise_rate
        return 0.0 < min(final * self.rate_multiplier, self.max_drop_rate) <= 2.0 * self.rate(progress) + 1e-9

    def remembers(self, progress: Progress) -> bool:
        """Whether an epoch that starts now is decided from memory."""
        ramped = self.drop_schedule != "ramp" or self.drop_ramp_steps is None or progress.global_step >= self.drop_ramp_steps
        return self.memory != "none" and int(progress.epoch) >= self.memory_after_epochs and ramped

    def new_state(self, classes: int, peers: int, device: torch.device) -> dict[str, Tensor]:
        """What the batch rule carries from one step to the next: the fractions owed per group, and the latest scores."""
        groups = peers * (classes if self.per_class or self.rebalance else 1)
        return {
            "owed": torch.zeros(groups, dtype=_exact(device), device=device),
            "pool_scores": torch.zeros(peers, 0, device=device),
            "pool_labels": torch.zeros(0, dtype=torch.long, device=device),
        }

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor:
        """Weights 0 or 1, (M, B), for scores (M, B) and given labels (B,) of one whole optimizer step.

        ``state`` is updated in place. With ``rank_among="batch"``, and in any batch of POOL samples or more, the (1 - rate) B
        smallest are kept, rounded down, ties by position; the fraction is carried to the next batch, so that 8 samples at rate
        0.3 keep 5, 6, 5, 6, 6. With ``recent`` a smaller batch is ranked among the latest POOL scores and keeps those that are
        among the (1 - rate) POOL smallest, corrected by what is owed. Guarantee: the kept share over an epoch is the asked one
        for any batch size.
        """
        rate = self.rate(progress)
        if rate <= 0:
            return torch.ones_like(scores)
        peers, size = scores.shape
        pool_scores = torch.cat([scores, state["pool_scores"]], 1)
        pool_labels = torch.cat([labels, state["pool_labels"]])
        groups = self._groups(pool_labels, peers, state["owed"].numel())
        rank, count = _rank_within(pool_scores, groups, state["owed"].numel())
        share = torch.full_like(count, 1.0 - rate)
        if self.rebalance:
            share = self._shares(pool_scores, pool_labels, count.view(peers, -1), 1.0 - rate).flatten()
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
        return keep[derangement(peers, hash((progress.seed, progress.global_step)))]

    def divisor(self, weights: Tensor) -> Tensor:
        """What the sum over a step's samples is divided by, (M,): the kept ones."""
        return weights.sum(1)

    def _shares(self, scores: Tensor, labels: Tensor, count: Tensor, kept: float) -> Tensor:
        """Which share of each label's samples to keep, (M, C), of ``kept`` of all; count: the samples of each label, (M, C)."""
        everybody = torch.ones_like(labels, dtype=torch.bool)
        rows = []
        for row, size in zip(scores, count):
            rates = sampling_rates(class_scores(minmax(row).to(size.dtype), labels, everybody, size.numel()), self.rebalance_eta)
            rows.append(allocate(kept * size.sum(), rates, size) / size.clamp_min(1.0))
        return torch.stack(rows)

    def keep_mask(
        self, memory: Tensor, seen: Tensor, labels: Tensor, classes: int, progress: Progress, kept: Tensor | None = None
    ) -> Tensor:
        """The samples to keep over the next epoch, bool (N,), from remembered scores (N,) of the samples already seen.

        Exactly round((1 - rate) n_c) of each class c (or of all, without ``per_class``; with ``rebalance`` as many of all, shared
        out over the classes); unseen samples are kept. kept: those of the last epoch, which this rule does not look at.
        """
        rate = self.rate(progress)
        if self.rebalance:
            rows = (seen > 0).nonzero().flatten()
            scores, given = memory[rows].double().cpu(), labels[rows].cpu()
            sizes = torch.bincount(given, minlength=classes)
            everybody = torch.ones_like(given, dtype=torch.bool)
            rates = sampling_rates(class_scores(minmax(scores), given, everybody, classes), self.rebalance_eta)
            chosen = smallest(scores, given, allocate_integers(round((1.0 - rate) * len(rows)), rates, sizes))
            mask = torch.ones_like(seen, dtype=torch.bool)
            mask[rows] = chosen.to(mask.device)
            return mask
        groups = labels if self.per_class else torch.zeros_like(labels)
        total = classes if self.per_class else 1
        known = seen > 0
        # unseen samples sit in a group of their own, of which nothing is dropped
        groups = torch.where(known, groups, torch.full_like(groups, total))
        rank, count = _rank_within(memory.unsqueeze(0), groups.unsqueeze(0), total + 1)
        allowed = ((1.0 - rate) * count).round()
        return (rank[0] < allowed[groups]) | ~known

    def _groups(self, labels: Tensor, peers: int, total: int) -> Tensor:
        base = labels if self.per_class or self.rebalance else torch.zeros_like(labels)
        step = total // peers
        return base.unsqueeze(0) + step * torch.arange(peers, device=labels.device).unsqueeze(1)


@dataclass(frozen=True)
class _Simple:
    """A rule that looks at each sample alone, or at its group: no state, no memory."""

    @property
    def memory(self) -> str:
        """Every step decides anew."""
        return "none"

    def new_state(self, classes: int, peers: int, device: torch.device) -> dict[str, Tensor]:
        return {}

    def divisor(self, weights: Tensor) -> Tensor:
        """The kept samples, (M,)."""
        return weights.sum(1)

    def filter_active(self, progress: Progress) -> bool:
        """Being left out of a step does not mean distrust."""
        return False


@dataclass(frozen=True)
class KeepSmallest(_Simple):
    """Keep one sample, that with the smallest score, of each ``group`` consecutive ones of a step; None: of the whole step.

    Min-SGD (Shah et al. 2020, MKL-SGD; a baseline of paper 001 tables 4.1 and 4.2), with the loss as score.
    """

    group: int | None = None

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor:
        """Weights 0 or 1, (M, B)."""
        peers, size = scores.shape
        group = self.group or size
        padded = torch.nn.functional.pad(scores.nan_to_num(nan=torch.inf), (0, -size % group), value=torch.inf)
        best = padded.view(peers, -1, group).argmin(2, keepdim=True)
        keep = torch.zeros_like(padded).view(peers, -1, group).scatter_(2, best, 1.0)
        return keep.view(peers, -1)[:, :size]


@dataclass(frozen=True)
class KeepDisputed(_Simple):
    """Keep the samples that the peers predict differently: scores are 1 where all agree and 0 where not.

    Decoupling "when to update" from "how to update" (Malach and Shalev-Shwartz 2017; a baseline of paper 001 table 4.2). In the
    first ``warmup_epochs`` everybody is kept: with 0 two networks that agree from the start, on whatever class, never learn.
    """

    warmup_epochs: float = 1.0

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor:
        """Weights 0 or 1, (M, B)."""
        return torch.ones_like(scores) if progress.epoch < self.warmup_epochs else (scores < 0.5).to(scores.dtype)


@dataclass(frozen=True)
class ClipSamples(_Simple):
    """Weight min(1, norm / score): with gradient norms as scores, each sample's gradient is clipped to ``norm``, then averaged.

    Ignormclip (a baseline of paper 001 table 4.1). A sample whose norm is not finite gets weight 0.
    """

    norm: float = 1.0

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor:
        """Weights in [0, 1], (M, B)."""
        return torch.where(scores.isfinite(), (self.norm / scores.clamp_min(1e-12)).clamp_max(1.0), torch.zeros_like(scores))

    def divisor(self, weights: Tensor) -> Tensor:
        """All samples, (M,): clipping shortens a gradient, it does not leave it out of the mean."""
        return torch.full_like(weights[:, 0], weights.shape[1])


def derangement(size: int, seed: int) -> list[int]:
    """A permutation of ``size`` >= 2 places that leaves none where it is, drawn uniformly from these."""
    draw = random.Random(seed)
    order = list(range(size))
    while any(place == found for place, found in enumerate(order)):
        draw.shuffle(order)
    return order


def _exact(device: torch.device) -> torch.dtype:
    """The type that shares are counted in; Apple's MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _rank_within(scores: Tensor, groups: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """0-based rank of each score within its group, (M, n), and the group sizes, (total,). Ties go by position."""
    flat_scores, flat_groups = scores.flatten(), groups.flatten()
    order = torch.argsort(flat_scores, stable=True)
    order = order[torch.argsort(flat_groups[order], stable=True)]
    count = torch.zeros(total, dtype=_exact(scores.device), device=scores.device)
    count.scatter_add_(0, flat_groups, torch.ones_like(flat_groups, dtype=count.dtype))
    start = (count.cumsum(0) - count).long()
    position = torch.arange(flat_scores.numel(), device=scores.device)
    rank = torch.empty_like(position)
    rank[order] = position - start[flat_groups[order]]
    return rank.view(scores.shape), count
