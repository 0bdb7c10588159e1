"""Every row of the table of methods by several processes: equal to one, resumed equal, the ledger equal.

    python benchmarks/distributed_table.py --output distributed.jsonl               # every row; a stopped run goes on
    python benchmarks/distributed_table.py --rows prl nrat-awp --cuts 2 fsdp2
    python benchmarks/distributed_table.py --output distributed.jsonl --only_report # the table of what is there, as Markdown
    DS_ACCELERATOR=cpu python benchmarks/distributed_table.py --cuts zero1 zero2    # where DeepSpeed is installed

The trainings are `process_equality.py`'s, in float64: 24 steps of 12 of 91 samples. One process trains alone; two and three by DDP,
and two among which FSDP2 shards the model, take the same steps. Each goes on from its checkpoint of step 10 once more; those of two
are resumed by three processes, too. FSDP2's are of the processes' parts (``SHARDED_STATE_DICT``) or, with ``-full``, in one file.
``zero1`` to ``zero3`` are two that share DeepSpeed's states, gradients and weights. Processes are started once for the trainings of
many rows; after a failure the rest has new ones.

A cell says: the largest relative difference of a weight tensor from the training by one process; that of the resumed training from
the uninterrupted one; and how many of the ledger's decisions differ from one process's. Or the line in which the row is refused.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import add_result, machine, machines_line, read_results
from process_equality import BAR, CUTS, NAMES, differences, together, train

from robust_trainer import METHODS

LENGTH, DTYPE, STEP = "uneven", "float64", 10
#: Seconds that a training may take.
LIMIT = 180
#: How a cut's checkpoints are saved, and by how many processes they are resumed beside its own.
KINDS: dict[str, dict[str, Any]] = {
    "1": {}, "2": {}, "3": {},
    "fsdp2": dict(fsdp_config={"state_dict_type": "SHARDED_STATE_DICT"}),
    "fsdp2-full": dict(fsdp_config={"state_dict_type": "FULL_STATE_DICT"}),
    "zero1": {}, "zero2": {}, "zero3": {},
}  # fmt: skip
OTHERS = {"2": "3", "fsdp2": "fsdp3", "fsdp2-full": "fsdp3"}


class Training(NamedTuple):
    """A row by a cut's processes, from the start, saving a checkpoint, or from that one on."""

    row: str
    kind: str
    cut: str
    resumed: bool
    place: Path

    @property
    def folder(self) -> Path:
        """Where its checkpoints are."""
        return self.place / self.row.replace("/", "-") / self.kind

    @property
    def file(self) -> Path:
        """What it has found."""
        return self.folder / f"{self.cut}-{'resumed' if self.resumed else 'straight'}.pt"

    def found(self) -> dict[str, Any] | None:
        """What it has found; None where it failed."""
        return torch.load(self.file, weights_only=True) if self.file.is_file() else None


def in_turn(work: Sequence[Training], rank: int) -> None:
    """One training after the other, in a process of a cut's group; the first one writes what they found."""
    refused: dict[Path, dict[str, Any]] = {}
    for training in work:
        signal.alarm(LIMIT)
        start, busy, out = time.perf_counter(), time.process_time(), refused.get(training.folder)
        more: dict[str, Any] = dict(save_strategy="steps", save_steps=STEP, save_total_limit=None)
        if training.resumed:
            more = dict(resume=str(training.folder / f"checkpoint-{STEP}"))
        try:
            out = out or train(training.row, LENGTH, DTYPE, training.cut, str(training.folder), **KINDS[training.kind], **more)
        except ValueError as error:
            out = refused[training.folder] = {"refused": str(error)}
        if rank == 0:
            took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
            torch.save({**out, **took}, part := training.file.with_suffix(".part"))
            part.replace(training.file)


def all_trained(work: Sequence[Training]) -> None:
    """Has a group of the trainings' cut do them, and after a failure another one the rest; what failed leaves no file."""
    left = list(work)
    while left:
        for training in left:
            training.folder.mkdir(parents=True, exist_ok=True)
        if together(functools.partial(in_turn, left), CUTS[left[0].cut][0], LIMIT):
            return
        failed = next(training for training in left if not training.file.is_file())
        print(f"{failed.row}, {failed.kind}: a process failed", flush=True)
        left = [t for t in left if not t.file.is_file() and (t.row, t.kind) != (failed.row, failed.kind)]


def cell(one: dict[str, Any] | None, trainings: Sequence[Training]) -> dict[str, Any]:
    """What is told of a row and a cut.

    Args:
        one: what one process found.
        trainings: straight, resumed and, where there is one, resumed by another number of processes.
    """
    found = [training.found() for training in trainings]
    refused = next((out["refused"] for out in found if out is not None and "refused" in out), None)
    if refused is not None:
        return {"refused": refused, "failed": False}
    if one is None or "refused" in one or any(out is None for out in found):
        return {"refused": "", "failed": True}
    straight, *again = [out for out in found if out is not None]
    apart = differences(one, straight)
    told = {name: apart[name] for name in ("weights", "loss", "decisions")}
    for names, other in zip((("resumed", "resumed_decisions"), ("resumed_by_three", "three_decisions")), again):
        moved = differences(straight, {**other, "losses": straight["losses"]})
        told.update(zip(names, (moved["weights"], moved["decisions"])))
    return {**told, **{name: [round(out[name], 2) for out in (straight, *again)] for name in ("seconds", "cpu_seconds")}}


def cells(rows: Sequence[str], kinds: Sequence[str], done: Collection[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The cells of these rows and cuts that are not done; one process trains each of the rows for it."""
    left = [(row, kind) for row in rows for kind in kinds if (row, kind) not in done]
    with tempfile.TemporaryDirectory() as place:
        trainings: dict[tuple[str, str], list[Training]] = {
            (row, kind): [Training(row, kind, kind.removesuffix("-full"), resumed, Path(place)) for resumed in (False, True)]
            for row, kind in dict.fromkeys([*((row, "1") for row, _ in left), *left])
        }
        for kind in KINDS:
            all_trained([training for key, both in trainings.items() if key[1] == kind for training in both])
        for kind, cut in OTHERS.items():
            further = []
            for (row, _), both in [item for item in trainings.items() if item[0][1] == kind]:
                both.append(Training(row, kind, cut, True, Path(place)))
                if "losses" in (both[0].found() or {}):
                    further.append(both[-1])
            all_trained(further)
        return {(row, kind): cell(trainings[row, "1"][0].found(), trainings[row, kind]) for row, kind in left}


def wrong(found: dict[str, Any]) -> bool:
    """Whether a cell is neither equal nor refused in one line."""
    if "refused" in found:
        return bool(found.get("failed")) or "\n" in found["refused"] or not found["refused"]
    apart = [found[name] for name in ("weights", "loss", "resumed", "resumed_by_three") if name in found]
    decided = [found[name] for name in ("decisions", "resumed_decisions", "three_decisions") if name in found]
    return not all(value <= BAR for value in apart) or any(decided)


def in_words(found: dict[str, Any] | None, notes: dict[str, int] | None = None) -> str:
    """A cell of the table; of one process how it is resumed.

    Args:
        found: of `cell`.
        notes: the refusals' lines so far and their numbers, to which this one's is added; None: the cell says its line.
    """
    if found is None:
        return ""
    if "refused" in found:
        line = found["refused"].replace(f"'{found.get('row')}'", "'...'")
        where = found["refused"] if notes is None else f"{notes.setdefault(line, len(notes) + 1)}"
        return "**failed**" if found.get("failed") else f"refused: {where}"
    names = ("weights", "resumed", "resumed_by_three")[found.get("cut") == "1" :]
    parts = [f"{found[name]:.0e}" if found[name] else "0" for name in names if name in found]
    decided = sum(found.get(name, 0) for name in ("decisions", "resumed_decisions", "three_decisions"))
    return " / ".join(parts) + (f", {decided} decisions differ" if decided else "") + (" **<**" if wrong(found) else "")


def report(done: dict[tuple[str, str], dict[str, Any]], kinds: list[str]) -> str:
    """The table as Markdown."""
    lines = ["| row | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    notes: dict[str, int] = {}
    told = [found for (_, kind), found in done.items() if kind in kinds]
    for row in sorted({row for row, _ in done}, key=NAMES.index):
        lines.append(f"| `{row}` | " + " | ".join(in_words(done.get((row, kind)), notes) for kind in kinds) + " |")
    lines += ["", *(f"{number}. {line}" for line, number in notes.items())]
    bad, refused = sum(wrong(found) for found in told), sum("refused" in found for found in told)
    end = f"{bad} of {len(told)} cells over {BAR:g}, with other decisions, or failed; {refused} refused in one line."
    return "\n".join([*lines, *[""] * bool(notes), end])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(METHODS), choices=NAMES, metavar="ROW")
    parser.add_argument("--cuts", nargs="+", default=["1", "2", "3", "fsdp2"], choices=list(KINDS))
    parser.add_argument("--output", type=Path, default=Path("distributed_table.jsonl"), help="finished cells, as JSON lines")
    parser.add_argument("--together", type=int, default=12, help="rows that the same processes train; a stopped run repeats them")
    parser.add_argument("--only_report", action="store_true", help="train nothing, print the table of what is there")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a cell is wrong")
    args = parser.parse_args()
    torch.set_num_threads(1)  # processes are forked
    done = {(found["row"], found["cut"]): found for found in read_results(args.output)}
    rows = [row for row in args.rows if any((row, kind) not in done for kind in args.cuts)] if not args.only_report else []
    for first in range(0, len(rows), args.together):
        start = time.perf_counter()
        found = cells(rows[first : first + args.together], args.cuts, done)
        for (row, kind), told in found.items():
            done[row, kind] = {"row": row, "cut": kind, **told, "machine": machine()}
            add_result(args.output, done[row, kind])
            print(f"{row:16} {kind:10} {in_words(told)}", flush=True)
        trained = sum(sum(told.get("seconds", ())) for told in found.values())
        print(f"{time.perf_counter() - start:.0f} s, of which {trained:.0f} s are the cells' trainings", flush=True)
    print(report(done, args.cuts))
    if done:
        print(machines_line([found for found in done.values() if "machine" in found]))
    sys.exit(1 if args.check and any(wrong(found) for found in done.values()) else 0)


if __name__ == "__main__":
    main()
