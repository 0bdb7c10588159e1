"""What the ledger costs: the share of a training step's CPU time that goes into recording it, and bytes per sample.

    python benchmarks/ledger_cost.py                       # small ResNet, ResNet-32 and ViT on 32x32 images, batch 32
    python benchmarks/ledger_cost.py --classes 1000
    python benchmarks/ledger_cost.py --rows 1e7             # seconds and memory of what is done with a ledger of so many rows
    python benchmarks/ledger_cost.py --rows 1e9 --paper --processes 64

The CPU seconds inside of `StepRecorder.record` and `StepRecorder.flush` (scores, counts, margins, the rival class; a few
steps are recorded at once) are divided by those of whole steps (data loader, forward, backward, optimizer and log included), after
one warm-up epoch.
"with mean predictions": `ledger_predictions=True`.

--rows: one process; labels, scores and visits are random. Memory is the peak of the process over what it had before
(Linux). --paper: bytes a row, a step's exchange and a checkpoint, counted on a small ledger in parts and multiplied by the rows.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import step_cost
import torch
from common import machine, machine_line
from torch import Tensor
from transformers import TrainerCallback

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.ledger import pending as visits
from robust_trainer.ledger.class_counts import trusted_by_class
from robust_trainer.ledger.ledger import SampleLedger
from robust_trainer.ledger.means import RunningMeans
from robust_trainer.ledger.parts import Parts
from robust_trainer.selection.rules import KeepByScore
from robust_trainer.step.recorder import StepRecorder
from robust_trainer.types import Progress


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


# ---- a ledger of many rows -------------------------------------------------------------------------------------------------------


def visit(rows: int, classes: int, batch: int, generator: torch.Generator) -> visits.StepRecord:
    """A step's record of random rows."""
    index = torch.randint(rows, (batch,), generator=generator)
    logits, score = torch.randn(1, batch, classes, generator=generator), torch.rand(batch, generator=generator)
    return visits.StepRecord(logits, score, (score < 0.8).float(), index % classes, index, 0, True, finite=score > 0)


def filled(rows: int, classes: int) -> SampleLedger:
    """A ledger after two epochs, with random labels and scores; every 20th row is known to be wrong."""
    ledger, generator = SampleLedger(rows), torch.Generator().manual_seed(0)
    for name in ("last_score", "mean_score", "ema_score"):
        ledger._columns[name].copy_(torch.rand(rows, generator=generator))
    ledger._columns["label"].copy_(torch.randint(classes, (rows,), generator=generator))
    ledger._columns["doubt"].copy_(torch.randint(-2, 2, (rows,), generator=generator))
    ledger._columns["seen"][:], ledger._columns["epoch"][:] = 2, 1
    ledger.truth = torch.arange(rows) % 20 == 0
    return ledger


def peak(work: Callable[[], Any]) -> tuple[float, float]:
    """CPU seconds of a piece of work, and its peak of memory over what the process had before, in MB; NaN where nobody tells."""
    mine, before = Path("/proc/self/status"), math.nan
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")
        before = _kilobytes(mine, "VmHWM")
    start = time.process_time()
    work()
    return time.process_time() - start, (_kilobytes(mine, "VmHWM") - before) / 1024 if before == before else math.nan


def _kilobytes(status: Path, name: str) -> float:
    return float(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(f"{name}:")))


def at_scale(rows: int, classes: int, batch: int) -> None:
    """Prints what is done with a ledger of so many rows, with its seconds and memory."""
    print(f"{rows:,} rows, {classes} classes, batch {batch}, one thread; {machine_line(machine())}")
    made: list[SampleLedger] = []
    told: list[tuple[str, float, float]] = [("made and filled", *peak(lambda: made.append(filled(rows, classes))))]
    ledger, generator, means = made[0], torch.Generator().manual_seed(1), RunningMeans()
    entries = [visit(rows, classes, batch, generator) for _ in range(200)]

    def steps() -> None:
        for entry in entries:
            visits.record(entry, ledger, means, None, True)

    seconds, memory = peak(steps)
    told.append((f"a step's record, batch {batch}", seconds / len(entries), memory))
    progress, columns = Progress(3.0, 10.0, 1000), ledger.columns
    labels = columns["label"].long()

    def turn(**given: Any) -> Callable[[], Any]:
        rule = KeepByScore(noise_rate=0.2, memory="ema", **given)
        return lambda: rule.keep_mask(columns["ema_score"], columns["seen"], labels, classes, progress, ledger.keep)

    with tempfile.TemporaryDirectory() as folder:
        state, table = Path(folder) / "state.safetensors", Path(folder) / "ledger.parquet"
        work: dict[str, Callable[[], Any]] = {
            "an epoch's turn: whom to keep (memory='ema')": turn(),
            "the same, per_class=True": turn(per_class=True),
            "the same, rebalance=True": turn(rebalance=True),
            "an epoch's log: detection against the truth": ledger.detection,
            "an epoch's log: samples left of each class": lambda: trusted_by_class(ledger),
            "checkpoint written": lambda: safetensors.torch.save_file(
                {name: tensor.contiguous() for name, tensor in ledger.state().items()}, state
            ),
            "checkpoint read": lambda: ledger.load_state(safetensors.torch.load_file(state)),
            "ledger.parquet written": lambda: ledger.to_parquet(table),
        }
        for name, piece in work.items():
            told.append((name, *peak(piece)))
        sizes = f"checkpoint {state.stat().st_size / 1e6:,.0f} MB, ledger.parquet {table.stat().st_size / 1e6:,.0f} MB"
    print(f"ledger {sum(c.numel() * c.element_size() for c in columns.values()) / 1e6:,.0f} MB, {sizes}\n")
    print("| | CPU seconds | more memory at the peak, MB |\n|---|---|---|")
    for name, seconds, memory in told:
        print(f"| {name} | {seconds:.4f} | {memory:,.0f} |" if seconds < 0.1 else f"| {name} | {seconds:.1f} | {memory:,.0f} |")
    print(f"\nthe process's memory at its peak: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


class Exchange:
    """Stands for P processes: gathers what one has P times over, and lists the bytes of what each gives."""

    def __init__(self, processes: int):
        self.processes = processes
        self.gathered: list[int] = []
        self.summed: list[int] = []

    def gather(self, tensor: Tensor) -> Tensor:
        self.gathered.append(tensor.numel() * tensor.element_size())
        return torch.cat([tensor] * self.processes)

    def total(self, tensor: Tensor) -> Tensor:
        self.summed.append(tensor.numel() * tensor.element_size())
        return tensor

    def taken(self) -> tuple[list[int], list[int]]:
        """Both lists since the last call."""
        out, self.gathered, self.summed = (self.gathered, self.summed), [], []
        return out


def on_paper(rows: int, classes: int, batch: int, processes: int) -> None:
    """Prints the bytes of a ledger of so many rows, counted on a small one that as many processes share."""
    small, exchange = 1000 * processes, Exchange(processes)
    print(f"{rows:,} rows, {processes} processes of batch {batch}, counted on {small:,} rows\n")
    print("| | a row, bytes | all rows, GB | each process holds, GB |\n|---|---|---|---|")
    kinds: dict[str, dict[str, Any]] = {
        "class numbers and epochs below 32,768": {}, "above": {"wide": True}, "three networks": {"networks": 3},
        "`auto`, whose verdict every process holds whole": {"judged": True},
        f"`ledger_predictions=True`, {classes} classes": {"classes": classes},
    }  # fmt: skip
    for name, given in kinds.items():
        parts = Parts(small, processes, 0, exchange.gather, exchange.total)
        here, every = SampleLedger(small, parts=parts, **given), SampleLedger(small, **given)
        whole = sum(c.numel() * c.element_size() for c in every._columns.values()) / small
        own = sum(c.numel() * c.element_size() for c in here._columns.values()) / small
        print(f"| {name} | {whole:.0f} | {rows * whole / 1e9:.1f} | {rows * own / 1e9:.2f} |")
    ledger = SampleLedger(small, parts=Parts(small, processes, 0, exchange.gather, exchange.total))
    visits.record(visit(small, classes, batch, torch.Generator()), ledger, RunningMeans(), None, True, exchange.gather)
    given, summed = exchange.taken()
    print(
        f"\na step's record: {len(given)} gathers of {' and '.join(f'{size / batch:.0f}' for size in given)} bytes a sample, "
        f"{sum(given) * processes / 1e6:.2f} MB on each process; {len(summed)} sum of {sum(summed) / 1e6:.3f} MB"
    )
    reads: dict[str, Callable[[], Any]] = {
        "an epoch's turn (memory='ema') reads": lambda: (ledger.ema_score, ledger.label, ledger.seen),
        "an epoch's log reads": lambda: trusted_by_class(ledger),
        "a checkpoint reads": ledger.state,
    }
    for name, read in reads.items():
        read()
        size = sum(exchange.taken()[0]) * processes / small
        print(f"{name} {size:.0f} bytes a row, {rows * size / 1e9:.1f} GB on each process")
    state = sum(t.numel() * t.element_size() for t in ledger.state().values()) / small
    print(f"a checkpoint's part of the ledger: {rows * state / 1e9:.1f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet", "resnet32", "vit"])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--waiting", type=int, default=visits.STEPS, help="steps that are recorded at once")
    parser.add_argument("--rows", type=float, help="of a ledger that nothing is trained with")
    parser.add_argument("--paper", action="store_true", help="count its bytes instead of working with it")
    parser.add_argument("--processes", type=int, default=8, help="that share it, with --paper")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.paper and args.rows is None:
        parser.error("--paper counts the bytes of a ledger of so many rows: give --rows 1e9.")
    if args.rows is not None:
        rows = int(args.rows)
        if args.paper:
            return on_paper(rows, args.classes, args.batch_size, args.processes)
        return at_scale(rows, args.classes, args.batch_size)
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
