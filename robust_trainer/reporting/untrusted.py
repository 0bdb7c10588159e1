"""Files that nobody vetted: JSON and tables, read with limits on whatever sizes an array; mistakes are told in one line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .parquet_files import RUN_KEY
from .safe_text import plain

#: The most bytes of a JSON file, and the most classes or other numbers that an array's length is made of.
MOST_BYTES, MOST_CLASSES = 2**28, 2**20


def read_json(path: str | Path, mend: str = "train again") -> dict[str, Any]:
    """Returns the mapping that a JSON file holds.

    Args:
        path: File to read.
        mend: What to do where it is damaged, for the message.

    Raises:
        ValueError: For a file that is too large or too deeply nested, for what is no JSON, and for another value than a mapping.
        OSError: Where there is no such file.
    """
    size = os.path.getsize(path)
    if size > MOST_BYTES:
        raise ValueError(f"{str(path)!r} has {size} bytes, at most {MOST_BYTES} are read: {mend}.")
    return json_mapping(Path(path).read_bytes(), path, mend)


def json_mapping(text: bytes | str, path: str | Path, mend: str = "train again") -> dict[str, Any]:
    """Returns the mapping that a JSON text holds.

    Args:
        text: The JSON.
        path: File it was read from, for the message.
        mend: What to do where it is damaged, for the message.

    Raises:
        ValueError: For a text that is too deeply nested, for what is no JSON, and for another value than a mapping.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({plain(error, 150)}): {mend}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} is damaged (a {type(content).__name__} where a mapping was written): {mend}.")
    return content


def load_tensors(path: str | Path, mend: str = "train again") -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file, which is as long as its own header says.

    Args:
        path: File to read.
        mend: What to do where it is damaged, for the message.

    Raises:
        ValueError: For one that is cut off, or no such file.
    """
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({plain(error, 150)}): {mend}.") from error


@dataclass(frozen=True)
class Column:
    """What a column may hold: kind ``integer``, ``number`` (NaN and infinity included), ``boolean`` or ``vector`` of numbers.

    Args:
        kind: One of these.
        low: The least value; of a vector the least length.
        high: The largest value; of a vector the largest length.
        optional: Whether it may be missing.
    """

    kind: str
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False


_KINDS = {
    "integer": pa.types.is_integer, "number": pa.types.is_floating, "boolean": pa.types.is_boolean,
    "vector": lambda t: (pa.types.is_list(t) or pa.types.is_fixed_size_list(t)) and pa.types.is_floating(t.value_type),
}  # fmt: skip


class Table:
    """A parquet file whose facts and kinds are looked at before any of its rows is read.

    Args:
        path: File to read.
        mend: What to do where it is damaged, for the messages.

    Raises:
        ValueError: For what is no parquet file, and for one that claims more rows than it has bytes.
    """

    def __init__(self, path: str | Path, mend: str = "train again"):
        self.path, self.mend = Path(path), mend
        try:
            self._file = pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self.damaged(plain(error, 150)) from error
        self.rows = self._file.metadata.num_rows
        if self.rows > max(self.path.stat().st_size, 0):
            raise self.damaged(f"{self.rows} rows in {self.path.stat().st_size} bytes")

    def damaged(self, reason: str) -> ValueError:
        """Returns the error that says so.

        Args:
            reason: What was found.
        """
        return ValueError(f"{str(self.path)!r} is damaged ({reason}): {self.mend}.")

    def facts(self, key: bytes = RUN_KEY) -> dict[str, Any]:
        """Returns the mapping in the file's metadata, empty where there is none.

        Args:
            key: Of the metadata.

        Raises:
            ValueError: For what is no JSON of a mapping.
        """
        content = (self._file.schema_arrow.metadata or {}).get(key)
        return json_mapping(content, self.path, self.mend) if content else {}

    def columns(self, wanted: Mapping[str, Column]) -> dict[str, np.ndarray]:
        """Returns the columns (N,), a vector's (N, length); those that are not wanted are not read.

        Args:
            wanted: Name -> what it may hold.

        Raises:
            ValueError: For a missing column, another kind, a null, a value or a length out of range.
        """
        schema = self._file.schema_arrow
        missing = [name for name, column in wanted.items() if name not in schema.names and not column.optional]
        if missing:
            raise ValueError(
                f"{str(self.path)!r} has no column {', '.join(missing)}: it was made by an earlier version; {self.mend}."
            )
        there = [name for name in wanted if name in schema.names]
        for name in there:
            if schema.names.count(name) > 1 or not _KINDS[wanted[name].kind](schema.field(name).type):
                raise self.damaged(f"column {name} holds {schema.field(name).type}, expected one of {wanted[name].kind} values")
        try:
            table = self._file.read(columns=there)
            return {name: self._values(name, table.column(name), wanted[name]) for name in there}
        except (pa.ArrowException, OSError) as error:
            raise self.damaged(plain(error, 150)) from error

    def _values(self, name: str, column: pa.ChunkedArray, wanted: Column) -> np.ndarray:
        if column.null_count:
            raise self.damaged(f"column {name} has {column.null_count} empty values")
        array = column.combine_chunks()
        if wanted.kind == "vector":
            flat = array.flatten().to_numpy(zero_copy_only=False)
            lengths = pa.compute.list_value_length(array).to_numpy(zero_copy_only=False)
            if len(array) and not wanted.low <= lengths.min() == lengths.max() <= wanted.high:
                raise self.damaged(f"column {name} has {lengths.min()} to {lengths.max()} values in a row")
            return flat.reshape(len(array), -1)
        values = array.to_numpy(zero_copy_only=False)
        inside = (values >= wanted.low) & (values <= wanted.high)
        limited = wanted.kind != "boolean" and math.isfinite(wanted.low)  # without limits a number may be NaN
        wrong = np.flatnonzero(~inside) if limited else np.zeros(0, dtype=np.int64)
        if len(wrong):
            row = int(wrong[0])
            raise self.damaged(f"row {row} has {name}={values[row]}, expected {wanted.low:g} to {wanted.high:g}")
        return values
