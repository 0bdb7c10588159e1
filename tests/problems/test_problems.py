"""Regression and multi-label problems: targets travel, every rule selects, transformers' own loss at rate 0."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from helpers.tables import every_row
from helpers.toy import curve, images, robust, settings, vit
from torch import nn
from transformers import Trainer, TrainingArguments

from robust_trainer import METHODS
from robust_trainer.data.labels import check_labels
from robust_trainer.models.problem import problem_of
from robust_trainer.problems import REGRESSION


class Line(nn.Module):
    """A small network from (B, 5) to (B, K), or to (B,) where ``flat``."""

    def __init__(self, outputs: int, flat: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, outputs))
        self.flat = flat

    def forward(self, features):
        out = self.net(features)
        return out[:, 0] if self.flat else out


def numbers(n=64, outputs=2, seed=0, multi=False):
    """A linear task of which a quarter of the rows has targets from another world."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)).astype(np.float32)
    y = (x @ rng.normal(size=(5, outputs))).astype(np.float32)
    wrong = np.arange(n) % 4 == 0
    if multi:
        y = (y > 0).astype(np.float32)
        y[wrong] = 1 - y[wrong]
    else:
        y[wrong] = rng.uniform(-9, 9, (wrong.sum(), outputs))
    rows = {"features": x, "labels": y if outputs > 1 or multi else y[:, 0], "is_corrupted": wrong}
    return datasets.Dataset.from_dict(rows).with_format("torch")


RULES = [
    *((name, "regression") for name in ("standard", "prl", "co-teaching", "ignormclip")),
    *((name, "multi_label_classification") for name in ("spl", "prl-g", "co-prl", "min-sgd")),
]


@pytest.mark.parametrize("method,problem", RULES)
def test_every_rule_trains(tmp_path, method, problem):
    data = numbers(multi=problem != "regression")
    trainer = robust(tmp_path, Line(2), data, method=method, problem_type=problem, num_train_epochs=3)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert np.isfinite(curve(trainer)).all() and any((a != b).any() for a, b in zip(before, trainer.model.parameters()))
    rows = trainer.ledger.to_dataset()
    assert set(rows["label"][:]) == {-1} and set(rows["seen"][:]) == {3}
    assert np.isfinite(trainer.evaluate(data)["eval_loss"])


@pytest.mark.parametrize("method", ["prl", "spl"])
def test_selection_beats_standard_on_wrong_targets(tmp_path, method):
    """The wrong quarter is dropped, and the fit to the right rows is better than standard training's."""
    problem = "regression" if method.startswith("prl") else "multi_label_classification"
    multi = problem != "regression"
    data, test = numbers(512, multi=multi), numbers(512, multi=multi)
    clean = test.filter(lambda r: not r["is_corrupted"])
    common = dict(problem_type=problem, num_train_epochs=15, per_device_train_batch_size=64, logging_steps=200)
    loss = {}
    for name, rate in (("standard", {}), (method, dict(noise_rate=0.3, drop_ramp_epochs=5))):
        trainer = robust(tmp_path, Line(2), data, method=name, **common, **rate)
        trainer.train()
        loss[name] = trainer.evaluate(clean)["eval_loss"]
    found = trainer.ledger.detection()
    assert loss[method] < 0.8 * loss["standard"] and found["auroc"] > 0.9, (loss, found)


@every_row("flat,outputs", [(True, 1), (False, 1), (False, 3)])
def test_shapes_of_outputs(tmp_path, flat, outputs):
    trainer = robust(tmp_path, Line(outputs, flat), numbers(outputs=outputs), method="prl", problem_type="regression", max_steps=3)
    trainer.train()
    assert np.isfinite(curve(trainer)).all() and trainer.predict(numbers(outputs=outputs)).predictions.shape[0] == 64


@pytest.mark.parametrize("outputs,problem", [(1, "regression"), (3, "regression"), (3, "multi_label_classification")])
def test_standard_is_the_plain_trainer(tmp_path, outputs, problem):
    """transformers' own heads: the same losses, with the problem_type of the config or asked for in the arguments."""

    def model(named):
        torch.manual_seed(0)
        config = vit().config.__class__(
            **{**vit().config.to_dict(), "num_labels": outputs, "id2label": {i: str(i) for i in range(outputs)},
               "label2id": {str(i): i for i in range(outputs)}, "problem_type": problem if named else None}
        )  # fmt: skip
        return vit().__class__(config)

    rng = np.random.default_rng(0)
    data = images(32).remove_columns(["labels", "is_corrupted", "clean_label"]).with_format(None)
    y = rng.random((32, outputs)).astype(np.float32)
    data = data.add_column("labels", list(y if problem != "regression" or outputs > 1 else y[:, 0])).with_format("torch")
    base = Trainer(model(True), TrainingArguments(**settings(tmp_path)), train_dataset=data, eval_dataset=data)
    named = robust(tmp_path, model(True), data, method="standard", trainer={"eval_dataset": data})
    asked = robust(tmp_path, model(False), data, method="standard", problem_type=problem, trainer={"eval_dataset": data})
    for trainer in (base, named, asked):
        trainer.train()
    for trainer in (named, asked):
        assert np.allclose(curve(trainer), curve(base), rtol=1e-4, atol=1e-6)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(base.evaluate()["eval_loss"], rel=1e-4)


def test_huber_is_an_objective(tmp_path):
    from robust_trainer.losses.standard import Huber
    from robust_trainer.selection.scores import LossLayerGradientNorm

    recipe = METHODS["prl"](objective="huber", huber_delta=0.5)
    assert recipe.objective == Huber(0.5) and recipe.score == LossLayerGradientNorm(0.5)
    trainer = robust(tmp_path, Line(2), numbers(), method="standard", objective="huber", problem_type="regression")
    trainer.train()
    assert isinstance(trainer._robust_step.run.recipe.objective, Huber)


def wrong(told, make, method="prl", **kwargs):
    return told, make, method, kwargs


BAD = {
    "regression loss on labels": wrong(r"objective='huber' is a loss on regression.*choose one of", images, objective="huber"),
    "class loss on numbers": wrong(r"objective='gce' is a loss on class labels, but problem_type='regression'", numbers,
                                   objective="gce", problem_type="regression"),
    "class method on numbers": wrong(r"method 'sce' minimises a loss on class labels.*'regression'", numbers, "sce",
                                     problem_type="regression"),
    "bootstrap on numbers": wrong(r"method 'bootstrap' .*problem_type='regression'", numbers, "bootstrap",
                                  problem_type="regression"),
    "decouple on numbers": wrong(r"method 'decouple' compares predicted classes", numbers, "decouple", problem_type="regression"),
    "numbers as classes": wrong(r"'labels' is torch.float32.*set problem_type='regression'", numbers),
    "classes as numbers": wrong(r"class numbers it seems, but problem_type='regression': cast", images,
                                problem_type="regression"),
    "per class on numbers": wrong(r"per_class=True needs one class label", numbers, per_class=True, problem_type="regression"),
    "auto on numbers": wrong(r"noise_rate='auto' needs one class label", numbers, noise_rate="auto", problem_type="regression"),
    "outputs": wrong(r"the model has 3 outputs but each sample 2 targets.*num_labels=2", numbers, problem_type="regression"),
    "labels outside [0, 1]": wrong(r"'labels' is outside \[0, 1\] in training rows", numbers,
                                   problem_type="multi_label_classification"),
    "unknown problem": wrong(r"problem_type='regresion' is unknown", numbers, problem_type="regresion"),
    "smoothing": wrong(r"label_smoothing_factor=0.1 is for the cross-entropy", images, problem_type="regression",
                       label_smoothing_factor=0.1),
    "smoothing a robust loss": wrong(r"label_smoothing_factor=0.1 is for the cross-entropy", images, "gce",
                                     label_smoothing_factor=0.1),
    "setting without effect": wrong(r"gce_q=0.5 has no effect with objective='auto'", images, gce_q=0.5),
}  # fmt: skip


@every_row("case", BAD)
def test_bad_input(tmp_path, case):
    told, make, method, kwargs = BAD[case]
    data = make()
    model = vit() if make is images else Line(3 if case == "outputs" else 2)
    with pytest.raises(ValueError, match=told) as caught:
        robust(tmp_path, model, data, method=method, **kwargs).train()
    assert "\n" not in str(caught.value)


def test_targets_that_are_not_finite_are_named():
    batch = {"labels": torch.tensor([1.0, float("nan"), 2.0])}
    with pytest.raises(ValueError, match=r"'labels' is NaN or infinite in training rows \[8\]"):
        check_labels(batch, ["labels"], None, [7, 8, 9], None, REGRESSION)


@pytest.mark.parametrize("kind", ["unsupervised", "counts"])
def test_a_config_that_names_no_kind_is_refused(kind):
    model = torch.nn.Linear(2, 2)
    model.config = SimpleNamespace(problem_type=kind)
    with pytest.raises(ValueError, match=f"problem_type='{kind}' is unknown: choose one of single_label"):
        problem_of(model, None)
