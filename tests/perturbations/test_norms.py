"""The geometry of the norms: projections are nearest points, directions and duals belong together, a linear model is the oracle."""

import numpy as np
import pytest
import torch
from helpers import toy
from scipy.optimize import minimize

from robust_trainer.attacks.base import Draws
from robust_trainer.attacks.pgd import PGD
from robust_trainer.data.images import InputSpace
from robust_trainer.data.randomness import RowDraws
from robust_trainer.evaluation.robustness import evaluate_robustness
from robust_trainer.perturbations.norms import NORMS, Ball
from robust_trainer.perturbations.pgd import Perturbation
from robust_trainer.perturbations.region import Region

ORDER = {"linf": float("inf"), "l2": 2, "l1": 1}
SHAPE = (3, 4, 4)


def rows(seed=0, b=7, dtype=torch.float32, shape=SHAPE):
    return torch.randn(b, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def size(x, norm):
    return torch.linalg.vector_norm(x.double().flatten(1), ord=ORDER[norm], dim=1)


# ---- projections ------------------------------------------------------------------------------------------------------


def by_bisection(v, eps):
    """The l_1 projection of one float64 vector: the threshold at which the sum of what is above it is eps."""
    if v.abs().sum() <= eps:
        return v
    low, high = 0.0, float(v.abs().max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (v.abs() - middle).clamp_min(0).sum() > eps else (low, middle)
    return v.sign() * (v.abs() - high).clamp_min(0)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_the_l1_projection_is_the_threshold_that_bisection_finds(dtype, tolerance):
    g = torch.Generator().manual_seed(0)
    for n, scale, eps in ((1, 1, 0.5), (2, 3, 1.0), (48, 1, 5.0), (48, 1, 0.01), (48, 0.01, 5.0), (3072, 1, 12.0), (300, 1e4, 0.1)):
        v = (torch.randn(4, n, generator=g, dtype=torch.float64) * scale).to(dtype)
        v[1, : n // 2] = v[1, 0]  # ties
        v[2, 1:] = 0
        got = NORMS["l1"].project(v, eps)
        expected = torch.stack([by_bisection(row.double(), eps) for row in v])
        assert got.dtype == dtype and (got - expected).abs().max() <= tolerance * max(scale, eps)
        assert torch.equal(got[size(v, "l1") <= eps], v[size(v, "l1") <= eps])
    zero = torch.zeros(2, 5, dtype=dtype)
    assert torch.equal(NORMS["l1"].project(zero, 1.0), zero)
    assert torch.equal(NORMS["l1"].project(zero + 1, 0.0), zero)


def test_the_l1_projection_is_what_a_solver_finds():
    """min |p - v|^2 over p = a - b, a, b >= 0, sum (a + b) <= eps: sequential quadratic programming."""
    rng = np.random.default_rng(0)

    def solve(v, eps):
        return minimize(
            lambda ab: ((ab[:6] - ab[6:] - v) ** 2).sum(), np.zeros(12), method="SLSQP", bounds=[(0, None)] * 12,
            constraints={"type": "ineq", "fun": lambda ab: eps - ab.sum()}, options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip

    for eps in (0.3, 1.0, 4.0):
        v = rng.normal(size=6)
        v[3] = v[1]
        found = solve(v, eps)
        got = NORMS["l1"].project(torch.from_numpy(v)[None], eps)[0].numpy()
        assert found.success and np.abs(got - (found.x[:6] - found.x[6:])).max() < 1e-5


@pytest.mark.parametrize("name", NORMS)
def test_a_projection_is_the_nearest_point_of_the_ball(name):
    norm, eps = NORMS[name], 0.4
    delta = rows()
    delta[0] *= 1e-3
    kept, got = delta.clone(), norm.project(delta, eps)
    assert torch.equal(delta, kept) and got.shape == delta.shape
    assert (size(got, name) <= eps * (1 + 1e-6)).all() and (size(got, name)[1:] > 0.99 * eps).all()
    assert torch.equal(got[0], delta[0])
    assert (norm.project(got, eps) - got).abs().max() <= 1e-6
    away = (delta - got).flatten(1).norm(dim=1)
    for seed in range(20):  # points of the ball, some of them on its edge, some near the projection
        other = rows(seed + 1) * norm.of_ones(48) / 48
        other = norm.project(other + got * (seed % 2), eps)
        assert ((delta - other).flatten(1).norm(dim=1) >= away - 1e-6).all()


@pytest.mark.parametrize("name", NORMS)
def test_size_dual_direction_and_step_belong_together(name):
    norm, grad = NORMS[name], rows()
    grad[1] *= 1e-30  # squares are 0 in float32
    grad[2] = 0
    assert torch.allclose(norm.size(grad).flatten().double(), size(grad, name), rtol=1e-5)
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[name]
    assert torch.allclose(norm.dual_size(grad).flatten().double()[3:], size(grad, dual)[3:], rtol=1e-5)
    assert norm.of_ones(48) == pytest.approx(float(size(torch.ones(1, 48), name)))
    move = norm.direction(grad)
    assert torch.allclose(size(move, name), torch.tensor([1.0, 1, 0, 1, 1, 1, 1]).double(), atol=1e-6)
    gain = (move * grad).flatten(1).sum(1)
    assert torch.allclose(gain[3:], norm.dual_size(grad).flatten()[3:], rtol=1e-5)  # nothing of size 1 gains more
    assert torch.allclose(norm.step(grad, 0.3), 0.3 * move, atol=1e-7)
    assert torch.allclose(norm.step(grad, torch.arange(7.0).view(-1, 1, 1, 1))[6], 6 * move[6], atol=1e-6)


def test_the_l1_direction_moves_a_hundredth_of_the_coordinates():
    grad = rows(shape=(3, 20, 20))
    grad[1, :, :10] = 2.0  # ties
    grad[2] = 0
    grad[2, 0, 0, :4] = torch.tensor([-3.0, 1, 2, 0])
    move = NORMS["l1"].direction(grad).flatten(1)
    assert (move != 0).sum(1).tolist() == [12, 12, 3, 12, 12, 12, 12]
    top = grad[0].flatten().abs().topk(12).indices
    assert torch.allclose(move[0, top], grad[0].flatten()[top].sign() / 12)
    assert torch.allclose(move[2, :4], torch.tensor([-1.0, 1, 1, 0]) / 3)


@pytest.mark.parametrize("name", NORMS)
def test_a_ball_for_each_token_is_a_ball_for_each_row(name):
    """But for the gradient's scale, which is the sample's."""
    x = rows(shape=(5, 11))
    by_token, flat = Ball(name, 0.4, per_token=True), Ball(name, 0.4)
    apart = x.reshape(35, 11)
    assert torch.equal(by_token.project(x).view(35, 11), flat.project(apart))
    assert torch.equal(by_token.size(x).view(35, 1), flat.size(apart))
    assert torch.allclose(by_token.direction(x).view(35, 11), flat.direction(apart), atol=1e-6)
    start = by_token.random_start(x, RowDraws(torch.arange(len(x)), 0))
    assert (size(start.reshape(35, 11), name) <= 0.4 * (1 + 1e-6)).all() and start.flatten(1).abs().amax(1).min() > 0.01


@pytest.mark.parametrize("name,mean", [("linf", 3 / 4), ("l2", 1 / 2), ("l1", 3 / 4)])
def test_random_starts_fill_the_ball(name, mean):
    """Of three numbers: the largest of three uniform ones, a uniform radius, and n / (n + 1) where the ball is filled uniformly."""
    start = Ball(name, 2.0).random_start(torch.zeros(4000, 3), RowDraws(torch.arange(4000), 0))
    length = size(start, name)
    assert length.max() <= 2 * (1 + 1e-6) and float(length.mean()) == pytest.approx(2 * mean, abs=0.04)
    assert start.mean(0).abs().max() < 0.06
    if name != "l2":  # uniform: a ball of half the radius holds an eighth
        assert float((length < 1).float().mean()) == pytest.approx(1 / 8, abs=0.03)


@pytest.mark.parametrize("name", NORMS)
def test_a_region_is_the_ball_and_the_box(name):
    x = torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(1))
    within = Region(name, 0.4, x)
    for image in (within.random_start(Draws(0, range(7))), within.step(x, rows(), 3.0), within.project_(x + rows())):
        assert image.min() >= 0 and image.max() <= 1 and (size(image - x, name) <= 0.4 * (1 + 1e-5)).all()
        assert (image != x).flatten(1).any(1).all()


# ---- attacks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_an_attack_on_a_linear_model_gains_eps_times_the_dual_norm(name, start):
    """Training's attack and the evaluation's: w.delta is eps |w|_dual where the range does not bind."""
    w, x = rows(3, b=1), torch.full((5, *SHAPE), 0.5)
    eps = 0.2
    expected = eps * float(NORMS[name].dual_size(w))

    def forward(images):
        score = (images * w).flatten(1).sum(1)
        return torch.stack([-score, score], 1)

    y = torch.zeros(5, dtype=torch.long)
    found = PGD(eps, name, steps=40, step_size=eps, random_start=start, early_stop=False)(forward, x, y, Draws(0, range(5)))
    attack = Perturbation(eps, step_size=eps, steps=40, norm=name, scope="sample", random_start=start)
    space = InputSpace()
    ball = attack.ball(space)
    delta = attack.start(x, space, ball, RowDraws(torch.arange(len(x)), 0))
    for _ in range(attack.steps):
        delta = attack.step(x, delta, w.expand_as(x), torch.ones(5), space, ball, lambda t: t)
    for image in (found, attack.apply(x, delta, space)):
        gain = ((image - x) * w).flatten(1).sum(1)
        assert torch.allclose(gain, torch.full((5,), expected), rtol=1e-4)
        assert (size(image - x, name) <= eps * (1 + 1e-5)).all()


@pytest.mark.parametrize("method", ["prl-at", "spl+trades"])
def test_training_within_l1(tmp_path, method):
    """eps above 1 is no mistake there; what is trained on is sparse and within it."""
    trainer = toy.robust(tmp_path, method=method, norm="l1", eps=1.5, step_size=0.5, steps=3, scope="sample", max_steps=3)
    seen = []
    forward = trainer.model.forward

    def watch(pixel_values, **kwargs):
        seen.append(pixel_values.detach())
        return forward(pixel_values=pixel_values, **kwargs)

    trainer.model.forward = watch
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))
    assert len(seen) >= 9


def test_evaluation_within_l1():
    model, data = toy.logits_module(), toy.images(24)
    kwargs = dict(norm="l1", image_mean=[0.5], image_std=[0.5], progress=False)
    found = evaluate_robustness(model, data, ["pgd-10"], eps=4, **kwargs)
    weak = evaluate_robustness(model, data, ["pgd-10"], eps=1e-4, **kwargs)
    assert found.worst_case < found.clean_accuracy == weak.clean_accuracy == weak.worst_case
    with pytest.raises(ValueError, match=r"^norm='l1' is not offered by apgd, fab, square and autoattack: choose linf or l2.*$"):
        evaluate_robustness(model, data, ["autoattack"], eps=4, **kwargs)
    with pytest.raises(ValueError, match=r"^norm='l1' needs eps, the radius in \[0, 1\] pixels: give for instance eps=12\.$"):
        evaluate_robustness(model, data, ["pgd-10"], **kwargs)
