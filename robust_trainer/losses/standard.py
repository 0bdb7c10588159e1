"""What is minimised: (ForwardOutput, targets) -> one differentiable loss per sample, (M, B); and the relabelling of bootstrap.

Targets are class labels (M, B) or, for the problems ``regression`` and ``multi_label_classification``, floats (M, B, K). Losses are
computed in the logits' type, float32 at least. Each class names the ``problems`` it fits; `make_objective` makes one by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL, UNLABELLED, Problem
from ..problems.base import full_precision, matching_values
from ..problems.regression import huber
from ..types import ForwardOutput, Objective
from .noisy_labels import NOISY_LABEL_OBJECTIVES, one_label, other_mass


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of each sample, (M, B), in nats, in [0, inf), for labels (M, B) or class mixtures (M, B, C).

    Args:
        label_smoothing: share of a uniform distribution over all classes, in [0, 1), as in the Trainer's own smoother.
    """

    label_smoothing: float = 0.0
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B), mixtures of classes (M, B, C), or for other problems floats (M, B, K).
        """
        return SINGLE_LABEL.loss(output.logits, targets, self.label_smoothing)


@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean absolute error of each sample, (M, B): the mean over outputs of |r|, r = yhat - y; for class labels ``1 - p_y``.

    For labels this is the REDUCED form, in [0, 1], as in the authors' code of Ma et al. 2020: half of the textbook's
    sum_k |p_k - onehot(y)_k| = 2 (1 - p_y). Mixtures of classes are a ``ValueError``.

    References:
        Ghosh et al. 2017.
    """

    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL, REGRESSION)

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B), mixtures of classes (M, B, C), or for other problems floats (M, B, K).
        """
        if output.problem.one_class:
            return other_mass(output, one_label("mae", targets))
        values, targets = matching_values("mae", output.logits, targets)
        return (values - targets).abs().mean(-1)


@dataclass(frozen=True)
class MeanSquaredError:
    """Squared error of each sample, (M, B), the mean over outputs of r^2: torch's ``MSELoss``, the models' own loss on regression.

    In the square of the targets' unit.
    """

    problems: ClassVar[tuple[Problem, ...]] = (REGRESSION,)

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B), mixtures of classes (M, B, C), or for other problems floats (M, B, K).
        """
        return REGRESSION.loss(output.logits, targets)


@dataclass(frozen=True)
class Huber:
    """Huber's loss of each sample, (M, B): the mean over outputs of r^2 / 2 where |r| <= delta, else delta (|r| - delta / 2).

    Args:
        delta: > 0, in the targets' unit.

    Raises:
        ValueError: for another delta.

    References:
        Huber 1964, in torch's form (``huber_loss``).
    """

    delta: float = 1.0
    problems: ClassVar[tuple[Problem, ...]] = (REGRESSION,)
    settings: ClassVar[Mapping[str, str]] = {"huber_delta": "delta"}

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"huber_delta={self.delta!r}: expected a number above 0, in the unit of the targets.")

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B), mixtures of classes (M, B, C), or for other problems floats (M, B, K).
        """
        return huber(output.logits, targets, self.delta)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross-entropy of sigmoid(z) of each sample, (M, B), in nats, the mean over labels: the models' loss on multi-label.

    Targets (M, B, K) in [0, 1], which is not checked here.
    """

    problems: ClassVar[tuple[Problem, ...]] = (MULTI_LABEL,)

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B), mixtures of classes (M, B, C), or for other problems floats (M, B, K).
        """
        return MULTI_LABEL.loss(output.logits, targets)


@dataclass(frozen=True)
class ModelLoss:
    """The model's own loss of each sample, (M, B), for models of samples without labels (reconstruction, likelihood)."""

    problems: ClassVar[tuple[Problem, ...]] = (UNLABELLED,)

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B), mixtures of classes (M, B, C), or for other problems floats (M, B, K).
        """
        return UNLABELLED.loss(output.logits, targets)


@dataclass(frozen=True)
class ProblemLoss:
    """The loss of one sample that its kind of problem brings along (`Problem.loss`), (M, B): for kinds that name no other."""

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B), mixtures of classes (M, B, C), or for other problems floats (M, B, K).
        """
        return output.problem.loss(output.logits, targets)


@dataclass(frozen=True)
class UserLoss:
    """The user's ``compute_loss_func``, honoured where it returns one loss per sample, shape (B,).

    Calling it raises ``ValueError`` when it returns a scalar, since a batch mean cannot leave samples out.

    Args:
        func: as the Trainer takes it, ``(outputs, labels, num_items_in_batch) -> losses``.
    """

    func: Callable[..., Tensor]

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B), mixtures of classes (M, B, C), or for other problems floats (M, B, K).
        """
        # the Trainer hands over num_items_in_batch; a per-sample loss has no use for it, so it is given none
        extra: dict[str, Any] = {}
        parameters = inspect.signature(self.func).parameters
        if "num_items_in_batch" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            extra["num_items_in_batch"] = None
        losses = self.func(output.outputs, targets[0], **extra)
        expected = (output.targets.shape[0],)
        if not isinstance(losses, Tensor) or tuple(losses.shape) != expected:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"compute_loss_func returned shape {got}, but a robust method weighs samples and needs one loss per sample, "
                f"shape {expected}: return the loss with reduction='none', or drop the method."
            )
        return full_precision(losses).unsqueeze(0)


@dataclass(frozen=True)
class HardBootstrap:
    """Targets ``beta * onehot(y) + (1 - beta) * onehot(argmax z)``, (M, B, C).

    Args:
        beta: weight of the given label, in [0, 1]; 1 is the standard loss.

    References:
        Backdoor table 1, consistency-based noisy-label learning: y <- a*y + (1 - a)*y_pred; its a is not stated, 0.8 is the value
        of the authors' related code.
    """

    beta: float = 0.8
    settings: ClassVar[Mapping[str, str]] = {"bootstrap_beta": "beta"}

    @torch.no_grad()
    def __call__(self, output: ForwardOutput) -> Tensor:
        """Returns the mixtures (M, B, C) that take the labels' place.

        Args:
            output: a forward pass of M networks on B samples.
        """
        logits = output.logits
        mixed = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(torch.float32) * (1.0 - self.beta)
        labels = output.targets.expand(logits.shape[0], -1).unsqueeze(-1)
        return mixed.scatter_add(-1, labels, torch.full_like(labels, self.beta, dtype=torch.float32))


#: Every loss by its name. ``problems`` are those that it fits, ``settings`` the settings that it reads and its parameters for them.
OBJECTIVES: dict[str, Callable[..., Any]] = {
    "ce": CrossEntropy,
    "mae": MeanAbsoluteError,
    "huber": Huber,
    "mse": MeanSquaredError,
    "bce": BinaryCrossEntropy,
    **NOISY_LABEL_OBJECTIVES,
    "model": ModelLoss,
}


def parameters_of(name: str) -> Mapping[str, str]:
    """Returns the settings that a loss reads, each with the loss's parameter for it; no other setting has an effect on it.

    Args:
        name: a key of `OBJECTIVES`.
    """
    return getattr(OBJECTIVES[name], "settings", {})


def problems_of(name: str) -> tuple[Problem, ...]:
    """Returns the problems that a loss fits; one that names none is a loss on class labels.

    Args:
        name: a key of `OBJECTIVES`.
    """
    return getattr(OBJECTIVES[name], "problems", (SINGLE_LABEL,))


def make_objective(name: str, settings: Mapping[str, Any], problem: Problem | None = SINGLE_LABEL) -> Objective:
    """Returns the loss of that name, with its share of the settings.

    Args:
        name: a key of `OBJECTIVES`, or ``auto``, the problem's own.
        settings: those that the loss reads (`parameters_of`) are handed over; one that is missing has its default.
        problem: what a sample is; None: not known yet, nothing is checked, ``auto`` is the cross-entropy.

    Raises:
        ValueError: for an unknown name, and for a loss that does not fit the problem.
    """
    usual = (problem or SINGLE_LABEL).objective
    if name == "auto" and usual is None:
        return ProblemLoss()
    name = usual or name if name == "auto" else name
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}: choose one of auto, {', '.join(OBJECTIVES)}.")
    objective = OBJECTIVES[name]
    if problem is not None and problem not in problems_of(name):
        fitting = [usual or "auto"] + [other for other in OBJECTIVES if problem in problems_of(other) and other != usual]
        kinds = " or ".join(kind.labels_are for kind in problems_of(name))
        choose = f"choose one of {', '.join(fitting)}" if len(fitting) > 1 else f"choose {fitting[0]}"
        raise ValueError(f"objective='{name}' is a loss on {kinds}, but problem_type='{problem}': {choose}.")
    return objective(**{parameter: settings[key] for key, parameter in parameters_of(name).items() if key in settings})
