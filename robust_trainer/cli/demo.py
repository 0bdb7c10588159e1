"""robust-trainer demo: three ways to train on digits that are poisoned, and on digits with wrong labels; no network needed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
from .options import CorruptionOptions, DataOptions, ModelOptions, PreprocessOptions
from .outputs import RUN, OverwriteOptions, check_output
from .parser import make_parser, parse
from .stages import RunState, Stage, prepare, run_stages
from .training_stages import BuildModel, Evaluate, Train, WriteRun

#: Training of every method in the demo; the methods' own settings are METHODS', told the rate where they take one.
RECIPE: dict[str, Any] = {"learning_rate": 2e-3, "lr_scheduler_type": "linear", "per_device_train_batch_size": 32}
#: What is wrong with the digits, in the options of `robust-trainer train`.
CORRUPTIONS: Mapping[str, Mapping[str, Any]] = {
    "poisoned": {"corrupt": "blend", "corrupt_rate": 0.25, "alpha": 0.1},
    "mislabelled": {"corrupt": "symmetric", "corrupt_rate": 0.4},
}
#: What is trained by: as always; by the method that is told nothing; and by one that is told what is wrong and how much.
TRAINED_BY: Mapping[str, Sequence[str]] = {
    "poisoned": ("standard", "auto", "prl-at-memory"), "mislabelled": ("standard", "auto", "prl"),
}  # fmt: skip


@dataclass
class DemoOptions:
    """What the demo trains."""

    _argument_group_name = "demo"

    method: list[str] | None = field(
        default=None,
        metadata={
            "help": f"One or more of {', '.join(METHODS)}. Default: standard, auto and prl-at-memory on poisoned digits; standard, "
            "auto and prl on mislabelled ones."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the corruption, the weights and the order of the samples."})
    epochs: int = field(default=12, metadata={"help": "Epochs per training."})
    output_dir: str = field(
        default="robust_demo", metadata={"help": "Folder for results.json, report.html and a folder of each run."}
    )


def demo(argv: Sequence[str]) -> None:
    """Trains by several methods on poisoned and on mislabelled digits, prints the table, writes the runs and a report.

    Args:
        argv: The words after the command's name.
    """
    about = (
        "Train on scikit-learn's handwritten digits, once a quarter of them poisoned (a faint picture blended in, the label "
        "moved), once 40 %% of them with a wrong label: as always (standard), by auto, which is told nothing, and by a method that "
        "is told what is wrong. Every run is a folder that robust-trainer audit and evaluate open."
    )
    options, output = parse(make_parser("demo", [DemoOptions, OverwriteOptions], about, first="demo.yaml"), argv)
    for name in options.method or ():
        get_method(name)
    if options.epochs < 1:
        raise ValueError(f"epochs={options.epochs} must be at least 1: give for instance 12.")
    folder = Path(options.output_dir)
    chosen = {data: dict.fromkeys(options.method or names) for data, names in TRAINED_BY.items()}
    folders = {(data, name): folder / f"{data}_{name}" for data, names in chosen.items() for name in names}
    for each in (folder, *folders.values()):
        check_output(str(each), RUN, output.overwrite)
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)  # 8x8 pixels: a second thread costs more than it brings
    start, command = time.perf_counter(), command_line("demo", argv)
    model = ModelOptions(model="small-cnn", last_k=min(10, options.epochs))
    runs: list[dict[str, Any]] = []
    states: dict[str, RunState] = {}
    shown: list[dict[str, Any]] = []
    for data, changes in CORRUPTIONS.items():
        corruption = CorruptionOptions(**changes, corrupt_seed=options.seed)
        parts = (DataOptions(dataset="digits"), corruption, PreprocessOptions(), model)
        state = states[data] = prepare(parts[0], corruption)
        say(_data_told(data, state))
        for name in chosen[data]:
            args = _arguments(folders[data, name], name, corruption.corrupt_rate, options)
            stages: list[Stage] = [BuildModel(args, model), Train(args, model, lines=False), Evaluate(model.last_k)]
            run_stages([*stages, WriteRun(folders[data, name], command, parts)], state)
            assert state.trainer is not None
            if not state.trainer.is_world_process_zero():
                continue
            runs.append({"data": data, **state.record, "folder": folders[data, name].name})
            if (labels := state.record.get("labels")) is not None:
                say(f"{name}: {labels['found']} {labels['done']}")
                shown = shown or suspects(state.trainer, state)
    if runs:
        _write(folder, runs, states, shown, command, model)
        seconds = time.perf_counter() - start
        say(f"written to {folder}: report.html, results.json, and a folder of each run ({seconds:.0f} s in all)")
        run = next((run for run in reversed(runs) if run["method"] == "auto"), runs[-1])
        say(f"which samples were wrong: robust-trainer audit {folder / run['folder']}")


def _arguments(folder: Path, method: str, rate: float, options: DemoOptions) -> RobustConfig:
    """Returns how a method is trained, told the rate where it takes one."""
    return RobustConfig(
        output_dir=str(folder), method=method, seed=options.seed, num_train_epochs=options.epochs,
        noise_rate=rate if "noise_rate" in get_method(method).settings else None,
        per_device_eval_batch_size=512, eval_strategy="epoch", logging_strategy="epoch", save_strategy="no",
        report_to="none", disable_tqdm=False, remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(), **RECIPE,
    )  # fmt: skip


def _data_told(data: str, state: RunState) -> str:
    """Returns what is wrong with the training images, in a line."""
    told = state.corruption or {}
    what = told.get("trigger") or told.get("noise")
    size = f"{len(state.train)} training and {len(state.test)} test images of 8x8 pixels"
    return f"{data} digits ({size}): {what} on {told['corrupted']} training images, {100 * told['overall']:.0f} %"


def _write(
    folder: Path, runs: Sequence[dict[str, Any]], states: Mapping[str, RunState], shown: Sequence[Mapping[str, Any]], command: str,
    model: ModelOptions,
) -> None:  # fmt: skip
    """Writes results.json and report.html of all runs, and prints the table."""
    state = next(iter(states.values()))
    content = results(runs, command, state, DataOptions(dataset="digits"), model)
    content |= {"corruption": None, "corruptions": {data: each.corruption for data, each in states.items()}}
    write_json(folder / "results.json", content)
    title = "Digits with poison and with wrong labels: ways to train"
    write_report(folder / "report.html", content, suspects=shown, suspects_of="auto, poisoned digits" if shown else "", title=title)
    heading, rows = table(runs)
    short = [i for i, name in enumerate(heading) if " last " not in name and name != "distrusted"]  # the report has them
    say(show([heading[i] for i in short], [[row[i] for i in short] for row in rows]))
    say(
        "clean: accuracy on untouched test images; poison: on test images with the trigger, against their true labels; attack: "
        "share of these that get the attacker's label; wrong labels: the share that was found, or told; precision, recall: of the "
        "training images that were left out or relabelled"
    )
