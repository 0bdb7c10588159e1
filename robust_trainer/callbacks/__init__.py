"""Callbacks for any Trainer: robustness while training, a cap on the layers' spectral norms, charts for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .best_weights import load_best
    from .panels import PANELS
    from .robustness import RobustnessCallback, hold_out
    from .robustness_plot import plot_curves, plot_history, tracked
    from .spectral_cap import SpectralCap, spectral_norms

__all__ = [
    "PANELS",
    "RobustnessCallback",
    "SpectralCap",
    "hold_out",
    "load_best",
    "plot_curves",
    "plot_history",
    "spectral_norms",
    "tracked",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PANELS": "panels",
        "RobustnessCallback": "robustness",
        "SpectralCap": "spectral_cap",
        "hold_out": "robustness",
        "load_best": "best_weights",
        "plot_curves": "robustness_plot",
        "plot_history": "robustness_plot",
        "spectral_norms": "spectral_cap",
        "tracked": "robustness_plot",
    },
)
