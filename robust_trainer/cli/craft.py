"""Crafted label noise from options to a training set: network, path lengths, flips, record."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..corruptions import IS_CORRUPTED, realised_rates
from ..corruptions.crafted.craft_labels import craft_labels
from ..corruptions.crafted.plan import plan_flips
from ..corruptions.poisons.networks import accuracy, fresh_factory
from ..data.label_rules import class_targets
from ..data.load import TEST, TRAIN, label_names
from ..data.mapping import with_feature
from ..data.pixels import read_levels, read_pixels
from ..evaluation.boundary_paths import PathLengths, path_lengths
from ..models.pixel_model import pixel_model
from ..models.zoo import SMALL, load_model
from ..reporting.console import say
from ..reporting.results import percent
from .craft_options import CraftOptions, class_number, target_of
from .poison import trained_network
from .stages import RunState

#: Path lengths as a table and as a picture.
PATH_FILES = ("paths.parquet", "paths.png")
#: What `path_lengths` takes of the strategy's settings.
_OF_PATHS = ("step_size", "norm", "max_steps", "batch_size")


@dataclass
class Crafted:
    """What `craft_splits` made: the splits, what is written down of them, and the path lengths that were computed, or None."""

    splits: datasets.DatasetDict
    record: dict[str, Any]
    paths: PathLengths | None = None


def write_paths(paths: PathLengths, folder: Path) -> list[str]:
    """Writes paths.parquet and paths.png into a folder and returns their names.

    Args:
        paths: What to write.
        folder: A folder on this machine.
    """
    table, picture = PATH_FILES
    paths.to_parquet(folder / table)
    paths.plot(folder / picture)
    return [table, picture]


def craft_splits(
    splits_before: datasets.DatasetDict, options: CraftOptions, folder: Path, tell: Callable[[str], None] = lambda text: None
) -> Crafted:
    """Returns the splits with labels of the training split flipped as the options say, and every split with room for them.

    Args:
        splits_before: The splits.
        options: The strategy.
        folder: Keeps the network and finished path lengths; given again with the same options the crafting goes on there.
        tell: Is called with a line on what was trained.

    Raises:
        ValueError: For options that do not fit the data, before anything is trained.
    """
    options.check()
    train, names = splits_before[TRAIN], label_names(splits_before[TRAIN])
    if IS_CORRUPTED in train.column_names:
        raise ValueError(
            f"craft={options.craft!r} would corrupt the labels of a corrupted data set (column {IS_CORRUPTED!r}) twice: start from "
            "the clean data set."
        )
    settings = options.settings()
    settings["target"] = target = target_of(options.craft_target, names, "craft_target")
    if options.craft_source is not None:
        settings["source"] = [class_number(word, names, "craft_source") for word in options.craft_source.split(",")]
    flips = {name: settings[name] for name in ("rate", "budget", "seed", "target", "source") if name in settings}
    plan_flips(train, **flips)
    model: Any = None
    processor, model_name = None, "none"
    if options.needs_model:
        model, processor, model_name = _model(splits_before, options, folder, tell)
    more: dict[str, Any] = {} if model is None else {"model": model, "processing_class": processor}
    paths = None
    if options.craft == "adversarial-path":
        towards = target if settings.get("targeted", True) and target != "extra" else None
        path_settings = {name: settings[name] for name in _OF_PATHS if name in settings}
        paths = path_lengths(model, train, target=towards, processing_class=processor, folder=folder / "paths", **path_settings)
        more["paths"] = paths
    train = craft_labels(train, str(options.craft), **settings, **more)
    feature = train.features["label"]
    splits = {name: train if name == TRAIN else with_feature(split, "label", feature) for name, split in splits_before.items()}
    record = {
        "corrupt": "crafted", "noise": options.describe(), "seed": options.craft_seed, "craft": options.craft,
        "craft_settings": settings, "model": model_name, **realised_rates(train, nominal=_nominal(train, names, settings)),
    }  # fmt: skip
    return Crafted(datasets.DatasetDict(splits), record, paths)


@dataclass(frozen=True)
class CraftLabels:
    """Flips labels of the training split where a strategy expects most harm; see `craft_splits`."""

    options: CraftOptions
    folder: Path

    def __call__(self, state: RunState) -> None:
        """Crafts the labels."""
        crafted = craft_splits(state.splits, self.options, self.folder, say)
        state.splits, state.corruption, state.paths = crafted.splits, crafted.record, crafted.paths


def _model(splits: datasets.DatasetDict, options: CraftOptions, folder: Path, tell: Callable[[str], None]) -> tuple[Any, Any, str]:
    """The network that the strategy looks at, its image processor (None: it takes the images as they are), and what it is."""
    name = options.craft_model or "small-cnn"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in SMALL:
        if not os.path.isdir(name):
            raise ValueError(f"craft_model={name!r} is unknown: choose {', '.join(SMALL)}, or the folder of a trained model.")
        model: Any
        model, processor = load_model(name, trust_remote_code=None)
        return model.to(device).eval(), processor, f"the model of {Path(name).name}"
    levels = read_levels(splits[TRAIN], "image")
    fresh = fresh_factory(name, label_names(splits[TRAIN]), channels=levels.shape[3], image_size=max(levels.shape[1:3]))
    network, description = trained_network(
        splits[TRAIN], name, fresh, options.craft_model_epochs, options.craft_seed, folder / "model", device, "to craft from",
        "the clean labels",
    )  # fmt: skip
    tell(f"model: {description}, accuracy on test images {percent(accuracy(network, *read_pixels(splits[TEST])))} %")
    return pixel_model(network), None, description


def _nominal(train: datasets.Dataset, names: list[str], settings: dict[str, Any]) -> np.ndarray:
    """The rate asked for, per class (C,): as large in every class whose labels may be flipped, 0 in the others."""
    clean = np.asarray(train.with_format("numpy")["clean_label"][:])
    sizes, numbers = np.bincount(clean, minlength=len(names)), np.arange(len(names))
    movable = (class_targets(settings["target"], len(names)) != numbers) & np.isin(numbers, settings.get("source", numbers))
    flips = settings["budget"] if "budget" in settings else settings["rate"] * len(clean)
    return np.where(movable, flips / max(sizes[movable].sum(), 1), 0.0)
