"""What a training's way of using several devices is checked for: FSDP2 shards the model for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    if trainer.is_deepspeed_enabled:
        _validate_deepspeed(trainer, recipe)
    config: Any = getattr(accelerator, "parallelism_config", None)
    if config is not None and any(getattr(config, f"{kind}_enabled", False) for kind in ("sp", "cp", "tp")):
        raise ValueError(
            f"method '{name}' needs whole samples, each on one process: switch sequence, context and tensor parallelism off."
        )
    if getattr(accelerator, "even_batches", True) is False and accelerator.num_processes > 1:
        raise ValueError("accelerator_config.even_batches=False: processes share every step; set it to True.")


def _validate_deepspeed(trainer: Trainer, recipe: Recipe) -> None:
    """Checks what DeepSpeed's engine does with the gradient by itself."""
    name, plugin = recipe.name, trainer.accelerator.state.deepspeed_plugin
    if recipe.gradients:
        raise ValueError(
            f"method '{name}' propagates the losses once before the step's backward, and DeepSpeed takes the first one for the "
            "step's: use DDP or FSDP2."
        )
    if recipe.weight_perturbation is not None and plugin.zero_stage == 3:
        raise ValueError(
            f"method '{name}' moves whole weights (AWP), which ZeRO-3 keeps in parts: set zero_optimization={{'stage': 2}}, or use "
            "FSDP2."
        )
    clip = plugin.deepspeed_config.get("gradient_clipping", 0.0)
    if recipe.num_networks > 1 and (trainer.args.max_grad_norm if clip == "auto" else clip):
        raise ValueError(
            f"method '{name}' clips each network's gradient by itself, DeepSpeed that of all together: set max_grad_norm=0 (and "
            "gradient_clipping in DeepSpeed's configuration), or use DDP or FSDP2."
        )


@contextmanager
def engine_for(trainer: Any, recipe: Recipe | None, restore: Callable[[], None]) -> Iterator[None]:
    """Within it DeepSpeed's engine is made, which clips and steps within the backward, as the method says; else it does nothing.

    Args:
        trainer: that makes it.
        recipe: the method, None for none.
        restore: puts the weights that AWP moved back; called before the engine steps.
    """
    if recipe is None or not trainer.is_deepspeed_enabled:
        yield
        return
    config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    before = dict(config)
    if recipe.clip_norm is not None:
        config["gradient_clipping"] = recipe.clip_norm
    try:
        yield
    finally:
        config.pop("gradient_clipping", None)
        config |= {name: value for name, value in before.items() if name == "gradient_clipping"}
    trainer.model_wrapped.basic_optimizer.register_step_pre_hook(lambda *_: restore())
