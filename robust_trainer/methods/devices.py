"""What a training's way of using several devices is checked for: FSDP2 shards the model for every method."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Trainer

from ..models.sharding import is_sharded
from .recipe import Recipe


def validate_devices(trainer: Trainer, recipe: Recipe, model: nn.Module) -> None:
    """Checks how the processes share the model and the batches.

    Args:
        trainer: with its arguments and accelerator.
        recipe: the method.
        model: unwrapped.

    Raises:
        ValueError: in one line, for what the method cannot work with.
    """
    accelerator, name = trainer.accelerator, recipe.name
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if trainer.is_fsdp_enabled and getattr(plugin, "fsdp_version", 1) != 2:
        raise ValueError(
            f"method '{name}' is trained under FSDP2, this run has FSDP1, which hides the layers' weights in flat ones: "
            "set fsdp_config={'version': 2} (accelerate launch: fsdp_version: 2), or use DDP."
        )
    if getattr(trainer, "is_fsdp_xla_enabled", False):
        raise ValueError(f"method '{name}' is trained under FSDP2, this run has XLA's FSDP: set fsdp_config={{'xla': False}}.")
    if is_sharded(model) and not trainer.is_fsdp_enabled:
        raise ValueError(
            f"the model is sharded already, method '{name}' has the Trainer shard it: load it whole and set fsdp=True "
            "(fsdp_config={'version': 2})."
        )
    if recipe.gradients and getattr(plugin, "activation_checkpointing", False):
        raise ValueError(f"method '{name}' records each layer's forward: set fsdp_config={{'activation_checkpointing': False}}.")
    if trainer.is_deepspeed_enabled and (recipe.gradients or recipe.perturbation is not None):
        raise ValueError(
            f"method '{name}' needs gradients of more than the step's loss, which are not tested under DeepSpeed: use DDP or "
            "FSDP2, or a method without an attack (prl, spl, bootstrap)."
        )
    config: Any = getattr(accelerator, "parallelism_config", None)
    if config is not None and any(getattr(config, f"{kind}_enabled", False) for kind in ("sp", "cp", "tp")):
        raise ValueError(
            f"method '{name}' needs whole samples, each on one process: switch sequence, context and tensor parallelism off."
        )
    if getattr(accelerator, "even_batches", True) is False and accelerator.num_processes > 1:
        raise ValueError("accelerator_config.even_batches=False: processes share every step; set it to True.")
