"""The subcommands corrupt, train, evaluate and env; demo has its own room."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from .config import RobustConfig, check_writable
from .corruptions import ATTACK_TARGET
from .evaluation import compute_accuracy, evaluate_backdoor
from .methods import METHODS
from .models import load_model
from .options import CorruptionOptions, DataOptions, ModelOptions, make_parser, parse
from .preprocess import ImageTransform, image_shape, model_channels
from .report import write_report
from .results import environment, percent, results, suspects, table, write_json
from .runs import prepare, train_run
from .sources import label_names

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


@dataclass
class EvaluateOptions:
    """What `evaluate` measures."""

    _argument_group_name = "evaluation"

    run: str = field(default="robust_run", metadata={"help": "Folder with a saved model: the output_dir of a training."})
    batch_size: int = field(default=64, metadata={"help": "Images per forward pass."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write. Default: evaluation.json in the run's folder."})


def train(argv: Sequence[str]) -> None:
    """robust-trainer train: writes the model, its image processor, results.json, ledger.parquet and report.html."""
    about = "Train an image classifier robustly. Methods: " + "; ".join(f"{m.name}: {m.summary}" for m in METHODS.values())
    parser = make_parser("train", [DataOptions, CorruptionOptions, ModelOptions, RobustConfig], about)
    parser.epilog = "With small-cnn and resnet32: " + ", ".join(f"{k} {v}" for k, v in SMALL_DEFAULTS.items()) + "."
    parser.set_defaults(**TRAIN_DEFAULTS, dataloader_pin_memory=torch.cuda.is_available())
    data, corruption, model, args = parse(parser, argv, small=SMALL_DEFAULTS)
    with args.main_process_first(desc="preparing the data"):
        prepared = prepare(data, corruption)
    tell_rates(prepared.corruption, per_class=True)
    if image_shape(prepared.train)[1] <= 16 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # on so few pixels a second thread costs more than it brings
    trainer, record = train_run(args, prepared, model)
    trainer.save_model(args.output_dir)
    if not trainer.is_world_process_zero():
        return
    folder = Path(args.output_dir)
    content = results([record], command_line("train", argv), prepared, data, corruption, model)
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


def corrupt(argv: Sequence[str]) -> None:
    """robust-trainer corrupt: writes a poisoned or mislabelled data set and prints nominal and realised rates."""
    about = "Corrupt a data set and save it: train (with is_corrupted and clean_label), test, and for a trigger test_triggered."
    data, corruption, output = parse(make_parser("corrupt", [DataOptions, CorruptionOptions, CorruptOutput], about), argv)
    if not corruption.wanted:
        raise ValueError(
            "corrupt='none' leaves the data set as it is: give --corrupt patch, blend or a label noise, or --noisy_label_column."
        )
    corruption.trigger()
    check_writable(output.output_dir)
    prepared = prepare(data, corruption)
    splits = prepared.splits()
    splits.save_to_disk(output.output_dir)
    write_json(Path(output.output_dir) / "corruption.json", prepared.corruption)
    tell_rates(prepared.corruption, per_class=True)
    say(f"written to {output.output_dir}: " + ", ".join(f"{name} ({len(split)} rows)" for name, split in splits.items()))


def evaluate(argv: Sequence[str]) -> None:
    """robust-trainer evaluate: clean accuracy, poison accuracy and attack success rate of a saved model."""
    about = "Evaluate a saved model. Data and trigger are those of the run, where its results.json tells, unless given here."
    parser = make_parser("evaluate", [EvaluateOptions, DataOptions, CorruptionOptions], about, first="run_folder")
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv = [f"--run={argv[0]}", *argv[1:]]
    run = parser.parse_known_args(argv)[0].run
    parser.set_defaults(**_stored(run, {f.name for t in (DataOptions, CorruptionOptions) for f in fields(t)}))
    options, data, corruption = parse(parser, argv)
    if corruption.wanted and corruption.trigger() is None:
        corruption = CorruptionOptions()  # wrong labels were for training alone
    if options.batch_size < 1:
        raise ValueError(f"batch_size={options.batch_size} must be at least 1: give for instance 64.")
    model, processor = load_model(options.run)
    prepared = prepare(data, corruption)
    known, given = list((model.config.id2label or {}).values()), label_names(prepared.test)
    if len(known) != len(given):
        raise ValueError(
            f"the model of run={options.run!r} knows {len(known)} classes but dataset={data.dataset!r} has {len(given)}: "
            "give the data set that it was trained on."
        )
    transform = ImageTransform(processor, model_channels(model))
    clean = prepared.test.with_transform(transform)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, per_device_eval_batch_size=options.batch_size, remove_unused_columns=False, report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
        trainer = Trainer(model=model, args=args, compute_metrics=compute_accuracy)
        if prepared.triggered is not None and ATTACK_TARGET in prepared.triggered.column_names:
            found = evaluate_backdoor(trainer, clean, prepared.triggered.with_transform(transform))
        else:
            metrics = trainer.predict(clean).metrics or {}
            found = {"clean_accuracy": metrics["test_accuracy"], "n": len(clean)}
    trigger = (prepared.corruption or {}).get("trigger", "as saved" if prepared.triggered is not None else None)
    content = {
        "run": options.run, "dataset": data.dataset, "trigger": trigger, **found, "environment": environment(),
    }  # fmt: skip
    path = write_json(options.output or Path(options.run) / "evaluation.json", content)
    say(show(["figure", "value"], [[name, percent(value) + " %"] for name, value in found.items() if name != "n"]))
    say(f"{found['n']} test images of {data.dataset}, trigger {trigger or 'none'}; written to {path}")


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


def _stored(run: str, names: set[str]) -> dict[str, Any]:
    """Data and corruption options from the run's results.json, where there is one."""
    try:
        content = json.loads((Path(run) / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in content.get("options", {}).items() if name in names}


