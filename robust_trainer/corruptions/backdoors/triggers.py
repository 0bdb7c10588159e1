"""Backdoor triggers: what is painted on an image. Pixels are in [0, 1]; 8-bit images are rounded to the nearest level.

A new trigger is a subclass of `PixelTrigger` and its row in `TRIGGERS`, which the command line reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from ...data.decode import as_array, check_pixels, decode_image
from ...data.fingerprint import fingerprint
from ...data.randomness import check_seed

_PLACES = ("top-left", "top-right", "bottom-left", "bottom-right", "center")


class PixelTrigger:
    """An image of the kind that came (PIL image, array or nested list), painted by `paint` on (H, W, C) floats in [0, 1].

    PIL: what comes out is L or RGB, painted on the picture that `decode_image` makes: a trigger on transparent pixels is seen.
    Arrays and lists: (H, W), (H, W, C) or (C, H, W); the channel axis is the shorter one of first and last, unless
    ``channel_axis`` (0 or -1) says which; every channel is painted. Integers are 8-bit levels 0..255, floats are in [0, 1].
    """

    channel_axis: int | None

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted; the array is a copy and may be written to."""
        raise NotImplementedError

    def describe(self) -> str:
        """Returns the trigger's settings in words, for reports and cards."""
        return repr(self)

    def __call__(self, image: Any) -> Any:
        """Returns the image with the trigger, of the kind that came."""
        if isinstance(image, Image.Image):
            array = np.array(decode_image(image))
            grey = array.ndim == 2
            painted = _on_levels(self.paint, array[..., None] if grey else array)
            return Image.fromarray(painted[..., 0] if grey else painted)
        if isinstance(image, list):
            return self(as_array(image)).tolist()
        if not isinstance(image, np.ndarray):
            raise ValueError(f"image is {type(image).__name__}, expected a PIL image, an array or a nested list: convert it first.")
        axis = self._axis(image.shape)
        check_pixels(image)
        pixels = image[..., None] if axis is None else np.moveaxis(image, axis, -1)
        painted = self.paint(pixels.astype(np.float64)) if image.dtype.kind == "f" else _on_levels(self.paint, pixels)
        painted = painted.astype(image.dtype)
        return painted[..., 0] if axis is None else np.ascontiguousarray(np.moveaxis(painted, -1, axis))

    def _axis(self, shape: tuple[int, ...]) -> int | None:
        if len(shape) == 2:
            return None
        if len(shape) != 3:
            raise ValueError(f"image has shape {shape}, expected (H, W), (H, W, C) or (C, H, W): reshape it first.")
        if self.channel_axis is not None:
            return self.channel_axis
        if shape[0] == shape[-1]:
            raise ValueError(f"image has shape {shape}, channels first or last? Set channel_axis=0 or channel_axis=-1.")
        return 0 if shape[0] < shape[-1] else -1


def _check_channel_axis(axis: Any) -> None:
    if axis not in (None, 0, -1):
        raise ValueError(f"channel_axis={axis!r} must be None, 0 (C, H, W) or -1 (H, W, C): choose one of these.")


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, int | np.integer) for v in value)


def _as_tuples(values: Any) -> Any:
    """Nested lists as nested tuples: hashable, comparable and whole in the repr."""
    return tuple(map(_as_tuples, values)) if isinstance(values, list) else values


def _on_levels(paint: Callable[[np.ndarray], np.ndarray], levels: np.ndarray) -> np.ndarray:
    return np.rint(paint(levels / 255.0) * 255.0).astype(levels.dtype)


@dataclass(frozen=True)
class PatchTrigger(PixelTrigger):
    """Returns the image with a patch set to ``pattern``: x[patch] <- pattern, all other pixels bit-identical.

    Image kinds: see `PixelTrigger`.

    Args:
        size: side or (height, width) in pixels, default 3.
        position: a corner's name, 'center', or (row, column) of the patch's top-left pixel.
        pattern: 'checkerboard', or values in [0, 1] of shape (h, w) or (h, w, C), which also give the size.
        channel_axis: 0 or -1 where an array's shape does not tell.

    Raises:
        ValueError: for other settings, and for an image that the patch does not fit.

    References:
        Backdoor sec. 5, after BadNets (Gu et al. 2017): a 3x3 black-white checkerboard in the bottom-right corner. The paper
        gives no phase: here corners and centre are 1.0, others 0.0.
    """

    size: Any = None
    position: str | tuple[int, int] = "bottom-right"
    pattern: Any = "checkerboard"
    channel_axis: int | None = None

    def __post_init__(self) -> None:
        _check_channel_axis(self.channel_axis)
        if isinstance(self.pattern, str) and self.pattern != "checkerboard":
            raise ValueError(f"pattern={self.pattern!r} is unknown: choose 'checkerboard' or give pixel values in [0, 1].")
        values = None if isinstance(self.pattern, str) else np.asarray(self.pattern, dtype=np.float64)
        if values is not None and not (values.ndim in (2, 3) and values.size and values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"pattern of shape {values.shape} must be (h, w) or (h, w, C) with values in [0, 1]: rescale it.")
        size: Any = self.size
        if size is None:
            size = (3, 3) if values is None else values.shape[:2]
        elif isinstance(size, int | np.integer):
            size = (size, size)
        if not _is_pair(size) or min(size) < 1 or (values is not None and tuple(size) != values.shape[:2]):
            fit = "" if values is None else f" equal to the pattern's {values.shape[:2]}"
            raise ValueError(f"size={self.size!r} must be a positive integer or a pair (height, width){fit}: change it.")
        position: Any = self.position
        if position not in _PLACES:
            if not _is_pair(position) or min(position) < 0:
                raise ValueError(f"position={position!r} is unknown: choose one of {list(_PLACES)} or a pair (row, column) >= 0.")
            position = (int(position[0]), int(position[1]))
        object.__setattr__(self, "size", (int(size[0]), int(size[1])))
        object.__setattr__(self, "position", position)
        if values is not None:
            object.__setattr__(self, "pattern", _as_tuples(values.tolist()))

    def values(self) -> np.ndarray:
        """Returns the patch's pixels (h, w, 1 or C) in [0, 1]."""
        if isinstance(self.pattern, str):
            rows, columns = np.indices(self.size)
            return ((rows + columns + 1) % 2).astype(np.float64)[..., None]
        values = np.asarray(self.pattern, dtype=np.float64)
        return values[..., None] if values.ndim == 2 else values

    def describe(self) -> str:
        """Returns size and place."""
        side = f"{self.size[0]}" if self.size[0] == self.size[1] else f"{self.size[0]} x {self.size[1]}"
        return f"{side} pixels, {self.position}"

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted."""
        (h, w), (height, width, channels), values = self.size, pixels.shape, self.values()
        if isinstance(self.position, str):
            row, column = (
                ((height - h) // 2, (width - w) // 2)
                if self.position == "center"
                else (0 if "top" in self.position else height - h, 0 if "left" in self.position else width - w)
            )
        else:
            row, column = self.position
        if min(row, column) < 0 or row + h > height or column + w > width:
            raise ValueError(
                f"size={self.size} at position={self.position!r} does not fit an image of {height}x{width} pixels: "
                "give a smaller size or another position."
            )
        if values.shape[2] not in (1, channels):
            raise ValueError(f"pattern has {values.shape[2]} channels but the image has {channels}: give one per channel or one.")
        pixels[row : row + h, column : column + w] = values
        return pixels


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
        _check_channel_axis(self.channel_axis)
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
        # RandomState, since numpy promises never to change its stream; Generator's may change between versions
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([trigger.seed, height, width, channels])))
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


@dataclass(frozen=True)
class Trigger:
    """A row of `TRIGGERS`.

    Attributes:
        name: how the command line calls it (``--corrupt``).
        summary: what it paints, in a few words.
        make: makes the trigger; its keywords are the trigger's settings.
        options: command-line options that are settings of it, option -> keyword; all others go through ``trigger_settings``.
    """

    name: str
    summary: str
    make: Callable[..., PixelTrigger]
    options: Mapping[str, str] = field(default_factory=dict)


#: The triggers by name.
TRIGGERS: Mapping[str, Trigger] = {
    row.name: row
    for row in (
        Trigger("patch", "checkerboard", PatchTrigger, {"patch_size": "size", "patch_position": "position"}),
        Trigger(
            "blend", "noise picture", BlendTrigger,
            {"alpha": "alpha", "blend_std": "std", "corrupt_seed": "seed", "blend_picture": "picture"},
        ),
    )
}  # fmt: skip
