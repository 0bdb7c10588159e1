"""Corruptions of a `datasets` data set, done once before training: triggers, wrong labels, wrong targets, poisons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from ..data.label_rules import LABEL_RULES, AllToOne, LabelRule, MultiTarget
    from ..data.mapping import ATTACK_TARGET, CLEAN_LABEL, IS_CORRUPTED
    from ..data.pixels import IS_POISONED
    from .backdoors.poisoning import BackdoorMap, TriggerMap, poison, trigger_all
    from .backdoors.triggers import TRIGGERS, BlendTrigger, PatchTrigger, PixelTrigger, Trigger
    from .crafted.craft_labels import CRAFTED, craft_labels
    from .label_noise.human import use_noisy_labels
    from .label_noise.instance import InstanceNoiseMap
    from .label_noise.labels import LabelNoiseMap, corrupt_labels, nominal_rates
    from .label_noise.regression import TARGET_KINDS, corrupt_target_array, corrupt_targets
    from .label_noise.transitions import CLASS_MAPS, NOISES, noise_transition
    from .poisons.card import poison_record, write_card
    from .poisons.poison_images import POISONS, Poison, poison_images, realised_norms, self_check
    from .rates import realised_rates, realised_transition

__all__ = [
    "ATTACK_TARGET",
    "AllToOne",
    "BackdoorMap",
    "BlendTrigger",
    "CLASS_MAPS",
    "CLEAN_LABEL",
    "CRAFTED",
    "IS_CORRUPTED",
    "IS_POISONED",
    "InstanceNoiseMap",
    "LABEL_RULES",
    "LabelNoiseMap",
    "LabelRule",
    "MultiTarget",
    "NOISES",
    "POISONS",
    "PatchTrigger",
    "PixelTrigger",
    "Poison",
    "TARGET_KINDS",
    "TRIGGERS",
    "Trigger",
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
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ATTACK_TARGET": ".data.mapping",
        "AllToOne": ".data.label_rules",
        "BackdoorMap": "backdoors.poisoning",
        "BlendTrigger": "backdoors.triggers",
        "CLASS_MAPS": "label_noise.transitions",
        "CLEAN_LABEL": ".data.mapping",
        "CRAFTED": "crafted.craft_labels",
        "IS_CORRUPTED": ".data.mapping",
        "IS_POISONED": ".data.pixels",
        "InstanceNoiseMap": "label_noise.instance",
        "LABEL_RULES": ".data.label_rules",
        "LabelNoiseMap": "label_noise.labels",
        "LabelRule": ".data.label_rules",
        "MultiTarget": ".data.label_rules",
        "NOISES": "label_noise.transitions",
        "POISONS": "poisons.poison_images",
        "PatchTrigger": "backdoors.triggers",
        "PixelTrigger": "backdoors.triggers",
        "Poison": "poisons.poison_images",
        "TARGET_KINDS": "label_noise.regression",
        "TRIGGERS": "backdoors.triggers",
        "Trigger": "backdoors.triggers",
        "TriggerMap": "backdoors.poisoning",
        "corrupt_labels": "label_noise.labels",
        "corrupt_target_array": "label_noise.regression",
        "corrupt_targets": "label_noise.regression",
        "craft_labels": "crafted.craft_labels",
        "noise_transition": "label_noise.transitions",
        "nominal_rates": "label_noise.labels",
        "poison": "backdoors.poisoning",
        "poison_images": "poisons.poison_images",
        "poison_record": "poisons.card",
        "realised_norms": "poisons.poison_images",
        "realised_rates": "rates",
        "realised_transition": "rates",
        "self_check": "poisons.poison_images",
        "trigger_all": "backdoors.poisoning",
        "use_noisy_labels": "label_noise.human",
        "write_card": "poisons.card",
    },
)
