"""Corruptions of a `datasets` data set, done once before training: triggers, wrong labels, wrong targets."""

from .backdoor import ATTACK_TARGET, BackdoorMap, TriggerMap, poison, trigger_all
from .human import use_noisy_labels
from .instance import InstanceNoiseMap
from .labels import LabelNoiseMap, corrupt_labels, nominal_rates
from .mapping import CLEAN_LABEL, IS_CORRUPTED
from .rates import realised_rates, realised_transition
from .regression import TARGET_KINDS, corrupt_target_array, corrupt_targets
from .rules import LABEL_RULES, AllToOne, LabelRule, MultiTarget
from .transitions import CLASS_MAPS, NOISES, noise_transition
from .triggers import BlendTrigger, PatchTrigger

__all__ = [
    "ATTACK_TARGET",
    "CLASS_MAPS",
    "CLEAN_LABEL",
    "IS_CORRUPTED",
    "LABEL_RULES",
    "NOISES",
    "TARGET_KINDS",
    "AllToOne",
    "BackdoorMap",
    "BlendTrigger",
    "InstanceNoiseMap",
    "LabelNoiseMap",
    "LabelRule",
    "MultiTarget",
    "PatchTrigger",
    "TriggerMap",
    "corrupt_labels",
    "corrupt_target_array",
    "corrupt_targets",
    "noise_transition",
    "nominal_rates",
    "poison",
    "realised_rates",
    "realised_transition",
    "trigger_all",
    "use_noisy_labels",
]
