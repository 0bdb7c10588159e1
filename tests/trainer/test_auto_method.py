"""method="auto" as a user meets it: what is judged, what is done, and what is said where nothing can be judged."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from helpers.tables import every_row
from helpers.text import net, padded, sentences
from helpers.toy import CLASSES, Logits, curve, images, logits_module, resnet, robust, vit
from torch import nn

from robust_trainer.evidence import judge as judging
from robust_trainer.evidence import telling
from robust_trainer.models.peers import PeerModel
from robust_trainer.step import evidence as stage


@pytest.fixture
def said(caplog, monkeypatch):
    """The warnings of the package, one line each."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("robust_trainer"), "propagate", True)
    caplog.set_level("WARNING")

    def lines():
        found = [record.getMessage() for record in caplog.records if "auto" in record.getMessage()]
        assert not any("\n" in line for line in found)
        return found

    return lines


def train(tmp_path, model=None, data=None, **settings):
    trainer = robust(tmp_path, model, data, **{"method": "auto", **settings})
    trainer.train()
    return trainer


def same_run(one, other):
    """The same losses, gradients and weights, bit for bit."""
    weights = other.model.state_dict()
    return curve(one) == curve(other) and all(torch.equal(v, weights[k]) for k, v in one.model.state_dict().items())


def planted(monkeypatch, labels, seed=0):
    """A verdict of all kinds in the place of the evidence: a quarter dropped, a quarter relabelled, the others of less weight."""
    n, rng = len(labels), np.random.default_rng(seed)
    kind = rng.integers(0, 4, n)
    wrong = np.where(kind < 2, 0.9, rng.uniform(0, 0.5, n)).astype(np.float32)
    suggested = np.where(kind == 1, (labels + 1) % CLASSES, labels)
    confidence = np.full(n, 0.9, np.float32)
    real, calls = judging.judge_labels, []

    def judged(features, given, classes, **settings):
        assert np.array_equal(given, labels)
        calls.append(classes)
        found = judging._nothing(given, classes, "planted.")
        rate = judging.RateEstimate(0.5, 0.4, 0.6, n)
        changes = dict(wrong=wrong, suggested=suggested, confidence=confidence, informative=True, rate=rate, rest=rate)
        return judging.replace(found, **changes)

    assert real is stage.labels_judged.judge_labels
    monkeypatch.setattr(stage.labels_judged, "judge_labels", judged)
    return kind, calls


def test_labels_that_are_hardly_doubted_are_trained_on_as_by_the_plain_trainer(tmp_path, monkeypatch):
    """A doubt below 1/20 of every label: weights, losses and gradients of the standard method, bit for bit."""
    data = images(64)

    def judged(features, given, classes, **settings):
        wrong = np.random.default_rng(0).uniform(0, 0.05, len(given)).astype(np.float32)
        return judging.replace(judging._nothing(given, classes, "planted."), wrong=wrong, informative=True)

    monkeypatch.setattr(stage.labels_judged, "judge_labels", judged)
    one, other = (train(tmp_path, data=data, method=method) for method in ("auto", "standard"))
    assert same_run(one, other) and bool((one.ledger.columns["weight"] == 1).all())


# ---- what a step minimises -----------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_weighted_rows_with_their_targets(tmp_path, monkeypatch):
    """With a learning rate of zero: each step's loss from the ledger's columns, by hand; accumulated batches too."""
    data = images(48)
    kind, _ = planted(monkeypatch, np.asarray(data["labels"]))
    for size, micro in ((16, 1), (4, 4)):
        settings = dict(per_device_train_batch_size=size, gradient_accumulation_steps=micro, learning_rate=0.0)
        trainer = robust(tmp_path, data=data, method="auto", num_train_epochs=1, train_sampling_strategy="sequential", **settings)
        trainer.train()
        columns = trainer.ledger.columns
        weight, target = columns["weight"], columns["target"].long()
        labels = data["labels"][:]
        assert (weight[kind == 0] == 0).all() and torch.equal(
            target, torch.where(torch.tensor(kind == 1), labels + 1, labels) % CLASSES
        )
        with torch.no_grad():
            logits = trainer.model.eval()(data["pixel_values"][:])
        losses = weight * F.cross_entropy(logits, target, reduction="none")
        expected = [float(losses[i : i + 16].sum() / weight[i : i + 16].sum()) for i in range(0, 48, 16)]
        assert [loss for loss, _ in curve(trainer)] == pytest.approx(expected, rel=1e-4)


def test_the_ledger_and_its_files_hold_the_verdict(tmp_path, monkeypatch, said):
    data = images(48)
    labels = np.asarray(data["labels"])
    kind, _ = planted(monkeypatch, labels)
    trainer = train(tmp_path, data=data)
    rows = pq.read_table(trainer.ledger.to_parquet(tmp_path / "ledger.parquet")).to_pydict()
    assert np.array_equal(rows["distrusted"], kind < 2) and np.array_equal(rows["target"], trainer.ledger.target)
    for name in ("label_wrong", "weight", "suggested", "suggested_confidence", "carrier"):
        assert len(rows[name]) == 48, name
    found = trainer.distrusted_samples()
    assert set(found["index"]) == set(np.flatnonzero(kind < 2)) and not any(np.diff(found["label_wrong"]) > 0)
    estimate = trainer.estimated_noise_rate
    assert (estimate.rate, estimate.low, estimate.high, estimate.n) == (0.5, 0.4, 0.6, 48)
    assert trainer.ledger.run["label_rate"] == [0.5, 0.4, 0.6]
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert all((row["noise_rate"], row["noise_rate_low"], row["noise_rate_high"]) == (0.5, 0.4, 0.6) for row in logs)
    assert np.mean([row["kept_fraction"] for row in logs]) == pytest.approx((kind >= 2).mean())
    out, other = 100 * (kind == 0).mean(), 100 * (kind == 1).mean()
    told = f"planted. {out:.1f} % of the rows are left out, {other:.1f} % trained as the suggested class"
    assert all(told in line for line in said()) and len(said()) == 2  # of two looks


def test_a_sample_that_training_did_not_reach_is_distrusted_too(tmp_path, monkeypatch):
    data = images(48)
    kind, calls = planted(monkeypatch, np.asarray(data["labels"]))
    trainer = train(tmp_path, data=data, max_steps=1)
    assert len(calls) == 1 and int(trainer.ledger.seen.sum()) == 8
    assert set(trainer.distrusted_samples()["index"]) == set(np.flatnonzero(kind < 2))


@pytest.mark.parametrize("epochs,looks,expected", [(1, 2, 1), (2, 2, 2), (4, 1, 1), (8, 4, 4)])
def test_labels_are_judged_as_often_as_asked(tmp_path, monkeypatch, epochs, looks, expected):
    data = images(16)
    _, calls = planted(monkeypatch, np.asarray(data["labels"]))
    train(tmp_path, data=data, num_train_epochs=epochs, looks=looks, per_device_train_batch_size=16)
    assert calls == [CLASSES] * expected


def test_relabel_from_one_never_relabels(tmp_path, monkeypatch):
    data = images(48)
    planted(monkeypatch, np.asarray(data["labels"]))
    trainer = train(tmp_path, data=data, relabel_from=1.0, num_train_epochs=1)
    assert torch.equal(trainer.ledger.target.long(), data["labels"][:]) and bool((trainer.ledger.weight == 0).any())


def test_a_loss_of_the_users_is_given_the_weights_and_the_suggested_classes(tmp_path, monkeypatch):
    data, given = images(48), []
    planted(monkeypatch, np.asarray(data["labels"]))

    def loss(outputs, labels):
        given.append(labels.clone())
        return F.cross_entropy(outputs, labels, reduction="none")

    settings = dict(num_train_epochs=1, train_sampling_strategy="sequential")
    trainer = train(tmp_path, data=data, trainer={"compute_loss_func": loss}, **settings)
    assert torch.equal(torch.cat(given), trainer.ledger.target.long())
    assert same_run(trainer, train(tmp_path, data=data, **settings))


def test_a_models_own_loss_is_given_the_suggested_classes(tmp_path, monkeypatch):
    """A head with a loss of its own, that transformers would call: minimised row by row."""
    data, given = images(48), []
    planted(monkeypatch, np.asarray(data["labels"]))

    def doubled(labels, logits, config, **kwargs):
        given.append(labels.clone())
        return 2 * F.cross_entropy(logits.view(-1, CLASSES), labels.view(-1), reduction=kwargs.get("reduction", "mean"))

    model = vit()
    model.loss_function = doubled
    trainer = train(tmp_path, model, data, num_train_epochs=1)
    assert len(curve(trainer)) == 6 and given


def test_label_smoothing_smooths_the_suggested_classes(tmp_path, monkeypatch):
    data = images(48)
    planted(monkeypatch, np.asarray(data["labels"]))
    settings = dict(num_train_epochs=1, learning_rate=0.0, train_sampling_strategy="sequential", label_smoothing_factor=0.2)
    trainer = train(tmp_path, vit(), data, per_device_train_batch_size=48, **settings)
    weight, target = trainer.ledger.weight, trainer.ledger.target.long()
    with torch.no_grad():
        logits = trainer.model.eval()(data["pixel_values"][:]).logits
    expected = (weight * F.cross_entropy(logits, target, reduction="none", label_smoothing=0.2)).sum() / weight.sum()
    assert curve(trainer)[0][0] == pytest.approx(float(expected), rel=1e-4)


def test_a_later_look_that_tells_nothing_leaves_the_verdict(tmp_path, monkeypatch, said):
    data = images(48)
    kind, calls = planted(monkeypatch, np.asarray(data["labels"]))
    first = stage.labels_judged.judge_labels

    def judged(features, labels, classes, **settings):
        if calls:
            return judging._nothing(labels, classes, "nothing now.")
        return first(features, labels, classes, **settings)

    monkeypatch.setattr(stage.labels_judged, "judge_labels", judged)
    trainer = train(tmp_path, data=data)
    assert torch.equal(trainer.ledger.distrusted(), torch.from_numpy(kind < 2)) and trainer.estimated_noise_rate.rate == 0.5
    assert "nothing now. What was found before stays in force." in said()[-1]


# ---- nothing to judge: the run is the standard one -------------------------------------------------------------------------------


class NoLinear(nn.Module):
    """A network whose last layer is a convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, 3)

    def forward(self, pixel_values):
        return self.conv(pixel_values).mean((2, 3))


class Huge(Logits):
    """Features beyond half precision."""

    def forward(self, pixel_values):
        hidden = F.adaptive_avg_pool2d(self.conv(pixel_values).relu() * 1e7, 2)
        return self.head(hidden.flatten(1)) * 1e-7


def built(case):
    torch.manual_seed(0)
    return {"no linear": NoLinear, "huge": Huge}.get(case, logits_module)()


@pytest.mark.parametrize("case,why", [
    ("few", "16 rows of 4 classes are too few"), ("no linear", "no linear layer of 4 outputs"), ("huge", "not finite in half"),
    ("random", "hardly better than chance"),
])  # fmt: skip
def test_where_nothing_can_be_judged_all_is_trained_on(tmp_path, said, case, why):
    data = images(16 if case == "few" else 96, shuffled=True)
    one, other = (train(tmp_path, built(case), data, method=method) for method in ("auto", "standard"))
    assert same_run(one, other) and one.estimated_noise_rate is None and len(one.distrusted_samples()) == 0
    assert all(why in line and "every sample is trained on as it is" in line for line in said()) and said()
    assert not any("noise_rate" in row for row in one.state.log_history)


def test_a_look_leaves_no_trace(tmp_path, monkeypatch):
    """Dropout, BatchNorm, modes, and a data set whose transform draws random numbers: as without a look, bit for bit."""
    monkeypatch.setattr(stage.labels_judged, "judge_labels", lambda _, y, c, **kw: judging._nothing(y, c, "nothing."))

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.drop = resnet(), nn.Dropout(0.3)
            self.config = self.backbone.config

        def forward(self, pixel_values):
            return self.drop(self.backbone(pixel_values).logits)

    def moved(batch):
        x = np.stack([np.asarray(image) for image in batch["pixel_values"]])
        x = x + np.random.normal(0, 0.1, x.shape) + float(torch.rand(()))
        return {"pixel_values": torch.tensor(x, dtype=torch.float32), "labels": torch.tensor(batch["labels"])}

    ends = []
    for method in ("auto", "standard"):
        data = images(48).with_format(None).select_columns(["pixel_values", "labels"]).with_transform(moved)
        torch.manual_seed(0)
        np.random.seed(0)
        ends.append(train(tmp_path, Both(), data, method=method))
    assert same_run(*ends) and any("running_mean" in name for name in ends[0].model.state_dict())


def test_a_look_is_in_evaluation_mode_without_gradients_and_removes_its_hooks(tmp_path):
    seen = []

    class Watched(Logits):
        def forward(self, pixel_values):
            seen.append((self.training, torch.is_grad_enabled(), len(pixel_values)))
            return super().forward(pixel_values)

    torch.manual_seed(0)
    trainer = train(tmp_path, Watched(), images(64), num_train_epochs=1, enlarge=False)
    looked = [size for training, gradient, size in seen if not training]
    assert sum(looked) == 64 and not any(gradient for training, gradient, _ in seen if not training)
    assert sum(size for training, _, size in seen if training) == 64
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_a_stream_is_trained_on_as_it_is(tmp_path, said):
    ends = [train(tmp_path, data=images(64).to_iterable_dataset(), method=m, max_steps=6) for m in ("auto", "standard")]
    assert same_run(*ends) and ends[0].ledger is None and ends[0].estimated_noise_rate is None
    assert [line for line in said() if "labels of a stream cannot be judged, so every sample is trained on" in line]


# ---- models and data ------------------------------------------------------------------------------------------------------------


def adapted():
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(vit(), peft.LoraConfig(r=2, target_modules=["q_proj", "query"], modules_to_save=["classifier"]))


def lora_head():
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(vit(), peft.LoraConfig(r=2, target_modules=["classifier"]))


@pytest.mark.parametrize("build", [logits_module, vit, resnet, adapted, lora_head])
def test_models_are_judged_by_their_features(tmp_path, said, build):
    """With a config and without one; inside PEFT."""
    trainer = train(tmp_path, build(), images(160), num_train_epochs=1)
    assert trainer.estimated_noise_rate is not None and trainer.estimated_noise_rate.n <= 160, said()
    assert 0 < float(trainer.ledger.weight.mean()) <= 1 and int(trainer.ledger.target.min()) >= 0


@every_row("case", ["compiled", "workers", "smaller batches", "last dropped", "shuffled", "another loss"])
def test_the_first_verdict_does_not_hang_on_how_is_trained(tmp_path, monkeypatch, case):
    monkeypatch.setattr(telling, "TELLING", 0.0)  # features of random weights tell little, and are to be judged by nevertheless
    settings = {
        "compiled": dict(torch_compile=True, torch_compile_backend="eager"), "workers": dict(dataloader_num_workers=1),
        "smaller batches": dict(per_device_train_batch_size=3),
        "last dropped": dict(dataloader_drop_last=True, per_device_train_batch_size=60), "shuffled": dict(data_seed=9),
        "another loss": dict(objective="gce"),
    }[case]  # fmt: skip
    one, other = (train(tmp_path, vit(), images(96), num_train_epochs=1, **extra) for extra in ({}, settings))
    torch.testing.assert_close(one.ledger.label_wrong, other.ledger.label_wrong, rtol=0, atol=1e-2)
    assert one.estimated_noise_rate.rate == pytest.approx(other.estimated_noise_rate.rate, abs=1e-2)
    assert float(one.ledger.label_wrong.max()) > 0


def test_labels_of_rows_that_training_never_reaches_are_known(tmp_path):
    trainer = train(tmp_path, vit(), images(96), num_train_epochs=1, max_steps=2)
    never = trainer.ledger.seen == 0
    assert never.any() and torch.equal(trainer.ledger.label.long(), torch.stack([row["labels"] for row in trainer.train_dataset]))


def test_a_text_model(tmp_path):
    """Wrong labels of sentences whose first word tells the class, by a small BERT whose embeddings tell the words."""
    model = net("bert").float()
    rows = sentences(240)
    truth = torch.stack([row["labels"] for row in rows])
    wrong = torch.rand(240, generator=torch.Generator().manual_seed(1)) < 0.2
    rows = [{**row, "labels": (row["labels"] + 1) % 3 if bad else row["labels"]} for row, bad in zip(rows, wrong)]
    trainer = train(tmp_path, model, rows, trainer={"data_collator": padded}, num_train_epochs=4, per_device_train_batch_size=16)
    assert torch.equal(trainer.ledger.label.long(), torch.where(wrong, (truth + 1) % 3, truth))
    assert trainer.ledger.label_wrong.isfinite().all() and int(trainer.ledger.seen.min()) == 4


@pytest.mark.parametrize("name", ["auto-simclr", "auto"])
def test_a_frozen_backbone(tmp_path, name):
    model = vit()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    extra = {"freeze_backbone": True} if name == "auto" else {}
    trainer = train(tmp_path, model, images(160), method=name, num_train_epochs=1, **extra)
    changed = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith("classifier") for k in changed) and trainer.estimated_noise_rate is not None


@pytest.mark.parametrize("case,told", [
    ("multi_label_classification", "judges one class label per sample"), ("regression", "judges one class label per sample"),
    ("label", "is 9 in training row 40"), ("negative", "is -3 in training row 40"), ("nan", "pixel_values"),
    ("peers", "trains one network"),
])  # fmt: skip
def test_what_cannot_be_judged_is_refused_in_one_line(tmp_path, case, told):
    model, rows = vit(), [dict(row) for row in images(64).select_columns(["pixel_values", "labels"])]
    if case in ("multi_label_classification", "regression"):
        model = vit(problem_type=case)
        rows = [{**row, "labels": torch.rand(CLASSES).round()} for row in rows]
    if case in ("label", "negative"):
        rows[40]["labels"] = torch.tensor(9 if case == "label" else -3)
    if case == "nan":
        rows[40]["pixel_values"] = torch.full_like(rows[40]["pixel_values"], float("nan"))
    if case == "peers":
        model = PeerModel.of([vit(), vit()])
    with pytest.raises(ValueError, match=told) as caught:
        train(tmp_path, model, rows)
    assert "\n" not in str(caught.value)


def test_a_model_without_labels_is_refused(tmp_path):
    class Own(Logits):
        sample_losses = True

        def forward(self, pixel_values):
            loss = super().forward(pixel_values).square().mean(1)
            return {"loss": loss, "score": loss}

    with pytest.raises(ValueError, match="needs labelled samples"):
        train(tmp_path, Own(), images(16).select_columns(["pixel_values"]))


def test_no_method_is_the_plain_trainer_still(tmp_path):
    trainer = train(tmp_path, method=None, image_mean=None, image_std=None, model=vit())
    assert trainer.ledger is None and trainer.estimated_noise_rate is None
