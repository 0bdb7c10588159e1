"""A row of the table of methods: the parts it is made of, its paper's numbers, and the recipe they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

from ..data.augmentation.augmentations import make_augmentation
from ..evidence.decision import ActOnEvidence
from ..losses.adversarial import Mart, Nrat, PairObjective, Trades
from ..losses.semi_supervised import SemiSupervised
from ..losses.standard import HardBootstrap, make_objective
from ..models.spectral import cap_of
from ..perturbations.awp import WeightPerturbation
from ..perturbations.pgd import Perturbation
from ..reporting.suggest import did_you_mean
from ..selection.erat_split import Split
from ..selection.rules import ClipSamples, KeepByScore, KeepDisputed, KeepSmallest
from ..selection.scores import make_score
from ..types import SelectionRule
from .conflicts import check_settings, unread_by
from .recipe import Recipe
from .rules import make_rule
from .settings import PARTS, SETTINGS, defaults

_Made = TypeVar("_Made")

#: Losses of two forwards by the name that a row gives.
ADVERSARIAL_LOSSES: Mapping[str, type[PairObjective]] = {"trades": Trades, "mart": Mart, "nrat": Nrat}


def _made(cls: type[_Made], s: Mapping[str, Any], *args: Any) -> _Made:
    """An object with ``args`` and the settings that it has a field for: of that name, or of the name that its ``settings`` says."""
    own: Mapping[str, str] = getattr(cls, "settings", {})
    names = {f.name: f.name for f in fields(cls)[len(args) :]} | {name: setting for setting, name in own.items()}  # type: ignore[arg-type]
    return cls(*args, **{name: s[setting] for name, setting in names.items() if setting in s})


def _split(s: Mapping[str, Any]) -> SelectionRule | None:
    if not s.get("sample_selection", True):  # ERAT table VI "w/o SS"
        return None
    bounded = s["score"] == "brier"  # another score has no upper end to take 1 - S from
    return _made(Split, s if bounded else {**s, "score_scale": "minmax"})


#: How a part decides which samples are kept; a method has one of these at most.
_RULES: Mapping[str, Callable[[Mapping[str, Any]], SelectionRule | None]] = {
    "ranking": lambda s: _made(KeepByScore, s),
    "split": _split,
    "min-sgd": lambda s: _made(KeepSmallest, s),
    "decoupling": lambda s: _made(KeepDisputed, s),
    "sample-clipping": lambda s: _made(ClipSamples, s),
}


@dataclass(frozen=True)
class Method:
    """One row of `METHODS`; calling it with the settings to change gives the `Recipe`.

    Attributes:
        name: as users write it.
        summary: what it does, in one line.
        source: author and year, and the equation, algorithm or table.
        score: what samples are ranked by and what the ledger remembers, a name of `SCORES`.
        parts: what it is made of, names of `PARTS`; they decide which settings it takes and which objects its recipe has.
        published: the paper's numbers, where they are not the defaults of the settings' table.
        objective: the loss on labels of a method without the part ``objective``.
        score_from: the forward whose scores decide, as in `Recipe`.
        ledger_score: the score that the ledger remembers, where it is another than ``score``.
        adversarial_loss: the loss of two forwards, a name of `ADVERSARIAL_LOSSES`; for methods with the part ``divergence``.

    Raises:
        ValueError: for an unknown part or adversarial loss, and for a published number that none of the parts takes.
    """

    name: str
    summary: str
    source: str
    score: str
    parts: tuple[str, ...] = ()
    published: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "auto"
    score_from: str = "training"
    ledger_score: str | None = None
    adversarial_loss: str | None = None

    def __post_init__(self) -> None:
        unknown = next((part for part in self.parts if part not in PARTS), None)
        if unknown is not None:
            raise ValueError(f"method '{self.name}': unknown part {unknown!r}: choose from {', '.join(PARTS)}.")
        foreign = next((name for name in self.published if not self.takes(name)), None)
        if foreign is not None:
            raise ValueError(f"method '{self.name}': none of its parts takes {foreign!r}: add the part, or drop {foreign}.")
        if self.adversarial_loss is not None and self.adversarial_loss not in ADVERSARIAL_LOSSES:
            choices = ", ".join(ADVERSARIAL_LOSSES)
            raise ValueError(f"method '{self.name}': unknown adversarial_loss {self.adversarial_loss!r}: choose one of {choices}.")

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """All settings at the method's own values."""
        return {**defaults(self.parts), **self.published}

    @property
    def keeps_all(self) -> bool:
        """Whether no part leaves samples out."""
        return _RULES.keys().isdisjoint(self.parts)

    def takes(self, name: str) -> bool:
        """Returns whether the method takes the setting.

        Args:
            name: of a setting.
        """
        return name in SETTINGS and not {*self.parts, "anywhere"}.isdisjoint(SETTINGS[name].parts)

    def __call__(self, **changes: Any) -> Recipe:
        """Returns the recipe.

        Args:
            changes: the settings that are not to have the method's own values.

        Raises:
            ValueError: for a setting that the method does not take, is out of its range, or contradicts another.
        """
        for name, value in changes.items():
            if not self.takes(name):
                raise ValueError(self._foreign(name, value))
        changes = {name: SETTINGS[name].read(value) for name, value in changes.items()}
        s = {**self.settings, **changes}
        if "drop_ramp_epochs" in changes and "drop_ramp_steps" not in changes:
            s["drop_ramp_steps"] = None  # epochs asked for: they count
        objective = s.get("objective", self.objective)
        check_settings(s, changes, objective, self.parts)
        if s.get("rule") is not None:  # the other settings of the row's own rule are not in force
            s = {name: value for name, value in s.items() if name not in unread_by(s["rule"])}
        delta = s["huber_delta"] if objective == "huber" else None
        score = s.get("score") or self.score
        return Recipe(
            name=self.name,
            score=make_score(score, delta),
            objective=make_objective(objective, s, None),
            selection=self._selection(s, score),
            relabel=_made(HardBootstrap, s) if "bootstrap" in self.parts else None,
            perturbation=self._perturbation(s),
            semi_supervised=self._semi_supervised(s),
            inner_filter=s.get("inner_filter", "semi-supervised" not in self.parts),  # ERAT perturbs dropped samples, too
            outer_filter=s.get("outer_filter", True),
            score_from=self.score_from,
            num_networks=s.get("num_networks", 1),
            adversarial_loss=_made(ADVERSARIAL_LOSSES[self.adversarial_loss], s) if self.adversarial_loss is not None else None,
            weight_perturbation=self._weight_perturbation(s),
            collapse_check_steps=s.get("collapse_check_steps") or None,
            ledger_score=make_score(self.ledger_score, delta) if self.ledger_score is not None else None,
            gradients=score == "prl-g",
            clip_norm=s.get("clip_norm"),
            freeze_backbone=s.get("freeze_backbone", False),
            spectral=cap_of(s),
            class_floor=s.get("class_floor", SETTINGS["class_floor"].default) if self.takes("class_floor") else 0,
            evidence=_made(ActOnEvidence, {"class_floor": SETTINGS["class_floor"].default, **s})
            if "evidence" in self.parts
            else None,
            settings=s,
            given=frozenset(changes),
        )

    def _foreign(self, name: str, value: Any) -> str:
        """The message for a setting that the method does not take."""
        taken = sorted(self.settings)
        attacks = "attack" in self.parts and self.keeps_all
        if name not in SETTINGS:
            mend = did_you_mean(name, taken) or did_you_mean(name, SETTINGS)
        else:
            mend = f"a selection takes it: 'prl+{self.name}'; " if attacks and "ranking" in SETTINGS[name].parts else ""
        return f"method '{self.name}' takes no '{name}' (got {value!r}); {mend}it takes: {', '.join(taken) or 'no settings'}."

    def _selection(self, s: Mapping[str, Any], score: str) -> SelectionRule | None:
        if s.get("rule") is not None:
            return make_rule(s["rule"], s)
        part = next((part for part in self.parts if part in _RULES), None)
        return _RULES[part]({**s, "score": score}) if part is not None else None

    def _perturbation(self, s: Mapping[str, Any]) -> Perturbation | None:
        if "attack" not in self.parts or not s.get("adversarial_training", True):
            return None
        if s["norm"] == "l2" and "semi-supervised" in self.parts:  # ERAT has a radius for each norm
            s = {**s, "eps": s["eps_l2"], "step_size": s["step_size_l2"]}
        return _made(Perturbation, s)

    def _semi_supervised(self, s: Mapping[str, Any]) -> SemiSupervised | None:
        if "semi-supervised" not in self.parts:
            return None
        strong, weak = make_augmentation(s["strong_augmentation"]), make_augmentation(s["weak_augmentation"])
        return _made(SemiSupervised, s, strong, weak)

    def _evidence(self, s: Mapping[str, Any]) -> ActOnEvidence | None:
        known = {"class_floor": SETTINGS["class_floor"].default, **s}
        return _made(ActOnEvidence, known) if "evidence" in self.parts else None

    def _weight_perturbation(self, s: Mapping[str, Any]) -> WeightPerturbation | None:
        return _made(WeightPerturbation, s) if "weight-perturbation" in self.parts else None
