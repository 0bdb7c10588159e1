"""Corruptions of a `datasets` data set, done once before training: triggers, wrong labels, wrong targets, poisons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from ..data.label_rules import (
        LABEL_RULES,
        AllToOne,
        BackdoorRule,
        CleanLabel,
        LabelRule,
        MultiTarget,
        SourceSpecific,
        Untargeted,
    )
    from ..data.mapping import ATTACK_TARGET, CLEAN_LABEL, IS_CORRUPTED, IS_COVER
    from ..data.pixels import IS_POISONED
    from .backdoors.blends import AdaptiveBlendTrigger, BlendTrigger
    from .backdoors.hidden_string import HiddenStringTrigger
    from .backdoors.input_aware import InputAwareTrigger
    from .backdoors.narcissus import OptimisedPatternTrigger
    from .backdoors.patches import AdaptivePatchTrigger, PatchesTrigger, PatchTrigger
    from .backdoors.physical import PhysicalTrigger
    from .backdoors.pixel_trigger import PixelTrigger
    from .backdoors.poisoning import BackdoorMap, TriggerMap, poison, trigger_all
    from .backdoors.saved_triggers import load_trigger, save_trigger
    from .backdoors.signals import LowFrequencyTrigger, QuantisationTrigger, SinusoidTrigger
    from .backdoors.sounds import AudioTrigger, BackgroundTrigger, ToneTrigger
    from .backdoors.texts import SentenceTrigger, SyntaxTrigger, TextTrigger, WordTrigger
    from .backdoors.trained_trigger import TrainedTrigger
    from .backdoors.triggers import TRIGGERS, AnyTrigger, Trigger, triggers_of
    from .backdoors.warping import WarpTrigger
    from .backdoors.with_network import NETWORK_BACKDOORS, PerturbedTrigger, network_trigger, poison_with_network
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
    "AdaptiveBlendTrigger",
    "AdaptivePatchTrigger",
    "AllToOne",
    "AnyTrigger",
    "AudioTrigger",
    "BackdoorMap",
    "BackdoorRule",
    "BackgroundTrigger",
    "BlendTrigger",
    "CLASS_MAPS",
    "CLEAN_LABEL",
    "CRAFTED",
    "CleanLabel",
    "HiddenStringTrigger",
    "IS_CORRUPTED",
    "IS_COVER",
    "IS_POISONED",
    "InputAwareTrigger",
    "InstanceNoiseMap",
    "LABEL_RULES",
    "LabelNoiseMap",
    "LabelRule",
    "LowFrequencyTrigger",
    "MultiTarget",
    "NETWORK_BACKDOORS",
    "NOISES",
    "OptimisedPatternTrigger",
    "POISONS",
    "PatchTrigger",
    "PatchesTrigger",
    "PerturbedTrigger",
    "PhysicalTrigger",
    "PixelTrigger",
    "Poison",
    "QuantisationTrigger",
    "SentenceTrigger",
    "SinusoidTrigger",
    "SourceSpecific",
    "SyntaxTrigger",
    "TARGET_KINDS",
    "TRIGGERS",
    "TextTrigger",
    "ToneTrigger",
    "TrainedTrigger",
    "Trigger",
    "TriggerMap",
    "Untargeted",
    "WarpTrigger",
    "WordTrigger",
    "corrupt_labels",
    "corrupt_target_array",
    "corrupt_targets",
    "craft_labels",
    "load_trigger",
    "network_trigger",
    "noise_transition",
    "nominal_rates",
    "poison",
    "poison_images",
    "poison_record",
    "poison_with_network",
    "realised_norms",
    "realised_rates",
    "realised_transition",
    "save_trigger",
    "self_check",
    "trigger_all",
    "triggers_of",
    "use_noisy_labels",
    "write_card",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ATTACK_TARGET": ".data.mapping",
        "AdaptiveBlendTrigger": "backdoors.blends",
        "AdaptivePatchTrigger": "backdoors.patches",
        "AllToOne": ".data.label_rules",
        "AnyTrigger": "backdoors.triggers",
        "AudioTrigger": "backdoors.sounds",
        "BackdoorMap": "backdoors.poisoning",
        "BackdoorRule": ".data.label_rules",
        "BackgroundTrigger": "backdoors.sounds",
        "BlendTrigger": "backdoors.blends",
        "CLASS_MAPS": "label_noise.transitions",
        "CLEAN_LABEL": ".data.mapping",
        "CRAFTED": "crafted.craft_labels",
        "CleanLabel": ".data.label_rules",
        "HiddenStringTrigger": "backdoors.hidden_string",
        "IS_CORRUPTED": ".data.mapping",
        "IS_COVER": ".data.mapping",
        "IS_POISONED": ".data.pixels",
        "InputAwareTrigger": "backdoors.input_aware",
        "InstanceNoiseMap": "label_noise.instance",
        "LABEL_RULES": ".data.label_rules",
        "LabelNoiseMap": "label_noise.labels",
        "LabelRule": ".data.label_rules",
        "LowFrequencyTrigger": "backdoors.signals",
        "MultiTarget": ".data.label_rules",
        "NETWORK_BACKDOORS": "backdoors.with_network",
        "NOISES": "label_noise.transitions",
        "OptimisedPatternTrigger": "backdoors.narcissus",
        "POISONS": "poisons.poison_images",
        "PatchTrigger": "backdoors.patches",
        "PatchesTrigger": "backdoors.patches",
        "PerturbedTrigger": "backdoors.with_network",
        "PhysicalTrigger": "backdoors.physical",
        "PixelTrigger": "backdoors.pixel_trigger",
        "Poison": "poisons.poison_images",
        "QuantisationTrigger": "backdoors.signals",
        "SentenceTrigger": "backdoors.texts",
        "SinusoidTrigger": "backdoors.signals",
        "SourceSpecific": ".data.label_rules",
        "SyntaxTrigger": "backdoors.texts",
        "TARGET_KINDS": "label_noise.regression",
        "TRIGGERS": "backdoors.triggers",
        "TextTrigger": "backdoors.texts",
        "ToneTrigger": "backdoors.sounds",
        "TrainedTrigger": "backdoors.trained_trigger",
        "Trigger": "backdoors.triggers",
        "TriggerMap": "backdoors.poisoning",
        "Untargeted": ".data.label_rules",
        "WarpTrigger": "backdoors.warping",
        "WordTrigger": "backdoors.texts",
        "corrupt_labels": "label_noise.labels",
        "corrupt_target_array": "label_noise.regression",
        "corrupt_targets": "label_noise.regression",
        "craft_labels": "crafted.craft_labels",
        "load_trigger": "backdoors.saved_triggers",
        "network_trigger": "backdoors.with_network",
        "noise_transition": "label_noise.transitions",
        "nominal_rates": "label_noise.labels",
        "poison": "backdoors.poisoning",
        "poison_images": "poisons.poison_images",
        "poison_record": "poisons.card",
        "poison_with_network": "backdoors.with_network",
        "realised_norms": "poisons.poison_images",
        "realised_rates": "rates",
        "realised_transition": "rates",
        "save_trigger": "backdoors.saved_triggers",
        "self_check": "poisons.poison_images",
        "trigger_all": "backdoors.poisoning",
        "triggers_of": "backdoors.triggers",
        "use_noisy_labels": "label_noise.human",
        "write_card": "poisons.card",
    },
)
