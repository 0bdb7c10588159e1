"""Small batches: a sample ranked in its batch, as the papers do, against among the latest 128 samples.

PRL(L) told the true rate, on part of MNIST with a share of wrong labels, at batch sizes 8, 16 and 32. The figures are the mean
test accuracy over the last three epochs, and the share of the wrong labels that the ledger distrusts at the end; mean ± standard
deviation over seeds, and the differences seed by seed.

    python benchmarks/rank_among.py --data_dir <folder with mnist/train.parquet> --out runs/rank_among.jsonl
    python benchmarks/rank_among.py --report --out runs/rank_among.jsonl

One JSON line per finished run, appended to --out; runs found there are skipped, so a stopped command can be given again.
"""

from __future__ import annotations

import argparse
import math
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from common import add_result, cell, key_of, machine, machines_line, read_results
from label_noise import corrupted, images, run, split_noise

from robust_trainer import METHODS
from robust_trainer.selection.rules import RANK_AMONG

#: Of a run, beside noise, batch size, what is ranked among what and seed.
PROTOCOL = ("data", "model", "max_train", "max_test", "epochs", "ramp_epochs", "lr")
#: The test accuracy is the mean over as many last epochs.
LAST = 3


def run_settings(args: argparse.Namespace, noise: str, size: int, among: str, seed: int) -> dict[str, Any]:
    """All that fixes a run."""
    kind, rate = split_noise(noise)
    own = {"noise_rate": rate, "drop_ramp_epochs": args.ramp_epochs, "rank_among": among}
    protocol = {key: getattr(args, key) for key in PROTOCOL}
    return {"protocol": protocol, "noise": kind, "rate": rate, "batch_size": size, "settings": own, "seed": seed}


def run_all(args: argparse.Namespace) -> None:
    """Trains what --out does not have yet."""
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["key"] for row in read_results(out)}
    task = images(args)
    for seed, noise, size, among in product(args.seeds, args.noise, args.batch_sizes, RANK_AMONG):
        row = run_settings(args, noise, size, among, seed)
        if (key := key_of(row)) in done:
            continue
        args.batch_size = size
        train = corrupted(task, row["noise"], row["rate"], seed)
        figures = run(args, task, train, "prl", dict(METHODS["prl"](**row["settings"]).settings), seed)
        add_result(out, {"key": key, **row, **figures, "machine": machine()})
        print(
            f"{noise} batch {size} {among} seed {seed}: {accuracy(figures):.2f} % in {figures['cpu_seconds']:.0f} CPU s", flush=True
        )


def accuracy(row: dict[str, Any]) -> float:
    """The mean test accuracy over the last epochs, in percent."""
    return statistics.fmean(row["epochs"][-LAST:])


def report(rows: list[dict[str, Any]]) -> str:
    """The table in Markdown, with the paired differences and the machine beneath."""
    lines = [
        "| noise | batch | accuracy, batch | accuracy, recent | recent - batch | wrong found, batch | wrong found, recent |",
        "|---|---|---|---|---|---|---|",
    ]
    gaps: list[float] = []
    for noise, rate, size in sorted({(r["noise"], r["rate"], r["batch_size"]) for r in rows}):
        group = [r for r in rows if (r["noise"], r["rate"], r["batch_size"]) == (noise, rate, size)]
        by = {among: {r["seed"]: r for r in group if r["settings"]["rank_among"] == among} for among in RANK_AMONG}
        batch, recent = (by[among] for among in RANK_AMONG)
        paired = [accuracy(recent[s]) - accuracy(batch[s]) for s in sorted(batch.keys() & recent.keys())]
        gaps += paired
        columns = [cell([accuracy(r) for r in by[among].values()]) for among in RANK_AMONG] + [cell(paired)]
        columns += [cell([100 * r["detection"]["recall"] for r in by[among].values()], 1) for among in RANK_AMONG]
        lines.append(f"| {noise} {rate:g} | {size} | " + " | ".join(columns) + " |")
    if len(gaps) > 1:
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        better = sum(gap > 0 for gap in gaps)
        lines += ["", f"All pairs: recent - batch {statistics.fmean(gaps):+.2f} ± {error:.2f} (standard error, {len(gaps)} pairs); "
                  f"`recent` better in {better}."]  # fmt: skip
    lines += ["", f"Made on {machines_line(rows)}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="data set, a folder under --data_dir or a name on the hub")
    parser.add_argument("--data_dir", default=None)
    parser.add_argument("--model", default="plain-cnn")
    parser.add_argument("--max_train", type=int, default=2000)
    parser.add_argument("--max_test", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--noise", nargs="+", default=["symmetric:0.4", "pairflip:0.4"], help="kind:rate")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--ramp_epochs", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", default="runs/rank_among.jsonl")
    parser.add_argument("--report", action="store_true", help="print the table of --out and train nothing")
    parser.set_defaults(weight_decay=0.0, max_grad_norm=1.0, lr_scheduler_type="constant", bf16=False)
    args = parser.parse_args()
    if args.report:
        print(report(read_results(Path(args.out))))
        return
    torch.set_num_threads(args.threads)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    run_all(args)


if __name__ == "__main__":
    main()
