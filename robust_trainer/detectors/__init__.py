"""Detection baselines: which training samples are bad, judged after a training, and fine-pruning, which repairs the model.

``detect("spectral", evidence_of(trainer), rate=0.1)`` gives scores, higher = more suspicious, and the samples to remove.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .detection import Detection
    from .evidence import Evidence, collect_evidence, evidence_of
    from .fine_pruning import FinePruned, fine_prune
    from .loss_isolation import LocalGradientAscent, isolation_recipe
    from .table import DETECTORS, Detector, detect

__all__ = [
    "DETECTORS",
    "Detection",
    "Detector",
    "Evidence",
    "FinePruned",
    "LocalGradientAscent",
    "collect_evidence",
    "detect",
    "evidence_of",
    "fine_prune",
    "isolation_recipe",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DETECTORS": "table",
        "Detection": "detection",
        "Detector": "table",
        "Evidence": "evidence",
        "FinePruned": "fine_pruning",
        "LocalGradientAscent": "loss_isolation",
        "collect_evidence": "evidence",
        "detect": "table",
        "evidence_of": "evidence",
        "fine_prune": "fine_pruning",
        "isolation_recipe": "loss_isolation",
    },
)
