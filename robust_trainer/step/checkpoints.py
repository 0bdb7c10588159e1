"""What a robust run keeps in a checkpoint beside the Trainer's own files; no pickle."""

from __future__ import annotations

import json
import os

import safetensors
import safetensors.torch
from torch import nn
from transformers import PreTrainedModel

from ..methods.recipe import Recipe
from ..methods.settings import defaults
from ..reporting.atomic_files import replacing
from .plan import RobustStep

STATE_FILE = "robust_state.safetensors"


def save(folder: str, step: RobustStep) -> None:
    """Writes the ledger and the rules' state, and the method's name and settings.

    Args:
        folder: of the checkpoint.
        step: of the run.
    """
    tensors = {name: tensor.contiguous() for name, tensor in step.state().items()}
    metadata = _identity(step.run.recipe)
    if step.run.ledger is not None:
        metadata["run"] = json.dumps(step.run.ledger.run, default=str)
    with replacing(os.path.join(folder, STATE_FILE)) as new:
        safetensors.torch.save_file(tensors, new, metadata=metadata)


def clear(folder: str) -> None:
    """Removes the state of an earlier robust run from a folder that a plain model is saved to.

    Args:
        folder: of the checkpoint.
    """
    path = os.path.join(folder, STATE_FILE)
    if os.path.isfile(path):
        os.remove(path)


def _identity(recipe: Recipe) -> dict[str, str]:
    return {"method": recipe.name, "settings": json.dumps(dict(recipe.settings), sort_keys=True)}


def load(folder: str, step: RobustStep) -> None:
    """Restores what `save` wrote.

    Args:
        folder: of the checkpoint.
        step: of the run that goes on.

    Raises:
        ValueError: for a data set of another size.
    """
    step.load_state(safetensors.torch.load_file(os.path.join(folder, STATE_FILE)))


def check_method(folder: str, recipe: Recipe | None) -> None:
    """Checks that the checkpoint was made by the method and the settings in force.

    Args:
        folder: of the checkpoint.
        recipe: in force, None without a method.

    Raises:
        ValueError: for another method, another setting, or a damaged file.
    """
    path = os.path.join(folder, STATE_FILE)
    saved: str | None = None
    metadata: dict[str, str] = {}
    if os.path.isfile(path):
        try:
            with safetensors.safe_open(path, framework="pt") as handle:
                metadata = handle.metadata() or {}
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path!r} is damaged ({error}): resume from another checkpoint.") from error
        saved = metadata.get("method")
    method = recipe.name if recipe is not None else None
    if saved != method:
        raise ValueError(
            f"checkpoint {folder!r} was made by method={saved!r}, this run has method={method!r}: "
            "resume with the same method, or start a new run from its weights."
        )
    if recipe is None:
        return
    before, now = json.loads(metadata.get("settings", "{}")), json.loads(_identity(recipe)["settings"])
    implicit = defaults(("anywhere",), implicit=True)  # those are not among a method's settings where nobody set them
    before, now = {**implicit, **before}, {**implicit, **now}
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            raise ValueError(
                f"checkpoint {folder!r} was made with {name}={before[name]!r}, this run has {name}={now[name]!r}: "
                "resume with the same settings, or start a new run from its weights."
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
