"""What a command prints."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .safe_text import plain, visible

#: The most characters of a cell.
CELL = 1000


def say(text: str) -> None:
    """Prints on the main process; names in it may be anyone's, so a terminal is given nothing that it would act upon.

    Args:
        text: What to print, of any number of lines.
    """
    if os.environ.get("RANK", "0") == "0":
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        with listened_to():
            print(visible(text).encode(encoding, "replace").decode(encoding), flush=True)


@contextmanager
def listened_to() -> Iterator[None]:
    """Work goes on where the reader of the standard output is gone, as ``head`` is after its lines; what follows is not printed."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("robust-trainer: nobody reads the output any more: the work goes on without printing", file=sys.stderr)


def show(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as text: the first column to the left, the others to the right; a cell is one safe line.

    Args:
        heading: Names of the columns.
        rows: One list of cells a row.
    """
    heading, rows = [plain(cell, CELL) for cell in heading], [[plain(cell, CELL) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()

    return "\n".join([line(heading), "  ".join("-" * w for w in widths), *map(line, rows)])


def command_line(command: str, argv: Sequence[str]) -> str:
    """Returns the command as it can be typed again.

    Args:
        command: Name of the command.
        argv: Its words.
    """
    return shlex.join(["robust-trainer", command, *argv])
