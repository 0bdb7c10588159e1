"""The columns of a `datasets` data set: found by feature or name, read as arrays, checked in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

logger = logging.get_logger(__name__)

IMAGE_NAMES = ("pixel_values", "image", "images", "img", "pixels", "x")
LABEL_NAMES = ("label", "labels")
#: What a column of labels is called in files, the likeliest first.
USUAL_LABELS = (*LABEL_NAMES, "fine_label", "target", "class", "y")


def check_dataset(dataset: Any) -> None:
    """Raises ``ValueError`` for anything but a `datasets.Dataset` with rows.

    Args:
        dataset: A `datasets.Dataset`.
    """
    if isinstance(dataset, dict):
        raise ValueError(f"dataset is a {type(dataset).__name__} with splits {list(dataset)}: pass one split, dataset['train'].")
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"dataset is {type(dataset).__module__}.{type(dataset).__name__}, expected a datasets.Dataset: "
            "load it with load_dataset(..., streaming=False) or build it with Dataset.from_dict."
        )
    if len(dataset) == 0:
        raise ValueError("dataset has 0 rows: pass a data set with samples in it.")


def is_pixels(feature: Any) -> bool:
    """Returns whether a feature holds images as numbers: 2-D or 3-D.

    Args:
        feature: Of the data set.
    """
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return True
    depth = 0
    while isinstance(feature, datasets.List) or (isinstance(feature, list) and len(feature) == 1):
        feature, depth = (feature[0] if isinstance(feature, list) else feature.feature), depth + 1
    return depth in (2, 3) and isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float"))


def is_numeric(feature: Any) -> bool:
    """Returns whether a feature holds one number or a list of numbers a row (no class labels).

    Args:
        feature: Of the data set.
    """
    if isinstance(feature, datasets.List) or (isinstance(feature, list) and len(feature) == 1):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float"))


def image_column(dataset: datasets.Dataset, name: str | None = None) -> str:
    """Returns the column that holds the images: the named one, else the only Image feature, else the only pixel column.

    Of several candidates one with a usual name (pixel_values, image, ...) wins.

    Args:
        dataset: A `datasets.Dataset`.
        name: Of the column; None: to be found.


    Raises:
        ValueError: Listing the columns, when there is none or no single one, or when the named one holds no images.
    """
    features = dataset.features
    images = [c for c, f in features.items() if isinstance(f, datasets.Image)]
    pixels = [c for c, f in features.items() if is_pixels(f)]
    if name is not None:
        if name not in features:
            raise ValueError(f"image_column={name!r} is not in the data set: choose one of {list(features)}.")
        if name not in images + pixels:
            raise ValueError(f"image_column={name!r} is {features[name]}, expected Image or 2-D or 3-D pixels: cast it first.")
        return name
    candidates = images or pixels
    if len(candidates) > 1:
        candidates = [c for c in candidates if c in IMAGE_NAMES]
    if len(candidates) != 1:
        raise ValueError(f"image_column was not found: candidates {images + pixels} of columns {list(features)}; set image_column.")
    return candidates[0]


def no_label_column(name: str | None, columns: Sequence[str]) -> str:
    """Returns the message about a label column that is not there, or not named and not to be guessed.

    Args:
        name: That was given; None for none.
        columns: Of the data set.
    """
    found = (
        "label_column is not given, and no single column is called label or labels"
        if name is None
        else f"label_column={name!r} was not found"
    )
    return f"{found}: set label_column to one of the columns {list(columns)}."


def label_column(dataset: Any, name: str | None = None) -> str:
    """Returns the column that holds the class labels: the named one, else 'label' or 'labels'.

    Args:
        dataset: A `datasets.Dataset`.
        name: Of the column; None: to be found.


    Raises:
        ValueError: Listing the columns, when it is missing or not unique.
    """
    columns = list(dataset.column_names)
    candidates = [name] if name is not None else [c for c in LABEL_NAMES if c in columns]
    if len(candidates) != 1 or candidates[0] not in columns:
        raise ValueError(no_label_column(name, columns))
    return candidates[0]


def source_row(dataset: Any, row: int) -> int:
    """Returns the row of the table that a data set was selected from, which is what its user knows; else the row itself.

    Args:
        dataset: A data set.
        row: Of the data set.
    """
    selected = dataset._indices if isinstance(dataset, datasets.Dataset) else None
    return int(row) if selected is None else int(selected.column(0)[int(row)].as_py())


def source_rows(dataset: Any) -> np.ndarray | None:
    """Returns the rows of the table that a data set was selected from, (N,); None where it is a table itself.

    Args:
        dataset: A data set.
    """
    selected = dataset._indices if isinstance(dataset, datasets.Dataset) else None
    return None if selected is None else selected.column(0).to_numpy().astype(np.int64)


def arrow_column(dataset: datasets.Dataset, name: str) -> Any:
    """Returns a column as one arrow array, in the data set's order, whatever its format is; the other columns are not touched.

    Of a million shuffled rows it takes a hundredth of a second, where reading them through the data set takes a minute.

    Args:
        dataset: A `datasets.Dataset`.
        name: Of the column.
    """
    column = dataset.data.column(name).combine_chunks()
    if dataset._indices is not None:
        column = column.take(dataset._indices.column(0).combine_chunks())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def read_column(dataset: datasets.Dataset, name: str) -> np.ndarray:
    """Returns a column of numbers as an array (N,), in the data set's order, whatever the data set's format is.

    Args:
        dataset: A `datasets.Dataset`.
        name: Of the column.


    Raises:
        ValueError: For missing values.
    """
    column = arrow_column(dataset, name)
    if column.null_count:
        row = next(i for i, v in enumerate(column.to_pylist()) if v is None)
        raise ValueError(f"'{name}' is None in row {row}: fill it in or filter these rows out.")
    return column.to_numpy(zero_copy_only=False)


def read_vectors(dataset: datasets.Dataset, name: str, where: str = "", option: str = "features") -> np.ndarray:
    """Returns a column of lists of numbers, such as embeddings, as an array (N, D).

    Args:
        dataset: A `datasets.Dataset`.
        name: Of the column.
        where: What begins a message, as ``split 'test': ``.
        option: What the name was given as, for messages.

    Raises:
        ValueError: For a column that is missing or holds something else, and naming the row, for lists of different lengths and
            missing values.
    """
    what = f"{where}{option}={name!r}"
    if name not in dataset.column_names:
        raise ValueError(f"{what} is not in the data set: choose one of {dataset.column_names}.")
    column = arrow_column(dataset, name)
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise ValueError(f"{what} is {dataset.features[name]}, expected a list of numbers in each row: name another.")
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise ValueError(f"{what} is missing in row {row}: leave such rows out.")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    if (odd := np.flatnonzero(lengths != lengths[0])).size:
        row = int(odd[0])
        raise ValueError(f"{what} holds {lengths[row]} numbers in row {row} and {lengths[0]} in row 0: give each row as many.")
    flat = column.flatten()
    if not lengths[0] or flat.null_count:
        raise ValueError(f"{what} holds empty lists or missing numbers: leave such rows out.")
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)


def read_labels(dataset: datasets.Dataset, name: str, num_classes: int | None = None) -> tuple[np.ndarray, int]:
    """Returns the labels (N,) as int64 and the number of classes C: ``num_classes``, the ClassLabel's, or the largest label + 1.

    The last is a guess. It is said where numbers below the largest are missing, and refused where most of them are.

    Args:
        dataset: A `datasets.Dataset`.
        name: Of the column.
        num_classes: Number of classes C; None: found in the data.


    Raises:
        ValueError: For strings, other non-integers, labels outside [0, C), and numbers that hardly can be all of 0 to C - 1.
    """
    feature = dataset.features[name]
    dtype = getattr(feature, "dtype", None)
    if dtype in ("string", "large_string"):
        raise ValueError(f"'{name}' holds strings, expected integers: encode them with dataset.class_encode_column('{name}').")
    if not isinstance(feature, datasets.ClassLabel | datasets.Value) or not str(dtype).startswith(("int", "uint")):
        raise ValueError(f"'{name}' is {feature}, expected one integer class label a row: cast it with dataset.cast_column.")
    labels = read_column(dataset, name).astype(np.int64)
    classes = num_classes or (feature.num_classes if isinstance(feature, datasets.ClassLabel) else _counted(labels, name))
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        row = int(outside[0])
        raise ValueError(
            f"'{name}' is {labels[row]} in row {row} ({outside.size} such rows), expected [0, {classes}): "
            f"filter these rows out, or correct the labels{' or num_classes' if num_classes else ''}."
        )
    return labels, classes


def _counted(labels: np.ndarray, name: str) -> int:
    """The largest label + 1, where the labels look like 0, 1, 2, ..."""
    found = np.unique(labels)
    classes = int(found[-1]) + 1
    if classes > 2 * len(found):
        some = ", ".join(map(str, found[:5].tolist())) + (", ..." if len(found) > 5 else "")
        raise ValueError(
            f"'{name}' holds {len(found)} numbers up to {found[-1]} ({some}) and names no classes, so their number is unknown: "
            f"number them with dataset.class_encode_column('{name}'), or, if there are {classes}, "
            f"dataset.cast_column('{name}', datasets.ClassLabel(num_classes={classes}))."
        )
    if found[0] >= 0 and classes > len(found):
        missing = ", ".join(map(str, np.setdiff1d(np.arange(classes), found)[:5].tolist()))
        logger.warning(
            f"'{name}' names no classes and has no row of {missing}: {classes} classes are counted; "
            f"number them with dataset.class_encode_column('{name}'), if there are not so many."
        )
    return classes
