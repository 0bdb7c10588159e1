"""The board of benchmarks/matrix.py from its rows alone: tables in Markdown, a CSV, and the bars (`matrix_bars`)."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machines_line
from fine_tuning_report import CLEAN_ONLY, PLAIN, PROTOCOL, table
from matrix_bars import bars
from matrix_page import page
from matrix_published import beside, published

Row = dict[str, Any]
BACKDOORS = ("trigger", "network")
#: The kinds of defences in the order of the columns.
ORDER = ("reference", "training", "detector", "retraining", "repair")
FIRST = (PLAIN, CLEAN_ONLY, "auto")
#: Figures of a row in the CSV and on the page; shares in [0, 1].
FIGURES = (
    "accuracy", "attack_success", "triggered_accuracy", "robust_accuracy", "tpr", "fpr", "auroc", "dropped_tpr", "dropped_fpr",
    "estimate", "cpu_seconds", "cost",
)  # fmt: skip
COLUMNS = (
    "task", "network", "attack", "kind", "rule", "rate", "seed", "defence", "defence_kind", *FIGURES, "covers", "n_train", "n_test",
    "epochs",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A cell of the board: the task (with what differs between its runs), the attack, its rule, its rate, settings of its own."""

    task: str
    attack: str
    rule: str | None
    rate: float
    kind: str
    settings: str = ""

    def told(self) -> str:
        rate = f"{100 * self.rate:g} %" if 0 < self.rate < 1 else ""
        return " ".join(part for part in (self.attack, self.settings, self.rule, rate) if part)


class Board:
    """The rows by place and defence; figures are means over the seeds, in percent."""

    def __init__(self, rows: list[Row]):
        self.rows = list({row["key"]: row for row in rows}.values())
        names = _task_names(self.rows)
        self.places: dict[Place, dict[str, list[Row]]] = {}
        self.place_of: dict[str, Place] = {}  # by a row's key
        for row in self.rows:
            settings = ", ".join(f"{name} {value}" for name, value in row.get("attack_settings", {}).items())
            place = Place(
                names[_protocol(row)], row["attack"], row["rule"], row["asked"], row["kind"], f"({settings})" if settings else ""
            )  # fmt: skip
            self.place_of[row["key"]] = place
            self.places.setdefault(place, {}).setdefault(row["defence"], []).append(row)
        self.kinds = {row["defence"]: row["defence_kind"] for row in self.rows}

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(place.task for place in self.places))

    def of(self, task: str, kinds: Iterable[str]) -> list[Place]:
        """The places of a task whose attack is of these kinds, by rule, rate and name."""
        kinds = tuple(kinds)
        found = [place for place in self.places if place.task == task and place.kind in kinds]
        return sorted(found, key=lambda p: (kinds.index(p.kind) if p.kind not in BACKDOORS else 0, p.rule or "", p.rate))

    def value(self, place: Place, defence: str, figure: str) -> float | None:
        """A figure's mean over the seeds, in percent where it is a share; None where there is none."""
        found = [row.get(figure) for row in self.places.get(place, {}).get(defence, [])]
        known = [value for value in found if value is not None]
        return statistics.fmean(known) * (1 if figure == "cpu_seconds" else 100) if known else None

    def defences(self, places: Iterable[Place], kinds: Iterable[str]) -> list[str]:
        """The defences of these kinds that have rows at these places: plain, clean-only and auto first."""
        kinds = tuple(kinds)
        found = dict.fromkeys(d for place in places for d in self.places[place] if self.kinds[d] in kinds)
        return sorted(found, key=lambda d: (FIRST.index(d) if d in FIRST else len(FIRST), kinds.index(self.kinds[d])))

    def cost(self, place: Place, defence: str) -> float | None:
        """CPU seconds over those of plain training, the plain training counted in where the defence needs it."""
        plain, own = self.value(place, PLAIN, "cpu_seconds"), self.value(place, defence, "cpu_seconds")
        if not plain or own is None:
            return None
        kind, some = self.kinds[defence], self.places[place][defence][0]
        rests = kind in ("detector", "retraining") or (kind == "repair" and some.get("on_plain", True))
        base = plain if rests and not defence.startswith("audit-dataset") else 0.0
        judge = self.value(place, defence.removesuffix("+retrain"), "cpu_seconds") if kind == "retraining" else 0.0
        return (base + own + (judge or 0.0)) / plain


def _protocol(row: Row) -> tuple[Any, ...]:
    return (row["task"], *(row[name] for name in PROTOCOL))


def _task_names(rows: list[Row]) -> dict[tuple[Any, ...], str]:
    """Each protocol's name: the task's, with what differs between its runs."""
    found = dict.fromkeys(_protocol(row) for row in rows)
    names = {}
    for one in found:
        others = [other for other in found if other[0] == one[0]]
        differ = [(n, one[i]) for i, n in enumerate(PROTOCOL, 1) if any(other[i] != one[i] for other in others)]
        names[one] = one[0] + (f" ({', '.join(f'{n}={v}' for n, v in differ)})" if differ else "")
    return names


# ---- files ------------------------------------------------------------------------------------------------------------


def report(rows: list[Row], to: Path) -> str:
    """Writes board.md, board.csv and board.html to a folder and returns the bars as text; '' without rows."""
    if not rows:
        return ""
    board = Board(rows)
    flat = [{**row, "cost": board.cost(board.place_of[row["key"]], row["defence"])} for row in board.rows]
    to.mkdir(parents=True, exist_ok=True)
    judged = bars(board)
    (to / "board.md").write_text("\n".join([*head(board), *judged, "", *tables(board)]) + "\n", encoding="utf-8")
    (to / "board.csv").write_text(as_csv(flat), encoding="utf-8")
    (to / "board.html").write_text(page(flat, COLUMNS, FIGURES, published()), encoding="utf-8")
    return "\n".join([*judged, "", f"written: {', '.join(str(to / name) for name in ('board.md', 'board.csv', 'board.html'))}"])


def as_csv(rows: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{row[name]:.4g}" if isinstance(row.get(name), float) else row.get(name) for name in COLUMNS})
    return out.getvalue()


HEAD = """# The board: every attack against every defence

`benchmarks/matrix.py`, from [rows/board.jsonl](rows/board.jsonl); [board.csv](board.csv) and [board.html](board.html) (columns that
sort) have every row. Any cell again, the whole board (rows that are there are skipped), what that would take, and this page:

    python benchmarks/matrix.py --data_dir D --tasks digits --attacks patch --rules all-to-one --rates 0.1 --defences plain auto
    python benchmarks/matrix.py --data_dir D --out docs/experiments/rows/board.jsonl
    python benchmarks/matrix.py --dry_run --out docs/experiments/rows/board.jsonl
    python benchmarks/matrix.py --report --out docs/experiments/rows/board.jsonl --to docs/experiments

CA: accuracy on clean test rows. ASR: of the triggered test rows whose label the attacker would change, the share that gets the
label that the attacker wants (untargeted: any wrong one). RA: the share of the same rows that gets its true label. TPR, FPR: the
share of the poisoned, and of the clean, training rows that is flagged; rows that carry a trigger and their right label (covers)
count in neither. All in percent, seed 0 unless said otherwise. Methods and detectors that take the rate are told the true one;
auto, audit and audit-dataset are told nothing. `X+retrain` is plain training on the rows that X leaves. Repairs are given clean
rows, 5 % of the training set.
"""


def head(board: Board) -> list[str]:
    return [HEAD, f"{len(board.rows)} rows. Machine: {machines_line(board.rows)}.", ""]


# ---- tables -----------------------------------------------------------------------------------------------------------


def tables(board: Board) -> list[str]:
    out: list[str] = []
    for task in board.tasks:
        one = next(row for place, by in board.places.items() if place.task == task for rows in by.values() for row in rows)
        out += [f"## {task}", "", f"{one['network']}, {one['train_rows']:,} training rows, {one['epochs']} epochs.", ""]
        for part in (_threats, _backdoors, _detection, _others, _cost):
            out += part(board, task)
    return [*out, *beside(board)]


def _grid(
    board: Board, title: str, places: list[Place], defences: list[str], show: Callable[[Place, str], str | None]
) -> list[str]:
    """A table of places and defences; columns and rows without any figure are left out."""
    cells = {(place, d): show(place, d) for place in places for d in defences}
    columns = [d for d in defences if any(cells[place, d] for place in places)]
    shown = [place for place in places if any(cells[place, d] for d in columns)]
    lines = [[place.told(), *(cells[place, d] or "–" for d in columns)] for place in shown]
    return [title, "", *table(["", *columns], lines), ""] if lines else []


def _join(board: Board, place: Place, defence: str, figures: Iterable[str]) -> str | None:
    values = [board.value(place, defence, figure) for figure in figures]
    return None if all(v is None for v in values) else " / ".join("–" if v is None else f"{v:.1f}" for v in values)


def _backdoors(board: Board, task: str) -> list[str]:
    places = board.of(task, BACKDOORS)
    trained = board.defences(places, ("reference", "training"))
    after = board.defences(places, ("retraining", "repair"))
    figures = ("accuracy", "attack_success", "triggered_accuracy")
    return [
        *_grid(board, f"**{task}: backdoors, CA / ASR / RA**", places, trained, lambda p, d: _join(board, p, d, figures)),
        *_grid(board, f"**{task}: repairs, and plain training on what a detector leaves, CA / ASR / RA**", places, after,
               lambda p, d: _join(board, p, d, figures)),
    ]  # fmt: skip


def _detection(board: Board, task: str) -> list[str]:
    places = board.of(task, ("none", *BACKDOORS, "labels"))
    judges = board.defences(places, ("training", "detector"))
    return _grid(
        board, f"**{task}: which training rows are flagged, TPR / FPR** (of a training: by its audit)", places, judges,
        lambda p, d: _join(board, p, d, ("tpr", "fpr")),
    )  # fmt: skip


def _others(board: Board, task: str) -> list[str]:
    out = []
    for kind, title, figures in (
        ("none", "clean data, CA / accuracy under PGD at test time", ("accuracy", "robust_accuracy")),
        ("labels", "wrong labels, CA", ("accuracy",)),
        ("availability", "availability poisons (all training images perturbed), CA", ("accuracy",)),
    ):
        places = board.of(task, (kind,))
        defences = board.defences(places, ("reference", "training", "retraining"))
        out += _grid(board, f"**{task}: {title}**", places, defences, lambda p, d, f=figures: _join(board, p, d, f))  # type: ignore[misc]
    return out


def _cost(board: Board, task: str) -> list[str]:
    places = [place for place in board.places if place.task == task]
    lines = []
    for defence in board.defences(places, ORDER):
        seconds = [v for place in places if (v := board.value(place, defence, "cpu_seconds")) is not None]
        ratios = [v for place in places if (v := board.cost(place, defence)) is not None]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "–"
        lines.append([defence, f"{statistics.median(seconds):.1f}", ratio])
    return [f"**{task}: cost**, median CPU seconds of its own part, and times plain training, with what it rests on", "",
            *table(["", "CPU seconds", "times plain"], lines), ""]  # fmt: skip


def _threats(board: Board, task: str) -> list[str]:
    """Every defence against every threat: means over the cells that it has, their number in brackets."""
    parts: tuple[tuple[str, tuple[str, ...], str], ...] = (
        ("clean CA", ("none",), "accuracy"), ("under PGD", ("none",), "robust_accuracy"), ("clean FPR", ("none",), "fpr"),
        ("wrong labels CA", ("labels",), "accuracy"), ("TPR", ("labels",), "tpr"), ("FPR", ("labels",), "fpr"),
        ("backdoors CA", BACKDOORS, "accuracy"), ("ASR", BACKDOORS, "attack_success"), ("RA", BACKDOORS, "triggered_accuracy"),
        ("TPR", BACKDOORS, "tpr"), ("FPR", BACKDOORS, "fpr"), ("availability CA", ("availability",), "accuracy"),
    )  # fmt: skip
    places = [place for place in board.places if place.task == task]
    lines = []
    for defence in board.defences(places, ORDER):
        line = [defence]
        for _, kinds, figure in parts:
            values = [v for place in board.of(task, kinds) if (v := board.value(place, defence, figure)) is not None]
            line.append(f"{statistics.fmean(values):.1f} ({len(values)})" if values else "–")
        lines.append(line)
    return [f"**{task}: every defence against every threat**, means over the cells that it has (their number)", "",
            *table(["", *(name for name, _, _ in parts)], lines), ""]  # fmt: skip
