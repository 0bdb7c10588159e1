"""Whether the images of a data set can be read, told by their headers and their ends before anything long begins."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Any

import datasets
import numpy as np
from PIL.Image import Image
from transformers.utils import logging

from .columns import source_row
from .decode import BACKGROUND, DEEP, ImageError, decode_image, open_image, undecoded

logger = logging.get_logger(__name__)

#: Images whose headers are read; of a larger data set so many, spread evenly.
LOOKED_AT = 20_000
#: Pixels that are decoded for images whose header and end do not tell.
DECODED = 20_000_000
#: Transparent images, and images of more than 8 bits, whose picture is looked at.
PICTURES = 16
#: Of 65,535 levels: where no image is brighter, they were not scaled to 16 bits.
DIM = 4095
#: Fingerprints of data sets whose columns have passed: a command looks once at what several of its stages read.
_READABLE: set[tuple[str, str]] = set()


def check_readable(dataset: datasets.Dataset, column: str, where: str = "", name: str | None = None) -> None:
    """Raises a one-line ``ValueError`` for images that cannot be used, and says what of them is not used or not seen.

    Every header is read (of more than 20,000 images so many, spread evenly), and the end, where the format has one: what looks cut
    short is decoded. Logged as a warning: images of several frames, of which the first is used, and transparent ones of which
    nothing is seen on the background. A data set that has passed is not looked at again.

    Args:
        dataset: A `datasets.Dataset` with rows.
        column: Of the images.
        where: What begins the message, as ``split 'test': ``.
        name: Of the column, for the message.

    Raises:
        ValueError: Naming the first row and its file, and how many more.
    """
    if (dataset._fingerprint, column) in _READABLE:
        return
    feature = dataset.features[column]
    mode = feature.mode if isinstance(feature, datasets.Image) else None
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), LOOKED_AT)).astype(int))
    plain = undecoded(dataset.with_format(None).select_columns([column]))
    scan, where = _Scan(mode), f"{where}'{name or column}'"
    part = plain if len(rows) == len(dataset) else plain.select(rows)
    values = (value for batch in part.iter(256) for value in batch[column])
    for row, value in zip(rows.tolist(), values):
        scan.look(row, value)
    for row in _some(scan.deep):
        scan.brightest(row, plain[row][column])
    if scan.bad:
        row, first = next(iter(scan.bad.items()))
        others = ", ".join(str(source_row(dataset, r)) for r in list(scan.bad)[1:6])
        more = f"{'row' if len(scan.bad) == 2 else 'rows'} {others}"
        more = f" Of {len(rows)} rows {len(scan.bad) - 1} more cannot be used ({more})." if others else ""
        raise ValueError(f"{where} in row {source_row(dataset, row)}: {first}{more}")
    if scan.dim and max(scan.dim) <= DIM:
        raise ValueError(
            f"{where} has images of 16 bits, none of {len(scan.dim)} looked at brighter than {max(scan.dim)} of 65535: "
            "all would be nearly black. Scale them to the whole range first."
        )
    if scan.frames:
        row = source_row(dataset, scan.frames[0])
        logger.warning(
            f"{where} holds {len(scan.frames)} images of several frames or pages (the first in row {row}): only their "
            "first frame is used."
        )
    looked_at = _some(scan.clear)
    unseen = [row for row in looked_at if _nothing_seen(plain[row][column])]
    if unseen:
        logger.warning(
            f"{where} has {len(scan.clear)} transparent images, and of {len(unseen)} of {len(looked_at)} nothing is seen "
            f"on the {BACKGROUND} ground (the first in row {source_row(dataset, unseen[0])}): put them on another ground first."
        )
    _READABLE.add((dataset._fingerprint, column))


def _some(rows: list[int]) -> list[int]:
    """At most `PICTURES` of them, spread evenly."""
    return rows[:: max(-(-len(rows) // PICTURES), 1)]


class _Scan:
    """What was found in the images looked at, by row."""

    def __init__(self, mode: str | None):
        self.mode = mode
        self.left = DECODED
        self.bad: dict[int, ImageError] = {}
        self.frames: list[int] = []
        self.clear: list[int] = []
        self.deep: list[int] = []
        self.dim: list[int] = []

    def look(self, row: int, value: Any) -> None:
        """Reads the header and the end of an image, and decodes it where these do not tell."""
        try:
            with open_image(value) as image:
                pixels, whole = image.width * image.height, _ends_well(image)
                if image.mode in DEEP:
                    self.deep.append(row)
                elif image.has_transparency_data:
                    self.clear.append(row)
                if _several_frames(image):
                    self.frames.append(row)
            if whole is False or (whole is None and pixels <= self.left):
                self.left -= pixels if whole is None else 0
                decode_image(value, self.mode)
        except ImageError as error:
            self.bad[row] = error

    def brightest(self, row: int, value: Any) -> None:
        """Decodes an image of more than 8 bits, and notes the brightest level of one that has 16."""
        try:
            decode_image(value, self.mode)
            with open_image(value) as image:
                brightest, bits = int(np.max(np.asarray(image))), getattr(image, "tag_v2", {}).get(258, (16,))[0]
                if image.mode.startswith("I;16") and bits == 16 and brightest > 0:
                    self.dim.append(brightest)
        except ImageError as error:
            self.bad[row] = error


def _ends_well(image: Image) -> bool | None:
    """Whether the file ends as its format asks; None where the format does not tell."""
    file: Any = getattr(image, "fp", None)
    if file is None:
        return None
    place = file.tell()
    size = file.seek(0, 2)
    file.seek(max(size - 64, 0))
    end = file.read(64)
    file.seek(0)
    start = file.read(12)
    file.seek(place)
    if image.format in ("JPEG", "MPO"):
        return b"\xff\xd9" in end
    if image.format == "PNG":
        return b"IEND\xaeB`\x82" in end and (not isinstance(file, BytesIO) or _sums_match(file.getbuffer()))
    if image.format == "WEBP":
        return int.from_bytes(start[4:8], "little") + 8 <= size
    return None


def _sums_match(content: memoryview) -> bool:
    """Whether each chunk of a PNG has the checksum that it tells."""
    place = 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        end = place + 8 + length
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return False
        if content[place + 4 : place + 8] == b"IEND":
            return True
        place = end + 4
    return False


def _several_frames(image: Image) -> bool:
    try:
        return image.format in ("GIF", "TIFF", "WEBP", "PNG") and bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged later frame, which nobody needs
        return False


def _nothing_seen(value: Any) -> bool:
    """Whether a transparent image has one level all over on the background, but several without it."""
    picture = decode_image(value)
    if any(low != high for low, high in np.reshape(picture.getextrema(), (-1, 2))):
        return False
    with open_image(value) as image:
        levels = np.asarray(image.convert("RGBA"))
    return bool((levels != levels[0, 0]).any())
