"""Files that are written whole or not at all: made beside their place, then moved there."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: What torch says of a disk that takes no more.
DISK_FULL = re.compile(r"PytorchStreamWriter|inline_container|iostream|I/O|No space", re.IGNORECASE)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to; what was written there takes the place of ``path`` at the end, and nothing does after an error.

    Args:
        path: File to write; a link there is replaced, not followed. Its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    os.close(handle)
    new = Path(name)
    try:
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        new.chmod(0o666 & ~mask)  # a temporary file is its owner's alone
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: str | Path, last: str, alone: bool = False) -> Iterator[Path]:
    """A folder to write files to that belong together; at the end each takes its place in ``folder``, and none does after an error.

    ``last``, by which readers know that they are whole, goes first and comes last: stopped in between, there is no such file.

    Args:
        folder: Where the files belong; links there are replaced, not followed. It is made.
        last: Name of one of the files.
        alone: Whether the folder is for these files alone: all others go.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{last}.files.unfinished"
    shutil.rmtree(new, ignore_errors=True)  # of one that was killed
    try:
        yield new
        made = sorted(new.iterdir(), key=lambda path: path.name == last) if new.is_dir() else []
        for path in made:
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        if made:
            (folder / last).unlink(missing_ok=True)
        for path in folder.iterdir() if made and alone else ():
            if path != new:
                _remove(path)
        for path in made:
            place = folder / path.name
            if path.is_dir():
                _remove(place)
            os.replace(path, place)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_text(path: str | Path, text: str) -> Path:
    """Writes a UTF-8 file and returns its path.

    Args:
        path: File to write; a link there is replaced, not followed.
        text: Its content.
    """
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, content: Any) -> Path:
    """Writes ``content`` as readable JSON and returns the path; what JSON does not know is written as its ``str``.

    Args:
        path: File to write; a link there is replaced, not followed.
        content: What JSON can hold.
    """
    return write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def remove_unfinished(folder: str | Path) -> None:
    """Removes what a killed run left half-written in a folder.

    Args:
        folder: A folder on this machine.
    """
    for path in Path(folder).glob(".*.unfinished"):
        _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
