"""What both audits of the command line write and say: their options, files and figures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..audit import Audit, write_audit_report, write_cleaned
from ..audit.result import ACTIONS
from ..audit.summary import summarise
from ..reporting.atomic_files import remove_unfinished, write_text
from ..reporting.console import show
from ..reporting.results import environment
from ..reporting.safe_text import plain
from ..selection.allocation import CLASS_FLOOR

#: What an audit leaves in its folder.
TABLE, REPORT, FIGURES, CLEANED = "audit.parquet", "report.html", "audit.json", "cleaned"


@dataclass
class FlagOptions:
    """From where on samples are flagged, what becomes of them, and what is shown."""

    _argument_group_name = "audit"

    threshold: float = field(default=0.5, metadata={"help": "Suspicion in (0, 1) from which a sample is flagged."})
    clean: str = field(default="drop", metadata={"help": "The cleaned data set: drop flagged samples, relabel sure ones, or none."})
    relabel_confidence: float = field(default=0.8, metadata={"help": "For clean=relabel: from this confidence on, (0, 1]."})
    class_floor: int = field(
        default=CLASS_FLOOR,
        metadata={
            "help": "Where classes differ in size: so many samples of each stay in the cleaned set at least; 0: classes may go."
        },
    )
    force: bool = field(
        default=False, metadata={"help": "Write the cleaned set although a caution says that too little is known for it."}
    )
    per_class: int = field(default=8, metadata={"help": "Samples shown per class in the report."})
    look: bool = field(default=True, metadata={"help": "Look at the images, texts or sounds, to tell triggers from wrong labels."})

    def check(self) -> None:
        """Raises a one-line ``ValueError`` for settings out of range."""
        if self.clean not in (*ACTIONS, "none"):
            raise ValueError(f"clean={self.clean!r} is unknown: choose one of {', '.join(ACTIONS)}, none.")
        if self.per_class < 1:
            raise ValueError(f"per_class={self.per_class} must be at least 1: give for instance 8.")

    def refusal(self, result: Audit) -> str:
        """Returns why there is to be no cleaned set, '' where there is one; complains of settings out of range.

        Args:
            result: The audit.
        """
        done = result.plan(self.clean, self.relabel_confidence, self.class_floor)
        return result.refusal(done, self.class_floor, self.force)


def write_audit(
    result: Audit, folder: Path, options: FlagOptions, command: str, *, train: datasets.Dataset | None,
    test: datasets.Dataset | None, source: str, refusal: str, content: Any = None, curves: Any = None,
) -> list[str]:  # fmt: skip
    """Writes table, report, figures and, where nothing speaks against it, the cleaned set; returns their names.

    Args:
        result: The audit.
        folder: Where to.
        options: What is shown, and what becomes of flagged samples.
        command: As it was typed.
        train: The data that was audited, None where unknown.
        test: The test split, None for none.
        source: Name of the data set.
        refusal: Why there is no cleaned set, '' for nothing.
        content: Of the run's results.json.
        curves: Of a run without it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    remove_unfinished(folder / CLEANED)
    written = [TABLE, REPORT, FIGURES]
    result.to_parquet(folder / TABLE)
    write_audit_report(
        folder / REPORT, result, data=train, content=content, curves=curves, command=command, per_class=options.per_class
    )
    write_text(folder / FIGURES, json.dumps(figures(result, command), indent=2, default=str) + "\n")
    if train is not None and options.clean != "none" and not refusal:
        write_cleaned(
            folder / CLEANED, result, train, options.clean, options.relabel_confidence, test=test,
            source=source.rstrip("/").rpartition("/")[2], command=command, class_floor=options.class_floor, force=options.force,
        )  # fmt: skip
        written.append(f"{CLEANED}/")
    else:
        remove(folder / CLEANED, ("train.parquet", "test.parquet", "removed.csv", "README.md"))
    return written


def remove(folder: Path, names: Sequence[str]) -> None:
    """Removes what an earlier audit left and this one does not write, lest the two be taken for one.

    Args:
        folder: Where.
        names: Of the files.
    """
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if folder.name == CLEANED and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def figures(result: Audit, command: str) -> dict[str, Any]:
    """Returns what audit.json holds.

    Args:
        result: The audit.
        command: As it was typed.
    """
    summary = summarise(result)
    return {
        "command": command, "samples": summary.n, "flagged": summary.flagged, "threshold": result.threshold,
        "noise_rate": result.noise_rate, "noise_interval": result.noise_interval,
        "groups": {name: n for name, n, _ in summary.groups}, "groups_told": result.groups_told,
        "cautions": list(result.cautions), "cautions_that_forbid_cleaning": list(result.blocked),
        "known_truth": dict(summary.known), "facts": dict(summary.facts), "classes": list(result.names),
        "paths": None if result.paths is None else {"step_size": result.paths.step_size, "norm": result.paths.norm,
                                                   "max_steps": result.paths.max_steps},
        "transition": None if result.transition is None else np.round(result.transition, 5).tolist(),
        "run": dict(result.run), "environment": environment(),
    }  # fmt: skip


def next_steps(result: Audit, folder: Path, written: Sequence[str], model: str | None) -> str:
    """Returns what to look at and which command goes on, as a command prints it at its end.

    Args:
        result: The audit.
        folder: That was written to.
        written: What was.
        model: To train with on the cleaned set, None where none is known.
    """
    lines = [f"written to {folder}: {', '.join(written)}", f"look at {folder / REPORT} first"]
    if f"{CLEANED}/" in written and len(result.flagged):
        words = ["robust-trainer", "train", "--dataset", str(folder / CLEANED), *(() if model is None else ("--model", model))]
        lines.append(f"then, without the flagged samples: {shlex.join(words)}")
    elif f"{CLEANED}/" in written:
        lines.append(f"nothing is flagged, so {folder / CLEANED} holds the data as they were")
    return "\n".join(lines)


def told(result: Audit) -> str:
    """Returns figures, groups and cautions, as a command prints them.

    Args:
        result: The audit.
    """
    summary = summarise(result)
    rows = [[name, value] for name, value in (*summary.facts, *summary.known)]
    rows += [[name, f"{n} ({share} %)"] for name, n, share in summary.groups if n or result.trained]
    return "\n".join([show(["figure", "value"], rows), result.groups_told, *(plain(caution, 2000) for caution in result.cautions)])
