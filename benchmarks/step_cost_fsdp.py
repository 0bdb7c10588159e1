"""Time of a training step under FSDP2, as a ratio to the plain Trainer's under FSDP2 on the same two processes.

    python benchmarks/step_cost_fsdp.py --check                   # two gloo processes; wants two idle cores
    python benchmarks/step_cost_fsdp.py --rounds 1 --steps 2 --batch_size 8 --width 32 --layers 2

A ViT is sharded layer by layer over two processes of one thread each (`fsdp_on_cpu.py`: accelerate's own FSDP2, over gloo). Rounds
run plain, row, plain, row, ..., plain, each a whole `train()` of which the first epoch warms up and the steps of the second are
timed, on the wall's clock between barriers; a row is compared with the plain runs just before and just after it. Told: the median
ratio and its interquartile range. The floor is the arithmetic, as in `step_cost_models.py`: 1 for `prl`, 5/3 for `prl-at`, 23/3 for
ten steps of PGD. An attack's forward and backward gather the weights as a training step does, without the reduction at its end.
--check exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import Any

import torch
import transformers
from common import machine, machine_line
from fsdp_on_cpu import fsdp_on_cpu
from process_equality import together
from step_cost import CLASSES, Random, quartiles
from step_cost_models import FLOORS
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.models.sharding import is_sharded

#: Ratios to the plain Trainer under FSDP2.
BARS = {"prl": 1.05, "prl-at": 1.75, "pgd-at": 1.1 * FLOORS["pgd-at"]}
PROCESSES = 2


class Watch(TrainerCallback):
    """Seconds of the second epoch's steps, of the slowest process."""

    def __init__(self, steps: int):
        self.steps, self.start, self.seconds = steps, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (self.steps, 2 * self.steps):
            torch.distributed.barrier()
            now = time.perf_counter()
            self.start, self.seconds = now, now - self.start


def make_trainer(row: str, args: argparse.Namespace, folder: str) -> tuple[Trainer, Watch]:
    """A trainer under FSDP2 for two epochs of ``args.steps`` steps; ``plain`` is transformers' own."""
    settings: dict[str, Any] = dict(
        output_dir=folder, num_train_epochs=2, per_device_train_batch_size=args.batch_size, learning_rate=1e-3,
        logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True, seed=0, use_cpu=True,
        dataloader_pin_memory=False, fsdp=True, fsdp_config={"transformer_layer_cls_to_wrap": ["ViTLayer"]},
    )  # fmt: skip
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=args.width // 32, num_labels=CLASSES,
            intermediate_size=2 * args.width, image_size=32, patch_size=4,
        )
    )  # fmt: skip
    data, watch = Random(PROCESSES * args.batch_size * args.steps, 32), Watch(args.steps)
    if row == "plain":
        trainer: Trainer = Trainer(model, TrainingArguments(**settings), train_dataset=data, callbacks=[watch])
    else:
        rate = {"noise_rate": 0.2} if "noise_rate" in METHODS[row].settings else {}
        config = RobustConfig(**settings, **rate, method=row, image_mean=[0.5], image_std=[0.5])
        trainer = RobustTrainer(model, config, train_dataset=data, callbacks=[watch])
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, watch


def run(row: str, args: argparse.Namespace, folder: str) -> float:
    """Seconds of a step."""
    with fsdp_on_cpu():
        trainer, watch = make_trainer(row, args, folder)
        trainer.train()
        if not is_sharded(trainer.accelerator.unwrap_model(trainer.model_wrapped)):
            raise SystemExit(f"{row}: the model was not sharded.")
    return watch.seconds / args.steps


def rounds(args: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    """The ratios to plain of each row, one a round, and plain's seconds a step; in each process."""
    transformers.logging.set_verbosity_error()
    found: dict[str, list[float]] = {row: [] for row in ("plain", *args.rows)}
    before = run("plain", args, folder)  # imports, and the allocator's pools
    before = run("plain", args, folder)
    for number in range(args.rounds):
        for row in args.rows if number % 2 else reversed(args.rows):
            own, after = run(row, args, folder), run("plain", args, folder)
            found[row].append(2 * own / (before + after))
            found["plain"].append(after)
            before = after
    return found


def measured(args: argparse.Namespace) -> dict[str, list[float]]:
    """`rounds`, by two processes that fork from this one, which has trained nothing."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "found.pt")

        def work(rank: int) -> None:
            found = rounds(args, folder)
            if rank == 0:
                torch.save(found, file)

        if not together(work, PROCESSES, limit=3600):
            raise SystemExit("a process failed: what it wrote stands above.")
        return torch.load(file)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", nargs="+", choices=[row for row in FLOORS if row not in ("plain", "auto")], default=list(BARS))
    p.add_argument("--rounds", type=int, default=8)
    p.add_argument("--steps", type=int, default=8, help="of an epoch; the second epoch's are timed")
    p.add_argument("--batch_size", type=int, default=32, help="of each process")
    p.add_argument("--width", type=int, default=192, help="of the ViT")
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    args = p.parse_args()
    found = measured(args)
    plain = quartiles(found.pop("plain"))[1]
    print(f"{machine_line(machine())}; {PROCESSES} processes of one thread, FSDP2 over gloo")
    print(
        f"ViT of {args.layers} layers, {args.width} wide, 32x32, batches of {args.batch_size} a process; n = {args.rounds} rounds"
    )
    print(f"plain Trainer: {1000 * plain:.1f} ms a step\n")
    print("| row | step time / plain | interquartile range | floor | bar |\n|---|---|---|---|---|")
    missed = []
    for row, ratios in found.items():
        low, middle, high = quartiles(ratios)
        bar = BARS.get(row)
        print(f"| {row} | {middle:.3f} | {low:.3f} to {high:.3f} | {FLOORS[row]:.2f} | {f'{bar:.4g}' if bar else '–'} |")
        if bar is not None and middle > bar:
            missed.append(f"{row}: {middle:.3f} x plain, bar {bar:.4g}")
    for line in missed:
        print(f"MISSED {line}")
    if missed and args.check:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
