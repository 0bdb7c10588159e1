"""What a robust run keeps in a checkpoint beside the Trainer's own files; no pickle."""

from __future__ import annotations

import json
import os

import safetensors
import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel

from .recipe import Recipe
from .walk import Walk

STATE_FILE = "robust_state.safetensors"


def save(folder: str, walk: Walk) -> None:
    """Writes the ledger and the filter's state, and the method's name."""
    state = walk.state() or {"empty": torch.zeros(0)}
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(tensors, os.path.join(folder, STATE_FILE), metadata={"method": walk.recipe.name})


def load(folder: str, walk: Walk) -> None:
    """Restores what `save` wrote. Raises ``ValueError`` for a data set of another size."""
    walk.load_state(safetensors.torch.load_file(os.path.join(folder, STATE_FILE)))


def check_method(folder: str, recipe: Recipe | None) -> None:
    """Raises ``ValueError`` when the checkpoint was made by another method than the one in force."""
    path = os.path.join(folder, STATE_FILE)
    found = None
    if os.path.isfile(path):
        with safetensors.safe_open(path, framework="pt") as handle:
            found = (handle.metadata() or {}).get("method")
    wanted = recipe.name if recipe is not None else None
    if found != wanted:
        raise ValueError(
            f"checkpoint {folder!r} was made by method={found!r}, this run has method={wanted!r}: "
            "resume with the same method, or start a new run from its weights."
        )


def load_renamed_weights(folder: str, model: nn.Module) -> None:
    """Loads the weights that the Trainer's own resume leaves out (transformers 5.23: every encoder layer of a ViT).

    ``save_pretrained`` writes the hub's names and ``from_pretrained`` translates them back; the Trainer's resume matches them
    as they are and only warns. Where names differ the weights are read again through ``from_pretrained``.
    """
    if not isinstance(model, PreTrainedModel) or _names_in(folder) <= set(model.state_dict()):
        return
    dtype = next(model.parameters()).dtype
    saved = type(model).from_pretrained(folder, config=model.config, dtype=dtype)
    model.load_state_dict(saved.state_dict())


def _names_in(folder: str) -> set[str]:
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.isfile(index):
        with open(index) as file:
            return set(json.load(file)["weight_map"])
    single = os.path.join(folder, "model.safetensors")
    if not os.path.isfile(single):
        return set()
    with safetensors.safe_open(single, framework="pt") as handle:
        return set(handle.keys())
