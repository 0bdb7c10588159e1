"""Any cell of a data set as the picture that a model sees: 8 bits, grey or RGB, opaque, upright. Nothing else opens an image.

Transparent pixels show a white ground. Grey levels of 16 bits are divided by 257, those of a 12-bit TIFF by 4095 / 255; floats are
in [0, 1]. Integers of 32 bits and other floats are refused: what is white in them, their file does not say.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from io import BytesIO
from typing import Any

import datasets
import numpy as np
import PIL.Image
from PIL.Image import Image, Transpose
from torch import Tensor

from ..reporting.safe_text import plain

#: Formats that are opened; Pillow knows many more, which nobody trains on, and one of them starts another program (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: An image with more pixels is refused by its header.
MAX_PIXELS = 120_000_000
#: What shows where an image is transparent.
BACKGROUND = "white"
#: Modes of a PIL image whose picture is grey.
GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
#: Levels deeper than 8 bits.
DEEP = GREY[4:]
#: Opaque modes that Pillow turns into RGB.
_COLOURED = ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX")
_ARRAYS = (np.ndarray, Tensor, list)
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip


class ImageError(ValueError):
    """An image that cannot be used, in one line: which file, where it has one, and what to do.

    Args:
        message: The line.
        reason: What is wrong, without the file.
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


def decode_image(
    value: Any, mode: str | None = None, *, most: int = MAX_PIXELS, draft: tuple[int, int] | None = None, stretch: bool = False
) -> Image:
    """Returns the picture of a cell: mode L or RGB, opaque, upright, of several frames the first, without metadata.

    Guarantee: an opaque L or RGB image comes with the levels that Pillow decodes, to the bit.

    Args:
        value: A PIL image, ``{"bytes": ..., "path": ...}`` as `datasets` stores one, a path, a file's bytes, or an array or nested
            list (H, W), (H, W, C) or (C, H, W) of 8-bit integers or of floats in [0, 1]; C is 1, 2 with alpha, 3, or 4 with alpha.
        mode: The picture is converted to, as `datasets.Image` has it; None: L where it is grey, else RGB.
        most: Pixels that are decoded at most.
        draft: A JPEG may come smaller, but not smaller than this size.
        stretch: Levels whose range is unknown go from their least to their largest value instead of being refused; for showing.

    Raises:
        ImageError: For anything else, whatever a decoder makes of damaged bytes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on odd metadata and on sizes that are checked here
        return _decode(value, mode, most, draft, stretch)


@contextmanager
def open_image(value: Any, most: int = MAX_PIXELS) -> Iterator[Image]:
    """Yields the PIL image of a cell, of which only the header was read; what is no image, or too large, is refused.

    Args:
        value: As of `decode_image`.
        most: Pixels of an image at most.

    Raises:
        ImageError: For what is no image, or has more pixels; and for whatever is raised while the image is looked at.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = _open(value, most)
            with nullcontext(image) if image is value else image:
                yield image
        except Exception as error:
            raise _image_error(error, value) from None


def decode_images(
    values: Sequence[Any], mode: str | None = None, *, column: str = "image", rows: Sequence[int] | None = None
) -> list[Image]:
    """Returns the pictures of a batch's cells, as `decode_image`.

    Args:
        values: Cells of one column.
        mode: As of `decode_image`.
        column: Its name, for messages.
        rows: The cells' rows, for messages; None where they are not known.

    Raises:
        ImageError: Naming the column, the row or the place in the batch, and the file.
    """
    out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, value in enumerate(values):
            try:
                out.append(_decode(value, mode))
            except ImageError as error:
                of_batch = f" (number {i + 1} of a batch of {len(values)})" if len(values) > 1 else ""
                place = of_batch if rows is None else f" in row {rows[i]}"
                raise ImageError(f"'{column}'{place}: {error}", error.reason) from None
    return out


def undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """Returns the data set with its images as ``{"bytes": ..., "path": ...}``, so that nothing but `decode_image` decodes them.

    Args:
        dataset: A `datasets.Dataset`; its format is kept.
    """
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image) and feature.decode:
            dataset = dataset.cast_column(name, datasets.Image(mode=feature.mode, decode=False))
    return dataset


def is_plain(image: Image) -> bool:
    """Returns whether the picture of an image has its very mode and levels: L or RGB, and opaque.

    Args:
        image: A PIL image, of which the header is enough.
    """
    return image.mode in ("L", "RGB") and not image.has_transparency_data


def told(value: Any) -> str:
    """Returns a cell's file as messages name it, with a space before; '' where it has none.

    Args:
        value: As of `decode_image`.
    """
    path = value.get("path") if isinstance(value, Mapping) else getattr(value, "filename", value)
    return f" '{plain(os.fspath(path), 300)}'" if isinstance(path, str | os.PathLike) and os.fspath(path) else ""


def as_array(image: list) -> np.ndarray:
    """Returns a nested list as an array; raises ``ValueError`` where it is ragged or holds no numbers.

    Args:
        image: Nested lists of numbers.
    """
    try:
        return np.asarray(image)
    except ValueError as error:
        raise ValueError("image is a ragged list, expected rows of one length: make it (H, W), (H, W, C) or (C, H, W).") from error


def check_pixels(image: np.ndarray) -> None:
    """Raises ``ValueError`` for NaN or infinite pixels, and for pixels outside [0, 1] (floats) or [0, 255] (integers).

    Args:
        image: Any array.
    """
    if image.dtype.kind not in "fiu" or image.size == 0:
        raise ValueError(f"image has dtype {image.dtype} and shape {image.shape}: give non-empty floats or 8-bit integers.")
    low, high, top = image.min(), image.max(), 1 if image.dtype.kind == "f" else 255
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("image holds NaN or infinite pixels: repair or remove it.")
    if low < 0 or high > top:
        raise ValueError(
            f"image spans [{low:.4g}, {high:.4g}], expected [0, {top}] for {image.dtype}: rescale it; poison before normalising."
        )


class _Unusable(Exception):
    """What is wrong with an image and what to do, as a predicate."""


def _decode(
    value: Any, mode: str | None, most: int = MAX_PIXELS, draft: tuple[int, int] | None = None, stretch: bool = False
) -> Image:
    try:
        image = _open(value, most)
        try:
            if draft is not None:
                image.draft(None, draft)
            picture = _opaque(image, stretch)
            if mode is not None and mode != picture.mode:
                picture = _opaque(picture.convert(mode), stretch)
            picture = picture.copy() if picture is image else picture
        finally:
            if image is not value:
                image.__exit__()
    except Exception as error:  # whatever a decoder makes of hostile bytes
        raise _image_error(error, value) from None
    picture.info = {}
    return picture


def _image_error(error: Exception, value: Any) -> ImageError:
    """What was raised for a cell, in one line with its file."""
    if isinstance(error, ImageError):
        return error
    reason = str(error) if isinstance(error, _Unusable) else _reason(error, value)
    return ImageError(f"image{told(value)} {reason}", reason.rpartition(": ")[0])


def _open(value: Any, most: int) -> Image:
    """The PIL image of a cell, of which only the header was read."""
    if isinstance(value, Image):
        image = value
    elif isinstance(value, _ARRAYS):
        image = _from_array(value)
    else:
        image = PIL.Image.open(_source(value), formats=FORMATS)
    width, height = image.size
    if not 0 < width * height <= most:
        if image is not value:
            image.close()
        raise _Unusable(f"has {width} x {height} pixels, expected 1 to {most}: scale it, or remove the row.")
    return image


def _parts(value: Any) -> tuple[Any, Any]:
    """The bytes and the path of a cell, each None where it has none."""
    if isinstance(value, Mapping):
        return value.get("bytes"), value.get("path") or None
    return (value, None) if isinstance(value, bytes | bytearray) else (None, value)


def _source(value: Any) -> BytesIO | str:
    """The bytes or the local file of a cell."""
    content, path = _parts(value)
    if isinstance(content, bytes | bytearray):
        return BytesIO(content)
    if content is None and path is None:
        raise _Unusable("is missing (None): filter such rows out.")
    if content is not None or not isinstance(path, str | os.PathLike):
        kind = type(path if content is None else content).__name__
        raise _Unusable(f"is of type {kind}: give a PIL image, a file, its bytes, or an array.")
    path = os.fspath(path)
    if not isinstance(path, str) or not os.path.isfile(path):
        what = "is an address" if "://" in str(path) else "is no file" if os.path.exists(path) else "was not found"
        raise _Unusable(f"{what}: put the file there, or remove the row.")
    return path


def _reason(error: Exception, value: Any) -> str:
    """What is wrong with an image, by what its decoder raised."""
    content, path = _parts(value)
    if isinstance(error, PIL.Image.DecompressionBombError):
        return "has more pixels than can be decoded: scale it, or remove the row."
    on_disk = content is None and isinstance(path, str | os.PathLike)
    if on_disk and os.path.getsize(path) == 0 or content is not None and len(content) == 0:
        return "is empty (0 bytes): replace it, or remove the row."
    if isinstance(error, PIL.UnidentifiedImageError):
        return "is damaged, or no PNG, JPEG, WebP, GIF, BMP, TIFF or PPM: replace or convert it."
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror}): see to it, or remove the row."
    said = plain(error, 100).rstrip(".") or type(error).__name__
    return f"is {'cut short' if 'truncated' in said.lower() else 'damaged'} ({said}): replace it, or remove the row."


def _opaque(image: Image, stretch: bool = False) -> Image:
    """The image upright, as L or RGB, on the background where it is transparent."""
    tiles: Any = getattr(image, "tile", None)
    raw = tiles[0].args if tiles else None
    image.load()
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged metadata says nothing about the picture
        orientation = None
    if image.mode in DEEP:
        picture = _eight_bits(image, stretch)
    elif image.has_transparency_data:
        picture = _on_background(image, raw)
    elif image.mode in ("L", "RGB"):
        picture = image
    elif image.mode == "1" or image.mode in _COLOURED:
        picture = image.convert("L" if image.mode == "1" else "RGB")
    else:
        raise _Unusable(f"has mode {image.mode}: convert it to L or RGB.")
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _on_background(image: Image, raw: Any) -> Image:
    clear: Any = image.info.get("transparency")
    if image.mode == "L" and raw in ("L;2", "L;4"):  # Pillow scales the levels, but not the one that is transparent
        image.info["transparency"] = clear * (85 if raw == "L;2" else 17)
    if image.mode == "RGB" and max(clear) > 255:
        raise _Unusable("has 16 bits and one transparent colour: convert it to RGBA.")
    mode = "L" if image.mode in GREY else "RGB"
    over = image if image.mode in ("LA", "RGBA") else image.convert("LA" if mode == "L" else "RGBA")
    picture = PIL.Image.new(mode, over.size, BACKGROUND)
    picture.paste(over.convert(mode), mask=over.getchannel("A"))
    return picture


def _eight_bits(image: Image, stretch: bool) -> Image:
    """The levels of a grey image of more than 8 bits, in 8."""
    values = np.asarray(image).astype(np.float64)
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    low, top = 0.0, 1.0
    if image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PPM", "PNG"):
        top = float(2 ** min(tags.get(_BITS, (16,))[0], 16) - 1)
        if (clear := image.info.get("transparency")) is not None:
            values = np.where(values == clear, top, values)
    elif image.mode == "I" or not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        if not stretch:
            known = "of unknown range" if image.mode == "I" else "outside [0, 1]"
            raise _Unusable(f"holds {kind} {known}: scale them to 8 bits, 0 to 255.")
        values = np.where(np.isfinite(values), values, 0.0)
        low, top = values.min(), max(values.max(), values.min() + 1e-12)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        values = top - values + low
    return PIL.Image.fromarray(np.rint((values - low) * (255 / (top - low))).astype(np.uint8))


def _from_array(value: Any) -> Image:
    try:
        array = as_array(value) if isinstance(value, list) else np.asarray(value.cpu() if isinstance(value, Tensor) else value)
        check_pixels(array)
    except ValueError as error:
        raise ImageError(str(error)) from None
    first, last = array.shape[0], array.shape[-1]
    if array.ndim == 3 and first != last and min(first, last) <= 4:
        array = np.moveaxis(array, 0, -1) if first < last else array
        array = array[..., 0] if array.shape[-1] == 1 else array
    elif array.ndim != 2:
        raise _Unusable(f"has shape {array.shape}: make it (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels.")
    levels = np.rint(array * 255.0) if array.dtype.kind == "f" else array
    return PIL.Image.fromarray(np.ascontiguousarray(levels, dtype=np.uint8))
