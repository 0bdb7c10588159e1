"""Anomaly detection on rows without labels, some of them abnormal: RCA and RobustRealNVP as scikit-learn / PyOD estimators."""

from .autoencoder import AutoencoderConfig, AutoencoderModel
from .detectors import DETECTORS, RCA, RobustRealNVP, make_detector
from .estimator import AnomalyDetector
from .output import AnomalyOutput
from .realnvp import RealNVPConfig, RealNVPModel
from .storage import load_detector, save_detector

__all__ = [
    "DETECTORS", "RCA", "AnomalyDetector", "AnomalyOutput", "AutoencoderConfig", "AutoencoderModel", "RealNVPConfig",
    "RealNVPModel", "RobustRealNVP", "load_detector", "make_detector", "save_detector",
]  # fmt: skip
