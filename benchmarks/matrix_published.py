"""Published figures beside the board's own, from published_backdoors.json, each with its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fine_tuning_report import table

if TYPE_CHECKING:
    from matrix_report import Board

FILE = Path(__file__).with_name("published_backdoors.json")
#: Published name of a figure -> ours.
FIGURES = {"ca": "accuracy", "asr": "attack_success", "ra": "triggered_accuracy", "tpr": "tpr", "fpr": "fpr"}
#: Published name of a defence -> ours, where they differ.
DEFENCES = {"fine-pruning": "fine-pruning last-linear"}


def published() -> dict[str, Any]:
    """``sources`` by name, and ``rows``."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def beside(board: Board) -> list[str]:
    """Tables of what is published, and beside it what the board has for the same attack, rule and rate on CIFAR-10."""
    found = published()
    what = "Of other networks, with far more images and epochs than here: what an attack or a defence does in its own setting."
    out = ["## Published figures", "", what, ""]
    for name, source in found["sources"].items():
        rows = [row for row in found["rows"] if row["source"] == name]
        figures = [figure for figure in FIGURES if any(figure in row for row in rows)]
        defences = list(dict.fromkeys(row["defence"] for row in rows))
        places = dict.fromkeys((row["attack"], row["rule"], row["rate"]) for row in rows)
        lines = []
        for attack, rule, rate in places:
            line = [" ".join(x for x in (attack, rule or "", f"{100 * rate:g} %" if rate else "") if x)]
            for defence in defences:
                own = [r for r in rows if (r["attack"], r["rule"], r["rate"], r["defence"]) == (attack, rule, rate, defence)]
                shown = " / ".join(f"{own[0][f]:.1f}" if f in own[0] else "–" for f in figures) if own else "–"
                line.append(shown + _ours(board, attack, rule, rate or 0.1, DEFENCES.get(defence, defence), figures))
            lines.append(line)
        heads = " / ".join(figure.upper() for figure in figures)
        out += [f"{source['title']} ({source['where']}); {source['setting']}. {heads}; in brackets ours on cifar10:", "",
                *table(["", *defences], lines), ""]  # fmt: skip
    return out


def _ours(board: Board, attack: str, rule: str | None, rate: float, defence: str, figures: list[str]) -> str:
    for place in board.places:
        if (place.task, place.attack, place.rule) == ("cifar10", attack, rule) and (attack == "none" or place.rate == rate):
            values = [board.value(place, defence, FIGURES[figure]) for figure in figures]
            if any(v is not None for v in values):
                return f" ({' / '.join('–' if v is None else f'{v:.1f}' for v in values)})"
    return ""
