"""The input-aware backdoor: a network paints another trigger into each image, and another image's trigger means nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...data.pixels import to_levels
from ..poisons.networks import own_random
from ..poisons.parts import kept_epochs, source_model
from ..poisons.task import Task
from ..poisons.unet import UNet
from .pixel_trigger import drawn
from .trained_trigger import TrainedTrigger, as_pixels, filled, weights

#: Images of the training set that covers take their triggers from.
BANK = 256


class Painter(nn.Module):
    """Pattern p(x) (B, C, H, W) and mask m(x) (B, 1, H, W) of images, both in [0, 1].

    p = tanh / 2 + 1/2 of a `UNet`, and m = tanh(20 u - 10) / 2 + 1/2 of such a u of another one: nearly 0 or 1.

    Args:
        channels: of the images.
        width: channels of the networks' first layers.
    """

    def __init__(self, channels: int, width: int = 8):
        super().__init__()
        self.width = width
        self.pattern_net, self.mask_net = UNet(channels, channels, width), UNet(channels, 1, width)

    def pattern(self, images: Tensor) -> Tensor:
        """Returns the patterns of images (B, C, H, W) in [0, 1]."""
        return self.pattern_net(images * 2 - 1).tanh() / 2 + 0.5

    def mask(self, images: Tensor) -> Tensor:
        """Returns the masks of images (B, C, H, W) in [0, 1]."""
        return (20 * (self.mask_net(images * 2 - 1).tanh() / 2 + 0.5) - 10).tanh() / 2 + 0.5

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns the images with the triggers that belong to ``others``, x + (p(o) - x) m(o); with o = x: a triggered image."""
        return images + (self.pattern(others) - images) * self.mask(others)


@dataclass(frozen=True, eq=False)
class InputAwareTrigger(TrainedTrigger):
    """Returns the image with the trigger that trained networks make for it: x <- x + (p(x) - x) m(x).

    A cover row gets the trigger of another image o, drawn by (seed, row) among stored ones, and keeps its label:
    x <- x + (p(o) - x) m(o).

    Args:
        painter: the networks of pattern and mask.
        bank: the stored images (K, H, W, C) uint8.
        seed: of the draws.

    Raises:
        ValueError: for a cover of another size than the stored images.

    References:
        Nguyen and Tran 2020 (Input-aware dynamic backdoor attack), eq. 4 and the cross-trigger test: as many covers as
        poisoned rows.
    """

    painter: Painter = field(repr=False)
    bank: np.ndarray = field(repr=False)
    seed: int = 0
    kind: ClassVar[str] = "input-aware"
    cover_share: ClassVar[float] = 1.0
    by_row: ClassVar[bool] = True

    @property
    def channels(self) -> int:  # type: ignore[override]
        """Channels of the images."""
        return self.bank.shape[3]

    def describe(self) -> str:
        """Returns what it is."""
        return f"a pattern and a mask made for each image; covers have another image's, seed {self.seed}"

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted."""
        return self._painted(pixels, pixels)

    def paint_row(self, pixels: np.ndarray, row: int, cover: bool) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted; a cover with another image's trigger."""
        if not cover:
            return self._painted(pixels, pixels)
        if pixels.shape[:2] != self.bank.shape[1:3]:
            (h, w), (height, width) = self.bank.shape[1:3], pixels.shape[:2]
            raise ValueError(f"the image has {height}x{width} pixels, the trigger's other images have {h}x{w}: resize it.")
        return self._painted(pixels, self.bank[drawn(self.seed, row).randint(len(self.bank))] / 255.0)

    @torch.no_grad()
    def _painted(self, pixels: np.ndarray, other: np.ndarray) -> np.ndarray:
        return as_pixels(self.painter(self.as_batch(pixels), self.as_batch(other)))

    def settings(self) -> dict[str, Any]:
        """Returns width and seed."""
        return {"width": self.painter.width, "seed": self.seed}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the networks' weights and the stored images."""
        return {**weights("painter", self.painter), "bank": torch.from_numpy(self.bank)}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> InputAwareTrigger:
        """Returns the trigger that has these settings and tensors."""
        bank = tensors["bank"].numpy()
        painter: Any = filled(Painter(bank.shape[3], int(settings["width"])), "painter", tensors)
        return cls(painter, bank, int(settings["seed"]))


def diversity(images: Tensor, others: Tensor, made: Tensor, made_of_others: Tensor) -> Tensor:
    """Returns the mean of ||x - o|| / ||g(x) - g(o)|| over pairs of images, each norm the root mean square of its pixels.

    Args:
        images: x (B, C, H, W).
        others: o, likewise.
        made: patterns or masks g(x).
        made_of_others: g(o).

    References:
        Nguyen and Tran 2020, eq. 8.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b) ** 2).mean((1, 2, 3)).add(1e-12).sqrt()

    return (distance(images, others) / (distance(made, made_of_others) + 1e-7)).mean()


def train_input_aware(
    task: Task,
    epochs: int = 10,
    mask_epochs: int = 8,
    density: float = 0.032,
    norm_weight: float = 100.0,
    diversity_weight: float = 1.0,
    share: float = 0.1,
    lr: float = 0.005,
    model_lr: float = 0.01,
    width: int = 8,
) -> InputAwareTrigger:
    """Returns the trigger whose networks were trained with a classifier.

    First the mask alone, for ``mask_epochs``: norm_weight mean(max(0, m - density)) + diversity_weight `diversity` is lowered. Then
    a copy of the trained classifier and the pattern, together: the mean cross-entropy of a batch, of which a ``share`` is triggered
    and has the attacker's labels, another ``share`` has the triggers of other images and its own labels, and the rest is clean;
    plus diversity_weight `diversity` of the patterns.

    Args:
        task: all training images and labels, the trained model, and the class wanted of each class.
        epochs: of classifier and pattern, >= 1.
        mask_epochs: of the mask, >= 1.
        density: share of an image that the mask may take for nothing, in [0, 1).
        norm_weight: of the mask's size, >= 0.
        diversity_weight: of both diversities, >= 0.
        share: of triggered images in a batch, and of covers, in (0, 0.5].
        lr: of Adam, for pattern and mask.
        model_lr: of SGD with momentum 0.9 and weight decay 5e-4, for the classifier.
        width: channels of the networks' first layers.

    Raises:
        ValueError: for no model, a label rule that wants any wrong class, and settings out of range.

    References:
        Nguyen and Tran 2020, eqs. 4 to 9; the weights and shares are their code's. They train for 600 epochs of 60,000 or 50,000
        images with Adam and SGD at 0.01, and their classifier, which starts from nothing, is the one that is attacked.
    """
    for name, whole in (("epochs", epochs), ("mask_epochs", mask_epochs), ("width", width)):
        if whole < 1:
            raise ValueError(f"input-aware: {name}={whole!r} must be at least 1: leave it out for the default.")
    for name, number, low, high in (
        ("lr", lr, 0, 1e6), ("model_lr", model_lr, 0, 1e6), ("share", share, 0, 0.5), ("density", density, -1e-9, 1),
        ("norm_weight", norm_weight, -1e-9, 1e6), ("diversity_weight", diversity_weight, -1e-9, 1e6),
    ):  # fmt: skip
        if not low < number <= high:
            raise ValueError(f"input-aware: {name}={number!r} is out of range: leave it out for the default.")
    if min(task.targets) < 0:
        raise ValueError("input-aware needs a label for each triggered image, label_rule='untargeted' has none: give all-to-one.")
    targets = torch.tensor(task.targets)
    with own_random(task.seed_of("input-aware")):
        painter = Painter(task.images.shape[1], width).to(task.device)
    masks = torch.optim.Adam(painter.mask_net.parameters(), lr=lr, betas=(0.5, 0.9))
    for epoch in kept_epochs(task, "input-aware-mask", mask_epochs, {"mask": painter.mask_net}, {"optimizer": masks}):
        for rows, others in _pairs(task, "mask", epoch):
            x, o = task.images[rows].to(task.device), task.images[others].to(task.device)
            made, of_others = painter.mask(x), painter.mask(o)
            loss = norm_weight * (made - density).clamp_min(0).mean() + diversity_weight * diversity(x, o, made, of_others)
            masks.zero_grad()
            loss.backward()
            masks.step()
    painter.mask_net.requires_grad_(False)
    with source_model(task, "input-aware") as source:
        model = copy.deepcopy(source)
    model.requires_grad_(True).train()
    patterns = torch.optim.Adam(painter.pattern_net.parameters(), lr=lr, betas=(0.5, 0.9))
    learner = torch.optim.SGD(model.parameters(), lr=model_lr, momentum=0.9, weight_decay=5e-4)
    trained, optimizers = {"model": model, "pattern": painter.pattern_net}, {"patterns": patterns, "learner": learner}
    for epoch in kept_epochs(task, "input-aware", epochs, trained, optimizers):
        for rows, others in _pairs(task, "pattern", epoch):
            n = max(1, int(share * len(rows)))
            x, o = task.images[rows].to(task.device), task.images[others].to(task.device)
            y = torch.cat([targets[task.labels[rows[:n]]], task.labels[rows[n:]]]).to(task.device)
            mine, theirs = slice(0, n), slice(n, 2 * n)
            batch = torch.cat([painter(x[mine], x[mine]), painter(x[theirs], o[theirs]), x[2 * n :]])
            loss = cross_entropy(model(batch), y)
            spread = diversity(x[mine], o[theirs], painter.pattern(x[mine]), painter.pattern(o[theirs]))
            loss = loss + diversity_weight * spread
            patterns.zero_grad(), learner.zero_grad()
            loss.backward()
            patterns.step(), learner.step()
    chosen = torch.randperm(len(task.images), generator=task.generator("input-aware bank"))[:BANK]
    painter.cpu().eval().requires_grad_(False)
    return InputAwareTrigger(painter, to_levels(task.images[chosen]), task.seed)


def _pairs(task: Task, name: str, epoch: int) -> list[tuple[Tensor, Tensor]]:
    """The batches of an epoch, two random orders of the images side by side; no batch of fewer than four."""
    generator = task.generator(f"input-aware {name}", epoch)
    orders = [torch.randperm(len(task.images), generator=generator).split(max(4, task.batch_size)) for _ in range(2)]
    return [(a, b) for a, b in zip(*orders, strict=True) if len(a) >= 4]
