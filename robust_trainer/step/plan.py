"""A batch's walk through the house: perturb, trust, minimise, remember. Knows torch and the recipe, not the Trainer.

One optimizer step is walked as a whole: all its accumulation steps, on all processes. So a filter ranks the same samples,
and the shared perturbation averages the same signs, however the batch was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..data.randomness import keyed_seed
from ..ledger.ledger import SampleLedger
from ..ledger.pending import PendingRecords, StepRecord, record
from ..methods.recipe import Recipe
from ..models.outputs import read_output
from ..perturbations.awp import PerturbedWeights, WeightPerturbation, sum_over_processes
from ..perturbations.inputs import EmbeddingAdapter, Forward, InputAdapter
from ..problems import SINGLE_LABEL, Problem
from ..selection.noise_rate import RateEstimate, RateEstimator
from ..selection.rules import ESTIMATED
from ..types import BatchRule, ForwardOutput, Progress, decides_epochs
from .batch import Batch, RunningMeans, Step
from .decision import DatasetScores, EpochSelection
from .inner import InnerMaximization
from .outer import OuterMinimization

Context = Callable[[], AbstractContextManager]
Weights = list[Parameter]
_APART = 0x5EED  # so that the held-out samples are no stretch of the sampler's order, which comes from the same seed


@dataclass
class RobustStep:
    """The state of a run (ledger, carried fractions) and the steps 3 to 9 of docs/background/how_it_works.md.

    gather: concatenates a tensor over the processes. total: sums a tensor over the processes. rank: this process's number.
    """

    recipe: Recipe
    classes: int
    device: torch.device
    ledger: SampleLedger | None = None
    processes: int = 1
    rank: int = 0
    seed: int = 0
    gather: Callable[[Tensor], Tensor] = lambda t: t
    total: Callable[[Tensor], Tensor] = lambda t: t
    gradient_scale: float = 1.0
    problem: Problem = SINGLE_LABEL
    estimator: RateEstimator | None = None
    max_epochs: float = 1.0
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    means: RunningMeans = field(default_factory=RunningMeans)
    visits: PendingRecords = field(default_factory=PendingRecords)
    labels_checked: bool = True
    _inner: InnerMaximization | None = None

    def __post_init__(self) -> None:
        self.outer = OuterMinimization(self.recipe, self.view)
        self.decision = EpochSelection(self.recipe.selection, self.states)
        if self.ledger is not None:
            self.watch(self.ledger)

    def watch(self, ledger: SampleLedger) -> None:
        """Writes to this ledger, which takes up what waits before it is read."""
        self.ledger, ledger.before_read = ledger, self.take_up

    # ---- steps 3 to 5: trust early, perturb, shake -------------------------------------------------------------------

    def plan(
        self, bare: Forward, crafting: Context, traceless: Context, batches: list[Batch], progress: Progress, weights: Weights
    ) -> Step:
        """Perturbs every micro-batch of the step and decides what can be decided before the training forward.

        bare: the forward of the unwrapped model, in the inner maximisation called within ``crafting()``; within ``traceless()`` a
        training forward that leaves buffers and random state as they were. weights: those that AWP moves, none without it.
        """
        self._open_epoch(progress)
        progress = self._now(progress)
        if self.recipe.semi_supervised is not None:
            for batch, weight in zip(batches, self._known_weights(batches, True) or []):
                batch.weights, batch.labelled = weight, weight > 0
        if self.recipe.perturbation is not None:
            inner, every = self.inner(), self.recipe.collapse_check_steps
            with crafting():
                inner.perturb(bare, batches, progress)
                if every is not None and progress.global_step % every == 0:
                    inner.probe(bare, batches, progress, self.means)
        if self.recipe.semi_supervised is not None:
            with crafting():
                self.outer.prepare(bare, batches, progress, self._seed(progress), self.recipe.selection is not None)
        step = Step(batches)
        decided = [batch.weights for batch in batches if batch.weights is not None]
        known = decided if decided else self._known_weights(batches, self.recipe.outer_filter)
        apart = self.recipe.score_from == "eval"
        if known is None and (len(batches) > 1 or apart):
            # ranks need the scores of every micro-batch before the first backward: one more forward each, only here
            scores = []
            for batch in batches:
                with crafting() if apart else traceless():
                    scores.append(self.outer.scores(bare, batch))
                    batch.clean_scores = scores[-1] if apart else None
            known = self._rank(scores, batches, progress, "outer")
        if known is not None:
            self._settle(step, known)
        shake = self.recipe.weight_perturbation
        if shake is not None and progress.epoch >= shake.warmup_epochs:
            step.perturbed_weights = self._shaken(bare, traceless, step, progress, shake, weights)
        return step

    def _seed(self, progress: Progress) -> int:
        return keyed_seed("augmentation", self.seed, progress.global_step, self.rank)

    def set_front(self, front: InputAdapter) -> None:
        """Where the perturbation enters. The size of a text model's embeddings is the run's: resumed, it is not measured anew."""
        if isinstance(front, EmbeddingAdapter):
            kept = self.states.setdefault("front", {"unit": torch.tensor(front.unit)})
            front = replace(front, unit=float(kept["unit"]))
        self.outer.front = front

    def inner(self) -> InnerMaximization:
        """The inner maximisation, made at the first step: by then the front is known."""
        if self._inner is None:
            assert self.recipe.perturbation is not None and self.outer.front is not None
            self._inner = InnerMaximization(
                self.recipe, self.recipe.perturbation, self.outer.front, self.problem, self.view, self._trust_early, self.total,
                self.seed, self.rank, self.gradient_scale,
            )  # fmt: skip
        return self._inner

    def _shaken(
        self, bare: Forward, traceless: Context, step: Step, progress: Progress, shake: WeightPerturbation, weights: Weights
    ) -> PerturbedWeights:
        """The weights as AWP moves them, by the gradient of the step's whole loss; ranks are decided here, at unshaken weights."""
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        for batch in step.batches:
            with traceless(), torch.enable_grad():
                views = self.outer.views(self.outer.first(bare, batch), bare, batch)
                if batch.weights is None:
                    self._settle(step, self._rank([self.recipe.score(views[0])], [batch], progress, "outer"))
                assert batch.weights is not None
                self.outer.add_gradients(views, batch.weights * self.gradient_scale, weights, sums)
        return PerturbedWeights(
            weights, shake.offsets(weights, sum_over_processes(sums, self.total) if self.processes > 1 else sums)
        )

    def _trust_early(self, views: list[ForwardOutput], batches: list[Batch], progress: Progress) -> Tensor:
        """The weights (B,) of the samples in the inner maximisation, from the views of its first forward."""
        scores = [self.recipe.score(view) for view in views]
        for batch, score, view in zip(batches, scores, views):
            batch.clean_scores, batch.first_logits = score, view.logits
        recipe = self.recipe
        first = recipe.score_from == "clean" and recipe.outer_filter  # this forward decides for the outer step too
        weights = self._known_weights(batches, recipe.inner_filter or first)
        if weights is None:
            weights = self._rank(scores, batches, progress, "inner")
        for batch, weight in zip(batches, weights):
            batch.inner_weights = weight if recipe.inner_filter else torch.ones_like(weight)
            batch.weights = weight if first else None
        return torch.cat([batch.inner_weights.mean(0) for batch in batches if batch.inner_weights is not None])

    # ---- step 7: trust -----------------------------------------------------------------------------------------------

    def _known_weights(self, batches: list[Batch], active: bool) -> list[Tensor] | None:
        """Weights that need no further score: nothing to filter, or the ledger has decided for this epoch."""
        selection = self.recipe.selection
        nobody_left_out = self.recipe.semi_supervised is not None and not self.decision.made  # before the first split
        if selection is None or not active or nobody_left_out:
            return [torch.ones(1, len(b.targets), device=b.targets.device) for b in batches]
        if decides_epochs(selection) is not None and self.decision.made:
            assert self.ledger is not None
            return [self.ledger.keep[b.positions].float().unsqueeze(0) for b in batches]
        if not isinstance(selection, BatchRule):  # before its first decision over an epoch
            return [torch.ones(1, len(b.targets), device=b.targets.device) for b in batches]
        return None

    def _rank(self, scores: list[Tensor], batches: list[Batch], progress: Progress, place: str) -> list[Tensor]:
        """The rule's weights for this process's micro-batches, ranked over all micro-batches of all processes."""
        selection = self.recipe.selection
        assert isinstance(selection, BatchRule)
        own = torch.cat(scores, 1)
        labels = torch.cat([self.problem.classes_of(batch.targets) for batch in batches])
        everyone = self.gather(own.T.contiguous()).T.contiguous()
        if place not in self.states:
            self.states[place] = selection.new_state(self.classes, own.shape[0], own.device)
        weights = selection.weights(everyone, self.gather(labels), progress, self.states[place])
        mine = weights[:, self.rank * own.shape[1] : (self.rank + 1) * own.shape[1]]
        return list(mine.split([score.shape[1] for score in scores], 1))

    def _settle(self, step: Step, weights: list[Tensor]) -> None:
        for batch, weight in zip(step.batches, weights):
            batch.trusted = batch.weights = weight
            if (estimator := self._estimator()) is not None:
                # the estimate of the noise rate needs samples whose labels no update has seen
                batch.weights = torch.where(estimator.hold_out(batch.positions), torch.zeros_like(weight), weight)
        selection, whole = self.recipe.selection, torch.cat([b.weights for b in step.batches if b.weights is not None], 1)
        step.kept = self.total(selection.divisor(whole) if isinstance(selection, BatchRule) else whole.sum(1))
        if self.recipe.semi_supervised is not None:
            step.dropped = self.total((1.0 - whole).sum(1))

    # ---- steps 6 to 9: forward (by the caller), trust, minimise, remember --------------------------------------------

    def loss(self, outputs: Any, bare: Forward, batch: Batch, step: Step, progress: Progress) -> Tensor:
        """The micro-batch's share of the step's loss: sum over kept samples / kept samples of the whole step, scalar.

        outputs: of `OuterMinimization.first`. Multiplied by the number of processes, because distributed training averages the
        gradients.
        """
        progress = self._now(progress)
        views = self.outer.views(outputs, bare, batch)
        view, own = self.outer.with_gradient_norms(views[0])
        scores = self.recipe.score(view)
        if batch.weights is None:
            self._settle(step, self._rank([scores], [batch], progress, "outer"))
        weights = batch.weights
        assert weights is not None and step.kept is not None
        divisor = torch.as_tensor(step.kept, device=view.logits.device).clamp_min(1.0)
        if self.recipe.semi_supervised is not None:
            loss = self.outer.semi_loss(views, batch, divisor, step.dropped, progress, self.means) * self.processes
        else:
            loss = self.outer.loss(views, weights, divisor, own, self.means) * self.processes
        assert batch.trusted is not None
        self._remember(view, scores, batch.trusted, batch, progress)
        return loss

    @torch.no_grad()
    def _remember(self, view: ForwardOutput, scores: Tensor, weights: Tensor, batch: Batch, progress: Progress) -> None:
        if not self.recipe.outer_filter and batch.inner_weights is not None:
            weights = batch.inner_weights
        if self.recipe.score_from != "training" and batch.clean_scores is not None:
            scores = batch.clean_scores
        if self.recipe.ledger_score is not None:
            scores = self.recipe.ledger_score(view)
        score, weight = scores.mean(0), weights.mean(0)
        if self.ledger is None or batch.index is None:
            self.means.add("kept_fraction", weight.sum(), weight.numel())
            return
        logits = view.logits if batch.first_logits is None else batch.first_logits
        labels = self.problem.ledger_labels(batch.targets)
        selection = self.recipe.selection
        filter_active = selection is not None and selection.filter_active(progress)
        visit = StepRecord(logits.detach(), score, weight, labels, batch.index, int(progress.epoch), filter_active)
        if not self.visits.fits(visit):
            self.take_up()
        self.visits.waiting.append(visit)
        if self.processes > 1 or self.visits.full:  # a ledger that is read on one process alone must not wait for the others
            self.take_up()

    def take_up(self) -> None:
        """Records the visits that wait, in the ledger, the running means and the noise rate's estimator."""
        visit = self.visits.take()
        if visit is not None and self.ledger is not None:
            record(visit, self.ledger, self.means, self._estimator(), self.problem.one_class, self.gather)

    def take_logs(self) -> dict[str, float]:
        """The running means since the last call, over all processes (one host sync)."""
        self.take_up()
        logs = self.means.take(self.total)
        if (estimate := self.estimate) is not None:
            logs.update(noise_rate=estimate.rate, noise_rate_low=estimate.low, noise_rate_high=estimate.high)
        return logs

    # ---- the noise rate ----------------------------------------------------------------------------------------------

    @property
    def estimate(self) -> RateEstimate | None:
        """The share of wrong labels as estimated so far (``noise_rate="auto"``), None before the first estimate."""
        return self.estimator.best if self.estimator is not None and self.estimator.started else None

    def _estimator(self) -> RateEstimator | None:
        """The estimator of ``noise_rate="auto"``; made when the first forward has told the number of classes."""
        asked = self.recipe.rate_estimator
        if self.estimator is None and asked is not None:
            assert self.ledger is not None
            seed = self.seed + _APART
            kind = ESTIMATED[asked]
            self.estimator = RateEstimator(len(self.ledger), self.classes, self.device, kind, seed, self.max_epochs)
        return self.estimator

    def _now(self, progress: Progress) -> Progress:
        return progress if self.estimate is None else replace(progress, noise_rate=self.estimate.rate)

    # ---- the epoch's opening -----------------------------------------------------------------------------------------

    def _open_epoch(self, progress: Progress) -> None:
        """At the first step of an epoch: a new estimate of the noise rate, and whom to keep where memory decides."""
        self.max_epochs = progress.max_epochs
        if self.estimator is not None:
            self.take_up()
            self.estimator.half = max(1.0, progress.max_epochs / 2)  # a resumed estimator was made before this was known
            self.estimator.estimate(int(progress.epoch))
        self.decision.remember(self.ledger, self.classes, self._now(progress))

    # ---- the scan before an epoch -------------------------------------------------------------------------------------

    def scan_due(self, progress: Progress) -> bool:
        """Whether the epoch that starts now wants all samples scored first."""
        return self.decision.scan_due(self.ledger, progress)

    def scanned(self, found: DatasetScores, progress: Progress) -> list[int]:
        """Takes up what a scan of all samples found; returns the classes that nobody is left of."""
        assert self.ledger is not None
        return self.decision.scanned(self.ledger, found, self.classes, self._now(progress))

    def split(self) -> Tensor | None:
        """Whose labels the epoch trains on, bool (N,), None before there is a decision."""
        return self.ledger.keep if self.ledger is not None and self.decision.made else None

    def view(self, outputs: Any, batch: Batch) -> ForwardOutput:
        """The forward pass with its targets. Raises ``ValueError`` where the model's output does not fit them."""
        view = read_output(outputs, batch.targets, batch.index, self.problem, self.recipe.name)
        unknown = self.classes != view.logits.shape[2]
        if unknown or (not self.labels_checked and batch.targets.device.type == "cpu"):
            # a module without a config tells its number of classes only here, past the collator's check of the labels;
            # on an accelerator, where looking costs a sync, only the first batch is looked at
            self.classes = view.logits.shape[2]
            self.problem.check_targets(batch.targets, self.classes)
        return view

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as CPU tensors."""
        self.take_up()
        out = {f"state.{place}.{k}": v.cpu() for place, state in self.states.items() for k, v in state.items()}
        out["classes"] = torch.tensor(self.classes)
        if self.estimator is not None:
            out.update(self.estimator.state())
        return {**out, **(self.ledger.state() if self.ledger is not None else {})}

    def load_state(self, saved: dict[str, Tensor]) -> None:
        """Restores `state`."""
        for name, value in saved.items():
            kind, *rest = name.split(".")
            if kind == "classes":
                self.classes = int(value)
            if kind == "state":
                place, key = rest
                self.states.setdefault(place, {})[key] = value if place == "keep" else value.to(self.device)
        if "rate.numbers" in saved and (estimator := self._estimator()) is not None:
            estimator.load_state(saved)
        if self.ledger is not None:
            self.ledger.load_state(saved)
