"""How well the audit and the detection baselines find samples that are known to be bad, and what training without them is worth.

    python benchmarks/detection.py --config benchmarks/configs/detection_digits.yaml
    python benchmarks/detection.py --config benchmarks/configs/detection_mnist.yaml --data <folder of train.parquet, test.parquet>
    python benchmarks/detection.py --report --out runs/detection_digits.jsonl runs/detection_mnist.jsonl

A cell is a corruption (a patch or blend trigger with the next class's label; symmetric, pairflip or instance noise), a rate and a
seed. Three trainings from scratch per cell: the robust one that the audit belongs to (--method, told the true rate), a standard
one, which the baselines' own papers work on, and the first stage of anti-backdoor learning for the loss isolation (a third of the
epochs). Every detector that needs no clean rows judges the robust run and the standard run; rules that take the rate are told the
true one. Then standard training on what the audit leaves, and on the truly clean samples. One JSON line per cell; cells found in
--out are skipped.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from backdoor import Examples, Images, to_images
from common import add_result, defaults_from_yaml, key_of, machine, machines_line, read_results
from sklearn.metrics import average_precision_score, roc_auc_score
from transformers import set_seed

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.audit import Audit, make_audit
from robust_trainer.corruptions import BlendTrigger, PatchTrigger, corrupt_labels, poison, trigger_all
from robust_trainer.data.load import label_names, load_data
from robust_trainer.detectors import DETECTORS, detect, evidence_of, isolation_recipe
from robust_trainer.models.zoo import build_model

TRIGGERS = {"patch": PatchTrigger(), "blend": BlendTrigger()}
KINDS = (*TRIGGERS, "symmetric", "pairflip", "instance")
PROTOCOL = ("data_name", "model", "train_size", "test_size", "epochs", "batch_size", "lr", "method")
FIGURES = ("precision", "recall", "auroc", "ap")
#: Rows of the tables: what judged, and on which run.
OURS, BLIND, WATCHED = "audit", "audit, images not looked at", "audit of the standard run"
#: Only meant for losses of the first stage of its own training.
OWN_RUN = "loss-isolation"
#: The detectors that need no clean rows.
JUDGES = {name: row for name, row in DETECTORS.items() if row.clean_rows is None}
NEEDS = {need for row in JUDGES.values() for need in row.needs}


# ---- one training -----------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, images: Images, names: list[str], seed: int, epochs: int, **given: Any) -> RobustTrainer:
    """Trains from scratch; given: method and its settings, or a recipe."""
    set_seed(seed)
    channels, side = images.pixels.shape[1:3]
    model, _ = build_model(args.model, names, channels=channels, image_size=side, from_scratch=True)
    recipe = given.pop("recipe", None)
    with tempfile.TemporaryDirectory() as folder:
        config = RobustConfig(
            output_dir=folder, **given, image_mean=[0.5], image_std=[0.5], ledger_predictions=True, num_train_epochs=epochs,
            per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=500, learning_rate=args.lr, seed=seed,
            lr_scheduler_type="linear", logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
        trainer = RobustTrainer(model=model, args=config, train_dataset=Examples(images), recipe=recipe)
        trainer.train()
    return trainer


@torch.no_grad()
def accuracy(trainer: RobustTrainer, images: Images) -> float:
    """On the images' labels, in [0, 1]."""
    model = trainer.model.eval()
    found = [model(pixel_values=part.to(trainer.args.device)).logits.argmax(-1).cpu() for part in images.pixels.split(1000)]
    return float((torch.cat(found) == images.labels).float().mean())


# ---- one cell ---------------------------------------------------------------------------------------------------------


def corrupted(data: datasets.Dataset, kind: str, rate: float, seed: int) -> datasets.Dataset:
    if kind in TRIGGERS:
        return poison(data, trigger=TRIGGERS[kind], rate=rate, seed=seed, keep_in_memory=True)
    return corrupt_labels(data, noise=kind, rate=rate, seed=seed)


def judged(truth: np.ndarray, scores: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    """Precision (of nothing: 0), recall, AUROC and average precision against the truth (N,)."""
    hits = float((truth & flagged).sum())
    return {
        "precision": hits / max(float(flagged.sum()), 1.0), "recall": hits / float(truth.sum()),
        "auroc": float(roc_auc_score(truth, scores)), "ap": float(average_precision_score(truth, scores)),
        "flagged": float(flagged.mean()),
    }  # fmt: skip


def of_audit(audit: Audit, truth: np.ndarray) -> dict[str, Any]:
    group = audit.group_numbers
    found = judged(truth, audit.column("suspicion"), audit.column("flagged").astype(bool))
    return {**found, "groups": np.bincount(group, minlength=5).tolist(), "noise_rate": audit.noise_rate}


def cell(
    args: argparse.Namespace, data: datasets.Dataset, test: datasets.Dataset, kind: str, rate: float, seed: int
) -> dict[str, Any]:  # fmt: skip
    """All figures of a cell."""
    rows = corrupted(data, kind, rate, seed)
    images, names = to_images(rows, 0.5, 0.5), label_names(data)
    assert images.corrupted is not None
    truth = images.corrupted.numpy()
    start = time.perf_counter()
    robust = train(args, images, names, seed, args.epochs, method=args.method, **told_rate(args.method, rate))
    seconds = {"robust": time.perf_counter() - start}
    standard = train(args, images, names, seed, args.epochs, method="standard")
    isolating = train(args, images, names, seed, max(args.epochs // 3, 1), recipe=isolation_recipe())

    def audit(trainer: RobustTrainer, look: bool = True) -> Audit:
        assert trainer.ledger is not None
        facts = {k: v for k, v in trainer.ledger.run.items() if k != "fingerprint"}  # the run's data are these rows as tensors
        return make_audit(trainer.ledger.rows(), facts, rows, look=look)

    start = time.perf_counter()
    ours = audit(robust)
    seconds["audit"] = time.perf_counter() - start
    found = {OURS: of_audit(ours, truth), BLIND: of_audit(audit(robust, False), truth), WATCHED: of_audit(audit(standard), truth)}
    early = isolating.ledger.rows()["last_score"] if isolating.ledger is not None else None
    for name, trainer in (("robust", robust), ("standard", standard)):
        evidence = replace(evidence_of(trainer, needs=NEEDS), losses=early)
        for row in JUDGES:
            if row != OWN_RUN or name == "standard":
                result = detect(row, evidence, rate=rate, seed=seed)
                found[row if row == OWN_RUN else f"{row} ({name} run)"] = judged(truth, result.scores, result.flagged)
    tests = {"clean": to_images(test, 0.5, 0.5)}
    if kind in TRIGGERS:
        tests["poison"] = to_images(trigger_all(test, TRIGGERS[kind], label_rule="multi-target", keep_in_memory=True), 0.5, 0.5)
    left = to_images(ours.clean(rows, force=True), 0.5, 0.5)
    kept = torch.from_numpy(~truth)
    pure = Images(images.pixels[kept], images.labels[kept])
    models = {
        "robust": robust, "standard": standard,
        "standard on the cleaned set": train(args, left, names, seed, args.epochs, method="standard"),
        "standard on the truly clean": train(args, pure, names, seed, args.epochs, method="standard"),
    }  # fmt: skip
    accuracies = {name: {split: accuracy(model, x) for split, x in tests.items()} for name, model in models.items()}
    return {"found": found, "accuracies": accuracies, "realised": float(truth.mean()), "seconds": seconds,
            "groups_told": ours.groups_told}  # fmt: skip


def told_rate(method: str, rate: float) -> dict[str, float]:
    """The rate, and the row's own ramp by name: in a short run it would else be shortened."""
    own = METHODS[method].settings
    ramp = "drop_ramp_epochs" if own.get("drop_ramp_steps") is None else "drop_ramp_steps"
    return {"noise_rate": rate, ramp: own[ramp]} if "noise_rate" in own else {}


def run_all(args: argparse.Namespace) -> None:
    out = Path(args.out[0])
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded = load_data(args.data, max_train_samples=args.train_size, max_test_samples=args.test_size)
    done = {row["key"] for row in read_results(out)}
    cells = [(kind, rate, seed) for seed in args.seeds for rate in args.rates for kind in args.kinds]
    for number, (kind, rate, seed) in enumerate(cells, 1):
        settings = {"protocol": {k: getattr(args, k) for k in PROTOCOL}, "kind": kind, "rate": rate, "seed": seed}
        if key_of(settings) in done:
            continue
        figures = cell(args, loaded["train"], loaded["test"], kind, rate, seed)
        sizes = {"n_train": len(loaded["train"]), "n_test": len(loaded["test"])}
        add_result(out, {"key": key_of(settings), **settings, **figures, **sizes, "machine": machine()})
        best = max((row for row in figures["found"] if not row.startswith("audit")), key=lambda r: figures["found"][r]["auroc"])
        ours, theirs = figures["found"][OURS], figures["found"][best]
        told = f"audit AUROC {ours['auroc']:.3f} precision {ours['precision']:.2f} recall {ours['recall']:.2f}"
        print(f"[{number}/{len(cells)}] {kind} {rate} seed {seed}: {told}; best other {best} {theirs['auroc']:.3f}", flush=True)


# ---- the report -------------------------------------------------------------------------------------------------------


def report(lines: list[dict[str, Any]]) -> str:
    """Markdown: per data set the means over all cells, the AUROC of each cell, and the accuracies after cleaning."""
    out: list[str] = []
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[str(sorted(line["protocol"].items()))].append(line)
    for members in groups.values():
        told, one = members[0]["protocol"], members[0]
        out += [
            f"### {told['data_name']}: {one['n_train']} training and {one['n_test']} test images, {told['model']}, "
            f"{told['epochs']} epochs, batch {told['batch_size']}, AdamW {told['lr']:g}; robust run: {told['method']}",
            "", machines_line(members), "",
            *_means(members), "", *_cells(members), "", *_cleaned(members), "",
        ]  # fmt: skip
    return "\n".join(out)


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else float("nan")


def _means(members: list[dict[str, Any]]) -> list[str]:
    kinds = list(dict.fromkeys(line["kind"] for line in members))
    rows = list(members[0]["found"])
    out = [f"Mean over {len(members)} cells ({', '.join(kinds)}; {len({m['rate'] for m in members})} rates; "
           f"{len({m['seed'] for m in members})} seeds), %:", "",
           "| | " + " | ".join(FIGURES) + " | " + " | ".join(f"AUROC {kind}" for kind in kinds) + " |",
           "|---" * (1 + len(FIGURES) + len(kinds)) + "|"]  # fmt: skip
    for row in sorted(rows, key=lambda r: -_mean([m["found"][r]["auroc"] for m in members])):
        figures = [_mean([m["found"][row][figure] for m in members]) for figure in FIGURES]
        figures += [_mean([m["found"][row]["auroc"] for m in members if m["kind"] == kind]) for kind in kinds]
        out.append(f"| {row} | " + " | ".join(f"{100 * value:.1f}" for value in figures) + " |")
    return out


def _cells(members: list[dict[str, Any]]) -> list[str]:
    out = ["Each cell, %: the audit (precision, recall, AUROC, estimated rate of wrong labels) and the best baseline by AUROC:", "",
           "| corruption | rate | precision | recall | AUROC | estimate | best baseline | its AUROC |",
           "|---" * 8 + "|"]  # fmt: skip
    for line in sorted(members, key=lambda m: (KINDS.index(m["kind"]), m["rate"], m["seed"])):
        ours = line["found"][OURS]
        best = max((row for row in line["found"] if not row.startswith("audit")), key=lambda r: line["found"][r]["auroc"])
        area = line["found"][best]["auroc"]
        mark = " **wins**" if area > ours["auroc"] + 0.0005 else ""
        shown = [100 * ours[k] for k in ("precision", "recall", "auroc", "noise_rate")]
        out.append(f"| {line['kind']} | {line['rate']:g} | " + " | ".join(f"{v:.1f}" for v in shown)
                   + f" | {best}{mark} | {100 * area:.1f} |")  # fmt: skip
    return out


def _cleaned(members: list[dict[str, Any]]) -> list[str]:
    names = list(members[0]["accuracies"])
    out = ["Test accuracy, % (clean; on triggered images against the true label), mean over the rates:", "",
           "| corruption | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]  # fmt: skip
    for kind in dict.fromkeys(line["kind"] for line in members):
        cells = []
        for name in names:
            found = [line["accuracies"][name] for line in members if line["kind"] == kind]
            cells.append(" / ".join(f"{100 * _mean([f[split] for f in found]):.1f}" for split in found[0]))
        out.append(f"| {kind} | " + " | ".join(cells) + " |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file with any of these settings")
    parser.add_argument("--data", default="digits", help="digits, or a folder of train.parquet and test.parquet")
    parser.add_argument("--data_name", help="how the data is called in the tables; default: the config's data")
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--method", default="prl-at-memory", help="of the robust run")
    parser.add_argument("--train_size", type=int)
    parser.add_argument("--test_size", type=int)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.05, 0.15, 0.25, 0.35, 0.45])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", nargs="+", default=["runs/detection.jsonl"])
    parser.add_argument("--report", action="store_true", help="print the tables of --out and stop")
    first = parser.parse_known_args()[0]
    if first.config:
        defaults_from_yaml(parser, first.config)
    args = parser.parse_args()
    args.out = [args.out] if isinstance(args.out, str) else args.out
    configured = parser.get_default("data")
    args.data_name = args.data_name or (configured if first.config else Path(args.data).name)
    datasets.disable_progress_bars()
    if args.report:
        print(report([line for path in args.out for line in read_results(Path(path))]))
        return
    run_all(args)


if __name__ == "__main__":
    main()
