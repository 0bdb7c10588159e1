"""What is decided once for a whole epoch: whom to keep, from what the ledger remembers or from a scan of the data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.utils import logging

from ..ledger.class_counts import count_classes
from ..ledger.ledger import SampleLedger
from ..ledger.margins import trace
from ..models.modes import eval_mode, preserve_rng
from ..models.sharding import is_sharded
from ..types import EpochRule, ForwardOutput, Progress, decides_epochs
from .agreement import agree, for_each
from .class_floor import ClassFloor
from .records import MicroBatch, Run

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class DatasetScores:
    """What a scan tells of all N samples of the data set, in its order.

    Attributes:
        scores: (N,). labels: the given classes (N,). predicted: the predicted ones (N,).
        margins: `ledger.margins.trace`'s numbers (N, 5). probs: predicted probabilities (N, C), where the ledger keeps them.
    """

    scores: Tensor
    labels: Tensor
    predicted: Tensor
    margins: Tensor
    probs: Tensor | None = None


@dataclass
class EpochSelection:
    """The decision over an epoch: the ledger's column ``keep`` and, in the run's states, its epoch; so both are in checkpoints."""

    run: Run
    floor: ClassFloor
    _told: set[str] = field(default_factory=set)

    @property
    def rule(self) -> EpochRule | None:
        """The rule that decides over epochs, None where none does."""
        return decides_epochs(self.run.recipe.selection)

    @property
    def made(self) -> bool:
        """Whether there is a decision yet."""
        return "keep" in self.run.states

    def weights(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Returns the decision for each micro-batch, (1, B) of 0 or 1."""
        ledger = self.run.ledger
        return [] if ledger is None else [ledger.keep[batch.positions].float().unsqueeze(0) for batch in batches]

    def from_memory(self, progress: Progress) -> None:
        """At an epoch's first step: decides over the epoch from the ledger, once the rule says so.

        Args:
            progress: where training stands.
        """
        rule, ledger, epoch = self.rule, self.run.ledger, int(progress.epoch)
        if rule is None or ledger is None or rule.memory == "scan" or self._of(epoch):
            return
        started = progress.epoch - epoch < 1e-9  # a ramp may end within an epoch; memory waits for the next one
        if not self.made and not (started and rule.decides(progress)):
            return
        mask = self._remembered(rule, ledger, progress)
        self._settle(ledger, mask | self.floor.chosen(ledger.ema_score), epoch)

    def _remembered(self, rule: EpochRule, ledger: SampleLedger, progress: Progress) -> Tensor:
        """The rule's decision from what the ledger remembers, bool (N,); of one in parts the first process's, on its host."""
        run = self.run

        def decide() -> Tensor:
            scores, labels = ledger.ema_score, ledger.label.long().clamp_min(0)
            return rule.keep_mask(scores, ledger.seen, labels, run.classes, progress, ledger.keep.to(scores.device))

        if not ledger.in_parts:
            return decide()
        mask = torch.zeros(len(ledger), dtype=torch.bool)
        problem: Exception | None = None
        with ledger.gathered(run.rank == 0, ("ema_score", "label", "seen")):
            try:
                mask = decide() if run.rank == 0 else mask
            except Exception as error:  # a rule of the user's own may fail
                problem = error
        agree(run, problem)
        return run.total(mask.to(run.device, torch.uint8)) > 0

    def scan_due(self, progress: Progress) -> bool:
        """Returns whether the epoch that starts now wants all samples scored first: not when a resumed run has the decision."""
        rule = self.rule
        if rule is None or rule.memory != "scan" or self.run.ledger is None:
            return False
        return rule.decides(progress) and not self._of(int(progress.epoch))

    @torch.no_grad()
    def from_scan(self, scan: DatasetScores, progress: Progress) -> str:
        """Decides over the epoch from all samples' scores and records them in the ledger.

        Args:
            scan: of all samples.
            progress: where training stands.

        Returns:
            What is to be said, once of each class, of the classes of which nobody is left; '' for nothing.
        """
        rule, ledger, classes, epoch = self.rule, self.run.ledger, self.run.classes, int(progress.epoch)
        if rule is None or ledger is None:
            return ""
        seen = torch.ones_like(scan.labels)
        mask = rule.keep_mask(scan.scores, seen, scan.labels, classes, progress, ledger.columns["keep"])
        self.floor.count(scan.labels)
        mask = mask | self.floor.chosen(scan.scores)
        self._settle(ledger, mask, epoch)
        everybody = torch.arange(len(scan.scores), device=scan.scores.device)
        ledger.record(
            everybody, scan.scores, mask.float(), scan.labels, scan.predicted, epoch, rule.filter_active(progress), scan.margins,
            scan.probs,
        )  # fmt: skip
        counts = count_classes(tuple(ledger.run.get("names") or ()), scan.labels.cpu().numpy(), mask.cpu().numpy())
        every = [counts.name(int(c)) for c in np.flatnonzero((counts.samples > 0) & (counts.left == 0))]
        emptied = [name for name in every if name not in self._told]
        self._told.update(emptied)
        if not emptied:
            return ""
        return (
            f"epoch {epoch}: the selection leaves nobody of class {', '.join(emptied[:10])}"
            f"{f' and {len(emptied) - 10} more' if len(emptied) > 10 else ''}: "
            "set rebalance=True or lower rebalance_eta, or warm up for longer."
        )

    def _of(self, epoch: int) -> bool:
        return self.made and int(self.run.states["keep"]["epoch"]) == epoch

    def _settle(self, ledger: SampleLedger, mask: Tensor, epoch: int) -> None:
        ledger.columns["keep"] = mask
        self.run.states["keep"] = {"epoch": torch.tensor(epoch)}


@torch.no_grad()
def score_dataset(
    run: Run,
    ledger: SampleLedger,
    model: nn.Module,
    batches: Iterable[MicroBatch],
    read: Callable[[Any, MicroBatch], ForwardOutput],
) -> DatasetScores:
    """Returns what the model says of every sample, in evaluation mode, equal on all processes.

    Args:
        run: of the training.
        ledger: of the data set.
        model: unwrapped.
        batches: the data set, each sample once; of several processes, each its share.
        read: a model's outputs with a micro-batch's targets.
    """
    rows, probs, indices = [], [], []
    rivals = ledger.rival  # of a ledger in parts all processes bring it together

    def look(batch: MicroBatch) -> None:
        output = read(model(**batch.inputs), batch)
        labels = run.problem.classes_of(batch.targets)
        score, predicted = run.recipe.score(output).mean(0), output.logits.mean(0).argmax(-1)
        margins = trace(output.logits, labels, rivals[batch.positions])
        rows.append(torch.cat([torch.stack([score, labels.to(score.dtype), predicted.to(score.dtype)], 1), margins], 1))
        if ledger.keeps_probs:
            probs.append(output.logits.float().softmax(-1).mean(0))
        indices.append(batch.positions)

    with eval_mode(model):
        for_each(run, batches, look, each=is_sharded(model))
    index = run.gather(torch.cat(indices))
    whole = _in_order(run.gather(torch.cat(rows)), index, len(ledger))
    means = _in_order(run.gather(torch.cat(probs)), index, len(ledger)) if probs else None
    return DatasetScores(whole[:, 0], whole[:, 1].long(), whole[:, 2].long(), whole[:, 3:], means)


def _in_order(rows: Tensor, index: Tensor, size: int) -> Tensor:
    whole = torch.zeros(size, rows.shape[1], dtype=rows.dtype, device=rows.device)
    whole[index] = rows
    return whole


@dataclass(frozen=True)
class Passes:
    """A loader's batches, made into micro-batches, as often as they are gone through.

    Args:
        loader: of the whole training set.
        make: a micro-batch of what the loader gives.
    """

    loader: Iterable[Any]
    make: Callable[[Any], MicroBatch]

    def __iter__(self) -> Iterator[MicroBatch]:
        return map(self.make, self.loader)


@dataclass(eq=False)
class EpochScan(TrainerCallback):
    """Has the training set looked at where the method asks for it, before an epoch's first batch is drawn.

    Guarantee: no random number of the training is used up, whatever the data set's transforms draw.

    Args:
        due: whether the epoch that starts now wants it.
        loader: makes the loader of the whole training set, once.
        decide: looks at the loader's samples, decides, and returns what is to be said, '' for nothing.
    """

    due: Callable[[], bool]
    loader: Callable[[], Any]
    decide: Callable[[Any], str]
    _loader: Any = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks at the data set where the method asks for it, before the epoch's first batch is drawn."""
        if not self.due():
            return
        if self._loader is None:
            self._loader = self.loader()
        with preserve_rng(args.device):
            said = self.decide(self._loader)
        if said:
            logger.warning(said)
