"""What kind of problem a model was made for, and for how many classes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import nn

from ..problems import PROBLEMS, REGRESSION, SINGLE_LABEL, UNLABELLED, Problem
from .peers import PeerModel


def number_of_classes(model: nn.Module) -> int | None:
    """Returns the classes (or outputs) that the model's config names, None where it does not."""
    config: Any = getattr(model, "config", None)
    changed = config.to_diff_dict() if config is not None and hasattr(config, "to_diff_dict") else {}
    # a config that does not name its labels has the default of 2, whatever the head: the first forward tells then
    return getattr(config, "num_labels", None) if {"id2label", "num_labels", "label2id"} & set(changed) else None


def returns_losses(model: Any) -> bool:
    """Returns whether the model returns a loss of each sample itself, without labels (class attribute ``sample_losses``)."""
    return bool(getattr(model.peers[0] if isinstance(model, PeerModel) else model, "sample_losses", False))


def problem_of(model: nn.Module, asked: str | None) -> Problem:
    """Returns the problem: as asked, the config's ``problem_type``, regression for one output, else one class label each.

    A ``problem_type`` that is asked for is written to a config that names none.

    Args:
        model: the unwrapped model.
        asked: ``problem_type`` in the arguments, None where it is left open.

    Raises:
        ValueError: where the two differ, or name no kind of problem.
    """
    if returns_losses(model):
        if asked is not None:
            raise ValueError(f"problem_type={asked!r} but {type(model).__name__} has no labels, only its own losses: leave it out.")
        return UNLABELLED
    models = [model, *(model.peers if isinstance(model, PeerModel) else [])]
    configs: list[Any] = [c for m in models if (c := getattr(m, "config", None)) is not None]  # a module may have config = None
    named = next((c.problem_type for c in configs if getattr(c, "problem_type", None) is not None), None)
    if asked is not None and named is not None and asked != named:
        raise ValueError(f"problem_type={asked!r} in the arguments but {named!r} in the model's config: give one of them.")
    if asked is not None:
        for config in configs:
            with suppress(AttributeError):  # a dict, or frozen: no transformers head, so nobody reads it there
                config.problem_type = asked
    if asked is None and named is None:
        return REGRESSION if number_of_classes(model) == 1 else SINGLE_LABEL  # as transformers' own heads decide it
    kinds = {name: problem for name, problem in PROBLEMS.items() if problem.labelled}
    kind = asked or named
    if kind not in kinds:
        raise ValueError(f"problem_type={kind!r} is unknown: choose one of {', '.join(kinds)}.")
    return kinds[kind]
