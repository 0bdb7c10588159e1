"""AUROC of RCA and RobustRealNVP, their variants and scikit-learn's detectors on ODDS tables (Dissertation, tables 2.1-2.3, 3.1).

    python benchmarks/anomaly.py --data <folder of ODDS .npz files>                      # tables 2.1 and 3.1, 10 and 5 seeds
    python benchmarks/anomaly.py --data D --missing 0.1 0.2 0.3 0.4 0.5 --seeds 2        # table 2.2, values struck out
    python benchmarks/anomaly.py --data D --offsets -0.1 -0.05 0.05 0.1 --detectors rca --seeds 2         # table 2.3
    python benchmarks/anomaly.py --data D --offsets auto --detectors rca robust-realnvp --seeds 3 --flow_seeds 3      # told nothing
    python benchmarks/anomaly.py --data D --detectors rca --seeds 3 --set networks=3                         # K-RCA, figure 2.4
    python benchmarks/anomaly.py --report --out runs/anomaly.jsonl > docs/experiments/anomaly_results.md

A cell is a table, a share of missing values and a seed: 60 % of the rows to train, 40 % to judge, both with the same share of
anomalies; a seed decides the split, the values struck out (in both parts) and the initialisation. Ours are told the true share of
anomalies of the training part, as in the paper (plus ``--offsets``, and 0.01 where that would be less); the others need none for a
ranking. All see the columns scaled by the training part: ours by their own default, OneClassSVM and LOF standardised, isolation
forest does not mind; missing values are means of the training part for all. One JSON line per detector and cell; lines found in
--out are skipped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from anomaly_report import report
from common import add_result, key_of, machine, read_results
from sklearn.ensemble import IsolationForest
from sklearn.impute import SimpleImputer
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from robust_trainer.anomaly import RCA, RobustRealNVP, make_detector

TABLES = ("ionosphere", "breastw", "pima", "vowels", "letter", "cardio", "thyroid", "musk", "satellite", "mnist")
AUTOENCODERS = ("rca", "rca-ss", "ae", "vae", "rcva")  # rca-e is judged on rca's networks
FLOWS = ("robust-realnvp", "trim-realnvp", "realnvp")
OTHERS = ("iforest", "ocsvm", "lof")
#: RCA may be told no less: its range is (0, 0.5].
LEAST = 0.01


def other(name: str, seed: int) -> Any:
    """A detector of scikit-learn at its defaults, which scores by minus its ``score_samples``."""
    kinds = {"iforest": IsolationForest(random_state=seed), "ocsvm": OneClassSVM(), "lof": LocalOutlierFactor(novelty=True)}
    return make_pipeline(SimpleImputer(), StandardScaler(), kinds[name])


def split(path: Path, missing: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, rows to judge, and the truth of both."""
    table = np.load(path, allow_pickle=False)
    rows, truth = table["X"].astype(float), table["y"].astype(int)
    if missing:
        rows[np.random.default_rng(seed).random(rows.shape) < missing] = np.nan
    train, test, known, wanted = train_test_split(rows, truth, test_size=0.4, random_state=seed, stratify=truth)
    there = ~np.isnan(train).all(0)
    return train[:, there], test[:, there], known, wanted


def judged(name: str, data: tuple[np.ndarray, ...], told: float | str, seed: int, settings: dict[str, Any]) -> Any:
    """AUROC and average precision on the rows to judge, by name: of the detector, and for rca of rca-e too.

    Of ours also the share of these rows that is flagged, and the flags' precision and recall.
    """
    train, test, known, wanted = data
    start = time.perf_counter()
    if name in OTHERS:
        found = other(name, seed).fit(train)
        took = time.perf_counter() - start
        scores = {name: -found.score_samples(test)}
    else:
        ours = make_detector(name, contamination=told, random_state=seed, **settings).fit(train)
        took = time.perf_counter() - start
        scores = {name: ours.decision_function(test)}
        if name == "rca":
            scores["rca-e"] = ours.set_params(ensemble=0).decision_function(test)
    figures = lambda s: {"auroc": float(roc_auc_score(wanted, s)), "ap": float(average_precision_score(wanted, s))}  # noqa: E731
    found_figures = {key: {**figures(s), "seconds": took} for key, s in scores.items()}
    if name not in OTHERS:
        flagged = scores[name] > ours.threshold_
        hits = float((flagged & (wanted == 1)).sum())
        found_figures[name] |= {
            "flagged": float(flagged.mean()), "precision": hits / max(flagged.sum(), 1), "recall": hits / wanted.sum(),
            "true": float(wanted.mean()),
        }  # fmt: skip
    return found_figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Folder of ODDS tables, NAME.npz with X and y.")
    parser.add_argument("--tables", nargs="*", default=TABLES)
    parser.add_argument("--detectors", nargs="*", default=[*OTHERS, *FLOWS, *AUTOENCODERS])
    parser.add_argument("--missing", nargs="*", type=float, default=[0.0], help="Shares of values to strike out.")
    parser.add_argument("--offsets", nargs="*", default=["0"], help="Added to the true share that ours are told; auto: told none.")
    parser.add_argument("--seeds", type=int, default=10, help="Seeds 0, 1, ...")
    parser.add_argument("--flow_seeds", type=int, default=5, help="The same for the flows.")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="Settings of ours to change, e.g. epochs=200.")
    parser.add_argument("--out", type=Path, nargs="*", default=[Path("runs/anomaly.jsonl")])
    parser.add_argument("--report", action="store_true", help="Print the tables of --out as markdown.")
    args = parser.parse_args()
    if args.report:
        print(report([row for path in args.out for row in read_results(path)]))
        return
    if args.data is None:
        parser.error("--data is needed: a folder of ODDS tables")
    changes = {key: float(v) if "." in v or "e" in v else int(v) for key, _, v in (word.partition("=") for word in args.set)}
    out = args.out[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    done = {row["key"] for row in read_results(out)}
    for seed in range(max(args.seeds, args.flow_seeds)):
        for table in args.tables:
            for missing in args.missing:
                data = None
                for name in args.detectors:
                    for offset in (word if word == "auto" else float(word) for word in args.offsets):
                        if seed >= (args.flow_seeds if name in FLOWS else args.seeds) or (offset and name in OTHERS):
                            continue
                        kind = None if name in OTHERS else RobustRealNVP if name in FLOWS else RCA
                        known = {k: v for k, v in changes.items() if kind and k in kind._get_param_names()}
                        cell = {"table": table, "missing": missing, "offset": offset, "seed": seed, "detector": name, **known}
                        if key_of(cell) in done:
                            continue
                        data = data or split(args.data / f"{table}.npz", missing, seed)
                        true = float(data[2].mean())
                        told = offset if isinstance(offset, str) else min(max(true + offset, LEAST), 0.5)
                        for found, figures in judged(name, data, told, seed, known).items():
                            sizes = {"told": told, "rows": len(data[0]), "columns": data[0].shape[1]}
                            row = {"key": key_of(cell), **cell, "detector": found, **figures, **sizes}
                            add_result(out, {**row, "machine": {**machine(), "sklearn": sklearn.__version__}})
                            print(f"{table} missing {missing} seed {seed} offset {offset} {found}: {figures['auroc']:.3f} "
                                  f"({figures['seconds']:.0f} s)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
