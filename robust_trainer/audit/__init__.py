"""The audit of a run: which samples to distrust and why, and what is left without them."""

from .build import make_audit
from .cleaned import clean, write_cleaned
from .load import load_ledger
from .model_card import write_model_card
from .report import write_audit_report
from .result import GROUPS, Audit

__all__ = ["GROUPS", "Audit", "clean", "load_ledger", "make_audit", "write_audit_report", "write_cleaned", "write_model_card"]
