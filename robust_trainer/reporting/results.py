"""What a run leaves behind: per-epoch curves, means, suspects, the environment, results.json and the table."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch

from ..data.audio import spectrogram, undecoded_audio
from ..data.decode import undecoded
from ..data.load import label_names
from ..data.mapping import IS_CORRUPTED

#: Per-epoch figures: name in the report -> name in the Trainer's log.
CURVES: Mapping[str, str] = {
    "loss": "loss",
    "clean_accuracy": "eval_clean_accuracy",
    "poison_accuracy": "eval_poison_accuracy",
    "robust_accuracy": "robust_accuracy",
    "eval_accuracy": "eval_accuracy",
    "kept_fraction": "kept_fraction",
    "kept_clean": "kept_clean",
    "kept_corrupted": "kept_corrupted",
    "filter_precision": "filter_precision",
    "filter_recall": "filter_recall",
    "filter_auroc": "filter_auroc",
}
#: Of what a run found about its labels (`ledger.findings`): shares in [0, 1].
_SHARES = ("rate", "low", "high", "left_out", "relabelled", "weighted")


def curves(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Returns one row per logged epoch, in order: epoch and the `CURVES` that were logged at it.

    Args:
        history: ``trainer.state.log_history``.
    """
    rows: dict[float, dict[str, float]] = {}
    for entry in history:
        figures = {name: float(entry[key]) for name, key in CURVES.items() if key in entry}
        if figures:
            rows.setdefault(round(float(entry["epoch"]), 4), {}).update(figures)
    return [{"epoch": epoch, **row} for epoch, row in sorted(rows.items())]


def mean_last(rows: Sequence[Mapping[str, float]], k: int) -> dict[str, float]:
    """Returns the means of clean and poison accuracy over the last k evaluations (fewer where there are fewer), and that k.

    Args:
        rows: Of `curves`.
        k: Evaluations, >= 1.
    """
    out: dict[str, float] = {}
    for name in ("clean_accuracy", "poison_accuracy"):
        values = [row[name] for row in rows if name in row][-k:]
        if values:
            out[name] = sum(values) / len(values)
            out["k"] = len(values)
    return out


def suspects(trainer: Any, data: Any, count: int = 24) -> list[dict[str, Any]]:
    """Returns the most suspicious training samples: input, given label, prediction, suggestion, truth if known.

    Those whose label is wrong with the highest probability come first, of runs that judge labels; else the highest mean scores.

    Args:
        trainer: A trainer after its training.
        data: The run, with its ``train`` split.
        count: How many at most.
    """
    if trainer.ledger is None:
        return []
    names = label_names(data.train)
    score, wrong = trainer.ledger.mean_score, trainer.ledger.columns.get("label_wrong")
    order = torch.argsort(score, descending=True, stable=True)
    if wrong is not None:
        order = order[torch.argsort(wrong[order], descending=True, stable=True)]
    out, rows = [], undecoded_audio(undecoded(data.train))
    for row in datasets.Dataset.from_dict(trainer.ledger.rows(order[:count])):
        sample = rows[row["index"]]
        audio = sample.get("audio") is not None
        truth, wrong_label = sample.get("clean_label"), row.get("label_wrong")
        suggested = row["suggested"] if wrong_label is not None and row["suggested"] not in (-1, sample["label"]) else None
        out.append(
            {
                "image": _picture(sample), "text": None if audio else sample.get("text"), "audio": audio,
                "index": row["index"], "given": names[sample["label"]],
                "predicted": names[row["predicted"]] if row["predicted"] >= 0 else "-", "score": row["mean_score"],
                "kept": row["kept"], "seen": row["seen"], "truth": None if truth is None else names[truth],
                "corrupted": sample.get(IS_CORRUPTED), "suggested": None if suggested is None else names[suggested],
                "wrong": wrong_label, "carrier": bool(row.get("carrier")),
            }
        )  # fmt: skip
    return out


def _picture(sample: Mapping[str, Any]) -> Any:
    """A sample's image, of a sound its spectrogram; None for a text."""
    return spectrogram(sample["audio"]) if sample.get("audio") is not None else sample.get("image")


def environment() -> dict[str, Any]:
    """Returns what a figure depends on: versions, device, cores, operating system, date."""
    packages = ("torch", "transformers", "accelerate", "datasets", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "robust_trainer": importlib.metadata.version("robust-trainer"), "python": platform.python_version(), **versions,
        "device": device, "cores": cores, "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }  # fmt: skip


def results(runs: Sequence[Mapping[str, Any]], command: str, data: Any, *options: Any) -> dict[str, Any]:
    """Returns all that results.json holds: the command, the options, the corruption, the runs and the environment.

    Args:
        runs: Records of trainings.
        command: The command as it was typed.
        data: The run, with ``corruption``, ``train`` and ``test``.

        *options: Dataclasses of options.
    """
    values = {name: value for option in options for name, value in dataclasses.asdict(option).items()}
    return {
        "command": command, "options": values, "corruption": data.corruption, "train_samples": len(data.train),
        "test_samples": len(data.test), "environment": environment(), "runs": list(runs),
    }  # fmt: skip


def check_results(content: Mapping[str, Any], path: str) -> None:
    """Refuses a results.json in which a figure or a name is of another kind than `results` writes.

    Args:
        content: As read.
        path: Of the file, for the message.

    Raises:
        ValueError: In one line, with the place and what is there.
    """
    number, text = (int, float), (str,)

    def check(place: str, value: Any, kinds: tuple[type, ...]) -> None:
        if not isinstance(value, kinds) or isinstance(value, bool) and bool not in kinds:
            told = repr(value)[:60]
            raise ValueError(f"{path!r} is damaged ({place} is {told}): train again, or take the file away.")

    def figures(place: str, row: Any, least: Sequence[str] = ()) -> None:
        check(place, row, (dict,))
        for name in [*row, *least]:
            check(f"{place}.{name}", row.get(name), number)

    for name, kinds in (("command", text), ("options", (dict,)), ("environment", (dict,)), ("runs", (list,))):
        check(name, content.get(name), kinds)
    for name in ("robust_trainer", "date"):
        check(f"environment.{name}", content["environment"].get(name), text)
    for name in ("train_samples", "test_samples"):
        check(name, content.get(name), (int,))
    corruption: Any = content.get("corruption")
    check("corruption", corruption, (dict, type(None)))
    for name in ("overall", "corrupted", "nominal") if corruption else ():
        check(f"corruption.{name}", corruption.get(name), (*number, type(None)) if name == "nominal" else number)
    for i, run in enumerate(content["runs"]):
        place = f"runs[{i}]"
        check(place, run, (dict,))
        check(f"{place}.method", run.get("method"), text)
        check(f"{place}.settings", run.get("settings"), (dict,))
        for name in ("seed", "epochs", "batch_size", "learning_rate", "parameters", "seconds"):
            check(f"{place}.{name}", run.get(name), number)
        check(f"{place}.curves", run.get("curves"), (list,))
        for j, row in enumerate(run["curves"]):
            figures(f"{place}.curves[{j}]", row, ["epoch"])
        figures(f"{place}.final", run.get("final"))
        figures(f"{place}.mean_last_k", run.get("mean_last_k") or {}, ["k"] if run.get("mean_last_k") else [])
        figures(f"{place}.detection", run.get("detection") or {})
        check(f"{place}.distrusted", run.get("distrusted", 0), (int, type(None)))
        labels = run.get("labels")
        check(f"{place}.labels", labels, (dict, type(None)))
        for name in (*_SHARES, "found", "done") if labels else ():
            check(f"{place}.labels.{name}", labels.get(name), number if name in _SHARES else text)


def percent(value: float | None) -> str:
    """Returns a fraction in percent, '-' for none.

    Args:
        value: A fraction, or None.
    """
    return "-" if value is None else f"{100 * value:.1f}"


def table(runs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns the heading and the rows of the table of results, in percent; the report shows the same.

    Args:
        runs: Records of trainings.
    """
    k = next((run["mean_last_k"]["k"] for run in runs if run.get("mean_last_k")), None)
    heading = ["data"] if any("data" in run for run in runs) else []
    start = len(heading) + 1
    heading += ["method", "clean %", "poison %", "attack %"]
    heading += [f"clean last {k}", f"poison last {k}"] if k else []
    heading += ["wrong labels %", "left out %", "relabelled %", "distrusted", "precision %", "recall %", "AUROC %", "seconds"]
    rows = []
    for run in runs:
        final, mean, detection = run["final"], run.get("mean_last_k") or {}, run.get("detection") or {}
        row = [run.get("data", "")] * (start - 1) + [run["method"]]
        row += [percent(final.get(n)) for n in ("clean_accuracy", "poison_accuracy", "attack_success_rate")]
        row += [percent(mean.get("clean_accuracy")), percent(mean.get("poison_accuracy"))] if k else []
        row += _labels_cells(run)
        flagged = run.get("distrusted")
        row += ["-" if flagged is None else str(flagged)]
        row += [
            percent(detection.get("precision") if flagged else None),
            percent(detection.get("recall")),
            percent(detection.get("auroc")),
        ]
        rows.append([*row, f"{run['seconds']:.1f}"])
    empty = [i for i, name in enumerate(heading) if i >= start and all(row[i] == "-" for row in rows)]
    keep = [i for i in range(len(heading)) if i not in empty]
    return [heading[i] for i in keep], [[row[i] for i in keep] for row in rows]


def _labels_cells(run: Mapping[str, Any]) -> list[str]:
    """Cells of the share of wrong labels, found or told, and the shares of rows that are left out and relabelled."""
    labels, told, found = run.get("labels"), run.get("settings", {}).get("noise_rate"), run.get("estimated_noise_rate")
    if labels is not None:
        rate = f"{percent(labels['rate'])} found" if labels.get("known") else "-"
        return [rate, percent(labels["left_out"]), percent(labels["relabelled"])]
    rate = f"{percent(told)} told" if isinstance(told, int | float) and not isinstance(told, bool) else "-"
    rate = f"{percent(found['rate'])} found" if isinstance(told, str) and found else rate
    kept = next((row["kept_fraction"] for row in reversed(run["curves"]) if "kept_fraction" in row), 1.0)
    return [rate, percent(1.0 - kept) if kept < 1.0 else "-", "-"]
