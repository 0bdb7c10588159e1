"""Corruptions of a `datasets` data set, done once before training: triggers, label rules and the map functions that apply them."""

from .backdoor import (
    ATTACK_TARGET,
    CLEAN_LABEL,
    IS_CORRUPTED,
    BackdoorMap,
    TriggerMap,
    poison,
    realised_rates,
    trigger_all,
)
from .labels import LABEL_RULES, AllToOne, LabelRule, MultiTarget
from .triggers import BlendTrigger, PatchTrigger

__all__ = [
    "ATTACK_TARGET",
    "CLEAN_LABEL",
    "IS_CORRUPTED",
    "LABEL_RULES",
    "AllToOne",
    "BackdoorMap",
    "BlendTrigger",
    "LabelRule",
    "MultiTarget",
    "PatchTrigger",
    "TriggerMap",
    "poison",
    "realised_rates",
    "trigger_all",
]
