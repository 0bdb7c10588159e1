"""What the anomaly detectors cost: seconds of a fit, rows scored a second, and how many passes the dropout ensemble needs.

    python benchmarks/anomaly_cost.py                      # 5,000 x 100 rows, default settings, this process's threads
    python benchmarks/anomaly_cost.py --passes 2 10 100 1000 --data <an ODDS .npz file>     # the ensemble's agreement, and AUROC

Prints markdown. The rows of the first form are random, from a low-dimensional surface with noise: what they are does not change the
cost. A scoring is timed over 50,000 rows, scaling included, the best of three.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from common import machine, machine_line
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from robust_trainer.anomaly import DETECTORS, ensemble, make_detector


def surface(rows: int, columns: int, seed: int) -> np.ndarray:
    """(rows, columns) numbers that five hidden ones decide, with noise."""
    rng = np.random.default_rng(seed)
    return np.tanh(rng.normal(size=(rows, 5)) @ rng.normal(size=(5, columns))) + 0.1 * rng.normal(size=(rows, columns))


def cost(args: argparse.Namespace) -> None:
    train, more = surface(args.rows, args.columns, 0), surface(50_000, args.columns, 1)
    print(f"\n| detector, {args.rows:,} x {args.columns} | fit, s | rows scored a second |\n|---|---|---|")
    for name in args.detectors:
        start = time.perf_counter()
        found = make_detector(name, random_state=0).fit(train)
        took, rates = time.perf_counter() - start, []
        for _ in range(3):
            start = time.perf_counter()
            found.decision_function(more)
            rates.append(len(more) / (time.perf_counter() - start))
        print(f"| `{name}` | {took:.1f} | {max(rates):,.0f} |", flush=True)


def agreement(args: argparse.Namespace) -> None:
    table = np.load(args.data, allow_pickle=False)
    rows, truth = table["X"].astype(float), table["y"]
    found = make_detector("rca", contamination=min(float(truth.mean()), 0.5), random_state=0).fit(rows)
    x = found.preparation_(rows)
    found.model_.train()  # dropout as in training: other units for each row
    with torch.no_grad():
        free = torch.stack([found.model_(x).scores for _ in range(max(args.passes))]).mean(0).numpy()
    found.model_.eval()
    print(
        f"\n{args.data.stem}, {len(rows)} rows, `rca`, all of them trained on; rank correlation with {max(args.passes)} passes of "
        f"torch's own dropout; {args.groups} sets of copies.\n"
    )
    print("| passes | rank correlation, 5 draws | AUROC %, 5 draws |\n|---|---|---|")
    for passes in args.passes:
        scores = [ensemble.ensemble_scores(found.networks_, x, passes, seed).numpy() for seed in range(5)]
        same = [spearmanr(free, s)[0] for s in scores]
        areas = [100 * roc_auc_score(truth, s) for s in scores]
        print(f"| {passes} | {min(same):.4f} to {max(same):.4f} | {min(areas):.1f} to {max(areas):.1f} |", flush=True)
    print(f"| torch's dropout | 1 | {100 * roc_auc_score(truth, free):.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--detectors", nargs="*", default=list(DETECTORS))
    parser.add_argument("--passes", type=int, nargs="*", help="Passes to compare, instead of the cost.")
    parser.add_argument("--groups", type=int, default=ensemble.GROUPS, help="Sets of thinned copies; 1: the same for all rows.")
    parser.add_argument("--data", type=Path, help="With --passes: an .npz file of X and y.")
    args = parser.parse_args()
    print(f"{machine_line(machine())}, {torch.get_num_threads()} threads")
    ensemble.GROUPS = args.groups
    if args.passes and args.data:
        agreement(args)
    elif args.passes:
        parser.error("--passes needs --data")
    else:
        cost(args)


if __name__ == "__main__":
    main()
