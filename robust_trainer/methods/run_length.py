"""What depends on a run's length: ramps and warm-ups that nobody named fit into it, and what cannot fit is said at its start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from ..problems import Problem
from .recipe import Recipe

#: A ramp or a warm-up that nobody named takes this share of a run at most: the papers' 10 epochs from 25 on
#: (docs/background/decisions.md).
RUN_SHARE = 0.4
#: A ramp in steps is left as it is where it ends in this share of the run: it is the window before a trigger is learned, in steps.
STEPS_SHARE = 0.75
#: Settings in epochs; those decided over whole epochs stay whole.
_EPOCHS = ("drop_ramp_epochs", "warmup_epochs", "lambda_ramp_epochs", "awp_warmup_epochs")
_WHOLE = ("warmup_epochs",)
_PARTS = ("selection", "semi_supervised")
#: The rate that is estimated where none is given, and the epochs that takes at least.
AUTO, AUTO_EPOCHS = "auto", 2.0


@dataclass(frozen=True)
class RunLength:
    """How long a run is.

    Attributes:
        epochs: passes over the data set, 1 for a stream, whatever it holds.
        steps: optimizer steps.
    """

    epochs: float
    steps: int


def run_length(args: Any, size: int | None) -> RunLength:
    """Returns the length of a run.

    Args:
        args: the training's arguments.
        size: rows of the data set, None for a stream.
    """
    if size is None:
        return RunLength(1.0, max(args.max_steps, 1))
    batches = size / (args.train_batch_size * args.world_size)
    batches = max(math.floor(batches) if args.dataloader_drop_last else math.ceil(batches), 1)
    steps = math.ceil(batches / args.gradient_accumulation_steps)
    if args.max_steps > 0:
        return RunLength(args.max_steps / steps, args.max_steps)
    return RunLength(float(args.num_train_epochs), math.ceil(args.num_train_epochs * steps))


def fit_to_run(recipe: Recipe, problem: Problem, length: RunLength, size: int | None) -> tuple[Recipe, list[str]]:
    """Returns the recipe with what nobody named fitted to the run, and what is to be said of it, one line each.

    Args:
        recipe: the method as the user asked for it.
        problem: what a sample is.
        length: of the run.
        size: rows of the data set, None for a stream.
    """
    said: list[str] = []
    if size is None:
        said.append(
            "train_dataset is a stream: its samples have no positions, so there is no ledger, no audit and no memory, and the run "
            "is one epoch; load it without streaming=True to have them."
        )
        if recipe.evidence is not None:
            said.append(
                f"method '{recipe.name}': the labels of a stream cannot be judged, so every sample is trained on as it is: load "
                "the data set without streaming=True, or use prl with a noise_rate in numbers."
            )
    if not recipe.settings or recipe.settings.get("rule") is not None:
        return recipe, said  # the user's own objects
    estimates = problem.one_class and recipe.perturbation is None and size is not None and length.epochs >= AUTO_EPOCHS
    if "noise_rate" in recipe.settings and "noise_rate" not in recipe.given and estimates:
        recipe = _with(recipe, {"noise_rate": AUTO})
    fitted = {}
    for name, value in recipe.settings.items():
        if not _acts(recipe, name):
            continue
        limit = length.steps if name == "drop_ramp_steps" else length.epochs
        short = RUN_SHARE * limit
        if name == "drop_ramp_steps" and value <= STEPS_SHARE * limit and _memory_starts(recipe, length) < length.epochs:
            short = value
        if name == "drop_ramp_steps" or (name in _WHOLE and _by_epoch(recipe)):
            short = max(math.floor(short), 1)
        if name in recipe.given or short >= value:
            if value > limit or (value == limit and name in _WHOLE):
                said.append(_too_long(recipe.name, name, value, limit))
            continue
        fitted[name] = short = round(short, 3)
        if short >= limit and name in _WHOLE:
            said.append(_too_long(recipe.name, name, short, limit))
    recipe = _with(recipe, fitted)
    first, memory = _memory_starts(recipe, length), recipe.settings.get("memory")
    if first >= length.epochs:
        said.append(
            f"memory={memory!r} of method '{recipe.name}' decides from epoch {first:g} on, this run has {length.epochs:.3g}, so it "
            "decides nothing: train for longer, or lower memory_after_epochs or drop_ramp_steps."
        )
    return recipe, [*_rate_in_force(recipe, length, fitted), *said]


def _memory_starts(recipe: Recipe, length: RunLength) -> float:
    """The first epoch that memory decides over, 0 without memory (`KeepByScore.decides`)."""
    s = recipe.in_force
    if s.get("memory", "none") == "none":
        return 0.0
    ramp = s.get("drop_ramp_steps") if s.get("drop_schedule") == "ramp" else None
    ramped = 0 if ramp is None else math.ceil(ramp * length.epochs / length.steps - 1e-9)
    return float(max(s["memory_after_epochs"], ramped))


def _acts(recipe: Recipe, name: str) -> bool:
    """Whether a setting counts time, and has an effect beside the others."""
    value, settings = recipe.settings[name], recipe.settings
    if name not in (*_EPOCHS, "drop_ramp_steps") or not value:
        return False
    if name.startswith("drop_ramp"):
        by_steps = settings.get("drop_ramp_steps") is not None
        return settings.get("drop_schedule") == "ramp" and by_steps == (name == "drop_ramp_steps")
    return name != "warmup_epochs" or recipe.selection is not None or recipe.semi_supervised is not None


def _by_epoch(recipe: Recipe) -> bool:
    """Whether the selection decides as an epoch starts."""
    return getattr(recipe.selection, "memory", "none") != "none" or recipe.semi_supervised is not None


def _with(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with these settings in force."""
    parts: dict[str, Any] = {}
    for part in _PARTS:
        own = getattr(recipe, part)
        if is_dataclass(own) and not isinstance(own, type):
            names = {f.name for f in fields(own)}
            parts[part] = replace(own, **{name: value for name, value in values.items() if name in names})
    return replace(recipe, **parts, fitted={**recipe.fitted, **values})


def _too_long(method: str, name: str, value: float, limit: float) -> str:
    unit, what = ("steps", "drop_ramp_steps") if name == "drop_ramp_steps" else ("epochs", name)
    effect = "never comes to its end" if "ramp" in name else "is never over"
    return f"{what}={value:g} of method '{method}' {effect} in this run of {limit:.3g} {unit}: train for longer, or lower {what}."


def _rate_in_force(recipe: Recipe, length: RunLength, fitted: Mapping[str, Any]) -> list[str]:
    """What is said of the rate that nobody chose, and of an estimate that cannot be had."""
    rate, given = recipe.in_force.get("noise_rate"), "noise_rate" in recipe.given
    if rate is None:
        return []
    if isinstance(rate, str):
        if length.epochs < AUTO_EPOCHS:
            return [
                f"noise_rate={rate!r} of method '{recipe.name}' is estimated from the second epoch on, this run has "
                f"{length.epochs:.3g}: nobody is dropped; give noise_rate a number, or train for longer."
            ]
        return [] if given else [
            f"method '{recipe.name}': no noise_rate is given, so the share of wrong labels is estimated while training "
            "(noise_rate='auto'), from samples held out at first; give a number to drop a share of your own."
        ]  # fmt: skip
    if given:
        return []
    share = min(rate * recipe.settings.get("rate_multiplier", 1.0), recipe.settings.get("max_drop_rate", 1.0))
    ramp = fitted.get("drop_ramp_epochs")
    after = f", after a ramp of {ramp:.3g} epochs" if ramp else ""
    return [
        f"method '{recipe.name}': no noise_rate is given, so {share:.3g} of the samples are dropped whatever the data "
        f"(noise_rate={rate:g}, its default){after}; give noise_rate the share that you expect to be wrong."
    ]
