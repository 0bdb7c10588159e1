"""Seconds and memory of an audit of many samples: the table, the report, the model card, the parquet file, the cleaned data set.

    python benchmarks/audit_cost.py                          # 1,000,000 rows, 100 classes, texts
    python benchmarks/audit_cost.py --rows 100000 --images   # with 28x28 images

The ledger's columns are drawn: a fifth of the labels is wrong. Images or texts are looked at as in any audit.
"""

from __future__ import annotations

import argparse
import io
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from common import machine, machine_line
from PIL import Image

from robust_trainer.audit import make_audit, write_audit_report, write_cleaned, write_model_card


def drawn(rows: int, classes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns as a ledger has them after ten epochs."""
    rng = np.random.default_rng(seed)
    true, wrong = rng.integers(0, classes, rows), rng.random(rows) < 0.2
    other = (true + 1 + rng.integers(0, classes - 1, rows)) % classes
    label, rival = np.where(wrong, other, true), np.where(wrong, true, other)
    area = np.where(wrong, -3.0, 4.0) + rng.normal(0, 1.5, rows)
    score = 1.0 / (1.0 + np.exp(area))
    return {
        "index": np.arange(rows), "label": label.astype(np.int32), "rival": rival.astype(np.int32),
        "rival_confidence": np.where(wrong, 0.9, 0.1).astype(np.float32), "aum": area.astype(np.float32),
        "margin": np.tanh(area / 2).astype(np.float32), "forgetting": rng.integers(-1, 5, rows).astype(np.int32),
        "seen": np.full(rows, 10, np.int32), "kept": rng.integers(0, 11, rows).astype(np.int32), "distrusted": wrong,
        **{name: score.astype(np.float32) for name in ("last_score", "mean_score", "ema_score")}, "is_corrupted": wrong,
    }  # fmt: skip


def data_of(label: np.ndarray, classes: int, images: bool) -> datasets.Dataset:
    """A data set in memory, with a text or a grey 28x28 image in each row."""
    rng = np.random.default_rng(1)
    names = [f"class {i}" for i in range(classes)]
    rows: dict[str, Any] = {"label": label}
    features: dict[str, Any] = {"label": datasets.ClassLabel(names=names)}
    if images:

        def png(pixels: np.ndarray) -> bytes:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            return buffer.getvalue()

        pool = [png(rng.integers(0, 255, (28, 28), dtype=np.uint8)) for _ in range(1000)]
        rows["image"] = [{"bytes": pool[i], "path": None} for i in rng.integers(0, 1000, len(label))]
        features["image"] = datasets.Image()
    else:
        words = np.array([f"word{i}" for i in range(5000)])
        pool = [" ".join(words[rng.integers(0, 5000, 12)]) for _ in range(10_000)]
        rows["text"] = [pool[i] for i in rng.integers(0, 10_000, len(label))]
        features["text"] = datasets.Value("string")
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--images", action="store_true", help="images instead of texts")
    args = parser.parse_args()
    columns = drawn(args.rows, args.classes)
    data = data_of(columns["label"], args.classes, args.images)
    run = {"method": "prl-at-memory", "settings": {}, "names": data.features["label"].names, "label_column": "label"}
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        place, start = Path(folder), time.perf_counter()

        def lap(name: str) -> None:
            took[name] = time.perf_counter() - start - sum(took.values())

        audit = make_audit(columns, run, data)
        lap("audit")
        audit.to_parquet(place / "audit.parquet")
        lap("parquet")
        size = write_audit_report(place / "report.html", audit, data=data).stat().st_size
        lap("report")
        write_model_card(place / "MODEL_CARD.md", audit)
        lap("card")
        write_cleaned(place / "cleaned", audit, data)
        lap("cleaned data set")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{args.rows:,} rows, {args.classes} classes, {'images' if args.images else 'texts'}; {machine_line(machine())}")
    print("; ".join(f"{name} {value:.1f} s" for name, value in took.items()))
    print(f"in all {sum(took.values()):.1f} s, report {size / 1e6:.2f} MB, peak memory of the process {peak:.1f} GiB")
    print(audit.groups_told)


if __name__ == "__main__":
    main()
