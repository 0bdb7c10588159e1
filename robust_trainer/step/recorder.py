"""What steps tell of each sample: kept until it is written into the ledger and the running means, and what is logged of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ledger.pending import PendingRecords, StepRecord, record
from ..perturbations.collapse import collapse
from ..types import ForwardOutput, Progress
from .class_floor import ClassFloor
from .evidence import EvidenceStage
from .nonfinite import NonfiniteGuard
from .records import PlannedBatch, Run, SampleWeights
from .weights import WeightDecider


class StepRecorder:
    """Records what steps tell, in the ledger, the running means and the log.

    Attributes:
        guard: counts outputs that are NaN or infinite.
        detected_epoch: that the ledger's detection was last logged of.

    Args:
        run: what all steps of the training share.
        weights: who decides the samples' weights.
        floor: of rare classes.
        evidence: of judged labels, None without.
    """

    def __init__(self, run: Run, weights: WeightDecider, floor: ClassFloor, evidence: EvidenceStage | None):
        self.run, self.weights, self.floor, self.evidence = run, weights, floor, evidence
        self.pending = PendingRecords()
        self.guard = NonfiniteGuard()
        self.detected_epoch = 0
        if run.ledger is not None:
            run.ledger.before_read = self.flush

    @torch.no_grad()
    def record(
        self, output: ForwardOutput, scores: Tensor, sample: SampleWeights, planned: PlannedBatch, progress: Progress,
        finite: Tensor,
    ) -> None:  # fmt: skip
        """Takes up what a micro-batch's training forward told.

        Args:
            output: of the model.
            scores: of the samples, (M, B).
            sample: their weights.
            planned: the micro-batch.
            progress: where training stands.
            finite: whether every network's output was finite, bool (B,).
        """
        recipe, inner, weights, logits = self.run.recipe, planned.inner, sample.rule, output.logits
        if inner is not None:
            logits = inner.first.logits
            weights = weights if recipe.outer_filter else inner.first.inner_weights
        if planned.eval_scores is not None:
            scores = planned.eval_scores
        elif inner is not None and recipe.score_from != "training":
            scores = inner.first.scores
        if recipe.ledger_score is not None:
            scores = recipe.ledger_score(output)
        score, weight, batch = scores.mean(0), weights.mean(0), planned.batch
        if self.run.ledger is None or batch.index is None:
            self.run.means.add("kept_fraction", weight[: batch.real].sum(), batch.real)
            return
        labels = self.run.problem.ledger_labels(batch.targets)
        active = recipe.selection is not None and recipe.selection.filter_active(progress)
        active = active or (self.evidence is not None and self.evidence.made)
        losses = recipe.objective(output, output.network_targets()).float().T if recipe.num_networks > 1 else None
        repeats = (batch.repeats, batch.all_repeats)
        entry = StepRecord(
            logits.detach(), score, weight, labels, batch.index, int(progress.epoch), active, losses, finite, repeats
        )
        if not self.pending.accepts(entry):
            self.flush()
        self.pending.waiting.append(entry)
        if self.run.processes > 1 or self.pending.full:  # a ledger that is read on one process alone must not wait for the others
            self.flush()

    def flush(self) -> None:
        """Records what waits, in the ledger, the running means and the noise rate's estimator."""
        entry, run = self.pending.flush(), self.run
        if entry is not None and run.ledger is not None:
            gather = run.gather if run.processes > 1 else None
            record(entry, run.ledger, run.means, self.weights.rate_estimator(), run.problem.one_class, gather)

    def log(self, logs: dict[str, float], history: list[dict[str, float]], epoch: int) -> list[str]:
        """Adds to what the Trainer logs what the method did since the last time, and returns what is to be said.

        Args:
            logs: of a log with the training loss, or at the training's end.
            history: the logs so far.
            epoch: finished epochs.

        Raises:
            ValueError: where a whole batch was NaN or infinite.
        """
        nonfinite, told = self.guard.report(self.run.total, self.run.processes, self.run.ledger)
        logs.update(nonfinite)
        if "loss" not in logs:  # the training's end, before anybody else hears of it
            if self.run.ledger is not None:
                self.run.ledger.unite()
            return [message for message in (told, self.weights.warning()) if message]
        logs.update(self.take_logs())
        logs.update(collapse(history, logs))
        if self.run.ledger is not None and epoch > self.detected_epoch:
            self.detected_epoch = epoch
            logs.update({f"filter_{name}": value for name, value in self.run.ledger.detection().items()})
            told = " ".join(filter(None, [told, self.floor.warning()]))
        return [message for message in (told, self.weights.warning()) if message]

    def take_logs(self) -> dict[str, float]:
        """Returns the running means since the last call, over all processes (one host sync), and the estimated noise rate."""
        self.flush()
        logs = self.run.means.take(self.run.total)
        if (estimate := self.weights.estimate) is not None:
            logs.update(noise_rate=estimate.rate, noise_rate_low=estimate.low, noise_rate_high=estimate.high)
        return logs
