"""Corruptions of a `datasets` data set, done once before training: triggers, wrong labels, wrong targets."""

from .backdoors.poisoning import ATTACK_TARGET, BackdoorMap, TriggerMap, poison, trigger_all
from .backdoors.triggers import BlendTrigger, PatchTrigger
from .crafted.craft_labels import CRAFTED, craft_labels
from .label_noise.human import use_noisy_labels
from .label_noise.instance import InstanceNoiseMap
from .label_noise.labels import LabelNoiseMap, corrupt_labels, nominal_rates
from .label_noise.regression import TARGET_KINDS, corrupt_target_array, corrupt_targets
from .label_noise.transitions import CLASS_MAPS, NOISES, noise_transition
from .label_rules import LABEL_RULES, AllToOne, LabelRule, MultiTarget
from .mapping import CLEAN_LABEL, IS_CORRUPTED
from .poisons.card import poison_record, write_card
from .poisons.pixels import IS_POISONED
from .poisons.poison_images import POISONS, Poison, poison_images, realised_norms, self_check
from .rates import realised_rates, realised_transition

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
