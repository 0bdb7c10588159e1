import pytest
import reference
import torch

from robust_trainer import objectives, scores
from robust_trainer.recipe import View


def view(b, c, m=1, scale=4.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(b * 31 + c)
    return View((torch.randn(m, b, c, generator=g, dtype=dtype) * scale), torch.randint(c, (b,), generator=g))


SHAPES = [(1, 2, 1), (7, 3, 1), (16, 10, 1), (5, 100, 2)]


@pytest.mark.parametrize("b,c,m", SHAPES)
def test_scores_equal_the_loop(b, c, m):
    v = view(b, c, m)
    for score, slow in (
        (scores.loss, lambda z, y: reference.cross_entropy(z, reference.onehot(y, c))),
        (scores.loss_layer_gradient_norm, reference.loss_layer_norm),
    ):
        expected = [[slow(v.logits[k, i].tolist(), int(v.targets[i])) for i in range(b)] for k in range(m)]
        assert torch.allclose(score(v).double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-7)


def test_prl_score_is_the_gradient_norm_of_the_loss_layer():
    v = view(9, 5)
    z = v.logits[0].clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, v.targets, reduction="sum"), z)
    assert torch.allclose(scores.loss_layer_gradient_norm(v)[0].double(), grad.norm(dim=1), rtol=1e-5)


def test_scores_stay_finite_and_ordered_at_the_extremes():
    z = torch.tensor([[[800.0, -800.0], [-800.0, 800.0], [0.0, 0.0], [20.0, 0.0], [30.0, 0.0]]])
    v = View(z, torch.zeros(5, dtype=torch.long))
    for score in scores.SCORES.values():
        s = score(v)[0]
        assert torch.isfinite(s).all() and s[0] == 0 and s[4] <= s[3] < s[2] < s[1]
    assert scores.loss_layer_gradient_norm(v)[0, 4] < scores.loss_layer_gradient_norm(v)[0, 3]
    low = View(z.to(torch.bfloat16), v.targets)
    assert torch.isfinite(scores.loss_layer_gradient_norm(low)).all() and scores.loss(low).dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("b,c,m", SHAPES)
def test_cross_entropy_equals_the_loop(b, c, m, smoothing):
    v = view(b, c, m)
    given = v.targets.expand(m, -1)
    mixed = objectives.HardBootstrap(0.8)(v)
    for targets in (given, mixed):
        losses = objectives.CrossEntropy(smoothing)(v, targets)
        for k in range(m):
            for i in range(b):
                t = reference.onehot(int(v.targets[i]), c) if targets is given else mixed[k, i].tolist()
                assert float(losses[k, i]) == pytest.approx(
                    reference.cross_entropy(v.logits[k, i].tolist(), t, smoothing), rel=1e-4, abs=1e-5
                )


@pytest.mark.parametrize("beta", [0.0, 0.8, 1.0])
def test_bootstrap_targets(beta):
    v = view(12, 4)
    mixed = objectives.HardBootstrap(beta)(v)
    for i in range(12):
        expected = torch.zeros(4)
        expected[v.targets[i]] += beta
        expected[v.logits[0, i].argmax()] += 1 - beta
        assert torch.allclose(mixed[0, i], expected)
