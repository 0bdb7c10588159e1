"""What a command prints."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence


def say(text: str) -> None:
    """Prints on the main process.

    Args:
        text: What to print.
    """
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def show(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as text: the first column to the left, the others to the right.

    Args:
        heading: Names of the columns.
        rows: One list of cells a row.
    """
    widths = [max(len(str(row[i])) for row in [heading, *rows]) for i in range(len(heading))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()

    return "\n".join([line(heading), "  ".join("-" * w for w in widths), *map(line, rows)])


def command_line(command: str, argv: Sequence[str]) -> str:
    """Returns the command as it can be typed again.

    Args:
        command: Name of the command.
        argv: Its words.
    """
    return shlex.join(["robust-trainer", command, *argv])
