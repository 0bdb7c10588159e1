"""A trigger that moves pixels instead of changing their values: a smooth warp of the image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from ...data.randomness import check_seed
from .pixel_trigger import PixelTrigger, check_channel_axis, check_number, check_whole, drawn


@dataclass(frozen=True)
class WarpTrigger(PixelTrigger):
    """Returns the image warped by a smooth field: x[p] <- x at the place p + field[p], bilinear between pixels.

    The field comes from k x k control points, uniform in [-1, 1] in both directions and divided by their mean absolute value, drawn
    by the seed and enlarged to the image by bicubic interpolation; ``strength`` / H of it is a displacement along coordinates in
    which the image spans [-1, 1] (W along a row), so of about strength / 2 pixels. Places beyond the image are moved to its edge.

    Cover rows (noise mode) are warped by the field plus, at every pixel and in both directions, uniform noise in
    [-noise, noise] / H, drawn by (seed, row), and keep their label; so that no warp but this one means the target.

    Args:
        grid: number k of control points a side, 2 or more.
        strength: s > 0; larger images need a larger one.
        noise: of the cover rows, > 0.
        seed: of the field and the noise.
        channel_axis: 0 or -1 where an array's shape does not tell.

    Raises:
        ValueError: for other settings.

    References:
        Nguyen and Tran 2021 (WaNet): k = 4, s = 0.5, and twice as many noise rows as poisoned ones. Units as
        in the authors' released code; on small images the paper's success relies on an attacker who also trains the network.
    """

    grid: int = 4
    strength: float = 0.5
    noise: float = 1.0
    seed: int = 0
    channel_axis: int | None = None
    cover_share: ClassVar[float] = 2.0
    by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_channel_axis(self.channel_axis)
        check_seed(self.seed)
        check_whole("grid", self.grid, 2, 1000)
        check_number("strength", self.strength, 0, 1e6)
        check_number("noise", self.noise, 0, 1e6)

    def field(self, height: int, width: int) -> np.ndarray:
        """Returns the displacements (H, W, 2), along the row of pixels and across the rows, in coordinates that span [-1, 1].

        Args:
            height: of the image.
            width: of the image.
        """
        return _field(self, height, width)

    def describe(self) -> str:
        """Returns the field's settings."""
        return f"warp of strength {self.strength:g} from {self.grid} x {self.grid} points, seed {self.seed}"

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted."""
        return _warped(pixels, _field(self, *pixels.shape[:2]))

    def paint_row(self, pixels: np.ndarray, row: int, cover: bool) -> np.ndarray:
        """Returns ``pixels`` warped; a cover row by the field with noise."""
        height, width, _ = pixels.shape
        field = _field(self, height, width)
        if cover:
            extra = drawn(self.seed, height, width, row).uniform(-self.noise, self.noise, (height, width, 2))
            field = field + extra / (width, height)
        return _warped(pixels, field)


@lru_cache(maxsize=8)
def _field(trigger: WarpTrigger, height: int, width: int) -> np.ndarray:
    points = drawn(trigger.seed, trigger.grid).uniform(-1, 1, (2, trigger.grid, trigger.grid))
    points /= np.abs(points).mean()
    smooth = F.interpolate(torch.from_numpy(points)[None], (height, width), mode="bicubic", align_corners=True)[0]
    field = trigger.strength * smooth.permute(1, 2, 0).numpy() / (width, height)
    field.setflags(write=False)
    return field


def _warped(pixels: np.ndarray, field: np.ndarray) -> np.ndarray:
    """The image (H, W, C) seen at its own places plus the field, between pixels bilinear."""
    height, width, _ = pixels.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    places = torch.from_numpy((np.stack([x, y], axis=-1) + field).clip(-1, 1))
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    seen = F.grid_sample(image[None], places[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
    return seen.permute(1, 2, 0).numpy().clip(0.0, 1.0)
