"""Drop-in robust training for the Hugging Face Trainer.

Names are loaded when they are first used, so that ``robust-trainer --help`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callbacks.robustness import RobustnessCallback, hold_out
    from .config import RobustConfig
    from .evaluation.robustness import evaluate_robustness
    from .ledger.ledger import SampleLedger
    from .methods.recipe import Recipe
    from .methods.table import METHODS
    from .trainer import RobustTrainer

__version__ = "0.1.0"
_HOMES = {
    "METHODS": "methods.table",
    "Recipe": "methods.recipe",
    "RobustConfig": "config",
    "RobustTrainer": "trainer",
    "RobustnessCallback": "callbacks.robustness",
    "SampleLedger": "ledger.ledger",
    "evaluate_robustness": "evaluation.robustness",
    "hold_out": "callbacks.robustness",
}
__all__ = [
    "METHODS", "Recipe", "RobustConfig", "RobustTrainer", "RobustnessCallback", "SampleLedger", "__version__",
    "evaluate_robustness", "hold_out",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
