"""What benchmarks/matrix.py does with a cell: trainings, judgements of the rows on one plain network, repairs of that network."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import key_of
from dataset_audit import network as audit_network
from fine_tuning import make_trainer, predict
from fine_tuning_report import CLEAN_ONLY, PLAIN
from fine_tuning_tasks import Loaded, Part
from matrix_cells import NONE, Cell, Data
from sklearn.metrics import roc_auc_score
from transformers import TrainingArguments, set_seed

from robust_trainer import METHODS, audit_dataset
from robust_trainer.audit import Audit
from robust_trainer.data.fingerprint import fingerprint
from robust_trainer.detectors import DETECTORS, REPAIRS, collect_evidence, detect, isolation_recipe, repair
from robust_trainer.evaluation.robustness import evaluate_robustness

#: The audit of the plain run, and that of the data set by a network that was not trained on it (from scratch: by its pixels).
AUDIT, AUDIT_DATASET = "audit", "audit-dataset"
#: After a detector's name: plain training on the rows that it leaves.
RETRAIN = "+retrain"
#: A training of its own gives these their losses: a third of the epochs with local gradient ascent.
EARLY = tuple(name for name, row in DETECTORS.items() if "losses" in row.needs)
#: Repairs with other settings than their own: name -> (repair, settings). The second is fine-pruning as BackdoorBench has it.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"fine-pruning last-linear": ("fine-pruning", {"rule": "last-linear"})}
#: Clean rows that detectors and repairs which need some are given, as a share of the training rows; how often a repair visits them.
CLEAN_SHARE, TUNING_EPOCHS = 0.05, 20
#: The attack at test time, its radius, and on how many images.
EVASION, EPS, ATTACKED = "pgd-10", "8/255", 200

JUDGES = (*DETECTORS, AUDIT, AUDIT_DATASET)
REPAIRED = (*REPAIRS, *VARIANTS)
#: What costs evidence more than one forward over the rows.
COMMON = {"labels", "features", "probs", "losses"}
#: What stands for several defences.
GROUPS: dict[str, tuple[str, ...]] = {
    "detectors": JUDGES,
    "retrain": tuple(name + RETRAIN for name in JUDGES),
    "repairs": REPAIRED,
}


def kind_of(defence: str) -> str:
    """reference, training, detector, retraining or repair; raises ``ValueError`` for what is no defence."""
    if defence in (PLAIN, CLEAN_ONLY):
        return "reference"
    if defence in JUDGES:
        return "detector"
    if defence.endswith(RETRAIN) and defence.removesuffix(RETRAIN) in JUDGES:
        return "retraining"
    if defence in REPAIRED:
        return "repair"
    if defence in METHODS:
        return "training"
    raise ValueError(f"--defences {defence}: choose from {', '.join([PLAIN, CLEAN_ONLY, *METHODS, *JUDGES, *REPAIRED, *GROUPS])}.")


def _repair_of(defence: str) -> tuple[Any, dict[str, Any]]:
    name, settings = VARIANTS.get(defence, (defence, {}))
    return REPAIRS[name], settings


# ---- a training -------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A network and what it cost; ``probs`` are the mean predictions over a training, ``audit`` that of a run with a ledger."""

    model: Any
    args: Any
    cpu_seconds: float = 0.0
    train_seconds: float = 0.0
    probs: np.ndarray | None = None
    trainer: Any = None


def train(args: Any, loaded: Loaded, part: Part, row: dict[str, Any], method: str, **more: Any) -> Run:
    """Trains a fresh network with transformers' Trainer (method plain) or with one of `METHODS`."""
    set_seed(row["seed"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, loaded, part, {**row, "method": method}, folder, **more)
        start, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    means = getattr(getattr(trainer, "ledger", None), "mean_probs", None)
    probs = None if means is None else means.detach().float().cpu().numpy()
    return Run(trainer.model, trainer.args, round(cpu, 2), round(seconds, 2), probs, trainer)


def plain(args: Any, loaded: Loaded, part: Part, row: dict[str, Any]) -> Run:
    """Plain training that is watched, so that detectors have what they ask for: the weights are the plain Trainer's."""
    return train(args, loaded, part, {**row, "settings": {}}, "standard", ledger_predictions=True)


def clean_only(args: Any, loaded: Loaded, part: Part, row: dict[str, Any]) -> Run:
    """Plain training on the rows that nobody touched, once for all attacks on the same rows: the network of an earlier one."""
    settings = {name: value for name, value in row.items() if name not in ("attack", "rule", "asked", "attack_settings")}
    key = {**settings, "rows": fingerprint(part.inputs, part.labels)}
    run = kept(args.models, key, loaded)
    if run is None:
        run = train(args, loaded, part, row, PLAIN)
        keep(args.models, key, run)
    return run


def test_figures(run: Run, loaded: Loaded, cell: Cell, data: Data, attacked: int = ATTACKED) -> dict[str, float]:
    """Accuracy; of a backdoor attack success and accuracy on the triggered rows whose label the attacker would change.

    Of an untargeted attack any wrong class is a success. On clean images also accuracy under an attack at test time.
    """
    test = loaded.part(loaded.test)
    said, truth = predict(run, loaded, test), test.clean.numpy()
    found = {"accuracy": float((said == truth).mean())}
    if data.triggered is not None:
        said, wanted = predict(run, loaded, data.triggered), data.triggered.attack_targets
        assert wanted is not None
        changed = wanted != truth
        hit = np.where(wanted < 0, said != truth, said == wanted)
        found["triggered_accuracy"] = float((said == truth)[:, changed].mean())
        found["attack_success"] = float(hit[:, changed].mean())
    if cell.kind == NONE and loaded.task.kind == "image" and attacked:
        channels = test.inputs.shape[1]
        found["robust_accuracy"] = evaluate_robustness(
            run.model, test, EVASION, EPS, image_mean=[test.scale[0]] * channels, image_std=[test.scale[1]] * channels,
            max_samples=attacked, progress=False,
        ).accuracies[EVASION]  # fmt: skip
    return {name: round(value, 5) for name, value in found.items()}


def of_audit(audit: Audit, data: Data) -> dict[str, Any]:
    """How well an audit's flags fit the truth."""
    flags = audit.column("flagged").astype(bool)
    return {**data.caught(flags), **area(np.nan_to_num(audit.column("suspicion")), data), "estimate": audit.noise_rate}


def area(scores: np.ndarray, data: Data) -> dict[str, Any]:
    """AUROC of scores against the truth, without covers; none where all rows are alike."""
    rows, truth = ~data.covers, data.train.corrupted.numpy()
    truth = truth[rows]
    return {"auroc": round(float(roc_auc_score(truth, scores[rows])), 5) if 0 < truth.sum() < len(truth) else None}


def trained(args: Any, loaded: Loaded, cell: Cell, data: Data, row: dict[str, Any]) -> tuple[dict[str, Any], Run]:
    """The figures of a training defence or a reference, and its network."""
    defence = row["defence"]
    if defence == PLAIN:
        run = plain(args, loaded, data.train, row)
    elif defence == CLEAN_ONLY:
        run = clean_only(args, loaded, data.clean, row)
    else:
        run = train(args, loaded, data.train, row, defence)
    found: dict[str, Any] = test_figures(run, loaded, cell, data)
    rows = data.clean if defence == CLEAN_ONLY else data.train
    found |= {"cpu_seconds": run.cpu_seconds, "train_seconds": run.train_seconds, "n_train": len(rows)}
    if defence not in (PLAIN, CLEAN_ONLY) and getattr(run.trainer, "ledger", None) is not None:
        dropped = np.zeros(len(data.train), dtype=bool)
        dropped[np.asarray(run.trainer.distrusted_samples()["index"][:], dtype=np.int64)] = True
        start = time.process_time()
        found |= of_audit(run.trainer.audit(), data)
        found["audit_seconds"] = round(time.process_time() - start, 2)
        found |= {f"dropped_{name}": value for name, value in data.caught(dropped).items()}
        estimate = getattr(run.trainer, "estimated_noise_rate", None)
        found["estimate"] = None if estimate is None else round(estimate.rate, 5)
    return found, run


# ---- on the plain network ---------------------------------------------------------------------------------------------


@dataclass
class OnPlain:
    """Judges and repairs what one plain training has left; every judge's flags are kept for trainings without these rows."""

    args: Any
    loaded: Loaded
    cell: Cell
    data: Data
    train_plain: Callable[[], Run]

    def __post_init__(self) -> None:
        self.flags: dict[str, np.ndarray] = {}
        self._evidence: dict[frozenset[str], tuple[Any, float]] = {}
        self._rate = float(self.data.train.corrupted.double().mean())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def run(self) -> Run:
        """The plain network, trained or read when it is first needed."""
        return self.train_plain()

    def figures(self, row: dict[str, Any]) -> dict[str, Any]:
        """The figures of a detector, a retraining or a repair; raises ``ValueError`` where it does not fit."""
        defence = row["defence"]
        kind = kind_of(defence)
        if not (defence.startswith(AUDIT_DATASET) or (kind == "repair" and _repair_of(defence)[0].starts_from == "untrained")):
            _ = self.run  # before the clock starts
        start, wall = time.process_time(), time.perf_counter()
        if kind == "detector":
            found = self._judge(defence, row)
        elif kind == "repair":
            found = self._repair(defence, row)
        else:
            judge = defence.removesuffix(RETRAIN)
            if judge not in self.flags:
                self._judge(judge, row)
            start, wall = time.process_time(), time.perf_counter()
            left = np.flatnonzero(~self.flags[judge])
            labels = self.data.train.labels[torch.from_numpy(left)]
            if len(left) < 2 or len(torch.unique(labels)) < 2:
                raise ValueError(f"{judge} leaves {len(left)} rows of {len(torch.unique(labels))} classes: nothing to train on")
            run = train(self.args, self.loaded, self.data.train.select(torch.from_numpy(left)), {**row, "settings": {}}, PLAIN)
            found = {**test_figures(run, self.loaded, self.cell, self.data, 0), "n_train": len(left)}
        seconds = {"cpu_seconds": round(time.process_time() - start, 2), "train_seconds": round(time.perf_counter() - wall, 2)}
        return {**seconds, **found}

    def evidence(self, needs: Iterable[str]) -> tuple[Any, float]:
        """What a detector judges by, from one pass over the training rows as they are, and its CPU seconds."""
        extra = frozenset(needs) - COMMON
        if extra not in self._evidence:
            start = time.process_time()
            more: dict[str, Any] = {"needs": sorted(extra - {"clean"})} if extra else {}
            more |= {"clean": self.some_clean_rows()} if "clean" in extra else {}
            still = replace(self.data.train, moved=False)
            collate = self.loaded.collate
            found = collect_evidence(self.run.model, still, collate=collate, batch_size=100, device=self.device, **more)
            found = found if self.run.probs is None else replace(found, probs=self.run.probs)
            self._evidence[extra] = found, time.process_time() - start
        return self._evidence[extra]

    def some_clean_rows(self) -> Part:
        """So many rows that nobody touched, drawn by the seed, for what needs some."""
        count = max(round(CLEAN_SHARE * len(self.data.train)), 2)
        drawn = np.random.default_rng(self.cell.seed).permutation(len(self.data.clean))[:count]
        return replace(self.data.clean.select(torch.from_numpy(np.sort(drawn))), moved=False)

    def _judge(self, name: str, row: dict[str, Any]) -> dict[str, Any]:
        if name in (AUDIT, AUDIT_DATASET):
            audit = self._audit(name, row)
            self.flags[name] = audit.column("flagged").astype(bool)
            return of_audit(audit, self.data)
        (evidence, seconds), before = self.evidence(DETECTORS[name].needs), time.process_time()
        if name in EARLY:
            third = {**row, "epochs": max(row["epochs"] // 3, 1), "settings": {}}
            early = train(self.args, self.loaded, self.data.train, third, "recipe", recipe=isolation_recipe())
            evidence = replace(evidence, losses=early.trainer.ledger.rows()["last_score"])
        found = detect(name, evidence, rate=self._rate, seed=row["seed"])
        seconds += time.process_time() - before
        self.flags[name] = found.flagged
        return {**self.data.caught(found.flagged), **area(found.scores, self.data), "cpu_seconds": round(seconds, 2)}

    def _audit(self, name: str, row: dict[str, Any]) -> Audit:
        if name == AUDIT:
            return self.run.trainer.audit()
        rows = self.data.rows.remove_columns([c for c in self.data.rows.column_names if c not in ("image", "text", "label")])
        if self.loaded.task.network in ("efficientnet-lite0", "minilm"):
            return audit_dataset(rows, seed=row["seed"], **audit_network(self.loaded))
        pixels = self.data.train.inputs.flatten(1).numpy().astype(np.float32) / 255
        return audit_dataset(rows, features=pixels, seed=row["seed"])

    def _repair(self, name: str, row: dict[str, Any]) -> dict[str, Any]:
        """Repairs that need clean rows are given some that nobody touched; the others share the whole training's epochs."""
        how, settings = _repair_of(name)
        clean = self.some_clean_rows() if how.clean_rows is not None else None
        set_seed(row["seed"])
        model = self.run.model if how.starts_from == "trained" else self.loaded.model().to(self.device)
        with tempfile.TemporaryDirectory() as folder:
            tuning = TrainingArguments(
                output_dir=folder, num_train_epochs=row["epochs"] if clean is None else max(row["epochs"], TUNING_EPOCHS),
                per_device_train_batch_size=row["batch_size"], learning_rate=row["lr"], lr_scheduler_type="linear",
                weight_decay=0.01, warmup_steps=0.1, logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True,
                seed=row["seed"], dataloader_pin_memory=torch.cuda.is_available(), remove_unused_columns=False,
            )  # fmt: skip
            with contextlib.redirect_stdout(io.StringIO()):  # the Trainer's own figures
                found = repair(
                    VARIANTS.get(name, (name,))[0], model, self.data.train, tuning, clean=clean, rate=self._rate,
                    collate=self.loaded.collate, seed=row["seed"], **settings,
                )  # fmt: skip
        repaired = Run(found.model, SimpleNamespace(device=self.device))
        figures: dict[str, Any] = test_figures(repaired, self.loaded, self.cell, self.data, 0)
        flagged = {} if found.flagged is None else self.data.caught(found.flagged)
        return {**figures, **flagged, "on_plain": how.starts_from == "trained", "clean_rows": 0 if clean is None else len(clean)}


# ---- plain networks that are kept -------------------------------------------------------------------------------------


def kept(folder: Path | None, row: dict[str, Any], loaded: Loaded) -> Run | None:
    """A network of an earlier command, without its ledger; None where there is none."""
    file = None if folder is None else folder / f"{key_of(row)}.pt"
    if file is None or not file.is_file():
        return None
    found = torch.load(file, map_location="cpu", weights_only=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = loaded.model().to(device)
    model.load_state_dict(found["state"])
    probs = None if found["probs"] is None else found["probs"].numpy()
    return Run(model, SimpleNamespace(device=device), *found["seconds"], probs)


def keep(folder: Path | None, row: dict[str, Any], run: Run) -> None:
    """Keeps a network for later commands."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        probs = None if run.probs is None else torch.from_numpy(run.probs)
        seconds = (run.cpu_seconds, run.train_seconds)
        torch.save({"state": run.model.state_dict(), "probs": probs, "seconds": seconds}, folder / f"{key_of(row)}.pt")
