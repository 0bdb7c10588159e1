"""Files of tables for anomaly detection: CSV, parquet and npz as columns, columns as numbers; nothing is unpickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..reporting.safe_text import plain

#: What an empty cell looks like in a column of text.
MISSING = ("", "na", "n/a", "nan", "null", "none")
Columns = dict[str, pa.ChunkedArray]


def read_columns(path: Path, aside: Sequence[str]) -> tuple[Columns, list[str], bool]:
    """A file's columns, which of them can be features, and whether the file names them (an npz does not).

    Args:
        path: A .csv, .tsv, .parquet or .npz file.
        aside: Keys of an npz to read beside X, where it has them.

    Raises:
        ValueError: For a file that holds no table.
    """
    readers: Mapping[str, Callable[[Path], pa.Table]] = {
        ".csv": _csv, ".tsv": _csv, ".parquet": lambda p: pyarrow.parquet.ParquetFile(p).read(),
        ".npz": lambda p: _npz(p, aside),
    }  # fmt: skip
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{str(path)!r} {reason}: give a .csv, .tsv, .parquet or .npz file.")
    if path.suffix.lower() not in readers:
        raise ValueError(f"{str(path)!r} ends with {path.suffix!r}, expected a table: give a .csv, .tsv, .parquet or .npz file.")
    try:
        table = readers[path.suffix.lower()](path)
        names = [name.strip() for name in table.column_names]
    except _Bad as error:
        raise ValueError(f"{str(path)!r} {error}") from error
    except Exception as error:  # arrow's, zip's, zlib's: whatever a damaged file can cause
        raise ValueError(f"{str(path)!r} could not be read ({plain(error, 200)}): mend the file, or save it anew.") from error
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if twice:
        raise ValueError(f"{str(path)!r} has more than one column named {min(twice)!r}: rename them.")
    if not table.num_rows:
        raise ValueError(f"{str(path)!r} has no rows, expected at least two: is it the file that you mean?")
    named = path.suffix.lower() != ".npz"
    inner = [n for n in names if not n.startswith("__index_level_") and (named or n not in aside)]
    return dict(zip(names, table.columns)), inner, named


class _Bad(ValueError):
    """What is wrong with a file, to be said after its name."""


def _csv(path: Path) -> pa.Table:
    with path.open("rb") as file:
        head = file.readline(1 << 20).decode("utf-8-sig", "replace").strip()
    delimiter = max((",", ";", "\t"), key=head.count)
    cells = [cell.strip().strip('"') for cell in head.split(delimiter)]
    counted = cells in ([str(i) for i in range(len(cells))], [str(i + 1) for i in range(len(cells))])  # as pandas names them
    if head and all(map(is_number, cells)) and not counted:
        raise _Bad(f"begins with a line of numbers ({plain(head, 40)!r}), expected the columns' names: write them in a first line.")
    whole = min(max(path.stat().st_size + 1, 1 << 20), (1 << 31) - 1)  # one block: a column's type is told by all of it
    return pyarrow.csv.read_csv(
        path, read_options=pyarrow.csv.ReadOptions(block_size=whole),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
    )  # fmt: skip


def _npz(path: Path, aside: Sequence[str]) -> pa.Table:
    arrays = {}
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise _Bad("is no npz archive: save it by numpy.savez(path, X=rows), with y=labels where known.")
        file.seek(0)
        archive = np.load(file, allow_pickle=False)
        if "X" not in archive.files:
            raise _Bad(f"has no key 'X' but {listed(archive.files) or 'none'}: save the rows by numpy.savez(path, X=rows).")
        for key in ("X", *(k for k in archive.files if k in aside and k != "X")):
            try:
                arrays[key] = archive[key]
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                raise _Bad(f"holds Python objects in {key!r} (a pickle), which are never read: save numbers.") from error
    x = arrays.pop("X")
    if x.ndim != 2 or x.dtype.kind not in "biuf":
        raise _Bad(f"has X of shape {x.shape} and type {x.dtype}, expected rows (n, d) of numbers.")
    for key, array in arrays.items():
        if array.size != len(x) or array.dtype.kind not in "biufU":
            raise _Bad(f"has {key!r} of shape {array.shape} and type {array.dtype}, expected {len(x)} values, one a row of X.")
    inner = {f"x{i}": column for i, column in enumerate(x.T.astype(np.float64))}
    return pa.table({**inner, **{key: array.ravel() for key, array in arrays.items()}})


def is_number(word: str) -> bool:
    """Whether a word reads as a number, NaN and infinity among them.

    Args:
        word: What was written.
    """
    try:
        float(word)
    except ValueError:
        return False
    return True


def numbers(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """A column as float64 (n,).

    Args:
        name: Of the column, for messages.
        column: An arrow column.

    Raises:
        ValueError: For one that does not hold numbers, with the first such value.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if any(test(kind) for test in (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)):
        return column.cast(pa.float64(), safe=False).to_numpy()
    if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise ValueError(f"column {name!r} holds {plain(kind, 40)}, expected numbers: encode it as numbers, or exclude it.")
    values = np.full(len(column), np.nan)
    for row, value in enumerate(column.to_pylist()):
        word = "" if value is None else value.strip()
        if word.lower() in MISSING:
            continue
        if not is_number(word):
            reason = f"column {name!r} holds text ({plain(word, 30)!r} in row {row}), expected numbers"
            raise ValueError(f"{reason}: encode it, exclude it, or leave a cell empty where a value is missing.")
        values[row] = float(word)
    return values


def listed(names: Sequence[str]) -> str:
    """Names in quotes, the first twelve.

    Args:
        names: Names.
    """
    return ", ".join(repr(plain(n, 40)) for n in names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
