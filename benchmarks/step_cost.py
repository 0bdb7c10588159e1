"""Time and memory of a training step as a ratio to the plain `Trainer`, for the same model and data, in one run.

    python benchmarks/step_cost.py                        # a ResNet on 32x32 images, batch 128
    python benchmarks/step_cost.py --model vit --methods prl prl-at --rounds 20 --check
    python benchmarks/step_cost.py --methods auto --no_memory --check                # its step, and its pass over the data
    python benchmarks/step_cost.py --model resnet32-gn --methods prl prl-g co-teaching
    python benchmarks/step_cost.py --model resnet32 --methods pgd-at trades nrat nrat-awp --steps 2 --no_memory

ResNet-50 and ViT-B/16 on a GPU, eager, bfloat16 and compiled: `step_cost_models.py`; two processes and FSDP2: `step_cost_fsdp.py`.

Whole `train()` loops are timed, so data loader, collator, ledger, filter, log and optimizer are inside. A round runs
plain, method, plain, method, ..., plain; each method is compared with the plain runs just before and just after it, so that
what else the machine does meets both alike. Told: the median over the rounds of these ratios, and their interquartile range.
A run has three epochs; the first warms up, the steps of the others are timed, with the turns of epochs between them. On one
CPU thread the process's CPU seconds are told: on an idle machine they are the wall's, on a shared one they do not count waiting.
Looks of `auto` at all samples are no steps and left out of the step's time. Their pass for features is compared with the mean of
an evaluation of the same data by the plain Trainer just before and just after, and what judging takes beside it is told.
Memory: the largest sum of tensor bytes alive within a step (weights, gradients, optimizer state and batch included), each method
in a process of its own; on CUDA `torch.cuda.max_memory_allocated`. --check exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.models.zoo import build_model
from robust_trainer.step import evidence

#: Ratios to the plain Trainer that must not be exceeded: time of a step, peak memory. One FGSM step is one forward and one
#: backward for the input only: at least 5/3 of a plain step's arithmetic (forward 1, backward for weights 1, for inputs 1).
BARS = {
    "standard": (1.02, 1.1),
    "auto": (1.05, None),  # its looks at the data are told apart from its steps
    "spl": (1.05, 1.1),
    "prl": (1.05, 1.1),
    "prl-at": (1.85, 1.3),
    "prl-at-memory": (1.85, 1.3),
    "prl-g": (1.6, None),  # Dissertation table 4.6: 3.93 epochs of standard training
    "co-teaching": (2.1, None),
    "co-prl": (2.1, None),
    # adversarial training, in forward-backwards of a plain step: ten attack steps of 2/3 (forward, backward for the input), then
    # one for PGD-AT, two for NRAT; TRADES' attack has one more forward, 1/3. The bar is the floor and a tenth, or 15 %.
    "pgd-at": (1.1 * (10 * 2 / 3 + 1), None),
    "trades": (1.15 * (10 * 2 / 3 + 1 / 3 + 2), None),
    "nrat": (1.15 * (10 * 2 / 3 + 2), None),
    # AWP: one more forward-backward of the outer loss
    "pgd-at-awp": (1.1 * (10 * 2 / 3 + 1) + 1, None),
    "trades-awp": (1.15 * (10 * 2 / 3 + 1 / 3 + 2) + 2, None),
    "nrat-awp": (1.15 * (10 * 2 / 3 + 2) + 2, None),
}
#: Where a model has a bar of its own.
OWN_BARS = {("prl-g", "vit"): (1.4, None)}
#: A look's pass over the data for features, in passes of an evaluation.
PASS_BAR = 1.0
CLASSES = 10


class Random(torch.utils.data.Dataset):
    """Random images around one of each class, a fifth of them with a random label, in memory: labels can be judged by them."""

    def __init__(self, n: int, size: int):
        generator = torch.Generator().manual_seed(0)
        classes = torch.rand(CLASSES, 3, size, size, generator=generator) * 2 - 1
        truth, other = (torch.randint(0, CLASSES, (n,), generator=generator) for _ in range(2))
        self.pixels = (torch.rand(n, 3, size, size, generator=generator) * 2 - 1 + classes[truth]) / 2
        self.labels = torch.where(torch.rand(n, generator=generator) < 0.2, other, truth)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[i], "labels": self.labels[i]}


def make_model(name: str, size: int) -> Any:
    """A model to train from scratch, always with the same weights."""
    torch.manual_seed(0)
    if name == "resnet":
        return ResNetForImageClassification(
            ResNetConfig(
                embedding_size=16, hidden_sizes=[16, 32, 64], depths=[2, 2, 2], layer_type="basic", num_labels=CLASSES,
                downsample_in_first_stage=False,
            )
        )  # fmt: skip
    if name == "vit":
        return ViTForImageClassification(
            ViTConfig(
                hidden_size=96, num_hidden_layers=4, num_attention_heads=3, intermediate_size=192, image_size=size,
                patch_size=max(size // 8, 1), num_labels=CLASSES,
            )
        )  # fmt: skip
    return build_model(name, [str(i) for i in range(CLASSES)], channels=3, image_size=size)[0]


class Clock(TrainerCallback):
    """Seconds of the steps after the warm-up; also tells the ledger a truth, so that the log's detection figures are inside."""

    def __init__(self, warm: int, trainer: Any, kind: str):
        self.warm, self.trainer, self.kind = warm, trainer, kind
        self.start = self.seconds = self.looked = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ledger = getattr(self.trainer, "ledger", None)
        if ledger is not None:
            ledger.truth = torch.arange(len(ledger), device=args.device) % 4 == 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.warm:
            self.start, self.looked = now(self.kind), sum(LOOKS["all"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = now(self.kind) - self.start - (sum(LOOKS["all"]) - self.looked)


def now(kind: str) -> float:
    """Seconds of the wall's clock or the process's."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if kind == "cpu" else time.perf_counter()


#: Seconds of each look of `auto` since they were last taken: all of it, and its pass over the data alone.
LOOKS: dict[str, list[float]] = {"all": [], "pass": []}


def time_looks(kind: str) -> None:
    """From now on each look writes into `LOOKS` how long it took."""

    def timed(name: str, real: Any) -> Any:
        def call(*words: Any, **named: Any) -> Any:
            start = now(kind)
            found = real(*words, **named)
            LOOKS[name].append(now(kind) - start)
            return found

        return call

    evidence.EvidenceStage.judge = timed("all", evidence.EvidenceStage.judge)
    evidence.look_at_all = timed("pass", evidence.look_at_all)


def make_trainer(method: str, args: argparse.Namespace, folder: str) -> tuple[Any, Clock]:
    """A trainer for three epochs of ``args.steps`` steps; method ``plain`` is transformers' own."""
    settings: dict[str, Any] = dict(
        output_dir=folder, num_train_epochs=3, per_device_train_batch_size=args.batch_size, learning_rate=1e-3,
        per_device_eval_batch_size=args.batch_size,
        logging_steps=args.steps, save_strategy="no", report_to=[], disable_tqdm=True, optim="adamw_torch", seed=0,
        dataloader_pin_memory=args.device == "cuda", use_cpu=args.device == "cpu", bf16=args.bf16,
    )  # fmt: skip
    data = Random(args.steps * args.batch_size, args.size)
    model = make_model(args.model, args.size)
    if method == "plain":
        trainer = Trainer(model=model, args=TrainingArguments(**settings), train_dataset=data)
    else:
        config = RobustConfig(**settings, method=method, image_mean=[0.5], image_std=[0.5])
        trainer = RobustTrainer(model=model, args=config, train_dataset=data)
    trainer.remove_callback(transformers.PrinterCallback)
    clock = Clock(args.steps, trainer, args.clock)
    trainer.add_callback(clock)
    return trainer, clock


def time_all(args: argparse.Namespace) -> tuple[dict[str, list[float]], list[float], dict[str, list[float]]]:
    """The ratios to plain of each method, one per round; plain's seconds per step; and of `auto` the ratios of its passes to
    evaluations, with the milliseconds a sample that judging takes beside them."""
    ratios: dict[str, list[float]] = {m: [] for m in args.methods}
    plain: list[float] = []
    looks: dict[str, list[float]] = {"first": [], "later": [], "judging": []}
    time_looks(args.clock)
    with tempfile.TemporaryDirectory() as folder:
        made = {m: make_trainer(m, args, folder) for m in ("plain", *args.methods)}

        def seconds(method: str) -> float:
            trainer, clock = made[method]
            trainer.train()
            return clock.seconds / (2 * args.steps)

        def evaluation() -> float:
            trainer, start = made["plain"][0], now(args.clock)
            trainer.evaluate(trainer.train_dataset)
            return now(args.clock) - start

        for method in made:
            seconds(method)  # imports, caches and the allocator's pools
        evaluation()
        for number in range(args.rounds):
            before = seconds("plain")
            for method in args.methods if number % 2 else reversed(args.methods):
                if method == "auto":
                    for times in LOOKS.values():
                        times.clear()
                    first = evaluation()
                own = seconds(method)
                if method == "auto":
                    once = (first + evaluation()) / 2
                    looks["first"] += [taken / once for taken in LOOKS["pass"][:1]]
                    looks["later"] += [taken / once for taken in LOOKS["pass"][1:]]
                    rest = [1000 * (whole - part) / (args.steps * args.batch_size) for whole, part in zip(*LOOKS.values())]
                    looks["judging"] += rest
                after = seconds("plain")
                ratios[method].append(2 * own / (before + after))
                plain.append(after)
                before = after
            if args.verbose:
                print(f"round {number + 1}: " + ", ".join(f"{m} {r[-1]:.3f}" for m, r in ratios.items()), flush=True)
    return ratios, plain, looks


# ---- memory -----------------------------------------------------------------------------------------------------------


def peak_memory(method: str, args: argparse.Namespace) -> dict[str, float]:
    """Peak tensor bytes within the steps of the last epochs, and the process's peak resident bytes."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = make_trainer(method, args, folder)
        trainer.train()
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            trainer.train()
            tensors = float(torch.cuda.max_memory_allocated())
        else:
            model = trainer.model
            # gradients are released between steps; weights and AdamW's two moments stay, from before the profile
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
                trainer.train()
            events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
            live = peak = 0
            for event in sorted(events, key=lambda e: e.start_ns()):
                live += event.nbytes()
                peak = max(peak, live)
            tensors = float(peak + 3 * weights)
    return {"tensors": tensors, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}


def memory_all(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """`peak_memory` of plain and of each method, each in a fresh process."""
    found = {}
    for method in ("plain", *args.methods):
        command = [sys.executable, __file__, "--memory_of", method, "--model", args.model, "--device", args.device]
        command += ["--batch_size", str(args.batch_size), "--size", str(args.size), "--steps", "4", "--methods"]
        command += ["--bf16"] * args.bf16 + (["--threads", str(args.threads)] if args.threads else [])
        out = subprocess.run(command, capture_output=True, text=True, check=False)
        if out.returncode:
            raise SystemExit(f"memory of {method}: {out.stderr[-2000:]}")
        found[method] = json.loads(out.stdout.strip().splitlines()[-1])
    return found


# ---- the table --------------------------------------------------------------------------------------------------------


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--methods", nargs="*", default=list(BARS)[:6])
    p.add_argument("--model", default="resnet", help="resnet, vit, small-cnn, resnet32 or resnet32-gn (prl-g needs no BatchNorm)")
    p.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    p.add_argument("--batch_size", type=int, default=128)
    p.add_argument("--steps", type=int, default=5, help="steps per epoch; two epochs are timed in each run")
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--threads", type=int, default=1, help="CPU threads; one is disturbed least by other jobs")
    p.add_argument("--clock", choices=["wall", "cpu"], help="wall, or the process's CPU seconds; default: cpu for one CPU thread")
    p.add_argument("--no_memory", action="store_true")
    p.add_argument("--no_time", action="store_true")
    p.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    p.add_argument("--verbose", action="store_true")
    p.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = p.parse_args()
    args.clock = args.clock or ("cpu" if args.device == "cpu" and args.threads == 1 else "wall")
    return args


def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    if args.memory_of:
        print(json.dumps(peak_memory(args.memory_of, args)))
        return
    memory = {} if args.no_memory else memory_all(args)
    ratios, plain, looks = ({}, [], {"first": [], "later": [], "judging": []}) if args.no_time else time_all(args)
    threads = torch.get_num_threads()
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU, {threads} thread(s)"
    print(
        f"{args.model}, {args.size}x{args.size}, batch {args.batch_size}; {device} of {os.cpu_count()} cores; "
        f"torch {torch.__version__}, transformers {transformers.__version__}, python {platform.python_version()}"
    )
    if plain:
        step = f"{1000 * statistics.median(plain):.1f} ms a step ({args.clock} clock)"
        print(f"plain Trainer: {step}; n = {args.rounds} rounds of {2 * args.steps} steps")
    if memory:
        told = memory["plain"]
        print(f"plain Trainer: {told['tensors'] / 2**20:.0f} MiB of tensors at the peak, {told['rss'] / 2**20:.0f} MiB resident")
    print("\n| method | step time / plain | interquartile range | bar | peak tensors / plain | bar | peak resident / plain |")
    print("|---|---|---|---|---|---|---|")
    missed = []
    for method in args.methods:
        bars = OWN_BARS.get((method, args.model), BARS.get(method, (None, None)))
        cells = [method]
        if ratios:
            low, middle, high = quartiles(ratios[method])
            cells += [f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{bars[0]:.4g}" if bars[0] else "–"]
            if bars[0] is not None and middle > bars[0]:
                missed.append(f"{method}: step time {middle:.3f} x plain, bar {bars[0]:.4g}")
        else:
            cells += ["–"] * 3
        if memory:
            tensors = memory[method]["tensors"] / memory["plain"]["tensors"]
            cells += [f"{tensors:.3f}", f"{bars[1]}" if bars[1] else "–", f"{memory[method]['rss'] / memory['plain']['rss']:.3f}"]
            if bars[1] is not None and tensors > bars[1]:
                missed.append(f"{method}: peak memory {tensors:.3f} x plain, bar {bars[1]}")
        else:
            cells += ["–"] * 3
        print("| " + " | ".join(cells) + " |")
    for look in ("first", "later") if looks["first"] else ():
        low, middle, high = quartiles(looks[look])
        told = f"{middle:.3f} ({low:.3f} to {high:.3f}) evaluations by the plain Trainer, bar {PASS_BAR:g}; n = {len(looks[look])}"
        print(f"{'the first look of auto' if look == 'first' else 'a later look'}: its pass over the data takes {told}")
        if middle > PASS_BAR:
            missed.append(f"auto: the pass of the {look} look takes {middle:.3f} evaluations, bar {PASS_BAR:g}")
    if looks["judging"]:
        print(f"judging beside a pass: {statistics.median(looks['judging']):.2f} ms a sample")
    for line in missed:
        print(f"MISSED {line}")
    if missed and args.check:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
