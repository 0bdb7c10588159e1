"""Which run a file belongs to: what results.json says of the run and its data, compared with whatever lies beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets

from ..ledger.fingerprint import data_fingerprint, new_run_id
from ..step.checkpoints import STATE_FILE, metadata_of
from .options import DataOptions
from .stages import RunState

LABEL = "label"
#: Options by which a user names other data than the run's.
_NAMES = {f"__{field.name}" for field in fields(DataOptions)}


def identity(trainer: Any, state: RunState) -> dict[str, Any]:
    """Returns what results.json holds of the run: its id, method, rows, and the fingerprints of its data.

    Args:
        trainer: After its training.
        state: With the splits.
    """
    return {
        "id": trainer.ledger.run["id"] if trainer.ledger is not None else new_run_id(), "method": state.record["method"],
        "rows": len(state.train), "fingerprint": data_fingerprint(state.train, LABEL),
        "test_fingerprint": data_fingerprint(state.test, LABEL),
    }  # fmt: skip


def run_id(content: Mapping[str, Any] | None) -> str | None:
    """Returns the id of the run that a results.json is of, None where it tells none.

    Args:
        content: Of results.json, None for none.
    """
    told = (content or {}).get("run")
    return told.get("id") if isinstance(told, dict) and isinstance(told.get("id"), str) else None


def check_same_run(run: str, content: Mapping[str, Any] | None, other: str | None, of: str) -> None:
    """Refuses a file of another training than results.json is of.

    Args:
        run: The run's folder.
        content: Of results.json, None for none.
        other: The id in the file; None where it tells none.
        of: The file.

    Raises:
        ValueError: Where the two have different ids, or one of them alone has none.
    """
    if content is not None and run_id(content) != other:
        raise ValueError(
            f"run={run!r} holds two trainings: results.json is of run {run_id(content) or 'unknown'}, {of} of run "
            f"{other or 'unknown'}; train again with --overwrite, or take away what does not belong there."
        )


def is_other_data(data: DataOptions, content: Mapping[str, Any] | None) -> bool:
    """Returns whether a data set is named that is not the run's.

    Args:
        data: Which data.
        content: Of results.json, None for none.
    """
    own = (content or {}).get("options", {}).get("dataset")
    if data.dataset is None or own is None or data.dataset == own:
        return data.dataset != own
    return not (os.path.exists(data.dataset) and os.path.exists(own) and os.path.samefile(data.dataset, own))


def check_model(run: str, content: Mapping[str, Any] | None) -> None:
    """Refuses a saved model of another training than results.json is of.

    Args:
        run: The run's folder.
        content: Of results.json, None for none.

    Raises:
        ValueError: As `check_same_run`.
    """
    path = Path(run) / STATE_FILE
    if path.is_file():
        told = json.loads(metadata_of(str(path)).get("run", "{}"))
        check_same_run(run, content, told.get("id"), f"the model ({STATE_FILE})")


def check_same_split(
    run: str, content: Mapping[str, Any] | None, argv: Sequence[str], split: datasets.Dataset, key: str = "fingerprint"
) -> None:
    """Refuses data that are not the run's any more, unless they are named on the command line.

    Args:
        run: The run's folder.
        content: Of results.json, None for none.
        argv: The words after the command's name.
        split: As loaded.
        key: Where results.json tells its fingerprint.

    Raises:
        ValueError: For other content or another order than in training.
    """
    told = (content or {}).get("run")
    known = told.get(key) if isinstance(told, dict) else None
    named = any(word.split("=")[0].replace("-", "_") in _NAMES for word in argv)
    if known is None or named or data_fingerprint(split, LABEL) == known:
        return
    raise ValueError(
        f"dataset={(content or {})['options'].get('dataset')!r} is not what run={run!r} was trained with (fingerprint "
        f"{data_fingerprint(split, LABEL)}, then {known}): bring it back, or name the data by --dataset to take them as they are."
    )
