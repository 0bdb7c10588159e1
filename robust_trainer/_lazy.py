"""Names of a namespace that are loaded when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(namespace: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns ``__getattr__`` and ``__dir__`` for a package whose public names are loaded when they are first used.

    So a script that takes one name does not wait for the libraries of the others, and two namespaces whose modules use each
    other cannot meet half-loaded. The package's ``TYPE_CHECKING`` imports and ``__all__`` say the same to editors; a test compares.

    Args:
        namespace: The package's ``__name__``.
        homes: Public name -> its module, relative to the package: ``"build"``, ``"backdoors.triggers"``, ``".data.mapping"``.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {namespace!r} has no attribute {name!r}")
        value = getattr(import_module(f".{homes[name]}", namespace), name)
        setattr(sys.modules[namespace], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[namespace]), *homes})

    return load, names
