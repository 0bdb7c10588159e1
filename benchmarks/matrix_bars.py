"""The bars of the board: which of them auto reaches, where it fails, and which attacks a plain network does not learn."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from fine_tuning_report import CLEAN_ONLY, PLAIN, Verdict

if TYPE_CHECKING:
    from matrix_report import Board, Place

#: In percent and points.
SUCCESS, BEHIND, TPR, FPR, LEARNED = 5.0, 2.0, 95.0, 2.0, 90.0
#: Rates up to which the bars hold, and failing attacks that may have no diagnosis.
RATE, UNEXPLAINED = 0.1, 2
#: A trigger is not learned where plain training gives it less than so much more success than training on clean rows.
WEAK = 20.0
#: Why a bar fails: "task attack rule" (each may be *) -> what was found.
DIAGNOSES = Path(__file__).with_name("matrix_diagnoses.json")


def bars(board: Board, judged: str = "auto") -> list[str]:
    """The bars as Markdown."""
    out = [f"## Bars for {judged}", "", f"Backdoors at rates up to {100 * RATE:g} %.", ""]
    for task in board.tasks:
        places = [place for place in board.of(task, ("trigger", "network")) if place.rate <= RATE]
        checks = (_success(board, task, places, judged), _detection(board, task, places, judged), _clean(board, task, judged))
        for verdict in checks:
            out += verdict.lines() if verdict.checks else []
        out += _learned(board, task, places)
    return [*out, *_unexplained(board, judged)]


def _success(board: Board, task: str, places: list[Place], judged: str) -> Verdict:
    """Mean attack success, and clean accuracy against training on the clean rows."""
    both = [p for p in places if board.value(p, judged, "attack_success") is not None]
    success = {p: board.value(p, judged, "attack_success") or 0.0 for p in both}
    checks: list[tuple[str, bool]] = []
    if success:
        worst = ", ".join(f"{p.told()} {v:.0f} %" for p, v in sorted(success.items(), key=lambda item: -item[1]) if v > SUCCESS)
        mean = statistics.fmean(success.values())
        words = f"mean attack success {mean:.1f} % over {len(success)} cells (above {SUCCESS:g} %: {worst or 'none'})"
        checks.append((words, mean <= SUCCESS))
    gaps = {
        p: board.value(p, judged, "accuracy") - reference  # type: ignore[operator]
        for p in both if (reference := board.value(p, CLEAN_ONLY, "accuracy")) is not None
    }  # fmt: skip
    if gaps:
        low = ", ".join(f"{p.told()} {v:+.1f}" for p, v in sorted(gaps.items(), key=lambda item: item[1]) if v < -BEHIND)
        mean, cells = statistics.fmean(gaps.values()), f"{len(gaps)} cells (below -{BEHIND:g}: {low or 'none'})"
        checks.append((f"clean accuracy {mean:+.1f} points to {CLEAN_ONLY} over {cells}", mean >= -BEHIND))
    asked = f"Mean attack success at most {SUCCESS:g} %, clean accuracy within {BEHIND:g} points of {CLEAN_ONLY}."
    return Verdict(f"{task}: attacks", asked, checks, [])


def _detection(board: Board, task: str, places: list[Place], judged: str) -> Verdict:
    checks: list[tuple[str, bool]] = []
    for place in places:
        tpr, fpr = (board.value(place, judged, figure) for figure in ("tpr", "fpr"))
        if tpr is not None and fpr is not None:
            checks.append((f"{place.told()}: TPR {tpr:.1f} %, FPR {fpr:.1f} %", tpr >= TPR and fpr <= FPR))
    return Verdict(f"{task}: detection", f"TPR at least {TPR:g} %, FPR at most {FPR:g} %, by the audit of the run.", checks, [])


def _clean(board: Board, task: str, judged: str) -> Verdict:
    """False alarms and accuracy on clean data."""
    checks: list[tuple[str, bool]] = []
    for place in board.of(task, ("none",)):
        fpr, own, plain = (board.value(place, *one) for one in ((judged, "fpr"), (judged, "accuracy"), (PLAIN, "accuracy")))
        if fpr is not None:
            checks.append((f"{fpr:.1f} % of clean rows flagged", fpr <= FPR))
        if own is not None and plain is not None:
            checks.append((f"accuracy {own - plain:+.1f} points to {PLAIN}", own - plain >= -BEHIND))
    return Verdict(f"{task}: clean data", f"FPR at most {FPR:g} %, accuracy within {BEHIND:g} points of {PLAIN}.", checks, [])


def is_weak(board: Board, place: Place) -> bool:
    """Whether plain training has hardly learned the trigger: its success is near what training on clean rows has."""
    plain = board.value(place, PLAIN, "attack_success")
    return plain is not None and plain - (board.value(place, CLEAN_ONLY, "attack_success") or 0.0) < WEAK


def _learned(board: Board, task: str, places: list[Place]) -> list[str]:
    """Which attacks succeed on plain training."""
    found = {p: v for p in places if (v := board.value(p, PLAIN, "attack_success")) is not None}
    if not found:
        return []
    weak = {p: v for p, v in found.items() if is_weak(board, p)}
    middle = {p: v for p, v in found.items() if v < LEARNED and p not in weak}

    def told(some: dict[Place, float]) -> str:
        return ", ".join(f"{p.told()} {v:.0f} %" for p, v in some.items()) or "none"

    strong = len(found) - len(weak) - len(middle)
    return [
        f"- **{task}: plain training**: attack success {LEARNED:g} % or more in {strong} of {len(found)} cells.",
        f"  - less: {told(middle)}",
        f"  - not learned here (less than {WEAK:g} points above {CLEAN_ONLY}): {told(weak)}",
    ]  # fmt: skip


def failures(board: Board, judged: str) -> dict[tuple[str, str, str], list[str]]:
    """Attacks that beat the judged defence: (task, attack, rule) -> what fails at which rate. Those not learned are none."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for task in board.tasks:
        for place in board.of(task, ("trigger", "network")):
            success = board.value(place, judged, "attack_success")
            if place.rate <= RATE and success is not None and success > SUCCESS and not is_weak(board, place):
                without = board.value(place, CLEAN_ONLY, "attack_success")
                beside = "" if without is None else f" ({without:.0f} % after training on the clean rows)"
                told = f"{100 * place.rate:g} %: {success:.0f} %{beside}"
                found.setdefault((task, place.attack, place.rule or ""), []).append(told)
    return found


def _unexplained(board: Board, judged: str) -> list[str]:
    known = json.loads(DIAGNOSES.read_text(encoding="utf-8")) if DIAGNOSES.is_file() else {}
    lines, without = [], set()
    for (task, attack, rule), cells in failures(board, judged).items():
        keys = [f"{t} {attack} {r}" for t in (task, task.split(" (")[0], "*") for r in (rule, "*")]
        why = next((known[key] for key in keys if key in known), None)
        if why is None:
            without.add(attack)
        lines.append(f"- {task} {attack} {rule}, attack success {'; '.join(cells)}. {why or 'No diagnosis.'}")
    said = "reached" if len(without) <= UNEXPLAINED else "not reached"
    count = f"At most {UNEXPLAINED} attacks without a diagnosis: {said} ({', '.join(sorted(without)) or 'none'})."
    return ["", f"### Attacks that beat {judged}", "", count, "", *(lines or ["None."])]
