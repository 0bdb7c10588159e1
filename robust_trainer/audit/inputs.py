"""The samples' inputs as vectors in [0, 1], to compare them by: small images, hashed words, spectra, or the model's own numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor

from ..data.audio import AudioError, audio_columns, decode_audio, spectrum, undecoded_audio
from .samples import Unshown, _columns, thumbnail

#: The longer side of an image that is compared, in pixels; features of a text; least and largest number of features of an array.
SIDE, WORDS, FEWEST, MOST = 64, 2048, 16, 20_000


@dataclass(frozen=True)
class Inputs:
    """kind: images, texts, sounds or numbers. read: positions (n,) to vectors (n, D) float32 in [0, 1], NaN where unreadable.

    Args:
        shape: Of an image (H, W, channels), else (D,).
    """

    kind: str
    read: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]


def open_inputs(data: Any) -> Inputs | None:
    """How the data set's inputs are read: its images, else its sounds, texts or arrays; None where it has none of these.

    Args:
        data: Any data set with a length.
    """
    if data is None or len(data) == 0:
        return None
    if isinstance(data, datasets.Dataset):
        image, texts, _ = _columns(data)
        if image is not None:
            return _images(data.select_columns([image]).with_format("arrow"), image)
        if len(sounds := audio_columns(data)) == 1:
            return _sounds(undecoded_audio(data.with_format(None).select_columns(sounds)), sounds[0])
        if texts:
            return _texts(data.select_columns(texts).with_format("arrow"), texts)
        data = data.with_format("numpy")
    return _numbers(data)


def _images(data: datasets.Dataset, name: str) -> Inputs | None:
    def picture(row: int) -> Image.Image | None:
        try:
            return thumbnail(data[int(row)].column(name).to_pylist()[0])[0]
        except Unshown:
            return None

    spread = np.unique(np.linspace(0, len(data) - 1, 64).astype(int))
    seen = [image for row in spread if (image := picture(row)) is not None]
    if not seen:
        return None
    width, height = seen[0].size
    if any(image.size != (width, height) for image in seen):
        width = height = max(max(image.size) for image in seen)
    scale = min(1.0, SIDE / max(width, height))
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    mode = "RGB" if any(image.mode == "RGB" for image in seen) else "L"
    shape = (size[1], size[0], 3 if mode == "RGB" else 1)

    def read(rows: np.ndarray) -> np.ndarray:
        out = np.full((len(rows), int(np.prod(shape))), np.nan, dtype=np.float32)
        for i, row in enumerate(rows):
            if (image := picture(row)) is not None:
                image = image.convert(mode)
                image = image if image.size == size else image.resize(size, Image.Resampling.BOX)
                out[i] = np.asarray(image, dtype=np.float32).ravel() / 255
        return out

    return Inputs("images", read, shape)


def hashed_words() -> HashingVectorizer:
    """Returns what tells which words, split at white space, a text has: (n, WORDS) of 0 and 1, hashed, in any case."""
    return HashingVectorizer(n_features=WORDS, binary=True, norm=None, alternate_sign=False, token_pattern=r"(?u)\S+")


def _texts(data: datasets.Dataset, names: list[str]) -> Inputs:
    words = hashed_words()

    def read(rows: np.ndarray) -> np.ndarray:
        table = data.select(rows)[:]
        columns = [table.column(name).to_pylist() for name in names]
        return words.transform([" ".join(part or "" for part in parts) for parts in zip(*columns)]).toarray().astype(np.float32)

    return Inputs("texts", read, (WORDS,))


def _sounds(data: datasets.Dataset, name: str) -> Inputs | None:
    """Spectra at the first sound's sampling rate, on the scale that some rows span."""

    def powers(row: int, rate: int | None) -> tuple[np.ndarray | None, int | None]:
        try:
            wave, rate = decode_audio(data[int(row)][name], rate)
        except AudioError:
            return None, rate
        scale = float(wave.std()) or 1.0  # as loud as another: how far away somebody spoke is no trigger
        return spectrum(torch.from_numpy(wave / scale)).numpy(), rate

    rates, some = list[int](), list[np.ndarray]()
    for row in np.unique(np.linspace(0, len(data) - 1, 64).astype(int)):
        found, rate = powers(row, rates[0] if rates else None)
        if found is not None and rate is not None:
            rates.append(rate)
            some.append(found)
    if not some:
        return None
    low, high, width = float(np.min(some)), float(np.max(some)), len(some[0])

    def read(rows: np.ndarray) -> np.ndarray:
        out = np.full((len(rows), width), np.nan, dtype=np.float32)
        for i, row in enumerate(rows):
            if (found := powers(row, rates[0])[0]) is not None:
                out[i] = np.clip((found - low) / max(high - low, 1e-12), 0, 1)
        return out

    return Inputs("sounds", read, (width,))


def _numbers(data: Any) -> Inputs | None:
    spread = np.unique(np.linspace(0, len(data) - 1, 64).astype(int))
    examples = [data[int(row)] for row in spread]
    if not all(hasattr(example, "items") for example in examples):
        return None
    shapes: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for example in examples:
        arrays = {key: _array(value) for key, value in example.items()}
        shapes.update((key, v.shape) for key, v in arrays.items() if v is not None and FEWEST <= v.size <= MOST)
    if not shapes:
        return None
    key, shape = shapes.most_common(1)[0][0]  # of several that all rows have, the first

    def read(rows: np.ndarray) -> np.ndarray:
        values = [_array(data[int(row)][key]) for row in rows]
        fits = [v if v is not None and v.shape == shape else np.full(shape, np.nan) for v in values]
        return np.stack(fits).reshape(len(rows), -1).astype(np.float32)

    sample = read(spread)
    finite = sample[np.isfinite(sample)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    scale = max(high - low, 1e-12)
    return Inputs("numbers", lambda rows: (read(rows) - low) / scale, (int(np.prod(shape)),))


def _array(value: Any) -> np.ndarray | None:
    """A float array of the value, None where it is none."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else None
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    return array if array.dtype.kind == "f" and array.ndim else None


def noise_levels(vectors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The standard deviation of fine noise in images (n, H W channels) of ``shape``: MAD / 0.6745 of the diagonal Haar details.

    Args:
        vectors: (n, H W channels) in [0, 1].
        shape: (H, W, channels).
    """
    x = vectors.reshape(-1, *shape)
    x = x[:, : shape[0] // 2 * 2, : shape[1] // 2 * 2]
    detail = (x[:, ::2, ::2] - x[:, 1::2, ::2] - x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 2
    if not detail.size:  # no images, or of one pixel's width
        return np.zeros(len(x))
    return np.median(np.abs(detail.reshape(len(x), -1)), axis=1) / 0.6745
