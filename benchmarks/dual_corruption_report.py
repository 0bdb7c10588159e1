"""The tables of benchmarks/dual_corruption.py: ERAT's II, III and VI, the selection, time, and the poisons alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import cell, machine_line

PAPER = json.loads((Path(__file__).parent / "paper_dual_corruption.json").read_text())
COLUMNS: tuple[str, ...] = tuple(PAPER["columns"])
METHODS = ("ce", "at", "iss", "erat")
ABLATIONS = ("erat", "erat-linf", "erat-l2", "ce-score", "no-rb", "no-uni", "no-aug", "no-at", "no-ss")
#: Norm of each poison; up and tap are no columns of the paper.
NORMS: dict[str, str] = {**PAPER["norms"], "up": "linf", "tap": "linf"}
_NAMES = {
    "ce": "CE", "at": "AT", "iss": "ISS", "erat": "ERAT", "erat-linf": "ERAT l_inf", "erat-l2": "ERAT l_2",
    "ce-score": "ERAT w/ CE", "no-rb": "ERAT w/o RB", "no-uni": "ERAT w/o Uni", "no-aug": "ERAT w/o Aug",
    "no-at": "ERAT w/o AT", "no-ss": "ERAT w/o SS",
}  # fmt: skip
_NORM = {"linf": "l_inf", "l2": "l_2"}
Rows = list[dict[str, Any]]


def report(rows: Rows, figure: str = "last") -> str:
    """Markdown: for each protocol the three tables with the paper's figures in brackets. figure: last or best."""
    runs, checks = [row for row in rows if "protocol" in row], [row for row in rows if "check" in row]
    out: list[str] = []
    groups: dict[str, Rows] = {}
    for row in runs:
        groups.setdefault(json.dumps(row["protocol"], sort_keys=True), []).append(row)
    for group in groups.values():
        out += [*_heading(group, figure), *clean(group, figure)]
        out += corrupted(group, figure, "3", "III: poison x label noise", METHODS)
        out += corrupted(group, figure, "6", "VI: ERAT without one of its parts", ABLATIONS)
        out += [*selection(group), *times(group), ""]
    return "\n".join([*out, *poisons(checks)]) or "no finished runs."


def columns_of(rows: Rows) -> dict[str, Rows]:
    """The runs by poison: none, the paper's in its order, others; with what differs between poisons of one name."""
    order = ["none", *COLUMNS, *(name for name in NORMS if name not in COLUMNS)]
    kinds: dict[str, Rows] = {}
    for row in rows:
        kinds.setdefault(json.dumps({k: v for k, v in row["poison"].items() if k != "seed"}, sort_keys=True), []).append(row)
    out: dict[str, Rows] = {}
    for mine in sorted(kinds.values(), key=lambda mine: order.index(mine[0]["poison"]["poison"])):
        kind = mine[0]["poison"]
        same = [row["poison"] for row in rows if row["poison"]["poison"] == kind["poison"]]
        keys = sorted(k for k in kind if k != "seed" and any(other.get(k) != kind[k] for other in same))
        out[kind["poison"] + "".join(f" {k}={kind[k]}" for k in keys)] = mine
    return out


def named(rows: Rows) -> dict[str, Rows]:
    """The runs by method, in the tables' order; with those settings that differ between runs of one method and poison."""
    groups: dict[str, Rows] = {}
    for row in rows:
        given, others = row["given"], [r for r in rows if r["name"] == row["name"]]
        same = [r for r in others if r["poison"]["poison"] == row["poison"]["poison"]]
        keys = sorted({k for r in same for k in {*r["given"], *given} if r["given"].get(k) != given.get(k)})
        label = row["name"] + (f" ({', '.join(f'{k}={given.get(k)}' for k in keys)})" if keys else "")
        groups.setdefault(label, []).append(row)
    order = [*METHODS, *ABLATIONS]
    return dict(sorted(groups.items(), key=lambda item: order.index(item[1][0]["name"])))


def title(label: str) -> str:
    name, *rest = label.split(" ", 1)
    return " ".join([_NAMES.get(name, name), *rest])


def clean(rows: Rows, figure: str) -> list[str]:
    """Table II."""
    rows = [row for row in rows if (row["noise"], row["poison"]["poison"]) == ("clean", "none")]
    if not rows:
        return []
    lines = []
    for label, mine in named(rows).items():
        beside = _beside(PAPER["tables"]["2"].get(mine[0]["name"]))
        lines.append(f"| {title(label)} | {cell([row[figure] for row in mine], 1)}{beside} |")
    return ["### Table II: clean data", "", "| method | accuracy |", "|---|---|", *lines, ""]


def corrupted(rows: Rows, figure: str, table: str, told: str, methods: Sequence[str]) -> list[str]:
    """Table III or VI, with the mean over the poisons. Table VI is left out where only ERAT itself was run."""
    rows = [row for row in rows if row["name"] in methods and (row["noise"], row["poison"]["poison"]) != ("clean", "none")]
    if not rows or (table == "6" and all(row["name"] == "erat" for row in rows)):
        return []
    columns = columns_of(rows)
    attacks = [label for label in columns if label != "none"]
    head = " | ".join(f"{label} ({_NORM[NORMS[label.split()[0]]]})" if label in attacks else label for label in columns)
    out = [f"### Table {told}", "", f"| noise | method | {head} | mean over the poisons |", "|---" * (len(columns) + 3) + "|"]
    for noise in in_order(rows):
        beside = PAPER["tables"][table].get(noise, {})
        for label, mine in named([row for row in rows if row["noise"] == noise]).items():
            theirs = beside.get(mine[0]["name"], {})
            found = {key: [row for row in column if row in mine] for key, column in columns.items()}
            cells = [cell([r[figure] for r in found[key]], 1) + _beside(theirs.get(key.split()[0])) for key in columns]
            mean = [theirs[key.split()[0]] for key in attacks if key.split()[0] in theirs]
            whole = _beside(statistics.fmean(mean) if mean and len(mean) == len(attacks) else None)
            cells.append(cell(means([found[key] for key in attacks], figure), 1) + whole)
            out.append(f"| {noise} | {title(label)} | " + " | ".join(cells) + " |")
    return [*out, ""]


def means(columns: Sequence[Rows], figure: str) -> list[float]:
    """The mean over the columns, for each seed that has all of them."""
    found = [{row["seed"]: row[figure] for row in column} for column in columns]
    seeds = set.intersection(*map(set, found)) if found else set()
    return [statistics.fmean(values[seed] for values in found) for seed in sorted(seeds)]


def in_order(rows: Rows) -> list[str]:
    """The label noises of these runs, the paper's first."""
    order = list(PAPER["tables"]["3"])
    return sorted({row["noise"] for row in rows}, key=lambda n: (order.index(n) if n in order else len(order), n))


def selection(rows: Rows) -> list[str]:
    """What ERAT's split found: of the wrong labels over the training, and of the last epoch's labelled part."""
    rows = [row for row in rows if "precision" in row["detection"]]
    if not rows:
        return []
    keys = ("precision", "recall", "auroc", "labelled", "labelled_clean")
    out = ["### Selection, percent over all poisons and seeds", ""]
    out += [
        "Precision and recall: wrong labels among the distrusted, distrusted among the wrong labels. Labelled: share of the data "
        "set in the last split; clean of these: share of right labels in it.",
        "",
    ]
    out += ["| noise (realised) | method | precision | recall | AUROC | labelled | clean of these |", "|---" * 7 + "|"]
    for noise in in_order(rows):
        for label, mine in named([row for row in rows if row["noise"] == noise]).items():
            realised = statistics.fmean(row["realised"] for row in mine)
            cells = [cell([100 * row["detection"][k] for row in mine if k in row["detection"]], 1) for k in keys]
            out.append(f"| {noise} ({100 * realised:.1f} %) | {title(label)} | " + " | ".join(cells) + " |")
    return [*out, ""]


def times(rows: Rows) -> list[str]:
    """Seconds of a run."""
    out = ["### Time of a training", "", "| method | seconds | of the processor |", "|---|---|---|"]
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        cells = (cell([row[key] for row in mine], 0) for key in ("train_seconds", "cpu_seconds"))
        out.append(f"| {title(name)} | " + " | ".join(cells) + " |")
    return [*out, ""]


def poisons(rows: Rows) -> list[str]:
    """What each poison does to a plain training on true labels."""
    if not rows:
        return []
    out = ["### The poisons alone: test accuracy of a plain training on them, true labels, no augmentation but flips", ""]
    out += ["| data | network | epochs | poison | accuracy | l_inf max | l_2 max | seconds of crafting |", "|---" * 8 + "|"]
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        told = {k: v for k, v in row["check"].items() if k != "seed"}
        groups.setdefault((row["data"], row["model"], row["epochs"], json.dumps(told, sort_keys=True)), []).append(row)
    for (data, model, epochs, told), mine in sorted(groups.items()):
        check = json.loads(told)
        more = ", ".join(f"{k}={v}" for k, v in check.get("settings", {}).items())
        name = check["poison"] + (f" ({more})" if more else "")
        sizes = [cell([row[k] for row in mine if k in row], 3) for k in ("linf_max", "l2_max")]
        cells = [cell([row["accuracy"] for row in mine], 1), *sizes, cell([row["craft_seconds"] for row in mine], 0)]
        out.append(f"| {data} | {model} | {epochs} | {name} | " + " | ".join(cells) + " |")
    return [*out, ""]


def _beside(value: float | None) -> str:
    return "" if value is None else f" [{value:.1f}]"


def _heading(rows: Rows, figure: str) -> list[str]:
    p, seeds = rows[0]["protocol"], sorted({row["seed"] for row in rows})
    size = f"{p['side']}x{p['side']} pixels" if p["side"] else "their own size"
    which = "of the last epoch" if figure == "last" else "of the best epoch on the test set (an oracle's choice)"
    width = f", width {p['width']}" if p["width"] else ""
    told = {"sgd": "SGD", "adamw": "AdamW"}[p.get("optim", "sgd")]
    found = list(dict.fromkeys(row["machine"]["commit"] for row in rows))
    commits = f"{found[0]} to {found[-1]}" if len(found) > 1 else found[0]
    return [
        f"## Dual corruption: {p['data']}, {p['train']} training and {p['test']} test images of {size}",
        "",
        f"{p['model']}{width}, {p['epochs']} epochs, {told} {p['lr']:g} ({p['lr_schedule']}), batch {p['batch_size']}; "
        "test accuracy "
        f"{which}, percent, mean ± standard deviation (n) over seeds {', '.join(map(str, seeds))}; {len(rows)} runs, "
        f"{sum(row['train_seconds'] for row in rows) / 3600:.1f} hours of training. In brackets ERAT's ({PAPER['setting']}): "
        "where data or network differ, compare orders, not values.",
        "",
        "Machine: " + "; ".join(sorted({machine_line({**row["machine"], "commit": commits}) for row in rows})),
        "",
        *(f"`benchmarks/dual_corruption.py {command}`  " for command in dict.fromkeys(row["command"] for row in rows)),
        "",
    ]
