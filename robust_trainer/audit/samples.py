"""What is shown of a sample: a thumbnail and its texts. The data is untrusted: nothing here decodes more than it has to."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from PIL.Image import Image

from ..data.audio import AudioError, audio_columns, spectrogram
from ..data.columns import IMAGE_NAMES, check_dataset
from ..data.decode import ImageError, decode_image
from ..reporting.safe_text import plain

#: An image with more pixels is not shown; all images of a report together may have ALL_PIXELS.
MAX_PIXELS, ALL_PIXELS = 50_000_000, 1_500_000_000
#: The longer side of a thumbnail, in pixels; up to PNG_SIDE it is stored without loss.
SIDE, PNG_SIDE = 96, 32
#: Characters of a text that are shown, and bytes of HTML that texts and thumbnails may take together.
TEXT, BYTES = 400, 3_000_000
TEXT_NAMES = ("text", "sentence", "sentence1", "sentence2", "premise", "hypothesis", "question", "content", "review", "document")
TARGET_NAMES = ("label", "labels", "target", "score", "y")


class Unshown(Exception):
    """Why there is no thumbnail, in words."""


@dataclass(frozen=True)
class Shown:
    """What is shown of one sample.

    Args:
        uri: Of the thumbnail, '' for none.
        reason: Why there is none; '' too where the data has no images.
        tiny: The thumbnail is to be magnified without smoothing.
        texts: (column, text).
        file: Name of the image's file.
        target: The number to predict, '' for none.
        left_out: It would have made the report too large.
    """

    uri: str = ""
    reason: str = ""
    tiny: bool = False
    texts: tuple[tuple[str, str], ...] = ()
    file: str = ""
    target: str = ""
    left_out: bool = False


def show(data: datasets.Dataset | None, rows: Sequence[int], size: int, budget: int = BYTES) -> list[Shown]:
    """Returns what is shown of the data set's rows, in that order.

    Args:
        data: The data set, None: nothing is shown.
        rows: Positions to show.
        size: Rows that the data set must have.
        budget: Bytes of HTML; what does not fit any more is left out (``left_out``).

    Raises:
        ValueError: Where data is no data set or has another number of rows.
    """
    if data is None or not rows:
        return [Shown()] * len(rows)
    check_dataset(data)
    if len(data) != size:
        raise ValueError(f"data has {len(data)} rows, the audit {size}: pass the data set that was audited, in its order.")
    image, texts, target = _columns(data)
    sounds = audio_columns(data) if image is None else []
    sound = sounds[0] if len(sounds) == 1 else None
    source = image or sound
    columns = [name for name in (image, sound, *texts, target) if name is not None]
    if not columns:
        return [Shown()] * len(rows)
    out, pixels = [], ALL_PIXELS
    for row in _read(data, rows, columns):
        shown = tuple((plain(name, 40), "missing" if row[name] is None else plain(row[name], TEXT)) for name in texts)
        file = _file(row[source]) if source else ""
        cost = sum(len(html.escape(part).encode()) for pair in shown for part in pair)
        if cost > budget:
            out.append(Shown(reason="left out: the report would be too large", left_out=True))
            continue
        budget -= cost
        uri, reason, tiny, left_out = "", "", False, False
        if image is not None:
            try:
                picture, decoded = thumbnail(row[image], most=min(MAX_PIXELS, pixels) if pixels > 0 else 0)
                pixels -= decoded
                uri, tiny = encode(picture), max(picture.size) <= PNG_SIDE
                if len(uri) > budget:
                    uri, reason, left_out = "", "left out: the report would be too large", True
            except Unshown as error:
                reason = str(error)
            budget -= len(uri)
        elif sound is not None:
            try:
                uri = encode(spectrogram(row[sound]))
                if len(uri) > budget:
                    uri, reason, left_out = "", "left out: the report would be too large", True
            except AudioError as error:
                reason = plain(str(error), 300)
            budget -= len(uri)
        number = f"{row[target]:.6g}" if target is not None and row[target] is not None else ""
        out.append(Shown(uri, reason, tiny, shown, file, number, left_out))
    return out


def thumbnail(value: Mapping[str, Any] | None, most: int = MAX_PIXELS) -> tuple[Image, int]:
    """Returns a copy of at most 96 x 96 pixels, mode L or RGB without metadata, and the number of pixels that were decoded.

    Args:
        value: ``bytes`` and ``path`` of an undecoded `datasets.Image`; the picture is that of `decode_image`, what the model sees,
            but integers and floats of unknown range are stretched from their least to their largest value.
        most: Pixels that are decoded at most.

    Raises:
        Unshown: With the reason in words.
    """
    try:
        picture = decode_image(value, most=most, draft=(2 * SIDE, 2 * SIDE), stretch=True)
    except ImageError as error:
        raise Unshown(error.reason) from None
    decoded = picture.width * picture.height
    picture.thumbnail((SIDE, SIDE))
    return picture, decoded


def encode(image: Image) -> str:
    """Returns an image of mode L or RGB as a data URI: PNG where that is small, else JPEG.

    Args:
        image: A PIL image.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    kind = "png"
    if max(image.size) > PNG_SIDE and buffer.tell() > 6000:
        buffer, kind = io.BytesIO(), "jpeg"
        image.save(buffer, "JPEG", quality=85)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _file(value: Any) -> str:
    path = (value.get("path") if isinstance(value, Mapping) else "") or ""
    return plain(str(path).replace("\\", "/").rsplit("/", 1)[-1], 60)


def _columns(data: datasets.Dataset) -> tuple[str | None, list[str], str | None]:
    """The columns with the image, up to two texts and the number to predict."""
    images = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    image = next((name for name in images if name in IMAGE_NAMES), images[0] if images else None)
    strings = [name for name, f in data.features.items() if getattr(f, "dtype", "") in ("string", "large_string")]
    texts = [name for name in strings if name.lower() in TEXT_NAMES][:2]
    if not texts and image is None:
        texts = [name for name in strings if "label" not in name.lower()][:1]
    numbers = [name for name, f in data.features.items() if isinstance(f, datasets.Value) and f.dtype.startswith("float")]
    return image, texts, next((name for name in numbers if name in TARGET_NAMES), None)


def _read(data: datasets.Dataset, rows: Sequence[int], names: list[str]) -> Iterator[dict[str, Any]]:
    """One row at a time as it is stored: the arrow format decodes no image and runs no transform."""
    part = data.select_columns(names).with_format("arrow")
    for row in rows:
        yield part[int(row)].to_pylist()[0]
