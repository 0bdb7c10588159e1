"""The tables of benchmarks/fine_tuning.py, and which of its bars one method (auto) reaches, from the finished runs alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from common import cell, column_of, machines_line

Row = dict[str, Any]
#: What fixes a run beside its cell: runs that differ in one of these are no seeds of one another.
PROTOCOL = ("network", "side", "train_rows", "test_rows", "epochs", "batch_size", "lr")
TASKS = ("cifar10", "sst2", "clinc150", "digits", "mnist")
CLEAN = ("clean", "tail")
NOISES = ("symmetric20", "symmetric40", "pairflip30", "instance30")
TRIGGERS = ("patch5", "patch10", "patch25", "blend25")
#: Methods of the matrix beside the judged one, and seeds of a whole cell.
OTHERS, SEEDS = ("plain", "spl", "prl", "co-prl", "gce", "prl-at-memory"), 3
#: The references, which are transformers' own Trainer: on all rows, and on those that are not corrupted.
PLAIN, CLEAN_ONLY = "plain", "clean-only"
#: Networks that are not fine-tuned.
FROM_SCRATCH = ("small-cnn", "resnet18", "preact-resnet18", "vit")

#: Largest attack success in percent, and how far below `CLEAN_ONLY` the accuracy may be, in points.
ATTACK = {"patch5": 5.0, "patch10": 5.0, "patch25": 10.0, "blend25": 10.0}
BEHIND = 2.0
#: Smallest AUROC of an audit.
AUROC = {"symmetric": 0.97, "instance": 0.93, "patch": 0.93, "blend": 0.93, "pairflip": 0.9}


@dataclass
class Matrix:
    """The runs by (task, corruption, column); columns are methods, and apart where their settings differ."""

    runs: dict[tuple[str, str, str], list[Row]]

    @classmethod
    def of(cls, rows: list[Row]) -> Matrix:
        runs: dict[tuple[str, str, str], list[Row]] = {}
        for row in {row["key"]: row for row in rows}.values():
            told = {"told": row.get("told", round(row["rate"], 2))}
            column = column_of({**row, **told}, [{**other, "told": round(other["rate"], 2)} for other in rows])
            runs.setdefault((task_of(row, rows), row["corruption"], column), []).append(row)
        return cls(runs)

    def names(self, place: int, task: str | None = None) -> list[str]:
        """Tasks (0), corruptions (1) or columns (2), those of the matrix in its order and the others after."""
        order = (TASKS, (*CLEAN, *NOISES, *TRIGGERS), (PLAIN, CLEAN_ONLY, *OTHERS[1:]))[place]
        found = dict.fromkeys(key[place] for key in self.runs if task is None or key[0] == task)
        plain = [name.split(" (")[0] for name in order]
        return sorted(found, key=lambda name: plain.index(own) if (own := name.split(" (")[0]) in plain else len(plain))

    def values(self, task: str, corruption: str, column: str, figure: str) -> dict[int, float]:
        """A figure by seed, in percent where it is a share."""
        found = {row["seed"]: row.get(figure) for row in self.runs.get((task, corruption, column), [])}
        times = 1 if figure in ("auroc", "cpu_seconds") else 100
        return {seed: times * value for seed, value in found.items() if value is not None}

    def mean(self, task: str, corruption: str, column: str, figure: str) -> float | None:
        values = self.values(task, corruption, column, figure)
        return statistics.fmean(values.values()) if values else None

    def gain(self, task: str, corruption: str, columns: tuple[str, str], figure: str) -> float | None:
        """How far the first column is above the second, over the seeds that both have; None without one."""
        first, second = (self.values(task, corruption, column, figure) for column in columns)
        both = first.keys() & second.keys()
        return statistics.fmean(first[seed] - second[seed] for seed in both) if both else None

    def cells(self, corruptions: Iterable[str]) -> list[tuple[str, str]]:
        """The cells of the matrix, run or not, of those tasks of which there are runs: no triggers in texts.

        Of tasks that are not of the matrix, those for a GPU, the cells that there are runs of.
        """
        found = {key[:2] for key in self.runs}
        whole = {task for task in self.names(0) if task.split(" (")[0] in TASKS}
        pairs = [(task, corruption) for task in self.names(0) for corruption in corruptions]
        pairs = [(task, corruption) for task, corruption in pairs if task in whole or (task, corruption) in found]
        return [(task, corruption) for task, corruption in pairs if not (is_text(task) and corruption in TRIGGERS)]


def task_of(row: Row, rows: list[Row]) -> str:
    """The task's name, with what differs between the runs of it."""
    others = [other for other in rows if other["task"] == row["task"]]
    differ = [name for name in PROTOCOL if any(other[name] != row[name] for other in others)]
    return row["task"] + (f" ({', '.join(f'{name}={row[name]}' for name in differ)})" if differ else "")


def is_text(task: str) -> bool:
    return task.startswith(("sst2", "clinc150"))


# ---- tables -----------------------------------------------------------------------------------------------------------


def report(rows: list[Row], judged: str = "auto") -> str:
    """All tables and the bars in markdown; figures are mean ± standard deviation (seeds)."""
    if not rows:
        return ""
    matrix = Matrix.of(rows)
    out = [f"Machine: {machines_line(rows)}", ""]
    for task in matrix.names(0):
        out += [*accuracies(matrix, task), "", *areas(matrix, task), "", *seconds(matrix, task), ""]
    return "\n".join([*out, *details(matrix, judged), "", *bars(matrix, judged), "", *missing_runs(matrix, judged)])


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return ["| " + " | ".join(one) + " |" for one in (head, ["---"] * len(head), *map(list, lines))]


def accuracies(matrix: Matrix, task: str) -> list[str]:
    """Test accuracy of every cell; of the long tail also the balanced one, of triggers also both figures of triggered images."""
    columns, lines = matrix.names(2, task), []
    for corruption in matrix.names(1, task):
        figures = {"": "accuracy"}
        if corruption == "tail":
            figures[", balanced"] = "balanced_accuracy"
        if corruption in TRIGGERS:
            figures |= {", triggered": "triggered_accuracy", ", attack success": "attack_success"}
        for words, figure in figures.items():
            found = [list(matrix.values(task, corruption, column, figure).values()) for column in columns]
            lines.append([corruption + words, *(cell(values, 1) for values in found)])
    first = next(runs[0] for key, runs in matrix.runs.items() if key[0] == task)
    told = f"{first['network']}, {first['epochs']} epochs, batch {first['batch_size']}, learning rate {first['lr']:g}"
    return [f"### {task}: test accuracy, %", "", f"{told}.", "", *table(["", *columns], lines)]


def areas(matrix: Matrix, task: str) -> list[str]:
    """AUROC of the audit's suspicion after each method that has a ledger."""
    columns = [c for c in matrix.names(2, task) if any(row.get("auroc") is not None for row in every(matrix, task, c))]
    if not columns:
        return ["No audit: no method with a ledger has run on corrupted rows."]
    lines = []
    for corruption in matrix.names(1, task):
        found = [list(matrix.values(task, corruption, column, "auroc").values()) for column in columns]
        if any(found):
            lines.append([corruption, *(cell(values, 3) for values in found)])
    return [f"{task}: AUROC of the audit after training", "", *table(["", *columns], lines)]


def seconds(matrix: Matrix, task: str) -> list[str]:
    """Seconds of training (a CPU's, on a GPU the clock's), over all corruptions but the long tail, whose runs are shorter."""
    columns, line = matrix.names(2, task), ["seconds of training"]
    for column in columns:
        runs = [row for row in every(matrix, task, column) if row["corruption"] != "tail"]
        on_cpu = [row["machine"]["device"].endswith("CPU") for row in runs]
        line.append(cell([row["cpu_seconds" if cpu else "train_seconds"] for row, cpu in zip(runs, on_cpu)], 0))
    return table([task, *columns], [line])


def every(matrix: Matrix, task: str, column: str) -> list[Row]:
    return [row for (t, _, c), runs in matrix.runs.items() if (t, c) == (task, column) for row in runs]


def details(matrix: Matrix, judged: str) -> list[str]:
    """What the judged method estimated, left out and flagged, per cell."""
    lines = []
    for task, corruption in matrix.cells((*CLEAN, *NOISES, *TRIGGERS)):
        runs = matrix.runs.get((task, corruption, judged), [])
        if not runs:
            continue
        estimates = [row["estimate"] for row in runs if row["estimate"]]
        middle = [f"{100 * statistics.fmean(values):.1f}" for values in zip(*estimates)]
        names = ("dropped_clean", "dropped_corrupted", "dropped_worst_class", "flagged", "flagged_worst_class")
        lines.append(
            [f"{task} {corruption}", f"{100 * statistics.fmean(row['rate'] for row in runs):.1f}"]
            + ["{} ({} to {})".format(*middle) if middle else "–"]
            + [cell(list(matrix.values(task, corruption, judged, name).values()), 1) for name in names]
        )
    if not lines:
        return [f"No runs of {judged}."]
    head = ["cell", "corrupted", "estimated", "clean rows left out", "corrupted rows left out", "most of a class left out"]
    head += ["flagged", "most of a class flagged"]
    return [f"### {judged}: what it estimated, left out and flagged, %", "", *table(head, lines)]


def missing_runs(matrix: Matrix, judged: str) -> list[str]:
    """Which runs the matrix lacks."""
    lines = []
    tasks = {task.split(" (")[0] for task in matrix.names(0)}
    for task, corruption in matrix.cells((*CLEAN, *NOISES, *TRIGGERS)) if tasks & {*TASKS} else []:
        methods = [CLEAN_ONLY, *OTHERS, *([judged] if judged not in OTHERS else [])]
        if corruption in CLEAN:
            methods.remove(CLEAN_ONLY)  # is the plain one there
        counts = {
            m: len(matrix.runs.get((task, corruption, m), [])) for m in methods if not (is_text(task) and m == "prl-at-memory")
        }
        if few := [f"{method} ({count})" for method, count in counts.items() if count < SEEDS]:
            lines.append(f"- {task} {corruption}: {', '.join(few)}")
    without = [task for task in TASKS if task not in tasks]
    lines += [f"- no runs of {', '.join(without)}"] if 0 < len(without) < len(TASKS) else []
    return [f"### Missing: cells with fewer than {SEEDS} seeds, and how many there are", "", *(lines or ["None."])]


# ---- bars -------------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """One bar: what was measured, each with whether it holds; ``missing`` are the (task, corruption) without the runs for it."""

    name: str
    asked: str
    checks: list[tuple[str, bool]]
    missing: list[tuple[str, str]]

    def lines(self) -> list[str]:
        failed = [words for words, holds in self.checks if not holds]
        said = "nothing to judge" if not self.checks else "not reached" if failed else "reached"
        if self.missing and said == "reached":
            said = "reached so far"
        out = [f"- **{self.name}**: {said} ({len(self.checks) - len(failed)} of {len(self.checks)} checks hold). {self.asked}"]
        out += [f"  - fails: {words}" for words in failed]
        out += [f"  - holds: {words}" for words, holds in self.checks if holds and len(self.checks) <= 4]
        if self.missing:
            by_task: dict[str, list[str]] = {}
            for task, corruption in self.missing:
                by_task.setdefault(task, []).append(corruption)
            told = "; ".join(f"{task} {', '.join(dict.fromkeys(names))}" for task, names in by_task.items())
            out.append(f"  - not judged, since runs are missing: {told}")
        return out


def bars(matrix: Matrix, judged: str) -> list[str]:
    """Each bar with reached or not, and what is in the way."""
    all_checks = (harmless, useful, triggers, rate, audit)
    out = [f"### Bars for {judged}", "", "Means over the seeds; differences over the seeds that both have.", ""]
    return out + [line for check in all_checks for line in check(matrix, judged).lines()]


def harmless(matrix: Matrix, judged: str) -> Verdict:
    checks: list[tuple[str, bool]] = []
    missing: list[tuple[str, str]] = []
    for task, corruption in matrix.cells(CLEAN):
        name = f"{task} {corruption}"
        if matrix.gain(task, corruption, (judged, PLAIN), "accuracy") is None:
            missing.append((task, corruption))
            continue
        for figure in ("accuracy", "balanced_accuracy"):
            if (gain := matrix.gain(task, corruption, (judged, PLAIN), figure)) is not None:
                checks.append((f"{name} {figure.replace('_', ' ')}: {gain:+.1f} points to {PLAIN}", gain >= -0.5))
        dropped = matrix.mean(task, corruption, judged, "dropped_clean")
        if dropped is not None:
            checks.append((f"{name}: {dropped:.1f} % of the clean rows left out", dropped <= 2))
    asked = f"On clean rows within 0.5 points of {PLAIN} on both accuracies, at most 2 % of the clean rows left out."
    return Verdict("Harmless", asked, checks, missing)


def useful(matrix: Matrix, judged: str) -> Verdict:
    checks: list[tuple[str, bool]] = []
    cells = matrix.cells((*NOISES, *TRIGGERS))
    missing = [(task, corruption) for task, corruption in cells if (task, corruption, judged) not in matrix.runs]
    # without its settings' variants: one row of the table against the others
    others = [column for column in matrix.names(2) if column not in (judged, CLEAN_ONLY) and not column.startswith(f"{judged} (")]
    for words, of_triggers in (
        ("test accuracy", "accuracy"),
        ("test accuracy, of triggered images for triggers", "triggered_accuracy"),
    ):
        gains: dict[str, list[float]] = {}
        behind = {}
        for task, corruption in cells:
            figure = of_triggers if corruption in TRIGGERS else "accuracy"
            here = {other: gain for other in others if (gain := matrix.gain(task, corruption, (judged, other), figure)) is not None}
            for other, gain in here.items():
                gains.setdefault(other, []).append(gain)
            if here:
                behind[f"{task} {corruption}"] = min(here.values())
        if not gains:
            continue
        nearest = min(gains, key=lambda other: statistics.fmean(gains[other]))
        mean, count = statistics.fmean(gains[nearest]), len(gains[nearest])
        checks.append((f"{words}: {mean:+.1f} points to {nearest}, the nearest other row, over {count} cells", mean >= 3))
        low = {name: gain for name, gain in behind.items() if gain < -1}
        shown = "; ".join(f"{name} {gain:+.1f}" for name, gain in sorted(low.items(), key=lambda item: item[1]))
        share = f"{len(behind) - len(low)} of {len(behind)} cells within 1 point of their best other row"
        checks.append(
            (f"{words}: {share}" + (f" (not {shown})" if shown else ""), 10 * (len(behind) - len(low)) >= 9 * len(behind))
        )
    asked = "Over the corrupted cells 3 points above the best other row's mean, and in 9 of 10 within 1 point of the cell's best."
    return Verdict("Useful", asked, checks, missing)


def triggers(matrix: Matrix, judged: str) -> Verdict:
    checks: list[tuple[str, bool]] = []
    missing: list[tuple[str, str]] = []
    for task, corruption in matrix.cells(TRIGGERS):
        if any(row["network"] in FROM_SCRATCH for (t, _, _), runs in matrix.runs.items() if t == task for row in runs):
            continue
        name, most = f"{task} {corruption}", ATTACK[corruption]
        success = matrix.mean(task, corruption, judged, "attack_success")
        gain = matrix.gain(task, corruption, (judged, CLEAN_ONLY), "accuracy")
        if success is None:
            missing.append((task, corruption))
            continue
        without = matrix.mean(task, corruption, CLEAN_ONLY, "attack_success")
        beside = "" if without is None else f" ({without:.1f} % after training on the clean rows)"
        checks.append((f"{name}: attack success {success:.1f} %, at most {most:g} % asked{beside}", success <= most))
        if gain is None:
            missing.append((task, corruption))
        else:
            checks.append((f"{name}: accuracy {gain:+.1f} points to {CLEAN_ONLY}", gain >= -BEHIND))
    asked = f"In fine-tuning attack success at most 5 % (25 %: 10 %), accuracy within {BEHIND:g} points of {CLEAN_ONLY}."
    return Verdict("Triggers", asked, checks, missing)


def rate(matrix: Matrix, judged: str) -> Verdict:
    checks: list[tuple[str, bool]] = []
    missing: list[tuple[str, str]] = []
    for task, corruption in matrix.cells((*CLEAN, *NOISES, *TRIGGERS)):
        name, runs = f"{task} {corruption}", matrix.runs.get((task, corruption, judged), [])
        found = [(100 * row["rate"], 100 * row["estimate"][0]) for row in runs if row["estimate"]]
        if not found:
            missing.append((task, corruption))
            continue
        true, said = (statistics.fmean(values) for values in zip(*found))
        holds = said <= 2 if corruption in CLEAN else abs(said - true) <= 5
        checks.append((f"{name}: {said:.1f} % estimated, {true:.1f} % true", holds))
    return Verdict("Rate", "The estimated share of corrupted rows within 5 points; on clean rows at most 2 %.", checks, missing)


def audit(matrix: Matrix, judged: str) -> Verdict:
    checks: list[tuple[str, bool]] = []
    missing: list[tuple[str, str]] = []
    for task, corruption in matrix.cells((*CLEAN, *NOISES, *TRIGGERS)):
        name = f"{task} {corruption}"
        figures = ("flagged", "flagged_worst_class") if corruption in CLEAN else ("auroc",)
        values = {figure: matrix.mean(task, corruption, judged, figure) for figure in figures}
        if any(value is None for value in values.values()):
            missing.append((task, corruption))
        elif corruption in CLEAN:
            most, lost = values["flagged"], values["flagged_worst_class"]
            assert most is not None and lost is not None
            checks.append((f"{name}: {most:.1f} % flagged", most <= 2))
            checks.append((f"{name}: {lost:.1f} % of a class flagged", lost <= 10))
        else:
            area, least = values["auroc"], next(least for kind, least in AUROC.items() if corruption.startswith(kind))
            assert area is not None
            checks.append((f"{name}: AUROC {area:.3f}, at least {least} asked", area >= least))
    asked = "AUROC 0.97 symmetric, 0.93 instance and triggers, 0.9 pairflip; on clean rows 2 % flagged, of no class over a tenth."
    return Verdict("Audit", asked, checks, missing)
