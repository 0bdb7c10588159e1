"""Kills commands at random moments and goes on: the end is bit for bit that of a straight run, or a message that is true.

    python benchmarks/kill_runs.py --kills 60 --seed 0 --out kills

One process imports the package and runs nothing of torch; each run and each digest is a fork of it, which saves ten seconds of
imports a time. A row is written to ``kills/rows.jsonl`` as it comes: started again with the same words, it goes on
after the last one. A child that takes longer than ``--patience`` is killed and reported as a hang.

A row passes where the command ended identically after as many attempts as it took, and every message on the way was true: "no
checkpoint" with none there, "incomplete" with the checkpoint named lacking a file, "of an earlier command" with a file of one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1", MPLBACKEND="agg")

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from transformers import ResNetConfig, ResNetModel

import robust_trainer.trainer  # noqa: F401 - imported here, once for all forks
from robust_trainer.cli import anomaly, audit, audit_dataset, corrupt, demo, evaluate, paths, train  # noqa: F401
from robust_trainer.cli.main import main as command
from robust_trainer.data.fingerprint import fingerprint
from robust_trainer.data.load import load_data
from robust_trainer.methods.table import METHODS as TABLE
from robust_trainer.models.zoo import PlainProcessor

#: What differs between two equal runs: times, places and names of runs.
VOLATILE = {
    "seconds", "date", "id", "environment", "command", "run", "output_dir", "folder", "threads", "dataset",
    "options", "file", "load",
}  # fmt: skip
SKIPPED = ("html", "png", "md", "bin", "log", "pt", "pth", "lock", "py")
#: Random names of files, and sizes of files that hold the words of the command.
UNSTEADY = ("state.json", "dataset_info.json", "checkpoint_files.json")
METHODS = ("standard", "prl", "prl-at-memory", "co-prl", "erat", "trades", "spl", "rebalanced", "min-sgd", "nrat-awp")
TRAIN = ("--num_train_epochs", "4", "--per_device_train_batch_size", "16", "--use_cpu", "--disable_tqdm", "true")
#: Steps an epoch, after each of which the command line saves a checkpoint; and the last step.
EPOCH, LAST = 3, 12
#: What the Trainer itself counts anew where a run goes on in the middle of an epoch: the figures of that epoch.
LOGGED = {"curves", "mean_last_k", "log_history"}


@dataclass(frozen=True)
class Task:
    """A command: its words for a work folder, what goes on from a stopped one, and what must be there before."""

    name: str
    words: Callable[[Path], list[str]]
    resume: Sequence[str] = ()
    needs_run: bool = False
    out: str = "out"
    every: int = EPOCH


def _train(method: str, *more: str) -> Task:
    told = ("--noise_rate", "0.2") if "noise_rate" in TABLE[method].settings else ()
    words = lambda work: [  # noqa: E731
        "train",
        "--dataset",
        str(work / "digits"),
        "--method",
        method,
        *told,
        *TRAIN,
        *more,
        "--output_dir",
        str(work / "out"),
    ]
    steps = 2 if "steps" in more else EPOCH
    return Task(f"train {method}{', by steps' if steps == 2 else ''}", words, RESUME, every=steps)


RESUME = ("--resume_from_checkpoint", "true")
#: Of 240 digits, since labels are judged from 50 on; as many steps.
LARGER = tuple("80" if word == "16" else word for word in TRAIN)
WRONG = ("--corrupt", "symmetric", "--corrupt_rate", "0.3")
NOISE = ("--corrupt", "symmetric", "--corrupt_rate", "0.3")
TASKS = [
    *(_train(method) for method in METHODS),
    _train("prl", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "1"),
    _train("prl-simclr", "--contrastive_epochs", "2", "--contrastive_batch_size", "16"),
    Task("demo", lambda w: ["demo", "--epochs", "1", "--method", "standard", "--output_dir", str(w / "out")]),
    Task("anomaly", lambda w: ["anomaly", str(w / "table.csv"), "--epochs", "3", "--output_dir", str(w / "out")]),
    Task("corrupt", lambda w: ["corrupt", "--dataset", str(w / "digits"), *NOISE, "--output_dir", str(w / "out")]),
    Task("corrupt --poison", lambda w: [
        "corrupt", "--dataset", str(w / "digits"), "--poison", "ap", "--poison_model_epochs", "2", "--self_check_epochs", "0",
        "--output_dir", str(w / "out")]),
    Task("audit", lambda w: ["audit", str(w / "run"), "--output_dir", str(w / "out")], needs_run=True),
    Task("paths", lambda w: ["paths", str(w / "run"), "--max_steps", "30", "--batch_size", "8"], needs_run=True, out="run"),
    Task("evaluate", lambda w: [
        "evaluate", str(w / "run"), "--attacks", "pgd-5", "cw-5", "--eps", "0.1", "--batch_size", "4"],
        ("--resume",), needs_run=True, out="run"),
    Task("train auto, wrong labels", lambda w: [
        "train", "--dataset", str(w / "more"), "--method", "auto", *WRONG, *LARGER, "--output_dir", str(w / "out")], RESUME),
    Task("audit --dataset, wrong labels", lambda w: [
        "audit", "--dataset", str(w / "more"), "--model", str(w / "network"), *WRONG, "--output_dir", str(w / "out")]),
]  # fmt: skip


# ---- forks -----------------------------------------------------------------------------------------------------------------------


class Child:
    """``work()`` in a fork, whose output goes to a file."""

    def __init__(self, work: Callable[[], int | None], log: Path):
        self.log, self.began = log, time.monotonic()
        sys.stdout.flush(), sys.stderr.flush()
        self.number = os.fork()
        if self.number:
            return
        code = 70
        try:
            os.setsid()
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(file, 1), os.dup2(file, 2)
            torch.set_num_threads(1)
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def ended(self) -> int | None:
        """Its exit code (minus the signal that killed it), None while it runs."""
        number, status = os.waitpid(self.number, os.WNOHANG)
        return None if not number else os.waitstatus_to_exitcode(status)

    def wait(self, patience: float) -> int | None:
        """Its exit code; one that takes too long is killed, and None."""
        while (code := self.ended()) is None:
            if time.monotonic() - self.began > patience:
                self.kill()
                return None
            time.sleep(0.005)
        return code

    def kill(self) -> int:
        """Kills it, and its children; its exit code."""
        os.killpg(self.number, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])


def told(log: Path) -> str:
    """The last line that it wrote, or its traceback's last."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:400] if lines else ""


# ---- what is compared ------------------------------------------------------------------------------------------------------------


def steady(value: Any, without: set[str]) -> Any:
    """A JSON value without what differs between equal runs."""
    if isinstance(value, dict):
        kept = {k: v for k, v in sorted(value.items()) if k not in without and not k.endswith(("runtime", "per_second"))}
        return {k: steady(v, without) for k, v in kept.items()}
    return [steady(v, without) for v in value] if isinstance(value, list) else value


def digest(folder: Path, without: set[str]) -> dict[str, str]:
    """File -> what it holds: weights and ledgers bit for bit, figures, rows of data sets. Pages and pictures tell the time."""
    out = {}
    for path in sorted(folder.rglob("*")):
        name, kind = str(path.relative_to(folder)), path.suffix.lstrip(".")
        if not path.is_file() or kind in SKIPPED or "audit/" in name or name.startswith("paths/"):
            continue
        if kind == "safetensors":
            out[name] = fingerprint({k: v for k, v in load_file(path).items()})
        elif kind == "parquet":
            out[name] = fingerprint(repr(pq.read_table(path).to_pydict()))
        elif kind == "csv":
            out[name] = fingerprint(path.read_text())
        elif kind == "jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            broken = sorted(json.dumps({k: row[k] for k in ("index", "clean", "broken") if k in row}) for row in rows)
            out[name] = fingerprint(broken)
        elif kind == "json" and path.name not in UNSTEADY:
            out[name] = fingerprint(json.dumps(steady(json.loads(path.read_text()), without), sort_keys=True))
        elif kind == "arrow":
            out[name] = fingerprint(repr(datasets.Dataset.from_file(str(path)).with_format("arrow")[:].to_pydict()))
    return out


def measured(folder: Path, work: Path, patience: float, task: Task) -> dict[str, str]:
    """`digest`, made in a fork."""

    def tell() -> None:
        (work / "digest.json").write_text(json.dumps(digest(folder, VOLATILE | LOGGED if task.every != EPOCH else VOLATILE)))

    code = Child(tell, work / "digest.log").wait(patience)
    return json.loads((work / "digest.json").read_text()) if code == 0 else {"digest": told(work / "digest.log")}


def true(message: str, out: Path) -> bool:
    """Whether what a refusal says is so."""
    there = sorted(out.glob("checkpoint-*"))
    if "No valid checkpoint found" in message or "has no checkpoint: leave it out to begin" in message:
        return not there
    if (found := re.search(r"checkpoint '([^']+)' is incomplete \((\S+)", message)) is not None:
        state = Path(found[1]) / "trainer_state.json"
        missing = not (Path(found[1]) / found[2].rstrip(",")).is_file()
        return missing or not _parses(state)
    if (found := re.search(r"holds (\S+) of an earlier command", message)) is not None:
        return any(out.glob(found[1]))
    if "is for attacks" in message or "does not exist: leave it out to begin" in message:
        return not out.exists()
    return False


def _parses(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()))
    except (OSError, ValueError):
        return False


# ---- one kill --------------------------------------------------------------------------------------------------------------------


def prepared(base: Path, work: Path, task: Task) -> Path:
    """A fresh work folder: the data, and a finished run where the command is on one."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name in ("digits", "more", "network", "table.csv"):
        (work / name).symlink_to(base / name)
    if task.needs_run:
        shutil.copytree(base / "run", work / "run")
    return work


def kill_at_random(child: Child, out: Path, moment: dict[str, Any], patience: float) -> bool:
    """Kills the child at the moment; False where it had ended before."""
    end = time.monotonic() + patience
    if "checkpoint" in moment:  # while it writes there, or just after
        while not any((folder / f"checkpoint-{moment['checkpoint']}").exists() for folder in (out, out / "simclr")):
            if child.ended() is not None:
                return False
            if time.monotonic() > end:
                break
            time.sleep(0.0005)
    time.sleep(moment["wait"])
    if child.ended() is not None:
        return False
    child.kill()
    return True


def one(task: Task, straight: dict[str, Any], base: Path, work: Path, seed: int, patience: float) -> dict[str, Any]:
    """The row of one kill and of what came after it."""
    draw = random.Random(seed)
    work, out = prepared(base, work, task), work / task.out
    saving = task.name.startswith("train") and draw.random() < 0.5
    moment: dict[str, Any] = {"wait": draw.uniform(0, 0.7 * straight["seconds"])}  # the straight run may have waited for a core
    if saving:
        moment = {"checkpoint": task.every * draw.randint(1, LAST // task.every), "wait": draw.uniform(0, 0.08)}
    child = Child(lambda: command(task.words(work)), work / "0.log")
    killed = kill_at_random(child, out, moment, patience)
    left = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())[:60] if out.exists() else []
    row = {"seed": seed, "task": task.name, "moment": moment, "killed": killed, "left": len(left), "messages": []}
    words: list[list[str]] = [task.words(work) + list(task.resume)] if killed else []
    words += [task.words(work), task.words(work) + ["--overwrite", "true"]] if killed else []
    result = "the same" if not killed else "no attempt ended well"
    for number, attempt in enumerate(words, 1):
        log = work / f"{number}.log"
        code = Child(lambda attempt=attempt: command(attempt), log).wait(patience)
        if code == 0:
            result = "the same"
            break
        message = told(log)
        if code is None or code != 2 or "Traceback" in log.read_text(errors="replace"):
            result = "HANG" if code is None else f"code {code}"
            row["messages"].append(message)
            break
        row["messages"].append(message)
        if not true(message, out):
            result = "a message that is not true"
            break
    if result == "the same":
        now = measured(out, work, patience, task)
        differ = sorted(k for k in {*now, *straight["digest"]} if now.get(k) != straight["digest"].get(k))
        result, row["differ"] = ("identical", []) if not differ else ("DIFFERENT", differ)
        if differ:
            shutil.rmtree(base / f"different-{seed}", ignore_errors=True)
            shutil.copytree(work, base / f"different-{seed}", symlinks=True)  # to look at
    return {**row, "attempts": len(row["messages"]) + 1, "result": result}


def main() -> int:
    """Runs the kills that are not in the file yet, and prints the table; 1 where one did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("kills"))
    parser.add_argument("--patience", type=float, default=60.0, help="Seconds that a child may take.")
    parser.add_argument("--only", nargs="+", default=[""], help="Tasks whose names hold one of these.")
    options = parser.parse_args()
    base = options.out.resolve()
    base.mkdir(parents=True, exist_ok=True)
    tasks = [task for task in TASKS if any(part in task.name for part in options.only)]

    def make() -> None:
        load_data("digits", max_train_samples=48, max_test_samples=16).save_to_disk(str(base / "digits"))
        load_data("digits", max_train_samples=240, max_test_samples=40).save_to_disk(str(base / "more"))
        torch.manual_seed(0)
        sizes = {"embedding_size": 32, "hidden_sizes": [64], "depths": [1], "layer_type": "basic"}
        ResNetModel(ResNetConfig(**sizes, downsample_in_first_stage=False)).save_pretrained(base / "network")
        PlainProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(base / "network")
        rows = np.random.default_rng(0).normal(size=(80, 4))
        np.savetxt(base / "table.csv", rows, delimiter=",", header="a,b,c,d", comments="")

    if not (base / "table.csv").is_file():
        assert Child(make, base / "make.log").wait(4 * options.patience) == 0, told(base / "make.log")
    if not (base / "run" / "report.html").is_file():
        words = [*_train("prl").words(base)[:-1], str(base / "run"), "--overwrite", "true"]
        assert Child(lambda: command(words), base / "run.log").wait(4 * options.patience) == 0, told(base / "run.log")
    file = base / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    straights: dict[str, dict[str, Any]] = {}
    for number in range(options.kills):
        task, seed = tasks[number % len(tasks)], options.seed * 100_003 + number
        if any(row["seed"] == seed and row["task"] == task.name for row in rows):
            continue
        work = base / "work"
        if task.name not in straights:
            kept = base / f"straight-{task.name.replace(' ', '_')}.json"
            if not kept.is_file():
                place = prepared(base, work, task)
                began = time.monotonic()
                code = Child(lambda task=task, place=place: command(task.words(place)), work / "0.log").wait(2 * options.patience)
                assert code == 0, f"{task.name}: {told(work / '0.log')}"
                seconds = time.monotonic() - began
                found = measured(place / task.out, work, options.patience, task)
                kept.write_text(json.dumps({"seconds": seconds, "digest": found}))
            straights[task.name] = json.loads(kept.read_text())
        row = one(task, straights[task.name], base, work, seed, options.patience)
        rows.append(row)
        with file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(f"{number:3} seed {seed} {task.name}: {row['moment']} -> {row['result']} {row['messages'] or ''}", flush=True)
    print(f"\n{'task':30}{'kills':>6}{'saving':>8}{'too late':>10}  results")
    for task in tasks:
        mine = [row for row in rows if row["task"] == task.name]
        results = ", ".join(f"{k} {n}" for k, n in Counter(row["result"] for row in mine).items())
        saving, late = sum("checkpoint" in row["moment"] for row in mine), sum(not row["killed"] for row in mine)
        print(f"{task.name:30}{len(mine):6}{saving:8}{late:10}  {results}")
    messages = Counter(re.sub(r"'[^']*'", "'...'", message) for row in rows for message in row["messages"])
    for message, n in messages.most_common():
        print(f"{n:4} x {message}")
    bad = [row for row in rows if row["result"] != "identical"]
    print(f"{len(rows)} kills, {sum(row['killed'] for row in rows)} in time, {len(bad)} that did not pass")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
