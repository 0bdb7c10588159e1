"""Where a command writes: found out before the work, and never over what an earlier one left unless that is asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..config import check_writable
from ..models.saved_networks import FOLDER
from ..reporting.atomic_files import remove_unfinished
from ..reporting.locks import hold
from ..step.checkpoints import STATE_FILE, folders, is_half

#: What tells a folder that holds a training.
RUN = ("results.json", "model.safetensors", "model.safetensors.index.json", "ledger.parquet", f"{PREFIX_CHECKPOINT_DIR}-*")
#: What a training and the commands on it leave beside its checkpoints.
LEFT = (
    "results.json", "report.html", "ledger.parquet", STATE_FILE, "model*.safetensors", "model.safetensors.index.json",
    "config.json", "small_networks.py", FOLDER, "evaluation.json", "robustness.jsonl*", "robustness.png", "paths", "paths.parquet",
    "paths.png",
)  # fmt: skip
CHECKPOINTS = (f"{PREFIX_CHECKPOINT_DIR}-[0-9]*",)


@dataclass
class OverwriteOptions:
    """Whether what is there may be replaced."""

    _argument_group_name = "output"

    overwrite: bool = field(default=False, metadata={"help": "Replace what an earlier command left in output_dir."})


def check_output(folder: str, holds: Sequence[str], overwrite: bool, instead: str = "") -> None:
    """Refuses a folder that cannot be written, or that holds what an earlier command left there; takes its lock.

    Args:
        folder: The ``output_dir``.
        holds: Names, or patterns of names, that tell such a folder.
        overwrite: Whether it may hold them.
        instead: What else can be done, for the message.

    Raises:
        ValueError: In one line; also where another command is at work there.
    """
    check_writable(folder)
    hold(folder)
    found = [path.name for pattern in holds for path in sorted(Path(folder).glob(pattern))]
    if found and not overwrite:
        raise ValueError(
            f"output_dir={folder!r} holds {found[0]} of an earlier command: give another folder{instead}, or --overwrite to "
            "replace it."
        )


def remove_earlier(folder: str | Path, going_on: bool) -> None:
    """Removes what an earlier training left in a folder, lest it be taken for the one that starts; the audit's folder stays.

    Args:
        folder: The ``output_dir``.
        going_on: Whether the training goes on from a checkpoint: these stay then.
    """
    folder = Path(folder)
    remove_unfinished(folder)
    for path in folders(folder):
        if going_on and is_half(path):  # what was killed while it was saved, or made room for
            shutil.rmtree(path)
    for pattern in (*LEFT, *(() if going_on else CHECKPOINTS)):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


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
