"""What a ledger belongs to: its run, the fingerprint of its data set, the names of its classes, the method that made it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from ..data.columns import arrow_column
from ..data.fingerprint import fingerprint
from ..methods.recipe import Recipe
from ..problems import Problem
from . import parts as ledger_parts
from .ledger import SampleLedger

#: Rows whose content is looked at, spread evenly.
SAMPLES = 64
#: Columns that tell of a corruption, not of the sample: the same data set is the same with and without them.
NOT_CONTENT = ("is_corrupted", "clean_label", "is_poisoned", "attack_target", "is_cover")


def label_column(data: Any, label_names: Sequence[str]) -> str | None:
    """Returns the column of the given labels: the first of the label names, labels and label; None without one."""
    columns = data.column_names if isinstance(data, datasets.Dataset) else ()
    return next((n for n in (*label_names, "labels", "label") if n in columns), None)


def content_columns(data: Any) -> list[str] | None:
    """Returns the columns whose content counts for `data_fingerprint`, in order; None for what is no `datasets.Dataset`.

    Args:
        data: the data set.
    """
    return [n for n in sorted(data.column_names) if n not in NOT_CONTENT] if isinstance(data, datasets.Dataset) else None


def data_fingerprint(data: Any, label: str | None) -> str:
    """Returns 16 hexadecimal digits: of the number of rows, all labels, and the content of 64 rows.

    Formats and transforms do not count, nor do the columns that tell of a corruption. Of a data set that is no `datasets.Dataset`,
    whose rows may be drawn anew each time, only the number of rows counts. Image files are known by their bytes, or by their names
    where the bytes are not in the data set.

    Args:
        data: the data set.
        label: the column of its labels, None where there is none.
    """
    content: list[Any] = [len(data)]
    if isinstance(data, datasets.Dataset) and len(data):
        if label is not None and label in data.column_names:
            content.append(_content(arrow_column(data, label)))
        rows = np.unique(np.linspace(0, len(data) - 1, SAMPLES).astype(int))
        kept = content_columns(data) or []
        table: Any = data.select_columns(kept).with_format("arrow").select(rows)[:] if kept else None
        for key in kept:
            content += [key, _content(table.column(key))]
    return fingerprint(content)


def _content(column: Any) -> bytes:
    """The bytes of an arrow column's values, however it is cut into chunks."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = values.storage if isinstance(values, pa.ExtensionArray) else values
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).tobytes()
    parts = []
    for value in values.to_pylist():
        if isinstance(value, dict) and "bytes" in value:
            value = value["bytes"] if value["bytes"] is not None else os.path.basename(value.get("path") or "")
        parts.append(value if isinstance(value, bytes) else repr(value).encode())
    return b"\0".join(parts)


def new_run_id() -> str:
    """Returns 12 hexadecimal digits that no other run has: what a run leaves behind carries them, and whoever reads compares."""
    return uuid.uuid4().hex[:12]  # of the operating system's randomness: no seed is touched


def check_same_data(run: Mapping[str, Any], rows: int, fingerprint: str | None) -> None:
    """Refuses data other than those that a ledger was written about.

    Args:
        run: the ledger's facts.
        rows: of the data set at hand.
        fingerprint: of `data_fingerprint`, of the data set at hand; None where only the rows are to be compared.

    Raises:
        ValueError: for another number of rows, other content or another order.
    """
    known = run.get("fingerprint")
    message = f"the ledger was made on another data set ({run.get('rows')} rows, fingerprint {known or 'unknown'}), this one has"
    mend = "give the data set of the run, with the same corruption, seeds and order."
    if run.get("rows") is not None and rows != run["rows"]:
        raise ValueError(f"{message} {rows} rows: {mend}")
    if known and fingerprint and fingerprint != known:
        raise ValueError(f"{message} {rows} rows and fingerprint {fingerprint}: {mend}")


def given_labels(data: Any, label: str | None, classes: int | None = None) -> np.ndarray | None:
    """Returns the labels (N,) as they stand in the data set, int64; None where it does not hold a class number in every row.

    Args:
        data: the data set; transforms do not count.
        label: the column of its labels, None where there is none.
        classes: how many there are, None where unknown; labels beyond them are no class numbers.
    """
    if not isinstance(data, datasets.Dataset) or label is None or label not in data.column_names or not len(data):
        return None
    column = arrow_column(data, label)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) or column.null_count:
        return None
    values = column.to_numpy()
    labels = values.astype(np.int64)
    known = (labels == values).all() and labels.min() >= 0 and (not classes or labels.max() < classes)
    return labels if known else None


def class_names(data: Any, label_names: Sequence[str], config: Any, classes: int | None) -> list[str]:
    """Returns the names of the classes, by the label column's feature, else by the config, else their numbers; [] if unknown."""
    feature = data.features.get(label_column(data, label_names)) if isinstance(data, datasets.Dataset) else None
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        return list(feature.names)
    named = getattr(config, "id2label", None) or {}
    if classes and len(named) == classes and not all(str(v) == f"LABEL_{k}" for k, v in named.items()):
        return [str(named[k]) for k in sorted(named)]
    return [str(i) for i in range(classes or 0)]


def new_ledger(trainer: Any, recipe: Recipe, problem: Problem, classes: int | None, size: int, config: Any) -> SampleLedger:
    """The ledger of a run that starts, with the truth where the data set tells it.

    Raises ``ValueError`` for an ``is_corrupted`` column without booleans, and for predictions of what are no classes.
    """
    args, data = trainer.args, trainer.train_dataset
    batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    steps_per_epoch = size / max(batch, 1)  # a batch of 0 is the data loader's to refuse
    epochs = max(args.num_train_epochs, args.max_steps / steps_per_epoch)
    predictions = getattr(args, "ledger_predictions", False)
    if predictions and (not problem.one_class or not classes):
        raise ValueError(
            f"ledger_predictions=True is for class labels, not problem_type='{problem}' with {classes or 'unknown'} classes: "
            "leave it out, or give the model a config with num_labels."
        )
    label = label_column(data, trainer.label_names)
    run = {
        "id": new_run_id(), "method": recipe.name, "settings": recipe.in_force, "problem": problem.name,
        "names": class_names(data, trainer.label_names, config, classes) if problem.one_class else [],
        "rows": size, "fingerprint": data_fingerprint(data, label), "label_column": label, "seed": args.seed,
        "columns": content_columns(data),
    }  # fmt: skip
    wide = SampleLedger.needs_wide(classes if problem.one_class else 1, epochs)
    kept = classes if predictions else None
    accelerator, parts = trainer.accelerator, None
    if accelerator.num_processes > 1 and size >= ledger_parts.PARTS_FROM:
        total = partial(accelerator.reduce, reduction="sum")
        parts = ledger_parts.Parts(size, accelerator.num_processes, accelerator.process_index, accelerator.gather, total)
    ledger = SampleLedger(
        size, args.device, wide=wide, classes=kept, networks=recipe.num_networks, judged=recipe.evidence is not None, run=run,
        parts=parts,
    )  # fmt: skip
    if problem.one_class and recipe.class_floor > 0 and recipe.selection is not None:
        labels = given_labels(data, label, classes)
        ledger.given = None if labels is None else torch.from_numpy(labels)
    if isinstance(data, datasets.Dataset) and "is_corrupted" in data.column_names:
        truth = arrow_column(data, "is_corrupted").to_numpy(zero_copy_only=False)
        if truth.dtype != bool and not (np.issubdtype(truth.dtype, np.integer) and set(np.unique(truth)) <= {0, 1}):
            raise ValueError(f"'is_corrupted' is {truth.dtype}, expected booleans: cast or drop the column.")
        ledger.truth = torch.from_numpy(truth.astype(bool)).to(args.device)
    return ledger
