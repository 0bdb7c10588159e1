"""The labels of a batch and of a whole column, checked before a step uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..problems import SINGLE_LABEL, Problem
from .class_names import names_of
from .columns import USUAL_LABELS, arrow_column


def rows_by_class(labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """Returns the positions of each class's samples, ascending, C arrays, without a pass over all samples for each class.

    Args:
        labels: the classes (N,); those beyond [0, C) belong to none.
        classes: C.
    """
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(classes + 1)))[1:-1]


def check_labels(
    batch: Mapping[str, Any],
    names: Sequence[str],
    classes: int | None,
    index: Sequence[int],
    example: Any = None,
    problem: Problem = SINGLE_LABEL,
) -> None:
    """Raises a one-line ``ValueError`` where the batch's labels are missing, of the wrong kind or out of range.

    Args:
        batch: What the collator made.
        names: Names that the labels may have.
        classes: Number of classes, None where unknown.
        index: Row numbers of the batch.
        example: One example, for the message.
        problem: What a sample is.
    """
    name = next((n for n in names if n in batch), None)
    if name is None:
        text = next((n for n in names if isinstance(example, Mapping) and isinstance(example.get(n), str)), None)
        if text is not None:
            raise ValueError(
                f"'{text}' holds strings (row {index[0]}: {example[text]!r}), expected class numbers: "
                f"use dataset.class_encode_column('{text}')."
            )
        raise ValueError(
            f"no labels in the batch: expected one of {list(names)}, got {list(batch)}; rename the label column or set label_names."
        )
    problem.check_labels(name, batch[name], classes, index)


def check_label_column(
    data: datasets.Dataset,
    role: str,
    label_names: Sequence[str],
    classes: int | None,
    problem: Problem,
    made: Callable[[int], Mapping[str, Any] | None],
    names: Sequence[str] | None = None,
    columns_removed: bool = False,
) -> None:
    """Checks the label column of a training or evaluation set before the first step, without reading its inputs.

    Where the column does not fit, the row in question is made into a batch: what a transform or a collator mends is no mistake.

    Args:
        data: the data set.
        role: what it is to the Trainer, as messages begin; that of the training set is train_dataset.
        label_names: the Trainer's names of labels.
        classes: the model's number of classes, None where unknown.
        problem: what kind of problem the samples pose.
        made: the batch that the collator makes of one row, None where it cannot.
        names: of the model's classes, by number, or of the training set's; None where unknown.
        columns_removed: whether the Trainer removes the columns that the model does not take.

    Raises:
        ValueError: for a column that is missing, holds strings, names more classes than the model has, names them in another
            order, or holds a label that is none; the row is named.
    """
    if not problem.labelled:
        return
    training = role == "train_dataset"
    name = next((n for n in (*label_names, "label", "label_ids") if n in data.column_names), None)
    if name is None:
        if columns_removed and training:
            likely = next((n for n in USUAL_LABELS if n in data.column_names), None)
            encode = f"dataset.class_encode_column('{likely}'), then " if likely is not None and _is_string(data, likely) else ""
            mend = "name it one of these" if likely is None else f"{encode}dataset.rename_column('{likely}', 'label')"
            raise ValueError(
                f"{role} has no label column: expected one of {[*label_names, 'label']}, got {data.column_names}: {mend}."
            )
        return
    prefix = "" if training else f"{role}: "
    feature, keys = data.features[name], [name, *label_names, "labels", "label"]
    if data.format["type"] != "custom":  # else a transform makes the labels
        if _is_string(data, name):
            raise ValueError(f"{prefix}'{name}' holds strings, expected class numbers: use dataset.class_encode_column('{name}').")
        named = getattr(feature, "num_classes", None) if problem.one_class else None
        if named is not None and classes is not None and named > classes and (training or _beyond(data, name, classes)):
            raise ValueError(f"{prefix}'{name}' has {named} classes but the model {classes}: pass num_labels={named} to the model.")

    def labels_of(row: int) -> Any:
        batch = made(row) or {}
        return next((batch[key] for key in keys if key in batch), None)

    if (empty := _missing(data, name)) is not None:
        labels = labels_of(empty)
        if labels is None or not _passes(problem, name, labels, classes, [empty]):
            row = f"training row {empty}" if training else f"row {empty}"
            raise ValueError(f"{prefix}'{name}' is None in {row}: repair or remove the row.")
    values = _tensor(data, name)
    if values is None:
        return
    if isinstance(feature, datasets.ClassLabel) and problem.one_class and names is not None:
        _check_order(values, feature.names or [], names, f"{prefix}'{name}'", labels_of)
    wrong = _first_wrong(problem, name, values, classes)
    labels = None if wrong is None else labels_of(wrong)
    if wrong is None or labels is None:
        return
    try:
        problem.check_labels(name, labels, classes, [wrong])
    except ValueError as error:
        if training:
            raise
        raise ValueError(prefix + str(error).replace("training row", "row")) from error


def _is_string(data: datasets.Dataset, name: str) -> bool:
    return getattr(data.features[name], "dtype", None) in ("string", "large_string")


def check_model_names(data: Any, model: Any, label_names: Sequence[str], where: str = "dataset") -> None:
    """Raises ``ValueError`` where a label column and a model's config name the same classes by other numbers.

    What is no `datasets.Dataset`, a column without names and a model that has none pass; so does what a transform renumbers.

    Args:
        data: what the model is to be evaluated on.
        model: whose config may name its classes.
        label_names: names that the column may have.
        where: what the data set is, as the message begins.
    """
    column = next((n for n in label_names if n in data.column_names), None) if isinstance(data, datasets.Dataset) else None
    names = names_of(getattr(model.peers[0] if hasattr(model, "peers") else model, "config", None))
    feature = data.features[column] if column is not None else None
    if names is None or not isinstance(feature, datasets.ClassLabel) or (values := _tensor(data, str(column))) is None:
        return

    def labels_of(row: int) -> Any:
        example = data[row]
        value = next((example[key] for key in (column, *label_names) if key in example), None)
        return None if value is None else torch.as_tensor(value)

    _check_order(values, feature.names or [], names, f"{where}: '{column}'", labels_of)


def _missing(data: datasets.Dataset, name: str) -> int | None:
    """The first row without a value in a column, None where every row has one."""
    column = arrow_column(data, name)
    return pc.index(column.is_null(), True).as_py() if column.null_count else None


def _tensor(data: datasets.Dataset, name: str) -> Tensor | None:
    """A column of numbers, or of lists of one length, as (N,) or (N, K); None for anything else, a missing value included."""
    column, shape = arrow_column(data, name), [len(data)]
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        flat = column.flatten()
        width, rest = divmod(len(flat), max(len(column), 1))
        if column.null_count or rest or (pc.list_value_length(column).unique().to_pylist() != [width]):
            return None
        column, shape = flat, [*shape, width]
    number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
    if not number or column.null_count:
        return None
    array = column.to_numpy(zero_copy_only=False)
    array = array.astype(np.int64) if array.dtype.kind == "u" else array.copy()  # arrow's memory is read-only
    return torch.from_numpy(array).reshape(shape)


def _beyond(data: datasets.Dataset, name: str, classes: int) -> bool:
    """Whether a row has a class that a model of so many has not: names alone are no matter."""
    values = _tensor(data, name)
    return values is None or bool((values >= classes).any())


def _first_wrong(problem: Problem, name: str, values: Tensor, classes: int | None) -> int | None:
    """The first row whose labels the problem refuses, found by halving: a check speaks of rows, whatever the problem is."""
    start, end = 0, len(values)
    if _passes(problem, name, values, classes, range(end)):
        return None
    while end - start > 1:
        middle = (start + end) // 2
        good = _passes(problem, name, values[start:middle], classes, range(start, middle))
        start, end = (middle, end) if good else (start, middle)
    return start


def _passes(problem: Problem, name: str, labels: Any, classes: int | None, rows: Sequence[int]) -> bool:
    try:
        problem.check_labels(name, labels, classes, rows)
    except ValueError:
        return False
    return True


def _check_order(values: Tensor, own: Sequence[str], names: Sequence[str], what: str, labels_of: Callable[[int], Any]) -> None:
    """Raises ``ValueError`` where a class that some row has stands at another number among the model's names."""
    alike = all(len({_plain(name) for name in some}) == len(some) for some in (own, names))
    key = _plain if alike else str  # classes cat and Cat are told apart by nothing else
    place = {key(name): i for i, name in enumerate(names)}
    moved = [i for i, name in enumerate(own) if place.get(key(name), i) != i]
    rows = torch.isin(values, torch.tensor(moved, dtype=values.dtype)).nonzero().flatten()
    if not len(rows):
        return
    row = int(rows[0])
    number, labels = int(values[row]), labels_of(row)
    if not isinstance(labels, Tensor) or labels.numel() != 1 or int(labels) != number:
        return  # a transform or the collator gives it another number
    other = place[key(own[number])]
    raise ValueError(
        f"{what} numbers class {own[number]!r} as {number} (row {row}), the model or train_dataset as {other}: "
        "number them alike with dataset.align_labels_with_mapping(label2id, column), or pass the column's names to the model as "
        "id2label; where a map has renumbered the column, and left its old names, cast_column it to Value('int64')."
    )


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())
