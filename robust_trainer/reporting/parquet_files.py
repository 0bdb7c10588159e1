"""Parquet files that are written whole or not at all, with the facts of the run in their metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.table import embed_table_storage

from .atomic_files import replacing

#: Key of a parquet file's metadata that holds the facts of the run.
RUN_KEY = b"robust_trainer"
#: Rows that are written at a time.
ROWS = 10_000


def write_parquet(data: datasets.Dataset, path: str | Path, run: Mapping[str, Any] | None = None) -> Path:
    """Writes a data set as one parquet file, files of images included, and returns its path. run: for the file's metadata.

    Args:
        data: The data set.
        path: File to write.
        run: Facts for the file's metadata.
    """
    parts = (data.select(range(start, min(start + ROWS, len(data)))) for start in range(0, len(data), ROWS))
    return write_parts(parts, data.features, path, run)


def write_parts(
    parts: Iterable[datasets.Dataset], features: datasets.Features, path: str | Path, run: Mapping[str, Any] | None = None
) -> Path:
    """Writes data sets of the same columns, one after the other, as one parquet file, and returns its path.

    Args:
        parts: The data sets, each made when it is its turn.
        features: Of all of them.
        path: File to write.
        run: Facts for the file's metadata.
    """
    metadata = {**(features.arrow_schema.metadata or {}), **({RUN_KEY: json.dumps(run, default=str)} if run else {})}
    schema = features.arrow_schema.with_metadata(metadata)
    with replacing(path) as new, pq.ParquetWriter(new, schema) as writer:
        for part in parts:
            writer.write_table(embed_table_storage(part.with_format("arrow")[:]).cast(schema))
    return Path(path)
