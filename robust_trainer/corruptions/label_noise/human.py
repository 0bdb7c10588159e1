"""Real label noise: a column of labels that people or the web gave, beside the clean ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np

from ...data import columns
from ...data.mapping import CLEAN_LABEL, IS_CORRUPTED, map_columns, relabelled
from ..rates import log_rates

logger = logging.getLogger(__name__)

_REVISION = 1  # enters the cache fingerprint: raise it when the output for the same settings changes


def use_noisy_labels(
    dataset: datasets.Dataset,
    noisy_column: str | Sequence[int] | np.ndarray,
    clean_column: str | None = None,
    *,
    label_column: str | None = None,
    num_classes: int | None = None,
    num_proc: int | None = None,
    **map_kwargs: Any,
) -> datasets.Dataset:
    """Returns the data set with real noisy labels as its label; adds ``clean_label`` and ``is_corrupted`` (they differ).

    Realised rates are logged.

    Args:
        dataset: with a column of clean labels.
        noisy_column: a column (CIFAR-10N: 'worse_label', 'random_label1', ...; it stays), or the labels themselves (N,). Strings
            are looked up in the clean column's class names.
        clean_column: the true labels, default the label column; where it is given and there is no label column, 'label' is made.
        label_column: the column that gets the noisy labels; default label or labels.
        num_classes: C; default what the column says.
        num_proc: processes of `Dataset.map`.
        map_kwargs: of `Dataset.map`.

    Raises:
        ValueError: for labels of another length, missing, no integers or outside [0, C), and for other class names.

    References:
        Wei et al. 2022, "Learning with noisy labels revisited: a study using real-world human annotations" (CIFAR-10N).
    """
    columns.check_dataset(dataset)
    if label_column is None and clean_column is not None and not set(columns.LABEL_NAMES) & set(dataset.column_names):
        label_column = columns.LABEL_NAMES[0]
    elif label_column is None or clean_column is None:
        label_column = columns.label_column(dataset, label_column)
    clean_column = columns.label_column(dataset, clean_column or label_column)
    if isinstance(noisy_column, str) and noisy_column == clean_column:
        raise ValueError(f"noisy_column={noisy_column!r} is the column of the clean labels itself: name the other one.")
    _, classes = columns.read_labels(dataset, clean_column, num_classes)
    if isinstance(noisy_column, str):
        if noisy_column not in dataset.column_names:
            raise ValueError(f"noisy_column={noisy_column!r} is not in the data set: choose one of {dataset.column_names}.")
        column: Any = dataset.select_columns([noisy_column]).with_format(None)[noisy_column][:]
        _same_names(dataset, noisy_column, clean_column)
    else:
        column = noisy_column
    noisy = _noisy(column, noisy_column if isinstance(noisy_column, str) else "noisy_column", len(dataset), classes,
                   getattr(dataset.features[clean_column], "names", None))  # fmt: skip
    function = NoisyLabelMap(noisy, label_column, clean_column)
    features = dataset.features
    added = {IS_CORRUPTED: datasets.Value("bool"), CLEAN_LABEL: features[clean_column], label_column: features[clean_column]}
    made = map_columns(dataset, function, added, num_proc=num_proc, **{"desc": "noisy labels", **map_kwargs})
    log_rates(logger, "use_noisy_labels", made, None, label_column)
    return made


@dataclass(frozen=True, eq=False)
class NoisyLabelMap:
    """A callable for `Dataset.map` that gives row i of the data set the label ``noisy[i]``.

    Args:
        noisy: labels (N,), integers.
        label_column: the column that gets them.
        clean_column: the column of the true labels.
        revision: part of the cache fingerprint.
    """

    noisy: np.ndarray = field(repr=False)
    label_column: str
    clean_column: str
    revision: int = field(default=_REVISION, repr=False)

    def __call__(self, batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, list]:
        """Returns the changed columns of a batch.

        Args:
            batch: columns by name.
            indices: the rows' positions in the data set.
        """
        clean = np.asarray(batch[self.clean_column], dtype=np.int64)
        return relabelled(batch, self.label_column, clean, self.noisy[np.asarray(indices)])


def _same_names(dataset: datasets.Dataset, noisy: str, clean: str) -> None:
    one, two = (getattr(dataset.features[c], "names", None) for c in (noisy, clean))
    if one is not None and two is not None and list(one) != list(two):
        raise ValueError(f"'{noisy}' has the classes {one[:10]} but '{clean}' has {two[:10]}: cast one to the other's names.")


def _noisy(column: Any, name: str, n: int, classes: int, names: Sequence[str] | None) -> np.ndarray:
    """Noisy labels as integers (N,) in [0, C)."""
    try:
        values = np.asarray(column)
    except ValueError as error:
        raise ValueError(f"{name} is ragged: give one integer class label a row.") from error
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape} but the data set has {n} rows: give one label for each of them.")
    if values.dtype == object and any(v is None for v in values):
        raise ValueError(f"{name} is None in row {next(i for i, v in enumerate(values) if v is None)}: filter these rows out.")
    if values.dtype.kind in "UO" and names is not None:
        known = {word: i for i, word in enumerate(names)}
        odd = next((i for i, word in enumerate(values) if word not in known), None)
        if odd is not None:
            raise ValueError(f"{name} is {str(values[odd])!r} in row {odd}, expected one of {', '.join(names[:10])}.")
        values = np.array([known[word] for word in values])
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {values.dtype}, expected integer class labels: encode them first.")
    outside = np.flatnonzero((values < 0) | (values >= classes))
    if outside.size:
        raise ValueError(
            f"{name} is {values[outside[0]]} in row {outside[0]} ({outside.size} such rows), expected [0, {classes}): correct it."
        )
    return values.astype(np.int64)
