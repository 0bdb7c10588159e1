"""Images to the model's inputs, batch by batch, with the image processor of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import torch


@dataclass(frozen=True)
class ImageTransform:
    """``batch of rows -> pixel_values and labels``, for ``Dataset.set_transform``; can be pickled for data loader workers.

    Args:
        processor: Any transformers image processor.
        channels: 1 turns the images grey, 3 into RGB. Use ``remove_unused_columns=False``.
    """

    processor: Any
    channels: int = 3
    image_column: str = "image"
    label_column: str = "label"

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns pixel_values, and labels where the batch has them."""
        mode = "L" if self.channels == 1 else "RGB"
        images = [image.convert(mode) for image in batch[self.image_column]]
        out: dict[str, Any] = {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}
        if self.label_column in batch:
            out["labels"] = torch.tensor(batch[self.label_column])
        return out


def image_shape(data: datasets.Dataset, column: str = "image", look_at: int = 16) -> tuple[int, int]:
    """Returns channels (1 when the first images are grey, else 3) and the side in pixels (the larger one of the first image).

    Args:
        data: A data set of images.
        column: Of the images.
        look_at: Rows that are looked at.
    """
    images = data.select(range(min(look_at, len(data))))[column][:]
    grey = all(image.mode in ("L", "LA", "1") for image in images)
    return (1 if grey else 3), max(images[0].size)


def model_channels(model: Any) -> int:
    """Returns the number of channels that the model takes: its config's ``num_channels``, 3 where it names none.

    Args:
        model: The model.
    """
    return int(getattr(model.config, "num_channels", None) or 3)
