"""robust-trainer corrupt: writes a corrupted copy of a data set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..corruptions import NETWORK_BACKDOORS, POISONS, save_trigger, write_card
from ..corruptions.backdoors.saved_triggers import TRIGGER_FILE
from ..corruptions.crafted.craft_labels import CRAFTED
from ..data.load import TEST, TRAIN, TRIGGERED
from ..evaluation.robustness import show_eps
from ..models.zoo import known_classes
from ..reporting.atomic_files import write_json
from ..reporting.console import say, show
from ..reporting.results import percent
from .craft import PATH_FILES, CraftLabels, write_paths
from .craft_options import CraftOptions
from .kinds import CheckKind
from .options import CorruptionOptions, DataOptions
from .outputs import OverwriteOptions, check_output
from .parser import make_parser, parse
from .poison import PoisonImages, PoisonWithNetwork
from .poison_options import PoisonOptions
from .stages import KnownClasses, LoadData, RunState, Stage, data_stages, run_stages

#: What tells a folder that holds a data set.
INDEX = "dataset_dict.json"
MADE = ("corruption.json", INDEX, "state.json", TRAIN, TEST, f"{TRAIN}*.parquet")


@dataclass
class CorruptOutput:
    """Where `corrupt` writes."""

    _argument_group_name = "output"

    output_dir: str = field(
        default="robust_data", metadata={"help": "Folder for save_to_disk: train, test; with a trigger test_triggered."}
    )


def corrupt(argv: Sequence[str]) -> None:
    """robust-trainer corrupt: writes a poisoned or mislabelled data set and prints nominal and realised rates.

    Args:
        argv: The words after the command's name.
    """
    about = (
        "Corrupt a data set and save it: train (with is_corrupted and clean_label, is_poisoned for a poison), test, and for a "
        "trigger test_triggered. Poisons: " + "; ".join(f"{p.name}: {p.summary}" for p in POISONS.values())
        + f". Crafted label noise (--craft): {', '.join(CRAFTED)}."
    )  # fmt: skip
    parser = make_parser(
        "corrupt", [DataOptions, CorruptionOptions, PoisonOptions, CraftOptions, CorruptOutput, OverwriteOptions], about
    )
    data, corruption, poison, craft, output, overwrite = parse(parser, argv)
    craft.check()
    if not corruption.wanted and poison.poison is None and craft.craft is None:
        raise ValueError(
            "corrupt='none' leaves the data set as it is: give --corrupt patch, blend or a label noise, --craft, "
            "--noisy_label_column, or --poison."
        )
    corruption.trigger()
    if corruption.wanted and craft.craft is not None:
        option = "noisy_label_column" if corruption.noisy_label_column is not None else "corrupt"
        raise ValueError(
            f"{option}={getattr(corruption, option)!r} and craft={craft.craft!r} would corrupt the labels twice: leave one of them "
            "out."
        )
    check_output(output.output_dir, MADE, overwrite.overwrite)
    folder = Path(output.output_dir)
    for name in (TRAIN, TEST, TRIGGERED):
        if (folder / name).exists() and not (folder / name / "state.json").is_file():
            raise ValueError(f"output_dir={output.output_dir!r} holds {name!r}, which no command made: give another folder.")
    if Path(data.source()).exists() and Path(data.source()).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"output_dir={output.output_dir!r} holds the data set to corrupt: give another folder.")
    work = folder / ".unfinished"
    crafting: list[Stage] = []
    if poison.poison in NETWORK_BACKDOORS:
        if craft.craft is not None:
            raise ValueError(f"poison={poison.poison!r} is a backdoor and craft={craft.craft!r} makes labels wrong: leave one out.")
        crafting.append(PoisonWithNetwork(poison, corruption, work))
    elif poison.poison is not None:
        if corruption.trigger() is not None:
            raise ValueError(
                f"corrupt={corruption.corrupt!r} is a trigger and poison={poison.poison!r} perturbs the same images: leave one "
                "out, or give a label noise."
            )
        crafting.append(PoisonImages(poison, work))
    if craft.craft is not None:
        crafting.append(CraftLabels(craft, work / "labels"))
    classes = _classes_of_models(poison.poison_model if poison.poison else None, craft.craft_model if craft.craft else None)
    stages = data_stages(data, corruption, None, *crafting, classes=classes, check=CheckKind((poison, craft)))
    if craft.craft is not None:
        stages[0] = LoadData(data, ("craft", craft.craft), classes)
    state = run_stages(stages)
    saved = work / "saved"
    shutil.rmtree(saved, ignore_errors=True)  # of a command that was stopped
    state.splits.save_to_disk(saved)
    _clear(folder)
    for name in state.splits:
        os.replace(saved / name, folder / name)
    if state.trigger is not None:
        path = save_trigger(state.trigger, folder)
        say(f"the trained trigger: {path.name} in {folder}, for robust_trainer.corruptions.load_trigger")
    if state.paths is not None:
        say(f"path lengths that the flips were chosen by: {', '.join(write_paths(state.paths, folder))} in {folder}")
    if state.poison is None:
        write_json(folder / "corruption.json", state.corruption)
    else:
        write_json(folder / "corruption.json", {**(state.corruption or {}), "poison": state.poison})
        _tell_poison(state, state.poison, folder, data.source(), craft.describe() if craft.craft else corruption.describe())
    os.replace(saved / INDEX, folder / INDEX)  # at last: without it there is no data set
    shutil.rmtree(work, ignore_errors=True)
    tell_rates(state.corruption, per_class=True)
    rows = ", ".join(f"{name} ({len(split)} rows)" for name, split in state.splits.items())
    say(f"written to {output.output_dir}: {rows}")


def _clear(folder: Path) -> None:
    """Removes what an earlier command saved in a folder, and nothing else."""
    (folder / INDEX).unlink(missing_ok=True)
    ours = ["README.md"] if (folder / "corruption.json").is_file() else []
    for name in (TRAIN, TEST, TRIGGERED):
        if (folder / name / "state.json").is_file():
            shutil.rmtree(folder / name)
    for name in (*ours, "corruption.json", TRIGGER_FILE, *PATH_FILES):
        (folder / name).unlink(missing_ok=True)


def _classes_of_models(poison_model: str | None, craft_model: str | None) -> KnownClasses:
    """The classes of the trained models that are looked at: the data are numbered as these number them."""
    known: list[KnownClasses] = []
    for option, name in (("poison_model", poison_model), ("craft_model", craft_model)):
        names = known_classes(name, None) if name is not None and Path(name).is_dir() else None
        if names is not None:
            known.append(KnownClasses(names, f"{option}={name!r}"))
    if len(known) == 2 and known[0].names != known[1].names:
        raise ValueError(f"{known[0].source} and {known[1].source} number their classes differently: give one model for both.")
    return known[0] if known else KnownClasses()


def _tell_poison(state: RunState, record: dict[str, Any], folder: Path, dataset: str, noise: str) -> None:
    """Writes the poison's card and prints how far it moved the images."""
    labels = "true" if state.corruption is None else f"{percent(state.corruption['mislabelled'])} % wrong"
    labels += "" if noise == "none" else f" ({noise}, after the poison)"
    write_card(folder, record, data=dataset.rstrip("/").rpartition("/")[2], labels=labels)
    norms = record["realised"]
    say(
        f"poisoned: {record['poison']}, {record['norm']} {show_eps(record['eps'])}, {record['rows']} images; as stored linf "
        f"at most {norms['linf_max'] * 255:.0f}/255, l2 at most {norms['l2_max']:.4f}, mean {norms['l2_mean']:.4f}"
    )


def tell_rates(corruption: dict[str, Any] | None, per_class: bool = False) -> None:
    """Prints what was corrupted, nominal and realised.

    Args:
        corruption: The record of a corruption, None for none.
        per_class: The rates of each class, too.
    """
    if corruption is None:
        return
    nominal, asked = corruption.get("nominal"), corruption.get("nominal_per_class")
    say(
        f"corrupted: {corruption.get('trigger') or corruption.get('noise') or corruption['corrupt']}, "
        + (f"nominal rate {percent(nominal)} %, " if nominal is not None else "")
        + f"realised {percent(corruption['overall'])} % ({corruption['corrupted']} of {corruption['n']} samples)"
        + (f", and {corruption['covers']} covers that keep their label" if corruption.get("covers") else "")
    )
    if per_class:
        heading = ["class", "nominal %", "realised %"] if asked else ["class", "realised %"]
        rows = [[c, *([percent(asked[c])] if asked else []), percent(r)] for c, r in corruption["per_class"].items()]
        say(show(heading, rows))
