"""Encoded pictures of every kind, made byte by byte where Pillow writes none."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cell(content: bytes | None, path: str | None = None) -> dict[str, Any]:
    """What `datasets` stores of an image."""
    return {"bytes": content, "path": path}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(side: tuple[int, int], depth: int, colour: int, rows: bytes, clear: bytes | None = None) -> bytes:
    """A PNG of width and height, bits, colour type (0 grey, 2 RGB), filtered rows, and one transparent colour."""
    header = struct.pack(">IIBBBBB", *side, depth, colour, 0, 0, 0)
    between = b"" if clear is None else chunk(b"tRNS", clear)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + between + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, bits: int = 16, white_is_zero: bool = False) -> bytes:
    """A little-endian grey TIFF of 12 bits (packed) or 16."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint16)
        body = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist())
    else:
        body = values.astype("<u2").tobytes()
    photometric = 0 if white_is_zero else 1
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(body)}
    body += b"\0" * (len(body) % 2)
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + b"\0\0\0\0"


def damaged(draw: random.Random) -> tuple[bytes, str]:
    """A random image file, damaged at random, and a file's name whose ending may be wrong: for fuzzing.

    Args:
        draw: All that is random.
    """
    side = draw.choice([1, 2, 7, 16, 40]), draw.choice([1, 3, 8, 33])
    levels = np.frombuffer(draw.randbytes(side[0] * side[1] * 4), np.uint8).reshape(side[1], side[0], 4)
    mode = draw.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray((levels[..., 0] * draw.choice([0.004, 1.0, 257.0])).astype(kind))
    else:
        image = Image.fromarray(levels).convert("RGB" if mode in ("P", "CMYK", "1") else mode).convert(mode)
    formats = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK"), "GIF": ("1", "L", "P", "RGB"),
               "WEBP": ("RGB", "RGBA", "L"), "BMP": ("1", "L", "P", "RGB"), "PPM": ("1", "L", "RGB"), "PCX": ("L", "RGB"),
               "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")}  # fmt: skip
    name = draw.choice([name for name, modes in formats.items() if mode in modes])
    content = bytearray(encoded(image, name))
    for _ in range(draw.choice([1, 1, 2])):
        how = draw.choice(["none", "cut", "flip", "header", "zeros", "append", "other", "empty"])
        if how == "cut":
            content = content[: draw.randrange(len(content) + 1)]
        elif how == "flip":
            for _ in range(draw.choice([1, 3, 30])):
                if content:
                    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        elif how == "header":
            for i in range(min(len(content), 40)):
                if draw.random() < 0.2:
                    content[i] = draw.choice([0, 255, draw.randrange(256)])
        elif how == "zeros" and content:
            start = draw.randrange(len(content))
            content[start : start + draw.randrange(50)] = bytes(draw.randrange(50))
        elif how == "append":
            content += draw.randbytes(draw.randrange(200))
        elif how == "other":
            content = bytearray(draw.choice([EPS, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a", b"\xff\xd8\xff", b"BM",
                                             b"P5 99999999 99999999 255\n", b"P2 3 1 255 1 2", draw.randbytes(60)]))  # fmt: skip
        elif how == "empty":
            content = bytearray()
    return bytes(content), f"picture.{draw.choice(['png', 'jpg', 'gif', 'tif', 'eps', 'txt'])}"
