"""The best weights: saved, loaded back, and a trained model lent out and left as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel

from ..models.modes import no_bars
from ..models.peer_training import exported, folders_of
from ..models.saved_networks import Export
from ..reporting.atomic_files import replacing_files, write_text
from ..step.checkpoints import _names_in

#: Beside the weights: the row of the log that chose them.
RECORD = "chosen_by.json"


def save_best(
    folder: str | Path, model: nn.Module, processor: Any, row: Mapping[str, float], errors: Sequence[float] | None = None
) -> None:
    """Writes the model (``save_pretrained``; else, or for an adapter besides, model.safetensors), the processor and the row.

    Of several networks the one that errs least is the model, and the others lie beside it.

    Args:
        folder: The folder ``best``.
        model: The model that is trained.
        processor: The model's image processor, None for none.
        row: Of the log, that chose the weights.
        errors: Of each of several networks, None for one.
    """
    saves: list[Any] = [part for part in (model, processor) if hasattr(part, "save_pretrained")]
    with replacing_files(folder, RECORD, alone=True) as new:
        new.mkdir(exist_ok=True)
        with no_bars(), exported(model, Export("best", errors)):
            for part in saves:
                part.save_pretrained(str(new))
        for place, network in folders_of(str(new), model):
            if not isinstance(network, PreTrainedModel):
                safetensors.torch.save_model(network, str(Path(place, "model.safetensors")))
        write_text(new / RECORD, json.dumps(dict(row), indent=1) + "\n")


def _load(network: nn.Module, folder: str) -> None:
    single = Path(folder, "model.safetensors")
    if single.is_file() and _names_in(folder) <= set(network.state_dict()):
        safetensors.torch.load_model(network, str(single))
    else:  # sharded, or under the hub's names
        assert isinstance(network, PreTrainedModel)
        with no_bars():
            saved = type(network).from_pretrained(folder, config=network.config, dtype=next(network.parameters()).dtype)
        network.load_state_dict(saved.state_dict())


def load_best(model: nn.Module, folder: str | Path) -> None:
    """Loads the weights of a folder ``best`` into the model that trained them; with several processes the main one reads them.

    Args:
        model: The model that is trained.
        folder: The folder ``best``.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        for place, network in folders_of(str(folder), model):
            _load(network, place)
    if distributed:
        for value in model.state_dict().values():
            torch.distributed.broadcast(value, 0)
