"""Corrupted targets of regression, in a `datasets` data set or in arrays."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np

from ...data import columns
from ...data.features import FeatureReader
from ...data.mapping import CLEAN_LABEL, IS_CORRUPTED, map_columns
from ...data.randomness import check_rate, check_seed, cut_index, key_cuts, sample_keys, shares, smallest, stream_seed, uniforms
from ..rates import log_rates

logger = logging.getLogger(__name__)

TARGET_KINDS = ("linadv", "signflip", "uninoise", "pairflip", "mixture", "maximum")
_MIXED = ("linadv", "signflip", "uninoise", "pairflip")
_REVISION = 1  # enters the cache fingerprint: raise it when the output for the same settings changes
_KIND_STREAM, _WEIGHT_STREAM, _UNIFORM_STREAM = 1, 5, 1000


def corrupt_targets(
    dataset: datasets.Dataset,
    kind: str,
    *,
    rate: float,
    seed: int = 0,
    target_column: str | None = None,
    feature_columns: str | Sequence[str] | None = None,
    low: float = -5.0,
    high: float = 5.0,
    weight_std: float = 1.0,
    num_proc: int | None = None,
    **map_kwargs: Any,
) -> datasets.Dataset:
    """Returns the data set with exactly ``round(rate * N)`` rows given a wrong target.

    ``kind`` is one of

    - 'linadv': Y_eps = X W_eps, W_eps (d, K) ~ N(0, weight_std^2), one for the data set, from the seed (the paper gives no scale;
      with d features of unit size the wrong targets spread by weight_std * sqrt(d)).
    - 'signflip': -Y.
    - 'uninoise': U[low, high], drawn for each coordinate.
    - 'pairflip': every coordinate takes the value of the one before it, the first that of the last.
    - 'maximum': the data set's maximum of each coordinate.
    - 'mixture': linadv, signflip, uninoise and pairflip in equal shares of the wrong rows (to within one); pairflip is left out
      for one output.

    Adds ``is_corrupted`` and the true targets as ``clean_label`` for the columns label and labels, else as
    ``clean_<target_column>``. The choice is keyed by (seed, row number): a second call needs another seed; it keeps the first
    truth, and ``is_corrupted`` says whether either changed the target.

    Args:
        dataset: one split.
        kind: see above.
        rate: share of wrong targets, in [0, 1).
        seed: of the draws.
        target_column: floats, one or a list of K a row; default label or labels.
        feature_columns: of 'linadv': X as they stand, images in [0, 1].
        low: of 'uninoise'.
        high: of 'uninoise'.
        weight_std: of 'linadv', > 0.
        num_proc: processes of `Dataset.map`.
        map_kwargs: of `Dataset.map`.

    Raises:
        ValueError: for an unknown kind, a rate, range or scale out of place, targets that are missing, not finite, no floats or
            of different lengths, 'pairflip' with fewer than 2 outputs, and features that are missing where the kind reads them.

    References:
        Dissertation sec. 4.4.
    """
    columns.check_dataset(dataset)
    if target_column is not None and target_column not in dataset.column_names:
        raise ValueError(f"target_column={target_column!r} is not in the data set: choose one of {dataset.column_names}.")
    target_column = columns.label_column(dataset, target_column)
    targets = _targets(dataset, target_column)
    reader = None
    if kind in ("linadv", "mixture") and feature_columns is not None:
        reader = FeatureReader.of(dataset, feature_columns, exclude=target_column)
    law = _law(kind, targets, rate, seed, None if reader is None else reader.size, low, high, weight_std)
    clean = CLEAN_LABEL if target_column in columns.LABEL_NAMES else f"clean_{target_column}"
    function = TargetNoiseMap(law, target_column, clean, reader)
    added = {IS_CORRUPTED: datasets.Value("bool"), clean: dataset.features[target_column]}
    noisy = map_columns(
        dataset, function, added, undecoded=() if reader is None else reader.columns, num_proc=num_proc,
        **{"desc": kind, **map_kwargs},
    )  # fmt: skip
    log_rates(logger, f"corrupt_targets {kind}", noisy, rate)
    return noisy


def corrupt_target_array(
    features: Any,
    targets: Any,
    kind: str,
    *,
    rate: float,
    seed: int = 0,
    low: float = -5.0,
    high: float = 5.0,
    weight_std: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns targets of which some are wrong, and which (N,): `corrupt_targets` for arrays, same rows, same values.

    Args:
        features: (N, ...) numbers, flattened for each row, or None where the kind reads none.
        targets: (N,) or (N, K) floats, whose shape and dtype are kept.
        kind: as in `corrupt_targets`, like all that follow.
        rate: share of wrong targets, in [0, 1).
        seed: of the draws.
        low: of 'uninoise'.
        high: of 'uninoise'.
        weight_std: of 'linadv', > 0.

    Raises:
        ValueError: as `corrupt_targets`.
    """
    clean = np.asarray(targets)
    y = _checked(clean, "targets")
    x = None if features is None else np.asarray(features, dtype=np.float64).reshape(len(features), -1)
    if x is not None and (len(x) != len(y) or not np.isfinite(x).all()):
        raise ValueError(f"features has shape {np.shape(features)}, targets {clean.shape}: give finite numbers, a row for each.")
    law = _law(kind, y, rate, seed, None if x is None else x.shape[1], low, high, weight_std)
    noisy, mask = law(y, x, np.arange(len(y)))
    return noisy.reshape(clean.shape).astype(clean.dtype), mask


@dataclass(frozen=True, eq=False)
class TargetLaw:
    """Which rows get a wrong target, and which one.

    A row is wrong where ``sample_keys(seed, index)`` is at most ``limit``; a second key says by which of the kinds.
    `corrupt_targets` builds it.

    Args:
        kinds: names of the kinds.
        cuts: ends of the kinds' ranges of the second key, uint64.
        limit: the largest key that is chosen; None: no row is.
        seed: of the keys.
        low: of 'uninoise'.
        high: of 'uninoise'.
        weight_std: of 'linadv'.
        maximum: the data set's largest targets (K,).
    """

    kinds: tuple[str, ...]
    cuts: np.ndarray
    limit: int | None
    seed: int
    low: float
    high: float
    weight_std: float
    maximum: np.ndarray = field(repr=False)

    def __call__(self, y: np.ndarray, x: np.ndarray | None, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows' targets, of which some are wrong, (B, K), and which, bool (B,).

        Args:
            y: true targets (B, K).
            x: features (B, d), or None where no kind reads them.
            indices: the rows' positions in the data set (B,).
        """
        indices, out = np.asarray(indices), y.copy()
        mask = np.zeros(len(y), dtype=bool) if self.limit is None else sample_keys(self.seed, indices) <= np.uint64(self.limit)
        which = cut_index(sample_keys(stream_seed(self.seed, _KIND_STREAM), indices), self.cuts)
        for i, kind in enumerate(self.kinds):
            rows = np.flatnonzero(mask & (which == i))
            out[rows] = self._wrong(kind, y[rows], None if x is None else x[rows], indices[rows])
        return out, mask

    def _wrong(self, kind: str, y: np.ndarray, x: np.ndarray | None, indices: np.ndarray) -> np.ndarray:
        if kind == "signflip":
            return -y
        if kind == "maximum":
            return np.broadcast_to(self.maximum, y.shape)
        if kind == "pairflip":
            return np.roll(y, 1, axis=1)
        if kind == "uninoise":
            drawn = [uniforms(stream_seed(self.seed, _UNIFORM_STREAM + k), indices) for k in range(y.shape[1])]
            return self.low + (self.high - self.low) * np.stack(drawn, axis=1)
        assert x is not None
        return x @ linear_weights(self.seed, x.shape[1], y.shape[1], self.weight_std)


def linear_weights(seed: int, d: int, k: int, std: float = 1.0) -> np.ndarray:
    """Returns W_eps (d, k) ~ N(0, std^2), the wrong linear map of 'linadv', a fixed function of the arguments.

    Args:
        seed: of the draw.
        d: number of features.
        k: number of outputs.
        std: standard deviation, > 0.
    """
    # RandomState, since numpy promises never to change its stream
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, _WEIGHT_STREAM, d, k])))
    return std * random.standard_normal((d, k))


@dataclass(frozen=True, eq=False)
class TargetNoiseMap:
    """A callable for ``dataset.map(fn, batched=True, with_indices=True)``: wrong targets by a `TargetLaw`.

    Args:
        law: which rows, and what they get.
        target_column: the column of the targets.
        clean_column: the column that keeps the true ones.
        reader: of the features, where a kind reads them.
        revision: part of the cache fingerprint.
    """

    law: TargetLaw
    target_column: str
    clean_column: str
    reader: FeatureReader | None
    revision: int = field(default=_REVISION, repr=False)

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, list]:
        """Returns the changed columns of a batch.

        Args:
            batch: columns by name.
            indices: the rows' positions in the data set.
        """
        targets = np.asarray(batch[self.target_column], dtype=np.float64)
        x = None if self.reader is None else self.reader(batch, indices)
        noisy, mask = self.law(targets.reshape(len(targets), -1), x, indices)
        before = np.asarray(batch[IS_CORRUPTED], dtype=bool) if IS_CORRUPTED in batch else np.zeros_like(mask)
        return {
            self.clean_column: list(batch[self.clean_column if self.clean_column in batch else self.target_column]),
            IS_CORRUPTED: (before | mask).tolist(),
            self.target_column: noisy.reshape(targets.shape).tolist(),
        }


def _law(kind: str, y: np.ndarray, rate: float, seed: int, d: int | None, low: float, high: float, weight_std: float) -> TargetLaw:
    if kind not in TARGET_KINDS:
        raise ValueError(f"kind={kind!r} is unknown: choose one of {', '.join(TARGET_KINDS)}.")
    check_rate(rate)
    check_seed(seed)
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"low={low!r} and high={high!r} are no range: give finite numbers, low below high.")
    if not (np.isfinite(weight_std) and weight_std > 0):
        raise ValueError(f"weight_std={weight_std!r} must be positive: give for instance 1.0.")
    n, outputs = y.shape
    if kind == "pairflip" and outputs < 2:
        raise ValueError("kind='pairflip' exchanges outputs but the target has 1: give at least 2, or choose another kind.")
    if kind in ("linadv", "mixture") and d is None:
        raise ValueError(f"kind={kind!r} is computed from the features: give the features (feature_columns of a data set).")
    kinds = (kind,) if kind != "mixture" else tuple(k for k in _MIXED if k != "pairflip" or outputs > 1)
    keys, count = sample_keys(seed, np.arange(n)), round(rate * n)
    limit = smallest(keys, count)
    second = sample_keys(stream_seed(seed, _KIND_STREAM), np.arange(n))
    chosen = keys <= np.uint64(limit) if limit is not None else np.zeros(n, dtype=bool)
    cuts = key_cuts(second[chosen], shares(count, np.ones(len(kinds))))
    return TargetLaw(kinds, cuts, limit, seed, float(low), float(high), float(weight_std), y.max(axis=0))


def _targets(dataset: datasets.Dataset, name: str) -> np.ndarray:
    feature = dataset.features[name]
    inner = feature.feature if isinstance(feature, datasets.List) else feature
    if not isinstance(inner, datasets.Value) or not inner.dtype.startswith("float"):
        raise ValueError(f"'{name}' is {feature}, expected a float or a list of floats a row: cast it with dataset.cast_column.")
    column = dataset.select_columns([name]).with_format("arrow")[:][name].to_pylist()
    row = next((i for i, v in enumerate(column) if v is None or (isinstance(v, list) and None in v)), None)
    if row is not None:
        raise ValueError(f"'{name}' is None in row {row}: fill it in or filter these rows out.")
    if isinstance(column[0], list):
        row = next((i for i, v in enumerate(column) if len(v) != len(column[0])), None)
        if row is not None:
            lengths = f"{len(column[row])} numbers in row {row}, {len(column[0])} in row 0"
            raise ValueError(f"'{name}' has {lengths}: make all rows alike.")
    return _checked(np.asarray(column), f"'{name}'")


def _checked(y: np.ndarray, name: str) -> np.ndarray:
    """Targets as (N, K) float64."""
    if y.ndim not in (1, 2) or y.size == 0 or y.dtype.kind != "f":
        raise ValueError(f"{name} has shape {y.shape} and dtype {y.dtype}: give floats of shape (N,) or (N, K).")
    broken = np.flatnonzero(~np.isfinite(y.reshape(len(y), -1)).all(axis=1))
    if broken.size:
        raise ValueError(f"{name} is NaN or infinite in row {broken[0]}: repair or remove it.")
    return y.reshape(len(y), -1).astype(np.float64)
