"""The value range and normalisation of image inputs: eps is in [0, 1] pixels, whatever the model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..perturbations.norms import Ball


@lru_cache(maxsize=64)
def _channel_tensor(values: tuple[float, ...], device: torch.device, dims: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, *[1] * (dims - 2))


@dataclass(frozen=True)
class InputSpace:
    """The map between model inputs and [0, 1] pixels, x_model = (x_pixel - mean) / std, per channel of (B, C, H, W)."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"image_mean has {len(self.mean)} values and image_std {len(self.std)}: give one per channel.")
        if min(self.std) <= 0:
            raise ValueError(f"image_std={list(self.std)} must be positive in every channel.")

    def _as(self, values: tuple[float, ...], x: Tensor) -> Tensor:
        return _channel_tensor(values, x.device, x.dim())

    def to_pixels(self, x: Tensor) -> Tensor:
        """Pixels, float32, of the model's inputs x (B, C, ...).

        Args:
            x: The model's inputs (B, C, ...).
        """
        return x.float() * self._as(self.std, x) + self._as(self.mean, x)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """The model's inputs of pixels (B, C, ...), of their dtype.

        Args:
            pixels: (B, C, ...) in [0, 1].
        """
        return (pixels - self._as(self.mean, pixels)) / self._as(self.std, pixels)

    def check(self, x: Tensor) -> None:
        """Raises ``ValueError`` where x (B, C, ...) does not fit mean and std, or leaves [0, 1] once they are undone.

        Args:
            x: The model's inputs (B, C, ...).
        """
        if x.dim() < 3 or len(self.mean) not in (1, x.shape[1]):
            raise ValueError(
                f"image_mean has {len(self.mean)} values but the inputs have shape {tuple(x.shape)}, (B, C, H, W): "
                "give one mean and std per channel."
            )
        pixels = self.to_pixels(x.detach())
        low, high = float(pixels.min()), float(pixels.max())
        if low < -0.02 or high > 1.02:
            raise ValueError(
                f"inputs span [{low:.3g}, {high:.3g}] once image_mean={list(self.mean)} and image_std={list(self.std)} are "
                "undone, expected [0, 1] pixels: pass the mean and std that the preprocessing really uses."
            )

    def ball(self, norm: str, eps: float) -> Ball:
        """The ball of radius eps pixels around each image.

        Args:
            norm: ``linf``, ``l2`` or ``l1``.
            eps: Radius in [0, 1] pixels.
        """
        return Ball(norm, eps)

    def to_pixel_gradient(self, grad: Tensor) -> Tensor:
        """The gradient with respect to pixels, from the one with respect to the model's input.

        Args:
            grad: Of the shape of the model's inputs.
        """
        return grad / self._as(self.std, grad)

    def clip(self, x: Tensor, delta: Tensor) -> Tensor:
        """``delta`` in pixels, shortened so that x + delta stays in [0, 1] pixels.

        Args:
            x: The model's inputs (B, C, ...).
            delta: Of the shape of x, in [0, 1] pixels.
        """
        pixels = self.to_pixels(x)
        # a pixel that rounding put a hair outside [0, 1] must not be moved by a zero delta
        return torch.minimum(torch.maximum(delta, (0.0 - pixels).clamp_max(0.0)), (1.0 - pixels).clamp_min(0.0))

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """Returns x + delta clipped to [0, 1] pixels, in the model's units and x's dtype; exactly x at delta 0.

        Args:
            x: The model's inputs (B, C, ...).
            delta: Of the shape of x, in [0, 1] pixels.
        """
        std, mean = self._as(self.std, x), self._as(self.mean, x)
        start = x.float()
        out = start + delta / std
        # a pixel that rounding put a hair outside the range may stay there
        torch.maximum(out, torch.minimum(start, (0.0 - mean) / std), out=out)
        torch.minimum(out, torch.maximum(start, (1.0 - mean) / std), out=out)
        return out.to(x.dtype)


def input_space(processor: Any, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> InputSpace | None:
    """The `InputSpace` of an image processor, or of an explicit mean and std, which win; None where neither tells.

    Args:
        processor: An image processor, or None.
        mean: Per channel, in [0, 1] pixels.
        std: Per channel, in [0, 1] pixels.


    Raises:
        ValueError: When only one of mean and std is given.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"image_mean={mean} and image_std={std} belong together: give both or neither.")
    if isinstance(mean, int | float) or isinstance(std, int | float):
        raise ValueError(f"image_mean={mean} and image_std={std} must be lists, one number per channel: give [{mean}] for one.")
    if mean is not None and std is not None:
        return InputSpace(tuple(map(float, mean)), tuple(map(float, std)))
    processor = getattr(processor, "image_processor", processor)
    settings = getattr(processor, "data_config", None)  # timm models through transformers' wrapper
    if isinstance(settings, Mapping) and "mean" in settings:
        return InputSpace(tuple(map(float, settings["mean"])), tuple(map(float, settings["std"])))
    if getattr(processor, "do_normalize", None) is None and not hasattr(processor, "image_mean"):
        return None
    if getattr(processor, "do_normalize", True):
        found_mean, found_std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
        if found_mean is None or found_std is None:
            return None
        as_list = lambda v: (float(v),) if isinstance(v, int | float) else tuple(map(float, v))  # noqa: E731
        space = InputSpace(as_list(found_mean), as_list(found_std))
    else:
        space = InputSpace()
    if not getattr(processor, "do_rescale", True):
        return None  # the inputs may be 0..255 or 0..1: only the user knows
    return space
