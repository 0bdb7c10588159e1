"""The gate that every split of a data set passes before a command or a Trainer uses it: one numbering of classes for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from transformers.utils import logging

from .class_names import (
    FLAGS,
    NAMES,
    NUMBERS,
    TEXT,
    Labels,
    class_numbers,
    in_order,
    is_number,
    listed,
    read_label_values,
    without_unlabelled_marks,
)  # fmt: skip
from .mapping import ATTACK_TARGET, CLEAN_LABEL, with_column

logger = logging.get_logger(__name__)

TRAIN, TEST, TRIGGERED = "train", "test", "test_triggered"
LABEL = "label"


def gate(
    splits: Mapping[str, datasets.Dataset],
    *,
    names: Sequence[str] | None = None,
    source: str = "the model",
    required: bool = True,
    others: Sequence[str] = (),
) -> datasets.DatasetDict:
    """Returns the splits with one numbering of the classes: the column label is the same ClassLabel in all of them.

    The names are those of the training split's ClassLabel; where it has none, its strings or numbers become names, in their order.
    A split that has the names in another order is renumbered by name, and so are its other columns of class labels: clean_label,
    attack_target, and ``others``. What a user might not expect is said in one line.

    Args:
        splits: with columns image and label; one of them is called train.
        names: of a model's classes, by number: the splits are numbered as the model numbers them. None: by the training split.
        source: where ``names`` come from, for messages.
        required: whether the data set may have no other classes than ``names``; else they count only where it has the same.
        others: more columns of class labels.

    Raises:
        ValueError: in one line that names split and row: for labels that are missing, no classes, or of an unknown class.
    """
    keys = [
        (split, name)
        for split, data in splits.items()
        for name in dict.fromkeys([LABEL, CLEAN_LABEL, ATTACK_TARGET, *others])
        if name in data.column_names or name == LABEL
    ]
    read = without_unlabelled_marks([read_label_values(splits[s], name, f"split '{s}': '{name}'") for s, name in keys])
    columns = dict(zip(keys, read))
    for (_, name), labels in columns.items():
        if name == LABEL:
            labels.check_complete()
    bare = _name_the_numbers(columns)
    own, origin = _names(columns)
    if names is None or (set(own) != set(names) and (not required or _are_places(own, names, source))):
        names, source = own, origin
        if bare:
            _tell_numbers(names)
    numbers = {key: class_numbers(labels, names, source, by_name=bare) for key, labels in columns.items()}
    _tell_orders(columns, names, source)
    _tell_untrained(numbers, names)
    feature = datasets.ClassLabel(names=list(names))
    out = dict(splits)
    for (split, name), values in numbers.items():
        out[split] = with_class_numbers(out[split], name, values, feature)
    return datasets.DatasetDict(out)


def align_labels(
    data: datasets.Dataset, names: Sequence[str], source: str = "the model", column: str = LABEL, where: str = ""
) -> datasets.Dataset:
    """Returns one split with its labels numbered as in ``names``, by name; the split itself where they are already.

    Args:
        data: a split.
        names: of the classes, by number.
        source: where they come from, for messages.
        column: of the labels.
        where: what the split is, for messages; default the column.

    Raises:
        ValueError: naming the row, for a class that is not among them.
    """
    labels = read_label_values(data, column, where)
    if labels.kind == NUMBERS:
        labels = without_unlabelled_marks([labels])[0]
    return with_class_numbers(data, column, class_numbers(labels, names, source), datasets.ClassLabel(names=list(names)))


def with_class_numbers(data: datasets.Dataset, column: str, numbers: np.ndarray, feature: datasets.ClassLabel) -> datasets.Dataset:
    """Returns the data set with class numbers (N,) in a column, -1 for none; the data set itself where they are there already.

    Args:
        data: the data set; images are not read.
        column: an existing column.
        numbers: class numbers, -1 where a row has no label.
        feature: names the classes.
    """
    if data.features[column] == feature:
        old = read_label_values(data, column).codes
        if np.array_equal(old, numbers):
            return data
    return with_column(data, column, pa.array(numbers, type=pa.int64(), mask=numbers < 0), feature)


def _name_the_numbers(columns: dict[tuple[str, str], Labels]) -> bool:
    """Gives numbers the names of the ClassLabel that they were written by, in place; returns whether there is none.

    That is the label column's own in the same split, else the training split's, else the first one.
    """
    named = {split: labels for (split, name), labels in columns.items() if name == LABEL and labels.kind == NAMES}
    if not named:
        return all(labels.kind in (NUMBERS, FLAGS) for (_, name), labels in columns.items() if name == LABEL)
    for (split, name), labels in columns.items():
        if labels.kind not in (NUMBERS, FLAGS) or not labels.labelled:
            continue
        by = named.get(split) or named.get(TRAIN) or next(iter(named.values()))
        numbers = class_numbers(labels, by.values, by.where)
        columns[split, name] = replace(labels, kind=NAMES, values=by.values, codes=numbers)
        if split == TRAIN and name == LABEL:
            logger.warning(f"{labels.where} holds numbers without names: those of {by.where} are taken ({listed(by.values)}).")
    return False


def _names(columns: Mapping[tuple[str, str], Labels]) -> tuple[list[str], str]:
    """The class names of a data set, and where they come from: the training split's, else all values of its columns."""
    train = columns[TRAIN, LABEL]
    if train.kind == NAMES:
        return list(train.values), train.where
    kinds = {labels.kind for labels in columns.values() if labels.labelled}
    some = {labels.kind: labels for labels in columns.values() if labels.labelled}
    flags = kinds == {FLAGS}
    found = [
        str(labels.values[i]) if flags or labels.kind in (NAMES, TEXT) else str(int(labels.values[i]))
        for labels in columns.values()
        for i in labels.used
    ]
    if (NUMBERS in kinds or FLAGS in kinds) and not flags and not all(map(is_number, found)):
        words, numbers = some.get(TEXT) or some[NAMES], some.get(NUMBERS) or some[FLAGS]
        raise ValueError(
            f"{words.where} holds names ({listed(words.values)}), {numbers.where} numbers ({listed(numbers.values)}): give both "
            "the same, names or numbers."
        )
    names = in_order(found)
    if len(names) == len(train.codes) > 100:
        raise ValueError(
            f"{train.where} has another value in each of {len(names)} rows, an id or a number to predict and no class: set "
            "label_column."
        )
    return names, "the data set"


def _are_places(own: Sequence[str], names: Sequence[str], source: str) -> bool:
    """Whether a model's classes have their numbers for names, and the data set as many words."""
    numbered = list(names) == [str(i) for i in range(len(names))]
    if not numbered or len(own) != len(names) or any(map(is_number, own)):
        return False
    logger.warning(f"{source} has no names for its classes, the data set has ({listed(own)}): they are taken in this order.")
    return True


def _tell_numbers(names: Sequence[str]) -> None:
    if list(names) != [str(i) for i in range(len(names))] and all(map(is_number, names)):
        logger.warning(
            f"the labels are {len(names)} numbers that are not 0 to {len(names) - 1} ({listed(names)}): the classes are numbered "
            f"0 to {len(names) - 1} in this order, and keep these values as their names."
        )


def _tell_orders(columns: Mapping[tuple[str, str], Labels], names: Sequence[str], source: str) -> None:
    """Says which label columns name their classes in another order, and which names differ by case or spaces alone."""
    for (_, name), labels in columns.items():
        if name == LABEL and labels.kind == NAMES and list(labels.values) != list(names):
            moved = [value for value, number in zip(labels.values, names) if value != number]
            if set(labels.values) & set(names) and [n for n in labels.values if n in set(names)] != list(names):
                logger.warning(
                    f"{labels.where} numbers its classes in another way than {source} ({listed(moved, 3)} ...): its labels are "
                    "matched by name."
                )
    alike: dict[str, str] = {}
    for name in names:
        first = alike.setdefault(" ".join(name.casefold().split()), name)
        if first != name:
            logger.warning(f"the classes {first!r} and {name!r} differ by case or spaces alone: mend the names if they are one.")


def _tell_untrained(numbers: Mapping[tuple[str, str], np.ndarray], names: Sequence[str]) -> None:
    """Says which classes the other splits have and the training split has not."""
    trained = set(np.unique(numbers[TRAIN, LABEL]).tolist())
    for (split, name), values in numbers.items():
        new = sorted(set(np.unique(values).tolist()) - trained)
        if name == LABEL and split != TRAIN and new:
            rows = int(np.isin(values, new).sum())
            logger.warning(
                f"split '{split}' has {rows} rows of classes without a training row ({listed([names[i] for i in new])}): they "
                "count as wrong, as nothing can learn them."
            )


def labelled_splits(splits: Mapping[str, datasets.Dataset], candidates: Iterable[str], column: str) -> tuple[list[str], list[str]]:
    """Returns which of the candidates have labels, and which have none: no such column, or -1 or nothing in every row.

    Args:
        splits: of a data set, by name; one of them is called train.
        candidates: names of splits, in the order that they are preferred.
        column: of the labels.
    """
    labelled: list[str] = []
    bare: list[str] = []
    for name in candidates:
        data: Any = splits.get(name)
        if data is None:
            continue
        if column not in data.column_names:
            bare.append(name)
            continue
        read = [read_label_values(splits[s], column, f"split '{s}': '{column}'") for s in (TRAIN, name)]
        (labelled if without_unlabelled_marks(read)[1].labelled else bare).append(name)
    return labelled, bare
