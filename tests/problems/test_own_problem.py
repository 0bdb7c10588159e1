"""A kind of problem is one object: counts, with a Poisson loss, are trained, selected, recorded and evaluated."""

import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from helpers.toy import curve, images, robust, vit
from torch import nn

from robust_trainer import problems
from robust_trainer.problems import PROBLEMS, Problem
from robust_trainer.problems.base import check_numbers, matching_values


class Counts(Problem):
    """How often something happens: K numbers from 0."""

    name = "counts"
    labels_are = "counts"

    def check_labels(self, name, labels, outputs, index):
        check_numbers(self, name, labels, outputs, index, unit=False)

    def loss(self, logits, targets):
        values, targets = matching_values("poisson", logits, targets)
        return nn.functional.poisson_nll_loss(values, targets, reduction="none").mean(-1)

    def gradient_norm(self, logits, targets, huber_delta=None):
        values, targets = matching_values("poisson", logits, targets)
        return (values.exp() - targets).norm(dim=-1)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(5, 1)
        self.config = SimpleNamespace(problem_type="counts")

    def forward(self, features):
        return self.net(features)


def counted(n=64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 5)).astype(np.float32) * 0.3
    y = rng.poisson(np.exp(x.sum(1))).astype(np.float32)
    y[::8] += 40
    return datasets.Dataset.from_dict({"features": x, "labels": y, "is_corrupted": np.arange(n) % 8 == 0}).with_format("torch")


def test_a_new_kind_is_one_object(tmp_path, monkeypatch):
    monkeypatch.setitem(PROBLEMS, "counts", Counts())
    trainer = robust(
        tmp_path, Line(), counted(), method="prl", noise_rate=0.125, drop_schedule="constant", num_train_epochs=3,
        per_device_train_batch_size=32,
    )  # fmt: skip
    trainer.train()
    losses = [loss for loss, _ in curve(trainer)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert sorted(trainer.distrusted_samples()["index"][:]) == list(range(0, 64, 8))
    assert trainer.ledger.run["problem"] == "counts" and set(trainer.ledger.label.tolist()) == {-1}
    rows = counted()
    values, targets = trainer.model(rows["features"][:]), rows["labels"][:].view(-1, 1)
    expected = nn.functional.poisson_nll_loss(values, targets).item()
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_kind_is_found_by_its_file(tmp_path, monkeypatch):
    source = "from .regression import Regression\nclass Ages(Regression):\n    name = 'ages'\nAGES = Ages()\n"
    (tmp_path / "ages.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(problems, "__path__", [*problems.__path__, str(tmp_path)])
    assert [kind.name for kind in problems._found()].count("ages") == 1
    monkeypatch.delitem(sys.modules, "robust_trainer.problems.ages")


def test_a_head_that_does_not_know_the_kind_is_evaluated_by_its_loss(tmp_path, monkeypatch):
    monkeypatch.setitem(PROBLEMS, "counts", Counts())
    pixels = images(16)["pixel_values"][:]
    data = datasets.Dataset.from_dict({"pixel_values": pixels, "labels": np.arange(64.0).reshape(16, 4) / 9}).with_format("torch")
    model = vit()
    model.config.problem_type = "counts"
    trainer = robust(tmp_path, model, data, method="prl", num_train_epochs=1)
    for _ in range(2):  # before training and after it
        with torch.no_grad():
            expected = nn.functional.poisson_nll_loss(model.eval()(pixels).logits, data["labels"][:]).item()
        assert trainer.evaluate(data)["eval_loss"] == pytest.approx(expected, rel=1e-4)
        trainer.train()


def test_what_needs_a_class_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(PROBLEMS, "counts", Counts())
    with pytest.raises(ValueError, match=r"objective='gce' is a loss on class labels, but problem_type='counts': choose auto"):
        robust(tmp_path, Line(), counted(), method="prl", objective="gce").train()
    with pytest.raises(ValueError, match=r"per_class=True needs one class label per sample, but problem_type='counts'"):
        robust(tmp_path, Line(), counted(), method="prl", per_class=True).train()
