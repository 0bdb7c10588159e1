"""The losses on two views against slow loops, the authors' formulas, and logits whose probabilities underflow to 0."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import reference
from helpers.tables import every_row

from robust_trainer.losses.adversarial import INNER, Mart, Nrat, Trades, kl, needs_clean, symmetric_kl
from robust_trainer.losses.standard import HardBootstrap, make_objective
from robust_trainer.problems import SINGLE_LABEL
from robust_trainer.types import ForwardOutput

SHAPES = [(7, 2, 1), (5, 3, 2), (1, 10, 1), (4, 30, 2)]
BETA = 2.5
CE, BOOSTED, APL = make_objective("ce", {}), make_objective("boosted-ce", {}), make_objective("nce-rce", {})
PAIRS = {
    "trades": (Trades(BETA), CE),
    "trades-apl": (Trades(BETA), APL),
    "nrat": (Nrat(BETA), APL),
    "mart": (Mart(BETA), BOOSTED),
    "mart-apl": (Mart(BETA), APL),
}


def views(b, c, m=1, dtype=torch.float64, scale=3.0):
    g = torch.Generator().manual_seed(b * 31 + c)
    clean = torch.randn(m, b, c, generator=g, dtype=torch.float64) * scale
    adversarial = clean + torch.randn(m, b, c, generator=g, dtype=torch.float64)
    y = torch.randint(c, (b,), generator=g)
    return ForwardOutput(clean.to(dtype), y), ForwardOutput(adversarial.to(dtype), y)


def call(name, clean, adversarial):
    pair, objective = PAIRS[name]
    return pair(clean, adversarial, clean.network_targets(), objective)


def slow_kl(p_logits, q_logits):
    return sum(p * (math.log(p) - math.log(q)) for p, q in zip(reference.softmax(p_logits), reference.softmax(q_logits)))


def slow_symmetric(p_logits, q_logits):
    return (slow_kl(p_logits, q_logits) + slow_kl(q_logits, p_logits)) / 2


def slow_ce(z, y):
    return reference.cross_entropy(z, reference.onehot(y, len(z)))


def slow_boosted(z, y):
    return slow_ce(z, y) - math.log(1.0001 - max(p for k, p in enumerate(reference.softmax(z)) if k != y) + 1e-12)


def slow_apl(z, y):
    return len(z) / 10 * reference.nce(z, y) + 10 / len(z) * reference.rce(z, y)


def slow_pair(name, z, adv, y):
    """One sample's terms, written out."""
    doubt = 1 - reference.softmax(z)[y]
    return {
        "trades": lambda: {"label": slow_ce(z, y), "robust": BETA * slow_kl(z, adv)},
        "trades-apl": lambda: {"label": slow_apl(z, y), "robust": BETA * slow_kl(z, adv)},
        "nrat": lambda: {"label": slow_apl(z, y), "robust": BETA * slow_symmetric(z, adv)},
        "mart": lambda: {"label": slow_boosted(adv, y), "robust": BETA * slow_kl(z, adv) * doubt},
        "mart-apl": lambda: {"label": slow_apl(adv, y), "robust": BETA * slow_kl(z, adv) * doubt},
    }[name]()


def loop(slow, *tensors):
    m, b = tensors[0].shape[:2]
    rows = [[slow(*(t[k, i].tolist() for t in tensors)) for i in range(b)] for k in range(m)]
    return torch.tensor(rows, dtype=torch.float64)


PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 1e-4)]


@every_row("dtype,tol", PRECISIONS)
@every_row("b,c,m", SHAPES)
def test_divergences_and_boosted_cross_entropy_equal_the_loop(b, c, m, dtype, tol):
    clean, adversarial = views(b, c, m, dtype)
    z, adv, y = clean.logits, adversarial.logits, clean.network_targets()
    for got, slow in (
        (kl(z, adv), loop(slow_kl, z, adv)),
        (symmetric_kl(z, adv), loop(slow_symmetric, z, adv)),
        (BOOSTED(clean, y), loop(slow_boosted, z, y)),
    ):
        assert got.shape == (m, b) and got.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
        assert torch.allclose(got.double(), slow, rtol=tol, atol=tol * 1e-2)


@pytest.mark.parametrize("name", PAIRS)
@every_row("dtype,tol", PRECISIONS)
@every_row("b,c,m", SHAPES)
def test_pairs_equal_the_loop(name, b, c, m, dtype, tol):
    clean, adversarial = views(b, c, m, dtype)
    terms = call(name, clean, adversarial)
    assert list(terms) == ["label", "robust"]
    for term, got in terms.items():
        slow = loop(
            lambda z, adv, y, term=term: slow_pair(name, z, adv, y)[term], clean.logits, adversarial.logits, clean.network_targets()
        )
        assert got.shape == (m, b) and torch.allclose(got.double(), slow, rtol=tol, atol=tol * 1e-2), term


@every_row("name", PAIRS)
@every_row("c", [2, 5])
def test_gradients_of_pairs_are_those_of_finite_differences_on_both_sides(name, c):
    clean, adversarial = views(3, c, 2, scale=1.0)

    def total(z, adv):
        return sum(call(name, ForwardOutput(z, clean.targets), ForwardOutput(adv, clean.targets)).values())

    assert torch.autograd.gradcheck(total, (clean.logits.requires_grad_(True), adversarial.logits.requires_grad_(True)))


def extremes(c, dtype, y=0):
    """Every combination of one-hot, negated one-hot and flat logits on the two sides, at +-800."""
    onehot = 1600.0 * torch.eye(c)[: min(c, 3)] - 800.0
    rows = torch.cat([onehot, -onehot, torch.zeros(1, c), torch.full((1, c), 800.0)])
    n = len(rows)
    clean, adv = rows.repeat_interleave(n, 0), rows.repeat(n, 1)
    return tuple(x.unsqueeze(0).to(dtype).requires_grad_(True) for x in (clean, adv)) + (torch.full((n * n,), y),)


@every_row("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_row("c", [2, 10, 1000])
def test_probabilities_that_underflow_give_finite_losses_and_gradients(c, dtype):
    clean, adv, y = extremes(c, dtype)
    v, w = ForwardOutput(clean, y), ForwardOutput(adv, y)
    assert (clean.detach().float().softmax(-1) == 0).any()
    losses = {name: sum(call(name, v, w).values()) for name in PAIRS}
    losses |= {"kl": kl(clean, adv), "symmetric": symmetric_kl(clean, adv), "boosted": BOOSTED(v, v.network_targets())}
    losses |= {f"inner {name}": loss(w, w.network_targets(), clean, BOOSTED, CE) for name, loss in INNER.items()}
    for name, loss in losses.items():
        assert loss.isfinite().all() and (loss >= -1.1e-4).all(), name  # the boosted cross-entropy's least is -log 1.0001
        gradients = torch.autograd.grad(loss.sum(), (clean, adv), allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients), name
    assert kl(clean, adv).max().item() == pytest.approx(1600.0 + math.log(c - 1), rel=1e-5)  # one-hot against its negation


def test_a_batch_of_one_with_a_certain_wrong_prediction():
    v = ForwardOutput(torch.tensor([[[800.0, -800.0]]], requires_grad=True), torch.tensor([1]))
    for name in PAIRS:
        loss = sum(call(name, v, v).values())
        (gradient,) = torch.autograd.grad(loss.sum(), v.logits)
        assert loss.shape == (1, 1) and loss.isfinite().all() and gradient.isfinite().all(), name


def test_divergences_are_zero_of_equals_symmetric_where_said_and_never_negative():
    z, adv = (v.logits for v in views(50, 6, 2))
    assert torch.equal(kl(z, z), torch.zeros(2, 50)) and torch.equal(symmetric_kl(z, z), torch.zeros(2, 50))
    assert torch.allclose(kl(z, z + 3.0), torch.zeros(2, 50, dtype=z.dtype), atol=1e-14)  # logits are defined up to a shift
    assert torch.equal(symmetric_kl(z, adv), symmetric_kl(adv, z)) and not torch.allclose(kl(z, adv), kl(adv, z))
    assert torch.allclose(symmetric_kl(z, adv), (kl(z, adv) + kl(adv, z)) / 2)
    assert (kl(z, adv) > 0).all() and (symmetric_kl(z, adv) > 0).all()
    distribution = torch.distributions.Categorical
    assert torch.allclose(kl(z, adv), torch.distributions.kl_divergence(distribution(logits=z), distribution(logits=adv)))


@every_row("dtype,atol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_batch_mean_of_trades_is_the_authors_formula(dtype, atol):
    clean, adversarial = views(16, 10, dtype=dtype)
    z, adv = clean.logits.requires_grad_(True), adversarial.logits.requires_grad_(True)
    ours = sum(call("trades", clean, adversarial).values()).mean()
    divergence = torch.nn.KLDivLoss(reduction="sum")(F.log_softmax(adv[0], 1), F.softmax(z[0], 1))
    authors = F.cross_entropy(z[0], clean.targets) + BETA * divergence / 16
    assert torch.allclose(ours, authors, rtol=0, atol=atol)
    for got, expected in zip(torch.autograd.grad(ours, (z, adv)), torch.autograd.grad(authors, (z, adv))):
        assert torch.allclose(got, expected, rtol=0, atol=atol)


def authors_mart(z, adv, y, beta):
    """Their batch mean with their constants: 1.0001 and 1e-12 in the margin, 1e-12 in the divergence, 1.0000001 in the weight."""
    p, q = z.softmax(1), adv.softmax(1)
    wrong = q.detach().clone()
    wrong[torch.arange(len(y)), y] = -1.0
    margin = -(1.0001 - q + 1e-12).log()[torch.arange(len(y)), wrong.argmax(1)]
    divergence = (p * (p.log() - (q + 1e-12).log())).sum(1)
    weight = 1.0000001 - p[torch.arange(len(y)), y]
    return F.cross_entropy(adv, y) + margin.mean() + beta * (divergence * weight).mean()


@every_row("b", [1, 16])
@every_row("dtype", [torch.float64, torch.float32])
def test_the_batch_mean_of_mart_is_the_authors_formula_but_for_their_constants(dtype, b):
    clean, adversarial = views(b, 10, dtype=dtype)
    z, adv = clean.logits.requires_grad_(True), adversarial.logits.requires_grad_(True)
    ours = sum(call("mart", clean, adversarial).values()).mean()
    authors = authors_mart(z[0], adv[0], clean.targets, BETA)
    assert (ours - authors).abs().item() < 1e-5
    for got, expected in zip(torch.autograd.grad(ours, (z, adv)), torch.autograd.grad(authors, (z, adv))):
        assert (got - expected).abs().max().item() < 1e-5 and got.abs().max() > 1e-2


def test_mart_without_its_regulariser_is_boosted_cross_entropy_on_the_adversarial_view():
    clean, adversarial = views(9, 4, 2)
    terms = Mart(0.0)(clean, adversarial, clean.network_targets(), BOOSTED)
    assert torch.equal(sum(terms.values()), BOOSTED(adversarial, clean.network_targets()))
    assert not torch.allclose(terms["label"], BOOSTED(clean, clean.network_targets()))


def test_boosted_cross_entropy_keeps_its_precision_where_a_wrong_class_is_certain():
    for margin in (12.0, 20.0, 800.0):  # float32 rounds 1.0001 - p there
        v = ForwardOutput(torch.tensor([[[margin, 0.0]]]), torch.tensor([1]))
        expected = margin + math.log1p(math.exp(-margin)) - math.log(1e-4 + math.exp(-margin) / (1 + math.exp(-margin)))
        assert float(BOOSTED(v, v.network_targets())) == pytest.approx(expected, rel=1e-6)


def test_the_margin_of_boosted_cross_entropy_never_takes_the_given_class_as_its_rival():
    v = ForwardOutput(torch.tensor([[[5.0, 1.0, 0.0], [5.0, 1.0, 0.0]]], dtype=torch.float64), torch.tensor([0, 2]))
    p = v.logits[0].softmax(-1)
    margin = BOOSTED(v, v.network_targets()) - CE(v, v.network_targets())
    assert torch.allclose(margin[0], -torch.stack([1.0001 - p[0, 1], 1.0001 - p[1, 0]]).log())


@every_row("b,c,m", SHAPES)
def test_inner_losses_are_the_named_ones_and_hold_the_clean_side_constant(b, c, m):
    clean, adversarial = views(b, c, m)
    z, adv, y = clean.logits.requires_grad_(True), adversarial.logits.requires_grad_(True), clean.network_targets()
    slow = {"ce": loop(slow_ce, adv, y), "objective": loop(slow_apl, adv, y)}
    slow |= {"kl": loop(slow_kl, z, adv), "kl-sym": loop(slow_symmetric, z, adv)}
    difference = (z.softmax(-1) - adv.softmax(-1)).square().sum(-1).detach()
    slow |= {"consistency": difference, "ce+consistency": slow["ce"] + difference}
    assert set(slow) == set(INNER)
    for name, loss in INNER.items():
        got = loss(adversarial, y, z if needs_clean(name) else None, APL, CE)
        assert torch.allclose(got, slow[name], rtol=1e-9, atol=1e-12), name
        gradient, none = torch.autograd.grad(got.sum(), (adv, z), allow_unused=True)
        assert none is None, name
        if name == "kl":
            assert torch.allclose(gradient, adv.softmax(-1) - z.softmax(-1), atol=1e-12)


def test_which_inner_losses_need_the_clean_logits():
    assert [name for name in INNER if needs_clean(name)] == ["kl", "kl-sym", "ce+consistency", "consistency"]
    clean, adversarial = views(2, 3)
    for name in ("kl", "kl-sym"):
        with pytest.raises(ValueError, match=f"^inner_loss='{name}' compares with the clean logits, got None"):
            INNER[name](adversarial, clean.network_targets(), None, CE, CE)
    with pytest.raises(ValueError, match="^unknown inner_loss 'klsym': choose one of ce, objective, kl, kl-sym, ce"):
        needs_clean("klsym")


@every_row("pair", [Trades, Nrat, Mart])
def test_pairs_name_their_problem_show_beta_and_refuse_a_wrong_one(pair):
    assert pair.problems == (SINGLE_LABEL,) and repr(pair(3.0)).endswith("(beta=3.0)") and pair().beta == 6.0
    for beta in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^beta=.* must be a number of at least 0: give for instance 6\.0\.$"):
            pair(beta)


def test_mixtures_pass_through_trades_and_are_refused_by_mart():
    clean, adversarial = views(4, 3)
    mixed = HardBootstrap(0.8)(clean)
    assert torch.equal(Trades(1.0)(clean, adversarial, mixed, CE)["label"], CE(clean, mixed))
    with pytest.raises(ValueError, match=r"^mart weighs by p_y and takes class labels \(M, B\), got targets of shape \(1, 4, 3\)"):
        Mart(1.0)(clean, adversarial, mixed, CE)
