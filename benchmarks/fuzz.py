"""Random tables, images, label columns, configurations and damaged files: what becomes of each, by kind.

    python benchmarks/fuzz.py --cases 2000 --seed 0 --out fuzz.jsonl
    python benchmarks/fuzz.py --cases 200 --seed 1000000 --out judged.jsonl   # train --method auto, audit --dataset, demo
    python benchmarks/fuzz.py --only 137           # one case again, with what it printed
    python benchmarks/fuzz.py --out fuzz.jsonl --table

A case is a number: its kind and all that is random in it come from it, so a line of the file can be run again. Each runs in a
process of its own, forked from one that has imported everything and computed nothing. Outcomes:

ok        it ended, and what the package made of the input is what the slow reading of the same input says
refused   one line (exit status 2 of a command, ValueError of a call)
unjust    refused, though the slow reading finds nothing wrong with the input
lines     refused in several lines, or without a word
changed   it ended, and the slow reading says something else
traceback another exception; hang: more than --limit seconds; died: by a signal
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import torch
import transformers
from fuzz_auto import KINDS as JUDGED
from fuzz_cases import KINDS as OTHERS
from fuzz_cases import Refused, Unlike, finished_runs

LIMIT = 30
#: Cases from this number on are about judged labels (`fuzz_auto`), those before about everything else (`fuzz_cases`).
FIRST_JUDGED = 1_000_000
KINDS = {**OTHERS, **JUDGED}
BAD = ("unjust", "lines", "changed", "traceback", "hang", "died")


def kind_of(number: int) -> str:
    """The kind of a case, by its number alone."""
    kinds = JUDGED if number >= FIRST_JUDGED else OTHERS
    return random.Random(f"kind {number}").choices([*kinds], [share for share, _ in kinds.values()])[0]


def judge(number: int, kind: str, runs: Path) -> tuple[str, str]:
    """Runs a case in this process and returns its outcome and what was said."""
    draw = random.Random(f"case {number}")
    torch.manual_seed(number)
    state: dict = {"valid": False}
    try:
        KINDS[kind][1](draw, Path.cwd(), state, runs)
    except Refused as refusal:
        text = str(refusal)
        if not text.strip() or "\n" in text.strip():
            return "lines", text
        return ("unjust" if state["valid"] else "refused"), text
    except Unlike as difference:
        return "changed", str(difference)
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: nothing may leave like that
        return "traceback", "".join(traceback.format_exception(error))[-3000:]
    return "ok", ""


def run(number: int, runs: Path, limit: float, shown: bool = False) -> dict:
    """Runs a case in a child process."""
    kind = kind_of(number)
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    work, answer, told = folder / "work", folder / "answer.json", folder / "told.txt"
    work.mkdir()
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(work)
            file = open(told, "w")
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for stream in () if shown else (1, 2):
                os.dup2(file.fileno(), stream)
            faulthandler.dump_traceback_later(limit, exit=True, file=file)
            outcome, text = judge(number, kind, runs)
            answer.write_text(json.dumps([outcome, text], ensure_ascii=True))
        finally:
            os._exit(0)
    end = time.monotonic() + limit + 15
    done, status = os.waitpid(child, os.WNOHANG)
    while not done and time.monotonic() < end:
        time.sleep(0.004)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    seconds = round(time.perf_counter() - start, 2)
    if answer.is_file():
        outcome, text = json.loads(answer.read_text())
    else:
        text = told.read_text(errors="replace")[-3000:] if told.is_file() else ""
        outcome = "hang" if not done or "Timeout (" in text else "died"
        text = f"status {status} {text}"
    os.system(f"chmod -R u+rwx '{folder}' 2> /dev/null")
    shutil.rmtree(folder, ignore_errors=True)
    return {"case": number, "kind": kind, "outcome": outcome, "seconds": seconds, "told": text}


def table(rows: list[dict]) -> str:
    """How many of which kind became what."""
    outcomes = ["ok", "refused", *(name for name in BAD if any(row["outcome"] == name for row in rows))]
    counts = collections.Counter((row["kind"], row["outcome"]) for row in rows)
    lines = ["| kind | cases | " + " | ".join(outcomes) + " | seconds |", "|---|" + "---:|" * (len(outcomes) + 2)]
    for kind in [*KINDS, "all"]:
        mine = [row for row in rows if kind in ("all", row["kind"])]
        if not mine:
            continue
        cells = [str(sum(counts[k, o] for k in KINDS if kind in ("all", k))) for o in outcomes]
        lines.append(f"| {kind} | {len(mine)} | {' | '.join(cells)} | {sum(row['seconds'] for row in mine):.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--out", default="fuzz.jsonl", help="file of finished cases; those in it are not run again")
    parser.add_argument("--only", type=int, nargs="+", help="these cases, with what they print")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), help="cases of these kinds alone")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds from which a case hangs")
    parser.add_argument("--table", action="store_true", help="the table of the file, and no new case")
    options = parser.parse_args()
    out = Path(options.out)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() and not options.only else []
    if options.table:
        print(table(rows))
        return 0
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="fuzz-runs") as runs:
        made = os.fork()
        if made == 0:  # the process that forks the cases computes nothing itself
            try:
                finished_runs(Path(runs))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(made, 0)[1]:
            raise SystemExit("the runs to damage could not be made")
        if options.only:
            for number in options.only:
                row = run(number, Path(runs), options.limit, shown=True)
                print(f"case {number}, {row['kind']}: {row['outcome']}, {row['seconds']} s\n{row['told']}")
            return 0
        done = {row["case"] for row in rows}
        with out.open("a") as file:
            for number in range(options.seed, options.seed + options.cases):
                if number in done or (options.kinds and kind_of(number) not in options.kinds):
                    continue
                rows.append(run(number, Path(runs), options.limit))
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
                if rows[-1]["outcome"] in BAD:
                    last = rows[-1]["told"].strip().splitlines()[-1:] or [""]
                    print(f"case {number}, {rows[-1]['kind']}: {rows[-1]['outcome']}: {last[0][:200]}", file=sys.stderr, flush=True)
    mine = [row for row in rows if options.seed <= row["case"] < options.seed + options.cases]
    print(f"cases {options.seed} to {options.seed + options.cases - 1}\n{table(mine)}")
    return 1 if any(row["outcome"] in BAD for row in mine) else 0


if __name__ == "__main__":
    sys.exit(main())
