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
from .noisy_labels import (
    ActivePassive,
    BoostedCrossEntropy,
    GeneralizedCrossEntropy,
    NormalizedCrossEntropy,
    ReverseCrossEntropy,
    SoftBootstrap,
    SymmetricCrossEntropy,
    one_label,
    other_mass,
)


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy per sample, (M, B), in nats, in [0, inf), for labels (M, B) or class mixtures (M, B, C).

    ``label_smoothing`` in [0, 1) is the share of a uniform distribution over all classes, as in the Trainer's own smoother.
    """

    label_smoothing: float = 0.0
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)

    def __call__(self, view: ForwardOutput, targets: Tensor) -> Tensor:
        return SINGLE_LABEL.loss(view.logits, targets, self.label_smoothing)


@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean absolute error per sample, (M, B): the mean over outputs of |r|, r = yhat - y; for class labels ``1 - p_y``.

    For labels this is the REDUCED form of Ghosh et al. 2017, in [0, 1], as in the authors' code of Ma et al. 2020: half of the
    textbook's sum_k |p_k - onehot(y)_k| = 2 (1 - p_y). Raises ``ValueError`` for mixtures of classes.
    """

    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL, REGRESSION)

    def __call__(self, view: ForwardOutput, targets: Tensor) -> Tensor:
        if view.problem.one_class:
            return other_mass(view, one_label("mae", targets))
        values, targets = matching_values("mae", view.logits, targets)
        return (values - targets).abs().mean(-1)


@dataclass(frozen=True)
class MeanSquaredError:
    """Squared error per sample, (M, B), the mean over outputs of r^2: torch's ``MSELoss``, the models' own loss on regression.

    In the square of the targets' unit.
    """

    problems: ClassVar[tuple[Problem, ...]] = (REGRESSION,)

    def __call__(self, view: ForwardOutput, targets: Tensor) -> Tensor:
        return REGRESSION.loss(view.logits, targets)


@dataclass(frozen=True)
class Huber:
    """Huber's loss per sample, (M, B): the mean over outputs of r^2 / 2 where |r| <= delta, else delta (|r| - delta / 2).

    Huber 1964, in torch's form (``huber_loss``). delta > 0 is in the targets' unit; ``ValueError`` for another.
    """

    delta: float = 1.0
    problems: ClassVar[tuple[Problem, ...]] = (REGRESSION,)
    settings: ClassVar[Mapping[str, str]] = {"huber_delta": "delta"}

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"huber_delta={self.delta!r}: expected a number above 0, in the unit of the targets.")

    def __call__(self, view: ForwardOutput, targets: Tensor) -> Tensor:
        return huber(view.logits, targets, self.delta)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross-entropy of sigmoid(z) per sample, (M, B), in nats, the mean over labels: the models' own loss on multi-label.

    Targets (M, B, K) in [0, 1], which is not checked here.
    """

    problems: ClassVar[tuple[Problem, ...]] = (MULTI_LABEL,)

    def __call__(self, view: ForwardOutput, targets: Tensor) -> Tensor:
        return MULTI_LABEL.loss(view.logits, targets)


@dataclass(frozen=True)
class ModelLoss:
    """The model's own loss of each sample, (M, B), for models of samples without labels (reconstruction, likelihood)."""

    problems: ClassVar[tuple[Problem, ...]] = (UNLABELLED,)

    def __call__(self, view: ForwardOutput, targets: Tensor) -> Tensor:
        return UNLABELLED.loss(view.logits, targets)


@dataclass(frozen=True)
class ProblemLoss:
    """The loss of one sample that its kind of problem brings along (`Problem.loss`), (M, B): for kinds that name no other."""

    def __call__(self, view: ForwardOutput, targets: Tensor) -> Tensor:
        return view.problem.loss(view.logits, targets)


@dataclass(frozen=True)
class UserLoss:
    """The user's ``compute_loss_func``, honoured where it returns one loss per sample, shape (B,).

    Raises ``ValueError`` when it returns a scalar, since a batch mean cannot leave samples out.
    """

    func: Callable[..., Tensor]

    def __call__(self, view: ForwardOutput, targets: Tensor) -> Tensor:
        # the Trainer hands over num_items_in_batch; a per-sample loss has no use for it, so it is told there is none
        extra: dict[str, Any] = {}
        parameters = inspect.signature(self.func).parameters
        if "num_items_in_batch" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            extra["num_items_in_batch"] = None
        losses = self.func(view.outputs, targets[0], **extra)
        expected = (view.targets.shape[0],)
        if not isinstance(losses, Tensor) or tuple(losses.shape) != expected:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"compute_loss_func returned shape {got}, but a robust method weighs samples and needs one loss per sample, "
                f"shape {expected}: return the loss with reduction='none', or drop the method."
            )
        return full_precision(losses).unsqueeze(0)


@dataclass(frozen=True)
class HardBootstrap:
    """Targets ``beta * onehot(y) + (1 - beta) * onehot(argmax z)``, (M, B, C); beta in [0, 1] is the weight of the given label.

    Consistency-based noisy-label learning (paper 000, table 1: y <- a*y + (1 - a)*y_pred; its a is not stated, 0.8 is the
    value of the authors' related code). beta = 1 is the standard loss.
    """

    beta: float = 0.8

    @torch.no_grad()
    def __call__(self, view: ForwardOutput) -> Tensor:
        logits = view.logits
        mixed = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(torch.float32) * (1.0 - self.beta)
        given = view.targets.expand(logits.shape[0], -1).unsqueeze(-1)
        return mixed.scatter_add(-1, given, torch.full_like(given, self.beta, dtype=torch.float32))


#: Every loss by its name. ``problems`` are those that it fits, ``settings`` the settings that it reads and its parameters for them.
OBJECTIVES: dict[str, Callable[..., Any]] = {
    "ce": CrossEntropy,
    "mae": MeanAbsoluteError,
    "huber": Huber,
    "mse": MeanSquaredError,
    "bce": BinaryCrossEntropy,
    "gce": GeneralizedCrossEntropy,
    "sce": SymmetricCrossEntropy,
    "nce": NormalizedCrossEntropy,
    "rce": ReverseCrossEntropy,
    "nce-rce": ActivePassive,
    "bootstrap-soft": SoftBootstrap,
    "boosted-ce": BoostedCrossEntropy,
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
    """The loss of that name, with its share of the settings (`parameters_of`; one that is missing has its default).

    ``auto`` is the problem's ``objective``. problem None: not known yet, nothing is checked, ``auto`` is the cross-entropy.
    Raises ``ValueError`` for an unknown name, and for a loss that does not fit the problem.
    """
    own = (problem or SINGLE_LABEL).objective
    if name == "auto" and own is None:
        return ProblemLoss()
    name = own or name if name == "auto" else name
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}: choose one of auto, {', '.join(OBJECTIVES)}.")
    objective = OBJECTIVES[name]
    if problem is not None and problem not in problems_of(name):
        fitting = [own or "auto"] + [other for other in OBJECTIVES if problem in problems_of(other) and other != own]
        kinds = " or ".join(kind.labels_are for kind in problems_of(name))
        choose = f"choose one of {', '.join(fitting)}" if len(fitting) > 1 else f"choose {fitting[0]}"
        raise ValueError(f"objective='{name}' is a loss on {kinds}, but problem_type='{problem}': {choose}.")
    return objective(**{parameter: settings[key] for key, parameter in parameters_of(name).items() if key in settings})
