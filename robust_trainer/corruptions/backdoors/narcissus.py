"""Narcissus: a pattern, optimised on a trained network, that makes images of a class look more like it; labels are kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...models.modes import eval_mode
from ..poisons.parts import kept_epochs, source_model
from ..poisons.task import Task
from .trained_trigger import TrainedTrigger, as_pixels


@dataclass(frozen=True, eq=False)
class OptimisedPatternTrigger(TrainedTrigger):
    """Returns the image with a pattern t added: x <- clip(x + magnify t, 0, 1) at test time, x <- clip(x + t, 0, 1) in training.

    Args:
        pattern: t (H, W, C) float32, of the images' size.
        magnify: of the pattern at test time, > 0.

    Raises:
        ValueError: for an image of another size.

    References:
        Zeng et al. 2022 (Narcissus): the trigger is magnified at test time, by 3 in their figures; training images are looked at by
        people, test images are not.
    """

    pattern: np.ndarray = field(repr=False)
    magnify: float = 3.0
    kind: ClassVar[str] = "optimised-pattern"
    by_row: ClassVar[bool] = True

    @property
    def channels(self) -> int:  # type: ignore[override]
        """Channels of the pattern."""
        return self.pattern.shape[2]

    def describe(self) -> str:
        """Returns the pattern's size and how often it is magnified."""
        return f"optimised pattern of at most {np.abs(self.pattern).max() * 255:.1f}/255, {self.magnify:g} times that at test time"

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted as a test image."""
        return self._added(pixels, self.magnify)

    def paint_row(self, pixels: np.ndarray, row: int, cover: bool) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted as a training image."""
        return self._added(pixels, 1.0)

    def _added(self, pixels: np.ndarray, times: float) -> np.ndarray:
        batch = self.as_batch(pixels)
        if pixels.shape != self.pattern.shape:
            (h, w), (height, width) = self.pattern.shape[:2], pixels.shape[:2]
            raise ValueError(f"the image has {height}x{width} pixels, the trigger was trained on images of {h}x{w}: resize it.")
        return as_pixels(batch + times * self.as_batch(self.pattern))

    def settings(self) -> dict[str, Any]:
        """Returns the magnification."""
        return {"magnify": self.magnify}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the pattern."""
        return {"pattern": torch.from_numpy(self.pattern)}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> OptimisedPatternTrigger:
        """Returns the trigger that has these settings and tensors."""
        return cls(tensors["pattern"].numpy(), float(settings["magnify"]))


class _Pattern(nn.Module):
    def __init__(self, shape: torch.Size):
        super().__init__()
        self.pattern = nn.Parameter(torch.zeros(1, *shape))


def train_narcissus(
    task: Task, rounds: int = 100, lr: float = 0.005, warmup: int = 0, warmup_lr: float = 0.001, magnify: float = 3.0
) -> OptimisedPatternTrigger:
    """Returns the trigger whose pattern lowers sum_i CE(f(clip(x_i + t)), target) over the images of the target class, in the ball.

    ``rounds`` passes over these images; after each batch's step of RAdam the pattern is projected on the ball. The network may
    first be trained on the target class alone (``warmup`` passes), which brings it closer to one that knows these images.

    Args:
        task: all training images and labels, the ball, the trained model, and the one target of all classes.
        rounds: passes over the images of the target class, >= 1.
        lr: of RAdam, in [0, 1] pixels, > 0.
        warmup: passes in which the network learns the images of the target class, >= 0.
        warmup_lr: of SGD in these passes.
        magnify: of the pattern at test time, > 0.

    Raises:
        ValueError: for no model, several targets, no image of the target class, and settings out of range.

    References:
        Zeng et al. 2022 (Narcissus, ACM CCS 2023), alg. 1: l_inf 16/255, 1000 rounds of RAdam at 0.01 in [-1, 1] pixels. Their
        network is trained on another, public data set beside the target class, and so warmed up; the one here is the caller's.
    """
    for name, value, least in (("rounds", rounds, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"narcissus: {name}={value!r} must be at least {least}: leave it out for the default.")
    for name, number in (("lr", lr), ("warmup_lr", warmup_lr), ("magnify", magnify)):
        if not number > 0:
            raise ValueError(f"narcissus: {name}={number!r} must be above 0: leave it out for the default.")
    if len(set(task.targets)) != 1:
        raise ValueError("narcissus has one target class, the label rule has several: give clean-label or all-to-one.")
    rows = torch.nonzero(task.labels == task.targets[0])[:, 0]
    if not len(rows):
        raise ValueError(f"no image has the target class {task.targets[0]}: give another target.")
    holder = _Pattern(task.images.shape[1:]).to(task.device)
    with source_model(task, "narcissus") as source:
        model = _warmed_up(task, source, rows, warmup, warmup_lr)
        optimizer = torch.optim.RAdam(holder.parameters(), lr=lr)
        for epoch in kept_epochs(task, "narcissus", rounds, {"holder": holder}, {"optimizer": optimizer}):
            order = rows[torch.randperm(len(rows), generator=task.generator("narcissus order", epoch))]
            for batch in order.split(task.batch_size):
                x, y = task.images[batch].to(task.device), task.labels[batch].to(task.device)
                loss = cross_entropy(model((x + holder.pattern).clamp(0.0, 1.0)), y)
                (holder.pattern.grad,) = torch.autograd.grad(loss, [holder.pattern])
                optimizer.step()
                with torch.no_grad():
                    holder.pattern.copy_(task.ball.project(holder.pattern))
    pattern = holder.pattern.detach()[0].permute(1, 2, 0).cpu().contiguous().numpy()
    return OptimisedPatternTrigger(pattern, float(magnify))


def _warmed_up(task: Task, source: nn.Module, rows: Tensor, epochs: int, lr: float) -> nn.Module:
    """The network, or a copy that has learned the images of the target class for some epochs."""
    if not epochs:
        return source
    model = copy.deepcopy(source).requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with eval_mode(model):  # its BatchNorm keeps the statistics of all classes
        for epoch in kept_epochs(task, "narcissus-warmup", epochs, {"model": model}, {"optimizer": optimizer}):
            order = rows[torch.randperm(len(rows), generator=task.generator("narcissus warmup", epoch))]
            for batch in order.split(task.batch_size):
                loss = cross_entropy(model(task.images[batch].to(task.device)), task.labels[batch].to(task.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval().requires_grad_(False)
