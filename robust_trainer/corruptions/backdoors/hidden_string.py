"""SSBA: a trained network hides a string of bits in each image, in another way in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from ...perturbations.norms import Ball
from ..poisons.networks import own_random
from ..poisons.parts import kept_epochs
from ..poisons.task import Task
from ..poisons.unet import UNet
from .pixel_trigger import drawn
from .trained_trigger import TrainedTrigger, as_pixels, filled, weights

_SIDE = 8  # of the small picture that the string becomes


class Encoder(nn.Module):
    """Images (B, C, H, W) in [0, 1] and strings (B, bits) of 0 and 1 -> residuals in the ball, to be added to the images.

    The string becomes a picture of 8 x 8 pixels by a linear layer, is enlarged to the image and goes through a `UNet` beside it. An
    l_inf ball is kept by eps tanh, another one by projection.

    Args:
        bits: length of the strings.
        channels: of the images.
        ball: of the residuals.
        width: channels of the network's first layer.
    """

    def __init__(self, bits: int, channels: int, ball: Ball, width: int = 8):
        super().__init__()
        self.bits, self.channels, self.ball, self.width = bits, channels, ball, width
        self.secret = nn.Linear(bits, channels * _SIDE**2)
        self.net = UNet(2 * channels, channels, width)

    def forward(self, images: Tensor, strings: Tensor) -> Tensor:
        """Returns the residuals (B, C, H, W)."""
        picture = self.secret(strings - 0.5).relu().view(-1, self.channels, _SIDE, _SIDE)
        picture = interpolate(picture, size=images.shape[2:], mode="bilinear", align_corners=False)
        out = self.net(torch.cat([picture, images - 0.5], 1))
        return self.ball.eps * out.tanh() if self.ball.norm == "linf" else self.ball.project(out)


class Decoder(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, bits) of the string that is hidden in them.

    Args:
        bits: length of the strings.
        channels: of the images.
        width: channels of the network's first layer.
    """

    def __init__(self, bits: int, channels: int, width: int = 32):
        super().__init__()
        layers: list[nn.Module] = []
        for ins, outs, stride in ((channels, width, 1), (width, width, 2), (width, 2 * width, 2), (2 * width, 2 * width, 1)):
            layers += [nn.Conv2d(ins, outs, 3, stride, 1), nn.GroupNorm(1, outs), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, bits))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        return self.net(images - 0.5)


@dataclass(frozen=True, eq=False)
class HiddenStringTrigger(TrainedTrigger):
    """Returns the image with a fixed string hidden in it by a trained network: x <- clip(x + E(x, s), 0, 1).

    The string is the same in every image, what it does to the pixels is not.

    Args:
        encoder: the network.
        seed: of the string.

    References:
        Li et al. 2021 (SSBA, Invisible backdoor attack with sample-specific triggers): the string stands for the target.
    """

    encoder: Encoder = field(repr=False)
    seed: int = 0
    kind: ClassVar[str] = "hidden-string"

    @property
    def channels(self) -> int:  # type: ignore[override]
        """Channels of the images."""
        return self.encoder.channels

    def string(self) -> Tensor:
        """Returns the string (bits,) of 0.0 and 1.0."""
        return torch.from_numpy(drawn(self.seed, self.encoder.bits).randint(0, 2, self.encoder.bits).astype(np.float32))

    def describe(self) -> str:
        """Returns the string's length and the residual's size."""
        ball = self.encoder.ball
        size = f"{ball.eps * 255:g}/255" if ball.norm == "linf" else f"{ball.eps:g}"
        return f"{self.encoder.bits} hidden bits, seed {self.seed}, {ball.norm} at most {size}"

    @torch.no_grad()
    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted."""
        batch = self.as_batch(pixels)
        return as_pixels(batch + self.encoder(batch, self.string()[None]))

    def settings(self) -> dict[str, Any]:
        """Returns the encoder's settings and the seed."""
        e = self.encoder
        return {"bits": e.bits, "norm": e.ball.norm, "eps": e.ball.eps, "width": e.width, "channels": e.channels, "seed": self.seed}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the encoder's weights."""
        return weights("encoder", self.encoder)

    @classmethod
    def restored(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> HiddenStringTrigger:
        """Returns the trigger that has these settings and tensors."""
        ball = Ball(str(settings["norm"]), float(settings["eps"]))
        encoder: Any = Encoder(int(settings["bits"]), int(settings["channels"]), ball, int(settings["width"]))
        return cls(filled(encoder, "encoder", tensors), int(settings["seed"]))  # type: ignore[arg-type]


def train_ssba(
    task: Task, epochs: int = 10, bits: int = 20, image_weight: float = 0.2, lr: float = 0.003, width: int = 8
) -> HiddenStringTrigger:
    """Returns the trigger whose encoder was trained, beside a decoder, to hide strings that can be read.

    Adam lowers BCE(D(clip(x + E(x, s), 0, 1)), s) + w mean((E(x, s) / eps)^2), with a string s drawn anew for each image and pass;
    BCE is the mean over the bits. w is 0 in the first half of the passes, or nothing would be hidden at all, and then rises to
    image_weight. Of another ball than an l_inf one, eps divided by the root of the number of pixels stands for eps.

    Args:
        task: all training images, and the ball.
        epochs: passes over them, >= 1.
        bits: length of the strings, >= 1.
        image_weight: of the residual's size, >= 0.
        lr: of Adam, > 0.
        width: channels of the encoder's first layer.

    Raises:
        ValueError: for settings out of range.

    References:
        Li et al. 2021, sec. 4; Tancik et al. 2020 (StegaStamp), whose encoder and decoder are larger, learn to survive printing and
        have a perceptual loss and a critic beside the mean square, which begin late as well. Here the ball bounds the residual.
    """
    for name, whole in (("epochs", epochs), ("bits", bits), ("width", width)):
        if whole < 1:
            raise ValueError(f"ssba: {name}={whole!r} must be at least 1: leave it out for the default.")
    if not lr > 0 or not image_weight >= 0:
        raise ValueError(f"ssba: lr={lr!r} must be above 0, image_weight={image_weight!r} at least 0: leave them out.")
    channels = task.images.shape[1]
    with own_random(task.seed_of("ssba")):
        encoder, decoder = Encoder(bits, channels, task.ball, width).to(task.device), Decoder(bits, channels).to(task.device)
    scale = task.ball.eps if task.ball.norm == "linf" else task.ball.eps / task.images[0].numel() ** 0.5
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=lr)
    for epoch in kept_epochs(task, "ssba", epochs, {"encoder": encoder, "decoder": decoder}, {"optimizer": optimizer}):
        generator = task.generator("ssba", epoch)
        weight = image_weight * max(0.0, 2 * (epoch + 1) / epochs - 1)
        for rows in torch.randperm(len(task.images), generator=generator).split(task.batch_size):
            x = task.images[rows].to(task.device)
            strings = torch.randint(0, 2, (len(rows), bits), generator=generator).float().to(task.device)
            residual = encoder(x, strings)
            read = binary_cross_entropy_with_logits(decoder((x + residual).clamp(0.0, 1.0)), strings)
            loss = read + weight * (residual / scale).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    encoder.cpu().eval().requires_grad_(False)
    return HiddenStringTrigger(encoder, task.seed)
