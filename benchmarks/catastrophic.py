"""Catastrophic overfitting of single-step adversarial training: is it detected when it happens, and only then?

fast-at (FGSM from a random start, Wong et al. 2020), FGSM from the images themselves (known to overfit: their sec. 5) and, as the
control, PGD-10 training, all with the same probe, at several eps and seeds. The probe sees training samples; whether a run collapsed is judged by test images, which it never sees: PGD-10 accuracy of the last
evaluation under half of the best evaluation's.

    python benchmarks/catastrophic.py --data_dir <folder with mnist/train.parquet>

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
#: Of the benchmark's own verdict, from test images: the last accuracy as a share of the best.
SHARE = 0.5


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
            output_dir=folder, method="fast-at", eps=args.eps, **steps, collapse_check_steps=args.check, logging_steps=args.check,
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
    return {"curve": curve.rows, "probe": probe, "told": told, "seconds": seconds}


def collapsed(row: dict[str, Any]) -> bool:
    """Whether a run lost its robustness to PGD-10, by its test images."""
    found = [accuracy for *_, accuracy in row["curve"]]
    return found[-1] < SHARE * max(found)


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each training and eps: collapses, warnings, and the accuracies in percent, mean ± standard deviation (n)."""
    lines = [
        "| training | eps | collapsed (test) | told | false alarms | missed | told at step | test PGD-10: best | last | FGSM: last |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for training in TRAININGS:
        for eps in sorted({row["eps"] for row in rows}):
            group = [row for row in rows if row["training"] == training and row["eps"] == eps]
            if not group:
                continue
            fell, told = [collapsed(row) for row in group], [row["told"] is not None for row in group]
            steps = ", ".join(str(row["told"]) for row in group if row["told"] is not None) or "–"
            pgd, fgsm = [[point[3] for point in row["curve"]] for row in group], [row["curve"][-1][2] for row in group]
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
    add("--data", default="mnist", help="mnist")
    add("--data_dir", help="folder that holds the data set's folder")
    add("--max_train", type=int, default=2000)
    add("--max_test", type=int, default=300)
    add("--pool", type=int, default=2, help="average so many pixels in each direction")
    add("--model", default="small-cnn", choices=("small-cnn", "resnet18"))
    add("--width", type=int, default=16, help="of small-cnn")
    add("--eps_list", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--epochs", type=int, default=15)
    add("--batch_size", type=int, default=64)
    add("--lr", type=float, default=0.1, help="the peak of one cycle")
    add("--check", type=int, default=10, help="collapse_check_steps, and steps between two logs")
    add("--every", type=int, default=1, help="epochs between two evaluations on test images")
    add("--trainings", nargs="+", default=list(TRAININGS), choices=TRAININGS)
    add("--eval_batch_size", type=int, default=300)
    add("--out", default="runs/catastrophic.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("robust_trainer.robustness").setLevel(logging.ERROR)  # of untrained networks, at every evaluation
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    data, test, classes = prepare(args)
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
                print(f"{training} eps {eps} seed {seed}: told {row['told']}, natural, FGSM, PGD-10 {last}, {row['seconds']} s", flush=True)
                rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
