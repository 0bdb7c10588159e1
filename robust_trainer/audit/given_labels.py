"""The given labels as they stand in a user's data set: by which column, as which numbers, and how a new one is written there."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data.class_names import listed
from ..data.columns import arrow_column
from ..data.mapping import CLEAN_LABEL, with_column
from ..ledger.fingerprint import given_labels


def label_column(data: datasets.Dataset, usual: Sequence[str | None], own: np.ndarray, names: Sequence[str]) -> str | None:
    """Returns the column of the labels: the first with a usual name, else one that holds in every row what was audited.

    Args:
        data: The data set that was audited, or what it was made of.
        usual: Names that the column may have.
        own: Labels that were audited, (N,), -1 where unknown.
        names: Of the classes.
    """
    known = own >= 0
    named = next((name for name in usual if name in data.column_names), None)
    if named is not None or not known.any():
        return named
    for name in data.column_names:
        if name != CLEAN_LABEL and (numbers := class_numbers(data, name, names)) is not None and (numbers == own)[known].all():
            return name
    return None


def class_numbers(data: datasets.Dataset, name: str | None, names: Sequence[str]) -> np.ndarray | None:
    """Returns the class numbers (N,) of a column, int64, of numbers or of names; None where it does not hold a class in every row.

    Args:
        data: The data set.
        name: Of the column, None for none.
        names: Of the classes.
    """
    if name is None or not is_named(data, name):
        return given_labels(data, name)
    values = arrow_column(data, name).cast(pa.large_string())
    numbers = pc.index_in(values, value_set=pa.array(list(names), pa.large_string()))
    return None if numbers.null_count else numbers.to_numpy(zero_copy_only=False).astype(np.int64)


def is_named(data: datasets.Dataset, name: str) -> bool:
    """Returns whether a column holds strings, as names of classes may be."""
    return name in data.column_names and getattr(data.features[name], "dtype", None) in ("string", "large_string")


def with_labels(
    data: datasets.Dataset, name: str, numbers: np.ndarray, rows: np.ndarray, names: Sequence[str]
) -> datasets.Dataset:  # fmt: skip
    """Returns the data set with new labels in some rows of a column, numbers or names as the column has them.

    Args:
        data: The data set.
        name: Of the column.
        numbers: New class numbers (N,).
        rows: Which rows get theirs, bool (N,).
        names: Of the classes.

    Raises:
        ValueError: Where a column holds strings that are not names of the classes.
    """
    if is_named(data, name) and class_numbers(data, name, names) is None:
        raise ValueError(
            f"'{name}' holds strings that are not the names of the audited classes ({listed(names)}): pass the data set with class "
            "numbers."
        )
    old, feature = np.asarray(data.select_columns(name).with_format("numpy")[:][name]), data.features[name]
    new = numbers
    if is_named(data, name):
        old, new = old.astype(object), np.asarray([*names, ""], dtype=object)[numbers]
    return with_column(data, name, np.where(rows, new, old), feature)
