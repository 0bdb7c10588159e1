"""What only a training's first batch tells: whether a subclass changes it, and whether the model has a loss of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.utils import logging

from ..data.indexing import INDEX
from ..losses.standard import BinaryCrossEntropy, CrossEntropy, MeanSquaredError
from ..methods.recipe import Recipe
from ..models.own_loss import find_own_loss
from ..models.peers import PeerModel
from ..models.sharding import is_sharded
from ..problems import Problem
from .plan import RobustStep
from .set_up import model_access

logger = logging.get_logger(__name__)


def unplanned(trainer: Any, method: str) -> str:
    """Returns the message for a batch whose loss is asked for outside the step that was planned for it.

    Args:
        trainer: a subclass.
        method: the method's name.
    """
    return (
        f"{type(trainer).__name__} calls compute_loss twice for a batch, or not from Trainer.training_step: method '{method}' "
        "weighs each sample once; call super().training_step and super().compute_loss once a batch, or set method=None."
    )


def check_first_batch(trainer: Any, step: RobustStep, model: nn.Module, inputs: Mapping[str, Any], raw: Mapping[str, Any]) -> None:
    """At a training's first batch: refuses what the method would ignore, and takes up the model's own loss. Later: nothing.

    Args:
        trainer: whose label names and arguments count.
        step: of the training.
        model: unwrapped.
        inputs: the batch as ``compute_loss`` got it.
        raw: the same as the loader made it.

    Raises:
        ValueError: in one line.
    """
    if step.begun:
        return
    step.begun = True
    recipe, problem = step.run.recipe, step.run.problem
    prepared = trainer._prepare_inputs({k: v for k, v in raw.items() if k != INDEX})
    if type(trainer)._prepare_inputs is Trainer._prepare_inputs:  # one of the user's may draw anew each time
        changed = _changed(prepared, inputs)
        if changed:
            raise ValueError(
                f"{type(trainer).__name__} changes {', '.join(map(repr, changed))} of the batch before super().compute_loss, which "
                f"method '{recipe.name}' would not see: change the batch in data_collator or in the data set."
            )
    names = [name for name in trainer.label_names if name in prepared]
    if problem.labelled and len(names) > 1:
        raise ValueError(
            f"the batch has {len(names)} kinds of labels ({', '.join(names)}), method '{recipe.name}' weighs samples of one label: "
            "use a sequence or image classification model, or method=None."
        )
    name = next((n for n in (*names, "labels", "label") if n in prepared), None)
    if name is None or trainer.is_deepspeed_enabled or not _plain(trainer, recipe, problem):
        return
    bare: Any = getattr(model, "_orig_mod", model)  # of a compiled one, which labels would have compiled again
    network = bare.peers[0] if isinstance(bare, PeerModel) else bare
    with model_access(bare, lambda moved: bare(**moved), recipe, trainer.args.device).training():
        own, words = find_own_loss(network, prepared, name, problem, bare if is_sharded(bare) else None)
    if not words:
        return
    what = f"the model's own loss ({type(network).__name__}: {words})"
    if own is None:
        raise ValueError(
            f"{what} is not the one that method '{recipe.name}' minimises, and cannot be had for each sample: give it as "
            f"compute_loss_func with reduction='none', or set objective='{problem.objective}'."
        )
    if recipe.relabel is not None and recipe.evidence is None:  # labels that were judged are replaced by classes, not mixtures
        raise ValueError(
            f"{what} cannot be given the label mixtures of method '{recipe.name}': use another method, or leave that loss out."
        )
    logger.info(f"{what} is minimised, sample by sample")
    step.set_objective(own)


def _plain(trainer: Any, recipe: Recipe, problem: Problem) -> bool:
    """Whether nobody asked for a loss, so that the method would minimise the problem's own."""
    asked = trainer.compute_loss_func is not None or trainer.args.label_smoothing_factor or not problem.labelled
    by_default = recipe.settings and recipe.settings.get("objective", "auto") == "auto" and problem.objective is not None
    return not asked and bool(by_default) and type(recipe.objective) in (CrossEntropy, BinaryCrossEntropy, MeanSquaredError)


def _changed(prepared: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    """The tensors that are not what they were."""
    return [name for name in {**prepared, **inputs} if not _same(prepared.get(name), inputs.get(name))]


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return isinstance(one, Tensor) == isinstance(other, Tensor)
    alike = one is other or (one.shape == other.shape and one.dtype == other.dtype)
    return alike and (one is other or bool(((one == other) | torch.isnan(one) & torch.isnan(other)).all()))
