"""The tables of benchmarks/adversarial.py: one per noise, best and last, the gap, and the paper's two claims as found."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import cell, machine_line

PAPER = json.loads((Path(__file__).parent / "paper_adversarial.json").read_text())
COLUMNS: Sequence[str] = PAPER["columns"]


def merge(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs with what was evaluated of them: run["figures"]["best" | "last"][attack] in [0, 1], run["counts"][attack] images."""
    runs: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "history" in row:
            runs[row["key"]] = {**row, "figures": {"best": {}, "last": {}}, "counts": {}}
    for row in rows:
        if "best" not in row or row["key"] not in runs:
            continue
        run = runs[row["key"]]
        for name in row["last"]:
            if row["samples"] >= run["counts"].get(name, 0):
                run["counts"][name] = row["samples"]
                for which in ("best", "last"):
                    run["figures"][which][name] = row[which][name]
    return list(runs.values())


def name_of(run: dict[str, Any]) -> str:
    """The method, with the settings given beside the threat model."""
    more = {k: v for k, v in run["given"].items() if k not in ("eps", "step_size", "steps")}
    return run["method"] + (f" ({', '.join(f'{k}={v}' for k, v in more.items())})" if more else "")


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each noise a table of best, last and gap, ours and the paper's; then the claims."""
    runs = merge(rows)
    if not runs:
        return "no finished runs."
    out = []
    noises = list(dict.fromkeys(run["noise"] for run in runs))
    for noise in noises:
        group = [run for run in runs if run["noise"] == noise]
        names = list(dict.fromkeys(map(name_of, group)))
        realised = statistics.fmean(run["realised"] for run in group)
        told = ", ".join(f"{a}: {n}" for a, n in _counts(group).items())
        out += [f"\n## {noise} (realised {100 * realised:.1f} %)\n", f"Percent of test images ({told}), mean ± std (seeds).\n"]
        out.append("| method | | " + " | ".join(COLUMNS) + " | paper: " + " / ".join(COLUMNS) + " |")
        out.append("|---" * (len(COLUMNS) + 3) + "|")
        for name in names:
            mine = [run for run in group if name_of(run) == name]
            paper = PAPER.get(noise, {}).get(name, {})
            for which in ("best", "last"):
                figures = [run["figures"][which] for run in mine]
                cells = [cell([100 * found[c] for found in figures if c in found], 1) for c in COLUMNS]
                theirs = " / ".join(f"{v:.1f}" for v in paper[which]) if which in paper else "–"
                out.append(f"| {name} | {which} | " + " | ".join(cells) + f" | {theirs} |")
            gaps = [cell(_gaps(mine, c), 1) for c in COLUMNS]
            theirs = " / ".join(f"{b - last:.1f}" for b, last in zip(paper["best"], paper["last"])) if paper else "–"
            out.append(f"| {name} | gap | " + " | ".join(gaps) + f" | {theirs} |")
    return "\n".join([*out, "", *claims(runs), "", *_footer(runs)])


def _counts(group: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {c: n for c in COLUMNS if (n := max((run["counts"].get(c, 0) for run in group), default=0))}


def _gaps(runs: Sequence[dict[str, Any]], column: str) -> list[float]:
    """Best minus last in points, per seed."""
    found = [run["figures"] for run in runs if column in run["figures"]["last"]]
    return [100 * (figures["best"][column] - figures["last"][column]) for figures in found]


def claims(runs: Sequence[dict[str, Any]], column: str = "pgd-20") -> list[str]:
    """The paper's two claims: NRAT's gap is smaller than the baselines' (sec. 4.2), AWP makes it smaller still (sec. 4.3)."""
    out = [f"## The two claims, by the gap under {column} in points (mean over seeds; the paper's in brackets)\n"]
    names = ("pgd-at", "mart", "trades", "nrat", "nrat-awp")
    out += [f"| noise | {' | '.join(names)} | NRAT smaller than all three | AWP smaller than NRAT |", "|---" * 8 + "|"]
    position = list(COLUMNS).index(column)
    for noise in dict.fromkeys(run["noise"] for run in runs):
        gaps: dict[str, float] = {}
        cells = []
        for name in names:
            found = _gaps([run for run in runs if run["noise"] == noise and name_of(run) == name], column)
            if found:
                gaps[name] = statistics.fmean(found)
            paper = PAPER.get(noise, {}).get(name)
            theirs = f" ({paper['best'][position] - paper['last'][position]:.1f})" if paper else ""
            cells.append((f"{gaps[name]:.1f}" if name in gaps else "–") + theirs)
        first = "–" if not {"pgd-at", "mart", "trades", "nrat"} <= set(gaps) else _yes(
            all(gaps["nrat"] < gaps[name] for name in ("pgd-at", "mart", "trades"))
        )  # fmt: skip
        second = "–" if not {"nrat", "nrat-awp"} <= set(gaps) else _yes(gaps["nrat-awp"] < gaps["nrat"])
        out.append(f"| {noise} | " + " | ".join(cells) + f" | {first} | {second} |")
    return out


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _footer(runs: Sequence[dict[str, Any]]) -> list[str]:
    p, last = runs[-1]["protocol"], runs[-1]
    seconds = sum(run["train_seconds"] for run in runs)
    given = last["given"]
    return [
        f"{p['data']}, {p['train']} training and {p['test']} test images pooled by {p['pool']}, {p['model']}, width {p['width']}, "
        f"{p['epochs']} epochs, {p['optim']} {p['lr']}, batch {p['batch_size']}, eps {given['eps']:.4g}, {len(runs)} runs, "
        f"{seconds / 60:.0f} minutes of training; {machine_line(last['machine'])}. Best is the best epoch by {p['during']} on "
        f"the test images, looked at every {p['every']} epochs."
    ]
