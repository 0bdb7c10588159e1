"""Seconds and memory of crafted label noise on 60,000 images: class graphs, their choices, and path lengths.

    python benchmarks/crafted_cost.py --path <folder of MNIST's train.parquet and test.parquet>

Every part runs in a process of its own, which tells its peak memory (data included).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from typing import Any

import numpy as np
import torch
import transformers
from common import machine, machine_line

from robust_trainer.corruptions.crafted.class_graph import class_graph, colour, degrees, dominating_order, usual_gamma
from robust_trainer.corruptions.crafted.scores import log_density
from robust_trainer.data.load import load_data
from robust_trainer.data.pixels import read_levels
from robust_trainer.evaluation.boundary_paths import path_lengths
from robust_trainer.models.small_networks import PlainCNN, PlainCNNConfig


def points(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, d) and labels (N,)."""
    train = load_data(path)["train"]
    levels = read_levels(train, "image")
    return levels.reshape(len(levels), -1).astype(np.float32) / 255, np.asarray(train["label"][:])


def graphs(x: np.ndarray, y: np.ndarray, norm: str) -> str:
    """The class graph of every class, and what is chosen on it."""
    spent, edges, colours = {"graph": 0.0, "dominating set": 0.0, "colouring": 0.0}, 0, []
    for c in np.unique(y):
        own = x[y == c]
        start = time.perf_counter()
        graph = class_graph(own, usual_gamma(own, norm, 10), norm)
        spent["graph"] += time.perf_counter() - start
        edges += graph.nnz // 2
        start = time.perf_counter()
        dominating_order(graph, len(own) // 100, np.arange(len(own)))
        spent["dominating set"] += time.perf_counter() - start
        start = time.perf_counter()
        if degrees(graph).max() < 1000:
            colours.append(int(colour(graph).max()) + 1)
        spent["colouring"] += time.perf_counter() - start
    told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
    return f"{edges} edges; {told}; {min(colours, default=0)} to {max(colours, default=0)} colours"


def one_class(x: np.ndarray) -> str:
    """All images as if they were one class: the approximate search in l2, and the share of edges that it finds."""
    gamma = usual_gamma(x, "l2", 10)
    start = time.perf_counter()
    graph = class_graph(x, gamma)
    spent = time.perf_counter() - start
    rows = np.random.default_rng(0).permutation(len(x))[:300]
    away = torch.cdist(torch.from_numpy(x[rows]), torch.from_numpy(x)).numpy() <= gamma
    away[np.arange(len(rows)), rows] = False
    near = [graph.indices[graph.indptr[r] : graph.indptr[r + 1]] for r in rows]
    there = sum(int(np.isin(np.flatnonzero(a), found).sum()) for a, found in zip(away, near))
    return f"{graph.nnz // 2} edges in {spent:.1f} s; {there / max(away.sum(), 1):.1%} of the edges of 300 points found"


def densities(x: np.ndarray, y: np.ndarray) -> str:
    start = time.perf_counter()
    for c in np.unique(y):
        log_density(x[y == c])
    return f"{time.perf_counter() - start:.1f} s"


def paths(path: str, target: Any) -> str:
    """Path lengths of all images to the boundary of a plain-cnn of width 8 trained for an epoch."""
    train = load_data(path)["train"]
    torch.manual_seed(0)
    model = PlainCNN(PlainCNNConfig(num_channels=1, image_size=28, width=8, num_labels=10))
    images = torch.from_numpy(read_levels(train, "image")).permute(0, 3, 1, 2).float() / 255
    labels, optimizer = torch.tensor(train["label"][:]), torch.optim.Adam(model.parameters(), 2e-3)
    for rows in torch.randperm(len(labels)).split(128):
        loss = torch.nn.functional.cross_entropy(model((images[rows] - 0.5) / 0.5).logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    start = time.perf_counter()
    found = path_lengths(model, train, target=target, image_mean=[0.5], image_std=[0.5], batch_size=512)
    spent = time.perf_counter() - start
    own = found.steps[found.steps >= 0]
    return f"{len(own) / spent:.0f} images/s, {own.sum() / spent:.0f} steps/s, {spent:.0f} s; mean length {own.mean():.1f}"


def work(name: str, path: str, threads: int, send: Any) -> None:
    torch.set_num_threads(threads)
    transformers.logging.disable_progress_bar()
    kind, _, rest = name.partition(" ")
    if kind == "paths":
        told = paths(path, None if rest == "untargeted" else "cyclic")
    else:
        x, y = points(path)
        told = graphs(x, y, rest) if kind == "classes" else one_class(x) if kind == "one-class" else densities(x, y)
    send.send((told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def main(argv: list[str] | None = None) -> None:
    names = ["classes l2", "classes linf", "one-class l2", "density input", "paths untargeted", "paths cyclic"]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--path", required=True)
    p.add_argument("--parts", nargs="+", choices=names, default=names)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args(argv)
    print(machine_line(machine()))
    context = multiprocessing.get_context("spawn")
    for name in args.parts:
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(name, args.path, args.threads, send))
        start = time.perf_counter()
        process.start()
        told, peak = receive.recv()
        process.join()
        print(f"{name}: {told}; peak memory {peak:.2f} GB; {time.perf_counter() - start:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
