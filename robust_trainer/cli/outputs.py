"""Where a command writes: found out before the work, and never over what an earlier one left unless that is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..config import check_writable

#: What tells a folder that holds a training.
RUN = ("results.json", "model.safetensors", "model.safetensors.index.json", "ledger.parquet", f"{PREFIX_CHECKPOINT_DIR}-*")


@dataclass
class OverwriteOptions:
    """Whether what is there may be replaced."""

    _argument_group_name = "output"

    overwrite: bool = field(default=False, metadata={"help": "Replace what an earlier command left in output_dir."})


def check_output(folder: str, holds: Sequence[str], overwrite: bool, instead: str = "") -> None:
    """Refuses a folder that cannot be written, or that holds what an earlier command left there.

    Args:
        folder: The ``output_dir``.
        holds: Names, or patterns of names, that tell such a folder.
        overwrite: Whether it may hold them.
        instead: What else can be done, for the message.

    Raises:
        ValueError: In one line.
    """
    check_writable(folder)
    found = [path.name for pattern in holds for path in sorted(Path(folder).glob(pattern))]
    if found and not overwrite:
        raise ValueError(
            f"output_dir={folder!r} holds {found[0]} of an earlier command: give another folder{instead}, or --overwrite to "
            "replace it."
        )


def check_output_file(path: str, option: str) -> None:
    """Refuses a file that cannot be written.

    Args:
        path: A file, which need not exist.
        option: What it was given as, for the message.

    Raises:
        ValueError: In one line.
    """
    if not path.strip() or os.path.isdir(path):
        raise ValueError(f"{option}={path!r} is {'a folder' if path.strip() else 'no file'}: give a file to write.")
    check_writable(os.path.dirname(path) or ".", option)
