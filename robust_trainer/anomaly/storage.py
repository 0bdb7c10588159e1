"""A fitted detector in a folder, without pickle: the model as transformers saves it, beside it JSON and safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

import robust_trainer

from ..models.modes import no_bars
from ..models.peers import PeerModel
from ..reporting.atomic_files import replacing_files, write_text
from ..reporting.untrusted import read_json
from .detectors import RCA, RobustRealNVP
from .estimator import AnomalyDetector
from .preparation import Preparation
from .training import own_randomness

FACTS, ARRAYS, WEIGHTS = "detector.json", "detector.safetensors", "model.safetensors"
_ARRAYS = ("fill", "centre", "scale")


def save_detector(detector: AnomalyDetector, folder: str | Path) -> Path:
    """Writes a fitted detector to a folder and returns it: config.json, model.safetensors, detector.json, detector.safetensors.

    The ledger of the training is not kept: write it by ``detector.ledger_.to_parquet``.

    Args:
        detector: A fitted detector.
        folder: A folder on this machine.


    Raises:
        ValueError: For a random_state that is a generator, which JSON cannot hold.
    """
    if not hasattr(detector, "threshold_"):
        raise ValueError(f"this {type(detector).__name__} is not fitted yet: call fit first.")
    settings = {k: v.item() if isinstance(v, np.generic) else v for k, v in detector.get_params().items()}
    if not isinstance(settings["random_state"], int | None):
        raise ValueError(f"random_state={settings['random_state']!r} cannot be saved: give a whole number.")
    folder = Path(folder)
    prepared = {name: getattr(detector.preparation_, name) for name in _ARRAYS}
    facts: dict[str, Any] = {
        "detector": type(detector).__name__, "settings": settings, "threshold": detector.threshold_, "seed": detector.seed_,
        "names": [str(n) for n in getattr(detector, "feature_names_in_", ())], "robust_trainer": robust_trainer.__version__,
    }  # fmt: skip
    with replacing_files(folder, FACTS) as new, no_bars():
        detector.model_.save_pretrained(new)
        safetensors.numpy.save_file({**prepared, "decision_scores": detector.decision_scores_}, new / ARRAYS)
        write_text(new / FACTS, json.dumps(facts, indent=2) + "\n")
    return folder


def load_detector(folder: str | Path) -> AnomalyDetector:
    """The detector that `save_detector` wrote, fitted.

    The networks are built from the settings in detector.json and filled from model.safetensors: nothing else in the folder is read,
    no code and no pickle.

    Args:
        folder: A folder on this machine.

    Raises:
        ValueError: Where the folder holds none, or a damaged one.
    """
    folder = Path(folder)
    if not (folder / FACTS).is_file():
        raise ValueError(f"{str(folder)!r} holds no detector: it has no {FACTS}.")
    try:
        facts = read_json(folder / FACTS)
        arrays = safetensors.numpy.load_file(folder / ARRAYS)
        weights = safetensors.torch.load_file(folder / WEIGHTS)
        detector = {"RCA": RCA, "RobustRealNVP": RobustRealNVP}[facts["detector"]](**facts["settings"])
        detector._check()
        names = [str(name) for name in facts["names"]]
        prepared = Preparation(*(_numbers(arrays, name) for name in _ARRAYS))
        features, seed = len(prepared.fill), int(facts["seed"])
        if {len(prepared.centre), len(prepared.scale), len(names) or features} != {features} or not (prepared.scale > 0).all():
            raise ValueError(f"{ARRAYS} and {FACTS} do not fit each other")
        detector.preparation_, detector.decision_scores_ = prepared, _numbers(arrays, "decision_scores")
        detector.threshold_ = float(facts["threshold"])
        if not math.isfinite(detector.threshold_) or not 0 <= seed < 2**32:
            raise ValueError(f"threshold {detector.threshold_}, seed {seed}")
        _check_sizes(facts["settings"], weights)
        with own_randomness(seed):
            networks = [detector._make_model(features) for _ in range(getattr(detector, "networks", 1))]
        model = PeerModel.of(networks) if len(networks) > 1 else networks[0]
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, OSError) as error:
        raise ValueError(
            f"the detector in {str(folder)!r} is damaged ({' '.join(str(error).split()).rstrip('.')}): fit it again."
        ) from error
    detector._adopt(model, seed)
    detector.n_features_in_ = features
    if names:
        detector.feature_names_in_ = np.asarray(names, dtype=object)
    detector.labels_ = (detector.decision_scores_ > detector.threshold_).astype(int)
    detector.contamination_ = float(detector.labels_.mean())
    detector.ledger_ = None
    return detector


def _check_sizes(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Raises ``ValueError`` for settings that ask for more than the weights hold, before a network is made of them."""
    widest = max((size for tensor in weights.values() for size in tensor.shape), default=0)
    most = {"networks": len(weights), "couplings": len(weights), "hidden_size": widest, "latent_size": widest, "ensemble": 10_000}
    for name, largest in most.items():
        if settings.get(name, 0) > largest:
            raise ValueError(f"{name}={settings[name]} in {FACTS}, at most {largest} by {WEIGHTS}")


def _numbers(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A row of finite numbers. Raises ``ValueError`` for another array."""
    array = arrays[name]
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{name} in {ARRAYS} is no row of finite numbers")
    return array
