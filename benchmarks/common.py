"""What the benchmarks share: finished runs as JSON lines, what a run was made with, settings from a YAML file."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import yaml

import robust_trainer
from robust_trainer import METHODS


def changed(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's settings that are not the method's own: the ``method_settings`` of its `RobustConfig`."""
    own = METHODS[method].settings
    found = {k: v for k, v in settings.items() if v is not None and v != own.get(k)}
    # named, be they the row's own numbers: a run would fit them to its length, or estimate the rate
    ramp = "drop_ramp_epochs" if settings.get("drop_ramp_steps") is None else "drop_ramp_steps"
    named = ("noise_rate", ramp, "warmup_epochs", "lambda_ramp_epochs")
    return {**found, **{name: settings[name] for name in named if name in own and settings.get(name) is not None}}


def key_of(settings: dict[str, Any]) -> str:
    """A short name of the run with these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def machine() -> dict[str, Any]:
    """Machine and versions, as they stand in every result."""
    return {
        "robust_trainer": robust_trainer.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "datasets": datasets.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def machine_line(m: dict[str, Any]) -> str:
    """`machine` in words."""
    return f"{m['device']}, {m['cores']} cores, torch {m['torch']}, transformers {m['transformers']}, commit {m['commit']}"


def machines_line(rows: list[dict[str, Any]]) -> str:
    """The machines of several results in words, and the commits that they were run at."""
    commits = sorted({str(row["machine"]["commit"]) for row in rows})
    told = sorted({machine_line({**row["machine"], "commit": ""}).removesuffix(", commit ") for row in rows})
    return f"{'; '.join(told)}; commits {', '.join(commits)}"


def seconds(run: Callable[[], Any], device: str) -> float:
    """CPU seconds of one run; on CUDA the wall's."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def commit() -> str | None:
    """The checkout's commit, with a + where files differ from it."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def read_results(path: Path) -> list[dict[str, Any]]:
    """The finished runs of a file of JSON lines; none where there is no file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: skipped a line that is not whole (a stopped run?)", file=sys.stderr)
    return rows


def add_result(path: Path, row: dict[str, Any]) -> None:
    """Appends a finished run."""
    with path.open("a") as handle:
        handle.write(json.dumps(row) + "\n")


def column_of(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The method's name, with those settings that differ between this group's runs of it.

    A noise_rate that is the row's ``told``, by default its ``rate``, is no difference.
    """

    def settings(r: dict[str, Any]) -> dict[str, Any]:
        true = r.get("told", r["rate"])
        return {k: v for k, v in r["settings"].items() if not (k == "noise_rate" and v == true)}

    own = settings(row)
    others = [settings(r) for r in rows if r["method"] == row["method"]]
    keys = sorted({k for o in others for k in (*o, *own) if o.get(k) != own.get(k)})
    told = ", ".join(f"{k}={own.get(k, 'true' if k == 'noise_rate' else 'default')}" for k in keys)
    return row["method"] + (f" ({told})" if told else "")


def cell(values: list[float], digits: int = 2) -> str:
    """Mean ± standard deviation (n) of a table's cell."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread} ({len(values)})"


def defaults_from_yaml(parser: argparse.ArgumentParser, path: str) -> None:
    """Makes the file's values the parser's defaults. Raises ``SystemExit`` for unknown keys."""
    values = yaml.safe_load(Path(path).read_text())
    unknown = set(values) - {action.dest for action in parser._actions}
    if unknown:
        raise SystemExit(f"--config {path}: unknown {sorted(unknown)}; the keys are this command's arguments.")
    parser.set_defaults(**values)
