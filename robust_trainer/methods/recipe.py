"""A published method as data: the objects that a step asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..evidence.decision import ActOnEvidence
from ..losses.adversarial import PairObjective
from ..losses.semi_supervised import SemiSupervised
from ..models.spectral import Cap
from ..perturbations.awp import WeightPerturbation
from ..perturbations.pgd import Perturbation
from ..types import Objective, Relabel, Score, SelectionRule, decides_epochs

#: The forwards whose scores may decide in the outer step.
SCORE_FROM = ("training", "clean", "eval")


@dataclass(frozen=True)
class Recipe:
    """A published method as data: what to perturb, which samples to keep, what to minimise, whether to perturb the weights.

    Attributes:
        name: the method's, in messages and in the ledger.
        score: what samples are ranked by, higher is more suspicious.
        objective: the loss on labels.
        selection: the rule that decides which samples are kept, None: all.
        relabel: what replaces the given labels (bootstrap), None: nothing.
        perturbation: the inner maximisation, None: no attack.
        adversarial_loss: a loss of two training forwards, on the inputs as they came and perturbed (TRADES); its scores are the
            former's. Without one the training forward is on the perturbed inputs alone.
        semi_supervised: a loss of augmented and perturbed views, on the kept samples' labels and on the model's own predictions
            for the others (ERAT).
        weight_perturbation: AWP.
        inner_filter: whether selection and relabelling act in the inner maximisation.
        outer_filter: whether they act in the outer minimisation.
        score_from: the forward whose scores decide in the outer step and are remembered: ``training``, the training forward's (on
            the perturbed inputs in Backdoor), ``clean``, on the inputs as they came, or ``eval``, one more forward in evaluation
            mode, so without dropout (RCA).
        num_networks: networks that are trained side by side.
        ledger_score: the score that the ledger keeps where the ranking is by another.
        gradients: whether the score is of each sample's parameter gradient.
        clip_norm: the norm that a step's gradient is clipped to in place of the Trainer's ``max_grad_norm``, None: that one.
        collapse_check_steps: steps between two probes for catastrophic overfitting, None for none.
        freeze_backbone: whether the classification head is trained alone.
        spectral: the cap of the weights' spectral norms, None for none.
        class_floor: samples of each class that the selection cannot leave out where a class is rare (`allocation.class_floors`).
        evidence: when labels are judged by features, and what is done about the doubted ones (auto); None: they are not.
        settings: the numbers it was built from.
        given: names of the settings that the user named; the others are the method's own values.
        fitted: settings that nobody named, as this run has them (`run_length.fit_to_run`).

    Raises:
        ValueError: for another ``score_from``.

    References:
        Backdoor Algorithm 1 (filters in both steps; table 4 is the ablation).
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
    class_floor: int = 0
    evidence: ActOnEvidence | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    given: frozenset[str] = field(default=frozenset(), compare=False)
    fitted: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.score_from not in SCORE_FROM:
            raise ValueError(f"score_from={self.score_from!r} is unknown: choose one of {', '.join(SCORE_FROM)}.")

    @property
    def in_force(self) -> dict[str, Any]:
        """The settings as this run has them."""
        return {**self.settings, **self.fitted}

    @property
    def needs_index(self) -> bool:
        """Whether the method cannot work without each sample's position in the data set."""
        return self.rate_estimator is not None or decides_epochs(self.selection) is not None

    @property
    def rate_estimator(self) -> str | None:
        """Which estimate of the noise rate the selection asks for by its ``noise_rate``, None where that is a number."""
        asked = getattr(self.selection, "noise_rate", None)
        return asked if isinstance(asked, str) else None
