"""The networks that availability poisons need: [0, 1] pixels in, logits out; and a plain training of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from ...models.pixel_model import PixelModel, pixel_model
from ...models.zoo import SMALL, build_model


def fresh_factory(name: str, labels: list[str], *, channels: int, image_size: int) -> Callable[[], PixelModel]:
    """Returns a callable that makes an untrained `PixelModel` of a key of `robust_trainer.models.SMALL`, for images as they are."""
    if name not in SMALL:
        raise ValueError(f"poison_model={name!r} is unknown: choose {', '.join(SMALL)}, or the folder of a trained model.")

    def fresh() -> PixelModel:
        model, processor = build_model(name, labels, channels=channels, image_size=image_size)
        return pixel_model(model, processor)

    return fresh


def seeded(fresh: Callable[[], Any], seed: int) -> Any:
    """Returns ``fresh()`` with initial weights that depend on the seed; the global random state stays as it was."""
    with own_random(seed):
        return fresh()


@contextmanager
def own_random(seed: int) -> Iterator[None]:
    """Runs the body on random numbers of its own; the global random state is what it was afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def train_plain(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    *,
    learning_rate: float = 0.05,
    batch_size: int | None = None,
    weight_decay: float = 5e-4,
    clip: float = 5.0,
    flip: bool | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    desc: str = "plain training",
) -> nn.Module:
    """Returns the model, trained in place with cross-entropy, in eval mode: SGD, momentum 0.9, gradients clipped to ``clip``.

    The learning rate rises over the first tenth of the steps and falls to 0 with a cosine.

    Guarantee: same weights, seed and device type: same result.

    Args:
        model: takes images (B, C, H, W) in [0, 1].
        images: (N, C, H, W) float32 in [0, 1], on the CPU.
        labels: (N,), on the CPU.
        epochs: passes over the images.
        learning_rate: the largest one.
        batch_size: default 64, fewer where there are less than 1024 images.
        weight_decay: of SGD.
        clip: the largest 2-norm of a step's gradient.
        flip: whether to mirror images at random; default: those in colour, since grey ones are often letters.
        device: where to train.
        seed: of order, mirroring and dropout.
        desc: the progress bar's text.
    """
    device, flip = torch.device(device), (images.shape[1] == 3 if flip is None else flip)
    model.to(device).train()
    batch_size = batch_size or min(64, max(8, len(images) // 16))
    count = max(1, len(images) // batch_size)
    total = max(1, epochs * count)
    warm = max(1, total // 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _rate(s, warm, total))
    generator = torch.Generator().manual_seed(seed)
    with own_random(seed):  # dropout
        for _ in tqdm(range(epochs), desc=desc):
            order = torch.randperm(len(images), generator=generator)
            mirrored = torch.rand(len(images), generator=generator) < (0.5 if flip else 0.0)
            for part in range(count):
                rows = order[part * batch_size : (part + 1) * batch_size]
                x = images[rows]
                x = torch.where(mirrored[rows].view(-1, 1, 1, 1), x.flip(3), x).to(device)
                loss = nn.functional.cross_entropy(model(x), labels[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 256) -> float:
    """Returns the share of images (N, C, H, W) in [0, 1] whose label the model predicts, in eval mode."""
    device = next(iter(model.parameters()), labels).device
    modes = [m for m in model.modules() if m.training]
    model.eval()
    right = torch.zeros((), dtype=torch.long, device=device)
    for rows in torch.arange(len(images)).split(batch_size):
        right += (model(images[rows].to(device)).argmax(1) == labels[rows].to(device)).sum()
    for m in modes:
        m.training = True
    return int(right) / len(images)


def _rate(step: int, warm: int, total: int) -> float:
    if step < warm:
        return (step + 1) / warm
    rest = torch.tensor((step - warm) / max(1, total - warm) * torch.pi)
    return float(0.5 * (1 + rest.cos()))
