"""PGD against a slow loop of one sample, and both gradient attacks against linear models whose robust accuracy is known exactly."""

import dataclasses
import math

import pytest
import torch
from helpers.attack_reference import EPS, SHAPE, data, in_ball, network, size, slow_pgd, unit, wrong
from helpers.tables import every_row

from robust_trainer.attacks.apgd import APGD
from robust_trainer.attacks.base import Draws
from robust_trainer.attacks.pgd import PGD
from robust_trainer.perturbations.region import Region


@pytest.mark.parametrize(
    "norm,loss,random_start,restarts,targeted,early_stop",
    [  # every two values of different settings meet
        ("linf", "ce", False, 1, False, False),
        ("linf", "margin", True, 3, False, True),
        ("linf", "margin", True, 2, True, False),
        ("linf", "ce", False, 2, True, True),
        ("l2", "margin", False, 1, False, True),
        ("l2", "ce", True, 3, False, False),
        ("l2", "ce", True, 2, True, True),
        ("l2", "margin", False, 3, False, False),
    ],
)
def test_pgd_equals_the_slow_loop(norm, loss, random_start, restarts, targeted, early_stop):
    _, forward = network()
    x, y = data(forward)
    attack = PGD(
        EPS[norm], norm, steps=6, loss=loss, random_start=random_start, restarts=restarts, targeted=targeted,
        early_stop=early_stop, targets=2,
    )  # fmt: skip
    got = attack(forward, x, y, Draws(5, range(6)))
    expected = torch.stack([slow_pgd(attack, forward, x[i], int(y[i]), Draws(5, [i])) for i in range(6)])
    assert (got - expected).abs().max() <= 1e-6
    assert 2 <= wrong(forward, got, y).sum() <= 5  # some fall, some stand
    assert (size(got - x, norm)[1:] > EPS[norm] / 10).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_early_stop_is_never_weaker_and_visits_only_the_rest(loss, norm):
    _, forward = network()
    x, y = data(forward, 40)
    visited = []

    def counted(images):
        visited.append(len(images))
        return forward(images)

    plain = PGD(EPS[norm], norm, steps=8, loss=loss, early_stop=False)
    last = wrong(forward, plain(forward, x, y, Draws(0, range(40))), y)
    early = wrong(forward, dataclasses.replace(plain, early_stop=True)(counted, x, y, Draws(0, range(40))), y)
    assert (early | ~last).all() and 8 <= early.sum() < 40
    assert (
        len(visited) == 8
        and visited == sorted(visited, reverse=True)
        and visited[0] == 40
        and visited[-1] <= 40 - early[1:].sum() + 5
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step_is_a_step_and_two_projections(norm):
    g = torch.Generator().manual_seed(2)
    x, far = ((1.4 * torch.rand(6, *SHAPE, generator=g) - 0.2).clamp(0, 1) for _ in range(2))
    start = torch.stack([in_ball(b, a, EPS[norm], norm) for a, b in zip(x, far)])
    grad = torch.randn(6, *SHAPE, generator=g) * torch.tensor([1e6, 1, 1e-3, 1e-18, 1e-25, 1e-35]).view(-1, 1, 1, 1)
    within, kept = Region(norm, EPS[norm], x), (x.clone(), start.clone(), grad.clone())
    got = within.step(start, grad, 0.3 * EPS[norm])
    for i in range(6):  # squares of the last three are 0 in float32, their direction is not
        moved = start[i].double() + 0.3 * EPS[norm] * unit(grad[i].double(), norm)
        assert (got[i] - in_ball(moved, x[i].double(), EPS[norm], norm)).abs().max() <= 1e-6
    assert all(torch.equal(a, b) for a, b in zip(kept, (x, start, grad)))
    keep = torch.tensor([4, 1])
    sizes = torch.tensor([0.1, 0.2]).view(-1, 1, 1, 1) * EPS[norm]
    rows = within.only(keep).step(start[keep], grad[keep], sizes)
    for row, i, length in zip(rows, (4, 1), (0.1, 0.2)):
        alone = Region(norm, EPS[norm], x[i : i + 1]).step(start[i : i + 1], grad[i : i + 1], length * EPS[norm])
        assert (row - alone[0]).abs().max() <= 1e-6
    flat = torch.zeros(2, *SHAPE)
    assert (within.only(keep).step(start[keep], flat, 0.1) - start[keep]).abs().max() <= 1e-6


def test_step_size_and_its_default():
    assert PGD(0.1).size == pytest.approx(0.025) and PGD(0.1, steps=5).size == pytest.approx(0.05)
    assert PGD(0.1, step_size=0.003).size == 0.003


def affine(norm, binds, classes):
    """A linear model, x, y, eps and, per class, the exact change of z_k - z_y that the ball (and the box) allow, (n, K)."""
    g = torch.Generator().manual_seed(3)
    n, d = 60, 3 * 4 * 4
    w = torch.randn(classes, d, generator=g, dtype=torch.float64)
    u = torch.rand(n, d, generator=g)
    x = (1.4 * u - 0.2).clamp(0, 1) if binds else 0.45 + 0.1 * u
    b = -(w @ x.double().mean(0))  # every class occurs
    y = (x.double() @ w.T + b).argmax(1)
    y[:3] = (y[:3] + 1) % classes
    eps = {"linf": 0.03 if binds else 0.0025, "l2": 0.013}[norm] * (2 if classes == 2 else 1)
    v = w.unsqueeze(0) - w[y].unsqueeze(1)
    if binds:
        up, down = (x + eps).clamp(max=1) - x, (x - eps).clamp(min=0) - x
        gain = torch.where(v > 0, v * up.unsqueeze(1), v * down.unsqueeze(1)).sum(2)
    else:
        gain = eps * (v.abs().sum(2) if norm == "linf" else v.norm(dim=2))

    def forward(images):
        return (images.flatten(1).double() @ w.T + b).float()

    return forward, x.view(n, 3, 4, 4), y, eps, gain


@pytest.mark.parametrize("norm,binds", [("linf", False), ("l2", False), ("linf", True)])
@pytest.mark.parametrize("kind", ["pgd", "pgd-two-classes", "apgd", "apgd-two-classes"])
def test_linear_models_exact_robust_accuracy(kind, norm, binds):
    """Robust iff z_y - z_k > eps ||w_y - w_k||_dual for every k: per sample, the attack finds exactly that."""
    forward, x, y, eps, gain = affine(norm, binds, classes=2 if "two" in kind else 5)
    logits = forward(x).double()
    reach = (logits - logits.gather(1, y[:, None]) + gain).scatter(1, y[:, None], -math.inf).amax(1)
    robust = reach < 0
    clear = reach.abs() > 1e-3 * gain.amax(1)  # nearer to the edge the answer is a matter of rounding
    assert clear.float().mean() > 0.95 and 0.15 < robust.float().mean() < 0.8
    attack = {
        "pgd": PGD(eps, norm, steps=40, loss="margin", targeted=True),
        "pgd-two-classes": PGD(eps, norm, steps=40, loss="margin"),
        "apgd": APGD(eps, norm, steps=60, loss="dlr-targeted"),
        "apgd-two-classes": APGD(eps, norm, steps=60),
    }[kind]
    got = attack(forward, x, y, Draws(0, range(len(x))))
    assert torch.equal(wrong(forward, got, y)[clear], ~robust[clear])
    assert (size(got - x, norm) <= eps + 1e-6).all() and got.min() >= 0 and got.max() <= 1


def test_wrong_samples_keep_a_margin_gradient_and_apgd_leaves_them_alone():
    """The clamp of Carlini and Wagner's loss would leave them at the start."""
    _, forward = network()
    x, y = data(forward)
    got = PGD(EPS["linf"], loss="margin", random_start=False, early_stop=False)(forward, x, y, Draws(0, range(6)))
    assert (got - x)[0].abs().max() > 0.05 and wrong(forward, got, y)[0]
    assert torch.equal(APGD(EPS["linf"], steps=5)(forward, x, y, Draws(0, range(6)))[0], x[0])


@every_row(
    "cls,settings,message",
    [
        (PGD, dict(eps=8), "eps=8 must be a radius"),
        (PGD, dict(eps=-0.1, norm="l2"), "eps=-0.1 must be a radius"),
        (APGD, dict(eps=float("nan")), "eps=nan must be a radius"),
        (PGD, dict(eps=0.1, norm="l0"), "norm='l0' is unknown: choose one of linf, l2, l1"),
        (PGD, dict(eps=0.1, steps=0), "steps=0 must be at least 1: give for instance steps=20"),
        (APGD, dict(eps=0.1, restarts=0), "restarts=0 must be at least 1"),
        (PGD, dict(eps=0.1, targets=0), "targets=0 must be at least 1"),
        (PGD, dict(eps=0.1, step_size=0.0), "step_size=0.0 must be above 0"),
        (PGD, dict(eps=0.1, loss="dlr"), "loss='dlr': choose one of ce, margin"),
        (APGD, dict(eps=0.1, loss="margin"), "loss='margin': choose one of ce, dlr, dlr-targeted"),
        (APGD, dict(eps=0.1, rho=1.5), "rho=1.5 must be in"),
    ],
)
def test_bad_settings(cls, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        cls(**settings)
    assert "\n" not in str(caught.value)
