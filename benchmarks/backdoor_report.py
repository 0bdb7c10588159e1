"""The tables of `backdoor.py`, beside the papers'."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import cell, column_of, machine_line

PAPER = Path(__file__).with_name("paper_tables.json")
#: Figure -> heading of its table.
HEADINGS = {
    "poison": "poison accuracy, %",
    "clean": "clean accuracy, %",
    "asr": "attack success rate, %",
    "precision": "filter precision, %",
    "recall": "filter recall, %",
    "auroc": "AUROC of the ledger's mean score",
}


def report(rows: list[dict[str, Any]]) -> str:
    """The papers' tables in markdown: our mean ± standard deviation over the seeds, and the papers' mean in brackets."""
    paper = json.loads(PAPER.read_text())
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[json.dumps(row["protocol"], sort_keys=True)].append(row)
    out: list[str] = []
    for members in groups.values():
        told, n = members[0]["protocol"], members[0]
        few = told.get("labelled_share", 1) < 1
        name = f"{told['data_name']} semi-supervised" if few else told["data_name"]
        out += [
            f"### {told['data_name']}: {n['n_train']} training and {n['n_test']} test images, {told['model']}, "
            f"AdamW {told['lr']:g}, {told['epochs']} epochs, batch {told['batch_size']}, mean of the last {told['last_k']} epochs",
            "",
            *_pretraining(told),
            "; ".join(sorted({machine_line(row["machine"]) for row in members})),
            "",
        ]
        for attack in sorted({row["attack"] for row in members}, reverse=True):
            cells: dict[tuple[str, str, float], list[float]] = defaultdict(list)
            for row in (r for r in members if r["attack"] == attack):
                for metric in HEADINGS:
                    value = {**row, **row["detection"]}.get(metric)
                    if value is not None:
                        cells[metric, column_of(row, members), row["rate"]].append(value if metric == "auroc" else 100 * value)
            for metric, heading in HEADINGS.items():
                columns = list(dict.fromkeys(column for m, column, _ in cells if m == metric))
                rates = sorted({rate for m, _, rate in cells if m == metric})
                if not columns:
                    continue
                out += [f"**{attack}: {heading}**", ""]
                out += ["| rate | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
                for rate in rates:
                    ours = [cell(cells.get((metric, column, rate), []), 3 if metric == "auroc" else 2) for column in columns]
                    theirs = [beside(paper, name, attack, metric, column.split(" ")[0], rate) for column in columns]
                    out.append(f"| {rate:g} | " + " | ".join(a + b for a, b in zip(ours, theirs)) + " |")
                out.append("")
    if out:
        unusable = "; ".join(f"{where}: {why}" for where, why in paper["unusable"].items())
        out.append(
            "Cells: mean ± standard deviation over seeds (n); in brackets the papers' mean over 3 seeds "
            f"(all training images, ResNet-32, 100 epochs). Unusable: {unusable}."
        )
    return "\n".join(out)


def _pretraining(told: dict[str, Any]) -> list[str]:
    """A line on the labels that were used and on SimCLR, where the protocol has them."""
    if "labelled_share" not in told:
        return []
    more = f" and those of {told['unlabelled']}" if told["unlabelled"] else ""
    return [
        f"{100 * told['labelled_share']:g} % of the poisoned images have labels; `-simclr`: SimCLR on all of them{more}, "
        f"{told['contrastive_epochs']} epochs, batch {told['contrastive_batch_size']}, AdamW {told['contrastive_lr']:g}, "
        f"temperature {told['contrastive_temperature']:g}, views {told['contrastive_views']}; head AdamW {told['head_lr']:g}.",
        "",
    ]


def beside(paper: dict[str, Any], data: str, attack: str, metric: str, method: str, rate: float) -> str:
    found = paper["tables"].get(data, {}).get(attack, {}).get(metric, {}).get(method, {}).get(f"{rate:.2f}")
    if found is None:
        return ""
    if f"{data}/{attack}/{metric}/{rate:.2f}" in paper["unusable"]:
        return " [unusable]"
    return f" [{found[0]:.2f}]"
