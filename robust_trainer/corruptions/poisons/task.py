"""What a poison is crafted from, and how crafting reports its progress and resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...data.randomness import keyed_generator, keyed_seed
from ...perturbations.norms import Ball
from ...reporting.resumable import Work


@dataclass
class Task:
    """Images (N, C, H, W) float32 in [0, 1] and true labels (N,) on the CPU, and the ball that their perturbation stays in.

    Args:
        images: of the training set.
        labels: theirs, in [0, classes).
        classes: their number.
        ball: of the perturbation, in [0, 1] pixels.
        model: [0, 1] pixels (B, C, H, W) -> logits (B, classes), trained, for poisons that attack one. In no particular mode: a
            poison sets it.
        fresh: makes an untrained one, for poisons that train their own.
        device: where to compute.
        batch_size: images at a time.
        seed: of everything random.
        work: where finished parts are kept.
        targets: of a backdoor, the class that its attacker wants for a triggered image of each class (C,); -1 for any other one.
    """

    images: Tensor
    labels: Tensor
    classes: int
    ball: Ball
    model: nn.Module | None = None
    fresh: Callable[[], nn.Module] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 128
    seed: int = 0
    work: Work = field(default_factory=Work)
    targets: tuple[int, ...] = ()

    def generator(self, *key: int | str) -> torch.Generator:
        """Returns a generator on the CPU that depends on the seed and the key alone."""
        return keyed_generator("poison", self.seed, *key)

    def seed_of(self, *key: int | str) -> int:
        """Returns a seed that depends on the task's seed and the key alone."""
        return keyed_seed("poison", self.seed, *key)

    def batches(self) -> list[Tensor]:
        """Returns the positions of each batch, in order."""
        return list(torch.arange(len(self.images)).split(self.batch_size))


#: ``(task, **settings) -> delta`` (N, C, H, W) float32 on the CPU: inside the ball, images + delta in [0, 1].
Craft = Callable[..., Tensor]


def fit(delta: Tensor, images: Tensor, ball: Ball) -> Tensor:
    """Returns ``delta`` projected into the ball and then shortened so that images + delta stays in [0, 1] and in the ball."""
    return (images + ball.project(delta)).clamp(0.0, 1.0) - images
