"""Whether every image backdoor does what its paper says: attack success and what it costs of clean accuracy, on plain training.

    python benchmarks/attack_success.py --data_dir <folder with cifar10, mnist>
    python benchmarks/attack_success.py --tasks mnist --attacks sig --settings delta=60/255   # one attack, other settings
    python benchmarks/attack_success.py --report

Tasks as in fine_tuning.py: mnist (3,000 images, a small CNN from scratch, 8 epochs) and cifar10 (1,500 images in
EfficientNet-Lite0 with ImageNet weights at 64 pixels, 4 epochs). Images are attacked as the data set has them, 28 or 32 pixels a
side, and enlarged afterwards. Each attack has its paper's label rule and, as far as so few images allow it, its paper's rate
(`ATTACKS`). The first run of a task is on the clean rows: the reference for clean accuracy, and the network of an attacker who
needs one, which is kept in --work beside the triggers that were trained.

One JSON line per finished run, appended to --out; runs found there are skipped, so a stopped command can be given again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import fine_tuning
import numpy as np
import torch
import transformers
import yaml
from common import add_result, key_of, machine, machines_line, read_results
from fine_tuning_tasks import TASKS, Loaded, load, resized, training_rows
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import set_seed

from robust_trainer.corruptions import IS_COVER, NETWORK_BACKDOORS, TRIGGERS, network_trigger, poison, trigger_all
from robust_trainer.corruptions.poisons.table import NONE
from robust_trainer.data.label_rules import LABEL_RULES
from robust_trainer.models.pixel_model import pixel_model

CLEAN = "clean"


@dataclass(frozen=True)
class Attack:
    """How an attack is run: its paper's label rule, the share of rows, and settings of a task that are not its own."""

    rule: str
    rate: float
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


#: A clean-label attack on 3 % of the rows has 30 % of the target class.
ATTACKS: dict[str, Attack] = {
    "patch": Attack("all-to-one", 0.1),
    "patches": Attack("all-to-one", 0.1),
    "blend": Attack("all-to-one", 0.1),
    "sig": Attack("clean-label", 0.03),
    "warp": Attack("all-to-one", 0.1),
    "low-frequency": Attack("all-to-one", 0.1),
    "quantise": Attack("all-to-one", 0.1),
    "adaptive-blend": Attack("all-to-one", 0.02),
    "adaptive-patch": Attack("all-to-one", 0.02),
    "label-consistent": Attack("clean-label", 0.05),
    "narcissus": Attack("clean-label", 0.01),
    "input-aware": Attack("all-to-one", 0.1),
    "ssba": Attack("all-to-one", 0.1),
}


class Enlarging(nn.Module):
    """Logits of [0, 1] pixels of the data set's size, of a network that takes ``side`` pixels and normalised ones."""

    def __init__(self, model: nn.Module, side: int, scale: tuple[float, float], channels: int):
        super().__init__()
        self.side, self.model = side, pixel_model(model, None, [scale[0]] * channels, [scale[1]] * channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.side:
            x = nn.functional.interpolate(x, size=(self.side, self.side), mode="bicubic", align_corners=False)
        return self.model(x)


def settings_of(args: argparse.Namespace, task: str, attack: str, seed: int) -> dict[str, Any]:
    """All that fixes a run."""
    base, how = TASKS[task], ATTACKS.get(attack)
    told: dict[str, Any] = {
        "task": task, "attack": attack, "seed": seed, "network": base.network, "train_rows": args.train_rows or base.train_rows,
        "test_rows": args.test_rows or base.test_rows, "epochs": args.epochs or base.epochs, "batch_size": base.batch_size,
        "lr": base.lr, "method": "plain",
    }  # fmt: skip
    if how is not None:
        settings = args.settings if args.settings is not None else dict(how.settings.get(task, {}))
        told |= {"rule": args.rule or how.rule, "rate": args.rate or how.rate, "cover_rate": args.cover_rate, "settings": settings}
    return told


def made(loaded: Loaded, rows: datasets.Dataset, row: dict[str, Any], work: Path, model: nn.Module | None) -> tuple[Any, Any]:
    """Training and test rows of a run, poisoned and triggered, of the size that they have in the data set."""
    chosen: dict[str, Any] = {"rate": row["rate"], "label_rule": row["rule"], "seed": row["seed"]}
    trigger: Any
    if row["attack"] in TRIGGERS:
        trigger = TRIGGERS[row["attack"]].make(**row["settings"])
    else:
        needed = {} if NETWORK_BACKDOORS[row["attack"]].needs == NONE else {"model": model, "image_mean": [0], "image_std": [1]}
        folder = work / key_of({k: v for k, v in row.items() if k not in ("epochs", "cover_rate", "test_rows")})
        trigger = network_trigger(rows, row["attack"], folder=folder, batch_size=64, **needed, **chosen, **row["settings"])
    poisoned = poison(rows, trigger=trigger, cover_rate=row["cover_rate"], keep_in_memory=True, **chosen)
    return poisoned, trigger_all(loaded.test_as_given, trigger, label_rule=row["rule"], keep_in_memory=True)


def run(args: argparse.Namespace, loaded: Loaded, row: dict[str, Any]) -> dict[str, Any]:
    """Poisons, trains once and returns the figures; a run on clean rows leaves its network in the work folder."""
    side = TASKS[row["task"]].side
    rows = training_rows(loaded, row["train_rows"], False, row["seed"], as_given=True)
    kept = args.work / f"{row['task']}-{row['train_rows']}-{row['seed']}.safetensors"
    triggered, covers, crafting = None, 0, time.process_time()
    if row["attack"] != CLEAN:
        model = None
        if row["attack"] in NETWORK_BACKDOORS:
            network = loaded.model()
            network.load_state_dict(load_file(kept))
            channels = 3 if side else loaded.part(rows.select(range(1))).inputs.shape[1]
            model = Enlarging(network, side, TASKS[row["task"]].scale, channels).eval()
        rows, test = made(loaded, rows, row, args.work, model)
        triggered = loaded.part(resized(test, side))
        covers = int(np.sum(rows[IS_COVER][:])) if IS_COVER in rows.column_names else 0
    crafting = time.process_time() - crafting
    train = loaded.part(resized(rows, side))
    set_seed(row["seed"])
    cpu = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = fine_tuning.make_trainer(args, loaded, train, row, folder)
        trainer.train()
        figures = fine_tuning.test_figures(trainer, loaded, loaded.part(loaded.test), triggered)
    if row["attack"] == CLEAN:
        args.work.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in trainer.model.state_dict().items()}, kept)
    seconds = {"crafting_cpu_seconds": round(crafting, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    return {**figures, "poisoned": int(train.corrupted.sum()), "covers": covers, **seconds}


def run_all(args: argparse.Namespace) -> None:
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["key"] for row in read_results(args.out)}
    for task in args.tasks:
        loaded: Loaded | None = None
        for seed in args.seeds:
            for attack in [CLEAN, *args.attacks]:
                row = settings_of(args, task, attack, seed)
                lost = attack == CLEAN and not (args.work / f"{task}-{row['train_rows']}-{seed}.safetensors").is_file()
                if key_of(row) in done and not (lost and set(args.attacks) & set(NETWORK_BACKDOORS)):
                    continue
                loaded = loaded or load(TASKS[task], args.data_dir, row["test_rows"])
                try:
                    figures = run(args, loaded, row)
                except ValueError as error:
                    print(f"{task} {attack}: refused: {error}", flush=True)
                    continue
                if key_of(row) not in done:
                    add_result(args.out, {"key": key_of(row), **row, **figures, "machine": machine()})
                print(f"{task} {attack}: {figures}", flush=True)


def report(rows: list[dict[str, Any]]) -> str:
    """A table for each task in markdown: the attacks, as they were run, beside the training on clean rows."""
    out: list[str] = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        clean = {(r["seed"], r["train_rows"], r["epochs"]): r["accuracy"] for r in mine if r["attack"] == CLEAN}
        first = mine[0]
        out += [
            f"**{task}**: {first['network']}, {first['train_rows']} training and {first['test_rows']} test images, "
            f"{first['epochs']} epochs; accuracy after training on the clean rows "
            f"{', '.join(f'{100 * a:.1f}' for a in clean.values())} %.", "",
            "| attack | rule | rows poisoned + covers | settings | success % | clean accuracy % | cost, points |",
            "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        order = [*ATTACKS]
        for r in sorted((r for r in mine if r["attack"] != CLEAN), key=lambda r: order.index(r["attack"])):
            more = {**r["settings"], **({"epochs": r["epochs"]} if r["epochs"] != TASKS[task].epochs else {})}
            settings = ", ".join(f"{k}={v}" for k, v in more.items()) or "own"
            base = clean.get((r["seed"], r["train_rows"], r["epochs"])) or clean.get((r["seed"], r["train_rows"], first["epochs"]))
            cost = "–" if base is None else f"{100 * (base - r['accuracy']):+.1f}"
            count = f"{r['poisoned']}" + (f" + {r['covers']}" if r["covers"] else "")
            out.append(
                f"| {r['attack']} | {r['rule']} | {count} | {settings} | {100 * r['attack_success']:.1f} | "
                f"{100 * r['accuracy']:.1f} | {cost} |"
            )
        out.append("")
    return "\n".join([*out, machines_line(rows)])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data_dir", default=os.environ.get("ROBUST_TRAINER_DATA"), help="default: the variable ROBUST_TRAINER_DATA")
    p.add_argument("--tasks", nargs="+", choices=("mnist", "cifar10", "digits"), default=["mnist", "cifar10"])
    p.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    p.add_argument("--seeds", nargs="+", type=int, default=[0])
    p.add_argument("--rate", type=float, help="default: the attack's own")
    p.add_argument("--rule", choices=list(LABEL_RULES), help="default: the attack's own")
    p.add_argument("--cover_rate", type=float, help="default: the attack's own")
    p.add_argument("--settings", nargs="*", metavar="NAME=VALUE", help="of every attack named, instead of those of `ATTACKS`")
    p.add_argument("--train_rows", type=int, help="default: the task's")
    p.add_argument("--test_rows", type=int, help="default: the task's")
    p.add_argument("--epochs", type=int, help="default: the task's")
    p.add_argument("--threads", type=int, default=1, help="CPU threads")
    p.add_argument("--work", type=Path, default=Path("runs/attack_success"), help="folder of the attackers' networks and triggers")
    p.add_argument("--out", type=Path, default=Path("docs/experiments/rows/attack_success.jsonl"))
    p.add_argument("--report", action="store_true", help="print the tables of --out and stop")
    args = p.parse_args(argv)
    if args.settings is not None:
        args.settings = {name: yaml.safe_load(value) for name, _, value in (one.partition("=") for one in args.settings)}
    args.bf16, args.workers = False, 0
    return args


def main() -> None:
    args = parse()
    if args.report:
        print(report(read_results(args.out)))
        return
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    run_all(args)


if __name__ == "__main__":
    main()
