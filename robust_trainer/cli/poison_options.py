"""What `robust-trainer corrupt` takes for an availability poison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from ..corruptions import NETWORK_BACKDOORS, POISONS
from ..methods.settings import GivenTwice, parse_json
from ..perturbations.norms import NORMS

_CLEAN = [name for name, row in NETWORK_BACKDOORS.items() if row.keeps_labels]


@dataclass
class PoisonOptions:
    """An availability poison: every training image is perturbed, crafted from the true labels, before labels are corrupted."""

    _argument_group_name = "availability poison"

    poison: str | None = field(
        default=None,
        metadata={
            "help": f"One of {', '.join(POISONS)}; or a backdoor for which the attacker needs a network, on corrupt_rate of the "
            f"images: {', '.join(NETWORK_BACKDOORS)} ({', '.join(_CLEAN)} with label_rule clean-label). Default: none."
        },
    )
    norm: str = field(default="linf", metadata={"help": f"One of {', '.join(NORMS)}."})
    eps: str | None = field(
        default=None,
        metadata={"help": "Radius in [0, 1] pixels, as 8/255. Default: 8/255 (linf; backdoors 16/255), 0.5 (l2)."},
    )
    poison_model: str = field(
        default="small-cnn",
        metadata={"help": "small-cnn, plain-cnn or resnet32, trained first where that is needed; or a trained model's folder."},
    )
    poison_model_epochs: int = field(default=20, metadata={"help": "Epochs of that training."})
    poison_batch_size: int = field(default=128, metadata={"help": "Images per batch while crafting."})
    poison_settings: str | None = field(
        default=None, metadata={"help": "The poison's own settings: name=value pairs as steps=50,restarts=2, or JSON."}
    )
    poison_seed: int = field(default=0, metadata={"help": "Seed of the poison, of its network and of the self-check."})
    self_check_epochs: int = field(
        default=10, metadata={"help": "Train so long on clean and on poisoned images and compare the test accuracies; 0 skips it."}
    )

    def settings(self) -> dict[str, Any]:
        """Returns ``poison_settings`` by name. Raises a one-line ``ValueError`` where they are no such pairs."""
        return read_settings("poison_settings", self.poison_settings, "steps=50,restarts=2")


def read_settings(option: str, written: str | None, example: str) -> dict[str, Any]:
    """Returns settings by name, from name=value pairs or JSON.

    Args:
        option: Name of the option, for messages.
        written: What was given.
        example: What could have been given, for messages.

    Raises:
        ValueError: Where they are neither.
    """
    text = (written or "").strip()
    pairs = [pair.partition("=") for pair in text.split(",")] if text and not text.startswith("{") else []
    try:
        settings = {name.strip(): yaml.safe_load(value) for name, _, value in pairs} if pairs else parse_json(text or "{}")
    except GivenTwice as error:
        raise ValueError(f"{option}: {error}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{option}={text!r} cannot be read: give for instance {example}.") from error
    if any(not mark or not name.strip() or not value.strip() for name, mark, value in pairs):
        raise ValueError(f"{option}={text!r} are no name=value pairs: give for instance {example}.")
    if len(settings) < len(pairs):
        raise ValueError(f"{option}={text!r} gives a name twice: give each one value.")
    return settings
