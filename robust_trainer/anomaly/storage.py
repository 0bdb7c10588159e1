"""A fitted detector in a folder, without pickle: the model as transformers saves it, beside it JSON and safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from transformers import AutoModel

import robust_trainer

from ..audit.files import replacing, write_text
from ..best_weights import no_bars
from . import detectors
from .estimator import AnomalyDetector
from .preparation import Preparation

FACTS, ARRAYS = "detector.json", "detector.safetensors"
_ARRAYS = ("fill", "centre", "scale")


def save_detector(detector: AnomalyDetector, folder: str | Path) -> Path:
    """Writes a fitted detector to a folder and returns it: config.json, model.safetensors, detector.json, detector.safetensors.

    The ledger of the training is not kept: write it by ``detector.ledger_.to_parquet``. Raises ``ValueError`` for a random_state
    that is a generator, which JSON cannot hold.
    """
    if not hasattr(detector, "threshold_"):
        raise ValueError(f"this {type(detector).__name__} is not fitted yet: call fit first.")
    settings = {k: v.item() if isinstance(v, np.generic) else v for k, v in detector.get_params().items()}
    if not isinstance(settings["random_state"], int | None):
        raise ValueError(f"random_state={settings['random_state']!r} cannot be saved: give a whole number.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with no_bars():
        detector.model_.save_pretrained(folder)
    prepared = {name: getattr(detector.preparation_, name) for name in _ARRAYS}
    with replacing(folder / ARRAYS) as new:
        safetensors.numpy.save_file({**prepared, "decision_scores": detector.decision_scores_}, new)
    facts: dict[str, Any] = {
        "detector": type(detector).__name__, "settings": settings, "threshold": detector.threshold_, "seed": detector.seed_,
        "names": [str(n) for n in getattr(detector, "feature_names_in_", ())], "robust_trainer": robust_trainer.__version__,
    }  # fmt: skip
    write_text(folder / FACTS, json.dumps(facts, indent=2) + "\n")
    return folder


def load_detector(folder: str | Path) -> AnomalyDetector:
    """The detector that `save_detector` wrote, fitted. Raises ``ValueError`` where the folder holds none, or a damaged one."""
    folder = Path(folder)
    if not (folder / FACTS).is_file():
        raise ValueError(f"{str(folder)!r} holds no detector: it has no {FACTS}.")
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        arrays = safetensors.numpy.load_file(folder / ARRAYS)
        kind = {"RCA": detectors.RCA, "RobustRealNVP": detectors.RobustRealNVP}[facts["detector"]]
        found = kind(**facts["settings"])
        found.preparation_ = Preparation(*(arrays[name] for name in _ARRAYS))
        found.decision_scores_, found.threshold_ = arrays["decision_scores"], float(facts["threshold"])
        with no_bars():
            found._adopt(AutoModel.from_pretrained(folder), int(facts["seed"]))
        names = facts["names"]
    except (KeyError, TypeError, json.JSONDecodeError, SafetensorError, OSError) as error:
        raise ValueError(f"the detector in {str(folder)!r} is damaged: {' '.join(str(error).split())}.") from error
    found.n_features_in_ = len(found.preparation_.fill)
    if names:
        found.feature_names_in_ = np.asarray(names, dtype=object)
    found.labels_ = (found.decision_scores_ > found.threshold_).astype(int)
    found.contamination_ = float(found.labels_.mean())
    found.ledger_ = None
    return found
