"""Corruptions of a `datasets` data set, done once before training: triggers, wrong labels, wrong targets."""

from .availability import POISONS, Poison, poison_images, realised_norms, self_check
from .backdoor import ATTACK_TARGET, BackdoorMap, TriggerMap, poison, trigger_all
from .crafted import CRAFTED, craft_labels
from .human import use_noisy_labels
from .instance import InstanceNoiseMap
from .labels import LabelNoiseMap, corrupt_labels, nominal_rates
from .mapping import CLEAN_LABEL, IS_CORRUPTED
from .poison_card import poison_record, write_card
from .poison_pixels import IS_POISONED
from .rates import realised_rates, realised_transition
from .regression import TARGET_KINDS, corrupt_target_array, corrupt_targets
from .rules import LABEL_RULES, AllToOne, LabelRule, MultiTarget
from .transitions import CLASS_MAPS, NOISES, noise_transition
from .triggers import BlendTrigger, PatchTrigger

__all__ = [
    "ATTACK_TARGET",
    "CLASS_MAPS",
    "CLEAN_LABEL",
    "CRAFTED",
    "IS_CORRUPTED",
    "IS_POISONED",
    "LABEL_RULES",
    "NOISES",
    "POISONS",
    "TARGET_KINDS",
    "AllToOne",
    "BackdoorMap",
    "BlendTrigger",
    "InstanceNoiseMap",
    "LabelNoiseMap",
    "LabelRule",
    "MultiTarget",
    "PatchTrigger",
    "Poison",
    "TriggerMap",
    "corrupt_labels",
    "corrupt_target_array",
    "corrupt_targets",
    "craft_labels",
    "noise_transition",
    "nominal_rates",
    "poison",
    "poison_images",
    "poison_record",
    "realised_norms",
    "realised_rates",
    "realised_transition",
    "self_check",
    "trigger_all",
    "use_noisy_labels",
    "write_card",
]
