"""Tables on disk as a data set: parquet, CSV and JSON files, one alone or a folder of them, each split by its files' names."""

from __future__ import annotations

import csv
import glob
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import pyarrow.parquet as pq
from transformers.utils import logging

from .splits import TRAIN

logger = logging.get_logger(__name__)

#: The endings of tables, and the reader of `datasets` for each; in a folder the first that is there is read.
READERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
#: Names of splits to test on, in the order that they are preferred.
TEST_NAMES = ("test", "validation", "valid", "val", "dev", "eval")
#: Files beside tables that are none.
_NO_TABLES = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json")


def is_table(path: str) -> bool:
    """Returns whether a file's name is that of a table.

    Args:
        path: Of the file, which need not exist.
    """
    return _ending(path) in READERS


def load_table(name: str, path: str) -> datasets.DatasetDict:
    """Returns a file's rows as the split train.

    Args:
        name: As it was given, for messages.
        path: Of a parquet, CSV or JSON file.

    Raises:
        ValueError: In one line, for what cannot be read.
    """
    return datasets.DatasetDict({TRAIN: _one_split(name, TRAIN, [path])})


def load_tables(name: str, path: str, endings: Sequence[str] = tuple(READERS)) -> datasets.DatasetDict | None:
    """Returns the splits of a folder of tables, None where it has none.

    A file belongs to the split that its path names (test, validation, dev, ...), else to train.

    Args:
        name: As it was given, for messages.
        path: Of the folder.
        endings: Of the files to read, of which the first that is there is taken.

    Raises:
        ValueError: In one line, for splits in files of several kinds, for no file to train on, and for what cannot be read.
    """
    found = sorted(f for f in glob.glob(os.path.join(path, "**", "*"), recursive=True) if is_table(f) and os.path.isfile(f))
    tables = [file for file in found if os.path.basename(file) not in _NO_TABLES]
    ending = next((ending for ending in endings if any(_ending(file) == ending for file in tables)), None)
    if ending is None:
        return None
    read = [file for file in tables if _ending(file) == ending]
    other = next((file for file in tables if file not in read and _split_of(path, file, (TRAIN, *TEST_NAMES))), None)
    if other is not None:
        one, two = (os.path.relpath(file, path) for file in (read[0], other))
        raise ValueError(f"dataset={name!r} holds {one!r} and {two!r}: give all splits as files of one kind, or name one file.")
    splits: dict[str, list[str]] = {}
    for file in read:
        splits.setdefault(_split_of(path, file, TEST_NAMES) or TRAIN, []).append(file)
    if TRAIN not in splits:
        raise ValueError(f"dataset={name!r} has only {', '.join(splits)} {ending[1:]} files: add train{ending}.")
    return datasets.DatasetDict({split: _one_split(name, split, files) for split, files in splits.items()})


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _split_of(folder: str, file: str, names: Sequence[str]) -> str | None:
    """The split that a file's path below the folder names."""
    words = re.split(r"[^a-z]+", os.path.relpath(file, folder).lower())
    return next((split for split in names if split in words), None)


def _one_split(name: str, split: str, files: list[str]) -> datasets.Dataset:
    """The rows of files of one kind; each split on its own, since loaded together all take the class names of the first."""
    reader = READERS[_ending(files[0])]
    if reader == "parquet":
        _check_class_names(name, files)
    more = _csv_settings(name, files) if reader == "csv" else {}
    with _one_line(name, files):
        data = datasets.load_dataset(reader, data_files={split: files}, **more)[split]
    if reader == "json" and len(data) == 1 and all(isinstance(feature, datasets.List) for feature in data.features.values()):
        raise ValueError(
            f"dataset={name!r}: {os.path.basename(files[0])} holds lists under {', '.join(map(repr, data.column_names))}, expected "
            "one object a row: write a list of objects, or one object a line."
        )
    return data


def _check_class_names(name: str, files: Sequence[str]) -> None:
    """Raises ``ValueError`` for parquet files of one split that number the same classes differently."""
    with _one_line(name, files):
        columns = {file: datasets.Features.from_arrow_schema(pq.read_schema(file)) for file in files}
    for file, features in columns.items():
        for column, feature in features.items():
            first = columns[files[0]].get(column)
            if isinstance(feature, datasets.ClassLabel) and isinstance(first, datasets.ClassLabel) and feature.names != first.names:
                raise ValueError(
                    f"dataset={name!r}: {os.path.basename(files[0])} and {os.path.basename(file)} number the classes of {column!r} "
                    "differently: write them anew with one list of names, or each as a split of its own."
                )


@contextmanager
def _one_line(name: str, files: Sequence[str]) -> Iterator[None]:
    """Turns what a reader complains about into one line, and keeps its own log quiet."""
    log = datasets.utils.logging
    before = log.get_verbosity()
    log.set_verbosity(log.CRITICAL)
    try:
        yield
    except (datasets.exceptions.DatasetGenerationError, StopIteration, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200] or "nothing in it"
        what = os.path.basename(files[0]) if len(files) == 1 else f"{len(files)} files of one split, which need the same columns,"
        raise ValueError(f"dataset={name!r}: {what} cannot be loaded ({reason}): mend it.") from error
    finally:
        log.set_verbosity(before)


def _csv_settings(name: str, files: Sequence[str]) -> dict[str, Any]:
    """How CSV files are read: by which separator; a cell is missing only where it is empty, and none becomes a row's name."""
    found = {_check_csv(name, file) for file in files}
    if len(found) > 1:
        raise ValueError(f"dataset={name!r} has CSV files with different separators ({found}): write them with one.")
    return {"sep": found.pop(), "index_col": False, "keep_default_na": False, "na_values": [""]}


def _check_csv(name: str, file: str) -> str:
    """Returns the separator of a CSV file. Raises ``ValueError`` for what would shift or swallow cells without a word."""
    where = f"dataset={name!r}: {os.path.basename(file)}"
    separator = "\t" if _ending(file) == ".tsv" else ","
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            header = lines.readline()
            other = next((mark for mark in ("\t", ";", ",") if mark in header), separator)
            if separator not in header and other != separator:
                logger.warning(
                    f"{where} has no {separator!r} in its first line, which names the columns: {other!r} separates cells."
                )
                separator = other
            lines.seek(0)
            rows = csv.reader(lines, delimiter=separator, strict=True)
            names = next(rows, [])
            if twice := [column for i, column in enumerate(names) if column in names[:i]]:
                raise ValueError(f"{where} has the column {twice[0]!r} twice: rename one.")
            empty = True
            for row in rows:
                if row and len(row) != len(names):
                    raise ValueError(
                        f"{where} has {len(row)} cells in line {rows.line_num} and {len(names)} in the first ({', '.join(names)}): "
                        "put quotes around a text that holds the separator or a quote."
                    )
                swallowed = next((cell for cell in row if "\t" == separator and "\n" in cell and "\t" in cell), None)
                if swallowed is not None:
                    raise ValueError(
                        f"{where} has a quote that is closed only {swallowed.count(chr(10))} lines later, in line {rows.line_num}: "
                        "double the quotes within texts, or write CSV."
                    )
                empty = empty and not row
            if empty:
                raise ValueError(f"{where} has no rows below its first line: give a table with the names of its columns first.")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is no UTF-8 (byte {error.object[error.start]:#x}): save it as UTF-8.") from None
    except csv.Error as error:
        raise ValueError(f"{where} cannot be read in line {rows.line_num} ({error}): mend the quotes there.") from None
    finally:
        csv.field_size_limit(limit)
    return separator
