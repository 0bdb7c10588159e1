"""What every layer speaks of: B samples in a batch, C classes (or outputs), M networks side by side (1 for ordinary training)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .problems import SINGLE_LABEL, Problem


@dataclass(frozen=True)
class Progress:
    """Where training stands: ``epoch`` counts finished epochs as a float (0.0 at the start), as the trainer's state does.

    Attributes:
        epoch: finished epochs, a float.
        max_epochs: epochs that the training will take.
        global_step: finished optimizer steps.
        noise_rate: the share of corrupted samples estimated so far (``noise_rate="auto"``), None before the first estimate.
        seed: of the run, for what is drawn in a step.
    """

    epoch: float
    max_epochs: float
    global_step: int = 0
    noise_rate: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class ForwardOutput:
    """One forward pass kept together: outputs of all networks, what is to be predicted and, where known, sample indices.

    Attributes:
        logits: (M, B, C); of samples without labels (M, B, 2): what the model returned as each sample's loss and score.
        targets: class labels (B,), or where the problem is another, numbers (B, C).
        index: the samples' positions in the data set (B,), None where unknown.
        outputs: what the model returned, as it returned it.
        problem: what kind of problem the samples pose.
        gradient_norms: (M, B), the norm of each sample's gradient over all parameters, for methods that ask for it.
    """

    logits: Tensor
    targets: Tensor
    index: Tensor | None = None
    outputs: Any = None
    problem: Problem = SINGLE_LABEL
    gradient_norms: Tensor | None = None

    def network_targets(self) -> Tensor:
        """Returns the targets as objectives take them, one row for each network: (M, B) or (M, B, C)."""
        return self.targets.expand(self.logits.shape[0], *self.targets.shape)


@runtime_checkable
class Score(Protocol):
    """A number for each sample that says how suspicious it is: HIGHER = MORE SUSPICIOUS, everywhere."""

    def __call__(self, output: ForwardOutput, /) -> Tensor:
        """Returns the scores.

        Args:
            output: a forward pass of M networks on B samples.

        Returns:
            Scores (M, B), detached. NaN is ranked last, so as most suspicious.
        """
        ...


@runtime_checkable
class BatchRule(Protocol):
    """Whom to train on, decided in every optimizer step from the scores of its samples."""

    def new_state(self, classes: int, peers: int, device: torch.device) -> dict[str, Tensor]:
        """Returns what the rule carries from one step to the next, by name; it is kept in checkpoints.

        Args:
            classes: number of classes (or outputs) of the model.
            peers: M, the number of networks.
            device: where the scores live.
        """
        ...

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor:
        """Returns the samples' weights.

        Args:
            scores: (M, B), of one whole optimizer step: all micro-batches of all processes.
            labels: the samples' classes (B,), zeros where they have none.
            progress: where training stands.
            state: of `new_state`, to be updated in place.

        Returns:
            Weights (M, B) in [0, 1]: what network m's loss of each sample is multiplied by.
        """
        ...

    def divisor(self, weights: Tensor) -> Tensor:
        """Returns what the weighted sum of a step's losses is divided by, (M,).

        Args:
            weights: (M, B), of this process's samples; the answers of all processes are added.
        """
        ...

    def filter_active(self, progress: Progress) -> bool:
        """Returns whether being left out of a step means distrust (the ledger's ``distrusted``).

        Args:
            progress: where training stands.
        """
        ...


@runtime_checkable
class EpochRule(Protocol):
    """Whom to train on, decided over the whole data set as an epoch starts and kept for all of that epoch.

    A rule may be both: before the first decision over an epoch its `BatchRule` is asked, and where it is none everybody is kept.
    """

    @property
    def memory(self) -> str:
        """Which scores the decision rests on.

        ``ema``: the ledger's, over the epochs so far; ``scan``: all samples scored as the epoch starts, in evaluation
        mode; ``none``: it decides over no epoch.
        """
        ...

    def decides(self, progress: Progress) -> bool:
        """Returns whether an epoch that starts now is decided over; asked until it first says yes, for ``scan`` at every epoch.

        Args:
            progress: where training stands.
        """
        ...

    def keep_mask(
        self, scores: Tensor, seen: Tensor, labels: Tensor, classes: int, progress: Progress, kept: Tensor | None = None
    ) -> Tensor:
        """Returns the samples to train on during the epoch, bool (N,).

        Args:
            scores: (N,), of all samples of the data set.
            seen: how often each sample has been scored (N,).
            labels: the samples' classes (N,), zeros where they have none.
            classes: number of classes (or outputs) of the model.
            progress: where training stands.
            kept: bool (N,), those of the last epoch.
        """
        ...

    def filter_active(self, progress: Progress) -> bool:
        """Returns whether being left out means distrust (the ledger's ``distrusted``).

        Args:
            progress: where training stands.
        """
        ...


#: What a recipe's ``selection`` may be.
SelectionRule = BatchRule | EpochRule


def decides_epochs(rule: SelectionRule | None) -> EpochRule | None:
    """Returns the rule where it decides over whole epochs, None where it does not.

    Args:
        rule: a recipe's ``selection``.
    """
    return rule if isinstance(rule, EpochRule) and rule.memory != "none" else None


@runtime_checkable
class Objective(Protocol):
    """What is minimised on labels: one differentiable loss for each sample."""

    def __call__(self, output: ForwardOutput, targets: Tensor, /) -> Tensor:
        """Returns the losses (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B), mixtures of classes (M, B, C), or for other problems floats (M, B, K).
        """
        ...


#: ``ForwardOutput -> targets``: (M, B) labels or (M, B, C) mixtures that replace the given labels (bootstrap).
Relabel = Callable[[ForwardOutput], Tensor]
