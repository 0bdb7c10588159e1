"""What is decided once for a whole epoch: whom to keep, from what the ledger remembers or from a scan of the data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ledger.ledger import SampleLedger
from ..types import Progress, SelectionRule, decides_epochs


@dataclass(frozen=True)
class DatasetScores:
    """What a scan found of all samples: score, given label and prediction (N,), `trace`'s numbers (N, 5), probabilities (N, C)."""

    scores: Tensor
    labels: Tensor
    predicted: Tensor
    told: Tensor
    probs: Tensor | None = None


@dataclass
class EpochSelection:
    """The decision in force: the ledger's column ``keep`` and, in the walk's states, its epoch; so both are in a checkpoint."""

    selection: SelectionRule | None
    states: dict[str, dict[str, Tensor]]

    @property
    def made(self) -> bool:
        """Whether there is one yet."""
        return "keep" in self.states

    def _of(self, epoch: int) -> bool:
        return self.made and int(self.states["keep"]["epoch"]) == epoch

    def _settle(self, ledger: SampleLedger, mask: Tensor, epoch: int) -> None:
        ledger.columns["keep"] = mask
        self.states["keep"] = {"epoch": torch.tensor(epoch)}

    def remember(self, ledger: SampleLedger | None, classes: int, progress: Progress) -> None:
        """At the first step of an epoch, once there is something to remember: decides from memory whom to keep during it."""
        rule, epoch = decides_epochs(self.selection), int(progress.epoch)
        if rule is None or rule.memory == "scan" or self._of(epoch):
            return
        started = progress.epoch - epoch < 1e-9  # a ramp may end within an epoch; memory waits for the next one
        if not self.made and not (started and rule.decides(progress)):
            return
        assert ledger is not None
        memory, labels = ledger.ema_score, ledger.label.long().clamp_min(0)
        self._settle(ledger, rule.keep_mask(memory, ledger.seen, labels, classes, progress, ledger.keep), epoch)

    def scan_due(self, ledger: SampleLedger | None, progress: Progress) -> bool:
        """Whether the epoch that starts now wants all samples scored first: not when a resumed run has the decision."""
        rule = decides_epochs(self.selection)
        if rule is None or rule.memory != "scan" or ledger is None:
            return False
        return rule.decides(progress) and not self._of(int(progress.epoch))

    @torch.no_grad()
    def scanned(self, ledger: SampleLedger, found: DatasetScores, classes: int, progress: Progress) -> list[int]:
        """Decides over the epoch from all samples' scores and records them; returns the classes that nobody is left of."""
        rule, epoch, scores, labels = decides_epochs(self.selection), int(progress.epoch), found.scores, found.labels
        assert rule is not None
        mask = rule.keep_mask(scores, torch.ones_like(labels), labels, classes, progress, ledger.columns["keep"])
        self._settle(ledger, mask, epoch)
        everybody = torch.arange(len(scores), device=scores.device)
        filter_active = rule.filter_active(progress)
        ledger.record(everybody, scores, mask.float(), labels, found.predicted, epoch, filter_active, found.told, found.probs)
        sizes, left = torch.bincount(labels, minlength=classes), torch.bincount(labels[mask], minlength=classes)
        return ((sizes > 0) & (left == 0)).nonzero().flatten().tolist()
