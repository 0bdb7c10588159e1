"""Time to craft a batch's perturbations with a norm drawn for each sample (hybrid), as a ratio to one norm for all, in one run.

    python benchmarks/hybrid_cost.py                          # resnet32 and small-cnn, PGD-7, batch 64, 32x32
    python benchmarks/hybrid_cost.py --models small-cnn --rounds 15 --check

What is timed is the inner maximisation as training runs it (`robust_trainer.step.inner.InnerMaximization.perturb`): all forwards
and backwards of
the attack, the draw, the steps and projections; no update of the weights. ``both``, which crafts an l_inf and an l_2 perturbation
for every sample, is the plain alternative.

The norms take turns: linf, hybrid, l2, both, and in the next round l2, hybrid, linf, both. So hybrid stands between the two that it
is compared with, and what else the machine does meets all alike. Each ratio is of two times of one round; told are the median over
the rounds, and the interquartile range. One CPU thread and the process's CPU seconds, which do not count waiting; on CUDA the
wall's. --check exits with 1 where hybrid's time to the mean of l_inf's and l_2's is above the bar.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch
import transformers
from common import seconds
from torch import nn

from robust_trainer.data.images import InputSpace
from robust_trainer.losses.adversarial import INNER
from robust_trainer.losses.standard import make_objective
from robust_trainer.methods.recipe import Recipe
from robust_trainer.models.modes import eval_mode
from robust_trainer.models.outputs import read_output
from robust_trainer.models.zoo import build_model
from robust_trainer.perturbations.inputs import PixelAdapter
from robust_trainer.perturbations.pgd import NORM_CHOICES, Perturbation
from robust_trainer.problems import SINGLE_LABEL
from robust_trainer.selection.scores import make_score
from robust_trainer.step.inner import InnerMaximization
from robust_trainer.step.records import FirstForward, MicroBatch
from robust_trainer.types import ForwardOutput, Progress

BAR = 1.05
CLASSES, EPS, EPS_L2 = 10, 8 / 255, 0.5


def make_runs(args: argparse.Namespace, name: str) -> dict[str, Callable[[], Any]]:
    """Norm -> what crafts one batch with it."""
    torch.manual_seed(0)
    model = build_model(name, [str(i) for i in range(CLASSES)], channels=3, image_size=args.size)[0].train().to(args.device)
    x = (torch.rand(args.batch_size, 3, args.size, args.size) * 2 - 1).to(args.device)
    y = torch.randint(CLASSES, (args.batch_size,)).to(args.device)
    batch = MicroBatch({"pixel_values": x}, y, torch.arange(args.batch_size, device=args.device))
    front = PixelAdapter("pixel_values", InputSpace((0.5,), (0.5,)))
    recipe = Recipe("benchmark", make_score("loss"), make_objective("auto", {}, SINGLE_LABEL))
    ones = torch.ones(1, args.batch_size, device=args.device)

    def read(outputs: Any, batch: MicroBatch) -> ForwardOutput:
        return read_output(outputs, batch.targets, batch.index, SINGLE_LABEL, "benchmark")

    def first_forward(outputs: list[ForwardOutput], batches: list[MicroBatch], progress: Progress) -> list[FirstForward]:
        return [FirstForward(ones, output.logits, ones, None) for output in outputs]

    def run(inner: InnerMaximization, model: nn.Module, numbers: list[int]) -> None:
        numbers[0] += 1
        with eval_mode(model):
            inner.perturb(lambda inputs: model(**inputs), [batch], Progress(0.0, 1.0, global_step=numbers[0]))

    runs = {}
    for norm in NORM_CHOICES:
        eps = EPS_L2 if norm == "l2" else EPS
        attack = Perturbation(
            eps, eps / 5, args.steps, norm, "sample", inner_loss=args.inner_loss, eps_l2=EPS_L2, step_size_l2=EPS_L2 / 5
        )
        inner, numbers = InnerMaximization(recipe, attack, front, SINGLE_LABEL, read, first_forward, lambda t: t), [0]
        runs[norm] = lambda inner=inner, numbers=numbers: run(inner, model, numbers)
    return runs


def middle(ratios: list[float]) -> str:
    """Median and interquartile range."""
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return f"{statistics.median(ratios):.3f} | {low:.3f} to {high:.3f}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", default=["resnet32", "small-cnn"], help="names of robust_trainer.models.zoo")
    p.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    p.add_argument("--batch_size", type=int, default=64)
    p.add_argument("--steps", type=int, default=7)
    p.add_argument("--inner_loss", choices=list(INNER), default="ce")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--check", action="store_true", help=f"exit with 1 where a ratio is above {BAR}")
    args = p.parse_args()
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU, 1 thread of {os.cpu_count()}"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    what = f"PGD-{args.steps}, {args.inner_loss}, {args.size}x{args.size}, batch {args.batch_size}, n = {args.rounds} rounds"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, python {platform.python_version()}"
    print(f"{what}; {where}{load}; {versions}")
    print("\n| model | what | ms a batch | ratio of times | interquartile range | bar |\n|---|---|---|---|---|---|")
    missed = []
    for name in args.models:
        runs, times = make_runs(args, name), {norm: [] for norm in NORM_CHOICES}
        for run in runs.values():
            run()  # caches and the allocator's pools
        for number in range(args.rounds):
            first, last = ("linf", "l2") if number % 2 == 0 else ("l2", "linf")
            for norm in (first, "hybrid", last, "both"):
                times[norm].append(seconds(runs[norm], args.device))
        single = [(a + b) / 2 for a, b in zip(times["linf"], times["l2"])]
        for norm, told, base in (
            ("hybrid", "hybrid / mean of linf and l2", single), ("hybrid", "hybrid / linf", times["linf"]),
            ("hybrid", "hybrid / l2", times["l2"]), ("l2", "l2 / linf", times["linf"]), ("both", "both / hybrid", times["hybrid"]),
        ):  # fmt: skip
            ratios = [own / other for own, other in zip(times[norm], base)]
            judged = base is single
            ms = statistics.median(times[norm]) * 1000
            print(f"| {name} | {told} | {ms:.0f} | {middle(ratios)} | {BAR if judged else ''} |", flush=True)
            if judged and statistics.median(ratios) > BAR:
                missed.append(f"MISSED {name}: {statistics.median(ratios):.3f} x one norm for all, bar {BAR}")
    print("\n".join(missed), end="\n" if missed else "")
    if missed and args.check:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
