"""Density maps of RealNVP, TrimRealNVP and RobustRealNVP on two moons with anomalies (Dissertation, figures 3.2 and 3.3).

    python benchmarks/two_moons.py --out docs/figures

10,000 points of two moons (noise 0.1) and 500 anomalies: uniform, or clustered, N((2.5, 2.5), 0.05^2 I). Writes anomaly_uniform.png
and anomaly_clustered.png and prints, as markdown, the mean log-density of fresh normal points and of fresh anomalies, the highest
density within 1 of the cluster's place, and the AUROC between normal points and anomalies. The numbers of the authors' toy: 6
couplings, 5,000 steps of 128, k = 1, Adam 3e-4.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from common import machine, machine_line
from matplotlib.figure import Figure
from sklearn.datasets import make_moons
from sklearn.metrics import roc_auc_score

from robust_trainer.anomaly import make_detector

DETECTORS = {"realnvp": "RealNVP", "trim-realnvp": "TrimRealNVP", "robust-realnvp": "RobustRealNVP"}
LOW, HIGH, CELLS = -2.0, 3.5, 220


def anomalies(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) points that are no moons."""
    if kind == "uniform":
        return (rng.random((count, 2)) - 0.35) * 5.0
    return rng.normal(2.5, 0.05, (count, 2))


def moons(count: int, seed: int) -> np.ndarray:
    return make_moons(count, noise=0.1, random_state=seed)[0]


def draw(kind: str, args: argparse.Namespace) -> None:
    """Writes one figure and prints its lines of the table."""
    rng = np.random.default_rng(args.seed)
    normal, wrong = moons(args.points, args.seed), anomalies(kind, args.anomalies, rng)
    rows = np.concatenate([normal, wrong])
    fresh, wrong_fresh = moons(2000, args.seed + 1), anomalies(kind, 2000, rng)
    steps = -(-len(rows) // 128)
    side = np.linspace(LOW, HIGH, CELLS)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    figure = Figure(figsize=(13, 3.5), layout="constrained")
    axes = figure.subplots(1, 1 + len(DETECTORS), sharex=True, sharey=True)
    axes[0].scatter(*normal[::4].T, s=2, color="#33669a", label="normal (every fourth)", rasterized=True)
    axes[0].scatter(*wrong.T, s=2, color="#c03030", label=f"{kind} anomalies", rasterized=True)
    axes[0].legend(markerscale=4, fontsize=8, loc="lower right")
    axes[0].set_title("training data")
    image = None
    for axis, (name, title) in zip(axes[1:], DETECTORS.items()):
        settings = {"lipschitz": args.lipschitz} if name == "robust-realnvp" else {}
        start = time.perf_counter()
        found = make_detector(
            name, contamination=args.anomalies / len(rows), scaling="none", epochs=-(-args.steps // steps), random_state=args.seed,
            hidden_size=args.hidden_size, **settings,
        ).fit(rows)  # fmt: skip
        took = time.perf_counter() - start
        density = np.exp(-found.decision_function(grid)).reshape(CELLS, CELLS)
        image = axis.imshow(
            density.clip(0.0, args.brightest), extent=(LOW, HIGH, LOW, HIGH), origin="lower", cmap="magma", vmin=0.0,
            vmax=args.brightest,
        )  # fmt: skip
        axis.contour(side, side, density, levels=[0.01], colors="white", linewidths=0.6)
        axis.set_title(title)
        inside, outside = found.decision_function(fresh), found.decision_function(wrong_fresh)
        area = roc_auc_score(np.repeat([0, 1], 2000), np.concatenate([inside, outside]))
        near = density.ravel()[np.linalg.norm(grid - 2.5, axis=1) < 1.0].max()
        figures = f"{-inside.mean():.2f} | {-outside.mean():.2f} | {near:.3f} | {100 * area:.1f}"
        print(f"| {kind} | {title} | {figures} | {took:.0f} |", flush=True)
    assert image is not None
    figure.colorbar(image, ax=axes, label="density", shrink=0.9)
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / f"anomaly_{kind}.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--kinds", nargs="*", default=["uniform", "clustered"], choices=["uniform", "clustered"])
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--anomalies", type=int, default=500)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--lipschitz", type=float, default=1.0)
    parser.add_argument("--brightest", type=float, default=0.5, help="Density that is shown brightest.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(machine_line(machine()))
    print("| anomalies | flow | log-density of normal points | of anomalies | highest near (2.5, 2.5) | AUROC % | seconds |")
    print("|---|---|---|---|---|---|---|")
    for kind in args.kinds:
        draw(kind, args)


if __name__ == "__main__":
    main()
