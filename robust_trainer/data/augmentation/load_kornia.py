"""kornia, which is optional: the extra ``augment``."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def load_kornia(part: str, wanted_by: str) -> Any:
    """Returns the module ``kornia.<part>``; the warnings of its import stay inside.

    Args:
        part: name of the module in kornia.
        wanted_by: what needs it, as the message begins.

    Raises:
        ValueError: where kornia is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(f"kornia.{part}")
    except ImportError as error:
        raise ValueError(f"{wanted_by} needs kornia ({error}): pip install kornia, or this package with [augment].") from error
