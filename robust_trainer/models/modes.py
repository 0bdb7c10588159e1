"""What a forward pass must leave as it was: modes, buffers, weights, random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers.utils import logging


@contextmanager
def untouched(module: nn.Module, mode: str) -> Iterator[None]:
    """Runs the body with the module in ``eval`` or ``train`` mode; modes and buffers are bit-identical afterwards."""
    training = [m for m in module.modules() if m.training]
    buffers = []
    try:
        if mode == "eval":
            for m in training:
                m.training = False
        else:
            buffers = [(b, b.detach().clone()) for b in module.buffers()]
        yield
    finally:
        for m in training:
            m.training = True
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


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


@contextmanager
def _same_random_state(device: torch.device) -> Iterator[None]:
    """Leaves every generator that a data loader or a data set's transform may use as it was: a scan changes no training."""
    state, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)


@contextmanager
def traceless(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode without gradients; its modes and all random states are restored, exceptions or not."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), untouched(model, "eval"), _same_random_state(device):
        yield
