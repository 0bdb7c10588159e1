"""What the ledger costs: the share of a training step's CPU time that goes into recording it, and bytes per sample.

    python benchmarks/ledger_cost.py                       # small ResNet, ResNet-32 and ViT on 32x32 images, batch 32
    python benchmarks/ledger_cost.py --classes 1000

The CPU seconds inside of `StepRecorder.record` and `StepRecorder.flush` (scores, counts, margins, the rival class; a few
steps are recorded at once) are divided by those of whole steps (data loader, forward, backward, optimizer and log included), after
one warm-up epoch.
"with mean predictions": `ledger_predictions=True`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import step_cost
import torch
from common import machine, machine_line
from transformers import TrainerCallback

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.ledger import pending as visits
from robust_trainer.step.recorder import StepRecorder


class Steps(TrainerCallback):
    """CPU seconds of the steps after the first epoch, and of what was recorded in them."""

    def __init__(self, recorded: list[float]):
        self.recorded, self.seconds, self.start, self.count = recorded, 0.0, 0.0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.epoch > 1:
            self.seconds += time.process_time() - self.start
            self.count += 1
        else:
            self.recorded.clear()


def measure(model: str, classes: int, batch: int, steps: int, predictions: bool) -> tuple[float, float, float]:
    """Milliseconds of a step and of its recording, and the ledger's bytes per sample."""
    step_cost.CLASSES = classes
    recorded: list[float] = []
    real = {name: getattr(StepRecorder, name) for name in ("record", "flush")}
    inside = False

    def timed(name: str) -> Any:
        def call(self: StepRecorder, *args: Any) -> None:
            nonlocal inside
            if inside:
                return real[name](self, *args)
            inside, start = True, time.process_time()
            real[name](self, *args)
            inside = False
            recorded.append(time.process_time() - start)

        return call

    data = step_cost.Random(batch * steps, 32)
    with tempfile.TemporaryDirectory() as folder:
        config = RobustConfig(
            output_dir=folder, method="standard", num_train_epochs=3, per_device_train_batch_size=batch, report_to=[],
            disable_tqdm=True, save_strategy="no", logging_strategy="no", ledger_predictions=predictions,
            dataloader_pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
        trainer = RobustTrainer(model=step_cost.make_model(model, 32), args=config, train_dataset=data)
        clock = Steps(recorded)
        trainer.add_callback(clock)
        for name in real:
            setattr(StepRecorder, name, timed(name))
        try:
            trainer.train()
        finally:
            for name, function in real.items():
                setattr(StepRecorder, name, function)
    assert trainer.ledger is not None
    size = sum(c.numel() * c.element_size() for c in trainer.ledger.columns.values()) / len(data)
    return 1000 * clock.seconds / clock.count, 1000 * sum(recorded) / clock.count, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet", "resnet32", "vit"])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--waiting", type=int, default=visits.STEPS, help="steps that are recorded at once")
    args = parser.parse_args()
    torch.set_num_threads(1)
    visits.STEPS = args.waiting
    print(f"{args.classes} classes, batch {args.batch_size}, {2 * args.steps} steps; {machine_line(machine())}")
    for model in args.models:
        for predictions in (False, True):
            step, ledger, size = measure(model, args.classes, args.batch_size, args.steps, predictions)
            told = " with mean predictions" if predictions else ""
            share = f"{100 * ledger / step:.2f} %"
            print(f"{model}{told}: step {step:.1f} ms, recording {ledger:.2f} ms, {share}; {size:.0f} bytes a sample")


if __name__ == "__main__":
    main()
