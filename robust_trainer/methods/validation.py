"""What a user's set-up is checked for before the first step of a robust training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.models.auto import modeling_auto as auto

from ..losses.standard import CrossEntropy, UserLoss, make_objective
from ..models.peers import PeerModel
from ..problems import Problem
from ..selection.rules import MEMORIES
from .devices import validate_devices
from .recipe import Recipe
from .rules import BATCH_RULE, EPOCH_RULE


def validate_setup(trainer: Trainer, recipe: Recipe, size: int | None, problem: Problem, model: nn.Module) -> None:
    """Checks a set-up before the first step: nothing that the user gave is silently ignored.

    Args:
        trainer: with its arguments, data and accelerator.
        recipe: the method.
        size: rows of the training set, None for a stream.
        problem: what kind of problem the samples pose.
        model: unwrapped.

    Raises:
        ValueError: in one line, for what the method cannot work with.
    """
    _validate_rule(recipe)
    _validate_task(recipe, problem, model)
    _validate_problem(trainer, recipe, problem)
    _validate_peers(trainer, recipe, model)
    if recipe.semi_supervised is not None:
        _validate_semi(trainer, recipe, size, problem, model)
    if recipe.gradients:
        if trainer.args.torch_compile or trainer.args.gradient_checkpointing or trainer.args.n_gpu > 1:
            raise ValueError(
                f"method '{recipe.name}' records each layer's forward: switch torch_compile and gradient_checkpointing off, "
                "and use one process per GPU (torchrun)."
            )
        if trainer.compute_loss_func is not None:
            raise ValueError(f"method '{recipe.name}' needs the gradient of its own loss: drop compute_loss_func.")
    _validate_checkpointing(trainer, recipe, model)
    if trainer.args.label_smoothing_factor and not _smooths(recipe, problem):
        raise ValueError(
            f"label_smoothing_factor={trainer.args.label_smoothing_factor} is for the cross-entropy of class labels: "
            "set it to 0, or objective='ce'."
        )
    if recipe.needs_index and size is None:
        raise ValueError(
            f"method '{recipe.name}' remembers each sample and needs a data set with a length, got a streaming one: "
            "load it without streaming=True, or use a method with memory='none' and a noise_rate in numbers."
        )
    if trainer.args.label_smoothing_factor and trainer.compute_loss_func is not None:
        raise ValueError("label_smoothing_factor has no effect beside compute_loss_func: smooth in the function, or drop one.")
    if recipe.relabel is not None and trainer.compute_loss_func is not None:
        raise ValueError(
            f"method '{recipe.name}' changes the labels into mixtures that compute_loss_func cannot be given: drop one of them."
        )
    if getattr(trainer.args, "use_liger_kernel", False):
        raise ValueError(f"use_liger_kernel=True hides the logits that method '{recipe.name}' scores: set it to False.")
    validate_devices(trainer, recipe, model)


def _validate_checkpointing(trainer: Trainer, recipe: Recipe, model: nn.Module) -> None:
    """Raises ``ValueError`` where re-entrant activation checkpoints meet a gradient of some tensors alone, which torch refuses.

    In evaluation mode, in which attacks usually look at the model, nothing is checkpointed.
    """
    kwargs: Any = getattr(trainer.args, "activation_checkpointing_kwargs", None) or {}
    used = [trainer.args.gradient_checkpointing and kwargs.get("use_reentrant", False)]
    functions = (getattr(m, "_gradient_checkpointing_func", None) for m in model.modules())
    used += [getattr(f, "keywords", {}).get("use_reentrant", False) for f in functions if f is not None]
    attacks = recipe.perturbation is not None and recipe.perturbation.attack_mode == "train"
    if any(used) and (attacks or (recipe.weight_perturbation is not None and not trainer.is_fsdp_enabled)):
        what = "attacks in training mode (attack_mode='train')" if attacks else "perturbs weights"
        raise ValueError(
            f"method '{recipe.name}' {what} by torch.autograd.grad, which re-entrant activation checkpoints refuse: set "
            "activation_checkpointing_kwargs={'use_reentrant': False}."
        )


#: What transformers' models answer, other than one question a sample.
_TASKS: Mapping[str, Mapping[str, Any]] = {
    "a label for each token": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "a span of the text": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "the next token": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "the masked tokens": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "a text": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "a class for each pixel": auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    "a set of segments": auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    "a set of boxes": auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    "a depth for each pixel": auto.MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES,
    "the masked patches": auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES,
    "a transcript": auto.MODEL_FOR_CTC_MAPPING_NAMES,
}


def _validate_task(recipe: Recipe, problem: Problem, model: nn.Module) -> None:
    """Raises ``ValueError`` for transformers' models of tasks that have not one label a sample, which no known problem fits."""
    network: Any = model.peers[0] if isinstance(model, PeerModel) else model
    network = network.get_base_model() if hasattr(network, "peft_config") else getattr(network, "_orig_mod", network)
    name = type(network).__name__
    if recipe.perturbation is not None and name in auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values():
        raise ValueError(
            f"{name} reads several texts a sample, the attack of method '{recipe.name}' moves one: use a method without an attack "
            "(prl, spl, nce-rce)."
        )
    task = next((task for task, models in _TASKS.items() if _is_named(name, models)), None)
    if task is not None and problem.objective is not None and problem.labelled:
        raise ValueError(
            f"{name} answers with {task}, method '{recipe.name}' weighs samples of one label: use a sequence, image or audio "
            "classification model, or method=None."
        )


def _is_named(name: str, models: Mapping[str, Any]) -> bool:
    return any(name == own if isinstance(own, str) else name in own for own in models.values())


def _validate_rule(recipe: Recipe) -> None:
    """Raises ``ValueError`` for a selection that would not be asked, or not all of it."""
    rule = recipe.selection
    if rule is None:
        return
    lacks = {kind: [n for n in names if not hasattr(rule, n)] for kind, names in (("B", BATCH_RULE), ("E", EPOCH_RULE))}
    memory = getattr(rule, "memory", "none")
    # a part of one protocol tells what was meant: a memory or a mask over the data set, or weights of a step
    epochs = memory != "none" or any(hasattr(rule, name) for name in ("keep_mask", "decides"))
    steps = any(hasattr(rule, name) for name in ("weights", "new_state", "divisor"))
    what = f"selection={type(rule).__name__} of method '{recipe.name}'"
    if lacks["B"] and lacks["E"] and not epochs and not steps:
        raise ValueError(
            f"{what} is no BatchRule (no {', '.join(lacks['B'])}) and no EpochRule (no {', '.join(lacks['E'])}): "
            "add the methods of one."
        )
    for meant, kind, name in ((epochs, "E", "EpochRule"), (steps, "B", "BatchRule")):
        if meant and lacks[kind]:
            raise ValueError(
                f"{what} is an incomplete {name}: it has no {', '.join(lacks[kind])}; see robust_trainer.types.{name}."
            )
    if memory not in MEMORIES:
        raise ValueError(f"{what} has memory={memory!r}: expected one of {', '.join(MEMORIES)}.")
    if lacks["B"] and memory == "none":
        raise ValueError(f"{what} is an EpochRule with memory='none', which decides over no epoch: set memory to ema or scan.")


def _validate_semi(trainer: Trainer, recipe: Recipe, size: int | None, problem: Problem, model: nn.Module) -> None:
    """Raises ``ValueError`` where variants of images with one label each cannot be had."""
    if not problem.one_class:
        raise ValueError(f"method '{recipe.name}' needs one class label each, but problem_type='{problem}': use prl or pgd-at.")
    if getattr(model, "main_input_name", None) == "input_ids":
        raise ValueError(f"method '{recipe.name}' augments images, the model reads texts: use prl, nrat, or 'rebalanced'.")
    if isinstance(model, PeerModel) or recipe.weight_perturbation is not None or recipe.relabel is not None:
        raise ValueError(f"method '{recipe.name}' trains one network, without AWP or relabelling: take these out of the recipe.")
    if trainer.compute_loss_func is not None:
        raise ValueError(f"method '{recipe.name}' takes the loss of several variants of a sample: drop compute_loss_func.")


def _smooths(recipe: Recipe, problem: Problem) -> bool:
    return problem.one_class and isinstance(recipe.objective, CrossEntropy | UserLoss)


def _validate_problem(trainer: Trainer, recipe: Recipe, problem: Problem) -> None:
    """Raises ``ValueError`` where method and ``problem_type`` do not fit."""
    if not problem.labelled:
        return _validate_unlabelled(trainer, recipe, problem)
    name = recipe.settings.get("objective", "auto")
    if trainer.compute_loss_func is None:
        make_objective(name, {**recipe.settings}, problem)  # raises where the named loss does not fit
        fits = getattr(recipe.objective, "problems", None)
        if fits is not None and problem not in fits and not (name == "auto" and isinstance(recipe.objective, CrossEntropy)):
            raise ValueError(
                f"method '{recipe.name}' minimises a loss on class labels, but problem_type='{problem}': "
                "use standard, spl, prl, prl-g or co-prl."
            )
    if problem.one_class:
        return
    if recipe.evidence is not None:
        raise ValueError(
            f"method '{recipe.name}' judges one class label per sample, but problem_type='{problem}': use standard, spl, prl or "
            "co-prl."
        )
    inner = recipe.settings.get("inner_loss", "ce")
    if (
        recipe.adversarial_loss is not None
        or inner.startswith("kl")
        or "consistency" in inner
        or recipe.collapse_check_steps is not None
    ):
        raise ValueError(
            f"method '{recipe.name}' with inner_loss={inner!r} compares predicted classes, but problem_type='{problem}': "
            "use pgd-at."
        )
    for key, mend in (("per_class", "set per_class=False"), ("noise_rate", "give a number")):
        value = getattr(recipe.selection, key, None)
        if value is True or isinstance(value, str):
            raise ValueError(f"{key}={value!r} needs one class label per sample, but problem_type='{problem}': {mend}.")
    if recipe.relabel is not None or recipe.ledger_score is not None:
        raise ValueError(
            f"method '{recipe.name}' compares predicted classes, but problem_type='{problem}': use standard, spl, prl or co-prl."
        )


def _validate_unlabelled(trainer: Trainer, recipe: Recipe, problem: Problem) -> None:
    """Raises ``ValueError`` for what needs labels, or images, where the model has only losses of its own."""
    fits = problem in getattr(recipe.objective, "problems", ()) or isinstance(recipe.objective, CrossEntropy)
    attack = recipe.perturbation is not None or recipe.semi_supervised is not None
    rule = recipe.selection
    grouped = getattr(rule, "per_class", False) or getattr(rule, "rebalance", False) or hasattr(recipe.selection, "scale")
    labels = recipe.evidence is not None or recipe.relabel is not None or recipe.ledger_score is not None
    if not fits or attack or grouped or labels or recipe.gradients:
        raise ValueError(
            f"method '{recipe.name}' with these settings needs labelled samples, the model has only losses of its own: use "
            "standard, spl, trim, co-teaching or rca, as they come."
        )
    if recipe.rate_estimator is not None:
        raise ValueError(f"noise_rate={recipe.rate_estimator!r} needs one class label per sample: give a number.")
    if trainer.compute_loss_func is not None:
        raise ValueError("compute_loss_func has no effect on a model that returns each sample's loss itself: leave it out.")


def _adapters(model: nn.Module) -> bool:
    """Whether a model of several networks has PEFT adapters."""
    return isinstance(model, PeerModel) and hasattr(model.peers[0], "peft_config")


def _validate_peers(trainer: Trainer, recipe: Recipe, model: nn.Module) -> None:
    """Raises ``ValueError`` where the model has not the networks that the method trains."""
    have = len(model.peers) if isinstance(model, PeerModel) else 1
    if have != recipe.num_networks:
        trains = f"num_networks={recipe.num_networks} networks" if recipe.num_networks > 1 else "one network"
        mend = "PeerModel.of([...])" if recipe.num_networks > 1 else "one network, such as model.peers[0]"
        raise ValueError(
            f"method '{recipe.name}' trains {trains}, the model has {have}: name the method when the RobustTrainer is built, "
            f"or pass {mend}."
        )
    groups = getattr(trainer.optimizer, "param_groups", None)
    if have > 1 and groups is not None:
        known = {id(p) for group in groups for p in group["params"]}
        if any(id(p) not in known for p in model.parameters() if p.requires_grad):
            raise ValueError(
                f"the optimizer given does not hold all weights of the {have} peers: leave optimizers out, or build it from "
                "PeerModel.of([...])."
            )
    if have > 1 and getattr(trainer.args, "export", "best") == "ensemble" and _adapters(model):
        raise ValueError("export='ensemble' saves no PEFT adapters that could be opened again: choose best, peer0 or average.")
    if have > 1 and (trainer.compute_loss_func is not None or recipe.gradients):
        what = "compute_loss_func" if trainer.compute_loss_func is not None else "per-sample gradients"
        raise ValueError(f"{what} and a model of {have} peers do not go together: train one network.")
