"""The best weights: saved, loaded back, and a trained model lent out and left as it was."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .checkpoints import _names_in
from .forwards import untouched

#: Beside the weights: the row of the log that chose them.
RECORD = "chosen_by.json"


def save_best(folder: str | Path, model: nn.Module, processor: Any, row: Mapping[str, float]) -> None:
    """Writes the model (``save_pretrained``; else, or for an adapter besides, model.safetensors), the processor and the row."""
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    saves: list[Any] = [part for part in (model, processor) if hasattr(part, "save_pretrained")]
    with no_bars():
        for part in saves:
            part.save_pretrained(str(folder))
    if not isinstance(model, PreTrainedModel):
        safetensors.torch.save_model(model, str(folder / "model.safetensors"))
    (folder / RECORD).write_text(json.dumps(dict(row), indent=1) + "\n", encoding="utf-8")


def load_best(model: nn.Module, folder: str | Path) -> None:
    """Loads the weights of a folder ``best`` into the model that trained them; with several processes the main one reads them."""
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


@contextmanager
def no_bars() -> Iterator[None]:
    """No progress bar of transformers for one small file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Runs the body with the model in eval mode; modes, gradients and the random streams are as before afterwards."""
    gradients = [(p, p.grad) for p in model.parameters()]
    streams = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index for p, _ in gradients if p.device.type == "cuda"})
    try:
        for p, _ in gradients:
            p.grad = None
        with torch.random.fork_rng(devices=devices), untouched(model, "eval"):
            yield
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])
        for p, gradient in gradients:
            p.grad = gradient


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Runs the body, which may load other weights, and puts weights and buffers back bit for bit."""
    before = {k: v.detach().clone() for k, v in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(before)
