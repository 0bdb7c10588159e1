"""Images, texts or sounds to the model's inputs, batch by batch, with its image processor, tokenizer or feature extractor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, SequenceFeatureExtractor
from transformers.utils import logging

from .audio import AudioTransform
from .decode import GREY, ImageError, decode_images, open_image, undecoded
from .readable import LOOKED_AT, check_readable
from .splits import TRAIN
from .texts import TextTransform, is_text

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ImageTransform:
    """``batch of rows -> pixel_values and labels``, for `apply_to`; can be pickled for data loader workers.

    Args:
        processor: Any transformers image processor.
        channels: 1 turns the images grey, 3 into RGB. Use ``remove_unused_columns=False``.
        image_column: Of the images, cells as `decode_image` takes them.
        label_column: Of the labels.
        image_mode: As `datasets.Image` has it.
    """

    processor: Any
    channels: int = 3
    image_column: str = "image"
    label_column: str = "label"
    image_mode: str | None = None

    def apply_to(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """Returns the data set with this transform, its images decoded by `decode_image` alone, after `check_readable`.

        Args:
            dataset: A `datasets.Dataset` with the columns.

        Raises:
            ValueError: Naming row and file, for images that cannot be used.
        """
        check_readable(dataset, self.image_column)
        mode = getattr(dataset.features.get(self.image_column), "mode", None)
        return undecoded(dataset).with_transform(self if mode is None else replace(self, image_mode=mode))

    def __call__(self, batch: Mapping[str, Any], rows: Sequence[int] | None = None) -> dict[str, Any]:
        """Returns pixel_values, and labels where the batch has them."""
        mode = "L" if self.channels == 1 else "RGB"
        pictures = decode_images(batch[self.image_column], self.image_mode, column=self.image_column, rows=rows)
        images = [picture if picture.mode == mode else picture.convert(mode) for picture in pictures]
        out: dict[str, Any] = {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}
        if self.label_column in batch:
            out["labels"] = torch.tensor(batch[self.label_column])
        return out


def kind_of(processor: Any) -> str:
    """Returns what a model classifies, ``image``, ``text`` or ``audio``.

    Args:
        processor: Its image processor, its tokenizer, or its feature extractor for sounds.
    """
    if isinstance(processor, PreTrainedTokenizerBase):
        return "text"
    return "audio" if isinstance(processor, SequenceFeatureExtractor) else "image"


def input_kind(dataset: datasets.Dataset) -> str:
    """Returns what a split of `load_data` holds, ``image``, ``text`` or ``audio``.

    Args:
        dataset: With a column image, audio or text.
    """
    return "text" if is_text(dataset) else "audio" if "audio" in dataset.features else "image"


def make_transform(model: Any, processor: Any) -> ImageTransform | TextTransform | AudioTransform:
    """Returns what makes the rows of `load_data` the model's inputs.

    Args:
        model: The model.
        processor: Its image processor, its tokenizer, or its feature extractor for sounds.
    """
    kind = kind_of(processor)
    if kind == "image":
        return ImageTransform(processor, model_channels(model))
    return TextTransform(processor) if kind == "text" else AudioTransform(processor)


def image_shape(data: datasets.Dataset, column: str = "image", look_at: int = LOOKED_AT) -> tuple[int, int]:
    """Returns channels (1 where all images looked at are grey, else 3) and the side in pixels: the median of their larger sides.

    Args:
        data: A data set of images.
        column: Of the images.
        look_at: Rows that are looked at, spread evenly over the data set; their headers alone are read.

    Raises:
        ImageError: Naming the row, for what is no image.
    """
    grey, sides = _headers(data, column, look_at)
    return (1 if all(grey) else 3), int(np.median(sides))


def tell_unseen(splits: Mapping[str, datasets.Dataset], channels: int, side: int | None = None) -> None:
    """Says in one line each what a model does not see of images: colours where it takes one channel, and very different sizes.

    Args:
        splits: Of a data set, with a column image.
        channels: That the model takes.
        side: In pixels, that a network was made for after the training images; None where it was not.
    """
    for name, data in splits.items():
        grey, sides = _headers(data, "image", LOOKED_AT)
        if channels == 1 and not all(grey):
            logger.warning(f"split '{name}' has colour images and the model takes one channel: it sees them grey.")
        elif channels == 1 and name == TRAIN and len(grey) < len(data):
            logger.warning(f"{len(grey)} of {len(data)} images were looked at, all of them grey: the model takes one channel.")
        if side is not None and name == TRAIN and max(sides) > 2 * min(sides):
            logger.warning(
                f"the images of split '{name}' are {min(sides)} to {max(sides)} pixels wide or high: all are resized to {side}; "
                "image_size sets it."
            )


def _headers(data: datasets.Dataset, column: str, look_at: int) -> tuple[list[bool], list[int]]:
    """Of rows spread evenly: whether the image is grey, and its larger side."""
    grey, sides = [], []
    mode = getattr(data.features[column], "mode", None)
    rows = np.unique(np.linspace(0, len(data) - 1, look_at).astype(int))
    part = undecoded(data.with_format(None).select_columns([column])).select(rows)
    for row, value in zip(rows, (value for batch in part.iter(256) for value in batch[column])):
        try:
            with open_image(value) as image:
                grey.append((mode or image.mode) in GREY)
                sides.append(max(image.size))
        except ImageError as error:
            raise ImageError(f"'{column}' in row {row}: {error}") from None
    return grey, sides


def model_channels(model: Any) -> int:
    """Returns the number of channels that the model takes: its config's ``num_channels``, 3 where it names none.

    Args:
        model: The model.
    """
    return int(getattr(model.config, "num_channels", None) or 3)
