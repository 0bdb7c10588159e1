"""Records that wait for the ledger: recording some steps at once costs less than each by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..selection.noise_rate import RateEstimator
from .ledger import SampleLedger
from .margins import trace
from .means import RunningMeans

#: Steps, and numbers in their logits, that wait at most.
STEPS, NUMBERS = 16, 4_000_000


@dataclass(frozen=True)
class StepRecord:
    """What one or more micro-batches leave behind.

    Attributes:
        logits: (M, B, C), of the step's first forward.
        score: (B,). weight: (B,), the rule's, mean over the networks.
        labels: the samples' classes (B,), -1 where targets are no classes.
        index: positions in the data set (B,).
        epoch, filter_active, finite: as `SampleLedger.record` takes them.
        losses: of each of several networks (B, M).
        repeats: how many of the last samples count nowhere, of this process and, of one micro-batch, of all; only where there are
            several processes, whose records do not wait.
    """

    logits: Tensor
    score: Tensor
    weight: Tensor
    labels: Tensor
    index: Tensor
    epoch: int
    filter_active: bool
    losses: Tensor | None = None
    finite: Tensor | None = None
    repeats: tuple[int, int] = (0, 0)


@dataclass
class PendingRecords:
    """The records that wait, all of one epoch and of one ``filter_active``."""

    waiting: list[StepRecord] = field(default_factory=list)

    def accepts(self, entry: StepRecord) -> bool:
        """Returns whether a record can wait with the others.

        Args:
            entry: of one micro-batch.
        """
        return not self.waiting or all(
            getattr(self.waiting[0], name) == getattr(entry, name) for name in ("epoch", "filter_active")
        )

    @property
    def full(self) -> bool:
        """Whether it is time to record them."""
        return len(self.waiting) >= STEPS or sum(entry.logits.numel() for entry in self.waiting) >= NUMBERS

    def flush(self) -> StepRecord | None:
        """Returns all that waited as one, in their order, None where none did; nothing waits afterwards."""
        waiting, self.waiting = self.waiting, []
        if len(waiting) < 2:
            return waiting[0] if waiting else None
        first = waiting[0]
        tensors = [f.name for f in fields(StepRecord) if isinstance(getattr(first, f.name), Tensor)]
        joined: dict[str, Any] = {
            name: torch.cat([getattr(v, name) for v in waiting], 1 if name == "logits" else 0) for name in tensors
        }
        return StepRecord(**joined, epoch=first.epoch, filter_active=first.filter_active)


@torch.no_grad()
def record(
    entry: StepRecord, ledger: SampleLedger, means: RunningMeans, estimator: RateEstimator | None, single: bool,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> None:  # fmt: skip
    """Writes a record to the ledger, the running means and the noise rate's estimator, without a host sync.

    Args:
        entry: of one or more micro-batches.
        ledger: of the data set.
        means: what is logged.
        estimator: of the noise rate, None where it is not estimated.
        single: whether each sample has one class label.
        gather: concatenates over the processes, which all call this at the same steps; None for one process alone.
    """
    own, all_repeats = len(entry.weight) - entry.repeats[0], entry.repeats[1]
    logits, weight = entry.logits, entry.weight[:own]
    means.add("kept_fraction", weight.sum(), own)
    # class predictions; -1 where the targets are numbers
    predicted = logits.mean(0).argmax(-1).float() if single else torch.full_like(entry.score, -1.0)
    row = torch.stack([entry.score, entry.weight, predicted], 1)
    if entry.finite is not None:
        row = torch.cat([row, entry.finite.to(row.dtype).unsqueeze(1)], 1)
    first = row.shape[1]
    if single:
        row = torch.cat([row, trace(logits, entry.labels, ledger.rivals(entry.index))], 1)
    width = row.shape[1]
    if entry.losses is not None:
        row = torch.cat([row, entry.losses], 1)

    probs = logits.float().softmax(-1).mean(0) if estimator is not None or ledger.keeps_probs else None
    index, labels = entry.index, entry.labels
    if gather is not None:
        tables = [row, index, labels, *([probs] if probs is not None else [])]
        row, index, labels, *rest = (rows[: len(rows) - all_repeats] for rows in gathered(tables, gather))
        probs = rest[0] if rest else None
    if estimator is not None and probs is not None:
        estimator.update(index, probs, labels, entry.epoch)
    margins, finite = row[:, first:width] if single else None, row[:, 3] if entry.finite is not None else None
    losses = row[:, width:] if entry.losses is not None else None
    ledger.record(index, row[:, 0], row[:, 1], labels, row[:, 2], entry.epoch, entry.filter_active, margins, probs, losses, finite)
    if ledger.truth is not None:
        truth = ledger.truth[entry.index[:own]].float()
        means.add("kept_corrupted", (weight * truth).sum(), truth.sum())
        means.add("kept_clean", (weight * (1 - truth)).sum(), (1 - truth).sum())


def gathered(tables: Sequence[Tensor], gather: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Returns tables of all processes in one exchange, bit for bit, each (P B, ...).

    Args:
        tables: of this process, (B, ...) each, of any types.
        gather: concatenates a tensor over the P processes.
    """
    flat = [table.reshape(len(table), -1).contiguous() for table in tables]
    everybody = gather(torch.cat([table.view(torch.uint8) for table in flat], 1))
    parts = everybody.split([table.shape[1] * table.itemsize for table in flat], 1)
    return [part.contiguous().view(table.dtype).view(-1, *table.shape[1:]) for part, table in zip(parts, tables)]
