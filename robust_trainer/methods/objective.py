"""The loss on labels that a training minimises, from the recipe, the problem and the Trainer's own arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..losses.standard import CrossEntropy, UserLoss, make_objective
from ..problems import Problem
from .recipe import Recipe


def with_objective(recipe: Recipe, problem: Problem, compute_loss_func: Callable | None, label_smoothing: float) -> Recipe:
    """Returns the recipe with the problem's own loss where it names none, and the user's loss or label smoothing.

    Args:
        recipe: the method; whether its loss fits the problem was checked.
        problem: what kind of problem the samples pose.
        compute_loss_func: the Trainer's, None without one.
        label_smoothing: the Trainer's ``label_smoothing_factor``.
    """
    if compute_loss_func is not None:
        return replace(recipe, objective=UserLoss(compute_loss_func))
    name = recipe.settings.get("objective", "auto")
    if name == "auto" and not isinstance(recipe.objective, CrossEntropy):
        return recipe  # a row with a loss of its own, or the user's recipe
    if label_smoothing:
        return replace(recipe, objective=CrossEntropy(label_smoothing))
    if name == "auto" and problem.one_class:
        return recipe
    return replace(recipe, objective=make_objective(name, recipe.settings, problem))
