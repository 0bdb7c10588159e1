"""What `robust-trainer corrupt` takes for crafted label noise."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..corruptions.crafted.craft_labels import CRAFTED, craft_labels
from ..corruptions.crafted.plan import Flips
from ..corruptions.crafted.spaces import BOTH, SPACES
from ..data.label_rules import TARGETS
from ..data.randomness import check_rate, check_seed
from ..reporting.suggest import did_you_mean
from .poison_options import read_settings

#: Settings of the strategies that are options of their own, and those that have no words for the command line.
_OPTIONS = ("rate", "budget", "seed", "target", "source", "space", "gamma", "norm", "quantiles", "model")
_NO_WORDS = (
    "processing_class", "paths", "folder", "make", "device", "label_column", "image_column", "feature_columns", "num_classes",
    "num_proc",
)  # fmt: skip


@dataclass
class CraftOptions:
    """Crafted label noise: a budget of labels is flipped where a strategy expects most harm, after an availability poison."""

    _argument_group_name = "crafted label noise"

    craft: str | None = field(default=None, metadata={"help": f"One of {', '.join(CRAFTED)}. Default: none."})
    craft_rate: float | None = field(default=None, metadata={"help": "Share of all training labels to flip, [0, 1)."})
    craft_budget: int | None = field(default=None, metadata={"help": "Or the number of labels to flip."})
    craft_target: str = field(
        default="cyclic",
        metadata={"help": "What flipped samples are labelled: cyclic (next class), extra (a new class), a class number or name."},
    )
    craft_source: str | None = field(
        default=None, metadata={"help": "Classes to flip, by number or name, as 4,9. Default: all that the target moves."}
    )
    craft_space: str | None = field(default=None, metadata={"help": f"{', '.join(SPACES)}. Default: input."})
    craft_gamma: str | None = field(
        default=None, metadata={"help": f"Radius of the class graph, two for {BOTH}, as 6.5,4. Default: by degree=10."}
    )
    craft_norm: str | None = field(default=None, metadata={"help": "Of the graph, or of the paths: l1, l2, linf."})
    craft_quantiles: str | None = field(
        default=None, metadata={"help": "Range of the scores to choose from at random, as 0.5,0.9; none: from the top."}
    )
    craft_model: str | None = field(
        default=None,
        metadata={
            "help": "For adversarial-path and spaces with features: a trained model's folder, or small-cnn, plain-cnn or resnet32, "
            "trained first on the clean labels. Default: small-cnn."
        },
    )
    craft_model_epochs: int = field(default=20, metadata={"help": "Epochs of that training."})
    craft_settings: str | None = field(
        default=None, metadata={"help": "The strategy's other settings: name=value pairs as degree=5,search=exact, or JSON."}
    )
    craft_seed: int = field(default=0, metadata={"help": "Seed of every draw and of the network."})

    def settings(self) -> dict[str, Any]:
        """Returns the settings of `craft_labels` that are given, but for target, source and model, which depend on the data.

        Raises:
            ValueError: For what cannot be read or is given twice.
        """
        settings: dict[str, Any] = {"seed": self.craft_seed}
        settings |= {n: v for n in ("rate", "budget", "space", "norm") if (v := getattr(self, f"craft_{n}")) is not None}
        if self.craft_gamma is not None:
            gammas = _numbers("craft_gamma", self.craft_gamma, (1, 2), "6.5 or 6.5,4")
            settings["gamma"] = gammas[0] if len(gammas) == 1 else gammas
        if self.craft_quantiles is not None:
            wide = self.craft_quantiles.strip().lower() != "none"
            settings["quantiles"] = _numbers("craft_quantiles", self.craft_quantiles, (2,), "0.5,0.9") if wide else None
        for name, value in read_settings("craft_settings", self.craft_settings, "degree=5,search=exact").items():
            if name in _OPTIONS:
                raise ValueError(f"craft_settings holds {name}={value!r}, an option of its own: give --craft_{name}.")
            if name in _NO_WORDS:
                raise ValueError(f"craft_settings holds {name}={value!r}, which only Python can give: leave it out.")
            settings[name] = value
        return settings

    @property
    def needs_model(self) -> bool:
        """Whether the strategy looks at a trained network."""
        return self.craft == "adversarial-path" or self.craft_space in ("features", BOTH)

    def check(self) -> None:
        """Raises a one-line ``ValueError`` for options that do not fit, before anything is loaded."""
        if self.craft is None:
            for f in fields(self):
                if (value := getattr(self, f.name)) != f.default:
                    raise ValueError(f"{f.name}={value!r} is given but craft is not: give --craft, one of {', '.join(CRAFTED)}.")
            return
        settings = self.settings()
        known = dict(inspect.signature(CRAFTED[self.craft]).parameters) if self.craft in CRAFTED else {}
        if self.craft not in CRAFTED or any(n not in known and n not in Flips.__annotations__ for n in settings):
            craft_labels(None, self.craft, **settings)  # raises: tells which, before it looks at the data
        for name, value in settings.items():
            _check_kind(name, value, getattr(known.get(name), "default", None))
        if (self.craft_rate is None) == (self.craft_budget is None):
            both = f"craft_rate={self.craft_rate} and craft_budget={self.craft_budget}"
            raise ValueError(f"{both}: give one of them, the share of all labels to flip or their number.")
        if self.craft_rate is not None:
            check_rate(self.craft_rate)
        check_seed(self.craft_seed)
        if self.craft_space is not None and self.craft_space not in SPACES:
            raise ValueError(f"craft_space={self.craft_space!r} is unknown: choose one of {', '.join(SPACES)}.")
        if self.craft_model is not None and not self.needs_model:
            raise ValueError(
                f"craft_model={self.craft_model!r} is given but craft={self.craft!r} looks at no model here: leave it out, or give "
                "--craft adversarial-path or --craft_space features."
            )
        if self.craft_model_epochs < 1:
            raise ValueError(f"craft_model_epochs={self.craft_model_epochs} must be at least 1: raise it.")

    def describe(self) -> str:
        """Returns the strategy and what it was given, in words."""
        parts = [f"in {self.craft_space}" if self.craft_space else "", f"of {self.craft_source}" if self.craft_source else ""]
        parts += [f"to {self.craft_target}", f"quantiles {self.craft_quantiles}" if self.craft_quantiles else ""]
        return f"crafted label noise {self.craft} ({'; '.join(t for t in parts if t)})"


def class_number(word: str, names: Sequence[str], option: str) -> int:
    """Returns the class that a word stands for: its number, else its name.

    Args:
        word: What was written.
        names: Names of the classes.
        option: Name of the option, for messages.

    Raises:
        ValueError: For neither.
    """
    word = word.strip()
    if word in names and not word.isdecimal():
        return list(names).index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    hint = did_you_mean(word, names).strip() or f"give a class number in [0, {len(names)}) or a class name."
    raise ValueError(f"{option}={word!r} is no class: {hint}")


def target_of(word: str, names: Sequence[str], option: str) -> str | int:
    """Returns the target that a word stands for: cyclic, extra, or a class's number. Raises as `class_number`.

    Args:
        word: What was written.
        names: Names of the classes.
        option: Name of the option, for messages.
    """
    return word if word in TARGETS else class_number(word, names, option)


def _numbers(name: str, text: str, counts: tuple[int, ...], example: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}={text!r} is no {' or '.join(map(str, counts))} number(s): give for instance {example}.")
    return numbers


def _check_kind(name: str, value: Any, usual: Any) -> None:
    """Raises ``ValueError`` where a setting is of another kind than its default (which tells nothing where it is None)."""
    if usual is None or isinstance(usual, tuple) or usual is inspect.Parameter.empty:
        return
    kind = type(usual)
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name}={value!r} is of the wrong kind: give a value as the default, {usual!r}.")
