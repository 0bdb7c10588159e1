"""CPU time of the evaluation's attacks as a ratio to the same loop written by hand, for the same model and images, in one run.

    python benchmarks/attack_speed.py                          # resnet32, l_inf and l_2, batch 64
    python benchmarks/attack_speed.py --model small-cnn --rounds 15 --check

Two things are timed against loops of plain torch that stand in this file: ``PGD(steps=20, early_stop=False)`` on one batch, against
the attack's loop; and ``evaluate_robustness(attacks=["pgd-20"])`` on ``--batches`` batches, from data set to table, against a clean
forward, the attack's loop and a forward on its result for each batch. There early_stop is on, as users have it; the labels are the
model's predictions and eps is so small that none changes, so all rows stay to the end and stopping early saves nothing.

Runs alternate: hand, ours, hand, ours, ..., hand. Each of ours is compared with the loops by hand just before and just after it,
so that what else the machine does meets both alike. Told: the median of these ratios over the rounds, and their interquartile
range. One CPU thread and the process's CPU seconds, which do not count waiting; on CUDA the wall's. --check exits with 1 where a
ratio is above the bar.
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
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robust_trainer.attacks import PGD, Draws, Target
from robust_trainer.evaluation.robustness import evaluate_robustness
from robust_trainer.models.zoo import build_model

BAR = 1.1
CLASSES, STEPS = 10, 20
#: In [0, 1] pixels: no prediction changes within it, and the arithmetic is the same.
EPS = {"linf": 1e-6, "l2": 1e-5}


def pgd_by_hand(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
    """PGD-20 on pixels as one writes it in a script; the model takes (x - 0.5) / 0.5."""
    size = max(eps / 4, 2.5 * eps / STEPS)
    if norm == "linf":
        x_adv = x + (2 * torch.rand_like(x) - 1) * eps
    else:
        noise = torch.randn_like(x)
        x_adv = x + noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * torch.rand(len(x), 1, 1, 1, device=x.device) * eps
    x_adv = x_adv.clamp(0, 1)
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(model(pixel_values=(x_adv - 0.5) / 0.5).logits, y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, x_adv)
        if norm == "linf":
            delta = (x_adv.detach() + size * grad.sign() - x).clamp(-eps, eps)
        else:
            grad = grad / grad.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            delta = x_adv.detach() + size * grad - x
            delta = delta * (eps / delta.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp_max(1).view(-1, 1, 1, 1)
        x_adv = (x + delta).clamp(0, 1)
    return x_adv.detach()


def evaluated_by_hand(model: nn.Module, data: TensorDataset, batch_size: int, norm: str, eps: float) -> float:
    """Robust accuracy under PGD-20 as one writes it in a script."""
    right = 0
    device = next(model.parameters()).device
    for inputs, y in DataLoader(data, batch_size):
        x, y = (inputs.to(device) * 0.5 + 0.5).clamp(0, 1), y.to(device)
        with torch.no_grad():
            clean = model(pixel_values=(x - 0.5) / 0.5).logits.argmax(1) == y
        x_adv = pgd_by_hand(model, x, y, norm, eps)
        with torch.no_grad():
            right += int((clean & (model(pixel_values=(x_adv - 0.5) / 0.5).logits.argmax(1) == y)).sum())
    return right / len(data)


def make_case(args: argparse.Namespace) -> tuple[nn.Module, TensorDataset]:
    """A model with random weights in eval mode, and images that carry its own predictions as labels."""
    torch.manual_seed(0)
    model = build_model(args.model, [str(i) for i in range(CLASSES)], channels=3, image_size=args.size)[0].eval().to(args.device)
    inputs = torch.rand(args.batches * args.batch_size, 3, args.size, args.size) * 2 - 1
    with torch.no_grad():
        y = torch.cat([model(pixel_values=part.to(args.device)).logits.argmax(1).cpu() for part in inputs.split(args.batch_size)])
    return model, TensorDataset(inputs, y)


def make_pairs(args: argparse.Namespace) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Row of the table -> (the loop by hand, ours)."""
    model, data = make_case(args)
    space = dict(image_mean=[0.5], image_std=[0.5])
    x, y = ((t[: args.batch_size]).to(args.device) for t in data.tensors)
    x = (x * 0.5 + 0.5).clamp(0, 1)
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
    for norm in args.norms:
        eps = EPS[norm]

        def attack(norm: str = norm, eps: float = eps) -> Tensor:
            with Target(model, **space) as target:
                return PGD(eps, norm, steps=STEPS, early_stop=False)(target, x, y, Draws(0, range(len(x)), args.device))

        def evaluate(norm: str = norm, eps: float = eps) -> float:
            found = evaluate_robustness(model, data, "pgd-20", eps, norm, batch_size=args.batch_size, progress=False, **space)
            return found.worst_case

        pairs[f"PGD-20, {norm}"] = (lambda norm=norm, eps=eps: pgd_by_hand(model, x, y, norm, eps), attack)
        pairs[f"evaluate_robustness, pgd-20, {norm}"] = (
            lambda norm=norm, eps=eps: evaluated_by_hand(model, data, args.batch_size, norm, eps), evaluate,
        )  # fmt: skip
    return pairs


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="resnet32", help="a name of robust_trainer.models.zoo, for instance small-cnn or resnet32")
    p.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    p.add_argument("--batch_size", type=int, default=64)
    p.add_argument("--batches", type=int, default=4, help="of the data set that evaluate_robustness gets")
    p.add_argument("--norms", nargs="+", choices=list(EPS), default=list(EPS))
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--check", action="store_true", help=f"exit with 1 where a ratio is above {BAR}")
    args = p.parse_args()
    torch.set_num_threads(1)
    pairs = make_pairs(args)
    missed: list[str] = []
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU, 1 thread of {os.cpu_count()}"
    what = f"{args.model}, {args.size}x{args.size}, batch {args.batch_size}, {args.batches} batches, n = {args.rounds} rounds"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, python {platform.python_version()}"
    print(f"{what}; {where}; {versions}")
    print("\n| what | by hand, attacks/s | ratio of times | interquartile range | bar |\n|---|---|---|---|---|")
    for name, (hand, ours) in pairs.items():
        images = args.batch_size * (args.batches if name.startswith("evaluate") else 1)
        hand(), ours()  # caches and the allocator's pools
        ratios, by_hand = [], [seconds(hand, args.device)]
        for _ in range(args.rounds):
            own = seconds(ours, args.device)
            by_hand.append(seconds(hand, args.device))
            ratios.append(2 * own / (by_hand[-2] + by_hand[-1]))
        middle = statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        print(
            f"| {name} | {images / statistics.median(by_hand):.1f} | {middle:.3f} | {low:.3f} to {high:.3f} | {BAR} |", flush=True
        )
        if middle > BAR:
            missed.append(f"MISSED {name}: {middle:.3f} x the loop by hand, bar {BAR}")
    print("\n".join(missed), end="\n" if missed else "")
    if missed and args.check:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
