"""A hyperparameter search over methods and their settings: each trial has its own, and those that were given before the search."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.trainer_utils import HPSearchBackend

from .settings import SETTINGS

#: What a search may set beside the Trainer's arguments.
NAMES = ("method", *SETTINGS)


@contextmanager
def searching(trainer: Any) -> Iterator[None]:
    """Within it a trainer searches; its method and settings are as they were in each trial, but for what it sets, and afterwards.

    Args:
        trainer: that searches.
    """
    names = (*NAMES, "method_settings")
    trainer.before_search = {name: copy.copy(getattr(trainer.args, name)) for name in names if hasattr(trainer.args, name)}
    try:
        yield
    finally:
        _set(trainer.args, trainer.before_search)
        del trainer.before_search


def _set(args: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(args, name, value)


def start_trial(trainer: Any, trial: Any) -> None:
    """Sets what a trial does of the method and its settings, before its model is built; the Trainer sets its own arguments later.

    Args:
        trainer: that searches, or trains.
        trial: of the search, None outside of one.

    Raises:
        ValueError: for settings of methods where the arguments have none.
    """
    backend = getattr(trainer, "hp_search_backend", None)
    if trial is None or backend is None:
        return
    args, params = trainer.args, dict(trainer.hp_space(trial) if backend == HPSearchBackend.OPTUNA else trial)
    mine = {name: value for name, value in params.items() if name in NAMES}
    missing = next((name for name in mine if not hasattr(args, name)), None)
    if missing is not None:
        raise ValueError(
            f"the search sets {missing}={mine[missing]!r}, which {type(args).__name__} does not have: give the trainer a "
            "RobustConfig."
        )
    _set(args, getattr(trainer, "before_search", {}))
    if others := getattr(args, "method_settings", None):
        args.method_settings = {name: value for name, value in others.items() if name not in mine} or None
    _set(args, mine)  # the Trainer, which casts a value to the type of the one before, then finds the value itself
