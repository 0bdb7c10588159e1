"""What several commands take: which data, which corruption, which preprocessing, which model."""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..corruptions import (
    CLASS_MAPS,
    LABEL_RULES,
    NOISES,
    TRIGGERS,
    AllToOne,
    AnyTrigger,
    BackdoorRule,
    CleanLabel,
    LabelRule,
    PhysicalTrigger,
    PixelTrigger,
    SourceSpecific,
    Trigger,
    triggers_of,
)
from ..data.augmentation.squeezing import SQUEEZES, Squeeze, make_squeeze
from ..methods.settings import GivenTwice, parse_json
from ..reporting.suggest import did_you_mean
from .poison_options import read_settings

CORRUPTIONS = ("none", *TRIGGERS, *NOISES)
_IMAGE_HELP, _TEXT_HELP, _AUDIO_HELP = (
    ", ".join(f"{name} ({TRIGGERS[name].summary})" for name in triggers_of(kind)) for kind in ("image", "text", "audio")
)


@dataclass
class DataOptions:
    """Which images, texts or sounds, and how many."""

    _argument_group_name = "data"

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "A folder of images or sounds; a parquet, CSV or JSON file or a folder of them; a save_to_disk folder, a hub "
            "name, or digits (built in). Always given."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    image_column: str | None = field(default=None, metadata={"help": "Default: the only Image column."})
    text_column: str | None = field(
        default=None, metadata={"help": "Default: text, sentence, content, ..., or the only column of strings beside the labels."}
    )
    audio_column: str | None = field(default=None, metadata={"help": "Default: the only column of sounds."})
    label_column: str | None = field(default=None, metadata={"help": "Default: label, labels, fine_label, target, class or y."})
    test_split: str | None = field(
        default=None, metadata={"help": "Default: test, else validation, where labelled; else a fifth of train."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Keep so many, chosen by split_seed. Default: all."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Keep so many, chosen by split_seed. Default: all."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the split and of max_*_samples."})

    def source(self) -> str:
        """Returns the data set's name or place. Raises a one-line ``ValueError`` where none is given."""
        if self.dataset is None:
            raise ValueError(
                "dataset is missing: give --dataset with a folder of images, a parquet, CSV or JSON file or a folder of them, a "
                "save_to_disk folder, a hub name, or digits."
            )
        return self.dataset


#: Options that are settings of some triggers alone.
_TRIGGER_OPTIONS = ("patch_size", "patch_position", "alpha", "blend_std", "blend_picture")


@dataclass
class CorruptionOptions:
    """The poison: a trigger, the labels that come with it, and how many samples get both; or wrong labels alone."""

    _argument_group_name = "corruption"

    corrupt: str = field(
        default="none",
        metadata={
            "help": f"none; a trigger for images: {_IMAGE_HELP}; for texts: {_TEXT_HELP}; for sounds: {_AUDIO_HELP}; or "
            "wrong labels: symmetric (other class), symmetric-redraw (any class), pairflip (i to i+1), asymmetric (class_map), "
            "transition (transition_matrix) or instance (by the image)."
        },
    )
    corrupt_rate: float = field(
        default=0.25, metadata={"help": "Share of training samples to corrupt, [0, 1); asymmetric: of the source classes."}
    )
    class_map: str | None = field(
        default=None, metadata={"help": f"For asymmetric: {' or '.join(CLASS_MAPS)}, or source:target pairs as 9:1,2:0."}
    )
    transition_matrix: str | None = field(
        default=None, metadata={"help": "For transition: .npy, .json or .csv file; row i: probabilities of the labels of class i."}
    )
    noise_form: str = field(
        default="exact", metadata={"help": "Wrong labels: exact (counts) or probability (each label drawn on its own)."}
    )
    noisy_label_column: str | None = field(
        default=None, metadata={"help": "Column of real noisy labels to train on, such as worse_label; without corrupt."}
    )
    label_rule: str = field(
        default="multi-target",
        metadata={
            "help": "Of a trigger: multi-target (i to i+1), all-to-one (to target_label), source-specific (source_label to "
            "target_label; the trigger on other classes changes nothing), untargeted (any other class) or clean-label (on "
            "images of target_label alone, whose label stays)."
        },
    )
    target_label: int = field(default=0, metadata={"help": "The class that the attacker wants, by number."})
    patch_size: int = field(default=3, metadata={"help": "Side of the patch in pixels of the original image."})
    patch_position: str = field(
        default="bottom-right", metadata={"help": "top-left, top-right, bottom-left, bottom-right or center."}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "Share of the blend's picture, (0, 1]. Default: 0.1; adaptive-blend, at test time: 0.2."}
    )
    blend_std: float = field(default=0.25, metadata={"help": "Std of the blend's noise picture, in [0, 1] pixels."})
    blend_picture: str | None = field(default=None, metadata={"help": "Image file to blend in instead of noise."})
    trigger_settings: str | None = field(
        default=None, metadata={"help": "The trigger's other settings, as name=value,name=value, or JSON."}
    )
    physical: str | None = field(
        default=None,
        metadata={
            "help": "Move the trigger in every image, as a camera sees it: shift=0.1,scale=0.2,rotation=15,brightness=0.2, or some "
            "of these (PhysicalTrigger). For triggers that lie over the image, such as patch and blend."
        },
    )
    corrupt_seed: int = field(default=0, metadata={"help": "Seed of the trigger's draws and of the choice of samples."})
    source_label: str | None = field(
        default=None, metadata={"help": "Of source-specific: a class, or several as 1,2,5, by number. Default: 1."}
    )
    cover_rate: float | None = field(
        default=None,
        metadata={
            "help": "Share of training samples that carry the trigger but keep their label, [0, 1). Default: as the attack's "
            "paper has it: none, or for source-specific, warp, adaptive-blend and adaptive-patch a multiple of corrupt_rate."
        },
    )

    def trigger(self) -> AnyTrigger | None:
        """Returns the trigger, None for 'none' and for wrong labels alone.

        Raises:
            ValueError: in one line, for settings out of range or unknown to the trigger.
        """
        self._check()
        row = TRIGGERS.get(self.corrupt)
        if row is None:
            return None
        settings = {keyword: getattr(self, option) for option, keyword in row.options.items()}
        settings = {keyword: value for keyword, value in settings.items() if value is not None}
        more = read_settings("trigger_settings", self.trigger_settings, "size=5,position=center")
        self._check_once(row, more)
        settings.update(more)
        known = inspect.signature(row.make).parameters
        unknown = next((name for name in settings if name not in known), None)
        if unknown is not None:
            raise ValueError(f"trigger {row.name!r} has no setting {unknown!r}: it takes {', '.join(known)}.")
        try:
            made = row.make(**settings)
        except TypeError as error:
            raise ValueError(f"trigger {row.name!r} cannot use {settings}: {error}.") from None
        return made if self.physical is None else self._physical(made)

    def _physical(self, trigger: AnyTrigger) -> AnyTrigger:
        """The trigger as a camera sees it."""
        if not isinstance(trigger, PixelTrigger):
            raise ValueError(
                f"physical={self.physical!r} is for triggers of images, corrupt={self.corrupt!r} is for texts: drop it."
            )
        settings = read_settings("physical", self.physical, "shift=0.1,rotation=15")
        known = [name for name in inspect.signature(PhysicalTrigger).parameters if name not in ("trigger", "seed")]
        unknown = next((name for name in settings if name not in known), None)
        if unknown is not None:
            raise ValueError(f"physical={self.physical!r} has no setting {unknown!r}: it takes {', '.join(known)}.")
        return PhysicalTrigger(trigger, seed=self.corrupt_seed, **settings)

    def _check_once(self, row: Trigger, more: dict[str, Any]) -> None:
        """Raises ``ValueError`` for options that the trigger does not take, and for those that its other settings give again."""
        usual = CorruptionOptions()
        for option in _TRIGGER_OPTIONS:
            value, keyword = getattr(self, option), row.options.get(option)
            if value != getattr(usual, option) and (keyword is None or keyword in more):
                raise ValueError(
                    f"{option}={value!r} has no effect with corrupt={row.name!r}: leave it out."
                    if keyword is None
                    else f"{option}={value!r} and trigger_settings={self.trigger_settings!r} give {keyword!r} twice: leave one out."
                )
        if self.target_label != usual.target_label and self.label_rule in ("multi-target", "untargeted"):
            raise ValueError(
                f"target_label={self.target_label} has no effect with label_rule={self.label_rule!r}: give --label_rule "
                "all-to-one, or leave it out."
            )

    def noise(self) -> dict[str, Any] | None:
        """Returns the settings of `corrupt_labels`, None for 'none' and triggers. Raises ``ValueError`` as `trigger`."""
        self._check()
        if self.corrupt not in NOISES:
            return None
        settings: dict[str, Any] = {"noise": self.corrupt}
        if self.corrupt != "transition":
            settings["rate"] = self.corrupt_rate
        if self.corrupt == "asymmetric":
            settings["class_map"] = read_class_map(self.class_map)
        if self.corrupt == "transition":
            settings["transition_matrix"] = read_matrix(self.transition_matrix)
        return settings

    @property
    def wanted(self) -> bool:
        """Whether anything is to be corrupted."""
        return self.given() is not None

    def given(self) -> tuple[str, str] | None:
        """Returns name and value of the option that says what to corrupt, None for nothing."""
        if self.noisy_label_column is not None:
            return "noisy_label_column", self.noisy_label_column
        return None if self.corrupt == "none" else ("corrupt", self.corrupt)

    def _check(self) -> None:
        if self.corrupt not in CORRUPTIONS:
            hint = did_you_mean(self.corrupt, CORRUPTIONS)
            raise ValueError(f"corrupt={self.corrupt!r} is unknown: {hint}choose one of {', '.join(CORRUPTIONS)}.")
        if not 0 <= self.corrupt_rate < 1:
            raise ValueError(f"corrupt_rate={self.corrupt_rate} must be in [0, 1), a share of samples: give for instance 0.25.")
        if self.noise_form not in ("exact", "probability"):
            raise ValueError(f"noise_form={self.noise_form!r} is unknown: choose exact or probability.")
        if self.noisy_label_column is not None and self.corrupt != "none":
            raise ValueError(
                f"noisy_label_column={self.noisy_label_column!r} and corrupt={self.corrupt!r} would corrupt the labels twice: "
                "leave one of them out."
            )
        self._check_unused()
        for name, owner in (("class_map", "asymmetric"), ("transition_matrix", "transition")):
            value = getattr(self, name)
            if value is not None and self.corrupt != owner:
                raise ValueError(f"{name}={value!r} is given but corrupt={self.corrupt!r} takes none: give --corrupt {owner}.")
            if value is None and self.corrupt == owner:
                raise ValueError(f"corrupt={owner!r} needs {name}: give --{name}, see --help.")
        if self.trigger_settings is not None and self.corrupt not in TRIGGERS:
            raise ValueError(
                f"trigger_settings={self.trigger_settings!r} has no effect without a trigger: give --corrupt {', '.join(TRIGGERS)}."
            )
        if self.physical is not None and self.corrupt not in TRIGGERS:
            raise ValueError(f"physical={self.physical!r} has no effect without a trigger: give --corrupt patch or another one.")
        if self.cover_rate is not None and self.corrupt not in TRIGGERS:
            raise ValueError(
                f"cover_rate={self.cover_rate!r} has no effect without a trigger: give --corrupt {', '.join(TRIGGERS)}."
            )
        if self.cover_rate is not None and not 0 <= self.cover_rate < 1:
            raise ValueError(f"cover_rate={self.cover_rate} must be in [0, 1), a share of samples: give for instance 0.05.")
        if self.source_label is not None and self.label_rule != "source-specific":
            raise ValueError(
                f"source_label={self.source_label!r} has no effect with label_rule={self.label_rule!r}: give --label_rule "
                "source-specific, or leave it out."
            )

    def _check_unused(self) -> None:
        """Raises ``ValueError`` for options that have no effect with what is to be corrupted."""
        if self.corrupt in TRIGGERS:
            unused: tuple[str, ...] = ("noise_form",)
        else:  # without any, a backdoor that needs a network may have the label rule
            unused = _TRIGGER_OPTIONS + (("label_rule", "target_label") if self.wanted else ())
        for name in unused:
            if (value := getattr(self, name)) != getattr(CorruptionOptions, name):
                what = "corrupt" if self.noisy_label_column is None else "noisy_label_column"
                raise ValueError(f"{name}={value!r} has no effect with {what}={getattr(self, what)!r}: leave it out.")

    def describe(self) -> str:
        """Returns the trigger and the label rule, or the label noise, in words."""
        if self.noisy_label_column is not None:
            return f"labels of the column {self.noisy_label_column}"
        if self.corrupt == "none":
            return "none"
        if self.corrupt in NOISES:
            details = [self.class_map, self.transition_matrix, "" if self.noise_form == "exact" else "each label drawn on its own"]
            return f"{self.corrupt} label noise" + (f" ({'; '.join(shown)})" if (shown := [t for t in details if t]) else "")
        trigger = self.trigger()
        covers = "" if self.cover_rate is None else f"; covers {100 * self.cover_rate:g} %"
        return f"{self.corrupt} ({trigger.describe() if trigger is not None else 'none'}; {self.describe_rule()}{covers})"

    def describe_rule(self) -> str:
        """Returns the label rule and its classes in words."""
        if self.label_rule == "source-specific":
            return f"{self.label_rule}, class {self.source_label or 1} to {self.target_label}"
        return self.label_rule + (f", class {self.target_label}" if self.label_rule in ("all-to-one", "clean-label") else "")

    def rule(self) -> LabelRule | BackdoorRule:
        """Returns the label rule. Raises ``ValueError`` for an unknown name, and for source classes that are no numbers."""
        if self.label_rule not in LABEL_RULES:
            raise ValueError(f"label_rule={self.label_rule!r} is unknown: choose one of {', '.join(LABEL_RULES)}.")
        if self.label_rule == "source-specific":
            given = (self.source_label or "1").split(",")
            if not all(part.strip().isdecimal() for part in given):
                raise ValueError(f"source_label={self.source_label!r} are no class numbers: give one or several as 1,2,5.")
            return SourceSpecific(tuple(int(part) for part in given), self.target_label)
        if self.label_rule == "clean-label":
            return CleanLabel(self.target_label)
        return AllToOne(self.target_label) if self.label_rule == "all-to-one" else LABEL_RULES[self.label_rule]


@dataclass
class PreprocessOptions:
    """What is done to the training images, and to them alone, before anything else."""

    _argument_group_name = "preprocessing"

    squeeze: str = field(
        default="none",
        metadata={"help": f"Image shortcut squeezing of the training images: {', '.join(SQUEEZES)}, joined by +; or none."},
    )
    squeeze_jpeg_quality: int = field(default=10, metadata={"help": "Quality of the squeeze's JPEG, 1 to 95."})
    squeeze_bits: int = field(default=2, metadata={"help": "Bits per channel that the squeeze keeps, 1 to 8."})

    def squeezer(self) -> Squeeze | None:
        """Returns the squeeze, None for 'none'. Raises ``ValueError`` for unknown names and settings out of range."""
        for name, top in (("squeeze_jpeg_quality", 95), ("squeeze_bits", 8)):
            if not 1 <= (value := getattr(self, name)) <= top:
                raise ValueError(f"{name}={value} must be in [1, {top}]: change it, or leave it out.")
        if self.squeeze == "none":
            return None
        return make_squeeze(self.squeeze, jpeg_quality=self.squeeze_jpeg_quality, bits=self.squeeze_bits)


def read_class_map(text: str | None) -> str | dict[Any, Any]:
    """Returns a class map: its name, or {source: target} from '9:1,2:0' or JSON; numbers are class numbers, words class names.

    Args:
        text: What was given.
    """
    text = (text or "").strip()
    if text in CLASS_MAPS:
        return text
    if text.startswith("{"):
        try:
            pairs = [(str(s), str(t)) for s, t in parse_json(text).items()]
        except GivenTwice as error:
            raise ValueError(f"class_map: {error}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"class_map={text!r} is no JSON: give for instance 9:1,2:0.") from error
    else:
        pairs = [(s.strip(), t.strip()) for s, colon, t in (pair.rpartition(":") for pair in text.split(",")) if colon and s and t]
        if not pairs or len(pairs) != len(text.split(",")):
            raise ValueError(f"class_map={text!r} is unknown: give {' or '.join(CLASS_MAPS)}, or source:target pairs as 9:1,2:0.")
    read: list[Any] = [tuple(int(word) if word.isdecimal() else word for word in pair) for pair in pairs]
    twice = next((s for i, (s, _) in enumerate(read) if s in [r[0] for r in read[:i]]), None)
    if twice is not None:
        raise ValueError(f"class_map={text!r} names class {twice} twice: give one target per class.")
    return dict(read)


def read_matrix(path: str | None) -> np.ndarray:
    """Returns the numbers of a .npy, .json or .csv file.

    Args:
        path: File of the numbers, (C, C).

    Raises:
        ValueError: For others and for unreadable ones.
    """
    path = path or ""
    readers: dict[str, Any] = {
        ".npy": lambda: np.load(path, allow_pickle=False),
        ".json": lambda: np.array(json.loads(Path(path).read_text(encoding="utf-8")), dtype=float),
        ".csv": lambda: np.loadtxt(path, delimiter=",", ndmin=2),
    }
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in readers or not os.path.isfile(path):
        raise ValueError(f"transition_matrix={path!r} is no existing .npy, .json or .csv file: give one.")
    try:
        return readers[suffix]()
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"transition_matrix={path!r} could not be read ({reason}): give rows of numbers.") from error


@dataclass
class ModelOptions:
    """Which network, and what is reported of it."""

    _argument_group_name = "model and report"

    model: str = field(
        default="small-cnn",
        metadata={
            "help": "A transformers model's hub name or folder, for images or texts as the data are; or from scratch: small-cnn or "
            "resnet32 for images, small-bert for texts."
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the Python code that the named model brings; only where its author is trusted."}
    )
    from_scratch: bool = field(default=False, metadata={"help": "Fresh weights in the named model's architecture."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side in pixels for small-cnn and resnet32. Default: the images', at most 64."}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens that are read of a text. Default: what the model takes, at most 512; small-bert: 128."},
    )
    last_k: int = field(default=10, metadata={"help": "The table's means are over the last so many epochs."})
