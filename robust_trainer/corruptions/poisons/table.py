"""The availability poisons by name, and their settings checked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from ...methods.units import fraction
from ...perturbations.norms import Ball, find_norm
from .task import Craft

NONE, TRAINED, FRESH = "none", "trained", "fresh"


@dataclass(frozen=True)
class Poison:
    """A row of `POISONS`: what it is, where it is from, which network it needs (none, trained, fresh), and who crafts it."""

    name: str
    summary: str
    source: str
    needs: str
    module: str
    function: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def craft(self) -> Craft:
        """Returns the function that crafts it: ``(task, **settings) -> delta`` (N, C, H, W)."""
        return getattr(import_module(f".{self.module}", __package__), self.function)


_ERAT = "ERAT sec. IV.A"
_ROWS = (
    Poison("l2c", "a generator learns perturbations that mislead whoever trains on them", f"{_ERAT} item 1; Feng et al. 2019",
           FRESH, "learning_to_confuse", "craft_l2c"),
    Poison("up", "error-minimising noise per image: nothing is left to learn", f"{_ERAT} item 2; Huang et al. 2021",
           FRESH, "unlearnable", "craft_up"),
    Poison("up-class", "error-minimising noise per class", f"{_ERAT} item 2; Huang et al. 2021",
           FRESH, "unlearnable", "craft_up", {"class_wise": True}),
    Poison("aa", "adversarial examples of AutoAttack", f"{_ERAT} item 3; Croce and Hein 2020",
           TRAINED, "autoattack", "craft_aa"),
    Poison("ap", "adversarial examples that look like the next class", f"{_ERAT} item 4; Tao et al. 2021",
           TRAINED, "targeted", "craft_ap"),
    Poison("uap", "one perturbation per class that looks like the next class", f"{_ERAT} item 5; Tao et al. 2021",
           TRAINED, "universal", "craft_uap"),
    Poison("uhp", "one perturbation per class that looks like the class itself", f"{_ERAT} item 6; Tao et al. 2021",
           TRAINED, "universal", "craft_uhp"),
    Poison("urp", "one random noise per class", f"{_ERAT} item 7; Tao et al. 2021", NONE, "universal_random", "craft_urp"),
    Poison("tap", "strong targeted adversarial examples, through augmentation", "Fowl et al. 2021",
           TRAINED, "targeted", "craft_tap"),
)  # fmt: skip
#: The poisons by name.
POISONS: dict[str, Poison] = {row.name: row for row in _ROWS}


def find_poison(name: str) -> Poison:
    """Returns a row of `POISONS`. Raises ``ValueError``, listing the names, for another name."""
    if name not in POISONS:
        raise ValueError(f"poison={name!r} is unknown: choose one of {', '.join(POISONS)}.")
    return POISONS[name]


def make_ball(norm: str, eps: float | str | None = None) -> Ball:
    """Returns the ball; eps None: the norm's usual radius. Raises ``ValueError`` for a norm or radius out of range."""
    rule = find_norm(norm)
    size = rule.usual_eps if eps is None else fraction("eps", eps)
    if size <= 0:
        raise ValueError(f"eps={eps} must be positive: give for instance {rule.usual}.")
    if size >= rule.max_eps:
        raise ValueError(f"eps={eps} is no radius in [0, 1] pixels: give {size:g}/255 if you mean levels of 0 to 255.")
    return Ball(norm, size)


def check_radius(ball: Ball, numbers: int) -> None:
    """Raises ``ValueError`` where a ball is larger than the distance from black to white of so many numbers per image."""
    if ball.eps >= ball.rule.of_ones(numbers):
        raise ValueError(
            f"eps={ball.eps:g} is no {ball.norm} radius in [0, 1] pixels, black is {ball.rule.of_ones(numbers):.3g} from white: "
            "divide it by 255 if it counts levels of 0 to 255."
        )


def check_settings(row: Poison, craft: Craft, settings: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for a setting that the poison does not have, listing its own, or whose value is no such number."""
    known = {name: p.default for name, p in list(inspect.signature(craft).parameters.items())[1:]}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{name}={value!r} is no setting of poison={row.name!r}: choose from {', '.join(known) or 'none'}.")
        whole = isinstance(known[name], int) and not isinstance(value, int)
        if not isinstance(value, int | float | None) or whole or (value is None and known[name] is not None):
            raise ValueError(f"{name}={value!r} is of the wrong kind: give a value as the default, {known[name]!r}.")
