"""The setting ``rule``: what a rule must have, and one made by name; those of the published methods are parts of their rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..selection.rules import RULES
from ..types import SelectionRule

#: What a `BatchRule` and an `EpochRule` must have; ``filter_active`` belongs to both.
BATCH_RULE = ("new_state", "weights", "divisor", "filter_active")
EPOCH_RULE = ("memory", "decides", "keep_mask", "filter_active")


def parameters_of(factory: Callable[..., Any]) -> dict[str, bool]:
    """Returns the names of a factory's parameters, and whether each must be given.

    Args:
        factory: a class or function.
    """
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def make_rule(name: str, settings: Mapping[str, Any]) -> SelectionRule:
    """Returns the registered rule of that name.

    Args:
        name: a key of `RULES`.
        settings: of the method; those that the factory has parameters for are handed over.
    """
    factory = RULES[name]
    return factory(**{key: settings[key] for key in parameters_of(factory) if key in settings})
