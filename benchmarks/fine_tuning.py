"""Ordinary fine-tuning on data of which one knows nothing: the matrix of tasks, corruptions, methods and seeds.

    python benchmarks/fine_tuning.py --data_dir <folder with cifar10, mnist, text/sst2, text/clinc150> --out runs/fine_tuning.jsonl
    python benchmarks/fine_tuning.py --tasks cifar10 --corruptions clean patch10 --methods plain prl --seeds 0 --out F.jsonl
    python benchmarks/fine_tuning.py --report --out runs/fine_tuning.jsonl

Tasks: cifar10 (EfficientNet-Lite0 with ImageNet weights, 1,500 images at 64 pixels, 4 epochs), sst2 (MiniLM, 2,000 texts,
4 epochs), clinc150 (MiniLM, 2,000 texts of the first 77 classes, 8 epochs), digits (scikit-learn's, a small CNN from scratch,
20 epochs) and mnist (3,000 images, the same CNN, 8 epochs). Batches of 32, AdamW, a linear schedule after a tenth of warm-up.

Methods: plain (transformers' Trainer), clean-only (the same on the rows that are not corrupted, which nobody has: the bar's
reference), and every name of robust_trainer.METHODS. One that takes a ``noise_rate`` is told the true share of corrupted rows;
auto is told nothing.

One JSON line per finished run, appended to --out; runs found there are skipped, so a stopped command can be given again. The seed
fixes the training rows, the corrupted ones among them, the new head and the order; the test rows are always the same. The tasks
gpu-lite0 and gpu-resnet18 are those of benchmarks/gpu_fine_tuning.sh.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
import yaml
from common import add_result, key_of, machine, read_results
from fine_tuning_report import CLEAN_ONLY, PLAIN, report
from fine_tuning_tasks import CORRUPTIONS, MATRIX, TASKS, Loaded, Part, Task, corrupted, load, skipped
from sklearn.metrics import roc_auc_score
from transformers import Trainer, TrainingArguments, set_seed

from robust_trainer import METHODS, RobustConfig, RobustTrainer

DEFAULT_METHODS = (PLAIN, CLEAN_ONLY, "gce", "spl", "prl", "co-prl", "prl-at-memory", "auto")


# ---- one run ----------------------------------------------------------------------------------------------------------


def make_trainer(
    args: argparse.Namespace, loaded: Loaded, train: Part, row: dict[str, Any], folder: str, recipe: Any = None, **more: Any
) -> Any:
    """A trainer of a fresh network, by ``row["method"]`` or a recipe of one's own; ``more``: further fields of `RobustConfig`."""
    common: dict[str, Any] = {
        "output_dir": folder, "num_train_epochs": row["epochs"], "per_device_train_batch_size": row["batch_size"],
        "learning_rate": row["lr"], "weight_decay": 0.01, "lr_scheduler_type": "linear", "warmup_steps": 0.1,
        "optim": "adamw_torch_fused", "seed": row["seed"],
        "logging_strategy": "epoch", "save_strategy": "no", "eval_strategy": "no", "report_to": [],
        "disable_tqdm": True, "remove_unused_columns": False, "label_names": ["labels"],
        "dataloader_pin_memory": torch.cuda.is_available(), "bf16": args.bf16,
        "dataloader_num_workers": args.workers, "dataloader_persistent_workers": args.workers > 0,
    }  # fmt: skip
    data: dict[str, Any] = {"train_dataset": train, "data_collator": loaded.collate}
    model = loaded.model()
    trainer: Any
    if row["method"] in (PLAIN, CLEAN_ONLY):
        trainer = Trainer(model=model, args=TrainingArguments(**common), **data)
    else:
        if loaded.task.kind == "image":
            channels = train.inputs.shape[1]
            common |= {"image_mean": [train.scale[0]] * channels, "image_std": [train.scale[1]] * channels}
        named = {} if recipe is not None else {"method": row["method"], "method_settings": row["settings"]}
        trainer = RobustTrainer(model=model, args=RobustConfig(**named, **common, **more), recipe=recipe, **data)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


@torch.no_grad()
def predict(trainer: Any, loaded: Loaded, part: Part) -> np.ndarray:
    """The predicted classes (M, N), one row per network."""
    model, found = trainer.model.eval(), []
    for start in range(0, len(part), 100):
        batch = loaded.collate([part[i] for i in range(start, min(start + 100, len(part)))])
        batch.pop("labels")
        outputs = model(**{name: value.to(trainer.args.device) for name, value in batch.items()})
        peers = outputs.get("peer_logits")  # (B, M, C)
        found.append((outputs["logits"].unsqueeze(1) if peers is None else peers).argmax(-1).cpu())
    return torch.cat(found).numpy().T


def test_figures(trainer: Any, loaded: Loaded, test: Part, triggered: Part | None) -> dict[str, float]:
    """Accuracy, balanced accuracy and, on the triggered images, accuracy and attack success; of several networks the mean.

    Attack success counts the images whose label the attacker would change.
    """
    said, truth = predict(trainer, loaded, test), test.clean.numpy()
    right = said == truth
    found = {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(np.mean([right[:, truth == c].mean() for c in np.unique(truth)])),
    }
    if triggered is not None:
        said, wanted = predict(trainer, loaded, triggered), triggered.attack_targets
        assert wanted is not None
        changed = wanted != truth
        found["triggered_accuracy"] = float((said == truth).mean())
        found["attack_success"] = float((said == wanted)[:, changed].mean())
    return {name: round(value, 5) for name, value in found.items()}


def decisions(left_out: np.ndarray, train: Part, name: str) -> dict[str, float | None]:
    """Shares of the clean and of the corrupted rows that are left out, and the most that a class loses of its clean rows."""
    truth, classes = train.corrupted.numpy(), train.clean.numpy()
    lost = [left_out[(classes == c) & ~truth].mean() for c in np.unique(classes[~truth])]
    return {
        f"{name}_clean": round(float(left_out[~truth].mean()), 5),
        f"{name}_corrupted": round(float(left_out[truth].mean()), 5) if truth.any() else None,
        f"{name}_worst_class": round(float(max(lost)), 5),
    }


def audit_figures(trainer: Any, train: Part, look: bool) -> dict[str, Any]:
    """What the ledger's decision and the audit say of the training rows, beside the truth; nothing without a ledger."""
    if getattr(trainer, "ledger", None) is None:
        return {}
    left_out = np.zeros(len(train), dtype=bool)
    left_out[np.asarray(trainer.distrusted_samples()["index"][:], dtype=np.int64)] = True
    found: dict[str, Any] = decisions(left_out, train, "dropped")
    start = time.perf_counter()
    audit = trainer.audit(look=look)
    found["audit_seconds"] = round(time.perf_counter() - start, 2)
    truth, suspicion = train.corrupted.numpy(), np.nan_to_num(audit.column("suspicion"))
    found["auroc"] = round(float(roc_auc_score(truth, suspicion)), 5) if 0 < truth.sum() < len(truth) else None
    flagged = audit.column("flagged").astype(bool)
    found["flagged"] = round(float(flagged.mean()), 5)
    return {**found, **decisions(flagged, train, "flagged"), "audit_rate": audit.noise_rate}


def run(args: argparse.Namespace, loaded: Loaded, train: Part, triggered: Part | None, row: dict[str, Any]) -> dict[str, Any]:
    """Trains once and returns the figures."""
    set_seed(row["seed"])
    if row["method"] == CLEAN_ONLY:
        train = train.select(torch.nonzero(~train.corrupted)[:, 0])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, loaded, train, row, folder)
        start, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        figures = test_figures(trainer, loaded, loaded.part(loaded.test), triggered)
        estimate = getattr(trainer, "estimated_noise_rate", None)
        figures |= audit_figures(trainer, train, look=triggered is not None)
    return {
        **figures,
        "estimate": None if estimate is None else [estimate.rate, estimate.low, estimate.high],
        "train_seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "n_train": len(train),
    }


# ---- all runs ---------------------------------------------------------------------------------------------------------


def run_settings(args: argparse.Namespace, task: Task, corruption: str, method: str, seed: int) -> dict[str, Any]:
    """All that fixes a run."""
    rate = CORRUPTIONS[corruption].rate
    settings = dict(args.settings) if method not in (PLAIN, CLEAN_ONLY) else {}
    if method not in (PLAIN, CLEAN_ONLY, "auto") and "noise_rate" in METHODS[method].settings:
        settings.setdefault("noise_rate", rate)
    return {
        "task": task.name, "corruption": corruption, "method": method, "seed": seed,
        "network": task.network, "side": task.side,
        "train_rows": args.train_rows or task.train_rows, "test_rows": args.test_rows or task.test_rows,
        "epochs": args.epochs or task.epochs, "batch_size": args.batch_size or task.batch_size, "lr": args.lr or task.lr,
        "settings": settings,
    }  # fmt: skip


def run_all(args: argparse.Namespace) -> None:
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done, wanted = {row["key"] for row in read_results(out)}, []
    for name in args.tasks:
        for seed in args.seeds:
            for corruption in args.corruptions:
                for method in args.methods:
                    if (why := skipped(TASKS[name], corruption, method)) is not None:
                        if seed == args.seeds[0]:
                            print(f"{name} {corruption} {method}: skipped, {why}", flush=True)
                        continue
                    wanted.append(run_settings(args, TASKS[name], corruption, method, seed))
    todo = [row for row in wanted if key_of(row) not in done]
    print(f"{len(todo)} runs to do, {len(wanted) - len(todo)} of {len(wanted)} found in {out}", flush=True)
    until = time.monotonic() + 60 * args.minutes if args.minutes is not None else float("inf")
    loaded: Loaded | None = None
    cell: tuple[Any, ...] = ()
    for number, row in enumerate(todo, 1):
        if time.monotonic() > until:
            print(f"{len(todo) - number + 1} runs are left after {args.minutes:g} minutes: give the command again", flush=True)
            return
        if loaded is None or loaded.task.name != row["task"]:
            loaded = load(TASKS[row["task"]], args.data_dir, row["test_rows"])
        if cell != (cell := (row["task"], row["corruption"], row["seed"])):
            train, triggered = corrupted(loaded, row["corruption"], row["train_rows"], row["seed"])
        head = f"[{number}/{len(todo)}] {row['task']} {row['corruption']} {row['method']} seed {row['seed']}"
        try:
            figures = run(args, loaded, train, triggered, row)
        except ValueError as error:
            print(f"{head}: refused: {error}", flush=True)
            continue
        more = {
            "rate": round(float(train.corrupted.double().mean()), 6), "told": CORRUPTIONS[row["corruption"]].rate,
            "n_test": len(loaded.test), "machine": machine(),
        }  # fmt: skip
        add_result(out, {"key": key_of(row), **row, **more, **figures})
        print(f"{head}: {told(figures)}", flush=True)


def told(figures: dict[str, Any]) -> str:
    """A run's figures in a line."""
    shown = ("accuracy", "balanced_accuracy", "triggered_accuracy", "attack_success", "dropped_clean", "dropped_corrupted", "auroc")
    parts = [f"{name} {figures[name]:.3f}" for name in shown if figures.get(name) is not None]
    if figures["estimate"] is not None:
        parts.append("rate {:.3f} ({:.3f} to {:.3f})".format(*figures["estimate"]))
    return f"{', '.join(parts)}; {figures['train_seconds']:.0f} s"


# ---- arguments --------------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data_dir", default=os.environ.get("ROBUST_TRAINER_DATA"), help="default: the variable ROBUST_TRAINER_DATA")
    p.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(MATRIX))
    p.add_argument("--corruptions", nargs="+", choices=list(CORRUPTIONS), default=list(CORRUPTIONS))
    p.add_argument("--methods", nargs="+", default=[m for m in DEFAULT_METHODS if m in (PLAIN, CLEAN_ONLY) or m in METHODS])
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--settings", nargs="+", default=[], metavar="NAME=VALUE", help="of every method named: its other settings")
    p.add_argument("--train_rows", type=int, help="default: the task's")
    p.add_argument("--test_rows", type=int, help="default: the task's")
    p.add_argument("--epochs", type=int, help="default: the task's")
    p.add_argument("--batch_size", type=int, help="default: the task's")
    p.add_argument("--lr", type=float, help="default: the task's")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--workers", type=int, default=0, help="data loader processes")
    p.add_argument("--minutes", type=float, help="start no run after so long: give the command again to go on")
    p.add_argument("--threads", type=int, default=1, help="CPU threads")
    p.add_argument("--out", default="runs/fine_tuning.jsonl")
    p.add_argument("--report", action="store_true", help="print the tables of --out and the bars, and stop")
    p.add_argument("--judged", default="auto", help="of --report: the method whose bars are looked at, as its column is named")
    args = p.parse_args(argv)
    for name in ("train_rows", "test_rows", "epochs", "batch_size", "lr", "threads", "minutes"):
        if (value := getattr(args, name)) is not None and value <= 0:
            raise SystemExit(f"--{name} {value}: must be above 0.")
    for method in args.methods:
        if method not in (PLAIN, CLEAN_ONLY) and method not in METHODS:
            raise SystemExit(f"--methods {method}: choose from {PLAIN}, {CLEAN_ONLY}, {', '.join(METHODS)}.")
    args.settings = read_settings(args.settings, args.methods)
    return args


def read_settings(given: list[str], methods: list[str]) -> dict[str, Any]:
    """The settings as a dict; raises ``SystemExit`` for one that a named method does not take."""
    settings = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals:
            raise SystemExit(f"--settings {one}: write name=value.")
        settings[name] = yaml.safe_load(text)
    named = [method for method in methods if method not in (PLAIN, CLEAN_ONLY)]
    if settings and not named:
        raise SystemExit(f"--settings {' '.join(given)}: no method is named that takes settings.")
    for method in named:
        try:
            METHODS[method](**settings)
        except ValueError as error:
            raise SystemExit(f"--settings {' '.join(given)}: {error}") from None
    return settings


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.report:
        print(report(read_results(Path(args.out)), args.judged) or f"no results in {args.out}")
        return
    torch.set_num_threads(args.threads)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"benchmarks/fine_tuning.py {' '.join(sys.argv[1:] if argv is None else argv)}", flush=True)
    run_all(args)


if __name__ == "__main__":
    main()
