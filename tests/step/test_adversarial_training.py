"""Adversarial training end to end: the Trainer's weights and buffers after five steps are those of plain loops.

The networks have BatchNorm, so that the mode, number and order of the forwards show in its buffers.
"""

import pytest
import torch
from helpers.adversarial_reference import BATCH, SEED, STEPS, reference, samples, sgd
from helpers.tables import every_row
from helpers.toy import NORMALISATION, config, logits_module, resnet, settings

from robust_trainer import RobustTrainer
from robust_trainer.methods.table import get_method

BALL = dict(eps=1 / 8, step_size=3 / 64, steps=3)  # exact in float32


def trainer_of(tmp_path, model, data=None, kind=RobustTrainer, **kwargs):
    base = settings(
        tmp_path, max_steps=STEPS, max_grad_norm=0.0, train_sampling_strategy="sequential", seed=SEED, **NORMALISATION,
        per_device_train_batch_size=BATCH,
    )  # fmt: skip
    args = config(**{**base, **kwargs})
    return kind(model=model, args=args, train_dataset=samples() if data is None else data, optimizers=(sgd(model), None))


def trained(tmp_path, model=None, data=None, kind=RobustTrainer, **kwargs):
    trainer = trainer_of(tmp_path, resnet().double() if model is None else model, data, kind, **kwargs)
    trainer.train()
    return trainer


def distance(one, other):
    """The largest difference of any weight or running mean or variance; the counts of batches must be the same."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(v, b[name]) for name, v in a.items() if not v.is_floating_point())
    return max((v - b[name]).abs().max().item() for name, v in a.items() if v.is_floating_point())


def same(one, other):
    """Whether weights and buffers are equal bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(v, b[name]) for name, v in a.items())


GAUSSIAN = dict(random_start=True, start_std=0.001)
#: method, inner loss, settings that the library and the reference share
CASES = {
    "pgd-at": ("pgd-at", "ce", {}),
    "pgd-at, uniform start": ("pgd-at", "ce", dict(random_start=True)),
    "pgd-at, l2": ("pgd-at", "ce", dict(norm="l2", eps=1.5, step_size=0.75)),
    "pgd-at, attacked in train mode": ("pgd-at", "ce", dict(attack_mode="train")),
    "pgd-at-apl": ("pgd-at-apl", "ce", dict(random_start=True)),
    "pgd-at-apl, objective inside": ("pgd-at-apl", "objective", {}),
    "fast-at": ("fast-at", "ce", dict(random_start=True, steps=1, step_size=5 / 32)),
    "trades": ("trades", "kl", GAUSSIAN),
    "trades, ce inside": ("trades", "ce", {}),
    "trades-apl": ("trades-apl", "kl", GAUSSIAN),
    "trades-apl, objective inside": ("trades-apl", "objective", {}),
    "mart": ("mart", "ce", GAUSSIAN),
    "mart-apl": ("mart-apl", "ce", {}),
    "nrat": ("nrat", "ce", {}),
    "nrat, kl inside": ("nrat", "kl", GAUSSIAN),
    "nrat, kl-sym inside": ("nrat", "kl-sym", dict(random_start=True, start_std=0.02)),
}


def arguments(case):
    """The settings of the library, and of the reference."""
    method, inner, shared = CASES[case]
    if not method.startswith(("pgd", "fast")):
        shared = {**shared, "beta": 4.0}
    ours = {"method": method, "inner_loss": inner, "random_start": False, **BALL, **shared}
    return ours, {"method": method, "inner": inner, **BALL, **shared}


@pytest.mark.parametrize("case", CASES)
def test_training_is_the_plain_loop(tmp_path, case):
    ours, plain = arguments(case)
    tolerance = 1e-6 if ours.get("norm") == "l2" else 1e-12  # norms are taken in float32
    assert distance(trained(tmp_path, **ours).model, reference(**plain)) < tolerance


def test_the_plain_loops_differ_by_far_more_than_the_tolerance():
    ends = {case: reference(**arguments(case)[1], updates=2) for case in CASES}
    one_forward = [case for case in CASES if case.startswith(("pgd", "fast"))]
    for group in (one_forward, [case for case in CASES if case not in one_forward]):
        for i, case in enumerate(group):
            for other in group[:i]:
                assert distance(ends[case], ends[other]) > 1e-4, (case, other)


@pytest.mark.parametrize("case", ["pgd-at", "mart"])
def test_weight_perturbation_is_the_authors_proxy(tmp_path, case):
    ours, plain = arguments(case)
    perturbed_weights = reference(**plain, gamma=0.02)
    ours["method"] += "-awp"
    trainer = trained(tmp_path, awp_gamma=0.02, awp_warmup_epochs=0.0, **ours)
    assert distance(trainer.model, perturbed_weights) < 1e-6 and distance(reference(**plain), perturbed_weights) > 1e-4


def test_weight_perturbation_starts_after_its_warm_up(tmp_path):
    ours, plain = arguments("trades, ce inside")
    ours["method"] = "trades-awp"
    trainer = trained(tmp_path, awp_gamma=0.02, awp_warmup_epochs=0.4, **ours)  # an epoch has five steps
    assert distance(trainer.model, reference(**plain, gamma=0.02, warmup_steps=2)) < 1e-6
    assert distance(trainer.model, reference(**plain, gamma=0.02, warmup_steps=3)) > 1e-4


@pytest.mark.parametrize("case", ["pgd-at", "nrat, kl inside"])
def test_weight_perturbation_of_size_zero_is_none(tmp_path, case):
    ours, _ = arguments(case)
    without = trained(tmp_path, **ours)
    ours["method"] += "-awp"
    assert same(trained(tmp_path, awp_gamma=0.0, **ours).model, without.model)
    assert not same(trained(tmp_path, awp_gamma=1e-3, **ours).model, without.model)


FILTER = dict(noise_rate=0.25, drop_schedule="constant")
#: Batches of 128 are ranked by themselves; smaller ones among the latest 128 samples: see test_selection.py.
LARGE = 128


def filtered(tmp_path, ours, plain):
    """The library's network and the reference's after three steps with large batches."""
    data = samples(2 * LARGE)
    expected = reference(**plain, rate=0.25, data=data, batch=LARGE, updates=3)
    trainer = trained(tmp_path, data=data, per_device_train_batch_size=LARGE, max_steps=3, **FILTER, **ours)
    return trainer.model, expected


@pytest.mark.parametrize("case,inner_filter", [("pgd-at", True), ("trades", False), ("mart", True), ("nrat", False)])
def test_prl_composes(tmp_path, case, inner_filter):
    """Ranked by the clean training forward where there is one; untrusted samples are neither attacked nor learned."""
    ours, plain = arguments(case)
    ours["method"] = f"prl+{ours['method']}"
    ours["inner_filter"] = plain["inner_filter"] = inner_filter
    assert distance(*filtered(tmp_path, ours, plain)) < 1e-12


def test_prl_composes_with_weight_perturbation(tmp_path):
    """Ranks come from the weights as they are, and AWP climbs the loss of the trusted."""
    ours, plain = arguments("trades")
    ours["method"] = "prl+trades-awp"
    ours["awp_gamma"] = plain["gamma"] = 0.02
    assert distance(*filtered(tmp_path, ours, plain)) < 1e-6


@pytest.mark.parametrize("method", ["trades", "nrat"])
def test_without_radius_and_divergence_training_is_standard(tmp_path, method):
    """BatchNorm's running statistics see every batch twice and differ; the weights take the same path."""
    ours = trained(tmp_path, method=method, eps=0.0, steps=2, beta=0.0)
    method = {"trades": dict(method="standard"), "nrat": dict(method="nce-rce")}[method]
    standard = dict(trained(tmp_path, **method).model.named_parameters())
    assert all((p - standard[name]).abs().max() < 1e-12 for name, p in ours.model.named_parameters())


class Watched(RobustTrainer):
    """Checks after every step that the weights are, bit for bit, those before it."""

    steps = 0

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self.steps += 1
            for name, p in model.named_parameters():
                assert torch.equal(p, self.before[name]), name
                assert p.grad is None or p.grad.isfinite().all()


@pytest.mark.parametrize("micro", [1, 2])
def test_weights_are_restored_after_every_backward(tmp_path, micro):
    model, seen = resnet().double(), []
    trainer = trainer_of(
        tmp_path, model, kind=Watched, method="trades-awp", awp_gamma=0.1, eps=0.1, steps=1, max_steps=2,
        gradient_accumulation_steps=micro, per_device_train_batch_size=BATCH // micro,
    )  # fmt: skip
    weight, bias = model.classifier[1].weight, model.classifier[1].bias

    def record(*_):
        before = trainer.before["classifier.1.weight"]
        seen.append(((weight - before).norm() / before.norm()).item())

    bias.register_hook(record)  # called in the backward
    trainer.train()
    assert trainer.steps == 2 * micro
    # the gradient that AWP climbs is taken at the weights as they are, that of the step at the moved ones
    assert sum(size < 1e-12 for size in seen) <= 2 * micro
    assert sum(abs(size - 0.1) < 1e-6 for size in seen) == 2 * micro


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_weights_are_restored_when_the_step_raises(tmp_path, where):
    model = resnet().double()
    trainer = trainer_of(tmp_path, model, kind=Watched, method="nrat-awp", awp_gamma=0.1, eps=0.1, steps=1)
    weight = model.classifier[1].weight

    def fail_once_shaken(*_):
        if not torch.equal(weight, trainer.before["classifier.1.weight"]):
            raise ZeroDivisionError("perturbed_weights")

    if where == "forward":
        model.register_forward_hook(fail_once_shaken)
    else:
        model.classifier[1].bias.register_hook(fail_once_shaken)
    with pytest.raises(ZeroDivisionError, match="perturbed_weights"):
        trainer.train()
    assert trainer.steps == 1 and all(torch.equal(p, q) for p, q in zip(model.parameters(), resnet().double().parameters()))


@pytest.mark.parametrize(
    "method,norm,eps", [("pgd-at", "l2", 0.5), ("trades", "linf", 8 / 255), ("fast-at", "linf", 8 / 255), ("mart-awp", "l2", 0.5)]
)
def test_what_is_trained_on_lies_within_eps_and_in_the_box(tmp_path, method, norm, eps):
    model, seen = resnet(), []
    given = torch.stack([row["pixel_values"] for row in samples(dtype=torch.float32)]) * 0.5 + 0.5

    def record(module, args, kwargs):
        if module.training and "labels" not in kwargs:  # not the first batch's look at the model's own loss
            seen.append(kwargs["pixel_values"].detach() * 0.5 + 0.5)

    model.register_forward_pre_hook(record, with_kwargs=True)
    trained(tmp_path, model, samples(dtype=torch.float32), method=method, eps=eps, norm=norm, step_size=eps / 2, random_start=True)
    forwards = {"pgd-at": [1], "fast-at": [1], "trades": [0, 1], "mart-awp": [0, 1, 0, 1]}[method]
    assert len(seen) == STEPS * len(forwards)
    for number, pixels in enumerate(seen):
        step, place = divmod(number, len(forwards))
        delta = pixels - given[step * BATCH : (step + 1) * BATCH]
        size = delta.abs().flatten(1).amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)
        if forwards[place] == 0:
            assert size.max() == 0
        else:
            assert (size <= eps * (1 + 1e-5)).all() and (size > eps / 4).all()
            assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6


@pytest.mark.parametrize("method", ["fast-at", "mart", "prl+trades-awp", "co-prl+nrat-awp"])
def test_accumulation_is_a_larger_batch(tmp_path, method):
    """Four micro-batches of 4 take the steps of one batch of 16; without BatchNorm, whose statistics are a micro-batch's own."""
    ends, extra = [], FILTER if "+" in method else {}
    if method.endswith("awp"):
        extra = {**extra, "awp_gamma": 0.02}
    for size, micro in ((16, 1), (4, 4)):
        args = config(**{
            **settings(tmp_path), **NORMALISATION, "max_steps": STEPS, "per_device_train_batch_size": size, "optim": "sgd",
            "gradient_accumulation_steps": micro, "method": method, "eps": 1 / 8, "step_size": 3 / 64,
            "steps": 1 if method == "fast-at" else 3, **extra,
        })  # fmt: skip
        trainer = RobustTrainer(model=logits_module().double(), args=args, train_dataset=samples(48))
        begin = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        ends.append(trainer.model)
        assert all((p - q).abs().max() > 1e-4 for p, q in zip(trainer.model.parameters(), begin))
    assert distance(*ends) < 1e-6


def test_the_logged_terms_of_a_pair_add_up_to_the_loss(tmp_path):
    """Accumulated, with weights perturbed and samples dropped."""
    trainer = trained(
        tmp_path, method="prl+trades-awp", gradient_accumulation_steps=2, per_device_train_batch_size=64, max_steps=2,
        data=samples(LARGE), **FILTER,
    )  # fmt: skip
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["kept_fraction"] == 0.75 and row["loss_robust"] > 0
        assert row["loss"] == pytest.approx(row["loss_label"] + row["loss_robust"], rel=1e-5)


@every_row(
    "method,inner_loss,objective,beta,gamma",
    [
        ("pgd-at", "ce", "auto", None, 0.01),
        ("pgd-at-apl", "ce", "nce-rce", None, 0.01),
        ("trades", "kl", "auto", 6.0, 0.005),
        ("trades-apl", "kl", "nce-rce", 6.0, 0.005),
        ("mart", "ce", "boosted-ce", 5.0, 0.005),
        ("mart-apl", "ce", "nce-rce", 5.0, 0.005),
        ("nrat", "ce", "nce-rce", 6.0, 0.005),
    ],
)
def test_the_rows_have_the_numbers_of_the_papers(method, inner_loss, objective, beta, gamma):
    s = get_method(f"{method}-awp").settings
    assert (s["eps"], s["step_size"], s["steps"], s["norm"]) == (8 / 255, 2 / 255, 10, "linf")  # NRAT sec. 4.1
    assert (s["inner_loss"], s["objective"], s.get("beta"), s["awp_gamma"]) == (inner_loss, objective, beta, gamma)
    assert s["random_start"] and s["scope"] == "sample" and s["attack_mode"] == "eval"
    assert {k: v for k, v in s.items() if not k.startswith("awp_")} == get_method(method).settings
