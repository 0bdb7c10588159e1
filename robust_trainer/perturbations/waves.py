"""Where a perturbation enters a model of sounds: in the samples of its waveform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.audio import lengths
from ..data.batch_rows import rows_of
from .inputs import Forward, MicroBatch
from .norms import Ball


@dataclass(frozen=True)
class WaveSpace:
    """Waveforms (B, T) in the units that the model takes: eps counts in these, and padding is not moved.

    Where the feature extractor normalises each sound to mean 0 and variance 1, eps is a share of the sound's own root mean square
    (0.03 in l_inf is 30 dB below it or more) and there is no valid range; where it does not, samples are in [-1, 1].

    Args:
        mask: (B, T), 1 for samples and 0 for padding.
        limit: The largest absolute value of a sample; None: none.
    """

    mask: Tensor
    limit: float | None = None

    def check(self, x: Tensor) -> None:
        """Raises ``ValueError`` where samples leave the range that the extractor says."""
        if self.limit is not None and float(x.detach().abs().max()) > self.limit * 1.02:
            raise ValueError(
                f"waveforms reach {float(x.detach().abs().max()):.3g}, expected [-{self.limit:g}, {self.limit:g}] of a feature "
                "extractor that does not normalise: scale them."
            )

    def ball(self, norm: str, eps: float) -> Ball:
        """As `Space.ball`."""
        return Ball(norm, eps)

    def to_pixel_gradient(self, grad: Tensor) -> Tensor:
        """As `Space.to_pixel_gradient`: the units are the model's."""
        return grad

    def clip(self, x: Tensor, delta: Tensor) -> Tensor:
        """As `Space.clip`: 0 for padding."""
        delta = delta * self.mask
        if self.limit is None:
            return delta
        x = x.float()
        return torch.minimum(torch.maximum(delta, (-self.limit - x).clamp_max(0.0)), (self.limit - x).clamp_min(0.0))

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """As `Space.add`."""
        return x + self.clip(x, delta).to(x.dtype)


@dataclass(frozen=True)
class WaveAdapter:
    """The waveforms (B, T) of a model of sounds.

    Args:
        key: The name of the model's input.
        limit: As of `WaveSpace`.
    """

    key: str
    limit: float | None = None

    @classmethod
    def of(cls, key: str, value: Any, processor: Any, method: str) -> WaveAdapter:
        """Returns the adapter of a model whose input looks so.

        Args:
            key: Of the input.
            value: The first batch's.
            processor: The feature extractor, or None.
            method: For the message.

        Raises:
            ValueError: For spectrograms, and inputs that are no waveforms.
        """
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() != 2:
            got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"method '{method}' moves the samples of waveforms (B, T), '{key}' is {got}: a perturbed spectrogram is the "
                "spectrogram of no sound; use a model of waveforms (Wav2Vec2, HuBERT), or a method without an attack (prl, auto)."
            )
        return cls(key, 1.0 if getattr(processor, "do_normalize", None) is False else None)

    def join(self, batches: Sequence[MicroBatch], norm: str, in_l2: Tensor | None = None) -> tuple[Tensor, WaveSpace]:
        """As `InputAdapter.join`; shorter micro-batches are padded with 0."""
        waves = [batch.inputs[self.key] for batch in batches]
        longest = max(wave.shape[1] for wave in waves)
        masks = []
        for wave, batch in zip(waves, batches):
            sizes = lengths(wave, batch.inputs.get("attention_mask"))
            masks.append((torch.arange(longest, device=wave.device) < sizes.unsqueeze(1)).float())
        padded = [nn.functional.pad(wave, (0, longest - wave.shape[1])) for wave in waves]
        return (torch.cat(padded) if len(padded) > 1 else padded[0]), WaveSpace(torch.cat(masks), self.limit)

    def split(self, x: Tensor, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """As `InputAdapter.split`."""
        rows = x.split([len(batch.targets) for batch in batches])
        return [row[:, : batch.inputs[self.key].shape[1]] for row, batch in zip(rows, batches)]

    def forward(self, forward: Forward, inputs: dict[str, Any], x: Tensor) -> Any:
        """As `InputAdapter.forward`; of several examples a sample the other inputs are those of each."""
        size = len(inputs[self.key])
        if len(x) != size:
            inputs = rows_of(inputs, torch.arange(size, device=x.device).repeat(len(x) // size), size)
        return forward({**inputs, self.key: x})
