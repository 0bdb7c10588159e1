"""The images of a data set as one tensor, and back as lossless 8-bit pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torch import Tensor

from . import columns
from .decode import decode_images, undecoded
from .mapping import map_columns

IS_POISONED = "is_poisoned"
_REVISION = 1  # enters the cache fingerprint: raise it when the output for the same settings changes


def image_column(dataset: datasets.Dataset, name: str | None = None) -> str:
    """Returns the Image column.

    Args:
        dataset: A `datasets.Dataset`.
        name: Of the column; None: to be found.

    Raises:
        ValueError: Where there is none, or where it holds numbers instead of pictures.
    """
    name = columns.image_column(dataset, name)
    if not isinstance(dataset.features[name], datasets.Image):
        raise ValueError(f"image_column={name!r} is {dataset.features[name]}, expected Image: cast it with dataset.cast_column.")
    return name


def read_levels(dataset: datasets.Dataset, name: str) -> np.ndarray:
    """Returns the images as 8-bit levels (N, H, W, C) uint8: C = 1 where every image is grey, else 3.

    Args:
        dataset: A `datasets.Dataset`.
        name: Of the Image column.


    Raises:
        ValueError: Naming the row, for images that `decode_image` refuses, and for mixed sizes.
    """
    mode = dataset.features[name].mode
    plain = undecoded(dataset.with_format(None).select_columns([name]))
    rows: list[np.ndarray] = []
    for batch in plain.iter(256):
        for picture in decode_images(batch[name], mode, column=name, rows=range(len(rows), len(rows) + len(batch[name]))):
            array = np.asarray(picture)
            rows.append(array[..., None] if array.ndim == 2 else array)
            if rows[-1].shape[:2] != rows[0].shape[:2]:
                sizes = " and ".join("{1}x{0}".format(*r.shape) for r in (rows[0], rows[-1]))
                raise ValueError(f"'{name}' has mixed sizes, {sizes} (rows 0 and {len(rows) - 1}): resize the images to one size.")
    grey = all(row.shape[2] == 1 for row in rows)
    return np.stack([row if grey or row.shape[2] == 3 else row.repeat(3, axis=2) for row in rows])


def to_pixels(levels: np.ndarray) -> Tensor:
    """Returns levels (N, H, W, C) uint8 as pixels (N, C, H, W) float32 in [0, 1].

    Args:
        levels: (N, H, W, C) uint8.
    """
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(0, 3, 1, 2))).float() / 255.0


def read_pixels(dataset: datasets.Dataset, image: str | None = None, label: str | None = None) -> tuple[Tensor, Tensor]:
    """Returns images (N, C, H, W) float32 in [0, 1] and labels (N,).

    Args:
        dataset: A `datasets.Dataset`.
        image: Name of the Image column; None: to be found.
        label: Name of the label column; None: to be found.
    """
    columns.check_dataset(dataset)
    image, label = image_column(dataset, image), columns.label_column(dataset, label)
    labels, _ = columns.read_labels(dataset, label)
    return to_pixels(read_levels(dataset, image)), torch.from_numpy(labels)


def to_levels(pixels: Tensor) -> np.ndarray:
    """Returns pixels (N, C, H, W) as the nearest 8-bit levels (N, H, W, C) uint8, halves to even; outside [0, 1] clipped.

    Args:
        pixels: (N, C, H, W) in [0, 1].
    """
    return (pixels.double() * 255.0).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def write_levels(dataset: datasets.Dataset, name: str, levels: np.ndarray, **map_kwargs: Any) -> datasets.Dataset:
    """Returns the data set with levels (N, H, W, C) as PNG images and ``is_poisoned`` True; all else, its format too, is kept.

    Args:
        dataset: A `datasets.Dataset`.
        name: Of the Image column.
        levels: (N, H, W, C) uint8.

        **map_kwargs: Of `Dataset.map`.
    """
    added = {IS_POISONED: datasets.Value("bool")}
    return map_columns(dataset, PixelMap(levels, name), added, undecoded=[name], **{"desc": "poison", **map_kwargs})


@dataclass(frozen=True, eq=False)
class PixelMap:
    """Returns the changed columns of a batch, for ``dataset.map(fn, batched=True, with_indices=True)``: row i shows levels[i]."""

    levels: np.ndarray
    image_column: str
    revision: int = field(default=_REVISION, repr=False)

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, list]:
        """Returns the changed columns of a batch."""
        rows = (self.levels[i] for i in indices)
        images = [PIL.Image.fromarray(row[..., 0] if row.shape[2] == 1 else row) for row in rows]
        return {self.image_column: [datasets.Image().encode_example(i) for i in images], IS_POISONED: [True] * len(images)}
