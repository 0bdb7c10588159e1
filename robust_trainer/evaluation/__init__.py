"""Evaluation: clean, poisoned and robust accuracy, class by class, and the paths to the decision boundary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .accuracy import attack_success_rate, clean_accuracy, compute_accuracy, evaluate_backdoor, mean_over_last, poison_accuracy
    from .boundary_paths import path_lengths
    from .metrics import load_metric
    from .path_table import PathLengths, load_paths
    from .per_class import ClassRobustness, class_robustness
    from .robustness import Robustness, evaluate_robustness

__all__ = [
    "ClassRobustness",
    "PathLengths",
    "Robustness",
    "attack_success_rate",
    "class_robustness",
    "clean_accuracy",
    "compute_accuracy",
    "evaluate_backdoor",
    "evaluate_robustness",
    "load_metric",
    "load_paths",
    "mean_over_last",
    "path_lengths",
    "poison_accuracy",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ClassRobustness": "per_class",
        "PathLengths": "path_table",
        "Robustness": "robustness",
        "attack_success_rate": "accuracy",
        "class_robustness": "per_class",
        "clean_accuracy": "accuracy",
        "compute_accuracy": "accuracy",
        "evaluate_backdoor": "accuracy",
        "evaluate_robustness": "robustness",
        "load_metric": "metrics",
        "load_paths": "path_table",
        "mean_over_last": "accuracy",
        "path_lengths": "boundary_paths",
        "poison_accuracy": "accuracy",
    },
)
