"""Catastrophic overfitting: the rule on written logs, a probe that leaves no trace, and a network that does collapse."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers.adversarial_reference import samples
from helpers.tables import every_row
from helpers.toy import CLASSES, NORMALISATION, config, resnet, settings

from robust_trainer import RobustTrainer
from robust_trainer.methods.table import get_method
from robust_trainer.perturbations import collapse as module
from robust_trainer.perturbations.collapse import COLLAPSED, collapse

EPS = 1 / 8


@pytest.fixture
def warnings(monkeypatch):
    told = []
    monkeypatch.setattr(module, "logger", SimpleNamespace(warning=told.append))
    return told


# ---- the rule -------------------------------------------------------------------------------------------------------------


def replay(pairs):
    """The Trainer's log history of probes (accuracy on the step's own examples, under PGD), other logs between them; 4 classes."""
    history = []
    for step, (fgsm, pgd) in enumerate(pairs):
        row = {"loss": 1.0, "step": step, "fgsm_accuracy": fgsm, "pgd_accuracy": pgd, "majority_accuracy": 0.28}
        row.update(collapse(history, row))
        history += [row, {"eval_loss": 1.0, "step": step}, {"loss": 1.0, "step": step}]
    return history


def flagged(pairs):
    return [row["step"] for row in replay(pairs) if COLLAPSED in row]


RISING = [(0.2, 0.1), (0.4, 0.3), (0.6, 0.5)]
GONE = (0.95, 0.02)


def test_a_collapse_is_told_once_and_stays(warnings):
    assert flagged([*RISING, GONE, GONE, (0.6, 0.5), (0.6, 0.5)]) == [4, 5, 6]
    assert len(warnings) == 1 and "catastrophic overfitting" in warnings[0]
    assert "0.020" in warnings[0] and "0.500" in warnings[0] and "0.950" in warnings[0] and "\n" not in warnings[0]


@every_row(
    "pairs",
    [
        [(0.2, 0.1), (0.3, 0.0), (0.3, 0.0)],  # 64 samples of an untrained network
        [(0.1, 0.1), (0.27, 0.17), (0.27, 0.05), (0.45, 0.2), (0.27, 0.05), (0.3, 0.06)],  # as measured on MNIST while it learned
        [(0.23, 0.23), (0.27, 0.27), (0.33, 0.0), (0.33, 0.0), (0.62, 0.14), (0.5, 0.05), (0.66, 0.2)],  # one class for all first
        [*RISING, GONE, (0.6, 0.5), GONE, (0.6, 0.5)],  # single bad batches
        [*RISING, (0.1, 0.1), (0.1, 0.1), (0.1, 0.1)],  # diverged, which is another failure
        [*RISING, (0.6, 0.3), (0.6, 0.3), (0.6, 0.3)],  # slow robust overfitting: above half
        [(0.3, 0.1), (0.69, 0.4), (0.7, 0.38), (0.75, 0.4), (0.7, 0.35)],  # a large eps, still learning
    ],
)
def test_noise_and_other_failures_are_no_collapse(warnings, pairs):
    assert flagged(pairs) == [] and warnings == []


def test_a_model_that_never_was_robust_is_told_too(warnings):
    """FGSM's examples are all recognised by the perturbation itself (label leaking)."""
    assert flagged([(0.3, 0.1), (0.7, 0.1), (0.9, 0.0), (0.95, 0.0)]) == [2, 3]


def test_logs_without_a_probe_are_left_alone():
    assert collapse(replay([*RISING, GONE, GONE]), {"loss": 1.0}) == {}
    assert collapse([], {"loss": 1.0, "fgsm_accuracy": 1.0, "pgd_accuracy": 0.0}) == {}


def test_the_history_is_all_it_needs(warnings):
    """As a resumed run has it: from the saved log, at any cut."""
    pairs = [*RISING, GONE, GONE, GONE]
    whole = replay(pairs)
    for cut in range(len(whole)):
        row = {key: value for key, value in whole[cut].items() if key != COLLAPSED}
        warnings.clear()
        found = collapse(whole[:cut], row)
        assert (COLLAPSED in found) == (COLLAPSED in whole[cut])
        assert len(warnings) == (COLLAPSED in whole[cut] and row["step"] == 4)


# ---- the probe --------------------------------------------------------------------------------------------------------------


def trainer_of(tmp_path, model, data=None, kind=RobustTrainer, **kwargs):
    base = settings(
        tmp_path, max_steps=4, max_grad_norm=0.0, train_sampling_strategy="sequential", optim="sgd", **NORMALISATION,
        method="fast-at", eps=EPS, step_size=5 / 32,
    )  # fmt: skip
    data = samples() if data is None else data
    return kind(model=model, args=config(**{**base, **kwargs}), train_dataset=data)


class Recording(RobustTrainer):
    """Notes gradients, random state and buffers after every backward."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.__dict__.setdefault("notes", []).append(
            [loss, torch.get_rng_state(), *(p.grad.clone() for p in model.parameters()), *(b.clone() for b in model.buffers())]
        )
        return loss


@pytest.mark.parametrize("micro", [1, 2])
def test_the_probe_leaves_no_trace(tmp_path, micro):
    """With BatchNorm and dropout: weights, buffers, gradients and random numbers, bit for bit."""
    runs = []
    for every in (1, 0):
        model = resnet().double()
        model.classifier.append(torch.nn.Dropout(0.3))
        torch.manual_seed(1)
        trainer = trainer_of(
            tmp_path, model, kind=Recording, collapse_check_steps=every, gradient_accumulation_steps=micro,
            per_device_train_batch_size=8 // micro,
        )  # fmt: skip
        trainer.train()
        runs.append(trainer)
    probed, without = runs
    assert len(probed.notes) == 4 * micro
    for one, other in zip(probed.notes, without.notes, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(probed.model.parameters(), without.model.parameters()))
    assert all("pgd_accuracy" in row for row in probed.state.log_history if "loss" in row)
    assert not any("pgd_accuracy" in row for row in without.state.log_history)


@pytest.mark.parametrize("every,probes", [(1, 4), (3, 2), (0, 0)])
def test_what_a_probe_costs(tmp_path, every, probes):
    """Twelve forwards of at most 64 samples: the step's examples, PGD-10, its result."""
    model, sizes = resnet(), []
    model.register_forward_pre_hook(lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True)
    data = samples(320, torch.float32)
    trainer_of(tmp_path, model, data, collapse_check_steps=every, per_device_train_batch_size=80, objective="ce").train()
    assert sizes.count(64) == 12 * probes
    assert sizes.count(80) == 2 * 4  # the attack and the training forward


@pytest.mark.parametrize("norm,eps", [("linf", EPS), ("l2", 0.75)])
def test_the_two_accuracies_are_those_of_a_plain_loop(tmp_path, norm, eps):
    model = resnet().double()
    data = samples(256)
    size, lr = 128, 0.05
    trainer = trainer_of(
        tmp_path, model, data, collapse_check_steps=1, per_device_train_batch_size=size, learning_rate=lr, max_steps=6,
        norm=norm, eps=eps, step_size=1.25 * eps, random_start=False,
    )  # fmt: skip
    weights = []
    forward = trainer.training_step

    def step(net, inputs, num_items_in_batch=None):
        weights.append({name: value.clone() for name, value in net.state_dict().items()})
        return forward(net, inputs, num_items_in_batch)

    trainer.training_step = step
    trainer.train()
    logs = [row for row in trainer.state.log_history if "pgd_accuracy" in row]
    assert len(logs) == 6
    fresh = resnet().double().eval()

    def ascend(pixels, y, step_size, steps):
        delta = torch.zeros(pixels.shape)
        for _ in range(steps):
            moving = (pixels + delta).requires_grad_(True)
            loss = F.cross_entropy(fresh((moving - 0.5) / 0.5).logits, y, reduction="sum")
            (g,) = torch.autograd.grad(loss, moving)
            g = g.float()
            if norm == "linf":
                delta = (delta + step_size * g.sign()).clamp(-eps, eps)
            else:
                delta = delta + step_size * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                delta = delta * (eps / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1.0)
            delta = torch.minimum(torch.maximum(delta, -pixels.float()), 1 - pixels.float())
        return float((fresh((pixels + delta - 0.5) / 0.5).logits.argmax(1) == y).double().mean())

    for number, (state, row) in enumerate(zip(weights, logs)):
        fresh.load_state_dict(state)
        rows = [data[(number * size + i) % len(data)] for i in range(64)]
        pixels = torch.stack([r["pixel_values"] for r in rows]) * 0.5 + 0.5
        y = torch.stack([r["labels"] for r in rows])
        assert row["majority_accuracy"] == pytest.approx(max((y == k).double().mean().item() for k in range(CLASSES)), abs=1e-6)
        assert row["fgsm_accuracy"] == pytest.approx(ascend(pixels, y, 1.25 * eps, 1), abs=1e-6)
        assert row["pgd_accuracy"] == pytest.approx(ascend(pixels, y, eps / 4, 10), abs=1e-6)
    assert len({(row["fgsm_accuracy"], row["pgd_accuracy"]) for row in logs}) > 1


def test_a_logged_accuracy_is_the_mean_of_its_probes(tmp_path):
    single = trainer_of(tmp_path, resnet().double(), collapse_check_steps=1)
    single.train()
    joint = trainer_of(tmp_path, resnet().double(), collapse_check_steps=1, logging_steps=4)
    joint.train()
    rows = [row["pgd_accuracy"] for row in single.state.log_history if "pgd_accuracy" in row]
    (row,) = [row for row in joint.state.log_history if "pgd_accuracy" in row]
    assert len(rows) == 4 and row["pgd_accuracy"] == pytest.approx(sum(rows) / 4)


def test_the_row():
    row = get_method("fast-at").settings
    assert (row["steps"], row["random_start"], row["collapse_check_steps"]) == (1, True, 100)
    assert row["step_size"] == pytest.approx(1.25 * row["eps"])  # Wong et al. 2020
    assert "collapse_check_steps" not in get_method("pgd-at").settings


# ---- a network that collapses ---------------------------------------------------------------------------------------------------


def textures(n=1000, side=16):
    """Patches 0.1 lighter or darker as the class says, under noise: at eps 0.15 what FGSM adds tells more than what is left."""
    g = torch.Generator().manual_seed(0)
    patches = F.interpolate(torch.randn(4, 1, 4, 4, generator=g).sign(), side)
    y = torch.randint(4, (n,), generator=g)
    x = 0.5 + 0.1 * patches[y] + 0.2 * (torch.rand(n, 1, side, side, generator=g) * 2 - 1)
    return [{"pixel_values": a, "labels": b} for a, b in zip(x, y)]


class Net(torch.nn.Module):
    def __init__(self, width=16):
        super().__init__()
        nn = torch.nn
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * width, 64), nn.ReLU(), nn.Linear(64, 4),
        )  # fmt: skip

    def forward(self, pixel_values):
        return self.layers(pixel_values)


def textured(tmp_path, data, eps, steps, updates):
    torch.manual_seed(0)
    trainer = trainer_of(
        tmp_path, Net(), data, eps=eps, steps=steps, step_size=eps if steps == 1 else eps / 4, random_start=False,
        optim="adamw_torch", learning_rate=3e-3, max_steps=updates, per_device_train_batch_size=50, logging_steps=20,
        collapse_check_steps=20, image_mean=[0.0], image_std=[1.0],
    )  # fmt: skip
    trainer.train()
    return [row for row in trainer.state.log_history if "pgd_accuracy" in row]


@pytest.mark.slow
def test_a_real_collapse_is_told(tmp_path, warnings):
    logs = textured(tmp_path, textures(), 0.15, 1, 280)
    last = logs[-1]
    assert last["fgsm_accuracy"] > 0.8 and last["pgd_accuracy"] < 0.1 and COLLAPSED in last
    assert len(warnings) == 1
    first = next(i for i, row in enumerate(logs) if COLLAPSED in row)
    assert 0 < first < len(logs) - 1 and all(COLLAPSED in row for row in logs[first:])


@pytest.mark.parametrize("eps,steps,updates", [(0.15, 10, 160), (0.07, 1, 160)])
@pytest.mark.slow
def test_training_that_does_not_collapse_is_not_flagged(tmp_path, warnings, eps, steps, updates):
    """PGD-10 at the same eps, and single steps at half of it."""
    logs = textured(tmp_path, textures(), eps, steps, updates)
    assert warnings == [] and not any(COLLAPSED in row for row in logs)
    if steps == 1:
        assert logs[-1]["pgd_accuracy"] > 0.7  # and it did learn
