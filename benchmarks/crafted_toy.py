"""Mislabelled points placed at a chosen distance from the class means of two Gaussians (Crafting, sections 4.2 to 4.5).

    python benchmarks/crafted_toy.py                                             # all experiments
    python benchmarks/crafted_toy.py --experiments cap --set caps=1,2 seeds=3    # one, with fields of its `Setup` changed
    python benchmarks/crafted_toy.py --report                                    # the page and the figures in docs/

D(d, mu, sigma^2): half of the samples from N(-mu 1, sigma^2 I), half from N(mu 1, sigma^2 I), labelled c(x) = [sum of x >= 0].
Poisons: b points a class, uniform on the sphere of radius r around the class's mean, labelled as the other class or as a third one
that the data does not have. Fully connected ReLU networks are trained on all of it, those of a stack at once: weights (N, in, out),
each network with its own data, poisons and initialisation, drawn by its seed; those of the same seed differ in r, not in the draws.
Judged by fresh samples of D, as they are and under PGD (l_inf, no random start). One JSON line per network; lines found in --out
are skipped. --report keeps the part of its page that is above the tables.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from common import add_result, key_of, machine, read_results
from crafted_toy_report import write
from torch import Tensor

from robust_trainer.models.spectral import cap_factor, power_iteration, spectral_norm
from robust_trainer.perturbations.norms import Ball

#: What poisons are labelled as, and PGD training's radius as a share of the attack's: kind -> (third class?, share).
KINDS = {"opposite": (False, 0.0), "third": (True, 0.0), "third-pgd": (True, 1.0), "third-pgd/3": (True, 1 / 3)}
#: The prime of the paper's Listing 1.
PRIME = 941
#: How many steps lie between two looks at whether a network fits its data.
LOOK = 50
#: Power iterations before the first step and after the last.
ITERATIONS = 50


@dataclass(frozen=True)
class Setup:
    """The numbers of an experiment. A cell is a mu, a kind, a radius r (or no poisons), a cap of the last layer and a seed.

    d, samples (of training), poisons (a class), sigma, mus, radii: the data. kinds: names of `KINDS`. depth, width: linear layers,
    hidden units. caps: spectral norms of the last layer, 0 for none; hidden_cap: the others'; divide: a norm is made equal to its
    cap, not only kept below it. bits: of the hash of each coordinate, 0 for none. steps, rate; batch: 0 for Adam on the full batch,
    else SGD with momentum 0.9 on so many samples. fractions: the attacks' l_inf radii as shares of the means' distance 2 mu, PGD
    training's first; fixed: one more radius, the same for each mu, 0 for none. attack_steps, train_attack_steps: of PGD. seeds: how
    many. tests: fresh samples. side: points along an edge of the map of seed 0's decisions, for d = 2; 0 for none.
    """

    d: int = 16
    samples: int = 512
    poisons: int = 2
    sigma: float = 1.0
    mus: tuple[float, ...] = (2.0,)
    radii: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
    kinds: tuple[str, ...] = ("opposite",)
    depth: int = 4
    width: int = 64
    caps: tuple[float, ...] = (0.0,)
    hidden_cap: float = 0.0
    divide: bool = False
    bits: int = 0
    steps: int = 1000
    rate: float = 1e-3
    batch: int = 0
    fractions: tuple[float, ...] = (0.15, 0.05, 0.25)
    fixed: float = 0.0
    attack_steps: int = 20
    train_attack_steps: int = 5
    seeds: int = 5
    tests: int = 1000
    side: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds={sorted(unknown)} are unknown: choose of {', '.join(KINDS)}.")
        if self.divide and (0.0 in self.caps or not self.hidden_cap):
            raise ValueError("divide=True needs a number that each norm is made equal to: give caps and hidden_cap above 0.")


#: Fields that a cell has one value of, or none.
GRID = ("mus", "radii", "kinds", "caps", "seeds")
MEANS = Setup(
    d=64, samples=1024, mus=(0.5, 1.0, 2.0), radii=(0.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0), kinds=("opposite", "third"), fixed=0.15
)
PLANE = Setup(
    d=2, mus=(4.0,), radii=(0.0, 0.5, 1.0, 2.0, 4.0), kinds=("third",), fractions=(), rate=0.05, steps=4000, batch=64, side=141
)
#: Sections 4.2 (figure 5), 4.3 (figure 6), 4.5 (figure 8) and 4.4 (figure 7).
EXPERIMENTS = {
    "means": MEANS,
    "means-sgd": replace(MEANS, rate=0.01, steps=4000, batch=64),
    "training": Setup(kinds=("opposite", "third"), seeds=10),
    "training-pgd": Setup(kinds=("third-pgd", "third-pgd/3")),
    "norm": Setup(radii=(0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0), caps=(1.0, 2.0, 4.0, 8.0, 32.0), hidden_cap=1.0, divide=True),
    "cap": Setup(radii=(0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0), caps=(1.0, 2.0, 0.0), hidden_cap=1.0),
    "plane": PLANE,
    "plane-hash": replace(PLANE, bits=10),
}


def draw(count: int, d: int, mu: float, sigma: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples (count, d) of D(d, mu, sigma^2), the first half from the Gaussian at -mu 1, and their labels c(x) (count,)."""
    side = torch.ones(count, 1)
    side[: count // 2] = -1.0
    x = torch.randn(count, d, generator=generator) * sigma + mu * side
    return x, (x.sum(1) >= 0).long()


def place(count: int, d: int, mu: float, r: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """2 count points (2 count, d), uniform at distance r from -mu 1 and then from mu 1, and their means' classes (2 count,)."""
    way = Ball("l2", 1.0).direction(torch.randn(2 * count, d, generator=generator))
    near = torch.arange(2).repeat_interleave(count)
    return (near.unsqueeze(1) * 2 - 1) * mu + r * way, near


def hashed(x: Tensor, bits: int) -> Tensor:
    """The bits (..., d * bits), highest first, of floor(x 2^bits) mod 941 of each coordinate of x (..., d) (Crafting, Listing 1).

    Raises ``ValueError`` where the bits cannot tell 941 numbers apart.
    """
    if 2**bits < PRIME:
        raise ValueError(f"bits={bits!r} cannot hold the numbers below {PRIME}: give at least {math.ceil(math.log2(PRIME))}.")
    number = (x.double() * 2**bits).floor().long().remainder(PRIME)
    places = torch.arange(bits - 1, -1, -1)
    return ((number.unsqueeze(-1) >> places) & 1).flatten(-2).float()


class Stack:
    """N networks of linear layers and ReLU that are trained together; `forward` maps (N, B, in) to logits (N, B, classes).

    Initialised as torch does, uniform in +- 1 / sqrt(in), each network by its seed. caps: the spectral norms (N,) at which the last
    layer's weights are capped, inf for none; hidden_cap: the others'. None: no caps. divide: norms are made equal to the caps.
    """

    def __init__(
        self, sizes: Sequence[int], seeds: Sequence[int], caps: Tensor | None = None, hidden_cap: float = math.inf, divide=False
    ):
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights, self.biases, self.directions, self.divide = [], [], [], divide
        for wide, narrow in zip(sizes, sizes[1:]):
            start = torch.stack([torch.rand(wide + 1, narrow, generator=draw) * 2 - 1 for draw in draws]) / math.sqrt(wide)
            self.weights.append(start[:, :wide].clone().requires_grad_(True))
            self.biases.append(start[:, wide:].clone().requires_grad_(True))
            self.directions.append(torch.stack([torch.randn(narrow, generator=draw) for draw in draws]))
        self.caps = [] if caps is None else [torch.full_like(caps, hidden_cap)] * (len(sizes) - 2) + [caps]
        self.turn(ITERATIONS)

    def turn(self, steps: int = 1) -> None:
        """Power iterations of the layers, if there are caps."""
        for weight, direction, _ in zip(self.weights, self.directions, self.caps):
            power_iteration(weight, direction, steps)

    def layers(self) -> list[Tensor]:
        """The weights (N, in, out) as they count."""
        if not self.caps:
            return self.weights
        factor = (lambda weight, way, k: k / spectral_norm(weight, way)) if self.divide else cap_factor
        parts = zip(self.weights, self.directions, self.caps)
        return [weight * factor(weight, way, k)[:, None, None] for weight, way, k in parts]

    def forward(self, x: Tensor) -> Tensor:
        for number, (weight, bias) in enumerate(zip(self.layers(), self.biases)):
            x = torch.baddbmm(bias, x.relu() if number else x, weight)
        return x


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """logsumexp_{k != y} z_k - z_y (N, B): its gradient points where the cross-entropy's does, and does not vanish in float32."""
    index = y.unsqueeze(-1)
    return (logits.scatter(-1, index, -math.inf).logsumexp(-1, keepdim=True) - logits.gather(-1, index)).squeeze(-1)


def attack(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """PGD's last iterate, like x (N, B, d), and which samples (N, B) were taken for y at x and at all iterates before the last.

    Crafting, Algorithm 1, untargeted: from x, steps of 2.5 eps / steps (at most eps) along the gradient's sign, projected on the
    l_inf ball of radius eps (N,). The direction is the cross-entropy's, see `margin`.
    """
    ball, size = Ball("linf", 1.0), min(2.5 / steps, 1.0)
    eps, delta = eps.view(-1, 1, 1), torch.zeros_like(x)
    right = torch.ones(y.shape, dtype=torch.bool)
    for _ in range(steps):
        leaf = (x + eps * delta).requires_grad_(True)
        logits = forward(leaf)
        right &= logits.argmax(-1) == y
        (grad,) = torch.autograd.grad(margin(logits, y).sum(), leaf)
        delta = ball.project(delta + size * ball.direction(grad))
    return x + eps * delta, right


@torch.no_grad()
def right_at(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Which samples (N, B) are taken for y."""
    return forward(x).argmax(-1) == y


def robust(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: Tensor, steps: int) -> Tensor:
    """Which samples (N, B) are taken for y at x and at every iterate of `attack`."""
    last, right = attack(forward, x, y, eps, steps)
    return right & right_at(forward, last, y)


def train(
    stack: Stack, x: Tensor, y: Tensor, weight: Tensor, setup: Setup, eps: Tensor | None, draws: Sequence[torch.Generator]
) -> Tensor:
    """The first look (N,), in steps, at which each network had all samples of weight 1 right; inf where it never had.

    x (N, B, d), y (N, B), weight (N, B) of 0 or 1. eps: radii (N,) of PGD training, in which every step moves its samples by
    `attack` first. draws: what mini-batches are drawn by, with replacement, one generator per network.
    """
    parameters = [*stack.weights, *stack.biases]
    make = (torch.optim.SGD, {"momentum": 0.9}) if setup.batch else (torch.optim.Adam, {})
    optimizer = make[0](parameters, lr=setup.rate, **make[1])
    first = torch.full((len(x),), math.inf)
    seen, label, share = x, y, weight
    for step in itertools.count():
        if step % LOOK == 0 or step == setup.steps:
            stack.turn(ITERATIONS if step == setup.steps else 0)
            fits = (right_at(stack.forward, x, y) | (weight == 0)).all(1)
            first = torch.where(fits & first.isinf(), float(step), first)
        if step == setup.steps:
            return first
        stack.turn()
        if setup.batch:
            rows = torch.stack([torch.randint(x.shape[1], (setup.batch,), generator=draw) for draw in draws])
            seen = x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[2]))
            label, share = y.gather(1, rows), weight.gather(1, rows)
        moved = seen if eps is None else attack(stack.forward, seen, label, eps, setup.train_attack_steps)[0]
        losses = torch.nn.functional.cross_entropy(stack.forward(moved).flatten(0, 1), label.flatten(), reduction="none")
        optimizer.zero_grad()
        (losses.view_as(share) * share / share.sum(1, keepdim=True)).sum().backward()
        optimizer.step()


def cells(name: str, setup: Setup) -> list[dict[str, Any]]:
    """The cells of an experiment; r is None where there are no poisons."""
    grid = itertools.product([name], range(setup.seeds), setup.kinds, setup.mus, setup.caps, [None, *setup.radii])
    return [dict(zip(("experiment", "seed", "kind", "mu", "cap", "r"), values)) for values in grid]


def data(setup: Setup, kind: str, mu: float, r: float | None, draws: torch.Generator) -> tuple[Tensor, ...]:
    """Training samples with the poisons last, their labels and weights, fresh samples and their labels."""
    x, y = draw(setup.samples, setup.d, mu, setup.sigma, draws)
    points, near = place(setup.poisons, setup.d, mu, r or 0.0, draws)
    fresh, truth = draw(setup.tests, setup.d, mu, setup.sigma, draws)
    weight = torch.cat([torch.ones(len(x)), torch.full((len(points),), float(r is not None))])
    wrong = torch.full_like(near, 2) if KINDS[kind][0] else 1 - near
    return torch.cat([x, points]), torch.cat([y, wrong]), weight, fresh, truth


@torch.no_grad()
def decisions(stack: Stack, setup: Setup, mu: float, number: int) -> str:
    """What network ``number`` decides on a grid of side x side points of the plane, row by row from below, a digit each."""
    line = torch.linspace(-1.0, 1.0, setup.side) * (mu + 4 * setup.sigma)
    points = torch.cartesian_prod(line, line).flip(1)
    seen = (hashed(points, setup.bits) if setup.bits else points).expand(len(stack.weights[0]), -1, -1)
    return "".join(map(str, stack.forward(seen)[number].argmax(-1).tolist()))


def judge(setup: Setup, group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trains one network for each cell, all of one kind; their figures."""
    start = time.process_time()
    third, share = KINDS[group[0]["kind"]]
    draws = [torch.Generator().manual_seed(2 * cell["seed"]) for cell in group]
    found = [data(setup, cell["kind"], cell["mu"], cell["r"], draw) for cell, draw in zip(group, draws)]
    x, y, weight, fresh, truth = map(torch.stack, zip(*found))
    if setup.bits:
        x, fresh = hashed(x, setup.bits), hashed(fresh, setup.bits)
    apart = torch.tensor([2 * cell["mu"] for cell in group])
    caps = torch.tensor([cell["cap"] or math.inf for cell in group])
    capped = bool(setup.hidden_cap) or bool(caps.isfinite().any())
    sizes = [x.shape[2], *[setup.width] * (setup.depth - 1), 2 + third]
    stack = Stack(sizes, [2 * c["seed"] + 1 for c in group], caps if capped else None, setup.hidden_cap or math.inf, setup.divide)
    first = train(stack, x, y, weight, setup, apart * setup.fractions[0] * share if share else None, draws)
    with torch.no_grad():
        norms = torch.stack([torch.linalg.matrix_norm(layer, 2) for layer in stack.layers()], 1)
    radii = {f"{fraction:g}": apart * fraction for fraction in setup.fractions}
    radii |= {"fixed": torch.full_like(apart, setup.fixed)} if setup.fixed else {}
    held = {name: robust(stack.forward, fresh, truth, eps, setup.attack_steps).float().mean(1) for name, eps in radii.items()}
    fits, natural = right_at(stack.forward, x, y), right_at(stack.forward, fresh, truth).float().mean(1)
    poisoned = fits[:, setup.samples :].float().mean(1)
    took = (time.process_time() - start) / len(group)
    rows = []
    for i, cell in enumerate(group):
        row: dict[str, Any] = {"natural": natural[i].item(), "adversarial": {name: value[i].item() for name, value in held.items()}}
        row |= {"fit": bool((fits[i] | (weight[i] == 0)).all()), "first": first[i].item() if first[i].isfinite() else None}
        row |= {"poisons_fitted": None if cell["r"] is None else poisoned[i].item(), "norms": norms[i].tolist(), "seconds": took}
        row["train_accuracy"] = (fits[i] * weight[i]).sum().item() / weight[i].sum().item()
        if setup.side and cell["seed"] == 0 and cell["r"] is not None:
            points = found[i][0].double().round(decimals=3).tolist()
            row |= {"map": decisions(stack, setup, cell["mu"], i), "points": points, "labels": found[i][1].tolist()}
        rows.append(row)
    return rows


def changed(setup: Setup, words: Sequence[str]) -> Setup:
    """The setup with fields replaced by NAME=VALUE words, commas between several values. Raises ``ValueError`` for other names."""
    known, values = {f.name: getattr(setup, f.name) for f in fields(setup)}, {}
    for name, _, text in (word.partition("=") for word in words):
        if name not in known:
            raise ValueError(f"--set {name}: unknown; choose of {', '.join(known)}.")
        kind = str if name == "kinds" else (lambda word: word == "true") if name == "divide" else type(known[name])
        values[name] = tuple(map(str if kind is str else float, text.split(","))) if kind in (str, tuple) else kind(text)
    return replace(setup, **values)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="*", default=list(EXPERIMENTS), choices=list(EXPERIMENTS))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="Fields of each experiment's Setup to change.")
    parser.add_argument("--stack", type=int, default=32, help="Networks that are trained at once.")
    parser.add_argument("--out", type=Path, default=Path("runs/crafted_toy.jsonl"))
    parser.add_argument("--report", action="store_true", help="Write the page and the figures of --out.")
    parser.add_argument("--page", type=Path, default=Path("docs/experiments/crafted_toy_results.md"))
    args = parser.parse_args(arguments)
    if args.report:
        write(read_results(args.out), args.page)
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    done, made = {row["key"] for row in read_results(args.out)}, machine()
    for name in args.experiments:
        try:
            setup = changed(EXPERIMENTS[name], args.set)
        except ValueError as error:
            parser.error(str(error))
        settings = {key: value for key, value in asdict(setup).items() if key not in GRID}
        left = [cell for cell in cells(name, setup) if key_of({**cell, **settings}) not in done]
        for kind in setup.kinds:
            own = [cell for cell in left if cell["kind"] == kind]
            for at in range(0, len(own), args.stack):
                group = own[at : at + args.stack]
                start = time.perf_counter()
                for cell, row in zip(group, judge(setup, group)):
                    add_result(args.out, {"key": key_of({**cell, **settings}), **cell, **row, "setup": settings, "machine": made})
                print(f"{name} {kind}: {at + len(group)} of {len(own)} ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
