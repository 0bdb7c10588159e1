"""Which weight has a sample in a step, and by which forward's scores?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..selection.noise_rate import RateEstimate, RateEstimator
from ..selection.rules import ESTIMATED
from ..types import BatchRule, ForwardOutput, Progress, decides_epochs
from .class_floor import ClassFloor
from .dataset_scores import EpochSelection
from .evidence import EvidenceStage
from .records import FirstForward, MicroBatch, Run, SampleWeights, StepWeights

_APART = 0x5EED  # so that the held-out samples are no stretch of the sampler's order, which comes from the same seed


@dataclass
class WeightDecider:
    """Decides the samples' weights, in the inner maximisation and in the training step.

    Args:
        run: of the training.
        selection: the decision over the epoch.
        floor: the samples of rare classes that are kept whatever the rule says.
        evidence: on the labels, for methods that judge them.
        estimator: of the noise rate, made when the number of classes is known; None where it is not estimated.
    """

    run: Run
    selection: EpochSelection
    floor: ClassFloor
    evidence: EvidenceStage | None = None
    estimator: RateEstimator | None = None

    # ---- the rule's weights ----------------------------------------------------------------------------------------------

    def decide_weights(
        self, batches: Sequence[MicroBatch], place: str, progress: Progress, scores: Sequence[Tensor]
    ) -> list[Tensor]:
        """Returns the rule's weights of each micro-batch, (M, B) or where all networks share them (1, B).

        The first that applies:

        0. labels were judged: what the evidence says, whatever the scores;
        1. no rule, or one that is switched off here (``inner_filter``, ``outer_filter``): everybody, weight 1;
        2. an `EpochRule` has decided over this epoch: the ledger's ``keep``, whatever the scores;
        3. an `EpochRule` alone, before its first decision, or a semi-supervised method before it: everybody;
        4. a `BatchRule`: from the scores, among all micro-batches of all processes. They are of the forward that ``score_from``
           names: ``training``, the training forward (of several micro-batches one more of each, which leaves no trace); ``clean``,
           the inner maximisation's first; ``eval``, one more in evaluation mode.

        Args:
            batches: all micro-batches of the optimizer step.
            place: ``inner`` or ``outer``: where the weights count. Each has a state of its own.
            progress: where training stands.
            scores: (M, B) of each micro-batch.
        """
        known = self.known_weights(batches, place)
        return known if known is not None else self._rank(batches, place, progress, scores)

    def known_weights(self, batches: Sequence[MicroBatch], place: str) -> list[Tensor] | None:
        """Returns what `decide_weights` returns where it needs no scores (its first three cases), else None."""
        rule = self.run.recipe.selection
        if self.evidence is not None and self.evidence.made and batches[0].index is not None:
            return self.evidence.weights(list(batches))
        if rule is None or not self._active(place):
            return _everybody(batches)
        if self.selection.made:
            if decides_epochs(rule) is not None:
                return self.selection.weights(batches)
        elif not isinstance(rule, BatchRule) or self.run.recipe.semi_supervised is not None:
            return _everybody(batches)
        return None

    def _active(self, place: str) -> bool:
        recipe = self.run.recipe
        return recipe.outer_filter if place == "outer" else recipe.inner_filter or self._clean_decides

    @property
    def _clean_decides(self) -> bool:
        """Whether the inner maximisation's first forward decides over the training step, too."""
        return self.run.recipe.score_from == "clean" and self.run.recipe.outer_filter

    def _rank(self, batches: Sequence[MicroBatch], place: str, progress: Progress, scores: Sequence[Tensor]) -> list[Tensor]:
        rule, run = self.run.recipe.selection, self.run
        if not isinstance(rule, BatchRule):
            return _everybody(batches)
        everyone = self._of_all([score.T for score in scores], batches).T.contiguous()
        classes = self._of_all([run.problem.classes_of(batch.targets) for batch in batches], batches)
        if place not in run.states:
            run.states[place] = rule.new_state(run.classes, len(everyone), everyone.device)
        weights = rule.weights(everyone, classes, progress, run.states[place])
        padded = torch.nn.functional.pad(weights, (0, batches[-1].all_repeats))
        parts = padded.split([run.processes * len(batch) for batch in batches], 1)
        mine = [part.chunk(run.processes, 1)[run.rank] for part in parts]
        return self.floor.raised(mine, scores, batches)

    def _of_all(self, rows: Sequence[Tensor], batches: Sequence[MicroBatch]) -> Tensor:
        """The rows (B, ...) of the step's micro-batches on all processes, in the order of one process and without repeats."""
        run = self.run
        if run.processes == 1:
            return torch.cat(list(rows))
        every = run.gather(torch.cat(list(rows)).contiguous()).unflatten(0, (run.processes, -1))
        parts = every.split([len(batch) for batch in batches], 1)
        return torch.cat([part.flatten(0, 1)[: part.shape[1] * run.processes - b.all_repeats] for part, b in zip(parts, batches)])

    # ---- what becomes of them --------------------------------------------------------------------------------------------

    def of_first_forward(
        self, outputs: Sequence[ForwardOutput], batches: Sequence[MicroBatch], progress: Progress
    ) -> list[FirstForward]:
        """Returns what the inner maximisation's first forward tells of each micro-batch."""
        recipe = self.run.recipe
        scores = [recipe.score(output) for output in outputs]
        weights = self.decide_weights(batches, "inner", progress, scores)
        return [
            FirstForward(
                scores=score,
                logits=output.logits,
                inner_weights=batch.without_repeats(weight if recipe.inner_filter else torch.ones_like(weight)),
                outer_weights=weight if self._clean_decides else None,
            )
            for score, output, weight, batch in zip(scores, outputs, weights, batches)
        ]

    def settle(self, batches: Sequence[MicroBatch], weights: Sequence[Tensor]) -> StepWeights:
        """Returns the weights of the whole step: the rule's, less the held-out samples, and what they are divided by.

        Args:
            batches: all micro-batches of the optimizer step.
            weights: of `decide_weights`.
        """
        estimator = self.rate_estimator()
        samples = []
        for batch, weight in zip(batches, weights):
            training = weight
            if estimator is not None:
                # the estimate of the noise rate needs samples whose labels no update has seen
                training = torch.where(estimator.hold_out(batch.positions), torch.zeros_like(weight), weight)
            if self.evidence is not None and self.evidence.made and batch.index is not None:
                weight = self.evidence.trusted(batch)  # a row that is trained as another class is not trusted either
            samples.append(SampleWeights(weight, batch.without_repeats(training), batch.without_repeats(1.0 - training)))
        whole = torch.cat([sample.training[:, : batch.real] for sample, batch in zip(samples, batches)], 1)
        rule, total = self.run.recipe.selection, self.run.total
        # a process may have nothing but repeats
        kept = total(rule.divisor(whole) if isinstance(rule, BatchRule) and whole.shape[1] else whole.sum(1))
        semi = self.run.recipe.semi_supervised is not None
        return StepWeights(samples, kept, total(torch.cat([s.rest for s in samples], 1).sum(1)) if semi else None)

    # ---- the noise rate --------------------------------------------------------------------------------------------------

    @property
    def estimate(self) -> RateEstimate | None:
        """The share of wrong labels as estimated so far (``auto``, ``noise_rate="auto"``), None before the first estimate."""
        if self.evidence is not None:
            return self.evidence.rate
        return self.estimator.best if self.estimator is not None and self.estimator.started else None

    @property
    def rate(self) -> float | None:
        """The estimate, as it is used; None before the first one.

        Where nobody asked for an estimate, one that is still sinking counts for the method's own number at most.
        """
        if self.estimate is None or self.estimator is None:
            return None
        recipe = self.run.recipe
        most = recipe.settings["noise_rate"] if "noise_rate" in recipe.fitted and self.estimator.falling else 1.0
        return min(self.estimate.rate, most)

    def warning(self) -> str | None:
        """Returns what is to be said, once, of an estimate that is settled and cannot be relied on; None for nothing."""
        estimator = self.estimator
        if estimator is None or not estimator.settled or estimator.warned:
            return None
        estimator.warned = True
        if not estimator.started:
            return (
                "noise_rate='auto' found nothing: the model predicts held-out samples hardly better than chance, so nobody is "
                "dropped; give noise_rate a number, or train longer."
            )
        if estimator.falling and estimator.best is not None and estimator.best.rate > 0.05:
            used = (
                f" and {self.rate:g} is used; give noise_rate the share that you expect" if self.rate != estimator.best.rate else ""
            )
            return f"noise_rate='auto' found {estimator.best}, but it was still sinking: the true rate may be far lower{used}."
        return None

    def rate_estimator(self) -> RateEstimator | None:
        """Returns the estimator of ``noise_rate="auto"``, made when the first forward has told the number of classes."""
        kind, ledger = self.run.recipe.rate_estimator, self.run.ledger
        if self.estimator is None and kind is not None and ledger is not None:
            run = self.run
            self.estimator = RateEstimator(
                len(ledger), run.classes, run.device, ESTIMATED[kind], run.seed + _APART, run.max_epochs, self.floor.kept_whole()
            )
        return self.estimator


def _everybody(batches: Sequence[MicroBatch]) -> list[Tensor]:
    return [torch.ones(1, len(batch), device=batch.targets.device) for batch in batches]
