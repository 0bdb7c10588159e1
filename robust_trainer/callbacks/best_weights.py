"""The best weights: saved, loaded back, and a trained model lent out and left as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel

from ..models.modes import no_bars
from ..reporting.atomic_files import replacing, write_text
from ..step.checkpoints import _names_in

#: Beside the weights: the row of the log that chose them.
RECORD = "chosen_by.json"


def save_best(folder: str | Path, model: nn.Module, processor: Any, row: Mapping[str, float]) -> None:
    """Writes the model (``save_pretrained``; else, or for an adapter besides, model.safetensors), the processor and the row.

    Args:
        folder: The folder ``best``.
        model: The model that is trained.
        processor: The model's image processor, None for none.
        row: Of the log, that chose the weights.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    saves: list[Any] = [part for part in (model, processor) if hasattr(part, "save_pretrained")]
    with no_bars():
        for part in saves:
            part.save_pretrained(str(folder))
    if not isinstance(model, PreTrainedModel):
        with replacing(folder / "model.safetensors") as new:
            safetensors.torch.save_model(model, str(new))
    write_text(folder / RECORD, json.dumps(dict(row), indent=1) + "\n")


def load_best(model: nn.Module, folder: str | Path) -> None:
    """Loads the weights of a folder ``best`` into the model that trained them; with several processes the main one reads them.

    Args:
        model: The model that is trained.
        folder: The folder ``best``.
    """
    folder = Path(folder)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        single = folder / "model.safetensors"
        if single.is_file() and _names_in(str(folder)) <= set(model.state_dict()):
            safetensors.torch.load_model(model, str(single))
        else:  # sharded, or under the hub's names
            assert isinstance(model, PreTrainedModel)
            with no_bars():
                saved = type(model).from_pretrained(folder, config=model.config, dtype=next(model.parameters()).dtype)
            model.load_state_dict(saved.state_dict())
    if distributed:
        for value in model.state_dict().values():
            torch.distributed.broadcast(value, 0)
