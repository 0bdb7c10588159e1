"""The tables of benchmarks/anomaly.py as markdown, the paper's figures beside ours."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import machines_line
from scipy.stats import rankdata

Rows = list[dict[str, Any]]
PAPER = json.loads((Path(__file__).parent / "paper_anomaly.json").read_text())
#: What stands in every line; anything else is a setting that was changed.
KNOWN = (
    "key", "table", "missing", "offset", "seed", "detector", "auroc", "ap", "seconds", "told", "rows", "columns", "machine",
    "flagged", "precision", "recall", "true",
)  # fmt: skip
SHOWN = {"iforest": "isolation forest", "ocsvm": "OneClassSVM", "lof": "LOF"}


def means(rows: Rows, figure: str = "auroc") -> dict[str, dict[str, tuple[float, float, int]]]:
    """Mean, standard deviation and number of runs by table and detector."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["table"]][row["detector"]].append(row[figure])
    spread = lambda v: statistics.stdev(v) if len(v) > 1 else 0.0  # noqa: E731
    return {t: {d: (statistics.fmean(v), spread(v), len(v)) for d, v in kinds.items()} for t, kinds in found.items()}


def ranks(found: dict[str, dict[str, Any]], names: Sequence[str]) -> list[float]:
    """Each detector's rank, 1 for the largest mean, averaged over the tables that all of them have; ties share a rank."""
    whole = [kinds for kinds in found.values() if all(n in kinds for n in names)]
    return list(np.mean([rankdata([-round(kinds[n][0], 4) for n in names]) for kinds in whole], axis=0)) if whole else []


def line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def grid(title: str, rows: Rows, names: Sequence[str], paper: dict[str, Any] | None = None, figure: str = "auroc") -> list[str]:
    """A table of means and deviations in %, the paper's mean in brackets, average ranks at the bottom."""
    found = means(rows, figure)
    names = [n for n in names if any(n in kinds for kinds in found.values())]
    if not names:
        return []
    counts = sorted({cell[2] for kinds in found.values() for n, cell in kinds.items() if n in names})
    out = [f"### {title}", "", f"Seeds a cell: {', '.join(map(str, counts))}.", ""]
    out += [line(["table", *(SHOWN.get(n, n) for n in names)]), line(["---"] * (len(names) + 1))]

    def cell(table: str, name: str) -> str:
        if name not in found[table]:
            return "–"
        mean, spread, _ = found[table][name]
        told = ""
        if paper and table in paper and name in paper["columns"]:
            old = paper[table][paper["columns"].index(name)]
            told = f" ({100 * old[0]:.1f} ± {100 * old[1]:.1f})"
        return f"{100 * mean:.1f} ± {100 * spread:.1f}{told}"

    out += [line([table, *(cell(table, n) for n in names)]) for table in found]
    if all(n in kinds for kinds in found.values() for n in names):
        out.append(line(["mean", *(f"{100 * statistics.fmean(kinds[n][0] for kinds in found.values()):.1f}" for n in names)]))
    out.append(line(["average rank", *(f"{r:.2f}" for r in ranks(found, names))]))
    if paper:
        old = {t: {n: paper[t][i] for i, n in enumerate(paper["columns"])} for t in found if t in paper}
        both = [n for n in names if n in paper["columns"]]
        theirs = dict(zip(both, ranks(old, both)))
        out.append(line(["the paper's, on these", *(f"{theirs[n]:.2f}" if n in theirs else "–" for n in names)]))
    return [*out, ""]


def against(rows: Rows, name: str, paper: dict[str, Any]) -> str:
    """On how many tables the detector's mean is at least the paper's less its deviation, or less both deviations."""
    found = means(rows)
    place = paper["columns"].index(name)
    both = {t: (*found[t][name][:2], *paper[t][place]) for t in found if t in paper and name in found[t]}
    behind = {t: mean - old for t, (mean, _, old, spread) in both.items() if mean < old - spread}
    clearly = [t for t, (mean, own, old, spread) in both.items() if mean < old - (own**2 + spread**2) ** 0.5]
    told = "; behind it (difference of the means): " + ", ".join(f"{t} ({100 * gap:+.1f})" for t, gap in behind.items())
    least = f", not {', '.join(clearly)}" if clearly else ""
    return (
        f"`{name}` is within the paper's deviation or better on {len(both) - len(behind)} of {len(both)} tables"
        f"{told if behind else ''}. The paper's deviation is over initialisations; ours, over splits too, is larger: with both "
        f"(root of the sum of squares) {len(both) - len(clearly)} of {len(both)}{least}."
    )


def duels(rows: Rows, others: Sequence[str]) -> list[str]:
    """Wins, draws and losses of rca against each other by the share of missing values; a draw is a tie at three decimals."""
    out = [line(["missing", "mean AUROC of rca", *(SHOWN.get(n, n) for n in others)]), line(["---"] * (len(others) + 2))]
    for missing in sorted({row["missing"] for row in rows}):
        found = means([row for row in rows if row["missing"] == missing])
        found = {t: kinds for t, kinds in found.items() if "rca" in kinds and all(n in kinds or missing for n in others)}
        if not found:
            continue
        cells = []
        for name in others:
            pairs = [(k["rca"][0], k[name][0]) for k in found.values() if "rca" in k and name in k]
            won = sum(round(a, 3) > round(b, 3) for a, b in pairs)
            lost = sum(round(a, 3) < round(b, 3) for a, b in pairs)
            old = PAPER["table_2_2"].get(str(missing), [])
            column = PAPER["table_2_2"]["columns"].index(name) if name in PAPER["table_2_2"]["columns"] else None
            told = f" ({old[column]})" if old and column is not None else ""
            mean = f", mean {100 * np.mean([b for _, b in pairs]):.1f}" if pairs else ""
            cells.append(f"{won}-{len(pairs) - won - lost}-{lost}{told}{mean}")
        mean = 100 * np.mean([k["rca"][0] for k in found.values()])
        seeds = sorted({k["rca"][2] for k in found.values()})
        out.append(line([f"{missing:.0%} ({'/'.join(map(str, seeds))} seeds)", f"{mean:.1f}", *cells]))
    return out


def offsets(rows: Rows) -> list[str]:
    """AUROC of rca by what was added to the true share of anomalies."""
    steps = sorted({row["offset"] for row in rows})
    paper = PAPER["table_2_3"]
    out = [line(["table", *(f"{s:+.2f}" for s in steps)]), line(["---"] * (len(steps) + 1))]
    by = {s: means([row for row in rows if row["offset"] == s]) for s in steps}
    for table in (t for t in by[0.0] if all(t in found for found in by.values())):
        cells = []
        for s in steps:
            mean, spread, _ = by[s][table]["rca"]
            old = paper[table][paper["columns"].index(s)][0] if table in paper else None
            cells.append(f"{100 * mean:.1f} ± {100 * spread:.1f}" + (f" ({100 * old:.1f})" if old is not None else ""))
        out.append(line([table, *cells]))
    return out


def automatic(rows: Rows) -> list[str]:
    """What contamination="auto" flags, by table and detector."""
    names = sorted({row["detector"] for row in rows if "flagged" in row})
    heads = [f"{n}: flagged, precision, recall, AUROC" for n in names]
    out = [line(["table", "true share", *heads]), line(["---"] * (len(names) + 2))]
    for table in means(rows):
        own = [row for row in rows if row["table"] == table and "flagged" in row]
        cells = []
        for name in names:
            runs = [row for row in own if row["detector"] == name]
            keys = ("flagged", "precision", "recall", "auroc")
            cells.append(", ".join(f"{100 * statistics.fmean(row[k] for row in runs):.1f}" for k in keys) if runs else "–")
        out.append(line([table, f"{100 * statistics.fmean(row['true'] for row in own):.1f}", *cells]))
    return out


def changed(row: dict[str, Any]) -> str:
    """The settings of a run that are not the detector's own, in words."""
    return ", ".join(f"{key}={row[key]:g}" for key in row if key not in KNOWN)


def report(rows: Rows) -> str:
    """All tables of the finished runs."""
    every, rows = rows, [row for row in rows if not changed(row)]
    plain = [row for row in rows if row["missing"] == 0 and row["offset"] == 0]
    flows = [row for row in plain if row["seed"] < 5]
    main = ("rca", "ae", "vae", "ocsvm", "lof", "iforest")
    dense = ("robust-realnvp", "realnvp", "ae", "vae", "ocsvm", "lof", "iforest")
    out = [
        "# Anomaly detection: results", "",
        "Made by `benchmarks/anomaly.py`; do not edit. AUROC in % on the 40 % of the rows that training did not see, mean ± "
        "standard deviation over the seeds; in brackets the paper's figure (Dissertation). What it means: "
        "[anomaly.md](anomaly.md).", "",
        f"{machines_line(rows)}; scikit-learn {', '.join(sorted({row['machine']['sklearn'] for row in rows}))}.", "",
    ]  # fmt: skip
    out += grid("Table 2.1: RCA", plain, main, PAPER["table_2_1"])
    out += [against(plain, "rca", PAPER["table_2_1"]), ""]
    out += grid("Table 3.1: RobustRealNVP", flows, dense, PAPER["table_3_1"])
    out += [against(flows, "robust-realnvp", PAPER["table_3_1"]), ""]
    out += grid("Both beside the others", flows, ("rca", *dense))
    variants = ("rcva", "rca-e", "rca-ss", "robust-realnvp", "trim-realnvp", "realnvp")
    out += grid("All detectors of these runs", flows, (*main, *variants))
    out += grid("Average precision", flows, (*main, "robust-realnvp"), figure="ap")
    struck = [row for row in rows if row["offset"] == 0]
    if {row["missing"] for row in struck} - {0.0}:
        out += ["### Table 2.2: missing values", "", "Wins-draws-losses of `rca` on the tables, in brackets the paper's on its 19."]
        out += ["", *duels(struck, ("rca-e", "rca-ss", "vae", "ae", "ocsvm", "lof", "iforest")), ""]
    told = [row for row in rows if row["missing"] == 0 and row["detector"] == "rca" and row["offset"] != "auto"]
    steps = {row["offset"] for row in told}
    if steps - {0.0}:
        seeds = set.intersection(*({row["seed"] for row in told if row["offset"] == s} for s in steps))
        same = [row for row in told if row["seed"] in seeds]
        out += ["### Table 2.3: a wrong share of anomalies", ""]
        out += [f"`rca`, told the true share plus the column's; {len(seeds)} seeds.", "", *offsets(same), ""]
    if alone := [row for row in rows if row["offset"] == "auto"]:
        out += ['### contamination="auto"', "", "Nothing told: share of the judged rows flagged, precision, recall, in %.", ""]
        out += [*automatic(alone), ""]
    if others := [row for row in every if changed(row)]:
        runs = {(row["table"], row["seed"]) for row in others}
        kinds = {row["detector"] for row in others}
        same = [row for row in plain if row["detector"] in kinds and (row["table"], row["seed"]) in runs]
        named = [{**row, "detector": f"{row['detector']} {changed(row)}".strip()} for row in same + others]
        out += grid("Other settings", named, sorted({row["detector"] for row in named}))
    return "\n".join(out)
