"""Where data comes from: a hub name, a folder of images, files of tables, a `save_to_disk` folder, or the built-in digits."""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from transformers.utils import logging

from ..reporting.run_folders import why_no_data
from .audio import audio_column as find_audio_column
from .audio import audio_columns, check_sounds
from .columns import IMAGE_NAMES, USUAL_LABELS, is_pixels, no_label_column
from .columns import image_column as find_image_column
from .image_folder import AUDIO_ENDINGS, ENDINGS, load_audio_folder, load_image_folder
from .readable import check_readable
from .splits import TEST, TRAIN, TRIGGERED, gate, labelled_splits
from .tables import TEST_NAMES, is_table, load_table, load_tables
from .texts import check_texts, text_columns
from .texts import text_column as find_text_column

logger = logging.get_logger(__name__)

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_data(
    name: str,
    *,
    config: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    audio_column: str | None = None,
    label_column: str | None = None,
    test_split: str | None = None,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    source: str = "the model",
    names_required: bool = True,
    others: Sequence[str] = (),
    hold_out: bool | None = True,
    inputs: bool = True,
) -> datasets.DatasetDict:
    """Returns a data set with splits 'train' and 'test' (and 'test_triggered' where saved).

    Its columns are 'image', 'audio' or 'text', and 'label'.

    All splits pass `splits.gate`: they number their classes alike; and `check_readable`, `check_sounds` or `check_texts`: their
    images, sounds or texts can be used. A data set with an Image column is one of images, unless another column is named, one with
    a column of sounds is one of sounds; else it is one of texts.

    Args:
        name: 'digits' (scikit-learn's 1797 real handwritten digits, no network), a folder made by ``save_to_disk``, a parquet, CSV
            or JSON file or a folder of them (train*.csv, test*.csv), a folder of images (one subfolder per class, with train/ and
            test/ above where they are split), or a hub name. Without a test split every fifth sample, chosen by ``seed``, becomes
            one.
        config: Configuration of a hub data set.
        image_column: Default: the only Image column.
        text_column: Default: text, sentence, content, review, ..., or the only column of strings beside the labels.
        audio_column: Default: the only column of sounds (Audio, arrays with a sampling_rate, or lists of floats by a usual name).
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
        hold_out: Without a test split a fifth of train becomes one; False: all rows are both, for a model that saw none of them;
            None: there is no test split then.
        inputs: Whether rows have to have an image, a sound or a text.

    Raises:
        ValueError: For a name that leads nowhere, for missing or unusable columns, and naming row and file, for unusable images or
            missing texts.
    """
    for field, value in (("max_train_samples", max_train_samples), ("max_test_samples", max_test_samples)):
        if value is not None and value < 1:
            raise ValueError(f"{field}={value} must be at least 1: raise it, or leave it out to take every sample.")
    loaded = digits() if name == "digits" else _load(name, config)
    columns = {"image": image_column, "text": text_column, "audio": audio_column}
    parts = _splits(loaded, name, test_split, columns, label_column, inputs)
    data = gate(parts, names=names, source=source, required=names_required, others=others)
    whole = TEST not in data  # rows of both parts are named as in the one table
    if whole and hold_out:
        data = _hold_out(data, name, seed)
    elif whole and hold_out is not None:
        data[TEST] = data[TRAIN]
        logger.warning(f"dataset={name!r} has no test split: all its {len(data[TEST])} rows are tested; give none of the training.")
    for key, limit in ((TRAIN, max_train_samples), (TEST, max_test_samples), (TRIGGERED, max_test_samples)):
        if limit is not None and key in data and limit < len(data[key]):
            data[key] = data[key].select(kept_rows(len(data[key]), limit, seed)[0])
    first = loaded if isinstance(loaded, datasets.Dataset) else next(iter(loaded.values()))
    kind, column = _input_column(first, columns, label_column, needed=inputs)  # as its user knows it
    for key, split in data.items():
        where = "" if whole and key in (TRAIN, TEST) else f"split '{key}': "
        if kind == "text":
            check_texts(split, where, column)
        elif kind == "audio":
            check_sounds(split, where, column)
        elif kind == "image":
            check_readable(split, "image", where, column)
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


def holds_data(path: str) -> bool:
    """Returns whether a path is a table, or a folder with images or tables that is of no run and of no audit; nothing is read.

    Args:
        path: Of a file or a folder.
    """
    if not os.path.isdir(path):
        return os.path.isfile(path) and is_table(path)
    if why_no_data(path):
        return False
    files = (os.path.join(where, name) for where, _, names in os.walk(path) for name in names)
    return any(is_table(file) and not file.endswith(".json") or file.lower().endswith((*ENDINGS, *AUDIO_ENDINGS)) for file in files)


def _load(name: str, config: str | None, labelled: bool = True) -> Any:
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        if not is_table(path):
            raise ValueError(
                f"dataset={name!r} is a file but no table: give a .parquet, .csv, .tsv, .jsonl or .json file, a folder, a hub name "
                "or 'digits'."
            )
        return load_table(name, path)
    if os.path.isdir(path):
        return _load_folder(name, path, labelled)
    if name.startswith((".", "/", "~")) or is_table(name) or not _HUB_NAME.fullmatch(name):
        raise ValueError(f"dataset={name!r} does not exist: give a folder, a file of a table, a hub name or 'digits'.")
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
    if told := why_no_data(name):
        raise ValueError(told)
    if (tables := load_tables(name, path, (".parquet",))) is not None:
        return tables
    if (images := load_image_folder(name, path, labelled)) is not None:
        return images  # a table beside images tells of them
    if (sounds := load_audio_folder(name, path)) is not None:
        return sounds
    if (tables := load_tables(name, path)) is not None:
        return tables
    raise ValueError(
        f"dataset={name!r} holds neither images, nor parquet, CSV or JSON files, nor a save_to_disk data set: give one subfolder "
        "of images per class, or files such as train.csv and test.csv."
    )


def _splits(
    splits: Any,
    name: str,
    test_split: str | None,
    columns: dict[str, str | None],
    label_column: str | None,
    inputs: bool,
) -> dict[str, datasets.Dataset]:
    """The splits train and, where there are any, test and test_triggered, with columns image, audio or text, and label."""
    splits = _training_split(splits, name)
    if test_split is not None and (test_split not in splits or test_split == TRAIN):
        raise ValueError(
            f"test_split={test_split!r} is not among the other splits: choose one of {[s for s in splits if s != TRAIN]}."
        )
    for key in splits:
        if len(splits[key]) == 0 and key in (TRAIN, TRIGGERED, test_split, *TEST_NAMES):
            raise ValueError(f"split '{key}' of dataset={name!r} has 0 rows: put samples in it.")
    label = _label_column(splits[TRAIN], label_column)
    kind, column = _input_column(splits[TRAIN], columns, label, tell=True, needed=inputs)
    test = _labelled_test(splits, name, test_split, label)
    parts = {TRAIN: splits[TRAIN], **({} if test is None else {TEST: splits[test]})}
    if TRIGGERED in splits:
        parts[TRIGGERED] = splits[TRIGGERED]
    if not kind:
        return {key: _renamed(split, label, "label", "label") for key, split in parts.items()}
    if kind == "audio":
        return {key: _renamed(split, find_audio_column(split, column), "audio", label) for key, split in parts.items()}
    if kind == "text":
        return {key: _text_columns(split, key, find_text_column(split, column, label), label) for key, split in parts.items()}
    return {key: _columns(split, column if column in split.column_names else None, label) for key, split in parts.items()}


def _input_column(
    data: datasets.Dataset, columns: dict[str, str | None], label: str | None, tell: bool = False, needed: bool = True
) -> tuple[str, str]:
    """What the inputs are, image, audio or text, and their column: where none is named Image wins, then sounds; '' for none."""
    given = [f"{kind}_column={name!r}" for kind, name in columns.items() if name is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} are both given: leave one of them out.")
    image, text, audio = columns["image"], columns["text"], columns["audio"]
    label = label or next((n for n in USUAL_LABELS if n in data.column_names), None)
    features = data.features.items()
    images = any(isinstance(feature, datasets.Image) or (is_pixels(feature) and name in IMAGE_NAMES) for name, feature in features)
    if audio is not None or (image is None and text is None and not images and audio_columns(data)):
        return "audio", find_audio_column(data, audio)
    if text is not None or (image is None and not images and text_columns(data, label)):
        return "text", find_text_column(data, text, label, tell)
    if image is None and not images and not needed:
        return "", ""
    if image is None and not images and not any(map(is_pixels, data.features.values())):
        kinds = ", ".join(f"{name!r} ({getattr(feature, 'dtype', None) or 'nested'})" for name, feature in features)
        raise ValueError(
            f"no column of images, texts or sounds was found among {kinds}: set image_column, text_column or audio_column; images "
            "are read from a folder, not by the names of their files in a table."
        )
    return "image", find_image_column(data, image)


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
        "not trained on, with their labels as they are."
    )
    return datasets.DatasetDict({**data, TRAIN: train.select(rest), TEST: train.select(test)})


def _labelled_test(splits: Any, name: str, asked: str | None, label: str) -> str | None:
    """The split to test on: the one asked for, else the first of the usual names that has labels; None: a fifth of train."""
    labelled, bare = labelled_splits(splits, [asked] if asked is not None else TEST_NAMES, label)
    if asked is not None and bare:
        others = labelled_splits(splits, [s for s in splits if s not in (TRAIN, TRIGGERED)], label)[0]
        raise ValueError(
            f"test_split={asked!r} of dataset={name!r} has no labels in column {label!r} (-1, or none): choose "
            f"{' or '.join(map(repr, others)) or 'none, and a fifth of train is taken'}."
        )
    test = labelled[0] if labelled else None
    if bare and test is not None and TEST_NAMES.index(bare[0]) < TEST_NAMES.index(test):
        logger.warning(f"split '{bare[0]}' of dataset={name!r} has no labels in column {label!r}: '{test}' is tested on instead.")
    return test


def _label_column(data: datasets.Dataset, label: str | None) -> str:
    """The column of the labels: the one named, else the first usual name."""
    usual = [n for n in USUAL_LABELS if n in data.column_names]
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
    return _renamed(data, _checked_image_column(data, image), "image", label)


def _text_columns(data: datasets.Dataset, split: str, text: str, label: str) -> datasets.Dataset:
    """The columns by the names 'text' and 'label'; images beside texts are left out, which is said once."""
    images = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    if images and split == TRAIN:
        logger.warning(f"the texts of column {text!r} are read, and the images of {' and '.join(map(repr, images))} are not.")
    for old, new in ((text, "text"), (label, "label")):
        if old != new and new in data.column_names and split == TRAIN:
            logger.warning(f"column {new!r} is left out, since {old!r} is read in its place.")
    return _renamed(data.remove_columns(images), text, "text", label)


def _renamed(data: datasets.Dataset, column: str, name: str, label: str) -> datasets.Dataset:
    wanted = {column: name, label: "label"}
    data = data.remove_columns([new for new in wanted.values() if new in data.column_names and new not in wanted])
    moved = {old: new for old, new in wanted.items() if old != new}
    return (data.rename_columns(moved) if moved else data).with_format(None)  # at once: one may have the other's name
