"""What the parts of a step hand to each other: immutable, and complete when they are made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..ledger.ledger import SampleLedger
from ..ledger.means import RunningMeans
from ..methods.recipe import Recipe
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
        processes: how many train together. rank: this one's number. seed: of the run.
        gather: concatenates a tensor over the processes. total: sums one over them.
        gradient_scale: keeps half-precision gradients from underflow.
        max_epochs: epochs that the training will take.
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
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    means: RunningMeans = field(default_factory=RunningMeans)


@dataclass(frozen=True)
class ModelAccess:
    """The unwrapped model, as a step uses it beside the training forward.

    Attributes:
        forward: its forward.
        crafting: what the inner maximisation's forwards run in.
        training: what a training forward runs in that leaves buffers and random numbers as they were.
        awp_weights: the weights that AWP moves, none without it.
    """

    forward: Forward
    crafting: Context
    training: Context
    awp_weights: list[Parameter]


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch: the model's inputs without labels and index, the targets (B,) or (B, K), the positions (B,) or None."""

    inputs: dict[str, Any]
    targets: Tensor
    index: Tensor | None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def positions(self) -> Tensor:
        """The positions in the data set (B,). Raises ``ValueError`` where the batch carries none."""
        if self.index is None:
            raise ValueError("the batch carries no sample index: train through trainer.train(), or use a method without memory.")
        return self.index


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
        training: what counts in the loss: 0 for samples held out for the noise rate's estimate, too.
    """

    rule: Tensor
    training: Tensor

    def only(self, finite: Tensor) -> SampleWeights:
        """Returns the weights with 0 for all other samples than these, bool (M, B)."""
        return SampleWeights(*(torch.where(finite, own, torch.zeros_like(own)) for own in (self.rule, self.training)))


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
