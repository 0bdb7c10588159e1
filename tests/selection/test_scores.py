import math
from dataclasses import replace

import pytest
import torch
from helpers import reference
from helpers.tables import every_row

from robust_trainer.losses.standard import make_objective
from robust_trainer.problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from robust_trainer.selection import scores
from robust_trainer.selection.ranking import rank_within
from robust_trainer.types import ForwardOutput


def view(b, c, m=1, scale=4.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(b * 31 + c)
    return ForwardOutput((torch.randn(m, b, c, generator=g, dtype=dtype) * scale), torch.randint(c, (b,), generator=g))


SHAPES = [(1, 2, 1), (7, 3, 1), (16, 10, 1), (5, 100, 2)]


@every_row("b,c,m", SHAPES)
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
    v = ForwardOutput(z, torch.zeros(5, dtype=torch.long))
    for score in (scores.loss, scores.loss_layer_gradient_norm):
        s = score(v)[0]
        assert torch.isfinite(s).all() and s[0] == 0 and s[4] <= s[3] < s[2] < s[1]
    assert scores.loss_layer_gradient_norm(v)[0, 4] < scores.loss_layer_gradient_norm(v)[0, 3]
    low = ForwardOutput(z.to(torch.bfloat16), v.targets)
    assert torch.isfinite(scores.loss_layer_gradient_norm(low)).all() and scores.loss(low).dtype == torch.float32


def numbers(b, k, m=1, problem=REGRESSION):
    g = torch.Generator().manual_seed(b * 31 + k)
    logits = torch.randn(m, b, k, generator=g, dtype=torch.float64) * 3
    targets = torch.randn(b, k, generator=g) if problem == REGRESSION else torch.randint(2, (b, k), generator=g).float()
    return ForwardOutput(logits, targets, problem=problem)


@every_row("b,k,m", [(7, 1, 1), (5, 3, 2), (4, 40, 1)])
@every_row("delta", [None, 0.5])
def test_scores_on_numbers_equal_the_loop(b, k, m, delta):
    clip = (lambda r: r) if delta is None else lambda r: max(-delta, min(delta, r))
    rows = (
        (REGRESSION, "loss", reference.mean_square if delta is None else lambda z, y: reference.huber(z, y, delta)),
        (REGRESSION, "prl-l", lambda z, y: reference.norm([clip(a - b) for a, b in zip(z, y)])),
        (MULTI_LABEL, "loss", reference.binary_cross_entropy),
        (MULTI_LABEL, "prl-l", lambda z, y: reference.norm([1 / (1 + math.exp(-a)) - b for a, b in zip(z, y)])),
    )
    for problem, name, slow in rows:
        v = numbers(b, k, m, problem)
        expected = [[slow(v.logits[j, i].tolist(), v.targets[i].tolist()) for i in range(b)] for j in range(m)]
        got = scores.make_score(name, delta)(v)
        assert got.shape == (m, b) and torch.allclose(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@every_row("problem,name", [(REGRESSION, "mse"), (REGRESSION, "huber"), (MULTI_LABEL, "bce"), (SINGLE_LABEL, "ce")])
def test_the_score_is_the_gradient_norm_of_the_loss_layer_up_to_a_constant(problem, name):
    v = view(9, 3) if problem == SINGLE_LABEL else numbers(9, 3, 1, problem)
    z = v.logits.clone().requires_grad_(True)
    losses = make_objective(name, {"huber_delta": 0.5}, problem)(ForwardOutput(z, v.targets, problem=problem), v.network_targets())
    (grad,) = torch.autograd.grad(losses.sum(), z)
    factor = {"ce": 1.0, "mse": 2 / 3}.get(name, 1 / 3)
    got = scores.make_score("prl-l", 0.5 if name == "huber" else None)(v)
    assert torch.allclose(factor * got, grad.norm(dim=-1), rtol=1e-6)


@every_row("k", [1, 4])
def test_on_squared_error_the_gradient_norm_orders_as_the_loss(k):  # Dissertation, sec. 4.3.6
    v = numbers(200, k)
    assert torch.equal(scores.loss(v)[0].argsort(), scores.loss_layer_gradient_norm(v)[0].argsort())


def test_loss_and_gradient_norm_order_the_papers_two_predictions_differently():  # Dissertation, below Lemma 5
    alpha = [0.08, 0.28, *[0.08] * 8]
    beta = [0.1, 0.3, 0.34, 0.05, 0.05, 0.1, 0.03, 0.03, 0.0, 0.0]
    z = torch.tensor([[alpha, beta]]).log().clamp_min(-800.0)
    v = ForwardOutput(z, torch.ones(2, dtype=torch.long))
    loss, norm = scores.loss(v)[0], scores.loss_layer_gradient_norm(v)[0]
    assert loss.tolist() == pytest.approx([-math.log(0.28), -math.log(0.3)], rel=1e-5) and loss[0] > loss[1]
    assert norm.square().tolist() == pytest.approx([0.576, 0.6324], rel=1e-5) and norm[0] < norm[1]


def test_multi_label_scores_stay_finite_and_exact_at_the_extremes():
    z = torch.tensor([[[800.0, -800.0], [30.0, -30.0], [20.0, -20.0], [0.0, 0.0], [-800.0, 800.0]]])
    for dtype in (torch.float32, torch.bfloat16):
        v = ForwardOutput(z.to(dtype), torch.tensor([[1.0, 0.0]] * 5), problem=MULTI_LABEL)
        for score in (scores.loss, scores.loss_layer_gradient_norm):
            s = score(v)[0]
            assert s.isfinite().all() and s.dtype == torch.float32 and s[0] == 0 and (s.diff() > 0).all()
    assert float(scores.loss_layer_gradient_norm(v)[0, 1]) == pytest.approx(math.sqrt(2) * math.exp(-30), rel=1e-5, abs=0)


@every_row("problem", [SINGLE_LABEL, REGRESSION, MULTI_LABEL])
@every_row("name", ["loss", "prl-l"])
@every_row("delta", [None, 0.5])
def test_a_sample_with_nan_logits_ranks_last(problem, name, delta):
    v = view(6, 2) if problem == SINGLE_LABEL else numbers(6, 2, 1, problem)
    v.logits[0, 2] = torch.nan
    s = scores.make_score(name, delta)(v)
    rank, _ = rank_within(s, torch.zeros(1, 6, dtype=torch.long), 1)
    assert rank[0, 2] == 5 and s[0].isnan().sum() == 1


def test_scores_are_detached():
    for v in (view(4, 3), numbers(4, 3), numbers(4, 3, 1, MULTI_LABEL)):
        v.logits.requires_grad_(True)
        v = replace(v, gradient_norms=v.logits.norm(dim=-1))
        for name, score in scores.SCORES.items():
            if (name, v.problem) != ("agreement", REGRESSION) and (name != "brier" or v.problem == SINGLE_LABEL):
                assert not score(v).requires_grad and score(v).shape == (1, 4)


def test_agreement_is_one_where_all_peers_predict_the_same():
    v = view(40, 3, 3)
    same = [len({int(v.logits[k, i].argmax()) for k in range(3)}) == 1 for i in range(40)]
    assert 0 < sum(same) < 40 and scores.make_score("agreement")(v).tolist() == [[float(s) for s in same]] * 3
    v = numbers(40, 2, 2, MULTI_LABEL)
    same = [all(bool(v.logits[0, i, j] > 0) == bool(v.logits[1, i, j] > 0) for j in range(2)) for i in range(40)]
    assert 0 < sum(same) < 40 and scores.make_score("agreement")(v).tolist() == [[float(s) for s in same]] * 2


def test_scores_that_cannot_be_had_are_refused_in_one_line():
    with pytest.raises(ValueError, match="unknown score 'los': choose one of loss, prl-l"):
        scores.make_score("los")
    with pytest.raises(ValueError, match="needs output.gradient_norms, got None"):
        scores.make_score("prl-g")(view(3, 2))
    with pytest.raises(ValueError, match="'agreement' compares predicted classes"):
        scores.make_score("agreement")(numbers(3, 2, 2))
