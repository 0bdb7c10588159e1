"""A folder of images, or of sounds, as a data set: one folder per class, under folders of splits where there are some."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import datasets
from transformers.utils import logging

from .class_names import listed

logger = logging.get_logger(__name__)

#: Words in the names of folders of splits, in any case, and the split that each is.
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
AUDIO_ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
#: Tables that say what the images are, as datasets' imagefolder reads them.
TABLES = tuple(f"metadata.{ending}" for ending in ("csv", "jsonl", "parquet"))


def load_image_folder(name: str, path: str, labelled: bool = True) -> Any:
    """Returns the splits of a folder of images; None where there are no images.

    The class of an image is the folder that it lies in. Folders of splits are those right below ``path`` with such a word in their
    names that hold folders of classes; a class may have any name, ``train`` too. Hidden files and folders are passed over.
    Beside a split to train on, images to test on that lie in no folder of a class, and beside two splits whatever else there is,
    are left out, which is said.

    Args:
        name: As it was given, for messages.
        path: The folder.
        labelled: False: the images without their classes, wherever they lie, one column; those of splits to test on are left out
            where there is one to train on.

    Raises:
        ValueError: In one line, for images that lie in no folder of a class, at different depths, or beside the folders of
            splits, and for two folders of one split.
    """
    files = sorted(_images(path))
    if not files:
        return None
    if not labelled:
        return datasets.DatasetDict({"train": _unlabelled(path, files)})
    folders = {path, *(os.path.join(path, file.parent) for file in files)}
    if any(os.path.isfile(os.path.join(folder, table)) for folder in folders for table in TABLES):
        return datasets.load_dataset("imagefolder", data_dir=path)
    splits = _by_split(name, files)
    names = sorted({file.parts[-2] for own in splits.values() for file in own})
    _check_classes(name, splits["train"] if "train" in splits else files)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    number = {word: i for i, word in enumerate(names)}

    def rows(own: list[PurePath]) -> datasets.Dataset:
        columns = {"image": [os.path.join(path, file) for file in own], "label": [number[file.parts[-2]] for file in own]}
        return datasets.Dataset.from_dict(columns, features=features)

    return datasets.DatasetDict({split: rows(own) for split, own in splits.items()})


def load_audio_folder(name: str, path: str) -> Any:
    """Returns the splits of a folder of sound files, laid out as `load_image_folder` has it; None where there are no sounds.

    Args:
        name: As it was given, for messages.
        path: The folder.

    Raises:
        ValueError: As `load_image_folder`.
    """
    files = sorted(_images(path, AUDIO_ENDINGS))
    if not files:
        return None
    splits = _by_split(name, files, "sounds")
    names = sorted({file.parts[-2] for own in splits.values() for file in own})
    _check_classes(name, splits["train"] if "train" in splits else files, "sounds")
    stored = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # an Audio feature encodes by torchcodec alone
    features = datasets.Features({"audio": stored, "label": datasets.ClassLabel(names=names)})
    number = {word: i for i, word in enumerate(names)}

    def rows(own: list[PurePath]) -> datasets.Dataset:
        cells = [{"bytes": None, "path": os.path.join(path, file)} for file in own]
        columns = {"audio": cells, "label": [number[file.parts[-2]] for file in own]}
        return datasets.Dataset.from_dict(columns, features=features).cast_column("audio", datasets.Audio())

    return datasets.DatasetDict({split: rows(own) for split, own in splits.items()})


def _images(path: str, endings: tuple[str, ...] = ENDINGS) -> Iterator[PurePath]:
    """The image files below a folder, or those of other endings, relative to it; folders that links lead to are read once."""
    seen: set[str] = set()
    for where, folders, files in os.walk(path, followlinks=True):
        folders[:] = [folder for folder in folders if not folder.startswith((".", "__"))]
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for file in files:
            if file.lower().endswith(endings) and not file.startswith("."):
                yield PurePath(os.path.relpath(os.path.join(where, file), path))


def _unlabelled(path: str, files: list[PurePath]) -> datasets.Dataset:
    splits = [_split_of(file.parts[0]) if len(file.parts) > 1 else None for file in files]
    kept = [file for file, split in zip(files, splits) if "train" not in splits or split in (None, "train")]
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": [os.path.join(path, file) for file in kept]}, features=features)


def _check_classes(name: str, files: list[PurePath], what: str = "images") -> None:
    """Refuses one class whose folder lies in several, and says which classes' folders do."""
    places: dict[str, list[PurePath]] = {}
    for folder in dict.fromkeys(file.parent for file in files):
        places.setdefault(folder.name, []).append(folder)
    word, folders = max(places.items(), key=lambda item: len(item[1]))
    if len(folders) == 1:
        return
    if len(places) == 1:
        raise ValueError(
            f"dataset={name!r}: all {what} lie in folders called {word!r}, in {listed([str(f.parent) for f in folders], 3)}, so "
            f"there is one class: put each of the {what} right into its class's folder."
        )
    logger.warning(
        f"dataset={name!r} has several folders of one name, {listed([str(f) for f in folders], 3)}: their {what} are all of class "
        f"{word!r}; if the folder above is the class, put them right into that."
    )


def _by_split(name: str, files: list[PurePath], what: str = "images") -> dict[str, list[PurePath]]:
    """The files of each split; all are for training where no folder of a split holds folders of classes."""
    tops = {file.parts[0]: _split_of(file.parts[0]) for file in files}
    if not any(len(file.parts) > 2 and tops[file.parts[0]] for file in files):
        _check_depth(name, files, 1)
        return {"train": files}
    splits: dict[str, list[PurePath]] = {}
    several = {"train"} < set(tops.values()) - {None}
    for top, split in tops.items():
        own = [file for file in files if file.parts[0] == top]
        bare = split not in (None, "train") and "train" in tops.values() and all(len(file.parts) == 2 for file in own)
        if bare or (split is None and several):
            why = "in no folder of a class" if bare else "beside the folders of splits"
            logger.warning(f"dataset={name!r} has {len(own)} {what} {why} (as {str(own[0])!r}): they are not used.")
            continue
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
