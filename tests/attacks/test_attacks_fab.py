import pytest
import torch
from helpers.linear_attack import Linear, distance_to_boundary, length, near_the_middle
from helpers.tables import every_row
from helpers.toy import Logits

from robust_trainer.attacks.base import Draws
from robust_trainer.attacks.fab import FAB, step_to_hyperplane


def slow_step(x, w, value, norm):
    """The projection by bisection on the multiplier, one instance and in Python floats."""
    sign = -1.0 if value >= 0 else 1.0
    u = [sign * v for v in w.tolist()]

    def moved(t):
        out = []
        for a, v in zip(x.tolist(), u):
            way = 0.0 if v == 0 else (t * (1 if v > 0 else -1) if norm == "linf" else t * v)
            out.append(min(max(a + way, 0.0), 1.0) - a)
        return out

    def gain(t):
        return sum(a * b for a, b in zip(moved(t), u))

    low, high = 0.0, 1e9
    if gain(high) < abs(value):
        return torch.tensor(moved(high), dtype=torch.float64), False
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) < abs(value) else (low, middle)
    return torch.tensor(moved(high), dtype=torch.float64), True


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_step_equals_a_bisection(norm):
    g = torch.Generator().manual_seed(3)
    x = torch.rand(60, 12, generator=g, dtype=torch.float64)
    x[:20] = x[:20].round()  # corners: half of the coordinates cannot move
    w = torch.randn(60, 12, generator=g, dtype=torch.float64) * torch.rand(60, 1, generator=g, dtype=torch.float64) * 5
    w[torch.rand(60, 12, generator=g) < 0.2] = 0
    value = torch.randn(60, generator=g, dtype=torch.float64) * w.abs().sum(1) * 0.4
    value[5] = 0
    ours = step_to_hyperplane(x, w, value, norm)
    reached = 0
    for i in range(60):
        slow, feasible = slow_step(x[i], w[i], float(value[i]), norm)
        reached += feasible
        torch.testing.assert_close(ours[i], slow, atol=1e-7, rtol=1e-6)
        if feasible:
            assert abs(float(w[i] @ ours[i] + value[i])) < 1e-9 * max(1, abs(float(value[i])))
    assert 20 < reached < 58  # both kinds occur
    assert ((x + ours) >= 0).all() and ((x + ours) <= 1).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_point_of_the_hyperplane_in_the_box_is_nearer(norm):
    g = torch.Generator().manual_seed(4)
    x, w = torch.rand(1, 5, generator=g), torch.randn(1, 5, generator=g)
    value = torch.tensor([0.3])
    best = length(step_to_hyperplane(x, w, value, norm), norm)
    points = torch.rand(200_000, 5, generator=g)
    last = x[0, 4] + (-value - (points[:, :4] - x[:, :4]) @ w[0, :4]) / w[0, 4]
    points[:, 4] = last
    inside = points[(last >= 0) & (last <= 1)]
    others = length(inside - x, norm)
    assert len(inside) > 1000
    assert best < others.min() < best * 1.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_step_bears_zero_huge_and_tiny_gradients(norm):
    x = torch.tensor([[0.2, 0.8, 0.5]]).repeat(5, 1)
    w = torch.stack([torch.zeros(3), torch.ones(3) * 1e30, torch.ones(3) * 1e-30, torch.tensor([1.0, 1e-20, 0.0]), torch.zeros(3)])
    value = torch.tensor([1.0, 1e29, 1e-31, 0.1, 0.0])
    d = step_to_hyperplane(x, w, value, norm)
    assert d.isfinite().all() and (d[0] == 0).all() and (d[4] == 0).all()
    torch.testing.assert_close(d[1:3], torch.full((2, 3), -0.1 / 3), rtol=1e-4, atol=0)
    torch.testing.assert_close(d[3], torch.tensor([-0.1, 0, 0]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "classes,norm,targeted", [(2, "linf", True), (3, "l2", True), (3, "linf", False), (10, "linf", True), (10, "l2", False)]
)
def test_finds_the_exact_distance_of_a_linear_model(classes, norm, targeted):
    model = Linear(classes)
    x, y = near_the_middle(model, 24, (1, 4, 4))
    truth = distance_to_boundary(model, x, y, norm)
    assert truth.max() < (0.3 if norm == "linf" else 1.0)
    attack = FAB(eps=1.0, norm=norm, steps=10, targeted=targeted)
    x_adv = attack(model, x, y, Draws(0, range(24)))
    assert (model(x_adv).argmax(1) != y).all()
    assert (x_adv > 0).all() and (x_adv < 1).all()  # the box does not bind, so the closed form holds
    ratio = length(x_adv - x, norm) / truth
    if targeted:  # the likeliest class is tried first and need not be the nearest, and a row within eps leaves
        assert (ratio > 1 - 1e-5).all()
        for i, t in enumerate(truth.tolist()):
            single = FAB(eps=t * 1.001, norm=norm, steps=10, targeted=True)
            found = single(model, x[i : i + 1], y[i : i + 1], Draws(0, [i]))
            assert model(found).argmax(1) != y[i] and length(found - x[i], norm) <= truth[i] * 1.001 + 1e-7
    else:
        assert ((ratio - 1).abs() < 1e-3).all()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_accuracy_of_a_linear_model_is_exact_per_sample(norm, targeted):
    model = Linear(4)
    x, y = near_the_middle(model, 40, (1, 4, 4))
    truth = distance_to_boundary(model, x, y, norm)
    eps = float(truth.median())
    x_adv = FAB(eps, norm=norm, steps=10, targeted=targeted)(model, x, y, Draws(0, range(40)))
    clear = (truth / eps - 1).abs() > 1e-3
    fooled = model(x_adv).argmax(1) != y
    assert (fooled == (truth < eps))[clear].all() and clear.sum() >= 36
    assert torch.equal(x_adv[~fooled], x[~fooled])
    assert (length(x_adv - x, norm) <= eps + 1e-6).all()


@every_row("norm,eps", [("linf", 0.1), ("l2", 0.5)])
@every_row("shape,classes", [((3, 8, 8), 4), ((1, 3, 3), 2), ((2, 7, 4), 3), ((1, 1, 1), 5)])
def test_stays_in_the_ball_and_the_box(norm, eps, shape, classes):
    torch.manual_seed(0)
    model = Logits(classes, shape[0]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5)
    x = torch.rand(16, *shape)
    x[:8] = x[:8].round()
    y = model(x).argmax(1)
    y[3] = (y[3] + 1) % classes
    before = x.clone()
    for targeted in (False, True):
        x_adv = FAB(eps, norm=norm, steps=5, restarts=2, targeted=targeted)(model, x, y, Draws(0, range(16)))
        assert x_adv.isfinite().all() and x_adv.min() >= 0 and x_adv.max() <= 1
        assert (length(x_adv - x, norm) <= eps * (1 + 1e-6) + 6e-8).all()
        moved = length(x_adv - x, norm) > 0
        assert (model(x_adv).argmax(1) != y)[moved].all()
        assert not moved[3]
    assert torch.equal(x, before) and all(p.grad is None for p in model.parameters())


def test_a_batch_equals_its_samples():
    model = Linear(5, (2, 4, 4))
    x, y = near_the_middle(model, 8, (2, 4, 4))
    for norm in ("linf", "l2"):
        eps = float(distance_to_boundary(model, x, y, norm).median())
        attack = FAB(eps, norm=norm, steps=4, restarts=3)
        together = attack(model, x, y, Draws(7, range(8)))
        alone = [attack(model, x[i : i + 1], y[i : i + 1], Draws(7, [i])) for i in range(8)]
        assert torch.equal(together, torch.cat(alone))
        assert 0 < (together != x).flatten(1).any(1).sum() < 8


def test_restarts_find_what_the_first_run_misses():
    """A flat plateau around x: only a start beyond it sees a gradient."""
    eps = 0.4

    def forward(x):
        beyond = ((x - 0.5).flatten(1).amax(1) - 0.05).clamp_min(0)
        return torch.stack([0.1 - beyond, beyond], 1)

    x, y = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.long)
    draws = Draws(0, range(4))
    assert torch.equal(FAB(eps, steps=10)(forward, x, y, draws), x)
    x_adv = FAB(eps, steps=10, restarts=8)(forward, x, y, draws)
    assert (forward(x_adv).argmax(1) == 1).all()


@pytest.mark.parametrize("targeted", [False, True])
def test_forwards_are_as_documented_and_wrong_rows_cost_none(targeted):
    model = Linear(4)
    x, y = near_the_middle(model, 6, (1, 4, 4))
    model.calls = 0
    FAB(1e-6, steps=7, restarts=2, targeted=targeted)(model, x, y, Draws(0, range(6)))
    assert model.calls == 1 + 2 * (3 if targeted else 1) * (2 * 7 + 3)
    model.calls = 0
    wrong = (y + 1) % 4
    assert torch.equal(FAB(0.5, targeted=targeted)(model, x, wrong, Draws(0, range(6))), x)
    assert model.calls == 1


def test_models_without_a_gradient_return_x():
    x, y = torch.rand(3, 1, 3, 3), torch.zeros(3, dtype=torch.long)
    constant = torch.tensor([1.0, 0.0, 0.0])
    forwards = (lambda t: constant.expand(len(t), 3), lambda t: constant + 0 * t.flatten(1).sum(1, keepdim=True),
                lambda t: torch.zeros(len(t), 3) + 0 * t.sum())  # fmt: skip
    for forward in forwards:
        for targeted in (False, True):
            for norm in ("linf", "l2"):
                out = FAB(0.1, norm=norm, steps=3, restarts=2, targeted=targeted)(forward, x, y, Draws(0, range(3)))
                assert torch.equal(out, x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gradient_that_is_not_a_number_counts_as_zero(norm):
    model = Linear(3)
    x, y = near_the_middle(model, 8, (1, 4, 4))
    x = x.clone()
    x[:, :, 0, 0] = 0.5

    def forward(pixels):
        broken = (pixels[:, :, 0, 0] - 0.5).abs().sqrt() * 0  # its slope at 0.5 is 0 * inf
        return model(pixels) + broken

    y = model(x).argmax(1)
    leaf = x.clone().requires_grad_(True)
    assert torch.autograd.grad(forward(leaf).sum(), leaf)[0].isnan().any()
    x_adv = FAB(0.5, norm=norm, steps=5)(forward, x, y, Draws(0, range(8)))
    assert x_adv.isfinite().all() and (model(x_adv).argmax(1) != y).all()


def test_bad_settings_are_named():
    for kwargs, words in (({"eps": -1}, "eps=-1"), ({"norm": "l1"}, "norm='l1'"), ({"steps": 0}, "steps=0"),
                          ({"beta": 2}, "beta=2"), ({"eta": 0.5}, "eta=0.5")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            FAB(**{"eps": 0.1, **kwargs})
    assert FAB(0.1).name == "fab" and FAB(0.1, targeted=True).name == "fab-t"
