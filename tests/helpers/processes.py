"""Work in processes of its own, which :mod:`helpers.fork_server` forks; no wait is without an end."""

import functools
import json
import os
import sys
import tempfile
import time
from datetime import timedelta
from multiprocessing.connection import Client
from pathlib import Path

import dill
import pytest
import torch

from .fork_server import start_server

TIMEOUT = 120  # seconds, for a child


@functools.cache
def connected():
    """This process's connection to the fork server; the first one waits for its imports."""
    address, end = start_server(), time.monotonic() + TIMEOUT
    while True:
        try:
            return Client(address, "AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError):  # not there yet, or there and not listening yet
            assert time.monotonic() < end, "the fork server did not start: its message is on standard error"
            time.sleep(0.02)


def ask(what, value):
    """The fork server's answer."""
    connection = connected()
    connection.send((what, value))
    assert connection.poll(TIMEOUT), f"the fork server does not answer to {what!r}: its message is on standard error"
    return connection.recv()


class Child:
    """``work(*arguments)`` in a new process; what it prints and raises, and where it hangs, is written to ``log``."""

    def __init__(self, work, *arguments, log: Path, environment=None, timeout: float = TIMEOUT):
        self.log, self.timeout, self.code = Path(log), timeout, None
        self.number = ask("fork", {
            "log": str(log), "path": sys.path, "folder": os.getcwd(), "patience": timeout * 5 / 6,
            "environment": {**os.environ, **{name: str(value) for name, value in (environment or {}).items()}},
            "work": dill.dumps(functools.partial(_alone, work, arguments)),
        })  # fmt: skip
        self.end = time.monotonic() + timeout

    def ended(self) -> bool:
        """Whether it has; one that takes longer than its timeout is killed, and the test fails with the child's stack."""
        if self.code is None:
            self.code = ask("poll", self.number)
        if self.code is None and time.monotonic() > self.end:
            self.kill()
            raise AssertionError(f"a child hung for {self.timeout:.0f} s and was killed. Its log ends with:\n{self.told()}")
        return self.code is not None

    def wait(self) -> int:
        """Its exit code, minus the signal if one killed it."""
        while not self.ended():
            time.sleep(0.02)
        return self.code

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        if self.code is None:
            ask("kill", self.number)
        while self.code is None:
            self.code = ask("poll", self.number)

    def told(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""


def _alone(work, arguments):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    work(*arguments)


def alone(work, tmp_path, timeout: float = TIMEOUT):
    """What ``work()`` returns, as JSON holds it, from a process in which nothing has run; its failure is the test's."""

    def tell():
        (tmp_path / "told.json").write_text(json.dumps(work()))

    child = Child(tell, log=tmp_path / "log.txt", timeout=timeout)
    assert child.wait() == 0, child.told()
    return json.loads((tmp_path / "told.json").read_text())


def start(work, processes: int, out, logs, timeout: float = TIMEOUT) -> list[Child]:
    """``work(out)`` begun in each of ``processes`` that train together, with the variables that torchrun sets.

    They find each other by a file: a free port may be another's by the time that it is used.
    """
    logs.mkdir(exist_ok=True)
    meeting = tempfile.mktemp(prefix="meeting-", dir=logs)

    def together(rank):
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes, timeout=timedelta(seconds=60)
        )
        work(out)
        if torch.distributed.is_initialized():  # a process that leaves while another one still talks to it may abort
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    own = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
    return [
        Child(together, rank, environment=own[rank], log=logs / f"log-{rank}.txt", timeout=timeout) for rank in range(processes)
    ]


def launch(work, processes: int, out, logs) -> None:
    """``work(out)`` in each of ``processes`` that train together, to the end; one that fails fails the test."""
    children = start(work, processes, out, logs)
    try:
        while not all([child.ended() for child in children]) and not any(child.code for child in children):
            time.sleep(0.02)
        failed = [child for child in children if child.code]
    finally:
        for child in children:
            child.kill()  # the others would wait for the one that failed or hangs
    assert not failed, "\n".join(child.told() for child in failed)


def trained_together(work, processes: int, tmp_path):
    """What ``work(out)`` tells: it returns a trainer that has trained and a result that JSON holds. One process is this one."""
    out = tmp_path / str(processes)
    out.mkdir()

    def tell(out):
        trainer, result = work(out)
        if trainer.is_world_process_zero():
            (out / "result.json").write_text(json.dumps(result))

    launch(tell, processes, out, tmp_path) if processes > 1 else tell(out)
    return json.loads((out / "result.json").read_text())


def ready(row):
    """The logs that must agree, without timings."""
    return [
        {k: v for k, v in r.items() if k in ("loss", "grad_norm", "kept_fraction", "kept_corrupted", "filter_auroc")}
        for r in row if "loss" in r
    ]  # fmt: skip


def close(ours, theirs, rel=2e-4):
    assert len(ours) == len(theirs) > 3
    for a, b in zip(ours, theirs):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=rel, abs=1e-5), (key, a, b)
