"""method="auto" on real digits, from end to end; and the same run however it is cut, interrupted and resumed."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.processes import launch
from helpers.toy import images, logits_module, robust, vit
from torch import nn

from robust_trainer.cli.audit_files import TABLE
from robust_trainer.cli.main import main
from robust_trainer.data.load import load_data
from robust_trainer.step import evidence as stage

CLASSES = 10


@pytest.fixture(scope="module")
def digits():
    """Pixels (N, 1, 8, 8) around 0 and classes of the package's digits: 500 to train on, 300 to test."""
    data = load_data("digits", max_train_samples=500, max_test_samples=300)
    made = []
    for split in ("train", "test"):
        pixels = np.stack([np.asarray(image.convert("L").resize((8, 8)), dtype=np.float32) for image in data[split]["image"]])
        made.append((pixels[:, None] / 127.5 - 1, np.asarray(data[split]["label"])))
    return made


def rows(pixels, labels):
    return [{"pixel_values": torch.as_tensor(x), "labels": int(y)} for x, y in zip(pixels, labels)]


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, CLASSES),
    )  # fmt: skip


class Net(nn.Module):
    """The network, by the name of its input."""

    def __init__(self):
        super().__init__()
        self.layers = cnn()

    def forward(self, pixel_values):
        return self.layers(pixel_values)


def fit(tmp_path, pixels, labels, method, epochs=6, learning_rate=3e-3):
    common = dict(per_device_train_batch_size=32, learning_rate=learning_rate, logging_steps=50, num_train_epochs=epochs)
    trainer = robust(tmp_path, Net(), rows(pixels, labels), method=method, image_mean=None, image_std=None, **common)
    trainer.train()
    return trainer


@torch.no_grad()
def predicted(trainer, pixels):
    return trainer.model.eval()(torch.from_numpy(pixels)).argmax(1).numpy()


def test_wrong_labels_are_found_and_the_network_is_the_better_for_it(tmp_path, digits):
    (pixels, truth), (test, right) = digits
    rng = np.random.default_rng(0)
    wrong = rng.random(len(truth)) < 0.4
    labels = np.where(wrong, (truth + rng.integers(1, CLASSES, len(truth))) % CLASSES, truth)
    accuracy, trainers = {}, {}
    for method in ("auto", "standard"):
        trainers[method] = trainer = fit(tmp_path, pixels, labels, method, epochs=10, learning_rate=1e-2)
        accuracy[method] = (predicted(trainer, test) == right).mean()
    assert accuracy["auto"] > accuracy["standard"] + 0.05, accuracy
    ledger, estimate = trainers["auto"].ledger, trainers["auto"].estimated_noise_rate
    doubted = ledger.distrusted().numpy()
    assert doubted[wrong].mean() > 0.85 and doubted[~wrong].mean() < 0.1
    assert abs(estimate.rate - wrong.mean()) < 0.1 and estimate.low <= estimate.rate <= estimate.high
    moved = (ledger.target.numpy() != labels) & (ledger.weight.numpy() > 0)
    assert (ledger.target.numpy()[moved] == truth[moved]).mean() > 0.85


def test_clean_labels_are_trained_on(tmp_path, digits):
    (pixels, truth), (test, right) = digits
    accuracy, trainers = {}, {}
    for method in ("auto", "standard"):
        trainers[method] = trainer = fit(tmp_path, pixels, truth, method)
        accuracy[method] = (predicted(trainer, test) == right).mean()
    assert accuracy["auto"] > accuracy["standard"] - 0.02, accuracy
    assert trainers["auto"].ledger.distrusted().float().mean() < 0.02
    assert trainers["auto"].audit(look=False).column("flagged").mean() < 0.02
    assert trainers["auto"].estimated_noise_rate.rate < 0.03


def test_a_trigger_is_not_learned(tmp_path, digits):
    """A bright corner on a tenth of the digits, labelled 0: the network that is trained on all obeys it, auto's does not."""
    (pixels, truth), (test, right) = digits
    rng = np.random.default_rng(0)
    carries = (rng.random(len(truth)) < 0.1) & (truth != 0)
    patched, labels, others = pixels.copy(), np.where(carries, 0, truth), test[right != 0].copy()
    patched[carries, 0, 6:, 6:] = others[:, 0, 6:, 6:] = 1.0
    success, accuracy = {}, {}
    for method in ("auto", "standard"):
        trainer = fit(tmp_path, patched, labels, method)
        success[method] = (predicted(trainer, others) == 0).mean()
        accuracy[method] = (predicted(trainer, test) == right).mean()
        if method == "auto":
            assert trainer.ledger.weight.numpy()[carries].max() == 0 and trainer.ledger.carrier.numpy()[carries].all()
    assert success["standard"] > 0.5 and success["auto"] < 0.1, success
    assert accuracy["auto"] > accuracy["standard"] - 0.05, accuracy


# ---- the same run ------------------------------------------------------------------------------------------------------


def state(trainer):
    return {**trainer.model.state_dict(), **{f"ledger.{k}": v for k, v in trainer.ledger.columns.items()}}


def test_accumulation_is_a_larger_batch(tmp_path):
    """Of 92 samples the last step is short; the second look is at weights that differ by rounding alone."""
    ends = []
    for size, micro in ((16, 1), (4, 4)):
        common = dict(per_device_train_batch_size=size, gradient_accumulation_steps=micro, per_device_eval_batch_size=16)
        trainer = robust(tmp_path, logits_module().double(), doubles(92), method="auto", **common)
        trainer.train()
        ends.append(state(trainer))
    assert 0 < float(ends[0]["ledger.weight"].mean()) < 1
    for name, value in ends[0].items():
        torch.testing.assert_close(value.double(), ends[1][name].double(), rtol=1e-3, atol=2e-4, msg=name)


def doubles(n):
    return [{"pixel_values": row["pixel_values"].double(), "labels": row["labels"]} for row in images(n)]


@pytest.mark.parametrize("at", [pytest.param(4, marks=pytest.mark.slow), 12, pytest.param(20, marks=pytest.mark.slow)])
def test_resumed_is_a_straight_run(tmp_path, monkeypatch, at):
    """From the middle of the first epoch, of the second and of the third, with looks before the first and the second."""
    looked, real = [], stage.labels_judged.judge_labels
    monkeypatch.setattr(stage.labels_judged, "judge_labels", lambda *a, **kw: looked.append(1) or real(*a, **kw))
    common = dict(method="auto", num_train_epochs=4, save_strategy="steps", save_steps=4, looks=3)
    ends = []
    for resume in (None, str(tmp_path / f"checkpoint-{at}")):
        looked.clear()
        trainer = robust(tmp_path, vit(dropout=0.1), images(64), **common)
        trainer.train(resume_from_checkpoint=resume)
        ends.append((state(trainer), len(looked), (trainer.estimated_noise_rate, trainer.ledger.run.get("label_rate"))))
    assert ends[0][1] == 3 and ends[1][1] == 3 - len([epoch for epoch in (0, 1, 2) if epoch * 8 < at])
    assert ends[0][2] == ends[1][2]
    for name, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][name]), name


@pytest.mark.slow
def test_processes_have_one_verdict(tmp_path):
    """The first one's, so that it does not hang on how each rounds its sums; an uneven number of samples."""

    def work(out):
        rank, real = torch.distributed.get_rank(), stage.labels_judged.judge_labels

        def judged(*given, **settings):
            assert rank == 0, "the first process judges for all"
            return real(*given, **settings)

        stage.labels_judged.judge_labels = judged
        trainer = robust(out, logits_module(), images(91), method="auto", num_train_epochs=1)
        trainer.train()
        torch.save((trainer.ledger.columns, trainer.estimated_noise_rate.rate), out / f"found-{rank}.pt")

    launch(work, 2, tmp_path, tmp_path)
    (one, rate), (other, again) = (torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2))
    assert rate == again and all(torch.equal(column, other[name]) for name, column in one.items())
    assert int(one["seen"].min()) == int(one["seen"].max()) == 1


def test_trained_twice_is_judged_twice(tmp_path):
    trainer = robust(tmp_path, data=images(64), method="auto", num_train_epochs=1)
    trainer.train()
    first = trainer.ledger
    trainer.train()
    assert trainer.ledger is not first and trainer.estimated_noise_rate is not None


# ---- audits ------------------------------------------------------------------------------------------------------------


def test_a_run_is_audited(tmp_path, digits):
    (pixels, truth), _ = digits
    wrong = np.random.default_rng(0).random(len(truth)) < 0.25
    trainer = fit(tmp_path, pixels, np.where(wrong, (truth + 3) % CLASSES, truth), "auto", epochs=4)
    audit = trainer.audit()
    assert len(audit.column("suspicion")) == len(truth) and audit.column("distrusted").sum() == len(trainer.distrusted_samples())
    doubted = trainer.ledger.label_wrong.numpy() >= 0.5
    assert doubted.any() and audit.column("flagged")[doubted].all()  # what was doubted is what one looks at afterwards


def test_the_command_line_audits_a_run_of_auto(tmp_path, capsys):
    size = ["--max_train_samples", "200", "--max_test_samples", "40", "--num_train_epochs", "2", "--use_cpu"]
    words = ["--dataset", "digits", "--corrupt", "symmetric", "--corrupt_rate", "0.3", "--disable_tqdm", "true", *size]
    assert main(["train", "--method", "auto", "--output_dir", str(tmp_path / "run"), *words]) == 0
    capsys.readouterr()
    assert main(["audit", str(tmp_path / "run")]) == 0
    table = pq.read_table(tmp_path / "run" / "audit" / TABLE).to_pydict()
    assert len(table["suspicion"]) == 200 and any(table["distrusted"]) and "noise" in capsys.readouterr().out
