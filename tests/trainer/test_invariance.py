"""The same trajectory however the step is cut: accumulation, processes, interruption."""

import itertools
import os
import signal
import time

import pytest
import torch
from helpers.equality import check_processes, equality_module
from helpers.processes import Child, close, launch, ready
from helpers.toy import CHANNELS, Logits, images, logits_module, resnet, robust, vit
from torch import nn
from transformers import TrainerCallback

from robust_trainer import METHODS

SHARP = {  # settings that make every room of the method work within a few steps
    "spl": dict(noise_rate=0.25),
    "prl": dict(noise_rate=0.25),
    "at": dict(eps=0.1),
    "bootstrap": dict(),
    "standard": dict(),
    "spl-at": dict(noise_rate=0.25, eps=0.1),
    "prl-at": dict(noise_rate=0.25, eps=0.1, steps=2),
    "bootstrap-at": dict(eps=0.1, scope="sample"),
    "prl-at-memory": dict(noise_rate=0.25, drop_ramp_steps=5),
    "prl-g": dict(noise_rate=0.25),
    "co-teaching": dict(noise_rate=0.25),
    "co-spl": dict(noise_rate=0.25),
    "co-prl": dict(noise_rate=0.25),
    "normclip": dict(clip_norm=0.5),
    "ignormclip": dict(sample_clip_norm=0.5),
    **{name: dict(steps=2, eps=0.05) for name, row in METHODS.items() if row.settings.get("steps", 1) > 1},
    "prl+trades": dict(noise_rate=0.25, steps=2, eps=0.05, inner_loss="ce"),
    **{name: dict(eps=0.05, collapse_check_steps=3) for name in ("fast-at", "fast-at-awp")},
    "rebalanced": dict(warmup_epochs=1.0),
    "erat": dict(steps=2, warmup_epochs=1.0, lambda_ramp_epochs=0.01),  # the epoch is counted in micro-batches: no ramp
}

#: One row of each way to decide, to perturb and to step.
STEPPING = (
    "bootstrap-at", "ignormclip", "prl-g", "min-sgd", "rebalanced", "co-prl", "decouple", "rca", "prl-at-memory", "nrat-awp",
    "erat",
)  # fmt: skip


@pytest.mark.parametrize("method", STEPPING)
def test_accumulation_is_a_larger_batch(tmp_path, method):
    """Four micro-batches of 4 take the same steps as one batch of 16; 44 samples leave a short last step."""
    data = images(44)
    logs = []
    for size, micro in ((16, 1), (4, 4)):
        trainer = robust(
            tmp_path, vit(), data, method=method, per_device_train_batch_size=size, gradient_accumulation_steps=micro,
            num_train_epochs=2, learning_rate=1e-3, **SHARP.get(method, {}),
        )  # fmt: skip
        trainer.train()
        logs.append((ready(trainer.state.log_history), trainer.ledger.columns))
    close(logs[0][0], logs[1][0])
    for name in ("seen", "kept", "predicted"):
        assert torch.equal(logs[0][1][name], logs[1][1][name]), name
    for name in ("mean_score", "aum", "margin"):
        assert torch.allclose(logs[0][1][name], logs[1][1][name], rtol=1e-3, atol=1e-3), name


@pytest.fixture
def equality(monkeypatch):
    return equality_module(monkeypatch)


@pytest.mark.parametrize("row,cut,length", [
    ("erat/crop-flip", "3", "uneven"), ("nrat-awp", "2", "uneven"), ("prl-g", "2x2", "uneven"), ("co-prl", "2", "uneven"),
    ("auto", "2", "uneven"), ("nrat-awp", "fsdp2x2", "uneven"), ("co-prl", "fsdp2", "even"),
    *(pytest.param(*cell, marks=pytest.mark.slow) for cell in [
        ("prl-at-memory", "2", "even"), ("fast-at", "2", "uneven"), ("prl-g", "fsdp2x2", "uneven"),
        ("erat/crop-flip", "fsdp3", "uneven"), ("trades/text", "fsdp2", "uneven"),
    ]),
])  # fmt: skip
def test_several_processes_are_one(tmp_path, equality, row, cut, length):
    """After 20 steps and more: the weights, every loss and gradient norm, and all that the ledger has decided and counted.

    The random starts, the drawn norms and the augmentations too. Of 91 samples the last step of an epoch has 7, so that loaders
    repeat samples to give every process its share, and one of three has nothing but repeats: these count nowhere. Of ``fsdp``
    cuts FSDP2 shards the model, by accelerate's own path.
    """
    one = check_processes(equality, row, cut, length, tmp_path)
    assert one["decided"]["seen"].eq(3).all() or row == "erat/crop-flip"  # which mixes two streams


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_several_processes_are_one_for_every_row(tmp_path, equality, method):
    """And for the variants of the row."""
    for row in (name for name in equality.NAMES if name.split("/")[0] == method):
        cuts = [cut for cut in equality.CUTS if cut != "1" and not cut.startswith("zero")]  # DeepSpeed's: test_deepspeed.py
        for cut, length in itertools.product(cuts, equality.LENGTHS):
            if (row, length, cut) not in equality.UNLIKE:
                (folder := tmp_path / f"{row.replace('/', '-')}-{cut}-{length}").mkdir()
                check_processes(equality, row, cut, length, folder)


@pytest.mark.slow
def test_two_processes_resume_within_an_uneven_epoch(tmp_path):
    """Of 43 samples the last of three steps has 11; a checkpoint after the first step of the second epoch."""

    def work(out):
        ends = []
        for resume in (None, str(out / "checkpoint-4")):
            common = dict(method="prl+trades", num_train_epochs=2, save_strategy="steps", save_steps=4, learning_rate=1e-3)
            trainer = robust(out, vit(), images(43), **common, **SHARP["prl+trades"])
            trainer.train(resume_from_checkpoint=resume)
            ends.append((trainer.model.state_dict(), trainer.ledger.columns))
        assert ends[0][1]["seen"].tolist() == [2] * 43
        for one, other in zip(*ends):
            assert all(torch.equal(value, other[name]) for name, value in one.items())

    launch(work, 2, tmp_path, tmp_path)


def test_processes_that_cannot_share_a_step_are_refused(tmp_path):
    """Without even batches one process has a step more, and would wait for the others for ever; methods without a rule too."""

    def work(out):
        with pytest.raises(ValueError, match="even_batches=False: processes share every step; set it to True"):
            robust(out, method="trades", accelerator_config={"even_batches": False}).train()

    launch(work, 2, tmp_path, tmp_path)


class Killed(TrainerCallback):
    """No goodbye: the process is gone between two checkpoints."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 18:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", ["prl-at-memory", "co-prl", pytest.param("erat", marks=pytest.mark.slow)])
def test_killed_and_resumed_is_a_straight_run(tmp_path, method):
    common = dict(method=method, num_train_epochs=4, save_strategy="steps", save_steps=4, **SHARP.get(method, {}))

    def train(out, **resume):
        callbacks = [Killed()] if out.name == "broken" and not resume else []
        trainer = robust(out, vit(dropout=0.1), images(44), trainer={"callbacks": callbacks}, **common)
        trainer.train(**resume)
        return trainer

    broken = Child(train, tmp_path / "broken", log=tmp_path / "log.txt")
    assert broken.wait() == -signal.SIGKILL, broken.told()
    straight = train(tmp_path / "straight")
    assert (tmp_path / "broken/checkpoint-16").exists() and not (tmp_path / "broken/checkpoint-20").exists()
    # in the middle of the second epoch (6 steps each)
    resumed = train(tmp_path / "broken", resume_from_checkpoint=str(tmp_path / "broken/checkpoint-8"))
    assert ready(resumed.state.log_history) == ready(straight.state.log_history)
    for name, column in straight.ledger.columns.items():
        assert torch.equal(column, resumed.ledger.columns[name]), name
    weights = resumed.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in straight.model.state_dict().items())


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    robust(tmp_path, method="prl", save_strategy="epoch").train()
    checkpoint = str(tmp_path / "checkpoint-6")
    for method in ("spl", None):
        keep = {"image_mean": None, "image_std": None}
        with pytest.raises(ValueError, match="made by method='prl'"):
            robust(tmp_path, method=method, **keep).train(resume_from_checkpoint=checkpoint)


def test_state_loads_without_pickle(tmp_path):
    import safetensors.torch

    robust(tmp_path, method="prl-at-memory", save_strategy="epoch").train()
    state = safetensors.torch.load_file(tmp_path / "checkpoint-12" / "robust_state.safetensors")
    assert state["ledger.seen"].tolist() == [2] * 48


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_crafting_leaves_batchnorm_as_it_was(tmp_path, mode):
    """One step of AT with eps 0 and one of standard training end with the same buffers and weights."""
    ends = []
    for settings in (dict(method="at", eps=0.0, attack_mode=mode, steps=2), dict(method="standard")):
        trainer = robust(tmp_path, resnet(), max_steps=3, **settings)
        trainer.train()
        ends.append(trainer.model.state_dict())
    assert any("running_mean" in k for k in ends[0])
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


def test_crafting_computes_no_weight_gradients(tmp_path):
    calls = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Logits(channels=CHANNELS)

        def forward(self, pixel_values):
            out = self.inner(pixel_values)
            calls.append((self.training, pixel_values.requires_grad))
            return out

    trainer = robust(tmp_path, Watched(), method="at", max_steps=1)
    trainer.model.inner.head.weight.register_hook(lambda grad: calls.append("weight gradient"))
    trainer.train()
    # one crafting forward in eval mode with a gradient for its input, one training forward, one weight gradient
    assert calls == [(False, True), (True, False), "weight gradient"]
    assert logits_module().training


def test_memory_is_frozen_within_an_epoch_and_right_in_share(tmp_path):
    trainer = robust(
        tmp_path, data=images(200), method="prl-at-memory", noise_rate=0.2, num_train_epochs=3, logging_strategy="epoch",
        drop_schedule="constant", memory_after_epochs=1,
    )  # fmt: skip
    trainer.train()
    rates = [r["kept_fraction"] for r in trainer.state.log_history if "kept_fraction" in r]
    drop = trainer.recipe().selection.rate(trainer._progress())
    assert rates[1:] == pytest.approx([1 - drop] * 2, abs=0.01)


def test_processes_of_tests_end(tmp_path):
    """One that hangs is killed and its stack is told; one that fails ends those that wait for it."""

    def lost():
        while True:
            time.sleep(1)

    with pytest.raises(AssertionError, match=r"hung for 1 s and was killed(.|\n)*in lost"):
        Child(lost, log=tmp_path / "log.txt", timeout=1.2).wait()

    def fail(out):
        assert torch.distributed.get_rank() == 0, "the second one fails"
        torch.distributed.barrier()

    with pytest.raises(AssertionError, match="the second one fails"):
        launch(fail, 2, tmp_path, tmp_path)
