"""What poisons that attack a trained model share: the model as it stands, and a data set crafted in parts that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...models.modes import eval_mode
from .task import Task

#: A poison is kept in so many parts at most, each of whole batches.
PARTS = 64


@contextmanager
def source_model(task: Task, poison: str) -> Iterator[nn.Module]:
    """``task.model`` in eval mode; afterwards each of its modules is in the mode it was in.

    Raises a one-line ``ValueError`` where the task has no model.
    """
    if task.model is None:
        raise ValueError(f"poison {poison!r} attacks a trained model, model=None: give one trained on clean data.")
    with eval_mode(task.model):
        yield task.model


def sample_wise(task: Task, poison: str, craft: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Returns delta (N, C, H, W) float32 on the CPU of ``craft(images, labels, positions) -> perturbed images``, batch by batch.

    Guarantee: every part, called ``{poison}-000`` and so on, is kept in ``task.work``, and finished ones are read from there: bit
    for bit the same either way.

    Args:
        task: images, labels, batches and the work folder.
        poison: its name.
        craft: takes images (B, C, H, W) and labels (B,) on the task's device and positions (B,) on the CPU.
    """
    batches = task.batches()
    width = -(-len(batches) // PARTS)
    parts = [batches[i : i + width] for i in range(0, len(batches), width)]
    delta = torch.zeros_like(task.images)
    for number, part in enumerate(task.work.progress(parts, f"crafting {poison}", len(parts))):
        name, rows = f"{poison}-{number:03d}", torch.cat(part)
        done = task.work.load(name)
        if done is None:
            images = [craft(task.images[b].to(task.device), task.labels[b].to(task.device), b).cpu() for b in part]
            done = {"delta": torch.cat(images) - task.images[rows]}
            task.work.save(name, done)
        delta[rows] = done["delta"]
    return delta
