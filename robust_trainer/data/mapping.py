"""The map that writes columns into a `datasets` data set and leaves everything else in it as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

#: The columns that a corruption adds: whether a row was changed, the label before, the label that a trigger asks for.
IS_CORRUPTED, CLEAN_LABEL, ATTACK_TARGET = "is_corrupted", "clean_label", "attack_target"


def map_columns(
    dataset: datasets.Dataset,
    function: Any,
    added: Mapping[str, Any],
    *,
    undecoded: Sequence[str | None] = (),
    num_proc: int | None = None,
    **map_kwargs: Any,
) -> datasets.Dataset:
    """Returns ``dataset.map(function)``, batched and with indices, with the features given and the format kept.

    Args:
        dataset: A `datasets.Dataset`.
        function: Of a batch and its row numbers, as `Dataset.map` calls it.
        added: Features of the columns that the function adds.
        undecoded: Image columns that it reads or writes; it sees their encoded bytes, so that images it leaves alone keep them.
        num_proc: Processes.
        map_kwargs: Of `Dataset.map`.
    """
    shown = dataset.format
    plain = dataset.with_format(None)
    images = {c: f for c in undecoded if c is not None and isinstance(f := plain.features.get(c), datasets.Image)}
    for name, feature in images.items():
        plain = plain.cast_column(name, datasets.Image(mode=feature.mode, decode=False))
    features = datasets.Features({**plain.features, **{k: v for k, v in added.items() if k not in plain.features}})
    mapped = plain.map(function, batched=True, with_indices=True, features=features, num_proc=num_proc, **map_kwargs)
    for name, feature in images.items():
        mapped = mapped.cast_column(name, feature)
    every = len(shown["columns"]) == len(dataset.column_names)
    if shown["type"] is None and every:
        return mapped
    return mapped.with_format(
        shown["type"], None if every else shown["columns"], shown["output_all_columns"], **shown["format_kwargs"]
    )


def relabelled(batch: Mapping[str, Any], label_column: str, labels: np.ndarray, new: np.ndarray) -> dict[str, list]:
    """Returns the columns of a batch whose ``labels`` (B,) became ``new`` (B,); the first truth stays, as does an older mark.

    Args:
        batch: Columns of some rows.
        label_column: Name of the column.
        labels: Labels (B,).
        new: New labels (B,).
    """
    before = np.asarray(batch[IS_CORRUPTED], dtype=bool) if IS_CORRUPTED in batch else np.zeros(len(labels), dtype=bool)
    return {
        CLEAN_LABEL: list(batch[CLEAN_LABEL]) if CLEAN_LABEL in batch else labels.tolist(),
        IS_CORRUPTED: (before | (new != labels)).tolist(),
        label_column: new.tolist(),
    }
