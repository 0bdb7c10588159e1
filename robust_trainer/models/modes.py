"""What a forward pass must leave as it was: modes, buffers, weights, gradients, random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.utils import logging


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Runs the body with the module in evaluation mode; each of its modules is in the mode it was in afterwards.

    Args:
        module: of any depth.
    """
    training = [m for m in module.modules() if m.training]
    try:
        for m in training:
            m.training = False
        yield
    finally:
        for m in training:
            m.training = True


@contextmanager
def checkpointed_eval_mode(module: nn.Module) -> Iterator[None]:
    """As `eval_mode`, but layers with activation checkpointing keep it, which transformers does in training mode alone.

    So a gradient with respect to the inputs takes no more memory than a training step. Guarantee: the numbers are `eval_mode`'s.
    Left out are re-entrant checkpoints, which torch differentiates with respect to all weights only, and compiled models.

    Args:
        module: of any depth.
    """
    training = [m for m in module.modules() if m.training]
    functions: list[tuple[Any, Callable[..., Any]]] = []
    for m in training if not hasattr(module, "_orig_mod") else ():
        function = m.__dict__.get("_gradient_checkpointing_func")
        if m.__dict__.get("gradient_checkpointing") is True and function is not None and not _reentrant(function):
            functions.append((m, function))
    try:
        for m in training:
            m.training = False
        for m, function in functions:  # which looks at the layer's own mode
            m.training, m._gradient_checkpointing_func = True, partial(_checkpoint, m, function)
        yield
    finally:
        for m, function in functions:
            m._gradient_checkpointing_func = function
        for m in training:
            m.training = True


def _reentrant(function: Any) -> bool:
    return bool(getattr(function, "keywords", {}).get("use_reentrant", True))


def _checkpoint(layer: nn.Module, function: Callable[..., Any], run: Callable[..., Any], *args: Any) -> Any:
    """``function(run, *args)``, the layer in evaluation mode while it runs, the second time too."""

    def evaluated(*args: Any) -> Any:
        layer.training = False
        try:
            return run(*args)
        finally:
            layer.training = True

    return function(evaluated, *args)


@contextmanager
def preserve_buffers(module: nn.Module) -> Iterator[None]:
    """Runs the body with the module in the mode it is in; its buffers (BatchNorm's statistics) are bit-identical afterwards.

    Args:
        module: of any depth.
    """
    buffers = [(b, b.detach().clone()) for b in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def preserve_rng(device: torch.device) -> Iterator[None]:
    """Leaves every generator that a data loader or a data set's transform may use as it was: Python's, numpy's, torch's.

    Args:
        device: the training device, whose generator is kept beside the CPU's.
    """
    state, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Runs the body in evaluation mode and without gradients of before; modes, gradients and random numbers are restored.

    Args:
        model: whose parameters' ``grad`` is None within.
    """
    gradients = [(p, p.grad) for p in model.parameters()]
    streams = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index for p, _ in gradients if p.device.type == "cuda"})
    try:
        for p, _ in gradients:
            p.grad = None
        with torch.random.fork_rng(devices=devices), eval_mode(model):
            yield
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])
        for p, gradient in gradients:
            p.grad = gradient


@contextmanager
def preserve_weights(model: nn.Module) -> Iterator[None]:
    """Runs the body, which may load other weights, and puts weights and buffers back bit for bit.

    Args:
        model: whose ``state_dict`` is kept, in full.
    """
    before = {k: v.detach().clone() for k, v in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(before)


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Runs the body without gradients, in evaluation mode; modes and all random numbers are restored, exceptions or not.

    Args:
        model: on one device.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), eval_mode(model), preserve_rng(device):
        yield


@contextmanager
def no_bars() -> Iterator[None]:
    """Runs the body without transformers' progress bar for one small file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
