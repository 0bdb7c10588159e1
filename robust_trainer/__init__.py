"""Drop-in robust training for the Hugging Face Trainer."""

from .config import RobustConfig
from .ledger import SampleLedger
from .methods import METHODS
from .recipe import Recipe
from .robustness import evaluate_robustness
from .tracking import RobustnessCallback, hold_out
from .trainer import RobustTrainer

__version__ = "0.1.0"
__all__ = [
    "METHODS", "Recipe", "RobustConfig", "RobustTrainer", "RobustnessCallback", "SampleLedger", "__version__",
    "evaluate_robustness", "hold_out",
]  # fmt: skip
