"""robust-trainer corrupt: writes a corrupted copy of a data set."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import check_writable
from ..corruptions import IS_CORRUPTED, POISONS, write_card
from ..corruptions.crafted.craft_labels import CRAFTED
from ..evaluation.robustness import show_eps
from ..reporting.atomic_files import write_json
from ..reporting.console import say, show
from ..reporting.results import percent
from .craft import PATH_FILES, craft_splits
from .craft_options import CraftOptions
from .options import CorruptionOptions, DataOptions, make_parser, parse
from .poison import check_poison, poison_splits
from .poison_options import PoisonOptions
from .runs import Prepared, prepare


@dataclass
class CorruptOutput:
    """Where `corrupt` writes."""

    _argument_group_name = "output"

    output_dir: str = field(
        default="robust_data", metadata={"help": "Folder for save_to_disk: train, test; with a trigger test_triggered."}
    )


def corrupt(argv: Sequence[str]) -> None:
    """robust-trainer corrupt: writes a poisoned or mislabelled data set and prints nominal and realised rates."""
    about = (
        "Corrupt a data set and save it: train (with is_corrupted and clean_label, is_poisoned for a poison), test, and for a "
        "trigger test_triggered. Poisons: " + "; ".join(f"{p.name}: {p.summary}" for p in POISONS.values())
        + f". Crafted label noise (--craft): {', '.join(CRAFTED)}."
    )  # fmt: skip
    parser = make_parser("corrupt", [DataOptions, CorruptionOptions, PoisonOptions, CraftOptions, CorruptOutput], about)
    data, corruption, poison, craft, output = parse(parser, argv)
    craft.check()
    if not corruption.wanted and poison.poison is None and craft.craft is None:
        raise ValueError(
            "corrupt='none' leaves the data set as it is: give --corrupt patch, blend or a label noise, --craft, "
            "--noisy_label_column, or --poison."
        )
    corruption.trigger()
    if corruption.wanted and craft.craft is not None:
        given = "noisy_label_column" if corruption.noisy_label_column is not None else "corrupt"
        raise ValueError(
            f"{given}={getattr(corruption, given)!r} and craft={craft.craft!r} would corrupt the labels twice: leave one of them "
            "out."
        )
    check_writable(output.output_dir)
    if poison.poison is not None or craft.craft is not None:
        prepared = _made(data, corruption, poison, craft, Path(output.output_dir))
    else:
        prepared = prepare(data, corruption)
        prepared.splits().save_to_disk(output.output_dir)
        write_json(Path(output.output_dir) / "corruption.json", prepared.corruption)
    tell_rates(prepared.corruption, per_class=True)
    told = ", ".join(f"{name} ({len(split)} rows)" for name, split in prepared.splits().items())
    say(f"written to {output.output_dir}: {told}")


def _made(data: DataOptions, corruption: CorruptionOptions, poison: PoisonOptions, craft: CraftOptions, folder: Path) -> Prepared:
    """The data with an availability poison and then, where asked for, wrong labels: saved with its card. Stopped, it goes on."""
    if poison.poison is not None:
        if corruption.trigger() is not None:
            raise ValueError(
                f"corrupt={corruption.corrupt!r} is a trigger and poison={poison.poison!r} perturbs the same images: leave one "
                "out, or give a label noise."
            )
        check_poison(poison)
    work, record, crafted = folder / ".unfinished", {}, None

    def first(found: Any) -> Any:
        nonlocal crafted
        corrupted = IS_CORRUPTED in found["train"].column_names
        if corrupted and corruption.wanted:
            return found  # `prepare` refuses these, before hours of crafting
        if poison.poison is not None and not (corrupted and craft.craft is not None):
            found, made = poison_splits(found, poison, work, say)
            record.update(made)
        if craft.craft is not None:
            crafted = craft_splits(found, craft, work / "labels", say)
            found = crafted.splits
        return found

    prepared = prepare(data, corruption, poison_first=first)
    noise = f" ({corruption.describe()}, after the poison)" if corruption.wanted else ""
    prepared.splits().save_to_disk(str(folder))
    if crafted is not None:
        prepared.corruption, noise = crafted.record, f" ({craft.describe()}, after the poison)"
        for name in PATH_FILES:  # an earlier command's
            (folder / name).unlink(missing_ok=True)
        if written := crafted.write_paths(folder):
            say(f"path lengths that the flips were chosen by: {', '.join(written)} in {folder}")
    write_json(folder / "corruption.json", {**(prepared.corruption or {}), **({"poison": record} if record else {})})
    if record:
        labels = "true" if prepared.corruption is None else f"{percent(prepared.corruption['mislabelled'])} % wrong"
        write_card(folder, record, data=data.dataset.rstrip("/").rpartition("/")[2], labels=labels + noise)
        norms = record["realised"]
        say(
            f"poisoned: {record['poison']}, {record['norm']} {show_eps(record['eps'])}, {record['rows']} images; as stored linf "
            f"at most {norms['linf_max'] * 255:.0f}/255, l2 at most {norms['l2_max']:.4f}, mean {norms['l2_mean']:.4f}"
        )
    shutil.rmtree(work, ignore_errors=True)
    return prepared


def tell_rates(corruption: dict[str, Any] | None, per_class: bool = False) -> None:
    """Prints what was corrupted, nominal and realised."""
    if corruption is None:
        return
    nominal, asked = corruption.get("nominal"), corruption.get("nominal_per_class")
    say(
        f"corrupted: {corruption.get('trigger') or corruption.get('noise') or corruption['corrupt']}, "
        + (f"nominal rate {percent(nominal)} %, " if nominal is not None else "")
        + f"realised {percent(corruption['overall'])} % ({corruption['corrupted']} of {corruption['n']} samples)"
    )
    if per_class:
        heading = ["class", "nominal %", "realised %"] if asked else ["class", "realised %"]
        rows = [[c, *([percent(asked[c])] if asked else []), percent(r)] for c, r in corruption["per_class"].items()]
        say(show(heading, rows))
