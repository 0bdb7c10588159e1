"""The ledger of a finished run: from ledger.parquet, a saved model's folder or its newest checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
from transformers.trainer_utils import get_last_checkpoint

from ..ledger.ledger import SampleLedger
from ..reporting.parquet_files import read_run
from ..reporting.results import curves
from ..step.checkpoints import STATE_FILE

LEDGER_FILE = "ledger.parquet"
_NEEDED = (
    "index", "label", "seen", "kept", "mean_score", "ema_score", "last_score", "margin", "aum", "forgetting", "rival",
    "rival_confidence", "distrusted",
)  # fmt: skip


def load_ledger(run: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the rows of a run's ledger (as `SampleLedger.rows`) and the facts of the run.

    Args:
        run: A folder with ledger.parquet, or with the state that `RobustTrainer` saves beside its model, or with checkpoints.

    Raises:
        ValueError: For a folder without any of them, and for damaged files.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise ValueError(f"run={str(run)!r} is no folder: give the output_dir of a training.")
    if (folder / LEDGER_FILE).is_file():
        return _from_parquet(folder / LEDGER_FILE)
    newest = get_last_checkpoint(str(folder))
    for place in (folder, *([Path(newest)] if newest else [])):
        if (place / STATE_FILE).is_file():
            return _from_state(place / STATE_FILE)
    raise ValueError(
        f"run={str(run)!r} has no ledger (no {LEDGER_FILE}, no {STATE_FILE}, no checkpoint with one): train with a method; "
        "method='standard' trains as usual and only watches."
    )


def load_curves(run: str | Path) -> list[dict[str, float]]:
    """Returns a run's per-epoch figures (`results.curves`) from the Trainer's own state file, [] where there is none.

    Args:
        run: Folder of a finished training.
    """
    folder = Path(run)
    newest = get_last_checkpoint(str(folder))
    for place in (folder, *([Path(newest)] if newest else [])):
        try:
            return curves(json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))["log_history"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []


def _from_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        table, run = pq.read_table(path), read_run(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({' '.join(str(error).split())[:150]}): train again.") from error
    missing = [name for name in _NEEDED if name not in table.column_names]
    if missing:
        raise ValueError(f"{str(path)!r} has no column {', '.join(missing)}: it was made by an earlier version; train again.")
    data = datasets.Dataset(datasets.table.InMemoryTable(table)).with_format("numpy")
    return {name: np.asarray(data[name][:]) for name in data.column_names}, run


def _from_state(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        state = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as handle:
            run: Mapping[str, Any] = json.loads((handle.metadata() or {}).get("run", "{}"))
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}): use another checkpoint.") from error
    if "ledger.seen" not in state:
        raise ValueError(f"{str(path)!r} holds no ledger (the data was streamed): train on a data set with a length.")
    probs = state.get("ledger.mean_probs")
    classes = None if probs is None else probs.shape[1]
    ledger = SampleLedger(len(state["ledger.seen"]), wide=state["ledger.seen"].itemsize > 2, classes=classes, run=run)
    ledger.load_state(state)
    return ledger.rows(), dict(run)
