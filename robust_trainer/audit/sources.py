"""What the rows of a data set are judged by: features of a network, features of the user's own, or probabilities."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn

from ..data.audio import audio_column as find_audio_column
from ..data.audio import audio_columns
from ..data.columns import image_column as find_image_column
from ..data.columns import is_pixels, read_vectors
from ..data.splits import TRAIN
from ..data.texts import text_column as find_text_column
from ..data.texts import text_columns
from ..evidence.features import encode
from ..models.encoders import load_encoder
from ..reporting.safe_text import plain
from .without_words import WithoutWords


@dataclass(frozen=True)
class Source:
    """What the rows are judged by.

    Args:
        told: In words.
        features: Split -> features (rows, D), the training split's among them; empty where there are none.
        probs: Given probabilities (N, C) of the training split, None for none.
        without: Features of the training split, (N, D), of some texts without words of theirs; None for none.
    """

    told: str
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    probs: np.ndarray | None = None
    without: np.ndarray | None = None


@dataclass(frozen=True)
class Network:
    """A network whose features are wanted, with what prepares its inputs.

    Args:
        model: Hub name or folder, or the network itself.
        processing_class: The network's image processor or tokenizer; of a name it is found.
        max_length: Tokens of a text that are read.
        batch_size: Rows at a time.
        device: Where it runs; None: of a name a GPU where there is one, of a network where it is.
        trust_remote_code: Run Python code that the named model brings.
    """

    model: Any
    processing_class: Any = None
    max_length: int | None = None
    batch_size: int = 64
    device: Any = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.model, str | os.PathLike | nn.Module):
            kind = type(self.model).__name__
            raise ValueError(f"model is a {kind}, expected the name or folder of a network, or a torch module: give one.")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r} must be a whole number >= 1: give for instance 64.")
        if self.device is not None:
            try:
                torch.device(self.device)
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"device={self.device!r} is no device of torch: give for instance 'cpu' or 'cuda'.") from error
        named = not isinstance(self.model, nn.Module)
        if named and self.processing_class is not None:
            raise ValueError("processing_class is found by the model's name: leave it out, or give the model as an object.")
        given = [name for name in ("max_length", "trust_remote_code") if getattr(self, name)]
        if not named and given:
            raise ValueError(
                f"{given[0]}={getattr(self, given[0])} is for a model that is named: set it on your model or tokenizer."
            )

    def encode(self, splits: Mapping[str, datasets.Dataset], kind: str, column: str, without: WithoutWords | None = None) -> Source:
        """Returns the features of all splits.

        Args:
            splits: Of a data set, by name.
            kind: What the model reads, image, text or audio.
            column: That it is read from.
            without: Texts of the training split that are read without some words, too.
        """
        if not kind and (self.processing_class is not None or not isinstance(self.model, nn.Module)):
            columns = splits[TRAIN].column_names
            raise ValueError(f"no column of images, texts or sounds among {columns}: set image_, text_ or audio_column.")
        model: Any
        if isinstance(self.model, nn.Module):
            model, processor, device, name = self.model, self.processing_class, self.device, type(self.model).__name__
        else:
            name = os.fspath(self.model)
            model, processor = load_encoder(name, kind, max_length=self.max_length, trust_remote_code=self.trust_remote_code)
            device = self.device if self.device is not None else "cuda" if torch.cuda.is_available() else "cpu"
            model.to(device).eval()
            name = os.path.basename(name.rstrip("/\\")) or name
        found = {
            split: encode(model, data, processing_class=processor, column=column, batch_size=self.batch_size, device=device)
            for split, data in splits.items()
        }
        again = None
        if without is not None:
            again = found[TRAIN].copy()
            texts = without.texts
            again[without.rows] = encode(
                model, texts, processing_class=processor, column=column, batch_size=self.batch_size, device=device
            )
        return Source(f"features of {plain(name, 100)}, {found[TRAIN].shape[1]} numbers", found, without=again)


def input_column(
    train: datasets.Dataset, image: str | None, text: str | None, audio: str | None, label: str, needed: bool
) -> tuple[str, str]:
    """Returns what the inputs are, image, audio or text, and their column; ('', '') where there are none.

    Args:
        train: The training split.
        image: Name of the column of images, where given.
        text: Name of the column of texts, where given.
        audio: Name of the column of sounds, where given.
        label: Name of the column of labels.
        needed: Whether they are to be found; else two empty words are returned too where several columns could be meant.

    Raises:
        ValueError: For names of no such columns, for several, and where several columns could be meant.
    """
    named = {"image_column": image, "text_column": text, "audio_column": audio}
    given = [f"{name}={value!r}" for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} are both given: leave one of them out.")
    images = any(isinstance(feature, datasets.Image) or is_pixels(feature) for feature in train.features.values())
    try:
        if image is not None or (images and not given):
            return "image", find_image_column(train, image)
        if audio is not None or (audio_columns(train) and not given):
            return "audio", find_audio_column(train, audio)
        if text is not None or text_columns(train, label):
            return "text", find_text_column(train, text, label)
    except ValueError:
        if needed or given:
            raise
    return "", ""


def given_features(splits: Mapping[str, datasets.Dataset], features: Any) -> Source:
    """Returns features that were given, of a column in all splits that have it, or of an array or arrays by split.

    Args:
        splits: Of a data set, by name.
        features: Name of a column, an array (N, D) of the training split, or a mapping of split to array.

    Raises:
        ValueError: In one line, for other things, and arrays that do not fit.
    """
    if isinstance(features, str):
        found = {TRAIN: read_vectors(splits[TRAIN], features)}
        others = {split: data for split, data in splits.items() if split != TRAIN and features in data.column_names}
        found |= {split: read_vectors(data, features, f"split '{split}': ") for split, data in others.items()}
        told = f"features of column {plain(features, 100)!r}"
    else:
        arrays = features if isinstance(features, Mapping) else {TRAIN: features}
        if TRAIN not in arrays or (unknown := sorted(set(arrays) - set(splits))):
            wrong = "no 'train'" if TRAIN not in arrays else f"{unknown[0]!r}"
            raise ValueError(f"features has {wrong} among {sorted(arrays)}, the data set {list(splits)}: give an array for each.")
        found = {split: _table(array, len(splits[split]), split) for split, array in arrays.items()}
        told = f"features of {found[TRAIN].shape[1]} numbers"
    widths = {split: array.shape[1] for split, array in found.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"features are of different widths by split ({widths}): give all of one encoder.")
    return Source(told, found)


def _table(features: Any, rows: int, split: str) -> np.ndarray:
    """Features (rows, D), checked."""
    where = "features" if split == TRAIN else f"features of split '{split}'"
    if isinstance(features, torch.Tensor):
        features = features.detach().float().cpu().numpy()
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype.kind not in "fiub" or not features.shape[1]:
        got = f"{features.shape} {features.dtype}" if isinstance(features, np.ndarray) else f"a {type(features).__name__}"
        raise ValueError(f"{where} is {got}, expected numbers (N, D) as an array, or the name of a column of them.")
    if len(features) != rows:
        raise ValueError(f"{where} has {len(features)} rows and the data set {rows}: give one row for each sample.")
    return features


def given_probs(train: datasets.Dataset, probs: Any, classes: int) -> np.ndarray:
    """Returns probabilities that were given, (N, C) float32.

    Args:
        train: The training split.
        probs: An array (N, C), or the name of a column of them.
        classes: C.

    Raises:
        ValueError: In one line, where they are no probabilities of these classes.
    """
    if isinstance(probs, str):
        probs = read_vectors(train, probs, option="pred_probs")
    elif isinstance(probs, torch.Tensor):
        probs = probs.detach().float().cpu().numpy()
    if not isinstance(probs, np.ndarray) or probs.ndim != 2 or probs.dtype.kind not in "fiub":
        got = f"{probs.shape} {probs.dtype}" if isinstance(probs, np.ndarray) else f"a {type(probs).__name__}"
        raise ValueError(f"pred_probs is {got}, expected probabilities (N, C) as an array, or the name of a column of them.")
    if probs.shape != (len(train), classes):
        expected = f"({len(train)}, {classes}), a row for each sample and a column for each class"
        raise ValueError(f"pred_probs is of shape {probs.shape}, expected {expected}: give these.")
    bad = ~(np.isfinite(probs).all(1) & (probs >= -1e-6).all(1) & (abs(probs.sum(1, dtype=np.float64) - 1.0) < 1e-2))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"pred_probs: row {row} is no list of probabilities (from {probs[row].min():.3g} to {probs[row].max():.3g}, sum "
            f"{probs[row].sum():.3g}): give numbers from 0 to 1 that sum to 1, a softmax for instance."
        )
    return probs.astype(np.float32)
