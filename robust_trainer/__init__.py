"""Drop-in robust training for the Hugging Face Trainer.

Names are loaded when they are first used, so that ``robust-trainer --help`` does not wait for torch. Public beside them are the
namespaces ``robust_trainer.corruptions``, ``audit``, ``detectors``, ``attacks``, ``evaluation``, ``anomaly``, ``contrastive`` and
``callbacks``, each with its names in ``__all__``, and the protocols of ``robust_trainer.types``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy_names

if TYPE_CHECKING:
    from .audit.dataset import audit_dataset
    from .callbacks.robustness import RobustnessCallback, hold_out
    from .config import RobustConfig
    from .corruptions.backdoors.poisoning import poison
    from .corruptions.label_noise.labels import corrupt_labels
    from .corruptions.poisons.poison_images import poison_images
    from .evaluation.robustness import evaluate_robustness
    from .ledger.ledger import SampleLedger
    from .methods.method import Method
    from .methods.recipe import Recipe
    from .methods.registry import register_batch_rule, register_epoch_rule, register_method, register_objective, register_score
    from .methods.table import METHODS
    from .mixin import RobustTrainerMixin
    from .models.peers import PeerModel, load_networks
    from .trainer import RobustTrainer
    from .types import ForwardOutput, Progress

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "ForwardOutput",
    "Method",
    "PeerModel",
    "Progress",
    "Recipe",
    "RobustConfig",
    "RobustTrainer",
    "RobustTrainerMixin",
    "RobustnessCallback",
    "SampleLedger",
    "__version__",
    "audit_dataset",
    "corrupt_labels",
    "evaluate_robustness",
    "hold_out",
    "load_networks",
    "poison",
    "poison_images",
    "register_batch_rule",
    "register_epoch_rule",
    "register_method",
    "register_objective",
    "register_score",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "METHODS": "methods.table",
        "ForwardOutput": "types",
        "Method": "methods.method",
        "PeerModel": "models.peers",
        "Progress": "types",
        "Recipe": "methods.recipe",
        "RobustConfig": "config",
        "RobustTrainer": "trainer",
        "RobustTrainerMixin": "mixin",
        "RobustnessCallback": "callbacks.robustness",
        "SampleLedger": "ledger.ledger",
        "audit_dataset": "audit.dataset",
        "corrupt_labels": "corruptions.label_noise.labels",
        "evaluate_robustness": "evaluation.robustness",
        "hold_out": "callbacks.robustness",
        "load_networks": "models.peers",
        "poison": "corruptions.backdoors.poisoning",
        "poison_images": "corruptions.poisons.poison_images",
        "register_batch_rule": "methods.registry",
        "register_epoch_rule": "methods.registry",
        "register_method": "methods.registry",
        "register_objective": "methods.registry",
        "register_score": "methods.registry",
    },
)
