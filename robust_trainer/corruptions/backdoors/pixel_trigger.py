"""What every trigger on pixels is: an image comes in, an image of the same kind goes out. Pixels are in [0, 1].

8-bit images are rounded to the nearest level. A new trigger is a subclass of `PixelTrigger` and its row in `triggers.TRIGGERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ...data.decode import as_array, check_pixels, decode_image


class PixelTrigger:
    """An image of the kind that came (PIL image, array or nested list), painted by `paint` on (H, W, C) floats in [0, 1].

    PIL: what comes out is L or RGB, painted on the picture that `decode_image` makes: a trigger on transparent pixels is seen.
    Arrays and lists: (H, W), (H, W, C) or (C, H, W); the channel axis is the shorter one of first and last, unless
    ``channel_axis`` (0 or -1) says which; every channel is painted. Integers are 8-bit levels 0..255, floats are in [0, 1].
    """

    channel_axis: int | None
    #: Cover rows for each poisoned row, where `poison` is given no ``cover_rate``.
    cover_share: ClassVar[float] = 0.0
    #: Whether training images are painted by `paint_row`, each in its own way, and test images by `paint`.
    by_row: ClassVar[bool] = False

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted; the array is a copy and may be written to."""
        raise NotImplementedError

    def paint_row(self, pixels: np.ndarray, row: int, cover: bool) -> np.ndarray:
        """Returns ``pixels`` painted as in one row of a training set.

        Args:
            pixels: as of `paint`.
            row: the row's number.
            cover: whether the row keeps its label.
        """
        return self.paint(pixels)

    def at(self, row: int, *, training: bool, cover: bool = False) -> PixelTrigger:
        """Returns the trigger as it is put on one row of a data set, image -> image.

        Args:
            row: the row's number; what is drawn for it is a function of the trigger's seed and this number alone.
            training: whether the row is trained on, else the attacker shows it to the network.
            cover: whether the row keeps its label (see `poison`).
        """
        return RowPainter(self, row, cover, self.channel_axis) if training and self.by_row else self

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


@dataclass(frozen=True)
class RowPainter(PixelTrigger):
    """Returns the image with a trigger as it is in one row of a training set: `PixelTrigger.at` makes it."""

    trigger: PixelTrigger
    row: int
    cover: bool
    channel_axis: int | None

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted."""
        return self.trigger.paint_row(pixels, self.row, self.cover)


def trigger_at(trigger: Callable[[Any], Any], row: int, *, training: bool, cover: bool = False) -> Callable[[Any], Any]:
    """Returns a trigger for one row.

    That is its ``at(row, training=, cover=)`` where it has that, as `PixelTrigger.at`; else the trigger, the same for every row.

    Args:
        trigger: any input -> input.
        row: as of `PixelTrigger.at`, and so are the others.
        training: whether the row is trained on.
        cover: whether the row keeps its label.
    """
    return trigger.at(row, training=training, cover=cover) if hasattr(trigger, "at") else trigger


def drawn(*key: int) -> np.random.RandomState:
    """Returns random numbers of a key of whole numbers in [0, 2^64), such as (seed, row).

    `RandomState`, since numpy promises never to change its stream; Generator's may change between versions.
    """
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raises a one-line ``ValueError`` for what is no number in (low, high].

    Args:
        name: of the setting.
        value: that was given.
        low: excluded.
        high: included.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not low < value <= high:
        raise ValueError(f"{name}={value!r} must be a number in ({low:g}, {high:g}]: change it.")


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raises a one-line ``ValueError`` for what is no whole number in [low, high].

    Args:
        name: of the setting.
        value: that was given.
        low: the least.
        high: the largest.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a whole number from {low} to {high}: change it.")


def check_channel_axis(axis: Any) -> None:
    """Raises ``ValueError`` for anything but None, 0 and -1."""
    if axis not in (None, 0, -1):
        raise ValueError(f"channel_axis={axis!r} must be None, 0 (C, H, W) or -1 (H, W, C): choose one of these.")


def _on_levels(paint: Callable[[np.ndarray], np.ndarray], levels: np.ndarray) -> np.ndarray:
    return np.rint(paint(levels / 255.0) * 255.0).astype(levels.dtype)
