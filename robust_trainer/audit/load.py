"""The ledger of a finished run: from ledger.parquet, a saved model's folder or its newest checkpoint; checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from ..ledger.ledger import SampleLedger
from ..reporting.results import curves
from ..reporting.run_folders import why_no_run
from ..reporting.untrusted import MOST_CLASSES, Column, Table, json_mapping, load_tensors
from ..step.checkpoints import STATE_FILE, folders

LEDGER_FILE = "ledger.parquet"
#: Counts are of 32 bits at most.
_MOST = 2**31 - 1
_FLOAT, _FLAG, _COUNT = Column("number"), Column("boolean"), Column("integer", 0, _MOST)
#: What facts of a run may hold, where they are told.
_FACTS: Mapping[str, tuple[type, ...]] = {
    "names": (list,), "rows": (int,), "fingerprint": (str,), "id": (str,), "settings": (dict,), "method": (str,), "problem": (str,),
    "label_column": (str, type(None)), "pipeline_tag": (str, type(None)), "label_rate": (list,),
}  # fmt: skip


def load_ledger(run: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the rows of a run's ledger (as `SampleLedger.rows`) and the facts of the run.

    Args:
        run: A folder with ledger.parquet, or with the state that `RobustTrainer` saves beside its model, or with checkpoints.

    Raises:
        ValueError: For a folder without any of them, and for files that are damaged or hold what no training writes.
    """
    path = ledger_file(run)
    return _from_parquet(path) if path.name == LEDGER_FILE else _from_state(path)


def ledger_file(run: str | Path) -> Path:
    """Returns the file that holds a run's ledger: ledger.parquet, else the state beside its model or in its newest checkpoint.

    Args:
        run: As for `load_ledger`.

    Raises:
        ValueError: For a folder without any of them, telling what it is instead.
    """
    folder = Path(run)
    files = [folder / LEDGER_FILE, *(place / STATE_FILE for place in (folder, *(folders(folder) if folder.is_dir() else ())))]
    found = next((path for path in files if path.is_file()), None)
    if found is None:
        mend = "train with a method; method='standard' trains as usual and only watches."
        lacks = f"has no ledger (no {LEDGER_FILE}, no {STATE_FILE}, no checkpoint with one)"
        raise ValueError(why_no_run(run, lacks, mend))
    return found


def load_curves(run: str | Path) -> list[dict[str, float]]:
    """Returns a run's per-epoch figures (`results.curves`) from the Trainer's own state file, [] where there is none.

    Args:
        run: Folder of a finished training.
    """
    folder = Path(run)
    for place in (folder, *folders(folder)):
        try:
            return curves(json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))["log_history"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return []


def _from_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    table = Table(path)
    run = check_facts(table.facts(), path)
    if run.get("rows", table.rows) != table.rows:
        raise table.damaged(f"{table.rows} rows, its run had {run['rows']}")
    return check_rows(table.columns(_columns(run)), path), run


def _columns(run: Mapping[str, Any]) -> dict[str, Column]:
    names = run.get("names") or []
    label = Column("integer", -1, len(names) - 1 if names else MOST_CLASSES - 1)
    other = Column("integer", -1, MOST_CLASSES - 1)  # a model may have more outputs than the data set has classes
    return {
        "index": _COUNT, "label": label, "predicted": Column("integer", -1, MOST_CLASSES - 1, optional=True), "seen": _COUNT,
        "kept": _COUNT, "last_score": _FLOAT, "mean_score": _FLOAT, "ema_score": _FLOAT, "aum": _FLOAT, "margin": _FLOAT,
        "nonfinite": Column("integer", 0, _MOST, optional=True), "forgetting": Column("integer", -1, _MOST), "rival": other,
        "rival_confidence": Column("number", 0.0, 1.001),
        "distrusted": _FLAG, "is_corrupted": Column("boolean", optional=True),
        "label_wrong": Column("number", 0.0, 1.001, optional=True), "suggested": replace(other, optional=True),
        "suggested_confidence": Column("number", 0.0, 1.001, optional=True), "carrier": Column("boolean", optional=True),
        "target": replace(other, optional=True),
        "mean_probs": Column("vector", 1, MOST_CLASSES, optional=True),
    }  # fmt: skip


def check_facts(run: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the facts of a run.

    Args:
        run: As read.
        path: Of the file, for the message.

    Raises:
        ValueError: For a fact of another kind than a training writes, and for more names than there can be classes.
    """
    for name, kinds in _FACTS.items():
        if name in run and (not isinstance(run[name], kinds) or isinstance(run[name], bool)):
            raise ValueError(f"{str(path)!r} is damaged (its run's {name} is a {type(run[name]).__name__}): train again.")
    names = run.get("names", [])
    if len(names) > MOST_CLASSES or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{str(path)!r} is damaged (its run's names are no {MOST_CLASSES} texts at most): train again.")
    rate = run.get("label_rate", [0.0, 0.0, 1.0])
    if len(rate) != 3 or not all(isinstance(x, float | int) and not isinstance(x, bool) and 0.0 <= x <= 1.0 for x in rate):
        raise ValueError(f"{str(path)!r} is damaged (its run's label_rate is no rate with an interval): train again.")
    return run


def check_rows(rows: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Returns the rows of a ledger.

    Args:
        rows: As read.
        path: Of the file, for the message.

    Raises:
        ValueError: Where the positions are not 0, 1, 2, ..., or a sample was kept more often than seen.
    """
    wrong = {
        "index": np.flatnonzero(rows["index"] != np.arange(len(rows["index"]))),
        "kept": np.flatnonzero(rows["kept"] > rows["seen"]),
    }
    for name, where in wrong.items():
        if len(where):
            row = where[0]
            told = f"row {row} has {name}={rows[name][row]}" + (f", seen={rows['seen'][row]}" if name == "kept" else "")
            raise ValueError(f"{str(path)!r} is damaged ({told}): train again.")
    return rows


def _from_state(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    mend = "use another checkpoint"
    state = load_tensors(path, mend)
    with safetensors.safe_open(path, framework="pt") as handle:
        metadata = handle.metadata() or {}
    run = check_facts(json_mapping(metadata.get("run", "{}"), path, mend), path)
    if "ledger.seen" not in state:
        raise ValueError(f"{str(path)!r} holds no ledger (the data was streamed): train on a data set with a length.")
    probs = state.get("ledger.mean_probs")
    classes = None if probs is None else int(np.prod(probs.shape[1:]))
    seen, judged = state["ledger.seen"], "ledger.label_wrong" in state
    ledger = SampleLedger(seen.numel(), wide=seen.itemsize > 2, classes=classes, judged=judged, run=run)
    ledger.load_state(state)
    rows = ledger.rows()
    for name, column in _columns(run).items():
        if column.kind != "integer" or not len(held := rows.get(name, np.zeros(0))):
            continue
        if not column.low <= held.min() <= held.max() <= column.high:
            raise ValueError(f"{str(path)!r} is damaged ({name} from {held.min()} to {held.max()}): {mend}.")
    return check_rows(rows, path), dict(run)
