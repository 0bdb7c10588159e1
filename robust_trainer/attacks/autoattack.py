"""Attacks by name, and AutoAttack: which of its members exist for so many classes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..methods.units import fraction
from ..perturbations.norms import find_norm
from ..reporting.suggest import did_you_mean
from .apgd import APGD
from .base import Attack
from .fab import FAB
from .pgd import PGD
from .square import Square

#: Name -> what it is. K is a number of steps; all but fgsm and autoattack take a suffix such as x10, 10 restarts, after any -t.
NAMES: dict[str, str] = {
    "fgsm": "one signed gradient step of size eps (Goodfellow et al. 2015, sec. 4)",
    "pgd-K": "K projected gradient steps on the cross-entropy (Madry et al. 2018, sec. 2.1)",
    "cw-K": "K projected gradient steps on the margin max_j z_j - z_y (Carlini & Wagner 2017, sec. V-B, f6)",
    "pgd-K-t": "pgd-K towards up to 9 targets in turn, the likeliest wrong classes; any wrong class counts",
    "cw-K-t": "the same with cw-K's margin",
    "apgd-ce": "PGD that sets its own step size, on the cross-entropy (Croce & Hein 2020, alg. 1)",
    "apgd-dlr": "the same on the difference-of-logits ratio (Croce & Hein 2020, eq. 6); 3 classes or more",
    "apgd-t": "the same on the targeted ratio, up to 9 targets (Croce & Hein 2020, eq. 7); 4 classes or more",
    "fab": "steps to the nearest linearised decision boundary (Croce & Hein 2020, FAB)",
    "fab-t": "the same, up to 9 targets in turn",
    "square": "random search with squares, logits only, 5000 queries (Andriushchenko et al. 2020)",
    "autoattack": "apgd-ce, apgd-t, fab-t and square in turn on what the earlier ones left (Croce & Hein 2020, sec. 5)",
}
_RESTARTS = re.compile(r"(?P<name>.+?)x(?P<restarts>\d+)")
_STEPS = re.compile(r"(?P<kind>pgd|cw)-(?P<steps>\d+)(?P<targeted>-t)?")
_PLAIN = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "fgsm", "square")


@dataclass(frozen=True)
class Named:
    """What the user asked for by one name: one attack, or several of which the later ones only visit the survivors.

    Args:
        name: how the report calls it.
        members: (name, attack); the name is part of the key of the attack's random numbers.
    """

    name: str
    members: tuple[tuple[str, Attack], ...]


def read_eps(value: Any, norm: str = "linf") -> float:
    """Returns the radius in [0, 1] pixels that a number or a text such as 8/255 stands for.

    Raises:
        ValueError: in one line, for zero, negative numbers, NaN, an unknown norm, and in l_inf for more than 1, which is the
            0-255 scale.
    """
    rule, eps = find_norm(norm), fraction("eps", value)
    if eps <= 0:
        raise ValueError(f"eps={value!r} must be positive: give for instance {rule.usual}.")
    if eps > rule.max_eps:
        raise ValueError(f"eps={value!r} looks like the 0-255 scale, pixels are in [0, 1] here: did you mean {eps:g}/255?")
    return eps


def check_name(name: Any) -> str:
    """Returns the attack's name in lower case.

    Raises:
        ValueError: in one line, for one that does not exist.
    """
    if not isinstance(name, str):
        raise ValueError(f"attack {name!r} is neither a name nor an Attack: choose from {', '.join(NAMES)}.")
    spelled = name.strip().lower()
    match = _RESTARTS.fullmatch(spelled)
    stem, restarts = (match["name"], int(match["restarts"])) if match else (spelled, 1)
    steps = _STEPS.fullmatch(stem)
    if restarts < 1 or (steps and int(steps["steps"]) < 1):
        what = "restarts" if restarts < 1 else "steps"
        raise ValueError(f"attack {name!r} has 0 {what}: give at least 1, for instance pgd-20x1.")
    if match and stem in ("fgsm", "autoattack"):
        raise ValueError(f"attack {name!r}: {stem} takes no restarts, give {stem!r}; all others take them.")
    if steps or stem in _PLAIN or stem == "autoattack":
        return spelled
    if stem in ("pgd", "cw", "pgd-t", "cw-t"):
        kind, _, targeted = stem.partition("-")
        raise ValueError(f"attack {name!r} lacks its number of steps: did you mean '{kind}-20{targeted and '-t'}'?")
    hint = did_you_mean(stem, ["pgd-20", "cw-20", "pgd-20-t", "cw-20-t", *_PLAIN, "autoattack"])
    raise ValueError(f"attack {name!r} is unknown: {hint}choose from {', '.join(NAMES)}.")


def make_attack(name: str, eps: float | str, norm: str = "linf", classes: int = 10) -> Attack:
    """Returns the attack of that name, for a model of so many classes; every one in `NAMES` but autoattack.

    pgd-K and cw-K start at random and step by eps/4, but at least 2.5 eps/K (Madry et al.'s and, for eps 8/255, the usual 2/255).

    Args:
        name: as in `NAMES`.
        eps: the radius, in [0, 1] pixels.
        norm: linf and l2; pgd-K, cw-K and fgsm take any name of `perturbations.norms.NORMS`.
        classes: of the model.

    Raises:
        ValueError: in one line, for an unknown name, a norm that the attack does not exist in, and a loss that does not exist for
            so few classes.
    """
    spelled, radius = check_name(name), read_eps(eps, norm)
    if classes < 2:
        raise ValueError(f"the model has {classes} class: an attack needs at least 2.")
    if spelled == "autoattack":
        raise ValueError("autoattack is several attacks: use make_attacks(['autoattack'], ...).")
    match = _RESTARTS.fullmatch(spelled)
    stem, restarts = (match["name"], int(match["restarts"])) if match else (spelled, 1)
    need = {"apgd-t": 4, "apgd-dlr": 3}.get(stem, 2)
    if classes < need:
        raise ValueError(
            f"{stem} needs at least {need} classes, the model has {classes} (the difference-of-logits ratio divides by a "
            "difference that does not exist there): use apgd-ce, fab or autoattack."
        )
    settings: dict[str, Any] = {"eps": radius, "norm": norm}
    targets = min(9, classes - 1)
    steps = _STEPS.fullmatch(stem)
    if steps:
        count = int(steps["steps"])
        loss = "ce" if steps["kind"] == "pgd" else "margin"
        settings |= {"step_size": max(radius / 4, 2.5 * radius / count), "restarts": restarts}
        if steps["targeted"]:
            settings |= {"targeted": True, "targets": targets}
        return PGD(**settings, name=spelled, steps=count, loss=loss)
    if stem == "fgsm":
        return PGD(**settings, name=spelled, steps=1, step_size=radius, random_start=False)
    if stem == "square":
        return Square(**settings, restarts=restarts)
    if stem in ("fab", "fab-t"):
        return FAB(**settings, restarts=restarts, targeted=stem == "fab-t", targets=targets)
    loss = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}[stem]
    return APGD(**settings, name=spelled, restarts=restarts, loss=loss, targets=targets)


def autoattack_members(classes: int) -> tuple[str, ...]:
    """Returns the names of AutoAttack's members for so many classes.

    Four or more: 'standard' (100 steps, 1 restart, min(9, K-1) targets, 5000 queries). Two or three: apgd-ce, fab and square,
    since the targeted ratio needs four logits (the authors' code fails there).

    References:
        Croce and Hein 2020, sec. 5.
    """
    return ("apgd-ce", "apgd-t", "fab-t", "square") if classes >= 4 else ("apgd-ce", "fab", "square")


def make_attacks(names: Sequence[str | Attack], eps: float | str, norm: str = "linf", classes: int = 10) -> list[Named]:
    """Returns one `Named` per name or Attack, in order; 'autoattack' becomes its members for so many classes.

    Raises:
        ValueError: in one line, for no or unknown names, one given twice, and an Attack of another eps or norm.
    """
    if isinstance(names, str):
        names = [names]
    if not names:
        raise ValueError(f"attacks is empty: give for instance pgd-20 cw-20 autoattack; all: {', '.join(NAMES)}.")
    radius, out = read_eps(eps, norm), []
    for asked in names:
        if callable(asked):
            if asked.norm != norm or not math.isclose(asked.eps, radius, rel_tol=1e-6):
                raise ValueError(
                    f"attack {asked.name!r} has eps={asked.eps:g} in {asked.norm}, the evaluation eps={radius:g} in {norm}: "
                    "give both the same."
                )
            out.append(Named(asked.name, ((asked.name, asked),)))
            continue
        name = check_name(asked)
        members = autoattack_members(classes) if name == "autoattack" else (name,)
        out.append(Named(name, tuple((member, make_attack(member, radius, norm, classes)) for member in members)))
    twice = next((a.name for i, a in enumerate(out) if a.name in [b.name for b in out[:i]]), None)
    if twice is not None:
        raise ValueError(f"attack {twice!r} is given twice: give each once.")
    for reserved in ("clean", "worst case"):
        if any(a.name == reserved for a in out):
            raise ValueError(f"attack {reserved!r} is called like a figure of the report: give it another name.")
    return out
