"""Every published method as one row: its source, the numbers of its paper, and the recipe they make.

``METHODS["prl-at"](noise_rate=0.25)`` is a `Recipe`. Papers: 000 "Defending backdoor data poisoning attacks using noisy label
defense algorithm"; 001 "Robust learning of deep neural networks under data corruption" (dissertation).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .objectives import CrossEntropy, HardBootstrap
from .perturbations import NORMS, SCOPES, Perturbation
from .recipe import Recipe
from .scores import SCORES
from .selection import MEMORIES, SCHEDULES, KeepByScore

#: Selection as the papers have it: ranked in the batch, dropped share ramped up over 10 epochs (paper 001 ch. 4).
FILTER: Mapping[str, Any] = {
    "noise_rate": 0.25,
    "over_trim": 1.0,
    "max_rate": 0.99,
    "rate_schedule": "ramp",
    "rate_ramp_epochs": 10,
    "rate_ramp_steps": None,
    "ramp_from": 0.0,
    "relax_from": 0.6,
    "per_class": False,
    "memory": "none",
    "memory_decay": 0.5,
    "memory_after_epochs": 1,
}
#: The inner maximisation of paper 000, Algorithm 1 and eq. 5: one l_inf step of size tau = 0.05 shared by the batch.
ATTACK: Mapping[str, Any] = {
    "eps": 0.05,
    "step_size": None,
    "steps": 1,
    "norm": "linf",
    "scope": "batch",
    "random_start": False,
    "attack_mode": "eval",
}
BOOTSTRAP: Mapping[str, Any] = {"bootstrap_beta": 0.8}
#: Where the method's filter or relabelling acts: paper 000 Algorithm 1 has both; table 4 has one at a time.
ABLATION: Mapping[str, Any] = {"inner_filter": True, "outer_filter": True}


@dataclass(frozen=True)
class Method:
    """One row of `METHODS`; calling it with the settings to change gives the `Recipe`."""

    name: str
    summary: str
    source: str
    score: str
    settings: Mapping[str, Any]
    trust: str = "outer"

    def __call__(self, **changes: Any) -> Recipe:
        """The recipe. Raises ``ValueError`` for a setting that the method does not take, or outside its range."""
        for key, value in changes.items():
            if key not in self.settings:
                takes = ", ".join(sorted(self.settings)) or "no settings"
                raise ValueError(f"method '{self.name}' takes no '{key}' (got {value!r}); it takes: {takes}.")
        s = {**self.settings, **changes}
        if "rate_ramp_epochs" in changes and "rate_ramp_steps" not in changes:
            s["rate_ramp_steps"] = None  # epochs asked for: they count
        check_settings(s)
        selection = KeepByScore(**{k: s[k] for k in FILTER}) if "noise_rate" in s else None
        return Recipe(
            name=self.name,
            score=SCORES[self.score],
            objective=CrossEntropy(),
            selection=selection,
            relabel=HardBootstrap(s["bootstrap_beta"]) if "bootstrap_beta" in s else None,
            perturbation=Perturbation(**{k: s[k] for k in ATTACK}) if "eps" in s else None,
            inner_filter=s.get("inner_filter", True),
            outer_filter=s.get("outer_filter", True),
            trust=self.trust,
            settings=s,
        )


_ROWS = (
    Method("standard", "empirical risk minimisation; the ledger watches", "-", "prl-l", {}),
    Method("at", "adversarial training alone", "paper 000 sec. 5 (AT), eq. 2", "prl-l", ATTACK),
    Method("spl", "self-paced learning: keep the small losses", "paper 000 table 1", "loss", FILTER),
    Method("prl", "PRL(L): keep the small loss-layer gradients", "paper 001 sec. 4.4; paper 000 table 1", "prl-l", FILTER),
    Method("bootstrap", "mix the given label with the prediction", "paper 000 table 1", "prl-l", BOOTSTRAP),
    Method("spl-at", "SPL in both steps", "paper 000 Algorithm 1", "loss", {**FILTER, **ATTACK, **ABLATION}),
    Method("prl-at", "PRL(L) in both steps", "paper 000 Algorithm 1, eq. 5", "prl-l", {**FILTER, **ATTACK, **ABLATION}),
    Method("bootstrap-at", "bootstrap in both steps", "paper 000 Algorithm 1", "prl-l", {**BOOTSTRAP, **ATTACK, **ABLATION}),
    Method(
        "prl-at-memory",
        "recommended: PRL-AT ranked by what the ledger remembers, per class",
        "this project, docs/methods.md",
        "prl-l",
        {
            **FILTER,
            **ATTACK,
            **ABLATION,
            "over_trim": 1.5,
            "max_rate": 0.6,
            "rate_schedule": "ramp",
            "ramp_from": 0.25,
            "rate_ramp_steps": 316,  # four epochs of the runs it was found in: the window before a trigger is learned
            "per_class": True,
            "memory": "ema",
            "eps": 0.1,
            "scope": "sample",
        },
        trust="inner",
    ),
)
METHODS: Mapping[str, Method] = {row.name: row for row in _ROWS}


def get_method(name: str) -> Method:
    """The row of that name. Raises ``ValueError`` listing the names."""
    if not isinstance(name, str) or name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"unknown method {name!r}: {hint}choose one of {', '.join(METHODS)}.")
    return METHODS[name]


_RANGES: Mapping[str, tuple[str, Any]] = {
    "noise_rate": ("in [0, 1), the share of corrupted samples", lambda v: 0 <= v < 1),
    "over_trim": ("> 0, a factor on noise_rate", lambda v: v > 0),
    "max_rate": ("in (0, 1), the largest share to drop", lambda v: 0 < v < 1),
    "rate_ramp_epochs": ("> 0 epochs", lambda v: v > 0),
    "rate_ramp_steps": ("a whole number >= 1, or None", lambda v: v is None or (isinstance(v, int) and v >= 1)),
    "ramp_from": ("in [0, 1], a share of the final rate", lambda v: 0 <= v <= 1),
    "relax_from": ("in (0, 1)", lambda v: 0 < v < 1),
    "memory_decay": ("in [0, 1)", lambda v: 0 <= v < 1),
    "memory_after_epochs": ("a whole number >= 1", lambda v: isinstance(v, int) and v >= 1),
    "step_size": ("in (0, 1] pixels", lambda v: v is None or 0 < v <= 1),
    "steps": ("a whole number >= 1", lambda v: isinstance(v, int) and v >= 1),
    "bootstrap_beta": ("in [0, 1], the weight of the given label", lambda v: 0 <= v <= 1),
}
_OPTIONAL = ("step_size", "rate_ramp_steps")
_SWITCHES = ("per_class", "random_start", "inner_filter", "outer_filter")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "rate_schedule": SCHEDULES,
    "memory": MEMORIES,
    "norm": NORMS,
    "scope": SCOPES,
    "attack_mode": ("eval", "train"),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises a one-line ``ValueError`` naming the first setting that is out of range, its value and the mend."""
    for key, value in settings.items():
        if key in _SWITCHES and not isinstance(value, bool):
            raise ValueError(f"{key}={value!r} must be true or false.")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ValueError(f"{key}={value!r} is unknown: choose one of {', '.join(_CHOICES[key])}.")
        if key in _RANGES:
            told, fits = _RANGES[key]
            if not (_is_number(value) or (value is None and key in _OPTIONAL)) or not fits(value):
                raise ValueError(f"{key}={value!r} must be {told}.")
    eps = settings.get("eps")
    if "eps" in settings and (not _is_number(eps) or settings["eps"] < 0):
        raise ValueError(f"eps={eps!r} must be >= 0, in the [0, 1] pixel scale.")
    if eps is not None and settings.get("norm") == "linf" and eps > 1:
        raise ValueError(f"eps={eps!r} looks like the 0-255 scale: give it in [0, 1] pixels, here {eps / 255:.4g} (eps/255).")
    rate = settings.get("noise_rate")
    if rate is not None and rate * settings["over_trim"] >= 1 and settings["max_rate"] >= 0.99:
        raise ValueError(
            f"noise_rate={rate!r} x over_trim={settings['over_trim']!r} would drop every sample: "
            "lower one of them, or set max_rate below 0.99."
        )
