"""Where data comes from: a hub name, a folder of images, parquet files, a `save_to_disk` folder, or the built-in digits."""

from __future__ import annotations

import copy
import functools
import glob
import os
import re
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits
from transformers.utils import logging

from .columns import image_column as find_image_column
from .columns import no_label_column
from .image_folder import load_image_folder
from .readable import check_readable
from .splits import TEST, TRAIN, TRIGGERED, gate, labelled_splits

logger = logging.get_logger(__name__)

_TEST_NAMES = ("test", "validation", "valid", "val", "eval")
_LABEL_NAMES = ("label", "labels", "fine_label", "target", "class", "y")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_data(
    name: str,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    test_split: str | None = None,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    source: str = "the model",
    names_required: bool = True,
    others: Sequence[str] = (),
) -> datasets.DatasetDict:
    """Returns a data set with splits 'train' and 'test' (and 'test_triggered' where saved), columns 'image' and 'label'.

    All splits pass `splits.gate`: they number their classes alike; and `check_readable`: their images can be used.

    Args:
        name: 'digits' (scikit-learn's 1797 real handwritten digits, no network), a folder made by ``save_to_disk``, a parquet file
            or a folder of them (train*.parquet, test*.parquet), a folder of images (one subfolder per class, with train/ and test/
            above where they are split), or a hub name. Without a test split every fifth sample, chosen by ``seed``, becomes one.
        config: Configuration of a hub data set.
        image_column: Default: the only Image column.
        label_column: Default: label, labels, fine_label, target, class or y.
        test_split: Name of the split to test on; default: test, else validation (the first that has labels), else a fifth of
            train.
        max_train_samples: Keep so many, chosen by ``seed``.
        max_test_samples: Keep so many, chosen by ``seed``.
        seed: Of the choice.
        names: Of a model's classes, by number: the labels are numbered as the model numbers them.
        source: Where these names come from, for messages.
        names_required: Whether the data may have no other classes; else the names count only where it has the same.
        others: More columns of class labels, to be numbered along.

    Raises:
        ValueError: For a name that leads nowhere, for missing or unusable columns, and naming row and file, for unusable images.
    """
    for field, value in (("max_train_samples", max_train_samples), ("max_test_samples", max_test_samples)):
        if value is not None and value < 1:
            raise ValueError(f"{field}={value} must be at least 1: raise it, or leave it out to take every sample.")
    loaded = digits() if name == "digits" else _load(name, config)
    data = gate(
        _splits(loaded, name, test_split, image_column, label_column), names=names, source=source, required=names_required,
        others=others,
    )  # fmt: skip
    whole = TEST not in data  # rows of both parts are named as in the one table
    if whole:
        data = _hold_out(data, name, seed)
    for key, limit in ((TRAIN, max_train_samples), (TEST, max_test_samples), (TRIGGERED, max_test_samples)):
        if limit is not None and key in data and limit < len(data[key]):
            data[key] = data[key].select(kept_rows(len(data[key]), limit, seed)[0])
    first = loaded if isinstance(loaded, datasets.Dataset) else next(iter(loaded.values()))
    column = find_image_column(first, image_column)  # as its user knows it
    for key, split in data.items():
        check_readable(split, "image", "" if whole and key in (TRAIN, TEST) else f"split '{key}': ", column)
    return data


def load_images(name: str, *, image_column: str | None = None) -> datasets.Dataset:
    """Returns the images of a data set's training split, or of its only one: one column, image. Labels are not read.

    Args:
        name: As for `load_data`.
        image_column: Default: the only Image column.

    Raises:
        ValueError: For a name that leads nowhere, and without images.
    """
    data = _training_split(digits() if name == "digits" else _load(name, None, labelled=False), name)[TRAIN]
    image = _checked_image_column(data, image_column)
    data = data.with_format(None).select_columns(image)
    return data if image == "image" else data.rename_column(image, "image")


def kept_rows(count: int, limit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of ``count`` rows max_train_samples or max_test_samples keeps, and which it leaves out, each in order.

    Args:
        count: Number of rows.
        limit: Rows to keep.
        seed: Of the choice.
    """
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[:limit]), np.sort(order[limit:])


def digits() -> datasets.DatasetDict:
    """Returns scikit-learn's handwritten digits (UCI): grey 8x8 PIL images; 1400 to train and 397 to test, a fixed random split."""
    return datasets.DatasetDict({name: copy.copy(split) for name, split in _digits().items()})  # what is set on one is its own


@functools.cache
def _digits() -> datasets.DatasetDict:
    bunch = load_digits()
    levels = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(i) for i in range(10)])})
    order = np.random.default_rng(0).permutation(len(levels))

    def part(rows: np.ndarray) -> datasets.Dataset:
        images = [Image.fromarray(levels[i]) for i in rows]
        return datasets.Dataset.from_dict({"image": images, "label": bunch.target[rows].tolist()}, features=features)

    return datasets.DatasetDict({TRAIN: part(order[:1400]), TEST: part(order[1400:])})


def label_names(data: datasets.Dataset) -> list[str]:
    """Returns the class names of the 'label' column, in the order of the class numbers.

    Args:
        data: With a ClassLabel column label.
    """
    return list(data.features["label"].names)


def _load(name: str, config: str | None, labelled: bool = True) -> Any:
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        if not path.endswith(".parquet"):
            raise ValueError(f"dataset={name!r} is a file but not .parquet: give a parquet file, a folder, a hub name or 'digits'.")
        return datasets.load_dataset("parquet", data_files={TRAIN: path})
    if os.path.isdir(path):
        return _load_folder(name, path, labelled)
    if name.startswith((".", "/", "~")) or name.endswith(".parquet") or not _HUB_NAME.fullmatch(name):
        raise ValueError(f"dataset={name!r} does not exist: give a folder, a parquet file, a hub name or 'digits'.")
    try:
        return datasets.load_dataset(name, config)
    except Exception as error:  # the hub client raises a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"dataset={name!r} is no local folder and could not be loaded from the hub: check the name and the network, "
            f"or use 'digits' ({type(error).__name__}: {reason})."
        ) from error


def _load_folder(name: str, path: str, labelled: bool) -> Any:
    if any(os.path.isfile(os.path.join(path, mark)) for mark in ("dataset_dict.json", "state.json")):
        return datasets.load_from_disk(path)
    tables = sorted(glob.glob(os.path.join(path, "**", "*.parquet"), recursive=True))
    if tables:
        try:
            return datasets.DatasetDict({split: _one_split(name, split, files) for split, files in _by_split(path, tables).items()})
        except datasets.exceptions.DatasetGenerationError as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise ValueError(
                f"dataset={name!r} has parquet files that cannot be loaded together ({reason}): give all the same columns."
            ) from error
    if (images := load_image_folder(name, path, labelled)) is not None:
        return images
    raise ValueError(
        f"dataset={name!r} holds neither images, nor parquet files, nor a save_to_disk data set: give one subfolder of images "
        "per class, or train.parquet and test.parquet."
    )


def _one_split(name: str, split: str, files: list[str]) -> datasets.Dataset:
    """The rows of parquet files; each split on its own, since loaded together all take the class names of the first."""
    columns = {file: datasets.Features.from_arrow_schema(pq.read_schema(file)) for file in files}
    for file, features in columns.items():
        for column, feature in features.items():
            first = columns[files[0]].get(column)
            if isinstance(feature, datasets.ClassLabel) and isinstance(first, datasets.ClassLabel) and feature.names != first.names:
                raise ValueError(
                    f"dataset={name!r}: {os.path.basename(files[0])} and {os.path.basename(file)} number the classes of {column!r} "
                    "differently: write them anew with one list of names, or each as a split of its own."
                )
    return datasets.load_dataset("parquet", data_files={split: files})[split]


def _by_split(folder: str, tables: Sequence[str]) -> dict[str, list[str]]:
    """Parquet files by the split that their path names; those that name none are for training."""
    files: dict[str, list[str]] = {}
    for table in tables:
        words = re.split(r"[^a-z]+", os.path.relpath(table, folder).lower())
        split = next((n for n in _TEST_NAMES if n in words), TRAIN)
        files.setdefault(split, []).append(table)
    if TRAIN not in files:
        raise ValueError(f"dataset={folder!r} has only {', '.join(files)} parquet files: add train.parquet.")
    return files


def _splits(
    splits: Any, name: str, test_split: str | None, image_column: str | None, label_column: str | None
) -> dict[str, datasets.Dataset]:
    """The splits train and, where there are any, test and test_triggered, with columns image and label."""
    splits = _training_split(splits, name)
    if test_split is not None and (test_split not in splits or test_split == TRAIN):
        raise ValueError(
            f"test_split={test_split!r} is not among the other splits: choose one of {[s for s in splits if s != TRAIN]}."
        )
    for key in splits:
        if len(splits[key]) == 0 and key in (TRAIN, TRIGGERED, test_split, *_TEST_NAMES):
            raise ValueError(f"split '{key}' of dataset={name!r} has 0 rows: put samples in it.")
    image = find_image_column(splits[TRAIN], image_column)
    label = _label_column(splits[TRAIN], label_column)
    test = _labelled_test(splits, name, test_split, label)
    parts = {TRAIN: splits[TRAIN], **({} if test is None else {TEST: splits[test]})}
    if TRIGGERED in splits:
        parts[TRIGGERED] = splits[TRIGGERED]
    return {key: _columns(split, image if image in split.column_names else None, label) for key, split in parts.items()}


def _training_split(splits: Any, name: str) -> datasets.DatasetDict:
    """The splits, with one to train on: where there is a single one, that."""
    if isinstance(splits, datasets.Dataset):
        return datasets.DatasetDict({TRAIN: splits})
    if TRAIN in splits:
        return splits
    if len(splits) != 1:
        raise ValueError(f"dataset={name!r} has splits {list(splits)} but no 'train': rename the one to train on.")
    return datasets.DatasetDict({TRAIN: next(iter(splits.values()))})


def _hold_out(data: datasets.DatasetDict, name: str, seed: int) -> datasets.DatasetDict:
    """Every fifth training sample, chosen by the seed, as test split."""
    train = data[TRAIN]
    if len(train) < 10:
        raise ValueError(f"dataset={name!r} has {len(train)} rows and no test split: add a test split.")
    order = np.random.default_rng(seed).permutation(len(train))
    cut = len(order) // 5
    rest, test = np.sort(order[cut:]), np.sort(order[:cut])
    logger.warning(
        f"dataset={name!r} has no test split with labels: {len(test)} of {len(train)} rows, drawn by split_seed, are tested on and "
        "not trained on."
    )
    return datasets.DatasetDict({**data, TRAIN: train.select(rest), TEST: train.select(test)})


def _labelled_test(splits: Any, name: str, asked: str | None, label: str) -> str | None:
    """The split to test on: the one asked for, else the first of the usual names that has labels; None: a fifth of train."""
    labelled, bare = labelled_splits(splits, [asked] if asked is not None else _TEST_NAMES, label)
    if asked is not None and bare:
        others = labelled_splits(splits, [s for s in splits if s not in (TRAIN, TRIGGERED)], label)[0]
        raise ValueError(
            f"test_split={asked!r} of dataset={name!r} has no labels in column {label!r} (-1, or none): choose "
            f"{' or '.join(map(repr, others)) or 'none, and a fifth of train is taken'}."
        )
    test = labelled[0] if labelled else None
    if bare and test is not None and _TEST_NAMES.index(bare[0]) < _TEST_NAMES.index(test):
        logger.warning(f"split '{bare[0]}' of dataset={name!r} has no labels in column {label!r}: '{test}' is tested on instead.")
    return test


def _label_column(data: datasets.Dataset, label: str | None) -> str:
    """The column of the labels: the one named, else the first usual name."""
    usual = [n for n in _LABEL_NAMES if n in data.column_names]
    if label is None and len(usual) > 1:
        logger.warning(f"the labels are read from column {usual[0]!r}: for {' or '.join(map(repr, usual[1:]))} give label_column.")
    label = label or next(iter(usual), None)
    if label not in data.column_names:
        raise ValueError(no_label_column(label, data.column_names))
    return str(label)


def _checked_image_column(data: datasets.Dataset, image: str | None) -> str:
    image = find_image_column(data, image)
    if not isinstance(data.features[image], datasets.Image):
        raise ValueError(f"image_column={image!r} is {data.features[image]}, expected an Image column: cast_column it first.")
    return image


def _columns(data: datasets.Dataset, image: str | None, label: str) -> datasets.Dataset:
    """The columns by the names 'image' and 'label', which the rest of the package relies on."""
    image = _checked_image_column(data, image)
    for old, new in ((image, "image"), (label, "label")):
        if old != new:
            data = (data.remove_columns(new) if new in data.column_names else data).rename_column(old, new)
    return data.with_format(None)
