"""Instance-dependent label noise: the flip depends on the sample's features (part-dependent noise, PDN)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ...data.features import FeatureReader
from ...data.mapping import relabelled
from ...data.randomness import stream_seed, uniforms

STD = 0.1  # of the samples' flip rates, PDN
_REVISION = 1  # enters the cache fingerprint: raise it when the output for the same settings changes
_TARGET_STREAM, _RATE_STREAM, _WEIGHT_STREAM = 1, 3, 4
_BLOCK = 2**19  # numbers of W that are drawn at once; 128 such blocks, 256 MB in float32, are kept
_MOST = 2**30  # numbers in all W


@dataclass(frozen=True, eq=False)
class InstanceNoiseMap:
    """A callable for ``dataset.map(fn, batched=True, with_indices=True)``: part-dependent label noise (PDN).

    As the authors' tools.py has it: sample i of class y flips with
    q_i ~ N(rate, 0.1^2) truncated to [0, 1]; W_y ~ N(0, 1) is one d x C matrix per TRUE class; a = x_i W_y with a_y = -inf;
    P_i = q_i softmax(a) and P_i[y] = 1 - q_i. x is standardised (`FeatureReader`), so that a has a standard deviation of about
    sqrt(d) and a sample's flips go nearly always to one or two classes.
    A row is chosen where u_i < limit * q_i, u_i uniform: limit 1 draws every row on its own; `instance_noise_map` finds the one
    that chooses exactly round(rate * N) (sequential Poisson sampling, Ohlsson 1998: still in proportion to q, to first order).
    q, u and the drawn label are keyed by (seed, index), W by (seed, y). Memory: one batch and 256 MB of W.

    Args:
        reader: of the features.
        rate: mean of the flip rates, in [0, 1).
        limit: see above.
        classes: C.
        seed: of all draws.
        label_column: the column of the labels.
        revision: part of the cache fingerprint.

    References:
        Xia et al. 2020, "Part-dependent label noise: towards instance-dependent label noise"; Ohlsson 1998, "Sequential Poisson
        sampling".
    """

    reader: FeatureReader
    rate: float
    limit: float
    classes: int
    seed: int
    label_column: str
    revision: int = field(default=_REVISION, repr=False)

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, list]:
        """Returns the changed columns of a batch.

        Args:
            batch: columns by name.
            indices: the rows' positions in the data set.
        """
        labels = np.asarray(batch[self.label_column], dtype=np.int64)
        rows = np.flatnonzero(_order(self.rate, self.seed, indices) < self.limit)
        chosen = np.asarray(indices)[rows]
        features = {name: [batch[name][row] for row in rows] for name in self.reader.columns}
        total = np.cumsum(self.targets(self.reader(features, chosen.tolist()), labels[rows]), axis=1)
        u = uniforms(stream_seed(self.seed, _TARGET_STREAM), chosen)
        new = labels.copy()
        new[rows] = (u[:, None] >= total / total[:, -1:]).sum(axis=1)
        return relabelled(batch, self.label_column, labels, new)

    def targets(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns softmax(a) (B, C), 0 at the true label: the law of the new label of a sample that flips.

        Args:
            features: (B, d), standardised.
            labels: true labels (B,).
        """
        a = np.zeros((len(labels), self.classes))
        for y in np.unique(labels).tolist():
            members = labels == y
            for start, block in _blocks(self.seed, y, features.shape[1], self.classes):
                a[members] += features[members, start : start + len(block)] @ block.astype(np.float64)
        a[np.arange(len(labels)), labels] = -np.inf
        p = np.exp(a - a.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def probabilities(self, features: np.ndarray, labels: np.ndarray, indices: Any) -> np.ndarray:
        """Returns the row P_i (B, C) of each sample: q_i softmax(a), and 1 - q_i at its label.

        Args:
            features: (B, d), standardised.
            labels: true labels (B,).
            indices: the rows' positions in the data set (B,).
        """
        q = flip_rates(self.rate, self.seed, indices)
        p = q[:, None] * self.targets(features, labels)
        p[np.arange(len(labels)), labels] = 1 - q
        return p


def instance_noise_map(
    reader: FeatureReader, rate: float, n: int, classes: int, seed: int, label_column: str, exact: bool
) -> InstanceNoiseMap:
    """Returns the `InstanceNoiseMap` of a data set.

    Args:
        reader: of the features, standardised.
        rate: in [0, 1).
        n: number of rows.
        classes: C.
        seed: of all draws.
        label_column: the column of the labels.
        exact: whether exactly round(rate * n) rows are chosen.

    Raises:
        ValueError: where W would be too large to draw.
    """
    if classes * classes * reader.size > _MOST:
        raise ValueError(
            f"feature_columns={list(reader.columns)} has {reader.size} numbers, with {classes} classes {classes**2 * reader.size} "
            f"weights, at most {_MOST}: shrink the images, or name a column of fewer numbers (an embedding)."
        )
    limit, count = 1.0, round(rate * n)
    if exact:
        order = _order(rate, seed, np.arange(n))
        limit = float(np.nextafter(np.partition(order, count - 1)[count - 1], np.inf)) if count else 0.0
    return InstanceNoiseMap(reader, rate, limit if rate > 0 else 0.0, classes, seed, label_column)


def flip_rates(rate: float, seed: int, indices: Any) -> np.ndarray:
    """Returns q (N,) in [0, 1], N(rate, 0.1^2) truncated to [0, 1]; its mean is above ``rate`` near 0.

    Args:
        rate: in [0, 1).
        seed: with the index the key of each draw.
        indices: the rows' positions in the data set (N,).
    """
    low, high = (0.5 * math.erfc(-z / math.sqrt(2)) for z in (-rate / STD, (1 - rate) / STD))
    u = low + uniforms(stream_seed(seed, _RATE_STREAM), indices) * (high - low)
    return np.clip(rate + STD * torch.special.ndtri(torch.from_numpy(u)).numpy(), 0, 1)


def check_size(classes: int) -> None:
    """Checks the number of classes.

    Args:
        classes: C.

    Raises:
        ValueError: for fewer than 2 classes.
    """
    if classes < 2:
        raise ValueError(f"num_classes={classes} leaves no other label to give: label noise wants at least 2 classes.")


def _order(rate: float, seed: int, indices: Any) -> np.ndarray:
    return uniforms(seed, indices) / np.maximum(flip_rates(rate, seed, indices), 1e-300)


def _blocks(seed: int, y: int, d: int, classes: int) -> Any:
    """The rows of W_y in blocks, as (first row, (rows, C))."""
    height = max(1, _BLOCK // classes)
    for number, start in enumerate(range(0, d, height)):
        yield start, _block(seed, y, number, min(height, d - start), classes)


@lru_cache(maxsize=128)
def _block(seed: int, y: int, number: int, rows: int, classes: int) -> np.ndarray:
    # RandomState, since numpy promises never to change its stream
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, _WEIGHT_STREAM, y, number])))
    block = random.standard_normal((rows, classes)).astype(np.float32)
    block.setflags(write=False)
    return block
