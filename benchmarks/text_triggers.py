"""Triggers in texts: what the audit finds, and what MiniLM learns from the rows as they are, after ONION, and by auto.

    python benchmarks/text_triggers.py --data_dir D                # the audit alone: true- and false-positive rate
    python benchmarks/text_triggers.py --data_dir D --train        # and trainings: clean accuracy and attack success
    python benchmarks/text_triggers.py --data_dir D --onion        # what ONION takes out, by its built-in trigrams

D holds text/sst2 and text/clinc150 as parquet files, as for fine_tuning.py. Labels are all-to-one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import fine_tuning_networks as networks
import fine_tuning_tasks as tasks
import numpy as np
import torch
from transformers import set_seed

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.audit import audit_dataset
from robust_trainer.audit.groups import GROUPS, TRIGGERED
from robust_trainer.corruptions import TRIGGERS, poison, trigger_all
from robust_trainer.detectors import NGramModel, onion, word_suspicions
from robust_trainer.evaluation.accuracy import compute_accuracy, evaluate_backdoor

KINDS = ("clean", "word", "sentence", "syntax")


def poisoned(loaded: tasks.Loaded, kind: str, rate: float, rows: int, seed: int) -> Any:
    train = tasks.training_rows(loaded, rows, False, seed)
    if kind == "clean":
        return train
    return poison(train, trigger=TRIGGERS[kind].make(), rate=rate, label_rule="all-to-one", seed=seed, keep_in_memory=True)


def rates(flagged: np.ndarray, rows: Any) -> dict[str, float | None]:
    hit = np.asarray(rows["is_corrupted"][:]) if "is_corrupted" in rows.column_names else np.zeros(len(rows), dtype=bool)
    return {"tpr": float(flagged[hit].mean()) if hit.any() else None, "fpr": float(flagged[~hit].mean())}


def audited(loaded: tasks.Loaded, rows: Any, seed: int) -> dict[str, Any]:
    """What the audit says from MiniLM's features, which no label has touched."""
    start = time.process_time()
    found = audit_dataset(rows, networks.minilm(loaded.names).base_model, processing_class=loaded.tokenizer, seed=seed)
    carriers = found.column("group") == GROUPS[TRIGGERED]
    return {**rates(carriers, rows), "told": found.groups_told, "cpu_seconds": round(time.process_time() - start)}


def filtered(rows: Any, share: float = 0.05) -> Any:
    """Rows without the words that ONION takes out at the threshold at which as large a share of all words goes."""
    texts = rows["text"][:]
    model = NGramModel(texts)
    scores = np.concatenate([word_suspicions(text, model, i) for i, text in enumerate(texts)])
    return onion(rows, threshold=float(np.quantile(scores, 1 - share)))


def trained(loaded: tasks.Loaded, rows: Any, kind: str, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Clean accuracy and attack success of MiniLM, in shares."""
    train = loaded.part(filtered(rows) if method == "onion" else rows)
    with tempfile.TemporaryDirectory() as folder:
        set_seed(args.seed)
        config = RobustConfig(
            output_dir=folder, method="auto" if method == "auto" else None, num_train_epochs=args.epochs,
            learning_rate=loaded.task.lr, per_device_train_batch_size=32, per_device_eval_batch_size=128, save_strategy="no",
            report_to=[], logging_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(), seed=args.seed,
            dataloader_pin_memory=False, remove_unused_columns=False,
        )  # fmt: skip
        trainer = RobustTrainer(
            model=loaded.model(), args=config, train_dataset=train, data_collator=loaded.collate, compute_metrics=compute_accuracy
        )
        start = time.process_time()
        trainer.train()
        seconds = round(time.process_time() - start)
        test = loaded.part(loaded.test)
        if kind == "clean":
            figures: dict[str, Any] = {"clean_accuracy": trainer.predict(test).metrics["test_accuracy"]}
        else:
            stamped = trigger_all(loaded.test, TRIGGERS[kind].make(), label_rule="all-to-one", keep_in_memory=True)
            figures = evaluate_backdoor(trainer, test, loaded.part(stamped))
        if method == "auto":
            figures |= rates(np.asarray(trainer.ledger.to_dataset()["carrier"][:]).astype(bool), rows)
    return {**figures, "cpu_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "clinc150"], choices=["sst2", "clinc150"])
    parser.add_argument("--triggers", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--test_rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=["none", "onion", "auto"], choices=["none", "onion", "auto"])
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--onion", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("text_triggers.jsonl"))
    args = parser.parse_args()
    for name in args.tasks:
        loaded = tasks.load(tasks.TASKS[name], args.data_dir, args.test_rows)
        for kind in args.triggers:
            rows = poisoned(loaded, kind, args.rate, args.rows, args.seed)
            cell = {"task": name, "trigger": kind, "rate": args.rate, "rows": len(rows), "seed": args.seed}
            if args.onion:
                words = np.array([bool(words) for words in filtered(rows)["removed_words"]])
                results = [{"method": "onion", **rates(words, rows)}]
            elif args.train:
                results = ({"method": m, "epochs": args.epochs, **trained(loaded, rows, kind, m, args)} for m in args.methods)
            else:
                results = [{"method": "audit", **audited(loaded, rows, args.seed)}]
            for result in results:
                print(json.dumps({**cell, **result}), flush=True)
                with args.output.open("a") as file:
                    file.write(json.dumps({**cell, **result}) + "\n")


if __name__ == "__main__":
    main()
