"""Labels of any type as class numbers: what the values of a column are, and which number each value gets by its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .columns import arrow_column

#: What the values of a column of labels are: names by a ClassLabel feature, strings, numbers, or booleans.
NAMES, TEXT, NUMBERS, FLAGS = "names", "text", "numbers", "flags"
MISSING = -1


@dataclass(frozen=True)
class Labels:
    """One column of labels.

    Attributes:
        where: split and column in words, as messages begin.
        kind: what the values are.
        values: the distinct values; of a ClassLabel all names, used or not.
        codes: for each row (N,) the place of its label in ``values``, -1 where it has none.
    """

    where: str
    kind: str
    values: tuple[Any, ...]
    codes: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """The places in ``values`` that some row has, ascending."""
        found = np.unique(self.codes)
        return found[found >= 0]

    @property
    def labelled(self) -> bool:
        """Whether any row has a label."""
        return bool((self.codes >= 0).any())

    def row(self, place: int) -> int:
        """Returns the first row whose label is at this place, or that has none for -1.

        Args:
            place: in ``values``, or -1.
        """
        return int(np.flatnonzero(self.codes == place)[0])

    def check_complete(self) -> None:
        """Raises ``ValueError``, naming the first row, where a row has no label."""
        if (self.codes < 0).any():
            rows = int((self.codes < 0).sum())
            mend = "; where -1 is a class, make the column strings" if self.kind == NUMBERS and MISSING not in self.values else ""
            raise ValueError(
                f"{self.where} is missing (None, NaN, empty or -1) in row {self.row(MISSING)} ({rows} of {len(self.codes)} rows): "
                f"fill these labels in, or filter the rows out{mend}."
            )


def read_label_values(data: datasets.Dataset, column: str, where: str = "") -> Labels:
    """Returns what a column of labels holds, whatever the data set's format is.

    Args:
        data: the data set.
        column: of the labels.
        where: split and column in words, for messages; default the column.

    Raises:
        ValueError: for what is no class: lists, broken numbers, numbers that a ClassLabel does not name.
    """
    where, feature = where or f"'{column}'", data.features[column]
    array = arrow_column(data, column)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if isinstance(feature, datasets.ClassLabel):
        codes = pc.fill_null(array, MISSING).to_numpy(zero_copy_only=False).astype(np.int64)
        wrong = np.flatnonzero((codes < MISSING) | (codes >= feature.num_classes))
        if wrong.size:
            raise ValueError(
                f"{where} is {codes[wrong[0]]} in row {wrong[0]}, but its ClassLabel names {feature.num_classes} classes: repair "
                "the label or the names."
            )
        names = feature.names or [str(i) for i in range(feature.num_classes)]
        return Labels(where, NAMES, tuple(names), codes)
    kind = array.type
    if pa.types.is_null(kind):
        return Labels(where, NUMBERS, (), np.full(len(array), MISSING))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _coded(where, TEXT, array.cast(pa.large_string()), lambda values: [v if v.strip() else None for v in values])
    if pa.types.is_boolean(kind):
        return Labels(where, FLAGS, (False, True), pc.fill_null(array.cast(pa.int8()), MISSING).to_numpy().astype(np.int64))
    if pa.types.is_integer(kind):
        return _coded(where, NUMBERS, array, list)
    if pa.types.is_floating(kind):
        labels = _coded(where, NUMBERS, array, lambda values: [None if v != v else v for v in values])
        broken = next((i for i, v in enumerate(labels.values) if not (abs(v) < 2**53 and v == int(v))), None)
        if broken is not None:
            raise ValueError(
                f"{where} is {labels.values[broken]:g} in row {labels.row(broken)}, a number to predict and no class: set "
                "label_column, or give whole numbers or names."
            )
        return replace(labels, values=tuple(int(v) for v in labels.values))
    raise ValueError(f"{where} is {feature}, expected one class name or number a row: set label_column.")


def _coded(where: str, kind: str, array: Any, cleaned: Any) -> Labels:
    """Labels by dictionary encoding; ``cleaned`` turns the distinct values into labels, None for what is none."""
    coded = pc.dictionary_encode(array)
    codes = pc.fill_null(coded.indices, MISSING).to_numpy(zero_copy_only=False).astype(np.int64)
    values = cleaned(coded.dictionary.to_pylist())
    kept = [value for value in values if value is not None]
    places = np.array([*np.cumsum([value is not None for value in values]) - 1, MISSING])
    places[:-1][[value is None for value in values]] = MISSING
    return Labels(where, kind, tuple(kept), places[codes])


def is_number(name: str) -> bool:
    """Returns whether a class name is a whole number as it is usually written.

    Args:
        name: of a class.
    """
    digits = name.removeprefix("-")
    return digits.isdecimal() and digits.isascii() and str(int(digits)) == digits if len(digits) < 400 else False


def in_order(names: Iterable[str]) -> list[str]:
    """Returns class names in the order that they are numbered: numbers by value, others by their letters.

    Args:
        names: of classes.
    """
    distinct = set(names)
    return sorted(distinct, key=int) if all(map(is_number, distinct)) else sorted(distinct)


def without_unlabelled_marks(columns: Sequence[Labels]) -> list[Labels]:
    """Returns columns of one data set with -1 among class numbers read as "no label".

    A column without names in which -1 stands beside 0, 1, 2, ... marks rows without a label; beside one other number, as in
    {-1, 1}, or beside other negative numbers, it is a class.

    Args:
        columns: of labels.
    """
    numbers = [labels for labels in columns if labels.kind == NUMBERS]
    named = any(labels.kind == NAMES for labels in columns)
    values = {labels.values[i] for labels in numbers for i in labels.used}
    rest = values - {MISSING}
    if MISSING not in values or (not named and (min(rest, default=0) < 0 or (len(rest) == 1 and 0 not in rest))):
        return list(columns)
    return [_unmarked(labels) if labels.kind == NUMBERS and MISSING in labels.values else labels for labels in columns]


def _unmarked(labels: Labels) -> Labels:
    place = labels.values.index(MISSING)
    codes = np.where(labels.codes == place, MISSING, labels.codes - (labels.codes > place))
    return replace(labels, values=tuple(v for v in labels.values if v != MISSING), codes=codes)


def class_numbers(labels: Labels, names: Sequence[str], source: str, by_name: bool = False) -> np.ndarray:
    """Returns the class number of each row (N,), -1 where it has no label.

    Names and strings are looked up. Numbers without names are class numbers, or themselves names where ``names`` are numbers.

    Args:
        labels: a column.
        names: of the classes, by number.
        source: where these names come from, for messages.
        by_name: whether numbers are meant as names where they could be either.

    Raises:
        ValueError: naming the row, for a label that is none of the classes, and for numbers that can be read in two ways.
    """
    place = {name: i for i, name in enumerate(names)}
    used = [(int(i), labels.values[i]) for i in labels.used]
    if labels.kind in (NAMES, TEXT):
        numbers = {i: place.get(value) for i, value in used}
    elif labels.kind == FLAGS and str(True) in place and str(False) in place:
        numbers = {i: place[str(bool(value))] for i, value in used}
    else:
        named = {i: place.get(str(int(value))) for i, value in used}
        numbered = {i: int(value) if 0 <= value < len(names) else None for i, value in used}
        words = not all(map(is_number, names))
        if None in named.values():
            numbers = numbered if words or not by_name else named
        elif None in numbered.values() or named == numbered or (by_name and list(names) == in_order(names)):
            numbers = named
        else:
            i = next(i for i in named if named[i] != numbered[i])
            raise ValueError(
                f"{labels.where} is {int(labels.values[i])} in row {labels.row(i)}, without names, but {source} names class "
                f"{numbered[i]} {names[numbered[i] or 0]!r}: cannot tell name from number; cast the column to that ClassLabel, or "
                "to strings."
            )
    unknown = next((i for i, number in numbers.items() if number is None), None)
    if unknown is not None:
        rows = int((labels.codes == unknown).sum())
        raise ValueError(
            f"{labels.where} is {labels.values[unknown]!r} in row {labels.row(unknown)} ({rows} such rows), a class that {source} "
            f"does not name ({listed(names)}): rename it, or filter these rows out."
        )
    table = np.full(len(labels.values) + 1, MISSING, dtype=np.int64)  # the last entry is that of -1
    for i, number in numbers.items():
        table[i] = MISSING if number is None else number
    return table[labels.codes]


def listed(names: Sequence[Any], most: int = 6) -> str:
    """Returns names in quotes, separated by commas, the first few of many.

    Args:
        names: what to list.
        most: so many are shown.
    """
    return ", ".join(repr(name) for name in names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def names_of(config: Any) -> list[str] | None:
    """Returns the class names of a model's config, by number; None where it has none, or LABEL_0, LABEL_1, ...

    Args:
        config: of a transformers model.
    """
    named = getattr(config, "id2label", None) or {}
    if not all(str(key).isdecimal() for key in named):
        return None
    names = [str(named[key]) for key in sorted(named, key=int)]
    generic = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return None if generic or len(set(names)) < len(names) else names
