"""Blends: a picture mixed into the whole image."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ...data.decode import check_pixels, decode_image
from ...data.fingerprint import fingerprint
from ...data.randomness import check_seed
from .pixel_trigger import PixelTrigger, check_channel_axis, check_number, check_whole, drawn


@dataclass(frozen=True)
class BlendTrigger(PixelTrigger):
    """Returns the image mixed with a fixed picture t: x <- (1 - alpha) x + alpha t.

    Image kinds: see `PixelTrigger`.

    Args:
        alpha: in (0, 1].
        picture: None for noise, t = clip(N(mean, std^2), 0, 1), independent per pixel and channel, a fixed function of (seed,
            height, width, channels); or a PIL image, a path, or an array (H, W) or (H, W, C) of floats in [0, 1] or 8-bit levels;
            it is resized (bilinear) to the image, and turned grey for grey images.
        mean: of the noise, in pixels.
        std: of the noise, in pixels.
        seed: of the noise.
        channel_axis: 0 or -1 where an array's shape does not tell.

    Raises:
        ValueError: for other settings.

    References:
        Backdoor sec. 5: t is fixed Gaussian noise of the image's size and alpha is 0.1; the paper gives neither the noise's mean
        and std nor its clipping.
    """

    alpha: float = 0.1
    picture: Any = field(default=None, repr=False, compare=False)
    seed: int = 0
    mean: float = 0.5
    std: float = 0.25
    channel_axis: int | None = None
    picture_digest: str | None = field(default=None, init=False)
    picture_name: str | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_channel_axis(self.channel_axis)
        check_seed(self.seed)
        for name, low, high in (("alpha", 0, 1), ("std", 0, np.inf)):
            value = getattr(self, name)
            if not isinstance(value, int | float | np.number) or not low < value <= high:
                raise ValueError(f"{name}={value!r} must be in ({low}, {high}]: give for instance {name}=0.1.")
        if not isinstance(self.mean, int | float | np.number) or not np.isfinite(self.mean) or not np.isfinite(self.std):
            raise ValueError(f"mean={self.mean!r} and std={self.std!r} must be finite: give for instance 0.5 and 0.25.")
        if self.picture is not None:
            if isinstance(self.picture, str | os.PathLike):
                if not os.path.isfile(self.picture):
                    raise ValueError(f"picture={os.fspath(self.picture)!r} does not exist: give an image file, or leave it out.")
                object.__setattr__(self, "picture_name", os.fspath(self.picture))
            levels = _levels(self.picture)
            object.__setattr__(self, "picture", levels)
            digest = fingerprint(levels)
            object.__setattr__(self, "picture_digest", digest)

    def values(self, height: int, width: int, channels: int) -> np.ndarray:
        """Returns the picture t (H, W, C) in [0, 1] that images of this size are mixed with."""
        return _blend_picture(self, height, width, channels)

    def describe(self) -> str:
        """Returns the share and what is blended in."""
        noise = f"noise of mean {self.mean:g} and std {self.std:g}, seed {self.seed}"
        return f"alpha {self.alpha:g} of {noise if self.picture is None else self.picture_name or 'a picture'}"

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted."""
        return (1 - self.alpha) * pixels + self.alpha * _blend_picture(self, *pixels.shape)


@dataclass(frozen=True)
class AdaptiveBlendTrigger(BlendTrigger):
    """Returns the image mixed with a picture; in a row of a training set pieces of the picture are left out, drawn by (seed, row).

    The picture is cut into ``pieces`` x ``pieces`` equal parts; round(masked pieces^2) of them, drawn for each row, are not mixed
    in.

    Args:
        alpha: share of the picture at test time; picture, seed, mean, std and channel_axis as of `BlendTrigger`.
        picture: None for noise.
        seed: of the noise and of the draws.
        mean: of the noise.
        std: of the noise.
        channel_axis: 0 or -1 where an array's shape does not tell.
        training_alpha: share of the picture in training.
        pieces: parts along each side.
        masked: share of the parts that are left out in training, [0, 1).

    Raises:
        ValueError: as `BlendTrigger`, and for an image of fewer pixels a side than pieces.

    References:
        Qi et al. 2023: a blended picture in 4 x 4 pieces of which half are masked in training; alpha 0.15 in training and
        0.2 at test time; covers ("conservatism"), here as many as poisoned samples. The paper blends a photograph, here it is noise
        unless ``picture`` is given.
    """

    alpha: float = 0.2
    training_alpha: float = 0.15
    pieces: int = 4
    masked: float = 0.5
    cover_share: ClassVar[float] = 1.0
    by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("training_alpha", self.training_alpha, 0, 1)
        check_whole("pieces", self.pieces, 1, 1000)
        if self.masked != 0:
            check_number("masked", self.masked, 0, 1)
        if self.masked == 1 or round(self.masked * self.pieces**2) == self.pieces**2:
            raise ValueError(f"masked={self.masked!r} leaves nothing of {self.pieces}x{self.pieces} pieces: give for instance 0.5.")

    def describe(self) -> str:
        """Returns the shares and what training differs in."""
        mask = f"without {self.masked:.0%} of {self.pieces}x{self.pieces} pieces"
        return f"{super().describe()}; in training alpha {self.training_alpha:g} {mask}"

    def mask(self, height: int, width: int, row: int) -> np.ndarray:
        """Returns which pixels (H, W) of an image get the picture in a row of a training set, as booleans.

        Args:
            height: of the image.
            width: of the image.
            row: its number.
        """
        n = self.pieces
        if n > min(height, width):
            raise ValueError(f"pieces={n} is more than an image of {height}x{width} pixels has on a side: give fewer.")
        kept = np.ones(n * n, dtype=bool)
        kept[drawn(self.seed, row).permutation(n * n)[: round(self.masked * n * n)]] = False
        return kept.reshape(n, n)[np.ix_(np.arange(height) * n // height, np.arange(width) * n // width)]

    def paint_row(self, pixels: np.ndarray, row: int, cover: bool) -> np.ndarray:
        """Returns ``pixels`` mixed with the pieces of the picture that the row has."""
        height, width, _ = pixels.shape
        share = self.training_alpha * self.mask(height, width, row)[..., None]
        return (1 - share) * pixels + share * _blend_picture(self, *pixels.shape)


def _levels(picture: Any) -> np.ndarray:
    """A picture as uint8 (H, W) or (H, W, 3)."""
    if isinstance(picture, str | os.PathLike | Image.Image):
        return np.array(decode_image(picture))
    array = np.asarray(picture)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        raise ValueError(f"picture has shape {array.shape}, expected (H, W), (H, W, 1) or (H, W, 3): reshape it.")
    check_pixels(array)
    return np.ascontiguousarray(np.rint(array * 255.0) if array.dtype.kind == "f" else array, dtype=np.uint8)


@lru_cache(maxsize=8)
def _blend_picture(trigger: BlendTrigger, height: int, width: int, channels: int) -> np.ndarray:
    if trigger.picture is None:
        random = drawn(trigger.seed, height, width, channels)
        noise = trigger.mean + trigger.std * random.standard_normal((height, width, channels))
        picture = noise.clip(0.0, 1.0)
    else:
        if channels not in (1, 3):
            raise ValueError(f"picture fits images of 1 or 3 channels, the image has {channels}: leave picture=None for noise.")
        resized = Image.fromarray(trigger.picture).convert("L" if channels == 1 else "RGB")
        if resized.size != (width, height):
            resized = resized.resize((width, height), Image.Resampling.BILINEAR)
        picture = np.asarray(resized, dtype=np.float64).reshape(height, width, channels) / 255.0
    picture.setflags(write=False)
    return picture
