"""What a folder is that this package wrote, for the message where it is given in the place of a run or of a data set."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .safe_text import plain

#: The file that tells an audit's folder, and the folder in it with the data that it left.
AUDIT, CLEANED = "audit.json", "cleaned"
#: Files of which a folder that was trained to holds one.
_TRAINED = ("ledger.parquet", "robust_state.safetensors", "config.json")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
#: Runs that a message names.
_NAMED = 12


def why_no_run(folder: str | Path, lacks: str, otherwise: str, checkpoints: bool = False) -> str:
    """Returns the message about a folder that was given as a run and is none: what it is instead, and what to give.

    Args:
        folder: As given.
        lacks: What a command looked for there and did not find.
        otherwise: What to do where the folder is nothing that is known.
        checkpoints: Whether the command could take a checkpoint instead.
    """
    run, given = Path(folder), f"run={str(folder)!r}"
    if not run.is_dir():
        return f"{given} is no folder: give the output_dir of a training."
    parts = sorted(part for part in run.iterdir() if part.is_dir() and not _CHECKPOINT.fullmatch(part.name))
    if runs := [str(part) for part in parts if _is_run(part)]:
        more = f", and {len(runs) - _NAMED} more" if len(runs) > _NAMED else ""
        named = ", ".join(plain(path, 300) for path in runs[:_NAMED]) + more
        return f"{given} {lacks}; it is no run itself, it holds {len(runs)}: give {'it' if len(runs) == 1 else 'one'}, {named}."
    if (run / AUDIT).is_file():
        return f"{given} {lacks}, it is the folder of an audit: give the output_dir of the training."
    if checkpoints and (points := _checkpoints(run)):
        newest = plain(str(points[-1]), 300)
        return f"{given} {lacks}, its training has not ended: go on by --resume_from_checkpoint true, or give {newest}."
    if not any(run.iterdir()):
        return f"{given} {lacks}, it is empty: give the output_dir of a training that ended, or that saved a checkpoint."
    return f"{given} {lacks}: {otherwise}"


def why_no_data(folder: str | Path) -> str:
    """Returns the message about a folder that was given as a data set and holds a run or an audit; '' for any other folder.

    Args:
        folder: As given; ``~`` is the home.
    """
    given, place = f"dataset={str(folder)!r}", Path(os.path.expanduser(folder))
    if (place / AUDIT).is_file() and (place / "audit.parquet").is_file():
        there = (place / CLEANED).is_dir()
        mend = (
            f"give {os.path.join(str(folder), CLEANED)}"
            if there
            else "audit with --clean drop, which writes the data into cleaned/"
        )
        return f"{given} is the folder of an audit, no data set: {plain(mend, 400)}."
    runs = [part for part in (place, *sorted(p for p in place.iterdir() if p.is_dir())) if _keeps_ledger(part)]
    if not runs:
        return ""
    what = "is the folder of a training" if runs[0] == place else f"holds {len(runs)} folder(s) of trainings"
    return f"{given} {what}, no data set: give the data, or look at the run by robust-trainer audit {plain(str(runs[0]), 300)}."


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TRAINED) or bool(_checkpoints(folder))


def _keeps_ledger(folder: Path) -> bool:
    return (folder / "ledger.parquet").is_file() and any((folder / name).is_file() for name in (*_TRAINED[1:], "results.json"))


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that hold a model, the newest last."""
    found = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and (path / "config.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))
