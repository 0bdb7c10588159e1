"""APGD against a slow loop of one sample; what all gradient attacks keep: ball, box, rows that do not mix, dead gradients."""

import pytest
import torch
from helpers.attack_reference import EPS, EVERY, SHAPE, build, data, network, size, slow_apgd, slow_loss, wrong
from helpers.tables import every_row

from robust_trainer.attacks.apgd import APGD, LOSSES, checkpoints
from robust_trainer.attacks.base import Draws
from robust_trainer.attacks.pgd import LOSSES as PGD_LOSSES


@every_row("shift", [-50.0, 0.0, 50.0])
@every_row(
    "name,targeted", [("ce", False), ("ce", True), ("margin", False), ("margin", True), ("dlr", False), ("dlr-targeted", True)]
)
def test_losses_are_those_of_one_sample(name, targeted, shift):
    """Also where all logits are negative: a label masked by 0 instead of -inf would be the largest."""
    logits = 3 * torch.randn(9, 6, dtype=torch.float64) + shift
    y, target = torch.arange(9) % 6, (torch.arange(9) + 2) % 6
    got = {**LOSSES, **PGD_LOSSES}[name](logits, y, target if targeted else None)
    expected = [slow_loss(name, z, int(a), int(t) if targeted else None) for z, a, t in zip(logits, y, target)]
    assert (got - torch.stack(expected)).abs().max() <= 1e-9


@pytest.mark.parametrize(
    "norm,loss,rho",
    [("linf", "ce", 0.75), ("l2", "ce", 0.0), ("l2", "dlr", 0.75), ("linf", "dlr-targeted", 0.0), ("l2", "dlr-targeted", 0.75)],
)
def test_apgd_visits_the_points_of_the_slow_loop(norm, loss, rho):
    """rho = 0 switches condition 1 off: there condition 2 alone halves the step, on a loss that rises and falls within the ball."""
    _, smooth = network(classes=5, sharpness=2.0)

    def forward(images):
        return smooth(images if rho else images + 0.03 * (60 * images).sin())

    x, y = data(forward)
    x = x.double()  # so that no rounding decides whether the loss rose
    fell = 0
    for i, eps in ((1, EPS[norm]), (2, EPS[norm] / 3), (3, EPS[norm] / 3), (4, EPS[norm])):
        attack = APGD(eps, norm, steps=50, loss=loss, targets=1, rho=rho)
        target = int(forward(x[i : i + 1])[0].argsort(descending=True)[1]) if loss == "dlr-targeted" else None
        expected, best = slow_apgd(attack, forward, x[i], int(y[i]), target, Draws(2, [i]))
        points = []

        def watched(images, points=points):
            points.append(images.detach().clone())
            return forward(images)

        got = attack(watched, x[i : i + 1], y[i : i + 1], Draws(2, [i]))[0]
        assert len(points) == 1 + len(expected)  # the clean image first
        assert (torch.cat(points[1:]) - torch.stack(expected)).abs().max() <= 1e-5
        assert (got - best).abs().max() <= 1e-5
        fell += len(expected) < 51
    assert fell < 4  # at least one trajectory of full length, with its halvings


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_start_that_no_step_improves_halves_at_the_first_checkpoint(norm):
    """The loss falls on both sides of x, so the best one is f(x_0) ever after: condition 2 alone sees it (rho = 0)."""
    x = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)

    def forward(images):
        rise = (images - x).flatten(1).sum(1)
        tent = -5 + torch.where(rise > 1e-9, -rise, rise)
        return torch.stack([torch.zeros_like(tent), tent], 1)

    attack = APGD(0.02, norm, steps=50, rho=0.0, random_start=False)
    y, points = torch.zeros(1, dtype=torch.long), []

    def watched(images):
        points.append(images.detach().clone())
        return forward(images)

    got = attack(watched, x, y, Draws(0, [0]))
    expected, best = slow_apgd(attack, forward, x[0], 0, None, Draws(0, [0]))
    visited = torch.cat(points[1:])
    assert len(visited) == 51 and (visited - torch.stack(expected)).abs().max() <= 1e-12
    assert torch.equal(got[0], best) and torch.equal(best, x[0])
    moved = size(visited - x, norm)
    assert moved[1] == pytest.approx(0.02) and 0 < moved[-1] < 0.01  # the step was 2 eps at first, and is below eps at the end


def test_checkpoints_of_a_hundred_steps():
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10)[:4] == [0, 3, 5, 6] and checkpoints(1) == [0, 1]


@every_row("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", EVERY)
def test_inside_ball_and_box_and_no_gradient_left(name, norm):
    model, forward = network()
    x, y = data(forward, 12)
    kept = x.clone()
    next(model.parameters()).grad = torch.full_like(next(model.parameters()), 7.0)
    with torch.no_grad():  # as the Trainer's evaluation calls it
        got = build(name, norm)(forward, x, y, Draws(0, range(12)))
    assert got.dtype == torch.float32 and got.shape == x.shape and not got.requires_grad and got.isfinite().all()
    assert got.min() >= 0 and got.max() <= 1 and (size(got - x, norm) <= EPS[norm] + 1e-6).all()
    first, *rest = [p.grad for p in model.parameters()]
    assert (first == 7).all() and rest == [None] * len(rest) and torch.equal(x, kept)
    assert wrong(forward, got, y)[0] and wrong(forward, got, y).sum() >= 3  # sample 0 was wrong from the start
    nothing = build(name, norm, eps=0.0)(forward, x, y, Draws(0, range(12)))
    assert torch.equal(nothing, x)
    assert build(name, norm)(forward, x[:0], y[:0], Draws(0, [])).shape == (0, *SHAPE)


@every_row("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", EVERY)
def test_any_batch_gives_the_same(name, norm):
    _, together = network()

    def forward(images):  # row by row: only the attack could mix the samples
        return torch.cat([together(row) for row in images.split(1)])

    x, y = data(together, 8)
    attack = build(name, norm, steps=6)
    once = attack(forward, x, y, Draws(4, range(8)))
    single = [attack(forward, x[i : i + 1], y[i : i + 1], Draws(4, [i])) for i in range(8)]
    assert torch.equal(once, torch.cat(single))
    order = torch.tensor([3, 0, 7, 1, 6])
    assert torch.equal(attack(forward, x[order], y[order], Draws(4, order.tolist())), once[order])
    assert not torch.equal(attack(forward, x, y, Draws(5, range(8))), once)


@every_row("name", EVERY)
def test_forwards_are_the_most_that_are_made(name):
    _, forward = network(classes=12, sharpness=1.0)
    x, calls = torch.rand(4, *SHAPE), []

    def counted(images):
        calls.append(len(images))
        return forward(images)

    attack = build(name, "linf", eps=1e-7)  # nothing falls
    attack(counted, x, forward(x).detach().argmax(1), Draws(0, range(4)))
    assert len(calls) == attack.forwards and set(calls) == {4}


@every_row("classes", [1, 2, 3, 4])
@pytest.mark.parametrize("name", EVERY)
def test_few_classes(name, classes):
    _, forward = network(max(classes, 2))

    def some(images):
        return forward(images)[:, :classes]

    x, y = data(some)
    attack = build(name, "linf")
    assert attack.min_classes == {"apgd-dlr": 3, "apgd-t": 4}.get(name, 2)
    if classes < attack.min_classes:
        with pytest.raises(ValueError, match=rf"needs logits \(B, K\) of K >= {attack.min_classes} classes, got \(6, {classes}\)"):
            attack(some, x, y, Draws(0, range(6)))
    else:
        got = attack(some, x, y, Draws(0, range(6)))
        assert wrong(some, got, y).sum() >= max(1, wrong(some, x, y).sum())


def masked(x):
    """Logits whose gradient is NaN in some pixels: the square root's infinite slope at 0 times 0."""
    return (x.flatten(1)[:, :4] * 0).sqrt() + x.flatten(1).sum(1, keepdim=True) * torch.tensor([0.1, 0.2, 0.3, 0.4])


WEIGHTS = torch.ones(4, requires_grad=True)
DEAD = {
    "no graph": lambda x: torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(len(x), 1),
    "weights alone": lambda x: (WEIGHTS * torch.arange(4.0)).repeat(len(x), 1),
    "zero gradient": lambda x: x.flatten(1)[:, :4] * 0 + torch.arange(4.0),
    "tied": lambda x: x.flatten(1)[:, :1].repeat(1, 4),
    "saturated": lambda x: (1e4 * x.flatten(1)[:, :4]).softmax(1),
    "NaN gradient": masked,
}


def test_the_gradient_that_is_meant_to_be_nan_is():
    x = torch.rand(2, *SHAPE, requires_grad=True)
    assert torch.autograd.grad(masked(x).sum(), x)[0].flatten(1).isnan().any(1).all()


@every_row("model", DEAD)
@every_row("name", EVERY)
def test_dead_gradients_stay_finite(name, model):
    x = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    for norm in ("linf", "l2"):
        for y in (DEAD[model](x).detach().argmax(1), torch.full((5,), 2)):
            got = build(name, norm)(DEAD[model], x, y, Draws(0, range(5)))
            assert got.isfinite().all() and (size(got - x, norm) <= EPS[norm] + 1e-6).all()
            assert got.min() >= 0 and got.max() <= 1
