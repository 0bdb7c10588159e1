"""Catastrophic overfitting of single-step adversarial training: is it detected when it happens, and only then?

fast-at (FGSM from a random start, Wong et al. 2020), FGSM from the images themselves (known to overfit: their sec. 5) and, as the
control, PGD-10 training, all with the same probe, at several eps and seeds. The probe sees training samples at single steps;
whether a run collapsed is judged by the last evaluation on test images: PGD-10 accuracy under half of the best evaluation's (if
that was 10 points above naming the commonest label), or under a quarter of FGSM's and 50 points below it.

    python benchmarks/catastrophic.py --data_dir <folder with mnist/train.parquet>
    python benchmarks/catastrophic.py --data textures --max_train 1000 --eps_list 0.06 0.15 --epochs 14 --lr 0.05

One JSON line per finished run, appended to --out; what is found there is skipped.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from adversarial import attack, make_model, prepare
from common import add_result, cell, key_of, machine, machine_line, read_results
from label_noise import Part, Positions, gather
from torch import nn
from transformers import TrainerCallback, set_seed

from robust_trainer import RobustConfig, RobustTrainer

#: Settings of fast-at by the name of the training; step_size as a multiple of eps.
TRAININGS: dict[str, dict[str, Any]] = {
    "fast-at": {"steps": 1, "step_size": 1.25},
    "fgsm": {"steps": 1, "step_size": 1.0, "random_start": False},
    "pgd-10": {"steps": 10, "step_size": 0.25},
}


def textures(size: int, seed: int, side: int = 16, classes: int = 4) -> Part:
    """Images of 4x4 patches, 0.1 lighter or darker as their class says, under uniform noise of ±0.2.

    At an eps above 0.1 the class can be painted over, and what FGSM adds is a pattern that a network can learn to read instead.
    """
    g = torch.Generator().manual_seed(0)
    patches = F.interpolate(torch.randn(classes, 1, 4, 4, generator=g).sign(), side)
    g.manual_seed(seed + 1)
    labels = torch.randint(classes, (size,), generator=g)
    noise = torch.rand(size, 1, side, side, generator=g) * 2 - 1
    return Part((0.1 * patches[labels] + 0.2 * noise) / 0.5, labels)


def load(args: argparse.Namespace) -> tuple[Part, Part, int]:
    """Training and test part, normalised with mean and standard deviation 0.5, and the number of classes."""
    if args.data == "textures":
        return textures(args.max_train, 0), textures(args.max_test, 1), 4
    return prepare(args)


class Curve(TrainerCallback):
    """(step, natural, FGSM, PGD-10) accuracy on the test part at the interval."""

    def __init__(self, args: argparse.Namespace, test: Part):
        self.args, self.test = args, test
        self.rows: list[tuple[int, float, float, float]] = []
        self.seconds = 0.0

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        epoch = round(state.epoch)
        if epoch % self.args.every and epoch != self.args.epochs:
            return
        assert model is not None
        start = time.perf_counter()
        found = attack(self.args, self.test, model, ["fgsm", "pgd-10"], None)
        self.rows.append((state.global_step, found.clean_accuracy, found.accuracies["fgsm"], found.accuracies["pgd-10"]))
        self.seconds += time.perf_counter() - start


def train(args: argparse.Namespace, settings: dict[str, Any], data: Part, test: Part, classes: int) -> dict[str, Any]:
    """One run: the curve on the test part, the probe's log, and the step at which the collapse was reported, or None."""
    set_seed(settings["seed"])
    args.eps = settings["eps"]
    model = make_model(args, data, classes)
    own = TRAININGS[settings["training"]]
    steps = {**own, "step_size": own["step_size"] * args.eps}
    curve = Curve(args, test)
    with tempfile.TemporaryDirectory() as folder:
        config = RobustConfig(
            output_dir=folder, method="fast-at", eps=args.eps, logging_steps=args.check,
            method_settings={**steps, "collapse_check_steps": args.check},
            num_train_epochs=args.epochs, per_device_train_batch_size=args.batch_size, seed=settings["seed"], save_strategy="no",
            report_to=[], disable_tqdm=True, remove_unused_columns=False, label_names=["labels"], image_mean=[0.5],
            image_std=[0.5], dataloader_pin_memory=False, max_grad_norm=0.0,
        )  # fmt: skip
        steps_in_all = -(-len(data) // args.batch_size) * args.epochs
        optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps_in_all, anneal_strategy="linear")
        trainer = RobustTrainer(
            model=model, args=config, train_dataset=Positions(len(data)), optimizers=(optimizer, schedule), callbacks=[curve],
            data_collator=lambda rows: gather(data, "pixel_values", rows),
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        start = time.perf_counter()
        trainer.train()
    seconds = round(time.perf_counter() - start - curve.seconds, 1)
    log = [row for row in trainer.state.log_history if "pgd_accuracy" in row]
    told = next((row["step"] for row in log if "catastrophic_overfitting" in row), None)
    probe = [(row["step"], round(row["fgsm_accuracy"], 3), round(row["pgd_accuracy"], 3)) for row in log]
    majority = float(test.targets.bincount().max()) / len(test)
    return {"curve": curve.rows, "probe": probe, "told": told, "majority": majority, "seconds": seconds}


def collapsed(row: dict[str, Any]) -> bool:
    """Whether a run has no robustness to PGD-10 left at its end, by its test images."""
    found = [pgd for *_, pgd in row["curve"]]
    fgsm, pgd = row["curve"][-1][2:]
    fell = max(found) > row["majority"] + 0.1 and pgd < 0.5 * max(found)
    return fell or (pgd < 0.25 * fgsm and fgsm - pgd > 0.5)


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each training and eps: collapses, warnings, and the accuracies in percent, mean ± standard deviation (n)."""
    lines = [
        "| training | eps | collapsed | told | false alarms | missed | told at step | test PGD-10: best | last | FGSM: last |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for training in TRAININGS:
        for eps in sorted({row["eps"] for row in rows}):
            group = [row for row in rows if row["training"] == training and row["eps"] == eps]
            if not group:
                continue
            fell, told = [collapsed(row) for row in group], [row["told"] is not None for row in group]
            steps = ", ".join(str(row["told"]) for row in group if row["told"] is not None) or "–"
            pgd = [[point[3] for point in row["curve"]] for row in group]
            fgsm = [row["curve"][-1][2] for row in group]
            figures = [[100 * max(p) for p in pgd], [100 * p[-1] for p in pgd], [100 * f for f in fgsm]]
            wrong, missed = sum(t and not f for t, f in zip(told, fell)), sum(f and not t for t, f in zip(told, fell))
            lines.append(
                f"| {training} | {eps} | {sum(fell)} of {len(group)} | {sum(told)} | {wrong} | {missed} | {steps} | "
                + " | ".join(cell(values, 1) for values in figures) + " |"
            )  # fmt: skip
    return "\n".join([*lines, "", machine_line(rows[-1]["machine"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="mnist", help="mnist, or textures: made here, easy to overfit catastrophically")
    add("--data_dir", help="folder that holds the data set's folder")
    add("--max_train", type=int, default=1500)
    add("--max_test", type=int, default=300)
    add("--pool", type=int, default=2, help="average so many pixels in each direction")
    add("--model", default="small-cnn", choices=("small-cnn", "resnet18"))
    add("--width", type=int, default=16, help="of small-cnn")
    add("--eps_list", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--epochs", type=int, default=10)
    add("--batch_size", type=int, default=64)
    add("--lr", type=float, default=0.1, help="the peak of one cycle")
    add("--check", type=int, default=10, help="collapse_check_steps, and steps between two logs")
    add("--every", type=int, default=1, help="epochs between two evaluations on test images")
    add("--trainings", nargs="+", default=list(TRAININGS), choices=TRAININGS)
    add("--eval_batch_size", type=int, default=300)
    add("--out", default="runs/catastrophic.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("robust_trainer.evaluation.robustness").setLevel(logging.ERROR)  # of untrained networks, at every evaluation
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    data, test, classes = load(args)
    names = ("data", "pool", "model", "width", "epochs", "batch_size", "lr", "check", "every")
    protocol = {name: getattr(args, name) for name in names} | {"train": len(data), "test": len(test)}
    rows = []
    for seed in args.seeds:
        for eps in args.eps_list:
            for training in args.trainings:
                settings = {"training": training, "eps": eps, "seed": seed, "protocol": protocol}
                key = key_of(settings)
                row = next((row for row in read_results(out) if row["key"] == key), None)
                if row is None:
                    row = {"key": key, **settings, **train(args, settings, data, test, classes), "machine": machine()}
                    add_result(out, row)
                last = [round(v, 3) for v in row["curve"][-1][1:]]
                told = f"told {row['told']}, natural, FGSM, PGD-10 {last}, {row['seconds']} s"
                print(f"{training} eps {eps} seed {seed}: {told}", flush=True)
                rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
