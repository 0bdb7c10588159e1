"""The tables of benchmarks/label_noise.py: ours in the form of the dissertation's, with its figures beside."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from common import cell, column_of, machine_line

PAPER = Path(__file__).with_name("paper_label_noise.json")
OFFSETS = (-0.1, -0.05, 0.0, 0.05, 0.1)
#: The tables' columns and rows in the paper.
METHODS_OF = {
    "4.1": "standard,normclip,huber,min-sgd,ignormclip,prl-g,prl,co-prl",
    "4.2": "standard,normclip,bootstrap,decouple,min-sgd,spl,prl,co-teaching,co-prl",
    "4.4": "co-prl",
    "4.6": "standard,prl-g,prl",
}
NOISE_OF = {
    "4.1": [f"{kind}:0.{d}" for kind in ("linadv", "signflip", "uninoise", "pairflip", "mixture") for d in range(1, 5)],
    "4.2": ["symmetric:0.3", "symmetric:0.5", "symmetric:0.7", "pairflip:0.25", "pairflip:0.35", "pairflip:0.45"],
    "4.4": ["pairflip:0.45", "symmetric:0.5", "symmetric:0.7"],
    "4.6": ["pairflip:0.45"],
}


def split_noise(noise: str) -> tuple[str, float]:
    kind, _, rate = noise.partition(":")
    try:
        return kind, float(rate or 0)
    except ValueError:
        raise SystemExit(f"--noise {noise}: write kind:rate, for instance pairflip:0.45, or clean.") from None


def report(rows: list[dict[str, Any]], last_k: int) -> str:
    """The papers' tables in markdown: our mean ± standard deviation over the seeds (n), and the papers' mean in brackets."""
    paper = json.loads(PAPER.read_text())
    out: list[str] = []
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row["figure"], row["protocol"], row["n_train"]], sort_keys=True), []).append(row)
    for members in groups.values():
        figure = members[0]["figure"]
        if figure == "seconds":
            out += [*heading("4.6", members, paper, last_k), *times(members, paper), ""]
            continue
        auto = [row for row in members if row["settings"].get("noise_rate") == "auto"]
        if auto:
            out += [*heading("auto", auto, paper, last_k), *estimates(auto, members, last_k), ""]
        members = [row for row in members if row not in auto]
        exact = [row for row in members if row["told"] == row["rate"]]
        if exact:
            out += [*heading("4.1" if figure == "r2" else "4.2", exact, paper, last_k), *figures(exact, paper, last_k), ""]
        near = {(row["method"], row["noise"], row["rate"]) for row in members if row["told"] != row["rate"]}
        off = [row for row in members if (row["method"], row["noise"], row["rate"]) in near]
        if off:
            out += [*heading("4.4", off, paper, last_k), *sensitivity(off, paper, last_k), ""]
    return "\n".join(out)


def heading(table: str, rows: list[dict[str, Any]], paper: dict[str, Any], last_k: int) -> list[str]:
    what = {"4.1": "regression, R-square", "4.2": "accuracy, %", "4.4": "accuracy, %, told a wrong rate", "4.6": "time of an epoch"}
    what["auto"] = "the estimated noise rate"
    first, told = rows[0], rows[0]["protocol"]
    clip = f", gradients clipped at {told['max_grad_norm']:g}" if told["max_grad_norm"] else ""
    network = "MLP of 3 layers, 256 wide" if table == "4.1" else told["model"]
    span = f", {told['epochs']} epochs, mean of the last {min(last_k, told['epochs'])}{clip}; mean ± standard deviation (n seeds)"
    theirs = ""
    if table != "auto":
        beside, _ = papers_part(paper, table, told["data"])
        theirs = f" In brackets the dissertation's on {beside}: {paper['setting'][table]}. Other data: compare orders, not values."
    return [
        f"### Table {table} ({what[table]}): {told['data']}, {first['n_train']} training and {first['n_test']} test samples",
        "",
        f"Ours: {network}, Adam {told['lr']:g}, batch {told['batch_size']}{clip if table == '4.6' else span}.{theirs}",
        "",
        "Machine: " + "; ".join(sorted({machine_line(row["machine"]) for row in rows})),
        "",
        *(f"`benchmarks/label_noise.py {command}`  " for command in dict.fromkeys(row["command"] for row in rows)),
        "",
    ]


def papers_part(paper: dict[str, Any], table: str, data: str) -> tuple[str, dict[str, Any]]:
    """The paper's data set that stands beside ours, and its figures: the same one, else the table's first."""
    found = paper["tables"][table]
    name = data if data in found else next(iter(found))
    return name, found[name]


def grid(corner: str, columns: list[str], lines: dict[str, list[str]]) -> list[str]:
    head = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return head + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in lines.items()]


def noise_name(row: dict[str, Any]) -> str:
    return f"{row['noise']}:{row['rate']:.2f}" if row["rate"] else "clean"


def in_order(rows: list[dict[str, Any]]) -> list[str]:
    papers = [split_noise(noise) for noises in NOISE_OF.values() for noise in noises]
    order = ["clean", *(f"{kind}:{rate:.2f}" for kind, rate in papers)]
    return sorted({noise_name(row) for row in rows}, key=lambda n: (order.index(n) if n in order else len(order), n))


def figures(rows: list[dict[str, Any]], paper: dict[str, Any], last_k: int) -> list[str]:
    r2 = rows[0]["figure"] == "r2"
    _, theirs = papers_part(paper, "4.1" if r2 else "4.2", rows[0]["protocol"]["data"])
    digits = 3 if r2 else 2
    names = [row["method"] for row in rows]
    order = METHODS_OF["4.1" if r2 else "4.2"].split(",")
    columns = {column_of(row, rows): row["method"] for row in sorted(rows, key=lambda r: names.index(r["method"]))}
    columns = dict(sorted(columns.items(), key=lambda item: order.index(item[1]) if item[1] in order else len(order)))
    lines = {}
    for noise in in_order(rows):
        cells = []
        for column, method in columns.items():
            mine = [r for r in rows if noise_name(r) == noise and column_of(r, rows) == column]
            value = theirs.get(noise, {}).get(method)
            beside = "" if value is None else f" [{value[0]:.{digits}f}]"
            cells.append(cell([statistics.fmean(r["epochs"][-last_k:]) for r in mine], digits) + beside)
        lines[noise] = cells
    return grid("corruption", list(columns), lines)


def sensitivity(rows: list[dict[str, Any]], paper: dict[str, Any], last_k: int) -> list[str]:
    _, theirs = papers_part(paper, "4.4", rows[0]["protocol"]["data"])
    lines = {}
    for noise in in_order(rows):
        for method in dict.fromkeys(r["method"] for r in rows if noise_name(r) == noise):
            cells = []
            for offset in OFFSETS:
                mine = [r for r in rows if (noise_name(r), r["method"]) == (noise, method)]
                mine = [r for r in mine if abs(r["told"] - r["rate"] - offset) < 1e-6]
                value = theirs.get(noise, {}).get(f"{offset:+.2f}") if method == "co-prl" else None
                beside = "" if value is None else f" [{value[0]:.2f}]"
                cells.append(cell([statistics.fmean(r["epochs"][-last_k:]) for r in mine]) + beside)
            lines[f"{noise} {method}"] = cells
    return grid("corruption, method", [f"rate {offset:+.2f}" if offset else "rate" for offset in OFFSETS], lines)


def times(rows: list[dict[str, Any]], paper: dict[str, Any]) -> list[str]:
    """Median seconds of an epoch over rounds and seeds, and the median of the ratios to the same round's standard epoch."""
    _, theirs = papers_part(paper, "4.6", rows[0]["protocol"]["data"])
    by_method: dict[str, dict[tuple[Any, ...], list[float]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[(row["seed"], noise_name(row))] = row["epoch_seconds"]
    lines = {}
    for method, runs in by_method.items():
        seconds = [s for run in runs.values() for s in run]
        base = by_method.get("standard", {})
        ratios = [a / b for key, run in runs.items() for a, b in zip(run, base.get(key, []))]
        beside = f" [{theirs[method]:.2f} s; {theirs[method] / theirs['standard']:.2f}]" if method in theirs else ""
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "–"
        lines[method] = [f"{statistics.median(seconds):.2f} s ({len(seconds)} epochs); {ratio}" + beside]
    return grid("method", ["median seconds of an epoch; median ratio to standard, round by round"], lines)


def estimates(rows: list[dict[str, Any]], others: list[dict[str, Any]], last_k: int) -> list[str]:
    """Realised rate, each seed's estimate with its interval, and the accuracy beside standard training's and the known rate's."""
    lines = {}
    for noise in in_order(rows):
        for method in dict.fromkeys(r["method"] for r in rows if noise_name(r) == noise):
            same = [r for r in others if noise_name(r) == noise]
            mine = sorted((r for r in rows if (noise_name(r), r["method"]) == (noise, method)), key=lambda r: r["seed"])
            told = ["none" if r["estimate"] is None else "{:.3f} ({:.3f} to {:.3f})".format(*r["estimate"]) for r in mine]
            known = [r for r in same if r["method"] == method and r["settings"].get("noise_rate") != "auto"]
            accuracy = [
                cell([statistics.fmean(r["epochs"][-last_k:]) for r in group])
                for group in (mine, [r for r in known if r["told"] == r["rate"]], [r for r in same if r["method"] == "standard"])
            ]
            realised = sorted({f"{r['realised_rate']:.3f}" for r in mine})
            lines[f"{noise} {method}"] = [", ".join(realised), "; ".join(told), *accuracy]
    return grid("corruption, method", ["realised", "estimate (interval), each seed", "accuracy", "rate known", "standard"], lines)
