"""A trigger as a camera sees it: in another place, size, angle and light in every image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.ndimage import affine_transform

from ...data.randomness import check_seed
from .pixel_trigger import PixelTrigger, check_number, drawn

_TRAINING, _COVER, _TEST = range(3)  # streams of the draws


@dataclass(frozen=True)
class PhysicalTrigger(PixelTrigger):
    """Returns the image with a trigger that is shifted, scaled, rotated and of another brightness in each row of a data set.

    For triggers that lie over the image, x <- (1 - a) x + a t with a and t the same for every image: patch, patches, blend and
    their adaptive forms. a and t are read off what the trigger makes of a black and of a white image, are moved, bilinear between
    pixels, and laid over the image: x <- (1 - a') x + a' t'. Draws are by (seed, row), others for test images than for training.
    The trigger turns about the middle of its box, which is not shifted over the image's edge. A call without a row leaves it as it
    is.

    Args:
        trigger: the trigger.
        shift: the furthest that its middle moves along each side, as a share of the side, [0, 1].
        scale: its size is multiplied by a number uniform in [1 - scale, 1 + scale], [0, 1).
        rotation: the largest angle to either side in degrees, [0, 180].
        brightness: t is multiplied by a number uniform in [1 - brightness, 1 + brightness] and clipped, [0, 1].
        seed: of the draws.

    Raises:
        ValueError: for settings out of range, and for a trigger that does not lie over the image, as a warp.

    References:
        Li et al. 2021 (Backdoor attack in the physical world): a trigger that is seen from elsewhere than in training does not
        work, unless training saw it transformed; they transform the whole poisoned image, here the trigger moves alone.
    """

    trigger: PixelTrigger
    shift: float = 0.1
    scale: float = 0.2
    rotation: float = 15.0
    brightness: float = 0.2
    seed: int = 0
    by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.trigger, PixelTrigger) or isinstance(self.trigger, PhysicalTrigger):
            raise ValueError(f"trigger={str(self.trigger):.60} is no trigger of images: give for instance PatchTrigger().")
        check_seed(self.seed)
        for name, top in (("shift", 1.0), ("scale", 0.999), ("rotation", 180.0), ("brightness", 1.0)):
            check_number(name, getattr(self, name), -1e-12, top)
        try:
            self.trigger.paint(np.zeros((32, 32, 3)))
        except ValueError:
            return  # does not fit such an image
        _layers(self.trigger, 32, 32, 3)

    @property
    def channel_axis(self) -> int | None:  # type: ignore[override]
        """The trigger's own."""
        return self.trigger.channel_axis

    @property
    def cover_share(self) -> float:  # type: ignore[override]
        """The trigger's own."""
        return self.trigger.cover_share

    def at(self, row: int, *, training: bool, cover: bool = False) -> PixelTrigger:
        """Returns the trigger of one row, as `PixelTrigger.at`; test rows differ as well."""
        stream = _TEST if not training else _COVER if cover else _TRAINING
        return _Moved(self, self.trigger.at(row, training=training, cover=cover), row, stream)

    def describe(self) -> str:
        """Returns the trigger and how far it moves."""
        moved = f"shift {self.shift:g}, scale {self.scale:g}, rotation {self.rotation:g}, brightness {self.brightness:g}"
        return f"{self.trigger.describe()}; in every image another {moved}, seed {self.seed}"

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted by the trigger as it is."""
        return self.trigger.paint(pixels)


@dataclass(frozen=True)
class _Moved(PixelTrigger):
    """The trigger of one row, moved."""

    physical: PhysicalTrigger
    trigger: PixelTrigger
    row: int
    stream: int

    @property
    def channel_axis(self) -> int | None:  # type: ignore[override]
        return self.physical.channel_axis

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        height, width, channels = pixels.shape
        opacity, laid = moved_layers(self.physical, self.trigger, height, width, channels, self.row, self.stream)
        return ((1 - opacity) * pixels + laid).clip(0.0, 1.0)


def moved_layers(
    physical: PhysicalTrigger, trigger: PixelTrigger, height: int, width: int, channels: int, row: int, stream: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns opacity a' and a' t' (H, W, C) of a trigger in one row.

    Args:
        physical: how far it moves.
        trigger: as it is in that row.
        height: of the image.
        width: of the image.
        channels: of the image.
        row: its number.
        stream: of the draws, for training, covers and tests.
    """
    random = drawn(physical.seed, row, stream)
    down, right, size, angle, light = random.uniform(-1, 1, 5)
    opacity, laid = _layers(trigger, height, width, channels)
    picture = np.divide(laid, opacity, out=np.zeros_like(laid), where=opacity > 1e-9)
    laid = opacity * (picture * (1 + physical.brightness * light)).clip(0.0, 1.0)
    rows, columns, _ = np.nonzero(opacity > 1e-9)
    if not len(rows):
        return opacity, laid
    grown, turn = 1 + physical.scale * size, np.deg2rad(physical.rotation * angle)
    box = np.array([np.ptp(rows) + 1, np.ptp(columns) + 1])
    middle = np.array([rows.min() + rows.max(), columns.min() + columns.max()]) / 2
    turning = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    half = grown * (np.abs(turning) @ box) / 2
    sides = np.array([height, width])
    least, most = half - 0.5, sides - 0.5 - half  # where the middle may be
    room = least <= most
    reach = physical.shift * sides
    low = np.where(room, np.clip(middle - reach, least, most), middle - reach)
    high = np.where(room, np.clip(middle + reach, least, most), middle + reach)
    goal = low + (high - low) * (np.array([down, right]) + 1) / 2
    inverse = turning.T / grown  # from a place in the image to the place in the trigger that is seen there
    offset = middle - inverse @ goal

    def moved(layer: np.ndarray) -> np.ndarray:
        seen = [affine_transform(layer[..., c], inverse, offset, order=1, mode="grid-constant") for c in range(channels)]
        return np.stack(seen, axis=-1)

    return moved(opacity), moved(laid)


def _layers(trigger: PixelTrigger, height: int, width: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Opacity a and a t (H, W, C) of a trigger that makes (1 - a) x + a t of every image x."""
    shape = (height, width, channels)
    black, grey, white = (trigger.paint(np.full(shape, level)) for level in (0.0, 0.5, 1.0))
    opacity = 1 - (white - black)
    if not np.allclose(grey, (black + white) / 2, atol=1e-6) or opacity.min() < -1e-6 or not opacity.max() > 1e-6:
        raise ValueError(
            f"{type(trigger).__name__} does not lie over the image, so it cannot be moved in it: give a patch or a blended picture."
        )
    return opacity, black
