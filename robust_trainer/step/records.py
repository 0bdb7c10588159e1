"""What the parts of a step hand to each other: immutable, and complete when they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..ledger.ledger import SampleLedger
from ..ledger.means import RunningMeans
from ..methods.recipe import Recipe
from ..methods.run_length import RunLength
from ..perturbations.awp import PerturbedWeights
from ..perturbations.inputs import Forward, InputAdapter
from ..problems import SINGLE_LABEL, Problem

Context = Callable[[], AbstractContextManager]


@dataclass
class Run:
    """What all steps of one training share.

    Attributes:
        recipe: the method, with the problem's own loss where it names none.
        device: of the training.
        problem: what kind of problem the samples pose.
        classes: the model's classes (or outputs), 0 until the first forward where its config does not name them.
        labels_checked: whether the collator knew the classes and has checked every label.
        ledger: what is remembered of each sample; None for a streaming data set.
        processes: how many train together. rank: this one's number, for its share of what all have; no random number depends on it.
        seed: of the run.
        gather: concatenates a tensor over the processes. total: sums one over them.
        gradient_scale: keeps half-precision gradients from underflow.
        max_epochs: epochs that the training will take.
        epoch_samples: samples of an epoch, None where nobody knows.
        deferred: whether the micro-batch that is trained now leaves the exchange of its gradients to a later one's backward.
        length: of the run.
        states: what rules and decisions carry from step to step, by place and name; all of it is in checkpoints.
        means: what is logged.
    """

    recipe: Recipe
    device: torch.device
    problem: Problem = SINGLE_LABEL
    classes: int = 0
    labels_checked: bool = True
    ledger: SampleLedger | None = None
    processes: int = 1
    rank: int = 0
    seed: int = 0
    gather: Callable[[Tensor], Tensor] = lambda t: t
    total: Callable[[Tensor], Tensor] = lambda t: t
    gradient_scale: float = 1.0
    max_epochs: float = 1.0
    epoch_samples: int | None = None
    deferred: bool = False
    length: RunLength = field(default=RunLength(1.0, 1))
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    means: RunningMeans = field(default_factory=RunningMeans)

    def epochs_at(self, epoch: float, step: int) -> tuple[float, float]:
        """Returns the finished epochs, of a stream the finished part of the run, and all epochs of the run.

        Args:
            epoch: finished epochs as the Trainer counts them.
            step: finished optimizer steps.
        """
        return (epoch if self.ledger is not None else step / self.length.steps), self.length.epochs


@dataclass(frozen=True)
class ModelAccess:
    """The unwrapped model, as a step uses it beside the training forward.

    Attributes:
        forward: its forward.
        crafting: what the inner maximisation's forwards run in.
        training: what a training forward runs in that leaves buffers and random numbers as they were.
        awp_weights: the weights that AWP moves, none without it.
        gradients: of a loss with respect to these, None where it does not depend on one; of sharded ones the processes' mean.
        fresh: called before weights are moved, so that the next forward sees it.
    """

    forward: Forward
    crafting: Context
    training: Context
    awp_weights: list[Parameter]
    gradients: Callable[[Tensor], Sequence[Tensor | None]]
    fresh: Callable[[], None]


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of this process.

    Attributes:
        inputs: the model's, without labels and index.
        targets: (B,) or (B, K).
        index: the positions in the data set (B,), None where the batch carries none.
        place: of its first sample in the optimizer step, in the order in which one process would see them all.
        repeats: how many of its last samples only fill up the last step of an epoch, which processes share evenly; they count
            nowhere.
        all_repeats: the same over all processes.
    """

    inputs: dict[str, Any]
    targets: Tensor
    index: Tensor | None
    place: int = 0
    repeats: int = 0
    all_repeats: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def real(self) -> int:
        """How many of its first samples are no repeats."""
        return len(self) - self.repeats

    def without_repeats(self, weights: Tensor) -> Tensor:
        """Returns weights (..., B), 0 for the repeats."""
        if not self.repeats:
            return weights
        return torch.where(torch.arange(len(self), device=weights.device) < self.real, weights, torch.zeros_like(weights))

    @property
    def positions(self) -> Tensor:
        """The positions in the data set (B,). Raises ``ValueError`` where the batch carries none."""
        if self.index is None:
            raise ValueError("the batch carries no sample index: train through trainer.train(), or use a method without memory.")
        return self.index


def placed(batches: Sequence[MicroBatch], run: Run, ending: int | None) -> list[MicroBatch]:
    """Returns an optimizer step's micro-batches with their places in it and their repeats.

    A loader deals out the micro-batches of one process's order by turns, and fills the last turn up with samples from the start.

    Args:
        batches: of this process, in their order; those of one turn have one size.
        run: whose processes share the step.
        ending: samples of the epoch that the step ends; None for a step in its middle.
    """
    first, out = 0, []
    for number, batch in enumerate(batches, 1):
        size = run.processes * len(batch)
        fill = -ending % size if ending is not None and number == len(batches) else 0
        after = (run.processes - 1 - run.rank) * len(batch)  # samples of the turn that come after this process's
        repeats = min(max(fill - after, 0), len(batch))
        out.append(replace(batch, place=first + run.rank * len(batch), repeats=repeats, all_repeats=fill))
        first += size
    return out


def places(batches: Sequence[MicroBatch], device: torch.device | str) -> Tensor:
    """Returns the places of the micro-batches' samples in the optimizer step (B,), on a device, which is not waited for."""
    ranges = [torch.arange(batch.place, batch.place + len(batch), device=device) for batch in batches]
    return torch.cat(ranges) if len(ranges) > 1 else ranges[0]


@dataclass(frozen=True)
class MovedInputs:
    """A micro-batch's inputs with what the adapter moves put to x (B, ...), or to k variants of each sample (k B, ...)."""

    adapter: InputAdapter
    inputs: dict[str, Any]
    x: Tensor

    def forward(self, forward: Forward) -> Any:
        """Returns the model's outputs at x."""
        return self.adapter.forward(forward, self.inputs, self.x)


@dataclass(frozen=True)
class FirstForward:
    """What the inner maximisation's first forward tells of a micro-batch: its inputs as they came, or at the random start.

    Attributes:
        scores: (M, B). logits: (M, B, C).
        inner_weights: (M, B), the samples' weights in the inner maximisation.
        outer_weights: (M, B), where this forward decides over the training step, too (``score_from="clean"``), else None.
    """

    scores: Tensor
    logits: Tensor
    inner_weights: Tensor
    outer_weights: Tensor | None


@dataclass(frozen=True)
class InnerResult:
    """What the inner maximisation found for a micro-batch: x (B, ...), for norm ``both`` (2 B, ...), and its first forward."""

    adversarial: Tensor
    first: FirstForward


@dataclass(frozen=True)
class SemiSupervisedInputs:
    """What the training forwards of a semi-supervised step take, and the unlabelled samples' targets.

    Attributes:
        strong: the strongly augmented samples (B, ...).
        second: k variants of each sample for the second forward (k B, ...), None without an attack.
        pseudo: (M, B, C), None during the warm-up and where all samples are labelled.
    """

    strong: Tensor
    second: Tensor | None
    pseudo: Tensor | None


@dataclass(frozen=True)
class PlannedBatch:
    """A micro-batch with all that is known of it before its training forward.

    Attributes:
        batch: as it came.
        first: what the training forward takes, None for the inputs as they came.
        second: what one more forward takes, None for none.
        inner: of the inner maximisation, None without one.
        pseudo: targets of the unlabelled samples (M, B, C).
        eval_scores: (M, B), of one more forward in evaluation mode, where that decides.
    """

    batch: MicroBatch
    first: MovedInputs | None = None
    second: MovedInputs | None = None
    inner: InnerResult | None = None
    pseudo: Tensor | None = None
    eval_scores: Tensor | None = None


@dataclass(frozen=True)
class SampleWeights:
    """The weights of a micro-batch's samples (M, B).

    Attributes:
        rule: what the rule says; this is recorded.
        training: what counts in the loss: 0 for samples held out for the noise rate's estimate, too, and for repeats.
        rest: what is left of weight 1; 0 for repeats.
    """

    rule: Tensor
    training: Tensor
    rest: Tensor

    def only(self, finite: Tensor) -> SampleWeights:
        """Returns the weights with 0 for all other samples than these, bool (M, B)."""
        return SampleWeights(*(torch.where(finite, own, torch.zeros_like(own)) for own in (self.rule, self.training, self.rest)))


@dataclass(frozen=True)
class StepWeights:
    """The weights of a whole optimizer step.

    Attributes:
        samples: one for each micro-batch of this process.
        kept: (M,), what the losses on labels are divided by, over all processes.
        dropped: (M,), the same of the unlabelled samples' losses; None where these have none.
    """

    samples: list[SampleWeights]
    kept: Tensor
    dropped: Tensor | None


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step before its training forwards.

    Attributes:
        batches: its micro-batches.
        weights: None where the one micro-batch's training forward decides.
        perturbed_weights: the weights as AWP moves them, None without it.
    """

    batches: list[PlannedBatch]
    weights: StepWeights | None
    perturbed_weights: PerturbedWeights | None
