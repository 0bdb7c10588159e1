"""Anomaly detection on rows without labels, some of them abnormal: RCA and RobustRealNVP as scikit-learn / PyOD estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .autoencoder import AutoencoderConfig, AutoencoderModel
    from .detectors import DETECTORS, RCA, RobustRealNVP, make_detector
    from .estimator import AnomalyDetector
    from .output import AnomalyOutput
    from .plots import measure, plot_curves, plot_scores
    from .realnvp import RealNVPConfig, RealNVPModel
    from .storage import load_detector, save_detector
    from .tables import AnomalyTable, read_table

__all__ = [
    "AnomalyDetector",
    "AnomalyOutput",
    "AnomalyTable",
    "AutoencoderConfig",
    "AutoencoderModel",
    "DETECTORS",
    "RCA",
    "RealNVPConfig",
    "RealNVPModel",
    "RobustRealNVP",
    "load_detector",
    "make_detector",
    "measure",
    "plot_curves",
    "plot_scores",
    "read_table",
    "save_detector",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AnomalyDetector": "estimator",
        "AnomalyOutput": "output",
        "AnomalyTable": "tables",
        "AutoencoderConfig": "autoencoder",
        "AutoencoderModel": "autoencoder",
        "DETECTORS": "detectors",
        "RCA": "detectors",
        "RealNVPConfig": "realnvp",
        "RealNVPModel": "realnvp",
        "RobustRealNVP": "detectors",
        "load_detector": "storage",
        "make_detector": "detectors",
        "measure": "plots",
        "plot_curves": "plots",
        "plot_scores": "plots",
        "read_table": "tables",
        "save_detector": "storage",
    },
)
