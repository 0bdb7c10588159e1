"""The labels of a batch, checked before a step uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from ..problems import SINGLE_LABEL, Problem


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
    data: datasets.Dataset, label_names: Sequence[str], classes: int | None, columns_removed: bool, problem: Problem
) -> None:
    """Checks the label column of a data set before the first step.

    Args:
        data: the training set.
        label_names: the Trainer's names of labels.
        classes: the model's number of classes, None where unknown.
        columns_removed: whether the Trainer removes the columns that the model does not take.
        problem: what kind of problem the samples pose.

    Raises:
        ValueError: for a column that is missing, holds strings or names more classes than the model has.
    """
    if not problem.labelled:
        return
    name = next((n for n in (*label_names, "label", "label_ids") if n in data.column_names), None)
    if name is None:
        if columns_removed:
            raise ValueError(
                f"train_dataset has no label column: expected one of {[*label_names, 'label']}, got {data.column_names}."
            )
        return
    if data.format["type"] == "custom":
        return  # a transform makes the labels; the collator checks what it made
    feature = data.features[name]
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        raise ValueError(f"'{name}' holds strings, expected class numbers: use dataset.class_encode_column('{name}').")
    named = getattr(feature, "num_classes", None) if problem.one_class else None
    if named is not None and classes is not None and named > classes:
        raise ValueError(f"'{name}' has {named} classes but the model {classes}: pass num_labels={named} to the model.")
