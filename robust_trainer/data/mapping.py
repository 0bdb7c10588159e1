"""The map that writes columns into a `datasets` data set and leaves everything else in it as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import datasets
import numpy as np

#: The columns that a corruption adds: whether a row is to mislead, the label before, the label that a trigger asks for, and whether
#: a row carries a trigger with its right label, so that the trigger is harder to find: such a cover is not ``is_corrupted``.
IS_CORRUPTED, CLEAN_LABEL, ATTACK_TARGET, IS_COVER = "is_corrupted", "clean_label", "attack_target", "is_cover"
_ADDED = "_robust_new_column"
#: What an Audio column holds; as such it is written without torchcodec, which `datasets.Audio` asks for.
_STORED = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


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
        undecoded: Image or Audio columns that it reads or writes; it sees their encoded bytes, so that what it leaves alone keeps
            them.
        num_proc: Processes.
        map_kwargs: Of `Dataset.map`.
    """
    plain = dataset.with_format(None)
    coded = (datasets.Image, datasets.Audio)
    images = {c: f for c in undecoded if c is not None and isinstance(f := plain.features.get(c), coded)}
    for name, feature in images.items():
        plain = plain.cast_column(name, _STORED if isinstance(feature, datasets.Audio) else replace(feature, decode=False))
    features = datasets.Features({**plain.features, **{k: v for k, v in added.items() if k not in plain.features}})
    mapped = plain.map(function, batched=True, with_indices=True, features=features, num_proc=num_proc, **map_kwargs)
    for name, feature in images.items():
        mapped = mapped.cast_column(name, feature)
    return formatted_as(mapped, dataset)


def formatted_as(data: datasets.Dataset, other: datasets.Dataset) -> datasets.Dataset:
    """Returns the data set with the format or the transform of another one, of which it was made.

    Args:
        data: in which columns may be missing.
        other: as its user has it.
    """
    shown = other.format
    every = len(shown["columns"]) == len(other.column_names)
    if shown["type"] is None and every:
        return data
    columns = None if every else [name for name in shown["columns"] if name in data.column_names]
    return data.with_format(shown["type"], columns, shown["output_all_columns"], **shown["format_kwargs"])


def with_column(data: datasets.Dataset, name: str, values: Any, feature: Any) -> datasets.Dataset:
    """Returns the data set with other values in a column, which keeps its place; the other columns are not read.

    Args:
        data: a data set.
        name: of an existing column.
        values: of all rows (N,), as an array of numpy or arrow.
        feature: of the values.
    """
    place = data.column_names
    with _no_bars():  # of a data set that was selected from another one, all columns are written anew
        added = data.add_column(_ADDED, values, feature=feature)  # before the other goes: a data set without columns has no rows
    return added.remove_columns(name).rename_column(_ADDED, name).select_columns(place)


def with_feature(data: datasets.Dataset, name: str, feature: Any) -> datasets.Dataset:
    """Returns the data set with another feature of a column, whose values stay: `cast_column` without a bar.

    Args:
        data: a data set.
        name: of an existing column.
        feature: that holds the same kind of values, as a ClassLabel of more names.
    """
    values = data.with_format("arrow").select_columns([name])[:].column(name).combine_chunks()
    return formatted_as(with_column(data.with_format(None), name, values, feature), data)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Within it `datasets` shows no bars of steps that nobody asked for, unless the environment asks for them."""
    if datasets.are_progress_bars_disabled() or "HF_DATASETS_DISABLE_PROGRESS_BARS" in os.environ:
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


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
