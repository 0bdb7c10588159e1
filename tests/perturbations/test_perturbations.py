import torch
from helpers import reference
from helpers.tables import every_row
from helpers.toy import CLASSES, Logits

from robust_trainer.data.images import InputSpace
from robust_trainer.data.randomness import RowDraws
from robust_trainer.perturbations.norms import Ball
from robust_trainer.perturbations.pgd import Perturbation

MEAN, STD = (0.3, 0.5, 0.6), (0.1, 0.5, 1.3)
SPACE = InputSpace(MEAN, STD)


def setup(b=6):
    torch.manual_seed(0)
    model = Logits().double().eval()
    pixels = torch.rand(b, 3, 8, 8, dtype=torch.float64)
    pixels[:, :, :2] = pixels[:, :, :2].round()  # some pixels on the edge of the range
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    return model, pixels, (pixels - mean) / std, torch.randint(CLASSES, (b,)), mean, std


def craft(attack, model, x, y, keep):
    """What step/inner.py does, on one process."""
    ball = attack.ball(SPACE)
    rows = torch.arange(len(x) if attack.scope == "sample" else 1)
    delta = attack.start(x, SPACE, ball, RowDraws(rows, 0)).double()
    for _ in range(attack.steps):
        leaf = attack.apply(x, delta, SPACE).requires_grad_(True)
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        delta = attack.step(x, delta, grad, keep, SPACE, ball, lambda t: t)
    return attack.apply(x, delta, SPACE)


def slow(attack, model, pixels, y, keep, mean, std):
    """PGD from zero, one sample at a time, in pixel space."""
    shared = attack.scope == "batch"
    delta = [torch.zeros_like(p) for p in pixels]
    for _ in range(attack.steps):
        moved = torch.stack([(p + d).clamp(0, 1) for p, d in zip(pixels, delta)])
        grads = reference.input_gradients(model, moved, y, mean, std, moved)
        unit = [g.sign() if attack.norm == "linf" else g / g.norm() for g in grads]
        if shared:
            mean_direction = sum(u * k for u, k in zip(unit, keep.tolist())) / keep.sum()
            unit = [mean_direction] * len(unit)
        for i in range(len(pixels)):
            if not shared and not keep[i]:
                continue
            step = delta[i] + attack.size * unit[i]
            if attack.norm == "linf":
                step = step.clamp(-attack.eps, attack.eps)
            elif step.norm() > attack.eps:
                step = step * attack.eps / step.norm()
            delta[i] = step if shared else (pixels[i] + step).clamp(0, 1) - pixels[i]
    return torch.stack([(p + d).clamp(0, 1) for p, d in zip(pixels, delta)])


@every_row("steps", [1, 4])
@every_row("norm,eps", [("linf", 0.05), ("l2", 0.7)])
@every_row("scope", ["batch", "sample"])
def test_equals_the_slow_loop_in_pixels(scope, norm, eps, steps):
    model, pixels, x, y, mean, std = setup()
    keep = torch.tensor([1, 0, 1, 1, 0, 1.0])
    attack = Perturbation(eps, steps=steps, norm=norm, scope=scope)
    expected = slow(attack, model, pixels, y, keep, mean, std)
    got = craft(attack, model, x, y, keep) * std + mean
    assert torch.allclose(got, expected, atol=2e-6)
    assert (got - pixels).abs().max() > 0.01


@every_row("random_start", [False, True])
@every_row("norm,eps", [("linf", 0.1), ("l2", 2.0)])
@every_row("scope", ["batch", "sample"])
def test_inside_ball_and_range_for_unequal_std(scope, norm, eps, random_start):
    model, pixels, x, y, mean, std = setup(16)
    attack = Perturbation(eps, steps=3, norm=norm, scope=scope, random_start=random_start)
    got = craft(attack, model, x, y, torch.ones(16)) * std + mean
    assert got.min() >= -1e-6 and got.max() <= 1 + 1e-6
    moved = (got - pixels).flatten(1)
    size = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    assert (size <= eps + 1e-5).all() and size.min() > eps / 20


def test_zero_eps_and_dropped_samples_are_untouched():
    model, _, x, y, *_ = setup()
    x = x.float()
    model = model.float()
    for norm in ("linf", "l2"):
        assert torch.equal(craft(Perturbation(0.0, norm=norm), model, x, y, torch.ones(6)), x)
        some = craft(Perturbation(0.1, norm=norm, scope="sample"), model, x, y, torch.tensor([1, 0, 0, 1, 1, 1.0]))
        assert torch.equal(some[1:3], x[1:3]) and not torch.equal(some[0], x[0])
    nobody = craft(Perturbation(0.1), model, x, y, torch.zeros(6))
    assert torch.equal(nobody, x)


def test_shared_perturbation_is_the_mean_of_the_kept_signs():
    """Backdoor eq. 5: |c| <= tau, with equality only where all kept samples agree."""
    model, pixels, x, y, mean, std = setup()
    grad = torch.randn(6, 3, 8, 8)
    keep = torch.tensor([1, 1, 0, 1, 0, 0.0])
    attack = Perturbation(0.05)
    ball = attack.ball(SPACE)
    c = attack.step(x, attack.start(x, SPACE, ball, RowDraws(torch.zeros(1), 0)), grad, keep, SPACE, ball, lambda t: t)
    expected = 0.05 * grad[keep > 0].sign().mean(0, keepdim=True)
    assert torch.allclose(c, expected) and c.abs().max() <= 0.05 + 1e-7


def test_random_start_fills_the_ball():
    cube = Ball("linf", 0.1).random_start(torch.zeros(200, 3, 4, 4), RowDraws(torch.arange(200), 0))
    assert 0.099 < cube.abs().max() <= 0.1 and abs(float(cube.mean())) < 0.003
    sphere = Ball("l2", 2.0).random_start(torch.zeros(500, 3, 4, 4), RowDraws(torch.arange(500), 1)).flatten(1).norm(dim=1)
    assert sphere.max() <= 2.0 + 1e-5 and abs(float(sphere.mean()) - 1.0) < 0.1
