"""Fine-pruning: exactly the idlest units go, stay gone through fine-tuning, the last step is taken back, the original stays."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from helpers.tables import every_row
from helpers.toy import CLASSES, images, logits_module, resnet, settings, vit
from torch import nn
from transformers import TrainingArguments

from robust_trainer.detectors import fine_prune
from robust_trainer.models.peers import PeerModel
from robust_trainer.models.zoo import build_model


class Net(nn.Module):
    """A convolution of 12 channels, ReLU, pooling, a linear layer; the first ``idle`` channels hardly ever fire."""

    def __init__(self, channels: int = 12, idle: int = 0, bias: bool = True, norm: bool = False):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.act, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(4 * channels, CLASSES)
        with torch.no_grad():
            if bias:
                self.conv.bias[:idle] -= 20.0
            if norm:
                self.norm.running_mean.normal_()
                self.norm.bias.normal_()

    def forward(self, pixel_values):
        return self.head(self.pool(self.act(self.norm(self.conv(pixel_values)))).flatten(1))


def arguments(tmp_path, **kwargs) -> TrainingArguments:
    return TrainingArguments(**settings(tmp_path, **kwargs))


def trained(model: nn.Module, data) -> nn.Module:
    """The model with its head fitted to the data, so that there is accuracy to lose."""
    x, y = data["pixel_values"][:], data["labels"][:]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        outputs = model(pixel_values=x)
        nn.functional.cross_entropy(outputs if torch.is_tensor(outputs) else outputs.logits, y).backward()
        optimizer.step()
    return model.eval()


def accuracy(model, data, rows) -> float:
    x, y = data["pixel_values"][:][list(rows)], data["labels"][:][list(rows)]
    with torch.no_grad():
        outputs = model(pixel_values=x)
    logits = outputs if torch.is_tensor(outputs) else outputs.logits
    return float((logits.argmax(1) == y).double().mean())


def mean_activity(model: Net, data, rows) -> list[float]:
    """One number per channel, by a loop over the samples."""
    sums = [0.0] * model.conv.out_channels
    with torch.no_grad():
        for i in rows:
            pooled = model.pool(model.norm(model.conv(data[i]["pixel_values"].unsqueeze(0))).relu())[0]
            for unit, plane in enumerate(pooled):
                sums[unit] += float(plane.mean()) / len(rows)
    return sums


def zero_channels(weight: torch.Tensor) -> set[int]:
    return {i for i, row in enumerate(weight) if not row.any()}


@pytest.mark.parametrize("norm", [False, True])
def test_exactly_the_least_active_channels_are_zero_and_stay_so(tmp_path, norm):
    data = images(40, noisy=0)
    model = Net(norm=norm, bias=not norm).eval()
    before = copy.deepcopy(model.state_dict())
    args = arguments(tmp_path, max_steps=4, weight_decay=0.1, optim="adamw_torch")
    found = fine_prune(model, data, args, clean_fraction=0.5, prune_share=0.4, seed=3)
    assert len(found.rows) == 20 and list(found.rows) == sorted(set(found.rows)) and found.units == 12
    activity = mean_activity(model, data, found.rows)
    assert list(found.pruned) == sorted(range(12), key=lambda unit: activity[unit])[:5]  # 0.4 * 12 = 4.8
    for repaired in (found.model, fine_prune(model, data, None, clean_fraction=0.5, prune_share=0.4, seed=3).model):
        assert zero_channels(repaired.conv.weight) == set(found.pruned)
        if norm:
            assert zero_channels(repaired.norm.weight.unsqueeze(1)) == set(found.pruned)
        with torch.no_grad():
            maps = repaired.act(repaired.norm(repaired.conv(data[0]["pixel_values"].unsqueeze(0))))[0]
        assert {i for i, plane in enumerate(maps) if not plane.any()} >= set(found.pruned)
        assert set(repaired.state_dict()) == set(before)  # plain parameters again, no masks
        assert all(not m._forward_pre_hooks and not m._forward_hooks for m in repaired.modules())
    kept = [i for i in range(12) if i not in found.pruned]
    assert not torch.equal(found.model.conv.weight[kept], before["conv.weight"][kept])  # it was fine-tuned
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not model.training and not found.model.training


def test_without_arguments_only_the_pruned_units_change():
    data, model = images(30, noisy=0), Net()
    found = fine_prune(model.train(), data, None, prune_share=0.25, clean_fraction=0.3)
    kept = [i for i in range(12) if i not in found.pruned]
    assert len(found.pruned) == 3 and found.model.training and found.model is not model
    assert torch.equal(found.model.conv.weight[kept], model.conv.weight[kept])
    assert torch.equal(found.model.conv.bias[kept], model.conv.bias[kept]) and not found.model.conv.bias[list(found.pruned)].any()
    assert torch.equal(found.model.head.weight, model.head.weight)
    assert found.accuracy_after_pruning == accuracy(found.model, data, found.rows)
    assert found.accuracies == (found.accuracy_after_pruning,)
    nothing = fine_prune(model, data, None, prune_share=0.0)
    assert nothing.pruned == () and nothing.accuracies == () and nothing.accuracy_after_pruning == nothing.accuracy_before
    assert len(fine_prune(model, data, None, prune_share=1.0).pruned) == 11  # one is left


@pytest.mark.parametrize("rule", ["last-conv", "last-linear"])
def test_pruning_stops_at_the_drop_and_takes_the_step_back(rule):
    data = images(60, noisy=0)
    model = trained(Net(idle=3), data)
    found = fine_prune(model, data, None, rule=rule, clean_fraction=0.5, max_drop=0.2)
    step = math.ceil(0.01 * found.units)
    assert found.units == (12 if rule == "last-conv" else 48) and step == 1
    before = accuracy(model, data, found.rows)
    assert found.accuracy_before == before > 0.6
    drops = [(before - now) / before for now in found.accuracies]
    assert drops[-1] > 0.1999 and all(drop < 0.2 for drop in drops[:-1])
    assert len(found.pruned) == len(found.accuracies) - 1 > 0  # the last step was undone
    assert found.accuracy_after_pruning == found.accuracies[-2] == accuracy(found.model, data, found.rows)
    if rule == "last-conv":
        assert set(found.pruned[:3]) == {0, 1, 2} and found.accuracies[2] == before  # idle channels cost nothing
        assert zero_channels(found.model.conv.weight) == set(found.pruned)
    else:
        assert zero_channels(found.model.head.weight.T) == set(found.pruned)


def test_a_relu_that_is_no_module_counts_too():
    data, model = images(20, noisy=0), logits_module()
    found = fine_prune(model, data, None, prune_share=0.5, clean_fraction=0.5)
    with torch.no_grad():
        fired = model.conv(data["pixel_values"][:][list(found.rows)]).relu().mean((0, 2, 3))
        signed = model.conv(data["pixel_values"][:][list(found.rows)]).mean((0, 2, 3))
    assert list(found.pruned) == torch.argsort(fired)[:3].tolist() != torch.argsort(signed)[:3].tolist()


def test_a_first_step_too_far_prunes_nothing():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2, bias=False)
            self.head.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))

        def forward(self, x):
            return self.head(x)

    rows = [{"x": torch.tensor([1.0 if i % 2 == 0 else -1.0, 5.0]), "labels": i % 2} for i in range(6)]
    found = fine_prune(One(), rows, None, rule="last-linear", clean_fraction=1.0)
    assert found.accuracy_before == 1.0 and found.accuracies == (0.5,)
    assert found.pruned == () and found.accuracy_after_pruning == 1.0
    assert torch.equal(found.model.head.weight, One().head.weight)


def test_last_linear_ranks_columns_by_their_mean_size(tmp_path):
    data, model = images(24, noisy=0), vit()
    found = fine_prune(model, data, arguments(tmp_path, max_steps=2), rule="last-linear", clean_fraction=0.5, prune_share=0.5)
    with torch.no_grad():
        hidden = model.vit(data["pixel_values"][:][list(found.rows)]).last_hidden_state[:, 0]
    size = [float(np.mean([abs(float(row[unit])) for row in hidden])) for unit in range(16)]
    assert list(found.pruned) == sorted(range(16), key=lambda unit: size[unit])[:8]
    assert zero_channels(found.model.classifier.weight.T) == set(found.pruned)
    kept = [i for i in range(16) if i not in found.pruned]
    assert not torch.equal(found.model.classifier.weight[:, kept], model.classifier.weight[:, kept])


def test_plain_modules_fine_tune_by_the_cross_entropy(tmp_path):
    data = images(16, noisy=0)
    args = arguments(
        tmp_path, max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=4, optim="sgd", max_grad_norm=0.0
    )
    model = logits_module()
    found = fine_prune(model, data, args, clean_fraction=1.0, prune_share=0.0)
    by_hand = logits_module()
    nn.functional.cross_entropy(by_hand(data["pixel_values"][:]), data["labels"][:]).backward()
    for mine, own in zip(found.model.parameters(), by_hand.parameters()):
        torch.testing.assert_close(mine, own.detach() - args.learning_rate * own.grad, rtol=1e-4, atol=1e-6)


def test_models_of_the_project_and_of_transformers_are_pruned():
    data = images(20, noisy=0)
    torch.manual_seed(0)
    small, _ = build_model("small-cnn", list("abcd"), channels=3, image_size=8)
    found = fine_prune(small, data, None, prune_share=0.5, clean_fraction=0.5)
    conv, norm = found.model.features[6], found.model.features[7]
    assert found.units == conv.out_channels and len(found.pruned) == conv.out_channels // 2
    assert zero_channels(conv.weight) == set(found.pruned) == zero_channels(norm.weight.unsqueeze(1))
    assert not norm.bias[list(found.pruned)].any()
    found = fine_prune(resnet(), data, None, prune_share=0.5, clean_fraction=0.5)
    assert found.units == 12 and len(found.pruned) == 6


def test_the_seed_draws_the_rows():
    data, model = images(40, noisy=0), Net()
    first, again, other = (fine_prune(model, data, None, prune_share=0.1, clean_fraction=0.2, seed=s).rows for s in (0, 0, 1))
    assert first == again != other and len(first) == len(other) == 8
    assert len(fine_prune(model, data, None, prune_share=0.1, clean_fraction=0.01).rows) == 2
    dicts = [{"pixel_values": row["pixel_values"], "labels": row["labels"]} for row in data]
    assert fine_prune(model, dicts, None, prune_share=0.5).pruned == fine_prune(model, data, None, prune_share=0.5).pruned


@every_row(
    ("given", "line"),
    [
        ({"rule": "all"}, r"rule='all': choose one of last-conv, last-linear"),
        ({"clean_fraction": 0}, r"clean_fraction=0: expected a share above 0 to 1"),
        ({"prune_share": 1.5}, r"prune_share=1\.5: expected a share from 0 to 1"),
        ({"max_drop": -0.1}, r"max_drop=-0\.1: expected a share above 0 to 1"),
        ({"model": nn.Linear(3, 2)}, r"rule='last-conv' but no convolution ran in the model: choose rule='last-linear'"),
        ({"model": PeerModel.of([logits_module(), logits_module()])}, r"model is a PeerModel .* such as model\.peers\[0\]"),
        ({"clean": []}, r"dataset is empty"),
        ({"clean": [{"input": torch.zeros(3), "labels": 0}]}, r"clean has 1 row: fine-pruning needs at least 2"),
        ({"model": nn.Linear(3, 2, bias=False), "rule": "last-linear", "clean": [{"input": torch.ones(3), "labels": 0}] * 3,
          "negative": True}, r"accuracy on the 2 clean rows is 0: check their labels, or set prune_share"),
        ({"model": nn.Linear(1, 2), "rule": "last-linear", "clean": [{"input": torch.ones(1), "labels": 0}] * 3},
         r"rule='last-linear' finds a layer of 1 unit"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(given, line):
    given = dict(given)
    model = given.pop("model", nn.Linear(3, 2))
    clean = given.pop("clean", [{"input": torch.zeros(3), "labels": i % 2} for i in range(6)])
    if given.pop("negative", False):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    with pytest.raises(ValueError, match=line) as error:
        fine_prune(model, clean, None, **given)
    assert "\n" not in str(error.value)
