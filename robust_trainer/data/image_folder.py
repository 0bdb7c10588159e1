"""A folder of images as a data set: one folder per class, under folders of splits where there are some."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import datasets

#: Words in the names of folders of splits, in any case, and the split that each is.
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: Tables that say what the images are, as datasets' imagefolder reads them.
TABLES = tuple(f"metadata.{ending}" for ending in ("csv", "jsonl", "parquet"))


def load_image_folder(name: str, path: str) -> Any:
    """Returns the splits of a folder of images; None where there are no images.

    The class of an image is the folder that it lies in. Folders of splits are those right below ``path`` with such a word in their
    names that hold folders of classes; a class may have any name, ``train`` too. Hidden files and folders are passed over.

    Args:
        name: As it was given, for messages.
        path: The folder.

    Raises:
        ValueError: In one line, for images that lie in no folder of a class, at different depths, or beside the folders of
            splits, and for two folders of one split.
    """
    files = sorted(_images(path))
    if not files:
        return None
    folders = {path, *(os.path.join(path, file.parent) for file in files)}
    if any(os.path.isfile(os.path.join(folder, table)) for folder in folders for table in TABLES):
        return datasets.load_dataset("imagefolder", data_dir=path)
    splits = _by_split(name, files)
    names = sorted({file.parts[-2] for own in splits.values() for file in own})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    number = {word: i for i, word in enumerate(names)}

    def rows(own: list[PurePath]) -> datasets.Dataset:
        columns = {"image": [os.path.join(path, file) for file in own], "label": [number[file.parts[-2]] for file in own]}
        return datasets.Dataset.from_dict(columns, features=features)

    return datasets.DatasetDict({split: rows(own) for split, own in splits.items()})


def _images(path: str) -> Iterator[PurePath]:
    """The image files below a folder, relative to it; folders that links lead to are read once."""
    seen: set[str] = set()
    for where, folders, files in os.walk(path, followlinks=True):
        folders[:] = [folder for folder in folders if not folder.startswith((".", "__"))]
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for file in files:
            if file.lower().endswith(ENDINGS) and not file.startswith("."):
                yield PurePath(os.path.relpath(os.path.join(where, file), path))


def _by_split(name: str, files: list[PurePath]) -> dict[str, list[PurePath]]:
    """The files of each split; all are for training where no folder of a split holds folders of classes."""
    tops = {file.parts[0]: _split_of(file.parts[0]) for file in files}
    if not any(len(file.parts) > 2 and tops[file.parts[0]] for file in files):
        _check_depth(name, files, 1)
        return {"train": files}
    splits: dict[str, list[PurePath]] = {}
    for top, split in tops.items():
        own = [file for file in files if file.parts[0] == top]
        if split is None:
            raise ValueError(
                f"dataset={name!r} has {str(own[0])!r} beside folders of splits: put it into one of them, or rename "
                "these if they are none."
            )
        if split in splits:
            other = splits[split][0].parts[0]
            raise ValueError(f"dataset={name!r} has the folders {other!r} and {top!r}, both of split {split!r}: leave one of them.")
        _check_depth(name, own, 2)
        splits[split] = own
    return splits


def _split_of(folder: str) -> str | None:
    """The split that a folder's name has a word for."""
    return next((SPLITS[word] for word in re.split(r"[^a-z]+", folder.lower()) if word in SPLITS), None)


def _check_depth(name: str, files: list[PurePath], least: int) -> None:
    """Raises ``ValueError`` for images in no folder of a class, and for folders of classes at different depths."""
    first = files[0]
    for file in files:
        if len(file.parts) <= least:
            raise ValueError(
                f"dataset={name!r}: {str(file)!r} lies in no folder of a class: give each class a folder of its own, "
                "named after it."
            )
        if len(file.parts) != len(first.parts):
            raise ValueError(
                f"dataset={name!r}: {str(first)!r} and {str(file)!r} lie at different depths, so the class is not known: put "
                "each image right into its class's folder."
            )
