"""The figures of `robust_trainer.evaluation` as `evaluate` modules; they load from the installed package, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluate

NAMES = ("clean_accuracy", "poison_accuracy", "attack_success_rate")


def load_metric(name: str, **kwargs: Any) -> evaluate.EvaluationModule:
    """Returns the packaged metric ``name`` as an `evaluate.EvaluationModule`: it has ``compute``, ``add_batch`` and the rest.

    name: one of `NAMES`; kwargs go to `evaluate.load`, which copies the script to its modules cache (HF_MODULES_CACHE) and uses no
    network for it. Raises ``ValueError`` for an unknown name.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r} is no metric of robust_trainer: choose one of {list(NAMES)}.")
    return evaluate.load(str(Path(__file__).resolve().parent / name), **kwargs)
