"""The optimizer step: perturb, decide weights, minimise, record. Knows torch and the recipe, not the Trainer.

One optimizer step is planned as a whole: all its accumulation steps, on all processes. So a rule ranks the same samples, and a
shared perturbation averages the same signs, however the batch was cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.randomness import keyed_seed
from ..models.outputs import read_output
from ..perturbations.awp import PerturbedWeights, WeightPerturbation, sum_over_processes
from ..perturbations.inputs import EmbeddingAdapter, Forward, InputAdapter, PixelAdapter
from ..types import ForwardOutput, Objective, Progress
from .class_floor import ClassFloor
from .dataset_scores import EpochSelection, score_dataset
from .evidence import EvidenceStage
from .inner import InnerMaximization
from .nonfinite import finite_samples, without
from .outer import OuterMinimization
from .recorder import StepRecorder
from .records import (
    InnerResult,
    MicroBatch,
    ModelAccess,
    MovedInputs,
    PlannedBatch,
    Run,
    StepPlan,
    StepWeights,
    placed,
)
from .semi_supervised import SemiSupervisedStep
from .weights import WeightDecider


class RobustStep:
    """Plans optimizer steps, takes their losses and records what they tell of each sample (docs/background/how_it_works.md).

    Args:
        run: what all steps of the training share.
    """

    def __init__(self, run: Run):
        self.run = run
        self.floor = ClassFloor(run)
        self.selection = EpochSelection(run, self.floor)
        self.evidence = EvidenceStage(run, run.recipe.evidence) if run.recipe.evidence is not None else None
        if self.evidence is not None:
            run.recipe = replace(run.recipe, relabel=self.evidence.targets)
        self.weights = WeightDecider(run, self.selection, self.floor, self.evidence)
        self.outer = OuterMinimization(run.recipe, self.read)
        self.adapter: InputAdapter | None = None
        self.inner: InnerMaximization | None = None
        self.semi_supervised: SemiSupervisedStep | None = None
        self.begun = False  # the first batch was looked at
        self.recorder = StepRecorder(run, self.weights, self.floor, self.evidence)

    def set_adapter(self, adapter: InputAdapter) -> None:
        """Says what a perturbation or an augmentation moves; known from the first batch on.

        Args:
            adapter: the unit of a text model's embeddings is the run's: resumed, it is not measured anew.
        """
        run, recipe = self.run, self.run.recipe
        if isinstance(adapter, EmbeddingAdapter):
            # the first process's: Accelerate's RAM-efficient loading leaves the others without weights before they are sharded
            first = run.total(torch.tensor(adapter.unit if run.rank == 0 else 0.0, device=run.device)).cpu()
            kept = run.states.setdefault("adapter", {"unit": first})
            adapter = replace(adapter, unit=float(kept["unit"]))
        self.adapter = adapter
        if recipe.perturbation is not None:
            self.inner = InnerMaximization(
                recipe, recipe.perturbation, adapter, run.problem, self.read, self.weights.of_first_forward, run.total, run.seed,
                run.gradient_scale,
            )  # fmt: skip
        if recipe.semi_supervised is not None and isinstance(adapter, PixelAdapter):
            self.semi_supervised = SemiSupervisedStep(recipe.semi_supervised, recipe.objective, adapter, self.read)

    def set_objective(self, objective: Objective) -> None:
        """Says what is minimised on labels, before an adapter is set.

        Args:
            objective: the loss of each sample.
        """
        self.run.recipe = self.outer.recipe = replace(self.run.recipe, objective=objective)

    def defer(self, deferred: bool) -> None:
        """Says of the micro-batch that is trained next whether its backward leaves the exchange of gradients to a later one.

        Args:
            deferred: as ``accelerator.no_sync`` has it.
        """
        self.run.deferred = deferred
        if self.outer.recorder is not None:
            self.outer.recorder.deferred = deferred

    # ---- before the training forwards ----------------------------------------------------------------------------------------

    def plan(self, model: ModelAccess, batches: list[MicroBatch], progress: Progress, ending: int | None = None) -> StepPlan:
        """Perturbs every micro-batch of the step and decides what can be decided before the training forward.

        Args:
            model: the unwrapped model.
            batches: all micro-batches of this process.
            progress: where training stands.
            ending: samples of the epoch that the step ends, None for other steps (`records.placed`).

        Returns:
            The step's plan, complete but for the weights where a single micro-batch's training forward decides.
        """
        self._open_epoch(progress)
        batches = placed(batches, self.run, ending)
        progress, recipe = self._with_rate(progress), self.run.recipe
        labels = self.weights.known_weights(batches, "outer") if self.semi_supervised is not None else None
        labelled = [weight > 0 for weight in labels] if labels is not None else None
        inner = self._perturb(model, batches, progress, labelled)
        planned = self._planned(model, batches, inner, progress)
        early = [result.first.outer_weights for result in inner if result.first.outer_weights is not None]
        known = early or labels or self.weights.known_weights(batches, "outer")
        if known is None and (len(batches) > 1 or recipe.score_from == "eval"):
            # ranks need the scores of every micro-batch before the first backward: one more forward each, only here
            scores = []
            for batch in planned:
                with model.crafting() if recipe.score_from == "eval" else model.training():
                    scores.append(self.outer.scores(model.forward, batch))
            known = self.weights.decide_weights(batches, "outer", progress, scores)
            if recipe.score_from == "eval":
                planned = [replace(batch, eval_scores=score) for batch, score in zip(planned, scores)]
        weights = self.weights.settle(batches, known) if known is not None else None
        awp = recipe.weight_perturbation
        if awp is None or progress.epoch < awp.warmup_epochs:
            return StepPlan(planned, weights, None)
        weights, moved = self._perturb_weights(model, planned, weights, progress, awp)
        return StepPlan(planned, weights, moved)

    def _perturb(
        self, model: ModelAccess, batches: list[MicroBatch], progress: Progress, labelled: list[Tensor] | None
    ) -> list[InnerResult]:
        if self.inner is None:
            return []
        every = self.run.recipe.collapse_check_steps
        with model.crafting():
            inner = self.inner.perturb(model.forward, batches, progress, labelled)
            if every is not None and progress.global_step % every == 0:
                self.inner.probe(model.forward, batches, inner, progress, self.run.means, labelled)
        return inner

    def _planned(
        self, model: ModelAccess, batches: list[MicroBatch], inner: list[InnerResult], progress: Progress
    ) -> list[PlannedBatch]:
        """What each micro-batch's training forwards take."""
        adapter, recipe = self.adapter, self.run.recipe
        if adapter is None:
            return [PlannedBatch(batch) for batch in batches]
        if self.semi_supervised is not None:
            seed = keyed_seed("augmentation", self.run.seed, progress.global_step)
            with model.crafting():
                inputs = self.semi_supervised.inputs(model.forward, batches, inner, progress, seed, recipe.selection is not None)
            return [
                PlannedBatch(
                    batch,
                    first=MovedInputs(adapter, batch.inputs, own.strong),
                    second=None if own.second is None else MovedInputs(adapter, batch.inputs, own.second),
                    inner=inner[place] if inner else None,
                    pseudo=own.pseudo,
                )
                for place, (batch, own) in enumerate(zip(batches, inputs))
            ]
        moved = [MovedInputs(adapter, batch.inputs, result.adversarial) for batch, result in zip(batches, inner)]
        if recipe.adversarial_loss is not None:  # on the inputs as they came, and on the perturbed ones
            return [PlannedBatch(batch, second=x, inner=result) for batch, x, result in zip(batches, moved, inner)]
        return [PlannedBatch(batch, first=x, inner=result) for batch, x, result in zip(batches, moved, inner)]

    def _perturb_weights(
        self, model: ModelAccess, planned: list[PlannedBatch], weights: StepWeights | None, progress: Progress,
        awp: WeightPerturbation,
    ) -> tuple[StepWeights | None, PerturbedWeights]:  # fmt: skip
        """The weights as AWP moves them, by the gradient of the step's whole loss; ranks are decided at unmoved weights."""
        run, parameters = self.run, model.awp_weights
        sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
        for place, batch in enumerate(planned):
            with model.training(), torch.enable_grad():
                outputs = self.outer.outputs(self.outer.first(model.forward, batch), model.forward, batch)
                if weights is None:  # the only micro-batch
                    weights = self._decide_late(batch, run.recipe.score(outputs[0]), progress)
                self.outer.add_gradients(outputs, weights.samples[place].training * run.gradient_scale, model.gradients, sums)
        return weights, PerturbedWeights(
            parameters,
            awp.offsets(parameters, sum_over_processes(sums, run.total) if run.processes > 1 else sums),
            model.fresh,
        )

    def _decide_late(self, planned: PlannedBatch, scores: Tensor, progress: Progress) -> StepWeights:
        """The weights of a step of one micro-batch, from its training forward's scores."""
        batches = [planned.batch]
        return self.weights.settle(batches, self.weights.decide_weights(batches, "outer", progress, [scores]))

    # ---- the training forwards -----------------------------------------------------------------------------------------------

    def recording(self, planned: PlannedBatch) -> AbstractContextManager:
        """Returns what a micro-batch's training forward runs in."""
        return self.outer.recording(planned)

    def loss(self, first: Any, bare: Forward, plan: StepPlan, place: int, progress: Progress) -> Tensor:
        """Returns a micro-batch's share of the step's loss: sum over kept samples / kept samples of the whole step, scalar.

        Multiplied by the number of processes, because distributed training averages the gradients.

        Args:
            first: what the model returned in the training forward (`OuterMinimization.first`).
            bare: the unwrapped model's forward.
            plan: of the step.
            place: which of its micro-batches.
            progress: where training stands.
        """
        run, planned, progress = self.run, plan.batches[place], self._with_rate(progress)
        outputs = self.outer.outputs(first, bare, planned)
        output, recorded = self.outer.with_gradient_norms(outputs[0])
        scores = run.recipe.score(output)
        weights = plan.weights if plan.weights is not None else self._decide_late(planned, scores, progress)
        finite = finite_samples([output, *outputs[1:]])
        self.recorder.guard.take(finite)
        sample = weights.samples[place].only(finite)
        if self.semi_supervised is not None:
            outputs = without(outputs, finite)
            loss = self.semi_supervised.loss(outputs, planned.pseudo, sample, weights, progress, run.means)
        else:
            loss = self.outer.loss(outputs, sample.training, weights.kept.clamp_min(1.0), recorded, run.means)
        self.recorder.record(output, scores, sample, planned, progress, finite.all(0))
        return loss * run.processes

    def _with_rate(self, progress: Progress) -> Progress:
        rate = self.weights.rate
        return progress if rate is None else replace(progress, noise_rate=rate)

    # ---- an epoch's start ----------------------------------------------------------------------------------------------------

    def _open_epoch(self, progress: Progress) -> None:
        """At the first step of an epoch: a new estimate of the noise rate, and whom to keep where memory decides."""
        self.run.max_epochs = progress.max_epochs
        if (estimator := self.weights.estimator) is not None:
            self.recorder.flush()
            estimator.half = max(1.0, progress.max_epochs / 2)  # a resumed estimator was made before this was known
            estimator.estimate(int(progress.epoch))
        self.floor.open_epoch(progress)
        self.selection.from_memory(self._with_rate(progress))

    def decide_epoch(self, model: nn.Module, batches: Iterable[MicroBatch], progress: Progress) -> str:
        """Looks at all samples before an epoch: judges their labels, or decides from their scores whom to keep.

        Args:
            model: unwrapped.
            batches: the data set, each sample once; of several processes, each its share.
            progress: where training stands.

        Returns:
            What is to be said, '' for nothing.
        """
        run = self.run
        if run.ledger is None:
            return ""
        if self.evidence is not None:
            return self.evidence.judge(model, batches, self.read)
        return self.selection.from_scan(score_dataset(run, run.ledger, model, batches, self.read), self._with_rate(progress))

    def scan_due(self, progress: Progress) -> bool:
        """Returns whether the epoch that starts now wants all samples looked at first."""
        return self.evidence.due(progress) if self.evidence is not None else self.selection.scan_due(progress)

    def labelled(self) -> Tensor | None:
        """Returns whose labels the epoch trains on, bool (N,), None before there is a decision."""
        return self.run.ledger.keep if self.run.ledger is not None and self.selection.made else None

    # ---- the model's outputs, checkpoints ------------------------------------------------------------------------------------

    def read(self, outputs: Any, batch: MicroBatch) -> ForwardOutput:
        """Returns the forward pass with its targets.

        Args:
            outputs: what the model returned.
            batch: of which.

        Raises:
            ValueError: where the outputs do not fit the targets.
        """
        run = self.run
        output = read_output(outputs, batch.targets, batch.index, run.problem, run.recipe.name)
        unknown = run.classes != output.logits.shape[2]
        if unknown or (not run.labels_checked and batch.targets.device.type == "cpu"):
            # a module without a config tells its number of classes only here, past the collator's check of the labels;
            # on an accelerator, where looking costs a sync, only the first batch is looked at
            run.classes = output.logits.shape[2]
            run.problem.check_targets(batch.targets, run.classes)
        return output

    def state(self) -> dict[str, Tensor]:
        """Returns everything that a resumed run needs, as CPU tensors."""
        self.recorder.flush()
        run = self.run
        out = {f"state.{place}.{k}": v.cpu() for place, state in run.states.items() for k, v in state.items()}
        out["classes"] = torch.tensor(run.classes)
        if self.weights.estimator is not None:
            out.update(self.weights.estimator.state())
        return {**out, **(run.ledger.state() if run.ledger is not None else {})}

    def load_state(self, saved: dict[str, Tensor]) -> None:
        """Restores `state`.

        Args:
            saved: what `state` returned.

        Raises:
            ValueError: for the state of a data set of another size.
        """
        run = self.run
        for name, value in saved.items():
            kind, *rest = name.split(".")
            if kind == "classes":
                run.classes = int(value)
            if kind == "state":
                place, key = rest
                run.states.setdefault(place, {})[key] = value if place in ("keep", "evidence") else value.to(run.device)
        if "rate.numbers" in saved and (estimator := self.weights.rate_estimator()) is not None:
            estimator.load_state(saved)
        if run.ledger is not None:
            run.ledger.load_state(saved)
