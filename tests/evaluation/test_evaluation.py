"""Accuracy, poison accuracy and attack success rate against slow loops, from arrays, Trainers and `evaluate` modules."""

import socket
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.processes import alone
from helpers.tables import every_row
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from robust_trainer.corruptions import AllToOne, PatchTrigger, poison, trigger_all
from robust_trainer.evaluation import accuracy as evaluation
from robust_trainer.evaluation import load_metric
from robust_trainer.evaluation.accuracy import (
    accuracy,
    attack_success_rate,
    clean_accuracy,
    compute_accuracy,
    evaluate_backdoor,
    mean_over_last,
    poison_accuracy,
    predicted_classes,
)
from robust_trainer.evaluation.metrics import NAMES


def slow_accuracy(classes, labels):
    return sum(int(p == y) for p, y in zip(classes, labels)) / len(labels)


def slow_attack_success_rate(classes, labels, targets):
    counted = [(p, a) for p, y, a in zip(classes, labels, targets) if y != a]
    return sum(int(p == a) for p, a in counted) / len(counted)


@pytest.fixture(params=range(5))
def sample(request):
    random = np.random.default_rng(request.param)
    n, classes = int(random.integers(5, 60)), int(random.integers(2, 6))
    labels, targets = random.integers(0, classes, n), random.integers(0, classes, n)
    return random.standard_normal((n, classes)), labels, targets


def test_figures_are_the_slow_loops(sample):
    logits, labels, targets = sample
    classes = [max(range(len(row)), key=row.__getitem__) for row in logits.tolist()]
    for given in (logits, classes, logits.tolist(), torch.tensor(logits)):
        for figure in (accuracy, clean_accuracy, poison_accuracy):
            assert figure(given, labels) == slow_accuracy(classes, labels)
        assert attack_success_rate(given, labels, targets) == slow_attack_success_rate(classes, labels, targets)


def test_attack_success_rate_leaves_out_images_of_the_target_class():
    labels, always_zero = np.array([0, 0, 0, 1, 2]), np.zeros(5, dtype=int)
    assert attack_success_rate(always_zero, labels, 0) == 1.0
    assert attack_success_rate(labels, labels, 0) == 0.0  # a perfect model: the three zeros are no success
    assert attack_success_rate(np.array([0, 0, 0, 0, 2]), labels, np.zeros(5, dtype=int)) == 0.5


def test_logits_come_first_of_several_outputs(sample):
    logits, labels, _ = sample
    hidden = np.zeros((len(labels), 9))
    expected = predicted_classes(logits).tolist()
    halves = [logits[:3], logits[3:]]
    for given in (
        (logits, hidden),
        {"hidden": hidden, "logits": logits},
        {"scores": logits, "hidden": hidden},
        halves,
        [(half, half * 0) for half in halves],
        [half.argmax(1) for half in halves],
        list(logits),
    ):
        assert predicted_classes(given).tolist() == expected
    prediction = SimpleNamespace(predictions=(logits, hidden), label_ids=labels)
    assert compute_accuracy(prediction) == {"accuracy": accuracy(logits, labels)}
    batches = SimpleNamespace(predictions=halves, label_ids=[labels[:3], labels[3:]])
    assert compute_accuracy(batches) == {"accuracy": accuracy(logits, labels)}


def test_nan_logits_count_as_wrong(caplog):
    logits = np.array([[1.0, 0.0], [np.nan, 0.0], [np.nan, 0.0], [0.0, 1.0]])
    assert predicted_classes(logits).tolist() == [0, -1, -1, 1]
    assert accuracy(logits, [0, 0, 1, 1]) == 0.5 and attack_success_rate(logits, [1, 1, 1, 0], [0, 0, 0, 1]) == 0.5
    assert "NaN in 2 of 4 rows" in caplog.text


HISTORY = [{"loss": 1.0, "epoch": 0.5}] + [{"eval_poison_accuracy": i / 10, "epoch": i + 1.0} for i in range(5)]


def test_mean_over_last():
    assert mean_over_last(HISTORY, "eval_poison_accuracy", 2) == pytest.approx(0.35)
    assert mean_over_last(HISTORY, "eval_poison_accuracy", 5) == pytest.approx(0.2)
    assert mean_over_last(HISTORY, "loss", 1) == 1.0


@every_row(
    "call, told",
    [
        (lambda: mean_over_last(HISTORY, "eval_accuracy", 1), "['epoch', 'eval_poison_accuracy', 'loss']"),
        (lambda: mean_over_last(HISTORY, "eval_poison_accuracy", 6), "has 5 values"),
        (lambda: mean_over_last(HISTORY, "loss", 0), "k=0"),
        (lambda: accuracy(np.zeros((2, 2)), [0]), "labels has shape (1,)"),
        (lambda: accuracy(np.zeros((2, 2)), [0.0, 1.0]), "dtype float64"),
        (lambda: accuracy(np.zeros((0, 2)), []), "labels has shape (0,)"),
        (lambda: accuracy(np.zeros((2, 1)), [0, 0]), "predictions has shape (2, 1)"),
        (lambda: accuracy(np.zeros(2), [0, 0]), "float64"),
        (lambda: accuracy(None, [0, 0]), "prediction_loss_only=False"),
        (lambda: attack_success_rate([1, 1], [0, 0], [0, 0]), "attack_targets equals labels"),
        (lambda: attack_success_rate([1, 1], [0, 0], [0, 0, 0]), "attack_targets has shape (3,)"),
        (lambda: load_metric("accuracy"), "['clean_accuracy', 'poison_accuracy', 'attack_success_rate']"),
    ],
)
def test_errors_are_one_line_and_name_the_value(call, told):
    with pytest.raises(ValueError) as caught:
        call()
    assert told in str(caught.value) and "\n" not in str(caught.value)


# ---- through a Trainer


class Brightness(nn.Module):
    """Predicts the class by the mean pixel and class 2 when the patch is there; its answers are known by hand."""

    def __init__(self, output="output"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.drop, self.norm, self.output = nn.Dropout(), nn.BatchNorm2d(1), output

    def forward(self, pixel_values, labels=None):
        self.norm(pixel_values)  # moves the running statistics in training mode
        level = (pixel_values[:, 0, 0, 0] * 4).floor()
        patch = (pixel_values[:, 0, -3:, -3:] == torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])).all(-1).all(-1)
        logits = nn.functional.one_hot(torch.where(patch, 2, level).long(), 4).float() * self.weight
        logits = logits + 0 * self.drop(logits)
        loss = nn.functional.cross_entropy(logits, labels)
        if self.output == "tuple":
            return loss, logits, pixel_values
        if self.output == "dict":
            return {"loss": loss, "logits": logits, "hidden": pixel_values}
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=(pixel_values,))


def shades(n=30, seed=0):
    """Images whose brightness is the class, for three quarters of them."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, n)
    seen = np.where(np.arange(n) % 4 == 0, (labels + 1) % 4, labels)
    images = np.tile((seen / 4 + 0.1)[:, None, None, None], (1, 1, 6, 6)).astype(np.float32)
    data = Dataset.from_dict({"pixel_values": images.tolist(), "label": labels.tolist(), "note": ["text"] * n})
    return data, labels, seen


def trainer_for(model, tmp_path, **arguments):
    arguments = {"per_device_eval_batch_size": 7, "use_cpu": True, "report_to": [], "disable_tqdm": True, **arguments}
    return Trainer(model=model, args=TrainingArguments(output_dir=str(tmp_path), **arguments), compute_metrics=compute_accuracy)


@pytest.mark.parametrize("output", ["output", "tuple", "dict"])
@pytest.mark.parametrize("concatenate", [True, False])
def test_evaluate_backdoor(output, concatenate, tmp_path):
    clean, labels, seen = shades()
    triggered = trigger_all(clean, PatchTrigger(), label_rule="multi-target")
    trainer = trainer_for(Brightness(output), tmp_path, eval_do_concat_batches=concatenate)
    found = evaluate_backdoor(trainer, clean, triggered)
    assert found == {
        "clean_accuracy": slow_accuracy(seen, labels),
        "poison_accuracy": slow_accuracy([2] * 30, labels),
        "attack_success_rate": slow_attack_success_rate([2] * 30, labels, (labels + 1) % 4),
        "n": 30,
    }
    assert 0 < found["attack_success_rate"] < 1 and 0 < found["poison_accuracy"] < 1
    to_two = evaluate_backdoor(trainer, clean, trigger_all(clean, PatchTrigger(), label_rule=AllToOne(2)))
    assert to_two["attack_success_rate"] == 1.0
    assert trainer.evaluate(clean)["eval_accuracy"] == found["clean_accuracy"]


def test_true_labels_are_the_clean_ones(tmp_path):
    clean, labels, seen = shades()
    noisy = poison(clean, trigger=None, rate=0.5)
    triggered = trigger_all(noisy, PatchTrigger(), label_rule="multi-target")
    found = evaluate_backdoor(trainer_for(Brightness(), tmp_path), noisy, triggered)
    assert found["clean_accuracy"] == slow_accuracy(seen, labels)
    assert found["poison_accuracy"] == slow_accuracy([2] * 30, labels)
    assert found["attack_success_rate"] == slow_attack_success_rate([2] * 30, labels, (labels + 1) % 4)


@pytest.mark.parametrize("training", [True, False])
def test_trainer_and_model_are_left_as_found(training, tmp_path):
    clean, _, _ = shades()
    trainer = trainer_for(Brightness(), tmp_path)
    trainer.model.train(training)
    trainer.model.drop.eval()  # a part that the user froze
    modes = [module.training for module in trainer.model.modules()]
    state = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    random, log, loader = torch.get_rng_state(), list(trainer.state.log_history), trainer.callback_handler.eval_dataloader
    evaluate_backdoor(trainer, clean, trigger_all(clean, PatchTrigger(), label_rule="multi-target"))
    assert [module.training for module in trainer.model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in trainer.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and trainer.state.log_history == log
    assert trainer.compute_metrics is compute_accuracy and trainer.callback_handler.eval_dataloader is loader
    trainer.model.forward = lambda **inputs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        evaluate_backdoor(trainer, clean, trigger_all(clean, PatchTrigger(), label_rule="multi-target"))
    assert [module.training for module in trainer.model.modules()] == modes and trainer.compute_metrics is compute_accuracy


def test_a_plain_torch_data_set_brings_its_own_labels(tmp_path):
    clean, labels, seen = shades()
    rows = [{"pixel_values": torch.tensor(row["pixel_values"]), "labels": row["label"]} for row in clean]
    triggered = trigger_all(clean, PatchTrigger(), label_rule="multi-target")
    found = evaluate_backdoor(trainer_for(Brightness(), tmp_path), rows, triggered)
    assert found["clean_accuracy"] == slow_accuracy(seen, labels)


@every_row(
    "arguments, rule, told",
    [
        ({}, None, "label_rule=..."),
        ({"dataloader_drop_last": True}, "multi-target", "30 rows but 28 predictions"),
        ({"prediction_loss_only": True}, "multi-target", "prediction_loss_only=False"),
        ({"train_sampling_strategy": "group_by_length", "length_column_name": "length"}, "multi-target", "another order"),
    ],
)
def test_evaluate_backdoor_refuses(arguments, rule, told, tmp_path):
    clean, _, _ = shades()
    clean = clean.add_column("length", np.random.default_rng(0).permutation(30).tolist())
    trainer = trainer_for(Brightness(), tmp_path, **arguments)
    if "length_column_name" in arguments:
        trainer._signature_columns = ["pixel_values", "label", "labels", "length"]
        trainer.data_collator = drop_length
    with pytest.raises(ValueError) as caught:
        evaluate_backdoor(trainer, clean, trigger_all(clean, PatchTrigger(), label_rule=rule))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def drop_length(rows):
    return {
        "pixel_values": torch.tensor([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


def test_poison_accuracy_of_each_epoch_reaches_the_log(tmp_path):
    clean, labels, _ = shades()
    triggered = trigger_all(clean, PatchTrigger())
    quiet = {"save_strategy": "no", "use_cpu": True, "report_to": [], "disable_tqdm": True}
    trainer = Trainer(
        model=Brightness(),
        args=TrainingArguments(str(tmp_path), num_train_epochs=2, eval_strategy="epoch", **quiet),
        train_dataset=clean,
        eval_dataset={"clean": clean, "poison": triggered},
        compute_metrics=compute_accuracy,
    )
    trainer.train()
    assert mean_over_last(trainer.state.log_history, "eval_poison_accuracy", 2) == slow_accuracy([2] * 30, labels)


# ---- `evaluate` modules


def refuse(*args, **kwargs):
    raise OSError("no network in this test")


def test_metrics_load_offline_and_agree_with_evaluation(tmp_path):
    random = np.random.default_rng(0)
    given = {name: random.integers(0, 4, 50).tolist() for name in ("classes", "labels", "targets")}

    def load():
        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        evaluate.config.HF_MODULES_CACHE = str(tmp_path / "modules")  # nothing was loaded before
        out = {}
        for name in NAMES:
            kwargs = {"attack_targets": given["targets"]} if name == "attack_success_rate" else {}
            out.update(load_metric(name).compute(predictions=given["classes"], references=given["labels"], **kwargs))
        return out

    found = alone(load, tmp_path)
    assert list((tmp_path / "modules").rglob("clean_accuracy.py"))
    assert found == {
        "clean_accuracy": slow_accuracy(given["classes"], given["labels"]),
        "poison_accuracy": evaluation.poison_accuracy(given["classes"], given["labels"]),
        "attack_success_rate": slow_attack_success_rate(given["classes"], given["labels"], given["targets"]),
    }
