"""What trackers are given: every tag of the charts, as the log has it; of several processes once, and as of one."""

import sys
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import pytest
import torch
from helpers.processes import trained_together
from helpers.toy import images, logits_module, robust
from transformers.integrations import integration_utils

from robust_trainer.callbacks import PANELS, RobustnessCallback, hold_out

TAGS = {tag for charts in PANELS.values() for _, tags in charts.values() for tag in tags}
REST, HELD = hold_out(images(96, seed=1), 16)


class Writer:
    """A ``SummaryWriter`` that keeps what it is given."""

    def __init__(self, log_dir=None):
        self.scalars, self.texts, self.layout = [], [], None

    def add_scalar(self, tag, value, step):
        assert isinstance(value, float | int)
        self.scalars.append((tag, value, step))

    def add_text(self, tag, value, step=None):
        self.texts.append(tag)

    def add_custom_scalars(self, layout):
        self.layout = layout

    def flush(self):
        pass

    def close(self):
        pass


@contextmanager
def board():
    """The Trainer's own TensorBoardCallback, also where TensorBoard is not installed, with such a writer."""
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    available = mock.patch.object(integration_utils, "is_tensorboard_available", lambda: True)
    with mock.patch.dict(sys.modules, {"torch.utils.tensorboard": module}), available:
        yield integration_utils.TensorBoardCallback(Writer())


def train(out, callback, size=8, **given):
    test = images(24, seed=5, noisy=0.0)
    robustness = RobustnessCallback(test, held_out=HELD, attacks_during="fgsm", attacks_final=None, eps=0.1)
    sizes = dict(per_device_train_batch_size=size, logging_steps=3)
    trainer = robust(out, logits_module(), REST, dict(callbacks=[callback, robustness]), **sizes, **given)
    robustness.log = trainer.log
    trainer.train()
    return trainer


def test_every_tag_of_the_charts_is_logged(tmp_path):
    """By a run that estimates the rate of known wrong labels, and by one that watches its own single-step attack."""
    logged = set()
    for given in (dict(method="prl", noise_rate="auto", num_train_epochs=4), dict(method="fast-at", num_train_epochs=1)):
        with board() as callback:
            writer = callback.tb_writer
            trainer = train(tmp_path, callback, **given)
        rows = [
            (f"train/{name}", value, row["step"])
            for row in trainer.state.log_history for name, value in row.items() if name not in ("step", "epoch")
        ]  # fmt: skip
        assert [entry for entry in writer.scalars if entry[0] != "train/epoch"] == rows and len(rows) > 20
        logged |= {tag for tag, _, _ in rows}
    assert logged >= TAGS, TAGS - logged


def test_several_processes_log_once_and_as_one(tmp_path):
    def work(out):
        size = 8 // (torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1)
        with board() as callback:
            writer = callback.tb_writer
            trainer = train(out, callback, size, method="prl", noise_rate=0.25, num_train_epochs=2)
        assert bool(writer.scalars) == trainer.is_world_process_zero()
        names = ("loss", "kept_fraction", "kept_clean", "kept_corrupted", "filter_auroc", "natural_accuracy", "robust_accuracy")
        return trainer, [entry for entry in writer.scalars if entry[0].removeprefix("train/") in names]

    one, two = (trained_together(work, processes, tmp_path) for processes in (1, 2))
    assert len(one) == len(two) > 20
    for (tag, value, step), (other_tag, other, other_step) in zip(one, two):
        assert (tag, step) == (other_tag, other_step) and value == pytest.approx(other, rel=1e-4, abs=1e-5), tag


def test_tensorboard_shows_the_charts(tmp_path):
    """Written by its own writer, and read by its own reader."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = tensorboard.SummaryWriter(str(tmp_path / "events"))
    writer.add_custom_scalars(PANELS)
    trainer = train(tmp_path, integration_utils.TensorBoardCallback(writer), method="prl", noise_rate=0.25)
    events = reader.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    shares = [(event.step, event.value) for event in events.Scalars("train/kept_fraction")]
    logged = [(row["step"], row["kept_fraction"]) for row in trainer.state.log_history if "kept_fraction" in row]
    assert shares == [(step, pytest.approx(value)) for step, value in logged] and len(shares) > 3
    assert "custom_scalars__config__" in events.Tags()["tensors"]
