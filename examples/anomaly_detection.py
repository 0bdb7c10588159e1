"""Anomaly detection on a table: detectors fitted to 60 % of the rows, scores of the other 40 %, ROC and precision-recall curves.

python examples/anomaly_detection.py                  (two moons with uniform anomalies, cells missing, no network; seconds)
python examples/anomaly_detection.py table.csv --label_column is_fraud --exclude name --detectors rca ae
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas
import torch
from sklearn.datasets import make_moons
from sklearn.model_selection import train_test_split

from robust_trainer.anomaly import DETECTORS, make_detector, measure, plot_curves, plot_scores, read_table, save_detector
from robust_trainer.cli import make_parser, parse


@dataclass
class DetectionOptions:
    """What is read and written, and by which detectors."""

    data: str | None = field(default=None, metadata={"help": "A .csv, .parquet or .npz file. Default: one made here."})
    label_column: str = field(default="auto", metadata={"help": "Column of 0 and 1, for comparison alone; auto or none."})
    exclude: list[str] = field(default_factory=list, metadata={"help": "Columns to leave out."})
    detectors: list[str] = field(default_factory=lambda: ["rca", "robust-realnvp"], metadata={"help": ", ".join(DETECTORS)})
    contamination: float = field(default=0.1, metadata={"help": "The share of abnormal rows, a guess."})
    epochs: int | None = field(default=None, metadata={"help": "Passes over the rows. Default: the detector's own."})
    seed: int = field(default=0, metadata={"help": "Seed of the split and of the detectors."})
    output_dir: str = field(default="runs/anomaly_detection", metadata={"help": "Folder to write to."})


def two_moons(path: Path, rows: int = 1000, abnormal: int = 100, missing: float = 0.02) -> Path:
    """Writes a table of two moons with anomalies spread over the plane around them, and returns its path."""
    draw = np.random.default_rng(0)
    points = np.concatenate([make_moons(rows - abnormal, noise=0.08, random_state=0)[0],
                             draw.uniform((-2.0, -1.5), (3.0, 2.0), (abnormal, 2))])  # fmt: skip
    points[draw.random(points.shape) < missing] = np.nan
    truth = (np.arange(rows) >= rows - abnormal).astype(int)
    pandas.DataFrame({"east": points[:, 0], "north": points[:, 1], "anomaly": truth}).to_csv(path, index=False)
    return path


def main() -> None:
    words = [f"--data={word}" if i == 0 and not word.startswith("-") else word for i, word in enumerate(sys.argv[1:])]
    (options,) = parse(make_parser("anomaly_detection", [DetectionOptions], __doc__, first="DATA"), words)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the networks are small: a second thread costs more than it brings

    # 1. the table: numbers, NaN where a cell is missing, and the truth, which no detector is fitted with
    table = read_table(options.data or two_moons(folder / "moons.csv"), label_column=options.label_column, exclude=options.exclude)
    print(f"{len(table.rows)} rows of {len(table.names)} columns", *table.notes, sep="\n")
    old, new, _, held_out = train_test_split(table.features, np.arange(len(table.rows)), test_size=0.4, random_state=options.seed)
    truth = None if table.truth is None else table.truth[held_out]

    # 2. fit and score
    columns, scores, thresholds = {"row": held_out, **({} if truth is None else {"truth": truth})}, {}, {}
    passes = {} if options.epochs is None else {"epochs": options.epochs}
    for name in options.detectors:
        detector = make_detector(name, contamination=options.contamination, random_state=options.seed, **passes).fit(old)
        scores[name], thresholds[name] = detector.decision_function(new), detector.threshold_
        predicted = (scores[name] > detector.threshold_).astype(int)  # as detector.predict(new)
        columns |= {f"{name}_score": scores[name], f"{name}_predicted": predicted}
        told = {"abnormal": predicted.mean(), **(measure(truth, scores[name], predicted) or {})}
        print(f"{name}: " + ", ".join(f"{key} {100 * value:.1f} %" for key, value in told.items()))
        save_detector(detector, folder / name)  # load_detector(folder) scores new rows

    # 3. scores to parquet, curves to a picture; without a truth the last detector's scores as a histogram
    pandas.DataFrame(columns).to_parquet(folder / "scores.parquet", index=False)
    if truth is not None and 0 < truth.mean() < 1:
        plot_curves(truth, scores, folder / "curves.png", thresholds=thresholds)
    else:
        plot_scores(scores[name], thresholds[name], folder / "curves.png", name=name)


if __name__ == "__main__":
    main()
