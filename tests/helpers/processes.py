"""Runs in several processes, forked from this one: importing torch and transformers anew costs ten seconds a process."""

import json
import os
import socket
import traceback

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState


def forked(work, *arguments, environment=None, errors=None) -> int:
    """The process id of a fork that calls ``work(*arguments)``; what it raises is written to the file ``errors``."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(environment or {})
        torch.set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        work(*arguments)
        code = 0
    except BaseException:
        if errors is not None:
            errors.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def launch(work, processes: int, out, errors) -> None:
    """``work(out)`` in each of ``processes`` that train together, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    children = []
    for rank in range(processes):
        environment = {name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
        children.append(forked(work, out, environment=environment, errors=errors / f"error-{rank}.txt"))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), "\n".join(file.read_text()[-3000:] for file in errors.glob("error-*.txt"))


def trained_together(work, processes: int, tmp_path):
    """What ``work(out)`` tells: it returns a trainer that has trained and a result that JSON holds. One process is this one."""
    out = tmp_path / str(processes)
    out.mkdir()

    def tell(out):
        trainer, result = work(out)
        if trainer.is_world_process_zero():
            (out / "result.json").write_text(json.dumps(result))
        trainer.accelerator.wait_for_everyone()  # a process that leaves while the other one still talks to it may abort
        trainer.accelerator.end_training()

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
