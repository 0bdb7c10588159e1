"""A sample's features as one vector: what instance-dependent noise and linear corruption are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np

from . import columns
from .decode import as_array, check_pixels, decode_image, undecoded


@dataclass(frozen=True, eq=False)
class FeatureReader:
    """Returns the features of a batch as (B, d) float64: the columns side by side, each row flattened.

    Images and pixel columns are in [0, 1], numeric columns as they come; `standardised` has mean 0 and standard deviation 1 taken
    over a data set, per channel of an image (the shorter of first and last axis) and per number of other columns; what is constant
    becomes 0.

    Raises:
        ValueError: Naming the row, for missing, not finite and differently shaped features.
    """

    columns: tuple[str, ...]
    modes: tuple[str | None, ...]
    pixels: tuple[bool, ...]
    shapes: tuple[tuple[int, ...], ...]
    mean: np.ndarray | None = field(default=None, repr=False)
    scale: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of(cls, dataset: datasets.Dataset, names: str | Sequence[str] | None, exclude: str = "") -> FeatureReader:
        """Returns a reader of the named columns, default the image column.

        Args:
            dataset: A `datasets.Dataset`.
            names: Of the columns; None: the image column.
            exclude: A column that may not be among them.
        """
        if names is None:
            try:
                names = [columns.image_column(dataset)]
            except ValueError as error:
                raise ValueError(
                    f"feature_columns=None and no single image column: name one or more of {dataset.column_names}."
                ) from error
        columns_read = [names] if isinstance(names, str) else list(names)
        features, modes, pixels = dataset.features, [], []
        if not columns_read:
            raise ValueError(f"feature_columns={names!r} is empty: name one or more of {list(features)}.")
        for name in columns_read:
            if name not in features or name == exclude:
                raise ValueError(f"feature_columns holds {name!r}: choose from {[c for c in features if c != exclude]}.")
            image = isinstance(features[name], datasets.Image) or columns.is_pixels(features[name])
            if not image and not columns.is_numeric(features[name]):
                raise ValueError(f"'{name}' is {features[name]}, expected images or numbers: choose other feature_columns.")
            modes.append(features[name].mode if isinstance(features[name], datasets.Image) else None)
            pixels.append(image)
        reader = cls(tuple(columns_read), tuple(modes), tuple(pixels), ())
        first = reader.plain(dataset)[:1]
        return replace(reader, shapes=tuple(reader._one(i, first[name][0], 0).shape for i, name in enumerate(columns_read)))

    @property
    def size(self) -> int:
        """The number d of features."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def plain(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """Returns the columns alone, unformatted, images as encoded bytes.

        Args:
            dataset: A `datasets.Dataset`.
        """
        return undecoded(dataset.with_format(None).select_columns(list(dict.fromkeys(self.columns))))

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> np.ndarray:
        """Returns the features of a batch, whose rows have these numbers, as (B, d) float64."""
        out = np.empty((len(indices), self.size))
        for row, index in enumerate(indices):
            parts = [self._one(i, batch[name][row], index) for i, name in enumerate(self.columns)]
            for name, part, shape in zip(self.columns, parts, self.shapes):
                if part.shape != shape:
                    raise ValueError(f"'{name}' in row {index} has shape {part.shape}, row 0 has {shape}: make all rows alike.")
            out[row] = np.concatenate([part.ravel() for part in parts])
        return out if self.mean is None else (out - self.mean) * self.scale

    def standardised(self, dataset: datasets.Dataset, batch_size: int = 256) -> FeatureReader:
        """Returns the reader with mean and scale of the data set; one pass, ``batch_size`` rows in memory.

        Args:
            dataset: A `datasets.Dataset`.
            batch_size: Rows in memory.
        """
        n, mean, spread = 0, np.zeros(self.size), np.zeros(self.size)
        for batch in self.plain(dataset).iter(batch_size):
            rows = len(batch[self.columns[0]])
            x = self(batch, range(n, n + rows))
            step = x.mean(axis=0) - mean
            spread += ((x - x.mean(axis=0)) ** 2).sum(axis=0) + step**2 * n * rows / (n + rows)
            mean, n = mean + step * rows / (n + rows), n + rows
        groups = self._groups()
        sizes = np.bincount(groups)
        centre = (np.bincount(groups, mean) / sizes)[groups]
        deviation = np.sqrt((np.bincount(groups, spread / n + (mean - centre) ** 2) / sizes)[groups])
        constant = deviation <= 1e-9 * np.maximum(1, abs(centre))
        return replace(self, mean=centre, scale=np.where(constant, 0, 1 / np.where(constant, 1, deviation)))

    def _groups(self) -> np.ndarray:
        """Which numbers share mean and deviation (d,): those of one channel, or each its own."""
        out, start = [], 0
        for shape, pixels in zip(self.shapes, self.pixels):
            part = np.arange(int(np.prod(shape))).reshape(shape)
            if pixels and len(shape) == 2:
                part = np.zeros_like(part)
            elif pixels:
                axis = 0 if shape[0] < shape[-1] else len(shape) - 1
                part = np.indices(shape)[axis]
            out.append(part.ravel() + start)
            start += int(part.max()) + 1
        return np.concatenate(out)

    def _one(self, i: int, value: Any, index: int) -> np.ndarray:
        name = self.columns[i]
        try:
            if value is None:
                raise ValueError("it is None: filter such rows out.")
            if isinstance(value, Mapping):
                array = np.asarray(decode_image(value, self.modes[i]))
            else:
                array = as_array(value) if isinstance(value, list) else np.asarray(value)
            if self.pixels[i]:
                check_pixels(array)
                return array / 255.0 if array.dtype.kind in "iu" else array.astype(np.float64)
            array = array.astype(np.float64)
            if not np.isfinite(array).all():
                raise ValueError("it holds NaN or infinite numbers: repair or remove it.")
            return array
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"'{name}' in row {index}: {error}") from error
