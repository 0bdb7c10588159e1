"""Repairs: one call for all rows, the original left alone, each stage's loss against its formula, bad input."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from helpers.tables import every_row
from helpers.toy import CLASSES, images, logits_module, settings, vit
from torch import nn
from transformers import TrainingArguments

from robust_trainer.detectors import REPAIRS, repair
from robust_trainer.detectors.repairs.tuning import Unlearned, losses_of, stage_of, tune
from robust_trainer.models.peers import PeerModel


def arguments(tmp_path, **kwargs) -> TrainingArguments:
    return TrainingArguments(**settings(tmp_path, **kwargs))


def marked(n: int = 120, share: float = 0.2, seed: int = 0):
    """Toy images, a share of them, of other classes, with a bright corner and the label 0; and which they are."""
    data = images(n, seed=seed, noisy=0.0)
    x, y = data["pixel_values"][:].clone(), data["labels"][:].clone()
    bad = torch.zeros(n, dtype=torch.bool)
    bad[torch.nonzero(y).flatten()[: round(share * n)]] = True
    x[bad, :, -3:, -3:] = 3.0
    y[bad] = 0
    return [{"pixel_values": a, "labels": int(b)} for a, b in zip(x, y)], bad.numpy()


@every_row("name", REPAIRS)
def test_every_repair_returns_a_copy(tmp_path, name):
    row = REPAIRS[name]
    assert row.starts_from in ("trained", "untrained") and "20" in row.source and row.summary
    data, _ = marked(48)
    model = logits_module().train()
    before = copy.deepcopy(model.state_dict())
    given = {"clean": images(24, seed=5, noisy=0.0)} if row.clean_rows else {}
    if name == "abl":
        given["isolated"] = 0.1
    found = repair(name, model, data, arguments(tmp_path, num_train_epochs=2), **given)
    assert found.name == name and found.model is not model and found.model.training
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())
    assert any(not torch.equal(weight, before[key]) for key, weight in found.model.state_dict().items())
    if found.flagged is not None:
        assert found.flagged.shape == (48,) and found.flagged.dtype == bool and 0 < found.flagged.sum() < 48
    again = repair(name, model, data, arguments(tmp_path, num_train_epochs=2), **given)
    for mine, other in zip(found.model.parameters(), again.model.parameters()):
        torch.testing.assert_close(mine, other)


def test_the_unlearning_loss_is_the_difference_of_the_two_means():
    data = [{"x": torch.zeros(1), "label": i % 3} for i in range(40)]
    keep, away = np.arange(3, 40), np.array([0, 1, 2])
    entries = Unlearned(data, keep, away, 3, share=0.2)
    assert entries.kept == 37 and len(entries) == 37 + 3 * 3
    labels = torch.tensor([row["label"] for row in entries])
    assert ((labels >= 3) == (torch.arange(len(entries)) >= 37)).all() and data[0]["label"] == 0
    torch.manual_seed(0)
    of_row = 2 * torch.randn(40, 3)
    logits = of_row[torch.from_numpy(entries.rows)]
    losses = [float(nn.functional.cross_entropy(of_row[i], torch.tensor(data[i]["label"]))) for i in range(40)]
    for ceiling in (math.inf, 0.8):
        slow = sum(losses[i] for i in keep) / len(keep) - sum(min(losses[i], ceiling) for i in away) / len(away)
        assert float(entries.ascent(ceiling)(logits, labels).mean()) == pytest.approx(slow, rel=1e-5)
    logits.requires_grad_()
    entries.ascent(0.0)(logits, labels).sum().backward()
    assert not logits.grad[37:].any() and logits.grad[:37].any()  # above the ceiling a sample is left alone


def test_a_stage_is_a_share_of_the_training_and_writes_nothing(tmp_path):
    whole = arguments(tmp_path, num_train_epochs=10, save_strategy="epoch")
    part = stage_of(whole, 0.3, 0.1)
    assert part.num_train_epochs == 3 and part.learning_rate == pytest.approx(0.1 * whole.learning_rate)
    assert part.save_strategy == "no" and whole.save_strategy == "epoch" and whole.num_train_epochs == 10
    assert stage_of(arguments(tmp_path, max_steps=5), 0.01).max_steps == 1
    tune(logits_module(), part, images(16), None)
    assert not list(tmp_path.iterdir())


def test_tuning_by_a_loss_of_each_sample_is_the_step_by_hand(tmp_path):
    data = images(16, noisy=0)
    args = arguments(
        tmp_path, max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=4, optim="sgd", max_grad_norm=0.0
    )

    def weighted(logits, labels):
        return (labels + 1) * nn.functional.cross_entropy(logits, labels, reduction="none")

    for make in (logits_module, vit):
        mine, own = make(), make().train()
        tune(mine, args, data, None, weighted)
        outputs = own(pixel_values=data["pixel_values"][:])
        weighted(outputs if torch.is_tensor(outputs) else outputs.logits, data["labels"][:]).mean().backward()
        for name, weight in own.named_parameters():
            expected = weight.detach() - args.learning_rate * (0.0 if weight.grad is None else weight.grad)
            torch.testing.assert_close(mine.state_dict()[name], expected, rtol=1e-4, atol=1e-6)


def test_losses_are_those_of_evaluation_mode():
    model, data = logits_module().train(), images(10)
    losses, classes = losses_of(model, data, None, 4)
    with torch.no_grad():
        plain = nn.functional.cross_entropy(model(data["pixel_values"][:]), data["labels"][:], reduction="none")
    np.testing.assert_allclose(losses, plain.numpy(), rtol=1e-5)
    assert classes == CLASSES and model.training


def attack_success(model: nn.Module) -> tuple[float, float]:
    """Accuracy on clean toy images, and how many with the mark are taken for class 0 that are of another."""
    data = images(200, seed=9, noisy=0.0)
    x, y = data["pixel_values"][:].clone(), data["labels"][:]
    with torch.no_grad():
        clean = float((model.eval()(x).argmax(1) == y).double().mean())
        x[:, :, -3:, -3:] = 3.0
        return clean, float((model(x[y > 0]).argmax(1) == 0).double().mean())


def test_abl_unlearns_the_trigger(tmp_path):
    data, bad = marked(400, 0.15)
    args = arguments(tmp_path, num_train_epochs=20, learning_rate=1e-2, logging_strategy="no")
    plain = logits_module()
    tune(plain, args, data, None)
    clean, attacked = attack_success(plain)
    assert clean > 0.9 and attacked > 0.9
    found = repair("abl", logits_module(), data, args, isolated=0.1)
    repaired_clean, repaired_attacked = attack_success(found.model)
    assert bad[found.flagged].mean() > 0.9 and found.flagged.sum() == 40
    assert repaired_attacked < 0.2 and repaired_clean > clean - 0.1
    assert set(np.flatnonzero(found.flagged)) == set(np.argsort(found.details["losses"], kind="stable")[:40])


@every_row(
    ("name", "given", "line"),
    [
        ("fine-prunning", {}, r"unknown repair 'fine-prunning': did you mean 'fine-pruning'\? choose one of fine-pruning, abl"),
        ("abl", {"gama": 1}, r"repair 'abl' has no setting 'gama': it takes gamma, "),
        ("fine-pruning", {}, r"clean=None: repair 'fine-pruning' needs clean rows \(rows of all classes"),
        ("abl", {"clean": [1]}, r"clean was given, but repair 'abl' uses no clean rows"),
        ("abl", {"rate": 1.0}, r"rate=1\.0: expected the share of poison"),
        ("abl", {"args": None}, r"args is a NoneType: expected TrainingArguments"),
        ("abl", {"model": PeerModel.of([logits_module(), logits_module()])}, r"model is a PeerModel"),
        ("abl", {"gamma": -1}, r"gamma=-1: expected a loss in nats"),
        ("abl", {"isolated": 0}, r"isolated=0: expected a share above 0 to 1"),
        ("abl", {"isolated": 0.001}, r"isolated=0\.001 of 12 rows are 0: expected at least 1"),
        ("abl", {"isolation": 0.6, "unlearning": 0.4}, r"isolation=0\.6 and unlearning=0\.4: their sum leaves no training"),
        ("abl", {"ceiling": 0}, r"ceiling=0: expected a number above 0"),
        ("abl", {"unlearning_lr": float("nan")}, r"unlearning_lr=nan: expected a number above 0"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, name, given, line):
    given = {"args": arguments(tmp_path), "model": logits_module(), **given}
    model, args = given.pop("model"), given.pop("args")
    with pytest.raises(ValueError, match=line) as error:
        repair(name, model, images(12), args, **given)
    assert "\n" not in str(error.value)
