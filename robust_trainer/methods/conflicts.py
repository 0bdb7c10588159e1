"""Settings that do not go together, each refused in one line with its mend."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..losses.standard import OBJECTIVES
from ..losses.standard import parameters_of as settings_of_objective
from ..perturbations.norms import NORMS
from ..selection.rules import RULES
from .rules import parameters_of
from .settings import SETTINGS, settings_of


def check_settings(settings: Mapping[str, Any], changes: Mapping[str, Any], objective: str, parts: Collection[str]) -> None:
    """Refuses the first setting that is out of range, has no effect, or contradicts another.

    Args:
        settings: all of the method's.
        changes: those of them that the user gave.
        objective: the name of the loss on labels.
        parts: those of the method.

    Raises:
        ValueError: in one line, with the name, the value and the mend.
    """
    for name, value in settings.items():
        SETTINGS[name].check(value)
    _check_effects(settings, changes, objective, parts)
    _check_attack(settings, parts)
    _check_selection(settings, parts)


def unread_by(rule: str) -> set[str]:
    """Returns the settings of the selection that a registered rule does not read.

    Args:
        rule: a key of `RULES`.
    """
    rules = {*settings_of("ranking"), *settings_of("split"), "peer_exchange"}
    return rules - {"rule", "score", "class_floor", *parameters_of(RULES[rule])}


def _check_effects(settings: Mapping[str, Any], changes: Mapping[str, Any], objective: str, parts: Collection[str]) -> None:
    """Refuses what was given and has no effect beside the other settings."""
    for name, value in changes.items():
        readers = [owner for owner in OBJECTIVES if name in settings_of_objective(owner)]
        if "objective" in parts and readers and objective not in readers:
            raise ValueError(
                f"{name}={value!r} has no effect with objective={objective!r}: set objective='{readers[0]}', or drop {name}."
            )
        idle = SETTINGS[name].idle
        reason = idle(settings, parts) if idle is not None else None
        if reason is not None:
            raise ValueError(f"{name}={value!r} has no effect {reason}, or drop {name}.")
    rule = settings.get("rule")
    if rule is not None:
        for name in changes.keys() & unread_by(rule):
            raise ValueError(f"{name}={changes[name]!r} has no effect with rule={rule!r}, which takes no {name}: drop one of them.")


def _check_attack(settings: Mapping[str, Any], parts: Collection[str]) -> None:
    if "attack" not in parts:
        return
    norm, rate, inner = settings["norm"], settings.get("noise_rate"), str(settings["inner_loss"])
    for name in ("eps", "step_size"):
        value = settings[name]
        if value is not None and value > NORMS.get(norm, NORMS["linf"]).max_eps:  # hybrid and both: the l_inf radius
            mend = f"give it in [0, 1] pixels, here {value / 255:.4g} ({value:g}/255)"
            raise ValueError(f"{name}={value!r} looks like the 0-255 scale: {mend}.")
    if norm == "both" and "semi-supervised" not in parts:
        raise ValueError("norm='both' perturbs every sample twice, which only method 'erat' trains on: use norm='hybrid'.")
    if norm in ("hybrid", "both") and settings["scope"] == "batch":
        raise ValueError(f"norm={norm!r} draws each sample's norm, scope='batch' has one perturbation: set scope='sample'.")
    if inner.startswith(("kl", "consistency")) and not settings["random_start"]:
        raise ValueError(
            f"inner_loss={inner!r} has no gradient at the clean input, where the predictions are the same: set random_start=True."
        )
    if isinstance(rate, str):
        raise ValueError(
            f"noise_rate={rate!r} does not go with an attack: it cannot see a backdoor, whose trigger the model learns to obey "
            "(docs/guides/label_noise.md), and was not tried in adversarial training: give a number that errs high, as 0.45."
        )


def _check_selection(settings: Mapping[str, Any], parts: Collection[str]) -> None:
    rate, score = settings.get("noise_rate"), settings.get("score")
    if settings.get("per_class") and settings.get("rebalance"):
        raise ValueError("per_class=True and rebalance=True are two ways to share out the kept samples: set one of them.")
    if isinstance(rate, int | float) and rate * settings["rate_multiplier"] >= 1 and settings["max_drop_rate"] >= 0.99:
        raise ValueError(
            f"noise_rate={rate!r} x rate_multiplier={settings['rate_multiplier']!r} would drop every sample: "
            "lower one of them, or set max_drop_rate below 0.99."
        )
    if score == "prl-g" and {"attack", "peers"} & set(parts):
        raise ValueError("score='prl-g' needs one network's gradients on clean samples: use method 'prl-g', or score='prl-l'.")
    if score == "agreement" and "peers" not in parts:
        raise ValueError("score='agreement' compares networks, this method trains one: use co-prl, or another score.")
