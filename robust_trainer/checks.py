"""What a user's set-up is checked for before the first step of a robust training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
from torch import nn
from transformers import Trainer

from .recipe import Recipe


def refuse(trainer: Trainer, recipe: Recipe, size: int | None) -> None:
    """Raises ``ValueError`` for what the method cannot work with; nothing is silently ignored. size: rows, None for a stream."""
    if recipe.needs_index and size is None:
        raise ValueError(
            f"method '{recipe.name}' remembers each sample and needs a data set with a length, got a streaming one: "
            "load it without streaming=True, or use a method with memory='none'."
        )
    if trainer.args.label_smoothing_factor and trainer.compute_loss_func is not None:
        raise ValueError("label_smoothing_factor has no effect beside compute_loss_func: smooth in the function, or drop one.")
    if recipe.relabel is not None and trainer.compute_loss_func is not None:
        raise ValueError(
            f"method '{recipe.name}' changes the labels into mixtures that compute_loss_func cannot be given: drop one of them."
        )
    if recipe.perturbation is not None and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            f"method '{recipe.name}' needs input gradients of the unsharded model, which FSDP and DeepSpeed hide: "
            "use plain distributed training (DDP), or a method without an attack (prl, spl, bootstrap)."
        )
    if getattr(trainer.args, "use_liger_kernel", False):
        raise ValueError(f"use_liger_kernel=True hides the logits that method '{recipe.name}' scores: set it to False.")
    config = trainer.accelerator.parallelism_config if hasattr(trainer.accelerator, "parallelism_config") else None
    if config is not None and (getattr(config, "sp_enabled", False) or getattr(config, "cp_enabled", False)):
        raise ValueError(f"method '{recipe.name}' needs whole samples: switch sequence and context parallelism off.")
    uneven = getattr(trainer.accelerator, "even_batches", True) is False
    if recipe.selection is not None and uneven and trainer.accelerator.num_processes > 1:
        raise ValueError("accelerator_config.even_batches=False: ranks over processes need equal batches; set it to True.")


def number_of_classes(model: nn.Module) -> int | None:
    """The classes that the model's config names, None where it does not. Raises ``ValueError`` for other problem types."""
    config: Any = getattr(model, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem in ("regression", "multi_label_classification"):
        raise ValueError(
            f"problem_type={problem!r}: robust methods need one class label per sample so far; use method=None."
        )
    told = config.to_diff_dict() if config is not None and hasattr(config, "to_diff_dict") else {}
    # a config that does not name its labels has the default of 2, whatever the head: the first forward tells then
    return getattr(config, "num_labels", None) if {"id2label", "num_labels", "label2id"} & set(told) else None


def label_column(data: datasets.Dataset, label_names: Sequence[str], classes: int | None, columns_removed: bool) -> None:
    """Raises ``ValueError`` for a label column that is missing, holds strings or names more classes than the model has."""
    name = next((n for n in (*label_names, "label", "label_ids") if n in data.column_names), None)
    if name is None:
        if columns_removed:
            raise ValueError(
                f"train_dataset has no label column: expected one of {[*label_names, 'label']}, "
                f"got {data.column_names}."
            )
        return
    if data.format["type"] == "custom":
        return  # a transform makes the labels; the collator checks what it made
    feature = data.features[name]
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        raise ValueError(f"'{name}' holds strings, expected class numbers: use dataset.class_encode_column('{name}').")
    named = getattr(feature, "num_classes", None)
    if named is not None and classes is not None and named > classes:
        raise ValueError(f"'{name}' has {named} classes but the model {classes}: pass num_labels={named} to the model.")
