"""robust-trainer demo: three methods on poisoned handwritten digits, in minutes on two cores, without a network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from ..config import RobustConfig
from ..methods.table import METHODS, get_method
from ..reporting.atomic_files import write_json
from ..reporting.console import command_line, say, show
from ..reporting.html import write_report
from ..reporting.results import results, suspects, table
from .corrupt import tell_rates
from .options import CorruptionOptions, DataOptions, ModelOptions
from .outputs import RUN, OverwriteOptions, check_output
from .parser import make_parser, parse
from .stages import Stage, prepare, run_stages
from .training_stages import BuildModel, Evaluate, Train

#: Training of every method in the demo; the methods' own settings are METHODS', told the poison rate.
RECIPE: dict[str, Any] = {"learning_rate": 2e-3, "lr_scheduler_type": "linear", "per_device_train_batch_size": 32}


@dataclass
class DemoOptions:
    """What the demo trains."""

    _argument_group_name = "demo"

    method: list[str] = field(
        default_factory=lambda: ["standard", "prl-at", "prl-at-memory"], metadata={"help": f"One or more of {', '.join(METHODS)}."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the poison, the weights and the order of the samples."})
    epochs: int = field(default=20, metadata={"help": "Epochs per method."})
    output_dir: str = field(default="robust_demo", metadata={"help": "Folder for results.json and report.html."})


def demo(argv: Sequence[str]) -> None:
    """Corrupts digits, trains each method, prints the table, writes results.json and report.html.

    Args:
        argv: The words after the command's name.
    """
    about = "Poison 25 % of scikit-learn's handwritten digits (blend, alpha 0.1), train, compare."
    options, output = parse(make_parser("demo", [DemoOptions, OverwriteOptions], about, first="demo.yaml"), argv)
    for name in options.method:
        get_method(name)
    if options.epochs < 1:
        raise ValueError(f"epochs={options.epochs} must be at least 1: give for instance 20.")
    check_output(options.output_dir, RUN, output.overwrite)
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)  # 8x8 pixels: a second thread costs more than it brings
    start = time.perf_counter()
    corruption = CorruptionOptions(corrupt="blend", corrupt_rate=0.25, alpha=0.1, corrupt_seed=options.seed)
    data, model = DataOptions(dataset="digits"), ModelOptions(model="small-cnn", last_k=min(10, options.epochs))
    prepared = prepare(data, corruption)
    say(f"digits: {len(prepared.train)} training and {len(prepared.test)} test images of 8x8 pixels")
    tell_rates(prepared.corruption)
    runs: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    shown_of = ""
    for name in options.method:
        args = RobustConfig(
            output_dir=options.output_dir, method=name, seed=options.seed, num_train_epochs=options.epochs,
            noise_rate=corruption.corrupt_rate if "noise_rate" in METHODS[name].settings else None,
            per_device_eval_batch_size=512, eval_strategy="epoch", logging_strategy="epoch", save_strategy="no",
            report_to="none", disable_tqdm=False, remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(), **RECIPE,
        )  # fmt: skip
        stages: list[Stage] = [BuildModel(args, model), Train(args, model, lines=False), Evaluate(model.last_k)]
        trainer = run_stages(stages, prepared).trainer
        runs.append(prepared.record)
        if not shown or METHODS[name].summary.startswith("recommended"):
            shown, shown_of = suspects(trainer, prepared), name
    if trainer is None or not trainer.is_world_process_zero():
        return
    folder = Path(options.output_dir)
    content = results(runs, command_line("demo", argv), prepared, data, corruption, model)
    write_json(folder / "results.json", content)
    report = write_report(
        folder / "report.html", content, suspects=shown, suspects_of=shown_of, title="Poisoned digits: three ways to train"
        if len(runs) == 3 else "Poisoned digits",
    )  # fmt: skip
    say(show(*table(runs)))
    say(f"poison: accuracy on triggered images against their true labels; {time.perf_counter() - start:.0f} s in all")
    say(f"written: {folder / 'results.json'}, {report}")
