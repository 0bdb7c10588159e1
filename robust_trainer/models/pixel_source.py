"""The images of a data set as [0, 1] pixels, a few rows at a time, in the size that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from ..data import columns
from ..data.decode import undecoded
from ..data.features import FeatureReader
from ..data.fingerprint import fingerprint
from ..data.images import InputSpace
from ..data.pixels import image_column, read_levels, to_pixels
from ..data.preprocess import ImageTransform, model_channels
from .features import last_linear, watched
from .modes import scoring_mode
from .pixel_model import PixelModel


@dataclass(frozen=True, eq=False)
class PixelSource:
    """A callable: rows -> images (B, C, H, W) float32 in [0, 1].

    With an image processor they are prepared by it and its normalisation is undone; without one they are taken as they are.
    """

    dataset: datasets.Dataset
    column: str
    space: InputSpace
    transform: ImageTransform | None = None

    @classmethod
    def of(
        cls, dataset: datasets.Dataset, model: PixelModel, processing_class: Any = None, column: str | None = None
    ) -> PixelSource:
        """Returns a source of the data set's images for the model.

        Args:
            dataset: A `datasets.Dataset`.
            model: The model that is shown them.
            processing_class: The image processor, None for none.
            column: Of the images; None: to be found.

        Raises:
            ValueError: Where there is no image column.
        """
        column = image_column(dataset, column)
        plain = undecoded(dataset.with_format(None).select_columns([column]))
        channels = model_channels(model.model) if hasattr(model.model, "config") else 3
        mode = plain.features[column].mode
        transform = None if processing_class is None else ImageTransform(processing_class, channels, column, "no label", mode)
        return cls(plain, column, model.space, transform)

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Returns the images of these rows (B, C, H, W) float32 in [0, 1]."""
        part = self.dataset.select(list(rows))
        if self.transform is None:
            return to_pixels(read_levels(part, self.column))
        return self.space.to_pixels(self.transform(part[:], rows)["pixel_values"]).clamp(0.0, 1.0)

    def fingerprint(self) -> str:
        """Returns what tells these images from others, by their encoded bytes (files: by their paths)."""
        images = (value for batch in self.dataset.iter(1024) for value in batch[self.column])
        return fingerprint(str(v["path"]) if v["bytes"] is None else v["bytes"] for v in images)


@torch.no_grad()
def last_features(model: nn.Module, source: PixelSource, batch_size: int = 256) -> np.ndarray:
    """Returns the input of the model's last linear layer (N, D) float32: the feature space of a trained network.

    Args:
        model: A `PixelModel` in eval mode.
        source: The images.
        batch_size: Images at a time.

    Raises:
        ValueError: Where no linear layer is as wide as the logits.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    out = []
    with scoring_mode(model), watched(model) as layers:
        for rows in torch.arange(len(source.dataset)).split(batch_size):
            logits = model(source(rows.tolist()).to(device))
            out.append(last_linear(layers, None, logits)[1].cpu())
    return torch.cat(out).numpy()


def inputs(dataset: datasets.Dataset, names: str | Sequence[str] | None, exclude: str) -> np.ndarray:
    """Returns the data set's inputs (N, d) float32: pixels in [0, 1] row by row, or the named numeric columns.

    Args:
        dataset: A `datasets.Dataset`.
        names: Numeric columns; None: the images.
        exclude: A column that may not be among them.
    """
    if names is None and any(isinstance(f, datasets.Image) for f in dataset.features.values()):
        levels = read_levels(dataset, image_column(dataset, columns.image_column(dataset)))
        return (levels.transpose(0, 3, 1, 2).reshape(len(levels), -1) / np.float32(255)).astype(np.float32)
    reader = FeatureReader.of(dataset, names, exclude=exclude)
    parts = []
    for batch in reader.plain(dataset).iter(1024):
        count = len(batch[reader.columns[0]])
        parts.append(reader(batch, range(count)).astype(np.float32))
    return np.concatenate(parts)
