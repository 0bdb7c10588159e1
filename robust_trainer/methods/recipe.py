"""A published method as data: what to perturb, whom to trust, what to minimise, whether to perturb the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..losses.adversarial import PairObjective
from ..losses.semi_supervised import SemiSupervised
from ..models.spectral import Cap
from ..perturbations.awp import WeightPerturbation
from ..perturbations.pgd import Perturbation
from ..types import Objective, Relabel, Score, SelectionRule, decides_epochs


@dataclass(frozen=True)
class Recipe:
    """A published method as data: what to perturb, whom to trust, what to minimise.

    ``inner_filter`` and ``outer_filter`` switch selection and relabelling on in the inner maximisation and in the outer
    minimisation (paper 000, Algorithm 1; table 4 is the ablation). ``score_from`` names the forward whose scores decide in the
    outer step and are remembered: ``training``, the training forward's (on the perturbed inputs in paper 000), ``clean``, on the
    inputs as they came, or ``eval``, one more forward in evaluation mode, so without dropout (RCA). adversarial_loss: a loss of
    two training
    forwards, on the inputs as they came and perturbed (TRADES); its scores are the former's. Without one the training forward is on
    the perturbed inputs alone. semi_supervised: a loss of augmented and perturbed views, on the trusted samples' labels and on the
    model's own
    predictions for the others (ERAT). weight_perturbation: AWP.
    collapse_check_steps: steps between two probes for catastrophic overfitting, None for none.
    num_networks: number of networks that are trained side by side; ``ledger_score``: the score that the ledger keeps where the
    ranking is by
    another; gradients: the score is of each sample's parameter gradient; clip_norm: the norm that a step's gradient is clipped to
    instead of the Trainer's ``max_grad_norm``. freeze_backbone: the classification head is trained, the rest of the network stays
    as it
    is; spectral: the cap of the weights' spectral norms, None for none. ``settings`` are the numbers it was built from.
    """

    name: str
    score: Score
    objective: Objective
    selection: SelectionRule | None = None
    relabel: Relabel | None = None
    perturbation: Perturbation | None = None
    adversarial_loss: PairObjective | None = None
    semi_supervised: SemiSupervised | None = None
    weight_perturbation: WeightPerturbation | None = None
    inner_filter: bool = True
    outer_filter: bool = True
    score_from: str = "training"
    num_networks: int = 1
    ledger_score: Score | None = None
    gradients: bool = False
    clip_norm: float | None = None
    collapse_check_steps: int | None = None
    freeze_backbone: bool = False
    spectral: Cap | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_index(self) -> bool:
        """Whether the method cannot work without each sample's position in the data set."""
        return self.rate_estimator is not None or decides_epochs(self.selection) is not None

    @property
    def rate_estimator(self) -> str | None:
        """Which estimate of the noise rate the selection asks for by its ``noise_rate``, None where that is a number."""
        asked = getattr(self.selection, "noise_rate", None)
        return asked if isinstance(asked, str) else None
