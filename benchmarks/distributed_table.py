"""Every row of the table of methods by several processes: equal to one, resumed equal, the ledger equal.

    python benchmarks/distributed_table.py --output distributed.jsonl               # every row; a stopped run goes on
    python benchmarks/distributed_table.py --rows prl nrat-awp --cuts 2 fsdp2
    python benchmarks/distributed_table.py --output distributed.jsonl --only_report # the table of what is there, as Markdown

The trainings are `process_equality.py`'s, in float64: 24 steps of 12 of 91 samples. One process trains alone; two and three by DDP,
and two among which FSDP2 shards the model, take the same steps. Each goes on from its checkpoint of step 10 once more; those of two
are resumed by three processes, too. FSDP2's are of the processes' parts (``SHARDED_STATE_DICT``) or, with ``-full``, in one file.

A cell says: the largest relative difference of a weight tensor from the training by one process; that of the resumed training from
the uninterrupted one; and how many of the ledger's decisions differ from one process's. Or the line in which the row is refused.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import add_result, read_results
from process_equality import BAR, CUTS, NAMES, differences, in_group, train

from robust_trainer import METHODS

LENGTH, DTYPE, STEP = "uneven", "float64", 10
#: How a cut's checkpoints are saved, and by how many processes they are resumed beside its own.
KINDS: dict[str, dict[str, Any]] = {
    "1": {}, "2": {}, "3": {},
    "fsdp2": dict(fsdp_config={"state_dict_type": "SHARDED_STATE_DICT"}),
    "fsdp2-full": dict(fsdp_config={"state_dict_type": "FULL_STATE_DICT"}),
}  # fmt: skip
OTHERS = {"2": "3", "fsdp2": "fsdp3", "fsdp2-full": "fsdp3"}


def saved_and_resumed(row: str, kind: str, folder: str) -> dict[str, Any]:
    """A training that saves a checkpoint, and one that goes on from it; or the line in which the row is refused."""
    given = dict(save_strategy="steps", save_steps=STEP, save_total_limit=None, **KINDS[kind])
    cut = kind.removesuffix("-full")
    try:
        straight = train(row, LENGTH, DTYPE, cut, folder, **given)
    except ValueError as error:
        return {"refused": str(error)}
    return {"straight": straight, "resumed": resumed(row, kind, cut, folder)}


def resumed(row: str, kind: str, cut: str, folder: str) -> dict[str, Any]:
    """A training by a cut's processes that goes on from a checkpoint in the folder."""
    return train(row, LENGTH, DTYPE, cut, folder, resume=os.path.join(folder, f"checkpoint-{STEP}"), **KINDS[kind])


def together(work: Any, cut: str) -> Any:
    """What ``work()`` returns in the first of a cut's processes; None where one of them fails."""
    processes = CUTS[cut][0]
    with tempfile.TemporaryDirectory() as place:
        file, meeting = os.path.join(place, "out.pt"), os.path.join(place, "meeting")
        fork = multiprocessing.get_context("fork")
        children = [fork.Process(target=in_group, args=(work, rank, processes, meeting, file)) for rank in range(processes)]
        for child in children:
            child.start()
        for child in children:
            child.join(600)
        failed = [child.exitcode for child in children if child.exitcode != 0]
        for child in children:
            child.kill()
        return None if failed else torch.load(file, weights_only=True)


def cell(row: str, kind: str, one: dict[str, Any]) -> dict[str, Any]:
    """What is told of a row and a cut."""
    start, cut = time.perf_counter(), kind.removesuffix("-full")
    with tempfile.TemporaryDirectory() as folder:
        out = together(functools.partial(saved_and_resumed, row, kind, folder), cut)
        if out is None or "refused" in out:
            return {"refused": out["refused"] if out else "", "failed": out is None}
        apart = differences(one["straight"] if kind != "1" else out["straight"], out["straight"])
        again = differences(out["straight"], {**out["resumed"], "losses": out["straight"]["losses"]})
        found = {
            "weights": apart["weights"], "loss": apart["loss"], "decisions": apart["decisions"], "resumed": again["weights"],
            "resumed_decisions": again["decisions"],
        }  # fmt: skip
        if kind in OTHERS:
            other = together(functools.partial(resumed, row, kind, OTHERS[kind], folder), OTHERS[kind])
            if other is None:
                return {"refused": "", "failed": True}
            moved = differences(out["straight"], {**other, "losses": out["straight"]["losses"]})
            found |= {"resumed_by_three": moved["weights"], "three_decisions": moved["decisions"]}
    return {**found, "seconds": round(time.perf_counter() - start, 1), **({"one": out} if kind == "1" else {})}


def wrong(found: dict[str, Any]) -> bool:
    """Whether a cell is neither equal nor refused in one line."""
    if "refused" in found:
        return bool(found.get("failed")) or "\n" in found["refused"] or not found["refused"]
    apart = [found[name] for name in ("weights", "loss", "resumed", "resumed_by_three") if name in found]
    decided = [found[name] for name in ("decisions", "resumed_decisions", "three_decisions") if name in found]
    return not all(value <= BAR for value in apart) or any(decided)


def in_words(found: dict[str, Any] | None) -> str:
    """A cell of the table."""
    if found is None:
        return ""
    if "refused" in found:
        return "**failed**" if found.get("failed") else f"refused: {found['refused']}"
    parts = [f"{found['weights']:.0e}", f"{found['resumed']:.0e}"]
    parts += [f"{found['resumed_by_three']:.0e}"] if "resumed_by_three" in found else []
    decided = sum(found.get(name, 0) for name in ("decisions", "resumed_decisions", "three_decisions"))
    return " / ".join(parts) + (f", {decided} decisions differ" if decided else "") + (" **<**" if wrong(found) else "")


def report(done: dict[tuple[str, str], dict[str, Any]], kinds: list[str]) -> str:
    """The table as Markdown."""
    lines = ["| row | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for row in dict.fromkeys(row for row, _ in done):
        lines.append(f"| `{row}` | " + " | ".join(in_words(done.get((row, kind))) for kind in kinds) + " |")
    bad = sum(wrong(found) for (_, kind), found in done.items() if kind in kinds)
    return "\n".join([*lines, "", f"{bad} of {len(done)} cells over {BAR:g}, with other decisions, or failed."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(METHODS), choices=NAMES, metavar="ROW")
    parser.add_argument("--cuts", nargs="+", default=["1", "2", "3", "fsdp2"], choices=list(KINDS))
    parser.add_argument("--output", type=Path, default=Path("distributed_table.jsonl"), help="finished cells, as JSON lines")
    parser.add_argument("--only_report", action="store_true", help="train nothing, print the table of what is there")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a cell is wrong")
    args = parser.parse_args()
    done = {(found["row"], found["cut"]): found for found in read_results(args.output)}
    for row in args.rows if not args.only_report else ():
        left = [kind for kind in args.cuts if (row, kind) not in done]
        one = None
        for kind in dict.fromkeys(["1", *left]) if left else ():
            found = cell(row, kind, one or {})
            if kind == "1":
                one = found.pop("one", None)
                if one is None:
                    raise SystemExit(f"{row}: one process fails, or is refused: {found.get('refused')}")
                if kind not in left:
                    continue
            done[row, kind] = {"row": row, "cut": kind, **found}
            add_result(args.output, done[row, kind])
            print(f"{row:16} {kind:10} {in_words(found)}", flush=True)
    print(report(done, args.cuts))
    sys.exit(1 if args.check and any(wrong(found) for found in done.values()) else 0)


if __name__ == "__main__":
    main()
