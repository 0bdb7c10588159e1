"""The cost of scoring the training set at an epoch's start against an evaluation of the same set, in one run, as a ratio.

    python benchmarks/scan_cost.py --model resnet32 --samples 512 --epochs 6

Both happen once an epoch in one training (``rebalanced``, whose split is ERAT's); CPU seconds of the process, median of the epochs'
ratios after the first. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from common import machine, machine_line
from torch.utils.data import Dataset
from transformers.utils import logging

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.models.zoo import build_model
from robust_trainer.step.dataset_scores import EpochScan


class Images(Dataset):
    """Random images with random labels; the cost of a forward does not look at them."""

    def __init__(self, samples: int, side: int):
        generator = torch.Generator().manual_seed(0)
        self.images, self.labels = torch.rand(samples, 3, side, side, generator=generator), torch.randint(10, (samples,))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": int(self.labels[index])}


class Timed(RobustTrainer):
    """Notes what scans and evaluations cost."""

    seconds: dict[str, list[float]]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        out = super().evaluate(*args, **kwargs)
        self.seconds["evaluation"].append(time.process_time() - began)
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet32")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    seconds: dict[str, list[float]] = {"scan": [], "evaluation": []}
    plain = EpochScan.on_epoch_begin

    def timed(self: EpochScan, *args: Any, **kwargs: Any) -> None:
        began = time.process_time()
        plain(self, *args, **kwargs)
        seconds["scan"].append(time.process_time() - began)

    EpochScan.on_epoch_begin = timed  # type: ignore[method-assign]
    data = Images(options.samples, options.side)
    model, _ = build_model(options.model, [str(i) for i in range(10)], channels=3, image_size=options.side)
    with tempfile.TemporaryDirectory() as folder:
        args = RobustConfig(
            output_dir=folder, method="rebalanced", warmup_epochs=0.0, num_train_epochs=options.epochs, eval_strategy="epoch",
            per_device_train_batch_size=options.batch_size, per_device_eval_batch_size=options.batch_size, report_to=[],
            save_strategy="no", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, logging_strategy="no",
            remove_unused_columns=False,
        )  # fmt: skip
        trainer = Timed(model=model, args=args, train_dataset=data, eval_dataset=data)
        trainer.seconds = seconds
        trainer.train()
    pairs = list(zip(seconds["scan"], seconds["evaluation"]))[1:]
    ratios = sorted(scan / evaluation for scan, evaluation in pairs)
    print(machine_line(machine()))
    told = f"{options.samples} images of {options.side}x{options.side}, batch {options.batch_size}"
    print(f"{options.model}, {told}, {len(pairs)} epochs")
    scans, evaluations = (statistics.median(column) for column in zip(*pairs))
    print(f"scan {scans:.2f} s, evaluation {evaluations:.2f} s (CPU seconds)")
    print(f"scan / evaluation: median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
