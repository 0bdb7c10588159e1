"""One board of every attack against every defence: attack x label rule x rate x data x network x defence.

    python benchmarks/matrix.py --data_dir <folder with cifar10, mnist, text/sst2, text/clinc150> --out runs/board.jsonl
    python benchmarks/matrix.py --tasks digits --attacks patch --rules all-to-one --rates 0.1 --defences plain auto   # any cell
    python benchmarks/matrix.py --dry_run --out runs/board.jsonl          # what is left, and how long it takes
    python benchmarks/matrix.py --report --out runs/board.jsonl --to docs/experiments   # board.md, board.csv, board.html
    python benchmarks/matrix.py --check                                   # three cells again, against the stored figures

Tasks and networks are those of fine_tuning.py. Attacks are the package's tables by name: triggers, backdoors made with a network,
wrong labels, availability poisons; on clean images every network is also attacked at test time (PGD, 10 steps, 8/255). Defences:
plain and clean-only training (the reference, on the rows that nobody touched), every row of robust_trainer.METHODS, every detector
on the plain run (detectors), plain training on what a detector leaves (retrain), and repairs of the plain network (repairs). A
method or detector that takes the rate is told the true one; auto, audit and audit-dataset are told nothing.

Without --tasks and the like the whole board is run (`BOARD`). One JSON line per finished row, appended to --out; rows found there
are skipped, so a stopped command can be given again. One plain training serves all detectors and repairs of a cell. --shard 1/2 and
--shard 2/2 split the board between two processes. Rows of a cell: accuracy (on clean test rows), attack_success and
triggered_accuracy (on the triggered test rows whose label the attacker would change), tpr and fpr of the flagged training rows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from common import add_result, key_of, machine, read_results
from fine_tuning_report import CLEAN_ONLY, PLAIN
from fine_tuning_tasks import TASKS, Loaded, load
from matrix_cells import ATTACKS, AVAILABILITY, BACKDOORS, LABELS, NONE, Cell, make, settings_of
from matrix_check import check
from matrix_defences import AUDIT, GROUPS, RETRAIN, OnPlain, Run, keep, kept, kind_of, trained
from matrix_report import report

from robust_trainer import METHODS
from robust_trainer.corruptions import LABEL_RULES

#: Rows of this package that are told the rate, beside auto; and those that attack their inputs.
OWN = ("auto", "prl", "co-prl", "spl", "gce", "prl-at-memory")
ATTACKING = ("pgd-at", "trades", "nrat", "erat", "prl-at")
IMAGES = tuple(name for name, row in ATTACKS.items() if row.kind in BACKDOORS and "image" in row.inputs)
TEXTS = tuple(name for name, row in ATTACKS.items() if row.kind in BACKDOORS and "text" in row.inputs)
WRONG_LABELS = tuple(name for name, row in ATTACKS.items() if row.kind == LABELS)
POISONED = tuple(name for name, row in ATTACKS.items() if row.kind == AVAILABILITY)


@dataclass(frozen=True)
class Block:
    """A part of the board: every combination of tasks, attacks, rules and rates with all of the defences."""

    tasks: tuple[str, ...]
    attacks: tuple[str, ...]
    rules: tuple[str | None, ...]
    rates: tuple[float, ...]
    defences: tuple[str, ...]


_BASE = (PLAIN, "detectors", CLEAN_ONLY, "auto")
_A2O, _A2A = ("all-to-one",), ("multi-target",)
_CLEAN_LABEL = tuple(name for name in IMAGES if "clean-label" in ATTACKS[name].rules)
_TWO, _FOUR = ("patch", "blend"), ("patch", "blend", "warp", "quantise")
#: The whole board on CPUs, the quick parts first.
BOARD = (
    Block(("digits",), ("none",), (None,), (0.0,), (*_BASE, *OWN[1:], *ATTACKING)),
    Block(("digits",), IMAGES, _A2O, (0.1,), (*_BASE, "repairs", "retrain", *OWN[1:])),
    Block(("digits",), IMAGES, _A2O, (0.01, 0.05), (*_BASE, "prl-at-memory")),
    Block(("digits",), IMAGES, _A2A, (0.1, 0.25), (*_BASE, "prl-at-memory")),
    Block(("digits",), IMAGES, ("source-specific", "clean-label"), (0.05,), _BASE),
    Block(("digits",), IMAGES, ("untargeted",), (0.1,), _BASE),
    Block(("digits",), WRONG_LABELS, (None,), (0.2, 0.4), (*_BASE, *OWN[1:])),
    Block(("digits",), POISONED, (None,), (1.0,), (PLAIN, CLEAN_ONLY, "auto", "prl", "pgd-at", "erat")),
    Block(("mnist",), ("none",), (None,), (0.0,), (*_BASE, "prl-at-memory", "pgd-at")),
    Block(("mnist",), IMAGES, _A2O, (0.1,), (*_BASE, "repairs", "prl-at-memory")),
    Block(("mnist",), IMAGES, _A2A, (0.1,), _BASE),
    Block(("mnist",), _CLEAN_LABEL, ("clean-label",), (0.05,), _BASE),
    Block(("mnist",), WRONG_LABELS, (None,), (0.2,), _BASE),
    Block(("cifar10",), ("none",), (None,), (0.0,), (*_BASE, "prl-at-memory", "pgd-at")),
    Block(("cifar10",), IMAGES, _A2O, (0.1,), (*_BASE, "prl-at-memory")),
    Block(("cifar10",), _FOUR, _A2O, (0.1,), ("repairs",)),
    Block(("cifar10",), _FOUR, _A2O, (0.05,), _BASE),
    Block(("cifar10",), _CLEAN_LABEL, ("clean-label",), (0.05,), _BASE),
    Block(("cifar10",), _TWO, (*_A2A, "untargeted"), (0.1,), _BASE),
    Block(("cifar10",), _TWO, _A2A, (0.25,), _BASE),
    Block(("cifar10",), _TWO, ("source-specific",), (0.05,), _BASE),
    Block(("cifar10",), WRONG_LABELS, (None,), (0.2,), _BASE),
    Block(("sst2", "clinc150"), ("none",), (None,), (0.0,), _BASE),
    Block(("sst2",), TEXTS, _A2O, (0.05, 0.1), _BASE),
    Block(("clinc150",), ("word",), _A2O, (0.1,), _BASE),
)
#: For one GPU; each run is far below ten minutes there.
GPU_BOARD = (
    Block(("gpu-resnet18", "gpu-preact-resnet18", "gpu-vit", "gpu-lite0"), ("none",), (None,), (0.0,), _BASE),
    Block(("gpu-resnet18", "gpu-preact-resnet18", "gpu-vit", "gpu-lite0"), IMAGES, _A2O, (0.01, 0.05, 0.1), (*_BASE, "repairs")),
    Block(("gpu-resnet18", "gpu-preact-resnet18"), IMAGES, (*_A2A, "untargeted"), (0.1,), _BASE),
    Block(("gpu-resnet18", "gpu-preact-resnet18"), IMAGES, ("source-specific", "clean-label"), (0.05,), _BASE),
)
BOARDS = {"cpu": BOARD, "gpu": GPU_BOARD}


# ---- which rows -------------------------------------------------------------------------------------------------------


def cells(args: argparse.Namespace) -> Iterator[tuple[Cell, tuple[str, ...]]]:
    """The cells that are asked for, each with its defences, in the board's order."""
    found: dict[Cell, dict[str, None]] = {}
    for block in BOARDS[args.board]:
        for task in args.tasks or block.tasks:
            for attack in args.attacks or block.attacks:
                kind = ATTACKS[attack].kind
                for rule in (args.rules or block.rules) if kind in BACKDOORS else (None,):
                    for rate in rates(kind, args.rates or block.rates):
                        for seed in args.seeds:
                            names = [name for d in args.defences or block.defences for name in GROUPS.get(d, (d,))]
                            found.setdefault(Cell(task, attack, rule, rate, seed), {}).update(dict.fromkeys(names))
    for cell, names in found.items():
        if (why := cell.why_not()) is None:
            if cell.kind == NONE:
                names.pop(CLEAN_ONLY, None)  # all rows are clean: plain is it
            yield cell, tuple(names)
        elif args.attacks and args.tasks:
            print(f"{cell.task} {cell.told()}: skipped, {why}", flush=True)


def rates(kind: str, given: tuple[float, ...]) -> tuple[float, ...]:
    return {NONE: (0.0,), AVAILABILITY: (1.0,)}.get(kind, tuple(rate for rate in given if 0 < rate < 1))


def run_settings(args: argparse.Namespace, cell: Cell, defence: str) -> dict[str, Any]:
    """All that fixes a row."""
    task, settings = TASKS[cell.task], {}
    if kind_of(defence) == "training" and defence != "auto" and "noise_rate" in METHODS[defence].settings:
        settings["noise_rate"] = cell.rate if cell.kind in (*BACKDOORS, LABELS) else 0.0
    return {
        "task": cell.task, "attack": cell.attack, "rule": cell.rule, "asked": cell.rate, "seed": cell.seed, "defence": defence,
        "network": task.network, "side": task.side,
        "train_rows": args.train_rows or task.train_rows, "test_rows": args.test_rows or task.test_rows,
        "epochs": args.epochs or task.epochs, "batch_size": task.batch_size, "lr": task.lr,
        "attack_settings": settings_of(cell), "settings": settings,
    }  # fmt: skip


# ---- all rows ---------------------------------------------------------------------------------------------------------


def todo(args: argparse.Namespace, out: Path) -> list[tuple[Cell, list[dict[str, Any]]]]:
    """The cells with rows that are not in the file, this process's share of them."""
    done = {row["key"] for row in read_results(out)}
    left, wanted = [], 0
    for number, (cell, defences) in enumerate(cells(args)):
        if number % args.shards != args.shard - 1:
            continue
        rows = [run_settings(args, cell, defence) for defence in defences]
        wanted += len(rows)
        if rows := [row for row in rows if key_of(row) not in done]:
            left.append((cell, rows))
    count = sum(len(rows) for _, rows in left)
    print(f"{count} rows in {len(left)} cells to do, {wanted - count} of {wanted} found in {out}", flush=True)
    return left


def run_all(args: argparse.Namespace) -> None:
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * args.minutes if args.minutes is not None else float("inf")
    loaded: Loaded | None = None
    left = todo(args, out)
    for number, (cell, rows) in enumerate(left, 1):
        if loaded is None or loaded.task.name != cell.task:
            loaded = load(TASKS[cell.task], args.data_dir, rows[0]["test_rows"])
        if not run_cell(args, loaded, cell, rows, out, until, f"[{number}/{len(left)}] {cell.task} {cell.told()}"):
            print(f"stopped after {args.minutes:g} minutes: give the command again", flush=True)
            return


def run_cell(
    args: argparse.Namespace, loaded: Loaded, cell: Cell, rows: list[dict[str, Any]], out: Path, until: float, head: str
) -> bool:
    """Runs and writes a cell's rows; False where time is up."""
    if time.monotonic() > until:
        return False
    start = time.process_time()
    try:
        data = make(loaded, cell, rows[0]["train_rows"])
    except ValueError as error:
        print(f"{head}: refused: {error}", flush=True)
        return True
    corrupted = float(data.train.corrupted.double().mean())
    more = {
        "kind": cell.kind, "rate": round(corrupted, 6), "told": round(cell.rate, 4), "covers": int(data.covers.sum()),
        "data_seconds": round(time.process_time() - start, 2), "n_test": len(loaded.test), "machine": machine(),
    }  # fmt: skip

    def write(row: dict[str, Any], found: dict[str, Any]) -> None:
        add_result(out, {"key": key_of(row), **row, "defence_kind": kind_of(row["defence"]), **more, **found})
        more["data_seconds"] = 0.0  # the data are made once
        print(f"{head} {row['defence']}: {told(found)}", flush=True)

    plain_row, done = run_settings(args, cell, PLAIN), dict[str, Run]()
    judging = [row for row in rows if kind_of(row["defence"]) in ("detector", "retraining", "repair")]
    audits = any(row["defence"].removesuffix(RETRAIN) == AUDIT for row in judging)

    def plain_network() -> Run:
        """The one just trained or kept, or where an audit needs the training's ledger or none was kept, another one."""
        run = done.get(PLAIN) or (None if audits else kept(args.models, plain_row, loaded))
        if run is None:
            run = trained(args, loaded, cell, data, plain_row)[1]
            keep(args.models, plain_row, run)
        return run

    network = OnPlain(args, loaded, cell, data, plain_network)
    order = [row for row in rows if row["defence"] == PLAIN] + judging
    for row in order + [row for row in rows if row not in order]:
        if time.monotonic() > until:
            return False
        try:
            if row in judging:
                write(row, network.figures(row))
                continue
            found, run = trained(args, loaded, cell, data, row)
            write(row, found)
            if row["defence"] == PLAIN:
                keep(args.models, plain_row, run)
                done[PLAIN] = run
        except ValueError as error:
            print(f"{head} {row['defence']}: refused: {error}", flush=True)
    return True


def told(found: dict[str, Any]) -> str:
    """A row's figures in a line."""
    shown = ("accuracy", "attack_success", "triggered_accuracy", "robust_accuracy", "tpr", "fpr", "auroc")
    parts = [f"{name} {found[name]:.3f}" for name in shown if found.get(name) is not None]
    return f"{', '.join(parts)}; {found['cpu_seconds']:.1f} s"


def estimate(args: argparse.Namespace) -> None:
    """Prints what is left to do, and how many seconds that takes by the rows that there are."""
    left, rows = todo(args, Path(args.out)), read_results(Path(args.out))
    seconds: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        seconds.setdefault((row["task"], row["defence"]), []).append(row["cpu_seconds"] + row.get("audit_seconds", 0.0))
        seconds.setdefault((row["task"], ""), []).append(row["data_seconds"])
    total, unknown = 0.0, set()
    for cell, wanted in left:
        here = 0.0
        for row in wanted:
            known = seconds.get((cell.task, row["defence"]))
            if known is None:
                unknown.add(f"{cell.task} {row['defence']}")
            here += statistics.median(known) if known else 0.0
        total += here
        print(f"{cell.task} {cell.told()}: {len(wanted)} rows, {here:.0f} s")
    print(f"in all {total:.0f} CPU seconds, {total / 3600:.1f} hours of one core, {total / 600:.0f} pieces of ten minutes")
    if unknown:
        print(f"without a measured row, counted as nothing: {', '.join(sorted(unknown))}")


# ---- arguments --------------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data_dir", default=os.environ.get("ROBUST_TRAINER_DATA"), help="default: the variable ROBUST_TRAINER_DATA")
    p.add_argument("--board", choices=list(BOARDS), default="cpu", help="which cells where the options below do not say")
    p.add_argument("--tasks", nargs="+", choices=list(TASKS))
    p.add_argument("--attacks", nargs="+", choices=list(ATTACKS), metavar="NAME", help=", ".join(ATTACKS))
    p.add_argument("--rules", nargs="+", choices=list(LABEL_RULES))
    p.add_argument("--rates", nargs="+", type=float, help="shares of the training rows")
    p.add_argument("--defences", nargs="+", help=f"{PLAIN}, {CLEAN_ONLY}, {', '.join(GROUPS)}, or names")
    p.add_argument("--seeds", nargs="+", type=int, default=[0])
    p.add_argument("--train_rows", type=int, help="default: the task's, as of the two below")
    p.add_argument("--test_rows", type=int)
    p.add_argument("--epochs", type=int)
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--workers", type=int, default=0, help="data loader processes")
    p.add_argument("--minutes", type=float, help="start no row after so long: give the command again to go on")
    p.add_argument("--shard", default="1/1", help="i/n: every n-th cell, from the i-th on")
    p.add_argument("--threads", type=int, default=1, help="CPU threads")
    p.add_argument("--models", type=Path, help="folder that keeps the plain networks, so that new detectors need no training")
    p.add_argument("--out", default="runs/board.jsonl")
    p.add_argument("--dry_run", action="store_true", help="say what is left to do and how long it takes, and stop")
    p.add_argument("--report", action="store_true", help="write the board of --out to the folder --to, print the bars, and stop")
    p.add_argument("--to", type=Path, default=Path("runs"), help="folder of board.md, board.csv and board.html")
    p.add_argument("--check", action="store_true", help="run the stored corner again and compare; 1 where a figure has moved")
    p.add_argument("--store", action="store_true", help="of --check: store the figures instead")
    args = p.parse_args(argv)
    for name in ("train_rows", "test_rows", "epochs", "threads", "minutes"):
        if (value := getattr(args, name)) is not None and value <= 0:
            raise SystemExit(f"--{name} {value}: must be above 0.")
    for rate in args.rates or ():
        if not 0 <= rate <= 1:
            raise SystemExit(f"--rates {rate}: must be a share of the training rows, from 0 to 1.")
    try:
        for name in args.defences or ():
            if name not in GROUPS:
                kind_of(name)
        args.shard, args.shards = (int(part) for part in args.shard.split("/"))
    except ValueError as error:
        raise SystemExit(str(error) if "--" in str(error) else f"--shard {args.shard}: write i/n, such as 1/2.") from None
    if not 1 <= args.shard <= args.shards:
        raise SystemExit(f"--shard {args.shard}/{args.shards}: i must be from 1 to n.")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    if args.report:
        print(report(read_results(Path(args.out)), args.to) or f"no results in {args.out}")
    elif args.dry_run:
        estimate(args)
    elif args.check:
        raise SystemExit(check(args, run_cell, run_settings))
    else:
        print(f"benchmarks/matrix.py {' '.join(sys.argv[1:] if argv is None else argv)}", flush=True)
        run_all(args)


if __name__ == "__main__":
    main()
