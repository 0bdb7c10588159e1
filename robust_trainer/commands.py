"""The subcommands corrupt, train and env; demo and evaluate have their own rooms."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .config import RobustConfig, check_writable
from .corruptions import IS_CORRUPTED, POISONS, write_card
from .corruptions.crafted import CRAFTED
from .craft_options import CraftOptions
from .methods import METHODS
from .options import CorruptionOptions, DataOptions, ModelOptions, PreprocessOptions, make_parser, parse
from .poison_options import PoisonOptions
from .preprocess import image_shape
from .pretraining import FOLDER as SIMCLR
from .pretraining import ContrastiveOptions, stage_one, unlabelled_images
from .report import write_report
from .results import environment, percent, results, suspects, table, write_json
from .robustness import show_eps
from .runs import Prepared, prepare, train_run

#: What `train` has otherwise than TrainingArguments: figures every epoch, and columns left to the image transform.
TRAIN_DEFAULTS: dict[str, Any] = {
    "output_dir": "robust_run",
    "eval_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_strategy": "no",
    "report_to": "none",
    "remove_unused_columns": False,
}
#: Where the model is small-cnn or resnet32, trained from scratch (TrainingArguments' defaults are for fine-tuning).
SMALL_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-3,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
}


@dataclass
class CorruptOutput:
    """Where `corrupt` writes."""

    _argument_group_name = "output"

    output_dir: str = field(
        default="robust_data", metadata={"help": "Folder for save_to_disk: train, test; with a trigger test_triggered."}
    )


def train(argv: Sequence[str]) -> None:
    """robust-trainer train: writes the model, its image processor, results.json, ledger.parquet and report.html."""
    about = "Train an image classifier robustly. Methods: " + "; ".join(f"{m.name}: {m.summary}" for m in METHODS.values())
    kinds = [DataOptions, CorruptionOptions, PreprocessOptions, ModelOptions, ContrastiveOptions, RobustConfig]
    parser = make_parser("train", kinds, about)
    parser.epilog = "With small-cnn and resnet32: " + ", ".join(f"{k} {v}" for k, v in SMALL_DEFAULTS.items()) + "."
    parser.set_defaults(**TRAIN_DEFAULTS, dataloader_pin_memory=torch.cuda.is_available())
    data, corruption, preprocess, model, contrastive, args = parse(parser, argv, small=SMALL_DEFAULTS)
    epochs = contrastive.epochs(args, model)
    with args.main_process_first(desc="preparing the data"):
        prepared = prepare(data, corruption, preprocess)
        extra = unlabelled_images(contrastive, data) if epochs else None
    tell_rates(prepared.corruption, per_class=True)
    if image_shape(prepared.train)[1] <= 16 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # on so few pixels a second thread costs more than it brings
    trainer, record = train_run(args, prepared, model, before=stage_one(contrastive, epochs, args, prepared.train, extra))
    trainer.save_model(args.output_dir)
    if not trainer.is_world_process_zero():
        return
    folder = Path(args.output_dir)
    content = results([record], command_line("train", argv), prepared, data, corruption, preprocess, model)
    if (first := record.get("contrastive")) is not None:
        losses = [row["loss"] for row in first["losses"]] or [float("nan")]
        say(
            f"SimCLR: {first['images'] + first['unlabelled']} images, {first['epochs']:g} epochs, loss {losses[0]:.3f} to "
            f"{losses[-1]:.3f}; the backbone is in {folder / SIMCLR}"
        )
    write_json(folder / "results.json", content)
    written = ["model.safetensors", "results.json", "report.html"]
    if trainer.ledger is not None:
        trainer.ledger.to_parquet(folder / "ledger.parquet")
        written.append("ledger.parquet")
    shown = suspects(trainer, prepared)
    write_report(folder / "report.html", content, suspects=shown, suspects_of=record["method"], title=f"Run: {record['method']}")
    say(show(*table([record])))
    if isinstance(args.noise_rate, str):
        say(f"noise rate, estimated while training: {trainer.estimated_noise_rate or 'none, nobody was dropped'}")
    say(f"written to {folder}: {', '.join(written)}")
    if trainer.ledger is not None:
        say(f"which samples it distrusted: robust-trainer audit {folder}")
    recipe = trainer.recipe()
    attack = recipe.perturbation if recipe is not None else None
    if attack is not None and prepared.triggered is None:
        one = attack.single()[0]  # of two norms: the l_inf ball's
        norm, eps = "linf" if one.norm == "hybrid" else one.norm, show_eps(one.eps)
        say(f"robust accuracy: robust-trainer evaluate {folder} --attacks pgd-20 cw-20 autoattack --norm {norm} --eps {eps}")


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
    from .craft_run import PATH_FILES, craft_splits
    from .poison_run import check_poison, poison_splits

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


def env(argv: Sequence[str]) -> None:
    """robust-trainer env: the versions and the machine, for a bug report."""
    if argv:
        raise ValueError(f"unexpected argument {argv[0]!r}: env takes none.")
    say("\n".join(f"{name}: {value}" for name, value in environment().items()))


def say(text: str) -> None:
    """Prints on the main process."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def show(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as text: the first column to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in [heading, *rows]) for i in range(len(heading))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()

    return "\n".join([line(heading), "  ".join("-" * w for w in widths), *map(line, rows)])


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


def command_line(command: str, argv: Sequence[str]) -> str:
    """Returns the command as it can be typed again."""
    return shlex.join(["robust-trainer", command, *argv])
