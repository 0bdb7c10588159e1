"""The vocabulary every room speaks: B samples in a batch, C classes (or outputs), M peers (1 for ordinary training)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .adversarial_losses import PairObjective
    from .perturbations import Perturbation
    from .semi_supervised import SemiSupervised
    from .spectral import Cap
    from .weight_perturbation import WeightPerturbation

#: As transformers' ``problem_type``.
SINGLE, REGRESSION, MULTI = PROBLEMS = ("single_label_classification", "regression", "multi_label_classification")
#: No labels: the model itself returns a loss and a score of each sample (`anomaly.AnomalyOutput`). No ``problem_type`` names it.
UNSUPERVISED = "unsupervised"


@dataclass(frozen=True)
class Progress:
    """Where training stands: ``epoch`` counts finished epochs as a float (0.0 at the start), as the trainer's state does.

    noise_rate: the share of corrupted samples estimated so far (``noise_rate="auto"``), None before the first estimate. seed: of
    the run, for what is drawn in a step.
    """

    epoch: float
    max_epochs: float
    global_step: int = 0
    noise_rate: float | None = None
    seed: int = 0


@dataclass
class View:
    """One forward pass kept together: logits (M, B, C), what is to be predicted and, where known, sample indices (B,).

    targets: class labels (B,), or for the problems ``regression`` and ``multi_label_classification`` floats (B, C).
    For the problem ``unsupervised`` the logits are (M, B, 2): what the model returned as each sample's loss and score.
    gradient_norms: (M, B), the norm of each sample's gradient over all parameters, for methods that ask for it.
    """

    logits: Tensor
    targets: Tensor
    index: Tensor | None = None
    outputs: Any = None
    problem: str = SINGLE
    gradient_norms: Tensor | None = None

    def given(self) -> Tensor:
        """The targets as the objectives take them: one row per peer."""
        return self.targets.expand(self.logits.shape[0], *self.targets.shape)


class Score(Protocol):
    """``View -> (M, B)``, detached; HIGHER = MORE SUSPICIOUS, everywhere."""

    def __call__(self, view: View) -> Tensor: ...


class Selection(Protocol):
    """Whom to trust: weights (M, B) in [0, 1] for scores (M, B) of one whole optimizer step, and what they are divided by."""

    @property
    def memory(self) -> str: ...

    def weights(self, scores: Tensor, labels: Tensor, progress: Progress, state: dict[str, Tensor]) -> Tensor: ...

    def new_state(self, classes: int, peers: int, device: torch.device) -> dict[str, Tensor]: ...

    def divisor(self, weights: Tensor) -> Tensor: ...

    def judging(self, progress: Progress) -> bool: ...


#: ``View -> targets``: (M, B) labels or (M, B, C) mixtures that replace the given labels (bootstrap).
Relabel = Callable[[View], Tensor]
#: ``(View, targets) -> (M, B)`` differentiable losses, one per sample.
Objective = Callable[[View, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """A published method as data: what to perturb, whom to trust, what to minimise.

    ``inner_filter`` and ``outer_filter`` switch selection and relabelling on in the inner maximisation and in the outer
    minimisation (paper 000, Algorithm 1; table 4 is the ablation). ``trust`` names the forward whose scores decide in the
    outer step and are remembered: ``outer``, the training forward's (on the perturbed inputs in paper 000), ``inner``, on the
    inputs as they came, or ``eval``, one more forward in evaluation mode, so without dropout (RCA). pair: a loss of two training
    forwards, on the inputs as they came and perturbed (TRADES); its scores are the former's. Without one the training forward is on
    the perturbed inputs alone. semi: a loss of augmented and perturbed views, on the trusted samples' labels and on the model's own
    predictions for the others (ERAT). weight_perturbation: AWP.
    collapse_check_steps: steps between two probes for catastrophic overfitting, None for none.
    peers: number of networks that are trained side by side; ``watch``: the score that the ledger keeps where the ranking is by
    another; gradients: the score is of each sample's parameter gradient; clip_norm: the norm that a step's gradient is clipped to
    instead of the Trainer's ``max_grad_norm``. head_only: the classification head is trained, the rest of the network stays as it
    is; spectral: the cap of the weights' spectral norms, None for none. ``settings`` are the numbers it was built from.
    """

    name: str
    score: Score
    objective: Objective
    selection: Selection | None = None
    relabel: Relabel | None = None
    perturbation: Perturbation | None = None
    pair: PairObjective | None = None
    semi: SemiSupervised | None = None
    weight_perturbation: WeightPerturbation | None = None
    inner_filter: bool = True
    outer_filter: bool = True
    trust: str = "outer"
    peers: int = 1
    watch: Score | None = None
    gradients: bool = False
    clip_norm: float | None = None
    collapse_check_steps: int | None = None
    head_only: bool = False
    spectral: Cap | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_index(self) -> bool:
        """Whether the method cannot work without each sample's position in the data set."""
        auto = isinstance(self.settings.get("noise_rate"), str)
        return auto or (self.selection is not None and self.selection.memory != "none")
