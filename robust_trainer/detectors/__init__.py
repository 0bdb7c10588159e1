"""Detection baselines: which training samples are bad, judged after a training; and repairs, which take a backdoor out of a model.

``detect("spectral", evidence_of(trainer), rate=0.1)`` gives scores, higher = more suspicious, and the samples to remove;
``repair("fine-pruning", model, train, args, clean=clean).model`` a repaired copy. Every detector is a row of `DETECTORS`, every
repair one of `REPAIRS`; the rows say what they need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .detection import Detection
    from .evidence import Evidence, collect_evidence, evidence_of
    from .loss_isolation import LocalGradientAscent, isolation_recipe
    from .odd_words import CausalModel, NGramModel, onion, word_suspicions
    from .repairs.fine_pruning import FinePruned, fine_prune
    from .repairs.repaired import Repaired
    from .repairs.table import REPAIRS, Repair, repair
    from .table import DETECTORS, Detector, detect

__all__ = [
    "CausalModel",
    "DETECTORS",
    "REPAIRS",
    "Detection",
    "Detector",
    "Evidence",
    "FinePruned",
    "LocalGradientAscent",
    "NGramModel",
    "Repair",
    "Repaired",
    "collect_evidence",
    "detect",
    "evidence_of",
    "fine_prune",
    "isolation_recipe",
    "onion",
    "repair",
    "word_suspicions",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CausalModel": "odd_words",
        "DETECTORS": "table",
        "REPAIRS": "repairs.table",
        "Detection": "detection",
        "Detector": "table",
        "Evidence": "evidence",
        "FinePruned": "repairs.fine_pruning",
        "LocalGradientAscent": "loss_isolation",
        "NGramModel": "odd_words",
        "Repair": "repairs.table",
        "Repaired": "repairs.repaired",
        "collect_evidence": "evidence",
        "detect": "table",
        "evidence_of": "evidence",
        "fine_prune": "repairs.fine_pruning",
        "isolation_recipe": "loss_isolation",
        "onion": "odd_words",
        "repair": "repairs.table",
        "word_suspicions": "odd_words",
    },
)
