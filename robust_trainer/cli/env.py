"""robust-trainer env: what it runs on."""

from __future__ import annotations

from collections.abc import Sequence

from ..reporting.console import say
from ..reporting.results import environment


def env(argv: Sequence[str]) -> None:
    """robust-trainer env: the versions and the machine, for a bug report.

    Args:
        argv: The words after the command's name.
    """
    if list(argv) in (["-h"], ["--help"]):
        return say("usage: robust-trainer env\n\nPrints the versions and the machine, for a bug report.")
    if argv:
        raise ValueError(f"unexpected argument {argv[0]!r}: env takes none.")
    say("\n".join(f"{name}: {value}" for name, value in environment().items()))
