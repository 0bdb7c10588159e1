"""An audit of a data set without any training: how well it finds planted corruption, and what it costs.

    python benchmarks/dataset_audit.py --data_dir <data>                          # CIFAR-10, CLINC150 and SST-2, six corruptions
    python benchmarks/dataset_audit.py --data_dir <data> --tasks cifar10 --corruptions symmetric40 --rows 10000 --seeds 0

Tasks, networks and corruptions are those of fine_tuning.py: CIFAR-10 at 64 pixels in EfficientNet-Lite0, texts in MiniLM. The
audit is told nothing. With --side 128 the same images are enlarged, which a network of large images needs. A row per cell: the
area under the ROC curve of suspicion against the truth, precision and recall of the flags, the share of clean rows that is
flagged, the true and the estimated rate, and seconds (of the clock, and of all cores).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import datasets
import fine_tuning_networks as networks
import fine_tuning_tasks as tasks
import numpy as np
import torch
from common import machine, machine_line
from sklearn.metrics import roc_auc_score
from transformers.utils import logging

from robust_trainer import audit_dataset
from robust_trainer.audit import Audit
from robust_trainer.models.zoo import PlainProcessor

CORRUPTIONS = ("clean", "tail", "symmetric20", "symmetric40", "pairflip30", "instance30", "patch5", "patch10", "patch25", "blend25")
ROWS = {"cifar10": 2000, "clinc150": 2000, "sst2": 2000}


def network(loaded: tasks.Loaded, side: int = 0) -> dict[str, Any]:
    """What `audit_dataset` takes for a task's pretrained network, which sees images at so many pixels a side; 0: the task's."""
    if loaded.task.kind == "text":
        return {"model": str(networks.minilm_folder()), "max_length": 64}
    side = side or loaded.task.side
    mean, std = loaded.task.scale
    processor = PlainProcessor(size={"height": side, "width": side}, image_mean=[mean] * 3, image_std=[std] * 3)
    return {"model": loaded.model(), "processing_class": processor}


def cell(rows: datasets.Dataset, audit: Audit) -> list[str]:
    """The figures of an audit against the truth."""
    corrupted = np.asarray(rows["is_corrupted"][:]) if "is_corrupted" in rows.column_names else np.zeros(len(rows), dtype=bool)
    flagged, suspicion = audit.column("flagged").astype(bool), audit.column("suspicion")
    area = f"{roc_auc_score(corrupted, suspicion):.3f}" if corrupted.any() else "-"
    precision = f"{100 * corrupted[flagged].mean():.1f}" if flagged.any() and corrupted.any() else "-"
    recall = f"{100 * flagged[corrupted].mean():.1f}" if corrupted.any() else "-"
    rate = "none" if audit.noise_rate is None else f"{100 * audit.noise_rate:.1f}"
    low, high = audit.noise_interval or (0.0, 1.0)
    wrong = f"{100 * flagged[~corrupted].mean():.1f}"
    return [area, precision, recall, wrong, f"{100 * corrupted.mean():.1f}", f"{rate} ({100 * low:.0f} to {100 * high:.0f})"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="Folder with cifar10/, text/clinc150/ and text/sst2/ of parquet files.")
    parser.add_argument("--tasks", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--corruptions", nargs="+", default=list(CORRUPTIONS), choices=CORRUPTIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", type=int, help="Default: 2,000.")
    parser.add_argument("--side", type=int, default=0, help="Pixels a side that the network sees of images; 0: 64.")
    parser.add_argument("--look", type=int, default=1, help="0: inputs are not looked at.")
    parser.add_argument("--out", type=Path, help="The table goes here, as Markdown.")
    args = parser.parse_args()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    heading = ["task", "corruption", "seed", "rows", "AUROC", "precision %", "recall %", "clean rows flagged %", "true rate %",
               "estimated rate % (interval)", "seconds", "CPU seconds"]  # fmt: skip
    lines = [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading))]
    print(machine_line(machine()), f"{torch.get_num_threads()} threads", *lines, sep="\n", flush=True)
    for name in args.tasks:
        loaded = tasks.load(tasks.TASKS[name], args.data_dir, 10)
        for corruption in args.corruptions:
            if tasks.skipped(loaded.task, corruption, "none"):
                continue
            for seed in args.seeds:
                rows = tasks.corrupted_rows(loaded, corruption, args.rows or ROWS[name], seed)
                start, before = time.perf_counter(), time.process_time()
                audit = audit_dataset(rows, look=bool(args.look), seed=seed, **network(loaded, args.side))
                seconds = [f"{time.perf_counter() - start:.1f}", f"{time.process_time() - before:.1f}"]
                row = [name, corruption, str(seed), f"{len(rows)}", *cell(rows, audit), *seconds]
                lines.append(f"| {' | '.join(row)} |")
                print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join([machine_line(machine()), "", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
