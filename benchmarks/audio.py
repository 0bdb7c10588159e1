"""Spoken digits: a small network on log-mel spectrograms, with wrong labels and with a tone or a background as a trigger.

    python benchmarks/audio.py --dataset FSDD --output rows.jsonl

FSDD is a folder with train/0 ... train/9 and test/0 ... test/9 of WAV files, for instance of the free spoken digit dataset, whose
recordings 0 to 4 of each speaker and digit are its test set; docs/guides/audio.md says how to make it. A cell that the output file
holds is not run again; --report prints the table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers import ASTFeatureExtractor, set_seed

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.corruptions import BackgroundTrigger, ToneTrigger, corrupt_labels, poison, trigger_all
from robust_trainer.data.audio import AudioTransform, undecoded_audio
from robust_trainer.data.load import load_data
from robust_trainer.evaluation.accuracy import compute_accuracy, evaluate_backdoor

RATE, BINS, FRAMES, CLASSES = 8000, 40, 64, 10
TRIGGERS = {"tone10": ToneTrigger(3000.0, 0.1, -20.0, "anywhere"), "background10": BackgroundTrigger(10.0)}
CORRUPTIONS = ("clean", "symmetric40", *TRIGGERS)
METHODS: dict[str, dict[str, Any]] = {"none": {}, "prl": {"noise_rate": None}, "auto": {}}


class SpectrogramCNN(nn.Module):
    """Four convolutions on log-mel spectrograms (B, frames, bands), a mean over time and bands, and a linear head."""

    main_input_name = "input_values"

    def __init__(self, width: int = 12):
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((1, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 4 * width)):
            layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)]
        self.body, self.head = nn.Sequential(*layers[:-1]), nn.Linear(4 * width, CLASSES)

    def forward(self, input_values: Tensor, labels: Tensor | None = None, **truth: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.body(input_values.unsqueeze(1)).mean((2, 3)))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def extractor(sounds: list[np.ndarray] | None = None) -> ASTFeatureExtractor:
    """Log-mel spectrograms of 40 bands every 10 ms, normalised by the mean and deviation of some sounds."""
    plain = ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=BINS, max_length=FRAMES, do_normalize=False)
    if sounds is None:
        return plain
    values = np.stack(plain(sounds, sampling_rate=RATE)["input_values"])
    return ASTFeatureExtractor(
        sampling_rate=RATE, num_mel_bins=BINS, max_length=FRAMES, mean=float(values.mean()), std=float(values.std())
    )


def corrupted(train: datasets.Dataset, name: str, seed: int) -> tuple[datasets.Dataset, float]:
    """The training rows of a cell, and the share of them that is corrupted."""
    if name in TRIGGERS:
        rows = poison(train, trigger=TRIGGERS[name], rate=0.1, label_rule="all-to-one", seed=seed, keep_in_memory=True)
        return rows, 0.1
    rate = {"clean": 0.0, "symmetric40": 0.4}[name]
    return (corrupt_labels(train, "symmetric", rate=rate, seed=seed, keep_in_memory=True) if rate else train), rate


def prepared(rows: datasets.Dataset, transform: AudioTransform) -> datasets.Dataset:
    """The rows as the network takes them, made once."""
    kept = [c for c in ("is_corrupted", "clean_label", "attack_target") if c in rows.column_names]
    made = transform(undecoded_audio(rows.with_format(None))[:])
    columns = {"input_values": [np.asarray(v) for v in made["input_values"]], "labels": made["labels"]}
    return datasets.Dataset.from_dict({**columns, **{c: rows[c][:] for c in kept}}).with_format("torch")


def run(args: argparse.Namespace, data: Any, corruption: str, method: str) -> dict[str, Any]:
    """One training; its figures in percent."""
    seed = args.seed
    order = np.random.default_rng(seed).permutation(len(data["train"]))[: args.rows]
    train, rate = corrupted(data["train"].select(order), corruption, seed)
    transform = AudioTransform(extractor(AudioTransform(extractor()).waves(undecoded_audio(train)["audio"])))
    test = prepared(data["test"], transform)
    settings = dict(METHODS[method])
    if "noise_rate" in settings:
        settings["noise_rate"] = rate  # told: prl needs it
    with tempfile.TemporaryDirectory() as folder:
        set_seed(seed)
        config = RobustConfig(
            output_dir=folder, method=None if method == "none" else method, num_train_epochs=args.epochs, learning_rate=3e-3,
            lr_scheduler_type="cosine", warmup_steps=20, per_device_train_batch_size=32, per_device_eval_batch_size=256,
            save_strategy="no", report_to=[], logging_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False, remove_unused_columns=False, seed=seed, **settings,
        )  # fmt: skip
        trainer = RobustTrainer(
            model=SpectrogramCNN(), args=config, train_dataset=prepared(train, transform), processing_class=transform.processor,
            compute_metrics=compute_accuracy,
        )  # fmt: skip
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        row: dict[str, Any] = {"corruption": corruption, "method": method, "rows": len(train), "epochs": args.epochs, "seed": seed}
        if corruption in TRIGGERS:
            stamped = trigger_all(data["test"], TRIGGERS[corruption], label_rule="all-to-one", keep_in_memory=True)
            row |= evaluate_backdoor(trainer, test, prepared(stamped, transform))
        else:
            row["clean_accuracy"] = trainer.predict(test).metrics["test_accuracy"]
        row["cpu_seconds"] = round(seconds)
        if trainer.ledger is not None:
            rows = trainer.ledger.to_dataset()
            bad = np.asarray(train["is_corrupted"][:]) if "is_corrupted" in train.column_names else np.zeros(len(train), bool)
            if bad.any():
                row["auroc"] = (trainer.ledger.detection() or {}).get("auroc")
            if method == "auto":
                flagged = np.asarray(rows["carrier"][:]).astype(bool) | (np.asarray(rows["label_wrong"][:]) > 0.5)
                row |= {"tpr": float(flagged[bad].mean()) if bad.any() else None, "fpr": float(flagged[~bad].mean())}
    return row


def report(rows: list[dict[str, Any]]) -> str:
    """The table of all cells, in percent."""
    shown = (("clean_accuracy", "accuracy"), ("attack_success_rate", "attack success"), ("auroc", "AUROC"), ("tpr", "found"),
             ("fpr", "falsely doubted"))  # fmt: skip
    heads = ["corruption", "method", *(name for _, name in shown), "CPU s"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [f"{100 * row[key]:.1f}" if row.get(key) is not None else "" for key, _ in shown]
        lines.append(f"| {row['corruption']} | {row['method']} | {' | '.join(cells)} | {row['cpu_seconds']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="a folder or file of spoken digits at 8 kHz, as load_data takes it")
    parser.add_argument("--output", type=Path, default=Path("audio_rows.jsonl"))
    parser.add_argument("--corruptions", nargs="+", default=list(CORRUPTIONS), choices=CORRUPTIONS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="print the table of what is there")
    args = parser.parse_args()
    done = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    if args.report:
        print(report(done))
        return
    if args.dataset is None:
        raise SystemExit("--dataset is missing: give a folder with train/0 ... test/9 of WAV files.")
    data = load_data(args.dataset)
    for corruption in args.corruptions:
        for method in args.methods:
            cell = {"corruption": corruption, "method": method, "rows": args.rows, "epochs": args.epochs, "seed": args.seed}
            if any(cell.items() <= row.items() for row in done) or (method == "prl" and corruption == "clean"):
                continue
            row = run(args, data, corruption, method)
            done.append(row)
            with args.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    print(report(done))


if __name__ == "__main__":
    main()
