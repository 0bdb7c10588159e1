"""Table 7 of Backdoor: the robust training against spectral signatures and fine-pruning, clean and poison accuracy per rate.

    python benchmarks/repair.py --config benchmarks/configs/detection_mnist.yaml --data <folder of train.parquet, test.parquet>
    python benchmarks/repair.py --report --out runs/repair_mnist.jsonl

Backdoor, "Defending backdoor data poisoning attacks using noisy label defense algorithm", sec. 7.5. Spectral signatures: standard
training, then the 1.5 * rate share of each class with the highest scores (half of a class at most) is removed and training starts
anew. Fine-pruning: the standard network is pruned and fine-tuned on 5 % clean samples. Beside them what this project adds: standard
training on what the audit of the robust run leaves. Poison accuracy: triggered test images against their true labels.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
import torch
from backdoor import Examples, Images, to_images
from common import add_result, defaults_from_yaml, key_of, machine, machines_line, read_results
from detection import PROTOCOL, TRIGGERS, accuracy, corrupted, told_rate, train
from transformers import TrainingArguments

from robust_trainer.audit import make_audit
from robust_trainer.corruptions import trigger_all
from robust_trainer.data.load import label_names, load_data
from robust_trainer.detectors import detect, evidence_of, fine_prune

SPECTRAL, CLEANED = "spectral signatures", "standard on what the audit leaves"
PRUNING = {"fine-pruning, last conv": "last-conv", "fine-pruning, last linear": "last-linear"}
#: Backdoor table 7 (CIFAR-10, three seeds): (clean, poison) at rates 0.15, 0.25, 0.35, 0.45.
PAPER = {
    ("patch", "robust"): ((80.25, 80.15), (78.22, 78.14), (75.10, 75.04), (58.90, 58.90)),
    ("patch", SPECTRAL): ((80.32, 35.90), (80.40, 29.02), (72.01, 51.59), (24.01, 24.10)),
    ("patch", "fine-pruning, last conv"): ((80.34, 56.67), (79.50, 60.85), (79.10, 56.84), (78.73, 44.21)),
    ("blend", "robust"): ((67.97, 68.48), (71.28, 71.87), (74.12, 74.32), (61.78, 54.19)),
    ("blend", SPECTRAL): ((83.60, 70.74), (81.23, 75.40), (76.63, 66.87), (62.53, 41.32)),
    ("blend", "fine-pruning, last conv"): ((79.53, 34.38), (79.32, 13.94), (78.28, 23.71), (76.70, 16.36)),
}
RATES = (0.15, 0.25, 0.35, 0.45)


def cell(args: argparse.Namespace, data: datasets.Dataset, tests: dict[str, Images], kind: str, rate: float, seed: int) -> Any:
    """Clean and poison accuracy of every defence, in [0, 1]."""
    rows = corrupted(data, kind, rate, seed)
    images, names = to_images(rows, 0.5, 0.5), label_names(data)
    assert images.corrupted is not None
    robust = train(args, images, names, seed, args.epochs, method=args.method, **told_rate(args.method, rate))
    standard = train(args, images, names, seed, args.epochs, method="standard")
    assert robust.ledger is not None
    facts = {k: v for k, v in robust.ledger.run.items() if k != "fingerprint"}  # the run's data are these rows as tensors
    left = to_images(make_audit(robust.ledger.rows(), facts, rows).clean(rows, force=True), 0.5, 0.5)
    kept = torch.from_numpy(~detect("spectral", evidence_of(standard), rate=rate, seed=seed).flagged)
    signed = Images(images.pixels[kept], images.labels[kept])
    models: dict[str, Any] = {
        "standard": standard, "robust": robust, SPECTRAL: train(args, signed, names, seed, args.epochs, method="standard"),
        CLEANED: train(args, left, names, seed, args.epochs, method="standard"),
    }  # fmt: skip
    pure = Images(images.pixels[~images.corrupted], images.labels[~images.corrupted])
    share = args.clean_share * len(images.labels) / len(pure.labels)  # 5 % of all training samples, as in the paper
    pruned = {}
    for name, rule in PRUNING.items():
        with tempfile.TemporaryDirectory() as folder:
            tuning = TrainingArguments(
                output_dir=folder, num_train_epochs=args.tuning_epochs, per_device_train_batch_size=args.batch_size,
                learning_rate=args.lr, lr_scheduler_type="linear", logging_strategy="no", save_strategy="no", report_to=[],
                disable_tqdm=True, seed=seed, dataloader_pin_memory=torch.cuda.is_available(),
            )  # fmt: skip
            found = fine_prune(standard.model, Examples(pure), tuning, rule=rule, clean_fraction=share, seed=seed)
        pruned[name] = {"pruned": len(found.pruned), "units": found.units, "rows": len(found.rows)}
        models[name] = type("Repaired", (), {"model": found.model, "args": standard.args})
    told = {name: {split: accuracy(model, x) for split, x in tests.items()} for name, model in models.items()}
    return {"accuracies": told, "pruned": pruned, "left": len(left.labels), "left_spectral": int(kept.sum())}


def report(lines: list[dict[str, Any]]) -> str:
    """The table in Markdown: clean / poison accuracy per rate, the paper's in brackets."""
    told, one = lines[0]["protocol"], lines[0]
    cells: dict[tuple[str, str, float], list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        for name, found in line["accuracies"].items():
            cells[line["kind"], name, line["rate"]].append((100 * found["clean"], 100 * found["poison"]))
    rates = sorted({line["rate"] for line in lines})
    out = [
        f"{told['data_name']}: {one['n_train']} training and {one['n_test']} test images, {told['model']}, {told['epochs']} "
        f"epochs, {len({line['seed'] for line in lines})} seeds, last epoch; robust: {told['method']} [paper: PRL-AT]. Clean / "
        "poison accuracy, %; in brackets Backdoor table 7 (CIFAR-10, another network, three seeds).",
        "", machines_line(lines), "",
        "| | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|",
    ]  # fmt: skip
    for kind in TRIGGERS:
        for name in dict.fromkeys(n for k, n, _ in cells if k == kind):
            row = []
            for rate in rates:
                found = cells[kind, name, rate]
                shown = " / ".join(f"{statistics.fmean(v):.1f}" for v in zip(*found)) if found else "–"
                if (kind, name) in PAPER and rate in RATES:
                    shown += " [{:.1f} / {:.1f}]".format(*PAPER[kind, name][RATES.index(rate)])
                row.append(shown)
            out.append(f"| {kind}: {name} | " + " | ".join(row) + " |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file of benchmarks/detection.py")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data_name")
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--method", default="prl-at-memory")
    parser.add_argument("--train_size", type=int)
    parser.add_argument("--test_size", type=int)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--clean_share", type=float, default=0.05, help="clean samples for fine-pruning, of the training set")
    parser.add_argument("--tuning_epochs", type=int, default=20)
    parser.add_argument("--out", help="JSON lines; default: runs/repair_<data>.jsonl")
    parser.add_argument("--report", action="store_true", help="print the table of --out and stop")
    first = parser.parse_known_args()[0]
    if first.config:
        defaults_from_yaml(parser, first.config)
        parser.set_defaults(out=None)
    args = parser.parse_args()
    args.data_name = args.data_name or (parser.get_default("data") if args.config else Path(args.data).name)
    out = Path(args.out or f"runs/repair_{args.data_name}.jsonl")
    datasets.disable_progress_bars()
    if args.report:
        print(report(read_results(out)))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded = load_data(args.data, max_train_samples=args.train_size, max_test_samples=args.test_size)
    done = {row["key"] for row in read_results(out)}
    for seed in args.seeds:
        for rate in args.rates:
            for kind, trigger in TRIGGERS.items():
                protocol = {k: getattr(args, k) for k in (*PROTOCOL, "clean_share", "tuning_epochs")}
                settings = {"protocol": protocol, "kind": kind, "rate": rate, "seed": seed}
                if key_of(settings) in done:
                    continue
                triggered = trigger_all(loaded["test"], trigger, label_rule="multi-target", keep_in_memory=True)
                tests = {"clean": to_images(loaded["test"], 0.5, 0.5), "poison": to_images(triggered, 0.5, 0.5)}
                figures = cell(args, loaded["train"], tests, kind, rate, seed)
                sizes = {"n_train": len(loaded["train"]), "n_test": len(loaded["test"])}
                add_result(out, {"key": key_of(settings), **settings, **figures, **sizes, "machine": machine()})
                told = ", ".join(f"{n} {100 * f['clean']:.1f}/{100 * f['poison']:.1f}" for n, f in figures["accuracies"].items())
                print(f"{kind} {rate} seed {seed}: {told}", flush=True)


if __name__ == "__main__":
    main()
