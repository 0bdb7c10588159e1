"""What is known of labels before training: neighbours, a linear model, a noise transition, shared patterns, near-duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .judge import COMPARED, NUMBERS, LabelEvidence, judge_labels, with_earlier
    from .label_model import most_telling, tells_more
    from .later_look import refined_rate
    from .tied_tokens import TiedTokens, triggers_among

__all__ = [
    "COMPARED", "LabelEvidence", "NUMBERS", "TiedTokens", "judge_labels", "most_telling", "refined_rate", "tells_more",
    "triggers_among", "with_earlier",
]  # fmt: skip
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "COMPARED": "judge",
        "LabelEvidence": "judge",
        "NUMBERS": "judge",
        "TiedTokens": "tied_tokens",
        "judge_labels": "judge",
        "most_telling": "label_model",
        "refined_rate": "later_look",
        "tells_more": "label_model",
        "triggers_among": "tied_tokens",
        "with_earlier": "judge",
    },
)
