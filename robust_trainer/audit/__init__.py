"""The audit of a run, or of a data set alone: which samples to distrust and why, and what is left without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from ..reporting.results import curves
    from .build import make_audit
    from .cleaned import write_cleaned
    from .dataset import audit_dataset
    from .load import load_ledger
    from .model_card import write_model_card
    from .report import write_audit_report
    from .result import GROUPS, Audit

__all__ = [
    "Audit",
    "GROUPS",
    "audit_dataset",
    "curves",
    "load_ledger",
    "make_audit",
    "write_audit_report",
    "write_cleaned",
    "write_model_card",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Audit": "result",
        "GROUPS": "result",
        "audit_dataset": "dataset",
        "curves": ".reporting.results",
        "load_ledger": "load",
        "make_audit": "build",
        "write_audit_report": "report",
        "write_cleaned": "cleaned",
        "write_model_card": "model_card",
    },
)
