"""robust-trainer demo | corrupt | train | evaluate | audit | paths | anomaly | env.

Also as ``accelerate launch -m robust_trainer.cli train ...``.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "poison handwritten digits, train three methods, compare (a minute, no network)",
    "corrupt": "poison a data set or its labels and save it",
    "train": "train an image classifier robustly: train config.yaml --method prl-at-memory ...",
    "evaluate": "clean, poison and robust accuracy of a saved model: evaluate RUN --attacks pgd-20 autoattack --eps 8/255",
    "audit": "which samples a training distrusted, a report, and the data set without them: audit RUN --clean relabel",
    "paths": "how far a run's training samples are from the decision boundary, label errors first: paths RUN",
    "anomaly": "find abnormal rows in a table without labels: anomaly DATA.csv --detector rca",
    "env": "versions and machine, for a bug report",
}
USAGE = "usage: robust-trainer COMMAND [options]\n\n" + "\n".join(f"  {name:9} {told}" for name, told in COMMANDS.items())
USAGE += "\n\nrobust-trainer COMMAND --help lists its options; --debug shows the traceback of an error."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status: 0, or 2 with a one-line message on the standard error."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else 2
    try:
        return run(words[0], words[1:])
    except (ValueError, OSError) as error:
        if debug:
            raise
        print("robust-trainer: error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("robust-trainer: interrupted", file=sys.stderr)
        return 130


def run(command: str, argv: Sequence[str]) -> int:
    """Runs one subcommand; its mistakes are ``ValueError``s."""
    if command == "--version":
        from robust_trainer import __version__

        print(f"robust-trainer {__version__}")
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(COMMANDS)}."
        raise ValueError(f"unknown command {command!r}: {hint}")
    from robust_trainer import anomaly_command, audit_command, commands, demo, evaluate_command, paths_command

    rooms = {
        "demo": demo, "evaluate": evaluate_command, "audit": audit_command, "paths": paths_command, "anomaly": anomaly_command,
    }  # fmt: skip
    getattr(rooms.get(command, commands), command)(argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
