"""Processes that go through their shares of a data set: where one of them fails all do, with its reason, and none waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from .records import MicroBatch, Run

#: Micro-batches after which processes ask each other.
EVERY = 64
#: Characters of a reason that are exchanged.
REASON = 2000


def for_each(
    run: Run, batches: Iterable[MicroBatch], work: Callable[[MicroBatch], None], *, each: bool = False,
    kinds: tuple[type[Exception], ...] = (),
) -> None:  # fmt: skip
    """Calls ``work`` for each micro-batch of this process; what one process alone raises, be it reading or working, all raise.

    Args:
        run: of the training.
        batches: of several processes, each its share, all of one number.
        work: without an exchange between the processes, unless ``each``.
        each: whether processes ask each other before each micro-batch, since the work itself is an exchange, as of sharded weights.
        kinds: what is raised elsewhere as it was raised here, if no process raises anything else.

    Raises:
        Exception: here what was raised here, or what is worse elsewhere; a mistake of the user's, a ``ValueError``, stays one.
    """
    count, left = 0, iter(batches)
    while True:
        problem: Exception | None = None
        batch: MicroBatch | None = None
        try:
            batch = next(left, None)
        except Exception as error:  # of the user's data set, transform or collator
            problem = error
        if batch is None or each:
            agree(run, problem, kinds)
        if problem is not None or batch is None:
            return
        count += 1
        try:
            work(batch)
        except Exception as error:
            problem = error
        if problem is not None or count % EVERY == 0:
            agree(run, problem, kinds)


def agree(run: Run, problem: Exception | None, kinds: tuple[type[Exception], ...] = ()) -> None:
    """Raises where a process has a problem: that one's own there, its reason on the others. All processes must ask.

    Args:
        run: of the training.
        problem: this process's, None for none.
        kinds: as of `for_each`.
    """
    if run.processes > 1 and bool(run.total(torch.tensor(float(problem is not None), device=run.device)) > 0):
        told: list[Any] = [None] * run.processes
        torch.distributed.all_gather_object(told, _message(problem, kinds))
        place, rank = min((found[0], rank) for rank, found in enumerate(told) if found is not None)
        own, reason = told[run.rank], told[rank][1]
        if own is None or own[0] > place:
            raise (RuntimeError, ValueError, *kinds)[place](reason if place > 1 else f"process {rank}: {reason}")
    if problem is not None:
        raise problem


def _message(problem: Exception | None, kinds: tuple[type[Exception], ...]) -> tuple[int, str] | None:
    """What the others are told: how bad it is, 0 the worst, and the reason in one line."""
    if problem is None:
        return None
    known = next((2 + place for place, kind in enumerate(kinds) if isinstance(problem, kind)), None)
    words = " ".join(str(problem).split())[:REASON]
    if known is not None:
        return known, words
    return (1, words) if isinstance(problem, ValueError) else (0, f"{type(problem).__name__}: {words}")
