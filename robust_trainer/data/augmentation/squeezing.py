"""Image shortcut squeezing (ISS): the training images made coarser, before all else.

Perturbations that make data unlearnable are small and of high frequency or of few colours; fewer bits, no colour or JPEG of low
quality wash them out. The test images stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import datasets
import PIL.Image
import PIL.ImageOps

from .. import columns
from ..decode import decode_image
from ..mapping import map_columns

#: The names of `make_squeeze`, in the order in which they are applied.
SQUEEZES = ("bits", "grayscale", "jpeg")
_JPEG_SIDE = 65_500
_REVISION = 2  # enters the cache fingerprint: raise it when the output for the same settings changes


@dataclass(frozen=True)
class Squeeze:
    """``PIL image -> PIL image`` of the same size: bit depth reduced, then grey, then JPEG (the order of the authors' code).

    Args:
        bits: the highest bits of each channel that are kept, 1..8, or None.
        grayscale: the three channels become one grey (ITU-R 601 weights), three times.
        jpeg_quality: 1..95 (the authors: 10), with Pillow's subsampling of colours, or None.

    Raises:
        ValueError: for settings out of range.

    References:
        Liu, Zhao and Larson 2023, "Image shortcut squeezing: countering perturbative availability poisons with compression"; a
        baseline of ERAT.
    """

    bits: int | None = None
    grayscale: bool = False
    jpeg_quality: int | None = None

    def __post_init__(self) -> None:
        for name, value, top, usual in (("bits", self.bits, 8, 2), ("jpeg_quality", self.jpeg_quality, 95, 10)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= top):
                raise ValueError(f"{name}={value!r} must be a whole number in [1, {top}]: give for instance {usual}.")

    def __call__(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Returns the squeezed picture, mode L for grey ones, else RGB.

        Args:
            image: of any size; or a cell of another kind that `decode_image` takes.

        Raises:
            ValueError: where it does not.
        """
        image = decode_image(image)
        if self.bits is not None:
            image = PIL.ImageOps.posterize(image, self.bits)
        if self.grayscale and image.mode == "RGB":
            image = image.convert("L").convert("RGB")
        if self.jpeg_quality is not None:
            if max(image.size) > _JPEG_SIDE:
                raise ValueError(f"image has {image.width} x {image.height} pixels, a JPEG at most {_JPEG_SIDE} a side: scale it.")
            file = BytesIO()
            image.save(file, format="JPEG", quality=self.jpeg_quality)
            image = decode_image(file.getvalue())
        return image

    def __str__(self) -> str:
        parts = [f"{self.bits} bits" if self.bits is not None else "", "grayscale" if self.grayscale else ""]
        parts.append(f"JPEG quality {self.jpeg_quality}" if self.jpeg_quality is not None else "")
        return ", ".join(part for part in parts if part) or "none"


def make_squeeze(names: str, *, jpeg_quality: int = 10, bits: int = 2) -> Squeeze:
    """Returns the squeeze of a name, as ``jpeg`` or ``jpeg+grayscale``.

    Args:
        names: of `SQUEEZES`, joined by ``+``, in any order.
        jpeg_quality: of ``jpeg``, 1..95.
        bits: of ``bits``, 1..8.

    Raises:
        ValueError: for unknown names and settings out of range.
    """
    chosen = [name.strip() for name in names.split("+")]
    unknown = next((name for name in chosen if name not in SQUEEZES), None)
    if unknown is not None:
        raise ValueError(f"squeeze={names!r}: {unknown!r} is unknown, choose among {', '.join(SQUEEZES)}, joined by +.")
    checked = Squeeze(bits, True, jpeg_quality)
    return Squeeze(
        checked.bits if "bits" in chosen else None, "grayscale" in chosen, checked.jpeg_quality if "jpeg" in chosen else None
    )


def squeeze_images(
    dataset: datasets.Dataset,
    squeeze: Squeeze,
    *,
    image_column: str | None = None,
    num_proc: int | None = None,
    **map_kwargs: Any,
) -> datasets.Dataset:
    """Returns the data set with every image squeezed, stored as lossless PNG; features, format and other columns are kept.

    For the training split alone, after corrupting it.

    Args:
        dataset: one split.
        squeeze: what is done to each image.
        image_column: the only Image column by default.
        num_proc: processes of `Dataset.map`.
        map_kwargs: of `Dataset.map`.

    Raises:
        ValueError: for no rows, no Image column, and naming the row, for an image that cannot be used.
    """
    columns.check_dataset(dataset)
    name = columns.image_column(dataset, image_column)
    feature = dataset.features[name]
    if not isinstance(feature, datasets.Image):
        raise ValueError(f"image_column={name!r} holds numbers, expected PIL images: cast it to datasets.Image() first.")
    squeezer = SqueezeMap(squeeze, name, feature.mode)
    return map_columns(dataset, squeezer, {}, undecoded=[name], num_proc=num_proc, **{"desc": "squeeze", **map_kwargs})


@dataclass(frozen=True)
class SqueezeMap:
    """A callable for ``dataset.map(fn, batched=True, with_indices=True)`` that squeezes images, decoded or not.

    Args:
        squeeze: what is done to each image.
        image_column: the column of the images.
        image_mode: of the column's feature.
        revision: part of the cache fingerprint.
    """

    squeeze: Squeeze
    image_column: str
    image_mode: str | None = None
    revision: int = field(default=_REVISION, repr=False)

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, list]:
        """Returns the squeezed images of a batch.

        Args:
            batch: columns by name.
            indices: the rows' positions in the data set.

        Raises:
            ValueError: naming the row, for an image that cannot be used.
        """
        out = []
        for image, index in zip(batch[self.image_column], indices):
            try:
                out.append(self._one(image))
            except (ValueError, OSError) as error:
                raise ValueError(f"'{self.image_column}' in row {index}: {error}") from error
        return {self.image_column: out}

    def _one(self, image: Any) -> Any:
        if isinstance(image, PIL.Image.Image):
            return self.squeeze(image)
        return datasets.Image().encode_example(self.squeeze(decode_image(image, self.image_mode)))
