"""Patches: pixels of an image that are set to a pattern, in one place or in several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...data.randomness import check_seed
from .pixel_trigger import PixelTrigger, check_channel_axis, check_number, check_whole, drawn

_PLACES = ("top-left", "top-right", "bottom-left", "bottom-right", "center")


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, int | np.integer) for v in value)


def _as_tuples(values: Any) -> Any:
    """Nested lists as nested tuples: hashable, comparable and whole in the repr."""
    return tuple(map(_as_tuples, values)) if isinstance(values, list) else values


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
        check_channel_axis(self.channel_axis)
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
        row, column = self.place(height, width)
        if values.shape[2] not in (1, channels):
            raise ValueError(f"pattern has {values.shape[2]} channels but the image has {channels}: give one per channel or one.")
        pixels[row : row + h, column : column + w] = values
        return pixels

    def place(self, height: int, width: int) -> tuple[int, int]:
        """Returns row and column of the patch's top-left pixel in an image of this size.

        Raises ``ValueError`` where it does not fit.

        Args:
            height: of the image.
            width: of the image.
        """
        h, w = self.size
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
        return row, column


@dataclass(frozen=True)
class PatchesTrigger(PixelTrigger):
    """Returns the image with the same checkerboard in several places, or on a grid: x[patch] <- (1 - opacity) x[patch] + opacity t.

    Image kinds: see `PixelTrigger`.

    Args:
        size: side of each patch in pixels.
        positions: corners, 'center' or pairs (row, column); joined by + in a text, as 'top-left+bottom-right'.
        grid: None, or so many patches along each side, evenly spaced from edge to edge, instead of ``positions``; 2 or more.
        opacity: of the patches, in (0, 1].
        channel_axis: 0 or -1 where an array's shape does not tell.

    Raises:
        ValueError: for other settings, and for an image that the patches do not fit.

    References:
        BadNets (Gu et al. 2017): a single bright pixel or a pattern of bright pixels; which and where is free.
    """

    size: int = 3
    positions: Any = ("top-left", "top-right", "bottom-left", "bottom-right")
    grid: int | None = None
    opacity: float = 1.0
    channel_axis: int | None = None

    def __post_init__(self) -> None:
        check_channel_axis(self.channel_axis)
        check_number("opacity", self.opacity, 0, 1)
        if self.grid is not None:
            check_whole("grid", self.grid, 2, 1000)
        given = self.positions.split("+") if isinstance(self.positions, str) else self.positions
        if not isinstance(given, tuple | list) or not given:
            raise ValueError(f"positions={self.positions!r} are no places: give for instance 'top-left+bottom-right'.")
        patches = [PatchTrigger(self.size, place) for place in given]  # raises for what is no place
        if len({patch.position for patch in patches}) < len(patches):
            raise ValueError(f"positions={self.positions!r} name a place twice: give each one once.")
        object.__setattr__(self, "positions", tuple(patch.position for patch in patches))

    def places(self, height: int, width: int) -> list[tuple[int, int]]:
        """Returns row and column of each patch's top-left pixel in an image of this size.

        Args:
            height: of the image.
            width: of the image.
        """
        if self.grid is None:
            return [PatchTrigger(self.size, position).place(height, width) for position in self.positions]
        if self.grid * self.size > min(height, width):
            raise ValueError(
                f"grid={self.grid} of patches of size={self.size} does not fit an image of {height}x{width} pixels: give less."
            )
        rows, columns = (np.rint(np.linspace(0, side - self.size, self.grid)).astype(int) for side in (height, width))
        return [(int(row), int(column)) for row in rows for column in columns]

    def describe(self) -> str:
        """Returns size and places."""
        where = f"a grid of {self.grid} x {self.grid}" if self.grid is not None else " and ".join(map(str, self.positions))
        return f"{self.size} pixels, {where}" + (f", opacity {self.opacity:g}" if self.opacity < 1 else "")

    def paint(self, pixels: np.ndarray) -> np.ndarray:
        """Returns ``pixels`` (H, W, C), floats in [0, 1], painted."""
        return _checkerboards(pixels, self.places(*pixels.shape[:2]), self.size, self.opacity)


@dataclass(frozen=True)
class AdaptivePatchTrigger(PatchesTrigger):
    """Returns the image with patches in several places; a row of a training set has one of them, drawn by (seed, row), and fainter.

    Args:
        size: as of `PatchesTrigger`, and so are positions, grid and channel_axis.
        positions: places of the patches.
        grid: places on a grid instead.
        opacity: of the patches at test time.
        channel_axis: 0 or -1 where an array's shape does not tell.
        training_opacity: of the one patch in training.
        seed: of the draws.

    Raises:
        ValueError: as `PatchesTrigger`.

    References:
        Qi et al. 2023 (Revisiting the assumption of latent separability): k = 4 patches of which each poisoned sample has
        one, several at test time, and covers ("conservatism"), here as many as poisoned samples. The paper's four patches are
        pictures (two logos, two squares) of opacities 0.2 to 0.5; here they are checkerboards in the four corners at 0.5.
    """

    training_opacity: float = 0.5
    seed: int = 0
    cover_share: ClassVar[float] = 1.0
    by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("training_opacity", self.training_opacity, 0, 1)
        check_seed(self.seed)

    def describe(self) -> str:
        """Returns size, places and what training differs in."""
        return f"{super().describe()}; in training one of them, opacity {self.training_opacity:g}, seed {self.seed}"

    def paint_row(self, pixels: np.ndarray, row: int, cover: bool) -> np.ndarray:
        """Returns ``pixels`` with one of the patches."""
        places = self.places(*pixels.shape[:2])
        one = places[drawn(self.seed, row).randint(len(places))]
        return _checkerboards(pixels, [one], self.size, self.training_opacity)


def _checkerboards(pixels: np.ndarray, places: list[tuple[int, int]], size: int, opacity: float) -> np.ndarray:
    values = PatchTrigger(size).values()
    clean = pixels.copy()  # patches that overlap cover each other
    for row, column in places:
        part = np.s_[row : row + size, column : column + size]
        pixels[part] = (1 - opacity) * clean[part] + opacity * values
    return pixels
