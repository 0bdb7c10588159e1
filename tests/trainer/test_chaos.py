"""One of several processes is killed, or alone raises: the others end with a reason and do not wait for ever; the run goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.processes import launch, start
from helpers.toy import images, logits_module, robust
from torch import nn
from transformers import TrainerCallback, default_data_collator

from robust_trainer.step import feature_pass

#: What gloo says to a process whose partner is gone, in its words for the several ways of finding out.
GONE = re.compile(r"Connection closed by peer|Connection reset by peer|Broken pipe|Read error|Write error|\[Rank \d\]")
PATIENCE = 60


def rank():
    return torch.distributed.get_rank()


class Killed(TrainerCallback):
    """Kills its process, as the system's out-of-memory killer would, in the middle of an epoch."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 7 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train(out, resume=None, callbacks=(), **given):
    settings = dict(method="prl-at-memory", steps=1, drop_ramp_steps=2, save_strategy="steps", save_steps=3, num_train_epochs=3)
    own = {"callbacks": [*callbacks]}
    trainer = robust(out, logits_module(), images(47), own, per_device_train_batch_size=4, **{**settings, **given})
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def ended(children, end=PATIENCE):
    """Waits until all have ended: their exit codes. Fails where one still waits so long after the first has ended."""
    first = None
    try:
        while not all([child.ended() for child in children]):
            if first is None and any(child.code is not None for child in children):
                first = time.monotonic()
            assert first is None or time.monotonic() < first + end, "\n".join(c.told() for c in children if c.code is None)
            time.sleep(0.05)
    finally:
        for child in children:
            child.kill()
    return [child.code for child in children]


def test_one_of_three_is_killed_and_the_run_goes_on(tmp_path):
    """The others end in error and say that a partner is gone; resumed, weights and ledger are bit for bit the straight run's."""

    def keep(out, trainer, name):
        if rank() == 0:
            found = {"weights": trainer.model.state_dict(), "ledger": {k: v.clone() for k, v in trainer.ledger.columns.items()}}
            torch.save(found, out / f"{name}.pt")

    def going_on(out):
        keep(out, train(out / "killed", resume=True), "resumed")
        torch.distributed.barrier()
        keep(out, train(out / "straight"), "straight")

    children = start(lambda out: train(out / "killed", callbacks=[Killed()]), 3, tmp_path, tmp_path / "first", timeout=2 * PATIENCE)
    codes = ended(children)
    assert codes[1] == -signal.SIGKILL and codes[0] == codes[2] == 1
    for child in (children[0], children[2]):
        assert GONE.search(child.told()), child.told()
    assert sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    launch(going_on, 3, tmp_path, tmp_path / "second")
    resumed, straight = (torch.load(tmp_path / f"{name}.pt") for name in ("resumed", "straight"))
    for part in ("weights", "ledger"):
        assert resumed[part].keys() == straight[part].keys()
        for name, tensor in straight[part].items():
            assert torch.equal(resumed[part][name], tensor), (part, name)


# ---- an exception that one process alone has -------------------------------------------------------------------------------------


def in_the_collator(out):
    calls = []

    def collate(rows):
        calls.append(0)
        if len(calls) == 5 and rank() == 1:
            raise OSError("row 17 is no image")
        return default_data_collator(rows)

    robust(out, logits_module(), images(48), method="prl", noise_rate=0.2, trainer={"data_collator": collate}).train()


def in_the_attack(out):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = logits_module(), 0

        def forward(self, pixel_values, labels=None):
            self.calls += pixel_values.requires_grad
            if self.calls == 8 and rank() == 1:
                raise FloatingPointError("the attack cannot go on")
            return self.net(pixel_values)

    robust(out, Fails(), images(48), method="pgd-at", steps=2).train()


def in_the_enlarged_pass(out):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.head, self.large = nn.AdaptiveAvgPool2d(4), nn.Linear(48, 4), 0

        def forward(self, pixel_values, labels=None):
            self.large += pixel_values.shape[-1] == 16
            if self.large > 5 and rank() == 1:
                raise MemoryError("no room for enlarged images")
            return self.head(self.pool(pixel_values).flatten(1))

    feature_pass._Trial.tells_more = lambda self, gathered: True
    robust(out, Fails(), images(120), method="auto", per_device_eval_batch_size=8).train()


@pytest.mark.parametrize(
    ("work", "reason", "told"),
    [
        (in_the_collator, "OSError: row 17 is no image", GONE),
        (in_the_attack, "FloatingPointError: the attack cannot go on", GONE),
        (in_the_enlarged_pass, "MemoryError: no room for enlarged images", re.compile("process 1: MemoryError: no room for enl")),
    ],
)
def test_an_exception_of_one_ends_all(tmp_path, work, reason, told):
    """In a step the others learn that a partner is gone; in a pass over the training set, which all end, the reason itself."""
    children = start(work, 2, tmp_path, tmp_path / "logs", timeout=2 * PATIENCE)
    assert ended(children) == [1, 1], "\n".join(child.told() for child in children)
    assert reason in children[1].told(), children[1].told()
    assert told.search(children[0].told()), children[0].told()


# ---- under torchrun --------------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from helpers.toy import images, logits_module, robust
from transformers import TrainerCallback

class Killed(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

robust({out!r}, logits_module(), images(48), method="prl", trainer=dict(callbacks=[Killed()])).train()
"""


@pytest.mark.slow
def test_torchrun_ends_the_others_and_names_the_signal(tmp_path):
    tests = Path(__file__).parents[1]
    (tmp_path / "script.py").write_text(SCRIPT.format(tests=str(tests), out=str(tmp_path / "run")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tests.parent)}
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "script.py")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and re.search(r"Signal 9 \(SIGKILL\) received", done.stderr), done.stderr[-6000:]
