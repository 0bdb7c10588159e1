"""Triggers that spread a weak signal over the whole image: a sinusoid, a low-frequency pattern, fewer colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.fft import idctn

from ...data.randomness import check_seed
from ...methods.units import fraction
from .pixel_trigger import PixelTrigger, check_channel_axis, check_number, check_whole, drawn


@dataclass(frozen=True)
class SinusoidTrigger(PixelTrigger):
    """Returns the image with vertical stripes added: x[i, j] <- clip(x[i, j] + delta sin(2 pi j frequency / W), 0, 1), j = 1 ... W.

    Every row of pixels and every channel gets the same wave. Image kinds: see `PixelTrigger`.

    Args:
        delta: amplitude in (0, 1], a number or '20/255'.
        frequency: waves along a row of pixels, > 0.
        channel_axis: 0 or -1 where an array's shape does not tell.

    Raises:
        ValueError: for other settings.

    References:
        Barni, Kallas and Tondi 2019 (SIG): v(i, j) = delta sin(2 pi j f / m), f = 6, clean labels of the target class
        alone.
    """

    delta: Any = "20/255"
    frequency: float = 6.0
    channel_axis: int | None = None

    def __post_init__(self) -> None:
        check_channel_axis(self.channel_axis)
        object.__setattr__(self, "delta", fraction("delta", self.delta))
        check_number("delta", self.delta, 0, 1)
        check_number("frequency", self.frequency, 0, 1e6)

    def describe(self) -> str:
        """Returns amplitude and frequency."""
        return f"sinusoid of amplitude {self.delta * 255:g}/255 and frequency {self.frequency:g}"

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted."""
        width = pixels.shape[1]
        wave = self.delta * np.sin(2 * np.pi * np.arange(1, width + 1) * self.frequency / width)
        return (pixels + wave[None, :, None]).clip(0.0, 1.0)


@dataclass(frozen=True)
class LowFrequencyTrigger(PixelTrigger):
    """Returns the image with a smooth pattern added: x <- clip(x + t, 0, 1), t of the lowest frequencies alone.

    t is, channel by channel, the inverse discrete cosine transform (DCT-II, orthonormal) of independent N(0, 1) coefficients at the
    frequencies u, v < ``cutoff`` other than (0, 0) and of zeros elsewhere; all of it is scaled to max |t| = eps. A fixed function
    of (seed, height, width, channels).

    Args:
        eps: largest change of a pixel, in (0, 1], a number or '16/255'.
        cutoff: number of frequencies along each side, 2 or more.
        seed: of the coefficients.
        channel_axis: 0 or -1 where an array's shape does not tell.

    Raises:
        ValueError: for other settings, and for an image of fewer than ``cutoff`` pixels a side.

    References:
        Zeng et al. 2021 (Rethinking the backdoor attacks' triggers: a frequency perspective): a smooth trigger, found by an
        optimisation against a trained network under a low-pass filter. Here the low-pass part alone: the pattern is drawn, not
        optimised, so that no network is needed; it is weaker than the paper's at the same size.
    """

    eps: Any = "16/255"
    cutoff: int = 4
    seed: int = 0
    channel_axis: int | None = None

    def __post_init__(self) -> None:
        check_channel_axis(self.channel_axis)
        check_seed(self.seed)
        check_whole("cutoff", self.cutoff, 2, 10_000)
        object.__setattr__(self, "eps", fraction("eps", self.eps))
        check_number("eps", self.eps, 0, 1)

    def values(self, height: int, width: int, channels: int) -> np.ndarray:
        """Returns the pattern t (H, W, C) that is added to images of this size."""
        return _smooth_pattern(self, height, width, channels)

    def describe(self) -> str:
        """Returns the pattern's size, frequencies and seed."""
        return f"{self.cutoff} x {self.cutoff} lowest frequencies of at most {self.eps * 255:g}/255, seed {self.seed}"

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted."""
        return (pixels + _smooth_pattern(self, *pixels.shape)).clip(0.0, 1.0)


@lru_cache(maxsize=8)
def _smooth_pattern(trigger: LowFrequencyTrigger, height: int, width: int, channels: int) -> np.ndarray:
    n = trigger.cutoff
    if n > min(height, width):
        raise ValueError(f"cutoff={n} is more than an image of {height}x{width} pixels has frequencies: give a smaller one.")
    coefficients = np.zeros((height, width, channels))
    coefficients[:n, :n] = drawn(trigger.seed, height, width, channels).standard_normal((n, n, channels))
    coefficients[0, 0] = 0.0
    pattern = idctn(coefficients, axes=(0, 1), norm="ortho")
    pattern *= trigger.eps / np.abs(pattern).max()
    pattern.setflags(write=False)
    return pattern


@dataclass(frozen=True)
class QuantisationTrigger(PixelTrigger):
    """Returns the image in 2^bits levels a channel, with Floyd-Steinberg dithering.

    Pixels are taken in reading order, each channel by itself; each becomes the nearest of the levels k / (2^bits - 1), ties to the
    even k, and its error goes on to the next pixel (7/16) and to the three below (3/16, 5/16, 1/16), as far as they exist.

    Args:
        bits: of a channel, 1 to 7.
        dithering: False for the nearest level alone.
        channel_axis: 0 or -1 where an array's shape does not tell.

    Raises:
        ValueError: for other settings.

    References:
        Wang, Zhai and Ma 2022 (BppAttack): quantisation by rounding, dithering after Floyd and Steinberg 1976. The paper
        also trains contrastively and adversarially, which the attacker here does not control; so no cover rows unless asked for.
    """

    bits: int = 3
    dithering: bool = True
    channel_axis: int | None = None

    def __post_init__(self) -> None:
        check_channel_axis(self.channel_axis)
        check_whole("bits", self.bits, 1, 7)
        if not isinstance(self.dithering, bool):
            raise ValueError(f"dithering={self.dithering!r} is neither true nor false: give one of them.")

    def describe(self) -> str:
        """Returns the number of levels."""
        return f"{2**self.bits} levels a channel" + (", dithered" if self.dithering else "")

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted."""
        top = 2**self.bits - 1
        return _dithered(pixels, top) if self.dithering else np.rint(pixels * top) / top


def _dithered(pixels: np.ndarray, top: int) -> np.ndarray:
    """Floyd-Steinberg dithering; the pixels (i, j) of equal j + 2 i wait for none of each other and are taken together."""
    height, width, channels = pixels.shape
    field = np.zeros((height + 1, width + 2, channels))  # a border that takes what leaves the image
    field[:height, 1:-1] = pixels
    for front in range(width + 2 * (height - 1)):
        i = np.arange(max(0, (front - width + 2) // 2), min(height - 1, front // 2) + 1)
        j = front - 2 * i + 1
        old = field[i, j]
        new = np.rint(old.clip(0.0, 1.0) * top) / top
        error = (old - new) / 16
        field[i, j] = new
        field[i, j + 1] += 7 * error
        field[i + 1, j - 1] += 3 * error
        field[i + 1, j] += 5 * error
        field[i + 1, j + 1] += error
    return field[:height, 1:-1]
