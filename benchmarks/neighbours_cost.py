"""Seconds, memory and recall of the search for neighbours, exact and approximate, and of their votes.

    python benchmarks/neighbours_cost.py                                    # 50,000 x 384 exactly, 1,000,000 x 384 by the index
    python benchmarks/neighbours_cost.py --rows 10000 --many 200000
    python benchmarks/neighbours_cost.py --file features.npy                # (N, D), in place of drawn features

Features are drawn: 200 clusters in 24 dimensions, mapped linearly into all, and noise; float16, as the ledger keeps them. "Bare
product": the N x N similarities alone, in the same tiles. Recall: the share of a row's exact k neighbours that were found, over
1,000 rows; "first" counts the nearest alone. Memory: the peak of the process beyond the features themselves. Each line is a process
of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from common import machine, machine_line

from robust_trainer.evidence.neighbours import CHUNK_BYTES, centre_of, find_neighbours, normalise
from robust_trainer.evidence.votes import vote


def drawn(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Features as an encoder has them: dense in few directions, (rows, width) float16."""
    generator = torch.Generator().manual_seed(seed)
    centres, mapping = torch.randn(200, 24, generator=generator), torch.randn(24, width, generator=generator)
    features = np.empty((rows, width), dtype=np.float16)
    for part in torch.arange(rows).split(50_000):
        inner = centres[torch.randint(200, (len(part),), generator=generator)] + 0.7 * torch.randn(
            len(part), 24, generator=generator
        )
        features[part[0] : part[-1] + 1] = (inner @ mapping + 2.0 * torch.randn(len(part), width, generator=generator)).numpy()
    return features


def taken(args: argparse.Namespace, rows: int) -> np.ndarray:
    """The first rows of the file, or drawn ones."""
    return np.load(args.file, mmap_mode="r")[:rows] if args.file else drawn(rows, args.width)


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self.wall:.1f} s, {time.process_time() - self.cpu:.1f} s of CPU"


def peak() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bare_product(unit: torch.Tensor) -> float:
    """Seconds of all similarities, tile by tile, looked at by nobody."""
    across = min(32768, len(unit))
    high = CHUNK_BYTES // (4 * across)
    room, start = torch.empty(high * across), time.perf_counter()
    for rows in unit.split(high):
        for columns in unit.split(across):
            torch.mm(rows, columns.T, out=room[: len(rows) * len(columns)].view(len(rows), len(columns)))
    return time.perf_counter() - start


def exact(args: argparse.Namespace) -> str:
    """The line of the exact search."""
    torch.set_num_threads(args.threads)
    features = taken(args, args.rows)
    before, clock, start = peak(), Clock(), time.perf_counter()
    found = find_neighbours(features, args.k, index="exact")
    seconds, took = time.perf_counter() - start, str(clock)
    memory = peak() - before
    bare = bare_product(normalise(features))
    clock = Clock()
    vote(found, np.arange(len(features)) % 100, 100)
    return (
        f"exact, {len(features):,} x {features.shape[1]}, k = {args.k}: {took}; {seconds / bare:.2f} times the bare product "
        f"({bare:.1f} s); {memory:,.0f} MB; votes of 100 classes: {clock}"
    )


def approximate(args: argparse.Namespace, rows: int) -> str:
    """The line of the approximate search."""
    torch.set_num_threads(args.threads)
    features = taken(args, rows)
    before, clock = peak(), Clock()
    found = find_neighbours(features, args.k, index="approximate")
    took, memory = str(clock), peak() - before
    some = np.sort(np.random.default_rng(1).choice(len(features), min(1000, len(features)), replace=False))
    unit = normalise(features, centre=centre_of(features))
    true = find_neighbours(unit, args.k + 1, queries=unit[some], index="exact", normalised=True)  # the row itself is the first
    seen = found.similarity[some] >= true.similarity[:, -1:] - 1e-6
    first = found.similarity[some, 0] >= true.similarity[:, 1] - 1e-6
    return (
        f"approximate, {len(features):,} x {features.shape[1]}, k = {args.k}: {took}; {memory:,.0f} MB; "
        f"recall {100 * seen.float().mean():.1f} %, first {100 * first.float().mean():.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="searched exactly and by the index; 0: none")
    parser.add_argument("--many", type=int, default=1_000_000, help="rows searched by the index alone; 0: none")
    parser.add_argument("--width", type=int, default=384, help="features of a row")
    parser.add_argument("-k", type=int, default=50)
    parser.add_argument("--file", help="a .npy file of features (N, D) to use instead of drawn ones")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    facts = machine()
    versions = {"threads": args.threads, "numpy": np.__version__}
    print(machine_line(facts) + "".join(f", {name} {version}" for name, version in versions.items()) + ", " + faiss_version())
    work: list[tuple[Any, ...]] = [(exact, args), (approximate, args, args.rows)] if args.rows else []
    work += [(approximate, args, args.many)] if args.many else []
    for call, *given in work:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            print(pool.submit(call, *given).result(), flush=True)
    print(f"load of the machine over the last minutes: {os.getloadavg()[1]:.1f} processes on {os.cpu_count()} cores")


def faiss_version() -> str:
    try:
        import faiss
    except ImportError:
        raise SystemExit("the approximate search needs faiss: pip install 'robust-trainer[neighbours]'.") from None
    return f"faiss {faiss.__version__}"


if __name__ == "__main__":
    main()
