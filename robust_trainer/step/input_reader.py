"""Samples' inputs as short vectors, by which they are compared: small images, a text's tokens, or a sound's spectrum.

A sound's vector says nothing of when something is heard, so that a tone or a background is in the same places of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import evidence as labels_judged
from ..data.audio import frame_quantiles, lengths, spectrum

#: Images are compared at this many pixels a side at most, texts by so many groups of tokens.
SIDE, TOKENS = 64, 2048
#: Bytes of the images of all rows, made smaller where there are many.
LEVELS = 1_000_000_000


def image_input(inputs: Mapping[str, Any]) -> str | None:
    """Returns the name of the first input that is images, floating point (B, 1 or 3, H, W); None where there is none.

    Args:
        inputs: of a batch.
    """
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 4 and value.shape[1] in (1, 3):
            return name
    return None


def sound_input(inputs: Mapping[str, Any]) -> str | None:
    """Returns the name of the input that is sounds by transformers' names: waveforms (B, T) or spectrograms; None for none.

    Args:
        inputs: of a batch.
    """
    for name in ("input_values", "input_features"):
        value = inputs.get(name)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (2, 3) and value.shape[1] > 1:
            return name
    return None


@dataclass(frozen=True)
class InputReader:
    """How a batch's inputs become vectors: images made small, which tokens a text has, or a sound's spectrum.

    Attributes:
        name: of the input.
        shape: of an image's vector (H, W, channels), None for others.
    """

    name: str
    shape: tuple[int, ...] | None

    @classmethod
    def of(cls, inputs: Mapping[str, Any], size: int) -> InputReader | None:
        """Returns the reader of the first images, token numbers or sounds among the inputs, None where there are none.

        Args:
            inputs: of a batch.
            size: rows of the data set.
        """
        if (name := image_input(inputs)) is not None:
            channels, height, width = inputs[name].shape[1:]
            room = max(min(labels_judged.NUMBERS // min(size, labels_judged.COMPARED), LEVELS // size), 1)
            scale = min(1.0, SIDE / max(height, width), (room / (height * width * channels)) ** 0.5)
            return cls(name, (max(int(height * scale), 1), max(int(width * scale), 1), channels))
        if isinstance(inputs.get("input_ids"), Tensor):
            return cls("input_ids", None)
        return cls(name, None) if (name := sound_input(inputs)) is not None else None

    def read(self, inputs: Mapping[str, Any]) -> Tensor:
        """Returns the batch's vectors: float16 (B, H W channels) of images, (B, V) of sounds, or uint8 (B, TOKENS) of 0 and 255."""
        value = inputs[self.name]
        if value.is_floating_point() and self.shape is None:
            return self._sounds(value, inputs.get("attention_mask")).half()
        if self.shape is not None:
            if value.shape[2:] != self.shape[:2]:
                value = nn.functional.adaptive_avg_pool2d(value.float(), (self.shape[0], self.shape[1]))
            return value.half().permute(0, 2, 3, 1).flatten(1)
        mask = inputs.get("attention_mask")
        present = torch.zeros(len(value), TOKENS, dtype=torch.uint8, device=value.device)
        shown = torch.full_like(value, 255, dtype=torch.uint8)
        if isinstance(mask, Tensor) and mask.shape == value.shape:
            shown = shown * mask.to(torch.uint8)
        return present.scatter_reduce_(1, value % TOKENS, shown, "amax")

    def _sounds(self, value: Tensor, mask: Any) -> Tensor:
        """The rows' frequencies, (B, V), of what is no padding."""
        if value.dim() == 3 and self.name == "input_features" and value.shape[1] < value.shape[2]:
            value = value.transpose(1, 2)  # Whisper has frequencies first
        read = spectrum if value.dim() == 2 else frame_quantiles
        return torch.stack([read(row[:size]) for row, size in zip(value, lengths(value, mask).tolist())])

    def levels(self, vectors: Tensor) -> Tensor:
        """Returns the vectors of all rows as levels from 0 to 255, uint8."""
        if vectors.dtype == torch.uint8:
            return vectors
        low, high = (value.float() for value in vectors.aminmax())
        scale = 255.0 / (high - low).clamp_min(1e-6)
        # in parts: copies in single precision of all rows at once would cost more in fresh memory than in arithmetic
        parts = [part.float().sub_(low).mul_(scale).round_().to(torch.uint8) for part in vectors.split(256)]
        return torch.cat(parts)
