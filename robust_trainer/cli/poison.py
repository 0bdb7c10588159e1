"""An availability poison from options to a poisoned training set: network, crafting, self-check, record."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn

from ..corruptions import (
    IS_CORRUPTED,
    IS_COVER,
    NETWORK_BACKDOORS,
    POISONS,
    TrainedTrigger,
    network_trigger,
    poison,
    realised_rates,
    trigger_all,
)
from ..corruptions.backdoors.poisoning import eligible_classes
from ..corruptions.backdoors.with_network import NetworkBackdoor
from ..corruptions.poisons.card import poison_record
from ..corruptions.poisons.networks import accuracy, fresh_factory, seeded, train_plain
from ..corruptions.poisons.poison_images import poison_images, self_check
from ..corruptions.poisons.table import FRESH, NONE, check_settings, find_poison, make_ball
from ..data.columns import read_column, read_labels
from ..data.fingerprint import fingerprint
from ..data.label_rules import backdoor_labels
from ..data.load import TEST, TRAIN, TRIGGERED, label_names
from ..data.pixels import IS_POISONED, read_levels, read_pixels
from ..data.randomness import key_limits
from ..evaluation.robustness import show_eps
from ..models.pixel_model import PixelModel, pixel_model
from ..models.zoo import SMALL, load_model
from ..reporting.console import say
from ..reporting.resumable import Work
from .options import CorruptionOptions
from .poison_options import PoisonOptions
from .stages import RunState


def check_poison(options: PoisonOptions) -> None:
    """Raises a one-line ``ValueError`` for options out of range, before anything is loaded.

    Args:
        options: The poison.
    """
    rows = {**POISONS, **NETWORK_BACKDOORS}
    if options.poison not in rows:
        raise ValueError(f"poison={options.poison!r} is unknown: choose one of {', '.join(rows)}.")
    row = rows[options.poison]
    row.ball(options.norm, options.eps) if isinstance(row, NetworkBackdoor) else make_ball(options.norm, options.eps)
    check_settings(row, row.craft(), options.settings())
    for name, least in (("poison_model_epochs", 1), ("poison_batch_size", 1), ("self_check_epochs", 0)):
        if (value := getattr(options, name)) < least:
            raise ValueError(f"{name}={value} must be at least {least}: raise it.")
    if options.poison_model not in SMALL and (row.needs == FRESH or not os.path.isdir(options.poison_model)):
        other = "" if row.needs == FRESH else ", or the folder of a trained model"
        raise ValueError(f"poison_model={options.poison_model!r} is unknown: choose {', '.join(SMALL)}{other}.")


def poison_splits(
    splits: datasets.DatasetDict, options: PoisonOptions, folder: Path, tell: Callable[[str], None] = lambda text: None
) -> tuple[datasets.DatasetDict, dict[str, Any]]:
    """Returns the splits with the training images poisoned, crafted from the true labels, and `poison_record`'s record of it.

    Args:
        splits: The splits.
        options: The poison.
        folder: Keeps finished parts; given again with the same options the crafting goes on there.
        tell: Is called with what was found.
    """
    check_poison(options)
    train, test, row = splits[TRAIN], splits[TEST], find_poison(options.poison or "")
    if IS_POISONED in train.column_names:
        raise ValueError(f"dataset is poisoned already (column {IS_POISONED!r}): start from the clean data set, or drop poison.")
    levels = read_levels(train, "image")
    side, channels = max(levels.shape[1:3]), levels.shape[3]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = options.poison_model if options.poison_model in SMALL else "small-cnn"
    fresh = fresh_factory(network, label_names(train), channels=channels, image_size=side)
    model: Any = None
    model_name, right = "none", None
    if row.needs == FRESH:
        model, model_name = fresh, f"{options.poison_model}, trained while crafting"
    elif row.needs != NONE:
        model, model_name = _trained(train, fresh, options, folder, device)
        right = accuracy(model, *read_pixels(test))
        tell(f"attacked: {model_name}, accuracy on clean test images {100 * right:.1f} %")
    poisoned = poison_images(
        train, row.name, norm=options.norm, eps=options.eps, model=model, seed=options.poison_seed, device=device,
        batch_size=options.poison_batch_size, folder=folder / "craft", **options.settings(),
    )  # fmt: skip
    check = None
    if options.self_check_epochs:
        check = self_check(train, poisoned, test, fresh, options.self_check_epochs, options.poison_seed, device)
        check["network"] = network
        tell(f"self-check ({network}): {check['told']}")
    record = poison_record(
        train, poisoned, row.name, norm=options.norm, eps=options.eps, seed=options.poison_seed, settings=options.settings(),
        model=model_name, model_accuracy=right, check=check,
    )  # fmt: skip
    return datasets.DatasetDict({**splits, TRAIN: poisoned}), record


@dataclass(frozen=True)
class PoisonImages:
    """Perturbs the training images, crafted from the true labels; see `poison_splits`."""

    options: PoisonOptions
    folder: Path

    def __post_init__(self) -> None:
        check_poison(self.options)

    def __call__(self, state: RunState) -> None:
        """Crafts the poison."""
        state.splits, state.poison = poison_splits(state.splits, self.options, self.folder, say)


@dataclass(frozen=True)
class PoisonWithNetwork:
    """Puts a backdoor that needs a network on training images, and its trigger on all test images; keeps a trained trigger."""

    options: PoisonOptions
    corruption: CorruptionOptions
    folder: Path

    def __post_init__(self) -> None:
        check_poison(self.options)
        row = NETWORK_BACKDOORS[self.options.poison or ""]
        if self.corruption.wanted:
            name, value = self.corruption.given() or ("", "")
            raise ValueError(f"{name}={value!r} and poison={self.options.poison!r}, a backdoor, are given: leave one of them out.")
        if row.keeps_labels and self.corruption.label_rule != "clean-label":
            raise ValueError(
                f"poison={self.options.poison!r} keeps the labels, label_rule={self.corruption.label_rule!r} changes them: give "
                "--label_rule clean-label."
            )
        if self.options.self_check_epochs != PoisonOptions.self_check_epochs:
            raise ValueError(
                f"self_check_epochs={self.options.self_check_epochs} is for availability poisons, "
                f"poison={self.options.poison!r} is a backdoor: leave it out."
            )
        if self.corruption.corrupt_seed != CorruptionOptions.corrupt_seed:
            raise ValueError(
                f"corrupt_seed={self.corruption.corrupt_seed} has no effect with poison={row.name!r}: give --poison_seed instead."
            )
        for name in ("poison_model", "poison_model_epochs") if row.needs == NONE else ():
            if (value := getattr(self.options, name)) != getattr(PoisonOptions, name):
                raise ValueError(
                    f"{name}={value!r} has no effect with poison={row.name!r}, which needs no such network: leave it out."
                )
        self.corruption.trigger()  # raises for settings out of range

    def __call__(self, state: RunState) -> None:
        """Trains or loads the network, crafts, and sets ``state.corruption``."""
        options, rule, rate = self.options, self.corruption.rule(), self.corruption.corrupt_rate
        if IS_CORRUPTED in state.train.column_names:
            raise ValueError(
                f"dataset is corrupted already (column {IS_CORRUPTED!r}): start from the clean data set, or drop poison."
            )
        row = NETWORK_BACKDOORS[options.poison or ""]
        labels, classes = read_labels(state.train, "label")
        # raises before a network is trained
        key_limits(labels, eligible_classes(backdoor_labels(rule, classes)), rate, options.poison_seed)
        levels = read_levels(state.train, "image")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        name = options.poison_model if options.poison_model in SMALL else "small-cnn"
        model, record = None, {"corrupt": row.name, "seed": options.poison_seed}
        if row.needs != NONE:
            fresh = fresh_factory(name, label_names(state.train), channels=levels.shape[3], image_size=max(levels.shape[1:3]))
            model, model_name = _trained(state.train, fresh, options, self.folder, device)
            right = accuracy(model, *read_pixels(state.test))
            say(f"attacked: {model_name}, accuracy on clean test images {100 * right:.1f} %")
            record |= {"model": model_name, "model_accuracy": right}
        chosen: dict[str, Any] = {"rate": rate, "label_rule": rule, "seed": options.poison_seed}
        trigger = network_trigger(
            state.train, row.name, model, norm=options.norm, eps=options.eps, device=device, batch_size=options.poison_batch_size,
            folder=self.folder / "craft", **chosen, **options.settings(),
        )  # fmt: skip
        state.splits[TRAIN] = train = poison(state.train, trigger=trigger, **chosen)
        state.splits[TRIGGERED] = trigger_all(state.test, trigger, label_rule=rule)
        parts = [trigger.describe(), self.corruption.describe_rule()]
        if row.eps is not None:
            parts.insert(0, f"{options.norm} {show_eps(row.ball(options.norm, options.eps).eps)}")
        record |= {"trigger": f"{row.name} ({'; '.join(parts)})"}
        if IS_COVER in train.column_names:
            record["covers"] = int(read_column(train, IS_COVER).sum())
        if isinstance(trigger, TrainedTrigger):
            state.trigger = trigger
        state.corruption = {**record, **options.settings(), **realised_rates(train, nominal=rate)}


def _trained(
    train: datasets.Dataset, fresh: Callable[[], PixelModel], options: PoisonOptions, folder: Path, device: torch.device
) -> tuple[nn.Module, str]:
    """The network under attack: of a folder, or trained on the clean data and kept in the work folder."""
    if options.poison_model not in SMALL:
        model, processor = load_model(options.poison_model, trust_remote_code=None)
        return pixel_model(model, processor).to(device).eval(), f"the model of {Path(options.poison_model).name}"
    return trained_network(
        train, options.poison_model, fresh, options.poison_model_epochs, options.poison_seed, folder / "model", device,
        "to be attacked",
    )  # fmt: skip


def trained_network(
    train: datasets.Dataset, name: str, fresh: Callable[[], PixelModel], epochs: int, seed: int, folder: Path,
    device: torch.device, purpose: str, data: str = "the clean data",
) -> tuple[nn.Module, str]:  # fmt: skip
    """Returns a network trained on images and true labels, in eval mode, and what it is in words; the folder keeps it.

    Args:
        train: The training split.
        name: Of the network that ``fresh`` makes.
        fresh: Makes a network with fresh weights.
        epochs: Passes over the images.
        seed: Seed of every draw.
        folder: Keeps the weights.
        device: Where to compute.
        purpose: What for, in words.
        data: What on, in words.
    """
    description = f"{name}, trained on {data} for {epochs} epochs"
    images, labels = read_pixels(train, "image", "clean_label" if "clean_label" in train.column_names else "label")
    work = Work(folder, {"model": description, "seed": seed, "data": fingerprint(images, labels)})
    network = seeded(fresh, seed).to(device)
    if (kept := work.load("weights")) is not None:
        network.load_state_dict(kept)
        return network.eval(), description
    train_plain(network, images, labels, epochs, seed=seed, device=device, desc=f"training {name}, {purpose}")
    work.save("weights", network.state_dict())
    return network, description
