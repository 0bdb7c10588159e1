"""A step of training ResNet-50 and ViT-B/16 on a GPU: eager, bfloat16 and compiled, against the plain Trainer and the arithmetic.

    python benchmarks/step_cost_models.py                      # both models, 224 pixels, at most 8 minutes on one GPU
    python benchmarks/step_cost_models.py --dry_run            # all of it with tiny networks on the CPU, in less than a minute

Weights are random, of the usual configurations; images are random and lie on the device, so that no loader is waited for. Each cell
trains two epochs: the first one warms up and compiles, the steps of the second are timed on the wall's clock (looks of `auto` are
left out). The plain Trainer is timed before and after a mode's rows; a row is compared with the mean of both.
The floor is the arithmetic that a row cannot do without, in forward and backward passes of a plain step (`FLOORS`). Peak: the most
bytes of CUDA tensors, over the plain Trainer's. Finished cells are written to --output; a stopped run goes on there. What there was
no time for is said. --check exits with 1 where a row is further above its floor than `BARS` allow.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import step_cost
import torch
import transformers
from common import add_result, machine, machine_line, read_results
from step_cost import CLASSES, Clock, time_looks
from torch import Tensor
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from robust_trainer import METHODS, RobustConfig, RobustTrainer

#: Thirds of a plain step: forward 1, backward for the weights 1, backward for the inputs of layers 1. An attack's step is a forward
#: and a backward for the input alone, 2; TRADES' attack has one more forward, its loss one more forward and backward.
FLOORS = {
    "plain": 1.0, "prl": 1.0, "auto": 1.0, "prl-g": 1.0, "prl-at": 1 + 2 / 3, "pgd-at": 1 + 10 * 2 / 3,
    "trades": 2 + 10 * 2 / 3 + 1 / 3,
}  # fmt: skip
#: What a row may take, in its floors.
BARS = {"prl": 1.05, "auto": 1.05, "prl-at": 1.1, "pgd-at": 1.1, "trades": 1.1, "prl-g": 1.6}
MODES: dict[str, dict[str, Any]] = {
    "bf16": {"bf16": True},
    "eager": {},
    "compiled": {"torch_compile": True},
    "compiled bf16": {"torch_compile": True, "bf16": True},
}
#: Steps of an epoch: few where one is long. No less than makes 50 samples, so that `auto` has labels to judge.
STEPS = {"pgd-at": 5, "trades": 5}


def make_model(name: str, tiny: bool) -> Any:
    """The network with random weights, always the same."""
    torch.manual_seed(0)
    if name == "resnet50":
        sizes = dict(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]) if tiny else {}
        return ResNetForImageClassification(ResNetConfig(num_labels=CLASSES, **sizes))
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16) if tiny else {}
    return ViTForImageClassification(ViTConfig(num_labels=CLASSES, image_size=32 if tiny else 224, patch_size=16, **sizes))


class Pool(torch.utils.data.Dataset):
    """Random images on the device, around one of each class; a sample is its number and label, `batch` brings the images."""

    def __init__(self, count: int, size: int, device: str):
        generator = torch.Generator(device).manual_seed(0)
        truth = torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(0))
        centres = torch.rand(CLASSES, 3, size, size, generator=generator, device=device)
        noise = torch.rand(count, 3, size, size, generator=generator, device=device)
        self.pixels, self.labels = noise.add_(centres[truth.to(device)]).sub_(1.0), truth.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, int]:
        return {"row": i, "labels": self.labels[i]}

    def batch(self, rows: list[dict[str, int]]) -> dict[str, Tensor]:
        """The collator."""
        places = torch.tensor([row["row"] for row in rows])
        return {"pixel_values": self.pixels[places.to(self.pixels.device)], "labels": torch.tensor([row["labels"] for row in rows])}


def run(row: str, mode: str, model: str, args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Seconds of a step and peak bytes, or why the row is refused."""
    tiny, steps = args.dry_run, args.steps or STEPS.get(row, 10)
    settings: dict[str, Any] = dict(
        output_dir=folder, num_train_epochs=2, per_device_train_batch_size=args.batch_size, learning_rate=1e-4,
        logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True, seed=0, dataloader_pin_memory=False,
        remove_unused_columns=False, use_cpu=args.device == "cpu", **MODES[mode],
    )  # fmt: skip
    if "torch_compile" in settings and tiny:
        settings["torch_compile_backend"] = "eager"
    pool = Pool(steps * args.batch_size, 32 if tiny else 224, args.device)
    network = make_model(model, tiny)
    if row == "plain":
        trainer: Trainer = Trainer(network, TrainingArguments(**settings), pool.batch, pool)
    else:
        rate = {"noise_rate": 0.2} if "noise_rate" in METHODS[row].settings else {}
        config = RobustConfig(**settings, **rate, method=row, image_mean=[0.5], image_std=[0.5])
        trainer = RobustTrainer(network, config, pool.batch, train_dataset=pool)
    clock = Clock(steps, trainer, "wall")
    trainer.add_callback(clock)
    trainer.remove_callback(transformers.PrinterCallback)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        trainer.train()
    except ValueError as error:  # what a row cannot work with is said in one line before the first step
        if trainer.state.global_step:
            raise
        return {"refused": str(error)}
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else None
    return {"seconds": clock.seconds / steps, "steps": steps, "peak": peak}


def order(modes: list[str], models: list[str], rows: list[str], dry_run: bool = False) -> list[tuple[str, str, str]]:
    """The cells (mode, model, row) as they are run: a mode's plain Trainer before and after its rows.

    ``prl-g`` records each layer's forward, which is refused compiled; a dry run compiles for ``prl-at`` alone.
    """

    def runs(mode: str, row: str) -> bool:
        return not mode.startswith("compiled") or (row == "prl-at" if dry_run else row != "prl-g")

    return [
        (mode, model, row)
        for mode in modes
        for model in models
        for row in ("plain", *(row for row in rows if runs(mode, row)), "plain again")
    ]


def table(cells: dict[tuple[str, ...], dict[str, Any]], args: argparse.Namespace) -> list[str]:
    """Prints a table for each model, and returns what misses its bar."""
    missed = []
    for model in args.models:
        print(f"\n{model}\n\n| mode | row | ms a step | / plain | floor | / floor | peak / plain |\n|---|---|---|---|---|---|---|")
        for mode in args.modes:
            timed = [cells[mode, model, row] for row in ("plain", "plain again") if (mode, model, row) in cells]
            plain = statistics.fmean(cell["seconds"] for cell in timed) if timed else None
            for row in ("plain", *args.rows):
                cell = cells.get((mode, model, row))
                if cell is None or plain is None:
                    left_out = (mode, model, row) not in order(args.modes, args.models, args.rows, args.dry_run)
                    words = "refused compiled, or not part of a dry run" if left_out else "no time left"
                    print(f"| {mode} | {row} | not run: {words} | – | – | – | – |")
                elif "refused" in cell:
                    print(f"| {mode} | {row} | refused: {cell['refused'].split(':')[0]} | – | – | – | – |")
                else:
                    seconds = plain if row == "plain" else cell["seconds"]
                    ratio, peak = seconds / plain, f"{cell['peak'] / timed[0]['peak']:.2f}" if cell["peak"] else "–"
                    over = ratio / FLOORS[row]
                    print(f"| {mode} | {row} | {1000 * seconds:.1f} | {ratio:.3f} | {FLOORS[row]:.2f} | {over:.3f} | {peak} |")
                    if over > BARS.get(row, 2.0):
                        missed.append(f"{model}, {mode}, {row}: {over:.3f} floors, bar {BARS[row]:g}")
    return missed


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", choices=["resnet50", "vit-b16"], default=["resnet50", "vit-b16"])
    p.add_argument("--modes", nargs="+", choices=list(MODES), help="default: all, of --dry_run all but the last one")
    p.add_argument("--rows", nargs="+", choices=list(FLOORS)[1:], default=["prl", "prl-at", "auto", "pgd-at", "trades", "prl-g"])
    p.add_argument("--batch_size", type=int, help="default: 64, of --dry_run 8")
    p.add_argument("--steps", type=int, help="steps of an epoch, of which the second is timed; default: 10, 5 of long ones")
    p.add_argument("--minutes", type=float, default=8.0, help="no cell is begun when a tenth of it or less is left")
    p.add_argument("--output", type=Path, default=Path("step_cost_models.jsonl"), help="finished cells, as JSON lines")
    p.add_argument("--dry_run", action="store_true", help="tiny networks on the CPU; times mean nothing")
    p.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    args = p.parse_args()
    args.batch_size = args.batch_size or (16 if args.dry_run else 64)
    args.modes = args.modes or list(MODES)[: -1 if args.dry_run else None]
    args.steps = args.steps or (4 if args.dry_run else None)
    if not args.dry_run and not torch.cuda.is_available():
        p.error("no CUDA device: run it where one is, or give --dry_run.")
    args.device = "cpu" if args.dry_run else "cuda"
    return args


def main() -> None:
    start, args = time.monotonic(), parse()
    transformers.logging.set_verbosity_error()
    torch._dynamo.config.recompile_limit = 64  # each cell has a network of its own
    time_looks("wall")
    names = ("mode", "model", "row")
    cells = {tuple(found[name] for name in names): found for found in read_results(args.output)}
    for cell in order(args.modes, args.models, args.rows, args.dry_run):
        left = 60 * args.minutes - (time.monotonic() - start)
        if cell in cells or left < 6 * args.minutes:
            continue
        for looks in step_cost.LOOKS.values():
            looks.clear()
        mode, model, row = cell
        with tempfile.TemporaryDirectory() as folder:
            found = run(row.removesuffix(" again"), mode, model, args, folder)
        cells[cell] = {**dict(zip(names, cell)), **found, "machine": machine()}
        add_result(args.output, cells[cell])
        words = f"{1000 * found['seconds']:.1f} ms" if "seconds" in found else found["refused"]
        print(f"{time.monotonic() - start:6.1f} s  {mode}, {model}, {row}: {words}", flush=True)
        if args.device == "cuda":
            torch.cuda.empty_cache()
    print(f"\n{machine_line(machine())}, python {platform.python_version()}; batches of {args.batch_size}", end="")
    print("; a dry run, whose times mean nothing" if args.dry_run else "")
    missed = table(cells, args)
    for line in missed if not args.dry_run else ():
        print(f"MISSED {line}")
    if missed and args.check and not args.dry_run:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
