"""One training from options to figures: data prepared, model built, trained, evaluated, written down."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from .config import RobustConfig
from .corruptions import ATTACK_TARGET, IS_CORRUPTED, poison, realised_rates, trigger_all
from .evaluation import compute_accuracy, evaluate_backdoor
from .models import build_model
from .options import CorruptionOptions, DataOptions, ModelOptions
from .preprocess import ImageTransform, image_shape, model_channels
from .sources import TEST, TRAIN, TRIGGERED, label_names, load_data
from .trainer import RobustTrainer

logger = logging.getLogger(__name__)
#: Per-epoch figures: name in the report -> name in the Trainer's log.
CURVES: Mapping[str, str] = {
    "loss": "loss",
    "clean_accuracy": "eval_clean_accuracy",
    "poison_accuracy": "eval_poison_accuracy",
    "kept_fraction": "kept_fraction",
    "kept_clean": "kept_clean",
    "kept_corrupted": "kept_corrupted",
    "filter_precision": "filter_precision",
    "filter_recall": "filter_recall",
    "filter_auroc": "filter_auroc",
}


@dataclass
class Prepared:
    """Data ready to train on: images and labels, the triggered test set where there is a trigger, and what was corrupted."""

    train: datasets.Dataset
    test: datasets.Dataset
    triggered: datasets.Dataset | None
    corruption: dict[str, Any] | None

    def splits(self) -> datasets.DatasetDict:
        """The data as splits for ``save_to_disk``."""
        named = {TRAIN: self.train, TEST: self.test, **({TRIGGERED: self.triggered} if self.triggered is not None else {})}
        return datasets.DatasetDict(named)


def prepare(data: DataOptions, corruption: CorruptionOptions) -> Prepared:
    """Returns the data set, poisoned as the options say; one that was saved poisoned comes with its own triggered test set.

    Raises ``ValueError`` for settings out of range, and for a second poison on a poisoned data set.
    """
    trigger, rule = corruption.trigger(), corruption.rule()
    found = load_data(
        data.dataset, config=data.dataset_config, image_column=data.image_column, label_column=data.label_column,
        test_split=data.test_split, max_train_samples=data.max_train_samples, max_test_samples=data.max_test_samples,
        seed=data.split_seed,
    )  # fmt: skip
    train, test, triggered = found[TRAIN], found[TEST], found.get(TRIGGERED)
    told = None
    if IS_CORRUPTED in train.column_names:
        if trigger is not None:
            raise ValueError(
                f"dataset={data.dataset!r} is corrupted already and corrupt={corruption.corrupt!r} would do it twice: "
                "drop corrupt, or start from the clean data set."
            )
        told = {"corrupt": "as saved", **realised_rates(train)}
    elif trigger is not None:
        train = poison(train, trigger=trigger, rate=corruption.corrupt_rate, label_rule=rule, seed=corruption.corrupt_seed)
        triggered = trigger_all(test, trigger, label_rule=rule)
        told = {
            "corrupt": corruption.corrupt, "trigger": corruption.describe(), "seed": corruption.corrupt_seed,
            **realised_rates(train, nominal=corruption.corrupt_rate),
        }  # fmt: skip
    return Prepared(train, test, triggered, told)


class EpochBar(TrainerCallback):
    """A progress bar over the steps, and one line per epoch where ``lines`` is set; on the main process only."""

    def __init__(self, name: str, lines: bool = True, bar: bool = True):
        self.name, self.lines, self.shown = name, lines, bar
        self.row: dict[str, float] = {}
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.shown:
            self.bar = tqdm(total=state.max_steps, desc=self.name, dynamic_ncols=True, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        found = {name: logs[key] for name, key in CURVES.items() if key in (logs or {})}
        if found:
            self.row.update(found, epoch=logs.get("epoch", state.epoch))
        if self.bar is not None and "poison_accuracy" in self.row:
            self.bar.set_postfix(clean=percent(self.row["clean_accuracy"]), poison=percent(self.row["poison_accuracy"]))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._flush(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._flush(state)
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _flush(self, state: Any) -> None:
        row, self.row = self.row, {}
        if not (row and self.lines and state.is_world_process_zero):
            return
        shown = [f"epoch {row['epoch']:g}"] + ([f"loss {row['loss']:.4g}"] if "loss" in row else [])
        short = {"clean_accuracy": "clean", "poison_accuracy": "poison", "kept_fraction": "kept"}
        short |= {"kept_clean": "kept of clean", "kept_corrupted": "kept of corrupted"}
        shown += [f"{label} {percent(row[name])}" for name, label in short.items() if name in row]
        tqdm.write("  ".join(shown), file=sys.stdout)


def train_run(
    args: RobustConfig, data: Prepared, options: ModelOptions, *, lines: bool = True
) -> tuple[RobustTrainer, dict[str, Any]]:
    """Trains once and returns the trainer and its record: settings, per-epoch curves, final figures, means, detection, seconds.

    The figures are fractions in [0, 1]. lines: one line per epoch on the standard output.
    """
    if options.last_k < 1:
        raise ValueError(f"last_k={options.last_k} must be at least 1: give for instance 10.")
    if args.remove_unused_columns:
        raise ValueError("remove_unused_columns=True would drop the images before they are preprocessed: leave it at False.")
    set_seed(args.seed)
    channels, side = image_shape(data.train)
    model, processor = build_model(
        options.model, label_names(data.train), channels=channels, image_size=options.image_size or min(side, 64),
        from_scratch=options.from_scratch,
    )  # fmt: skip
    transform = ImageTransform(processor, model_channels(model))
    tests = {"clean": data.test, **({"poison": data.triggered} if data.triggered is not None else {})}
    trainer = RobustTrainer(
        model=model, args=args, train_dataset=data.train.with_transform(transform), processing_class=processor,
        eval_dataset={name: split.with_transform(transform) for name, split in tests.items()},
        compute_metrics=compute_accuracy,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    method = args.method or "none"
    trainer.add_callback(EpochBar(method, lines, bar=not args.disable_tqdm))
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - start
    record = {
        "method": method, "settings": dict(recipe.settings) if (recipe := trainer.recipe()) is not None else {},
        "model": options.model, "parameters": sum(p.numel() for p in model.parameters()), "seed": args.seed,
        "epochs": args.num_train_epochs, "batch_size": args.train_batch_size * args.world_size, "learning_rate": args.learning_rate,
        "train_samples": len(data.train), "seconds": round(seconds, 2), "curves": curves(trainer.state.log_history),
    }  # fmt: skip
    record["final"] = _final(trainer, data)
    record["mean_last_k"] = mean_last(record["curves"], options.last_k)
    if trainer.ledger is not None:
        record["detection"] = trainer.ledger.detection()
        record["distrusted"] = int((trainer.ledger.kept * 2 < trainer.ledger.seen).sum())
    return trainer, record


def _final(trainer: Any, data: Prepared) -> dict[str, float]:
    splits = trainer.eval_dataset
    if data.triggered is not None and ATTACK_TARGET in data.triggered.column_names:
        return evaluate_backdoor(trainer, splits["clean"], splits["poison"])
    found = {}
    for name, split in splits.items():
        found[f"{name}_accuracy"] = trainer.predict(split).metrics["test_accuracy"]
    return {**found, "n": len(data.test)}


def curves(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Returns one row per logged epoch, in order: epoch and the `CURVES` that were logged at it."""
    rows: dict[float, dict[str, float]] = {}
    for entry in history:
        found = {name: float(entry[key]) for name, key in CURVES.items() if key in entry}
        if found:
            rows.setdefault(round(float(entry["epoch"]), 4), {}).update(found)
    return [{"epoch": epoch, **row} for epoch, row in sorted(rows.items())]


def mean_last(rows: Sequence[Mapping[str, float]], k: int) -> dict[str, float]:
    """Returns the means of clean and poison accuracy over the last k evaluations (fewer where there are fewer), and that k."""
    out: dict[str, float] = {}
    for name in ("clean_accuracy", "poison_accuracy"):
        values = [row[name] for row in rows if name in row][-k:]
        if values:
            out[name] = sum(values) / len(values)
            out["k"] = len(values)
    return out


def suspects(trainer: Any, data: Prepared, count: int = 24) -> list[dict[str, Any]]:
    """Returns the most suspicious training samples, highest mean score first: image, given label, prediction, truth if known."""
    if trainer.ledger is None:
        return []
    names = label_names(data.train)
    order = torch.argsort(trainer.ledger.mean_score, descending=True, stable=True)[:count].tolist()
    out = []
    for row in trainer.ledger.to_dataset().select(order):
        sample = data.train[row["index"]]
        truth = sample.get("clean_label")
        out.append(
            {
                "image": sample["image"], "index": row["index"], "given": names[sample["label"]],
                "predicted": names[row["predicted"]] if row["predicted"] >= 0 else "-", "score": row["mean_score"],
                "kept": row["kept"], "seen": row["seen"], "truth": None if truth is None else names[truth],
                "corrupted": sample.get(IS_CORRUPTED),
            }
        )  # fmt: skip
    return out


def environment() -> dict[str, Any]:
    """Returns what a figure depends on: versions, device, cores, operating system, date."""
    packages = ("torch", "transformers", "accelerate", "datasets", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "robust_trainer": importlib.metadata.version("robust-trainer"), "python": platform.python_version(), **versions,
        "device": device, "cores": cores, "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }  # fmt: skip


def results(runs: Sequence[Mapping[str, Any]], command: str, data: Prepared, *options: Any) -> dict[str, Any]:
    """Returns all that results.json holds: the command, the options, the corruption, the runs and the environment."""
    given = {name: value for option in options for name, value in dataclasses.asdict(option).items()}
    return {
        "command": command, "options": given, "corruption": data.corruption, "train_samples": len(data.train),
        "test_samples": len(data.test), "environment": environment(), "runs": list(runs),
    }  # fmt: skip


def write_json(path: str | Path, content: Any) -> Path:
    """Writes ``content`` as readable JSON, its folder too, and returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    return path


def percent(value: float | None) -> str:
    """Returns a fraction in percent, '-' for none."""
    return "-" if value is None else f"{100 * value:.1f}"


def table(runs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns the heading and the rows of the table of results, in percent; the report shows the same."""
    k = next((run["mean_last_k"]["k"] for run in runs if run.get("mean_last_k")), None)
    heading = ["method", "clean %", "poison %", "attack %"]
    heading += [f"clean last {k}", f"poison last {k}"] if k else []
    heading += ["distrusted", "precision %", "recall %", "AUROC %", "seconds"]
    rows = []
    for run in runs:
        final, mean, found = run["final"], run.get("mean_last_k") or {}, run.get("detection") or {}
        row = [run["method"], *(percent(final.get(n)) for n in ("clean_accuracy", "poison_accuracy", "attack_success_rate"))]
        row += [percent(mean.get("clean_accuracy")), percent(mean.get("poison_accuracy"))] if k else []
        flagged = run.get("distrusted")
        row += ["-" if flagged is None else str(flagged)]
        row += [percent(found.get("precision") if flagged else None), percent(found.get("recall")), percent(found.get("auroc"))]
        rows.append([*row, f"{run['seconds']:.1f}"])
    empty = [i for i, name in enumerate(heading) if i and all(row[i] == "-" for row in rows)]
    keep = [i for i in range(len(heading)) if i not in empty]
    return [heading[i] for i in keep], [[row[i] for i in keep] for row in rows]
