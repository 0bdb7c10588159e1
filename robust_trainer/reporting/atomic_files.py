"""Files that are written whole or not at all: made beside their place, then moved there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

#: Key of a parquet file's metadata that holds the facts of the run.
RUN_KEY = b"robust_trainer"
#: Rows that are written at a time.
ROWS = 10_000


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to; what was written there takes the place of ``path`` at the end, and nothing does after an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    os.close(handle)
    new = Path(name)
    try:
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        new.chmod(0o666 & ~mask)  # a temporary file is its owner's alone
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Writes a UTF-8 file and returns its path."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")
    return Path(path)


def write_parquet(data: datasets.Dataset, path: str | Path, run: Mapping[str, Any] | None = None) -> Path:
    """Writes a data set as one parquet file, files of images included, and returns its path. run: for the file's metadata."""
    import pyarrow.parquet as pq
    from datasets.table import embed_table_storage

    plain = data.with_format("arrow")
    metadata = {**(data.features.arrow_schema.metadata or {}), **({RUN_KEY: json.dumps(run, default=str)} if run else {})}
    schema = data.features.arrow_schema.with_metadata(metadata)
    with replacing(path) as new, pq.ParquetWriter(new, schema) as writer:
        for start in range(0, len(data), ROWS):
            part = plain[start : start + ROWS]
            writer.write_table(embed_table_storage(part).cast(schema))
    return Path(path)


def read_run(path: str | Path) -> dict[str, Any]:
    """The facts of the run that `write_parquet` was given, empty where it was given none."""
    import pyarrow.parquet as pq

    found = (pq.read_schema(path).metadata or {}).get(RUN_KEY)
    return json.loads(found) if found else {}


def remove_unfinished(folder: str | Path) -> None:
    """Removes what a killed run left half-written in a folder."""
    for path in Path(folder).glob(".*.unfinished"):
        path.unlink(missing_ok=True)
