"""robust-trainer demo | corrupt | train | evaluate | audit | paths | anomaly | env.

Also as ``accelerate launch -m robust_trainer.cli train ...``.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from .. import __version__
from ..reporting.atomic_files import DISK_FULL
from ..reporting.locks import release
from ..reporting.safe_text import plain
from ..reporting.suggest import did_you_mean


@dataclass(frozen=True)
class Command:
    """One subcommand: what it does in a line, and the module of this folder whose function of the same name runs it."""

    name: str
    summary: str
    module: str


COMMANDS: Mapping[str, Command] = {
    row.name: row
    for row in (
        Command("demo", "three ways to train on poisoned and on mislabelled digits (some two minutes, no network)", "demo"),
        Command("corrupt", "poison a data set or its labels and save it", "corrupt"),
        Command("train", "train a classifier of images or texts: train config.yaml, or --dataset FOLDER --model NAME", "train"),
        Command("evaluate", "clean, poison and robust accuracy of a saved model: evaluate RUN --attacks pgd-20 --eps 8/255",
                "evaluate"),
        Command("audit", "which samples to distrust, and the data set without them: audit RUN, or audit --dataset D --model M",
                "audit"),
        Command("paths", "how far a run's training samples are from the decision boundary, label errors first: paths RUN", "paths"),
        Command("anomaly", "find abnormal rows in a table without labels: anomaly DATA.csv --detector rca", "anomaly"),
        Command("env", "versions and machine, for a bug report", "env"),
    )
}  # fmt: skip
USAGE = "usage: robust-trainer COMMAND [options]\n\n" + "\n".join(f"  {row.name:9} {row.summary}" for row in COMMANDS.values())
USAGE += "\n\nrobust-trainer COMMAND --help lists its options; --debug shows the traceback of an error."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status: 0, or 2 with a one-line message on the standard error.

    Args:
        argv: The words after ``robust-trainer``; None for those that the process was started with.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else 2
    try:
        check_environment()
        return run(words[0], words[1:])
    except Exception as error:
        told = one_line(error)
        if debug or told is None:
            raise
        print("robust-trainer: error: " + plain(told, 4000), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        going_on = (
            "; --resume_from_checkpoint true goes on from its newest checkpoint, if it has one" if words[0] == "train" else ""
        )
        print(f"\nrobust-trainer: interrupted{going_on}", file=sys.stderr)
        return 130


def check_environment() -> None:
    """Raises ``ValueError`` where the environment's variables of a launcher are no numbers."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not (value := os.environ.get(name, "0")).lstrip("-").isdecimal():
            raise ValueError(f"{name}={value!r} in the environment is no whole number: launchers set it; unset it for one process.")


def one_line(error: Exception) -> str | None:
    """Returns what a mistake, or a machine without room, is told by; None for a fault of this program, whose traceback is wanted.

    Args:
        error: What a command raised.
    """
    text = str(error)
    if "\nOriginal Traceback (most recent call last):\n" in text:  # raised in a data loader's worker, which hands on its text alone
        text = text.strip().rpartition("\n")[2].partition(": ")[2]
    text = " ".join(text.split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        return f"not enough memory ({text[:200] or 'out of memory'}): give fewer or smaller images, or a smaller batch."
    if isinstance(error, OSError) and error.strerror and not isinstance(error, UnicodeError):
        where = f"{str(error.filename)!r}: " if error.filename is not None else ""
        mend = (
            "make room there, or write elsewhere" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that, or name another"
        )
        return f"{where}{error.strerror}: {mend}."
    if type(error).__name__ == "SafetensorError" or (isinstance(error, RuntimeError) and DISK_FULL.search(text)):
        return f"weights could not be read or written ({text[:200]}): see that the disk has room and that the files are whole."
    ours = __package__.partition(".")[0]
    missing = isinstance(error, ImportError) and not (error.name or "").startswith(ours)  # a package of others is not there
    return text if isinstance(error, ValueError | OSError) or missing else None


def run(command: str, argv: Sequence[str]) -> int:
    """Runs one subcommand; its mistakes are ``ValueError``s.

    Args:
        command: Name of the command.
        argv: The words after the command's name.
    """
    if command == "--version":
        print(f"robust-trainer {__version__}")
        return 0
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS).strip() or f"choose one of {', '.join(COMMANDS)}."
        raise ValueError(f"unknown command {command!r}: {hint}")
    module = import_module(f".{COMMANDS[command].module}", __package__)  # a command's libraries are loaded when it is asked for
    if (log := sys.modules.get("transformers.utils.logging")) is not None:
        log.disable_progress_bar()  # of reading and writing weights, which cuts that of the training into pieces
    try:
        getattr(module, command)(argv)
    finally:
        release()
    return 0
