"""Tables for anomaly detection: rows of numbers with NaN for missing cells, their names, and the truth where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa

from ..reporting.safe_text import plain
from .preparation import _others
from .table_files import Columns, listed, numbers, read_columns

#: Names, in any case, by which label_column="auto" knows the truth.
LABELS = ("label", "y", "outlier", "is_anomaly", "anomaly", "target")


@dataclass(frozen=True)
class AnomalyTable:
    """What `read_table` found.

    Args:
        rows: (n, d) float64, NaN where a cell is missing.
        names: Of the d columns.
        truth: (n,) of 0 and 1, None where unknown.
        label_column: Where it stood.
        ids: N values as the file has them, or None.
        notes: What was decided and is worth telling.
        named: The file names its columns (an npz does not).
    """

    rows: np.ndarray
    names: list[str]
    truth: np.ndarray | None
    label_column: str | None
    ids: pa.ChunkedArray | None
    notes: tuple[str, ...]
    named: bool

    @property
    def features(self) -> Any:
        """The rows as a detector takes them: a pandas data frame, so that it keeps the names; an array where there are none."""
        return pandas.DataFrame(self.rows, columns=self.names) if self.named else self.rows


def read_table(
    path: str | Path, *, label_column: str = "auto", exclude: Sequence[str] = (), id_column: str | None = None,
    columns: Sequence[str] | int | None = None,
) -> AnomalyTable:  # fmt: skip
    """The table in a .csv, .tsv, .parquet or .npz file; of an npz, X (n, d) are the rows, and y or other keys columns beside them.

    Args:
        path: The file.
        label_column: A column of 0 (normal) and 1 (abnormal), which is no part of the rows; ``none``: there is none; ``auto``: a
            column that is named as one of `LABELS`.
        exclude: Columns to leave out.
        id_column: Copied, no part of the rows.
        columns: What a detector was fitted to, names or their number; they are taken in that order, others are left out, and
            without the label_column the truth is unknown.

    Raises:
        ValueError: In one line that names the file or the column. Nothing is unpickled.
    """
    path = Path(path)
    notes: list[str] = []
    table, inner, named = read_columns(path, [name for name in (label_column, id_column, *LABELS) if name is not None])
    for what, name in (("id_column", id_column), *(("exclude", n) for n in exclude if columns is None)):
        if name is not None:
            _known(what, name, table)
    fitted_columns = None if columns is None or isinstance(columns, int) else [str(n) for n in columns]
    if columns is not None and label_column not in (*table, "none", "auto"):
        notes.append(f"there is no column {label_column!r} here, so the truth is unknown")
        label_column = "none"
    candidates = list(table) if label_column == "auto" else inner if columns is None else []
    free = [n for n in candidates if n not in (*exclude, id_column, *(fitted_columns or ()))]
    label, truth = _truth(table, label_column, free, notes)
    left = [n for n in inner if n not in (*exclude, id_column, label)]
    if named and "" in left:
        left.remove("")
        notes.append("a column without a name, as an index has, is left out")
    if fitted_columns is not None:
        left = _as_fitted(path, fitted_columns, left, named, notes)
    rows = _rows(path, {name: table[name] for name in left})
    if isinstance(columns, int) and rows.shape[1] != columns:
        raise ValueError(f"{str(path)!r} has {rows.shape[1]} columns, the detector was fitted to {columns}: leave out the others.")
    names = left if fitted_columns is None else fitted_columns
    _tell(rows, names, notes)
    ids = None if id_column is None else table[id_column]
    return AnomalyTable(rows, names, truth, label, ids, tuple(notes), named if columns is None else fitted_columns is not None)


def _known(what: str, name: str, columns: Columns) -> None:
    if name not in columns:
        raise ValueError(f"{what}={name!r} is no column of the table: it has {listed(list(columns))}.")


def _rows(path: Path, columns: Columns) -> np.ndarray:
    """The columns side by side (n, d). Raises ``ValueError`` for text, naming the columns."""
    kept, refused = [], {}
    for name, column in columns.items():
        try:
            kept.append(numbers(name, column))
        except ValueError as error:
            refused[name] = str(error)
    if not kept:
        reason = f"all that it has is {listed(list(refused))}" if refused else "nothing is left"
        raise ValueError(f"{str(path)!r} has no numeric column ({reason}): encode what it has as numbers, or exclude less.")
    if refused:
        first, *others = refused
        raise ValueError(refused[first].removesuffix(".") + (f"; the same for {listed(others)}." if others else "."))
    return np.column_stack(kept)


def _truth(columns: Columns, asked: str, free: Sequence[str], notes: list[str]) -> tuple[str | None, np.ndarray | None]:
    """The column of the truth and its values, None and None where there is none."""
    named = [n for n in free if n.lower() in LABELS and n != asked]
    if asked != "auto":
        notes += [f"column {n!r} is named as labels are: exclude it if it tells the truth" for n in named]
        if asked == "none":
            return None, None
        _known("label_column", asked, columns)
        return asked, _zero_one(asked, columns[asked], "")
    likely = []
    for name in named:
        if pa.types.is_floating(columns[name].type) and _fractions(numbers(name, columns[name])):
            notes.append(f"column {name!r} is named as labels are but holds fractions: it is not taken as the truth")
        else:
            likely.append(name)
    if len(likely) > 1:
        names = " and ".join(map(repr, likely[:2]))
        raise ValueError(f"columns {names} could both be the truth: name one by label_column, and exclude the other one.")
    if not likely:
        return None, None
    notes.append(f"the truth is column {likely[0]!r}: for comparison alone, nothing is trained on it")
    return likely[0], _zero_one(likely[0], columns[likely[0]], f"; if it is no truth, exclude={likely[0]} or label_column=none")


def _fractions(values: np.ndarray) -> bool:
    return bool((values[np.isfinite(values)] % 1 != 0).any())


def _zero_one(name: str, column: pa.ChunkedArray, hint: str) -> np.ndarray:
    """Labels (n,) of 0 and 1. Raises ``ValueError`` for others."""
    expected = f"expected 0 (normal) or 1 (abnormal) in each row{hint}"
    try:
        values = numbers(name, column)
    except ValueError:
        some = ", ".join(sorted({repr(plain(v, 20)) for v in column.slice(0, 1000).to_pylist()})[:3])
        raise ValueError(f"label column {name!r} holds {some}, {expected}.") from None
    if np.isnan(values).any():
        raise ValueError(f"label column {name!r} is empty in {int(np.isnan(values).sum())} of {len(values)} rows, {expected}.")
    others = np.setdiff1d(values, (0.0, 1.0))
    if len(others):
        raise ValueError(f"label column {name!r} holds {', '.join(f'{v:g}' for v in others[:3])}, {expected}.")
    return values.astype(np.int64)


def _as_fitted(path: Path, fitted_columns: list[str], left: list[str], named: bool, notes: list[str]) -> list[str]:
    """Which columns of a table are those that a detector was fitted to."""
    if not named:
        if len(left) != len(fitted_columns):
            raise ValueError(
                f"{str(path)!r} has {len(left)} columns, the detector was fitted to {len(fitted_columns)}: "
                f"{listed(fitted_columns)}."
            )
        notes.append("the file names no columns: they are taken in the order of the detector's")
        return left
    gone = [name for name in fitted_columns if name not in left]
    if gone:
        raise ValueError(
            f"{str(path)!r} lacks column {gone[0]!r}{_others(gone)}: the detector was fitted to {listed(fitted_columns)}."
        )
    if extra := [name for name in left if name not in fitted_columns]:
        notes.append(f"left out, since the detector does not know them: {listed(extra)}")
    return fitted_columns


def _tell(rows: np.ndarray, names: Sequence[str], notes: list[str]) -> None:
    """Notes what of the rows is worth a look: missing cells, and a column that only counts."""
    missing = np.isnan(rows)
    if missing.any():
        notes.append(f"missing cells: {int(missing.sum())}, in {int(missing.any(1).sum())} of {len(rows)} rows")
    for name, column in zip(names, rows.T):
        if len(column) > 9 and (np.diff(column) == 1).all():
            notes.append(f"column {name!r} only counts the rows: if it is an id, give id_column={name}")
