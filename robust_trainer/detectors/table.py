"""Every detection baseline as one row of a table, and `detect`, which asks one by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import logging

from ..reporting.suggest import did_you_mean
from .activation_clustering import activation_clustering
from .confident_joint import confident_learning
from .consistency import feature_consistency
from .detection import Detection, tied
from .evidence import Evidence
from .flare import flare
from .frequency import frequency
from .isolation_forest import isolation_forest
from .loss_isolation import loss_isolation
from .scan import scan
from .spectral import spectral, spectral_code

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Detector:
    """One rule: what it needs of the `Evidence`, and its settings with their defaults.

    Attributes:
        name: the key in `DETECTORS`.
        summary: what a suspicious sample is, in a few words.
        source: author, year and title.
        needs: the fields of `Evidence` that may not be None; where ``clean`` is among them, the clean rows need the other ones too.
        clean_rows: what clean data it needs; None where it needs none.
        function: ``(evidence, rate, seed, *, setting=default, ...) -> Detection``; its keywords are the settings.
    """

    name: str
    summary: str
    source: str
    needs: tuple[str, ...]
    function: Callable[..., Detection]
    clean_rows: str | None = None

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Returns the settings that the rule takes, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


_SPECTRAL = "Tran, Li and Madry 2018, Spectral signatures in backdoor attacks, Algorithm 1"
_ROWS = (
    Detector("spectral", "far out along the class's first singular direction", _SPECTRAL, ("features",), spectral),
    Detector(
        "spectral-code", "the same by the authors' code: not centred, above the 85th percentile", _SPECTRAL, ("features",),
        spectral_code,
    ),
    Detector(
        "activation-clustering", "in the smaller of the class's two clusters",
        "Chen et al. 2018, Detecting backdoor attacks on deep neural networks by activation clustering", ("features",),
        activation_clustering,
    ),
    Detector(
        "loss-isolation", "learned first: the lowest early losses",
        "Li et al. 2021, Anti-backdoor learning: training clean models on poisoned data", ("losses",), loss_isolation,
    ),
    Detector(
        "confident-joint", "predicted confidently as another class",
        "Northcutt, Jiang and Chuang 2021, Confident learning: estimating uncertainty in dataset labels", ("probs",),
        confident_learning,
    ),
    Detector(
        "isolation-forest", "soon alone under random cuts of the class's features",
        "Liu, Ting and Zhou 2008, Isolation forest", ("features",), isolation_forest,
    ),
    Detector(
        "scan", "in the second of two groups that a class's features are, by a likelihood-ratio test",
        "Tang et al. 2021, Demon in the variant: statistical analysis of DNNs for robust backdoor contamination detection",
        ("features", "clean"), scan, "some rows of every class, 10 or more",
    ),
    Detector(
        "frequency", "has an artefact by its cosine transform",
        "Zeng et al. 2021, Rethinking the backdoor attacks' triggers: a frequency perspective", ("images", "clean"), frequency,
        "some hundred images; their labels do not matter",
    ),
    Detector(
        "fct", "its features change most when the image is turned and shifted",
        "Chen, Wu and Wang 2022, Effective backdoor defense by exploiting sensitivity of poisoned samples", ("consistency",),
        feature_consistency,
    ),
    Detector(
        "flare", "in a dense group of rows that the hidden layers find unlikely in the same way",
        "Hou et al. 2024, FLARE: towards universal dataset purification against backdoor attacks", ("layers",), flare,
    ),
)  # fmt: skip
#: Every detection baseline by its name.
DETECTORS: Mapping[str, Detector] = {row.name: row for row in _ROWS}
_MEND = {
    "features": "use collect_evidence on a model that ends in a linear layer",
    "probs": "train with ledger_predictions=True (RobustConfig) and use evidence_of, or use collect_evidence",
    "losses": "use collect_evidence early in training, after isolation_recipe",
    "layers": "use collect_evidence(..., needs=('layers',))",
    "consistency": "use collect_evidence(..., needs=('consistency',)) on a model that takes images",
    "images": "use collect_evidence(..., needs=('images',)) on a model that takes images",
}


def detect(name: str, evidence: Evidence, *, rate: float | None = None, seed: int = 0, **settings: Any) -> Detection:
    """Returns the answer of a detector of `DETECTORS`; equal for equal arguments.

    Args:
        name: a key of `DETECTORS`.
        evidence: of all training samples.
        rate: the expected share of bad samples in [0, 1), for the rules that remove a share (spectral needs it; isolation-forest
            and loss-isolation have a rule without it; the others ignore it).
        seed: for the rules that draw.
        settings: the detector's own (``DETECTORS[name].defaults``).

    Raises:
        ValueError: for an unknown name or setting, a value out of range, and evidence that the rule needs and is not there.
    """
    if not isinstance(name, str) or name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}: {did_you_mean(name, DETECTORS)}choose one of {', '.join(DETECTORS)}.")
    row = DETECTORS[name]
    unknown = [setting for setting in settings if setting not in row.defaults]
    if unknown:
        raise ValueError(f"detector {name!r} has no setting {unknown[0]!r}: it takes {', '.join(row.defaults)}.")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1):
        raise ValueError(f"rate={rate!r}: expected the share of bad samples, from 0 to below 1.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r}: expected a whole number from 0 to 2**32 - 1.")
    for part, whose in ((evidence, "this evidence"), (evidence.clean, "the evidence of the clean rows")):
        if part is None:
            if "clean" in row.needs:
                raise ValueError(f"detector {name!r} needs clean rows ({row.clean_rows}): give collect_evidence clean=.")
            continue
        for need in row.needs:
            if need != "clean" and getattr(part, need) is None and (part is evidence or "clean" in row.needs):
                raise ValueError(f"detector {name!r} needs {need}, which {whose} has not: {_MEND[need]}.")
    detection = row.function(evidence, None if rate is None else float(rate), seed, **settings)
    assert detection.scores.shape == detection.flagged.shape == (len(evidence),) and bool(np.isfinite(detection.scores).all())
    if equal := tied(evidence, detection):
        logger.warning(
            f"detector {name!r}: {equal} samples have the very score of a flagged sample of their class and are not flagged: "
            "the number to flag was reached; look at detection.scores."
        )
    return detection
