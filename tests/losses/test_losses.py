import math

import pytest
import torch
from helpers import reference
from helpers.tables import every_row

from robust_trainer.losses import noisy_labels as robust_losses
from robust_trainer.losses import standard as objectives
from robust_trainer.losses.standard import OBJECTIVES, make_objective, parameters_of
from robust_trainer.problems import MULTI_LABEL, PROBLEMS, REGRESSION, SINGLE_LABEL, UNLABELLED
from robust_trainer.types import ForwardOutput

SHAPES = [(7, 2, 1), (5, 3, 2), (6, 10, 1), (4, 100, 2)]
ON_LABELS = [name for name, kind in OBJECTIVES.items() if SINGLE_LABEL in kind.problems]
EVERY = [(name, problem) for name, kind in OBJECTIVES.items() for problem in kind.problems]

ON_TARGETS = [(name, problem) for name, problem in EVERY if problem != UNLABELLED]  # a model's own loss is what it is


def view(b, c, m=1, problem=SINGLE_LABEL, scale=3.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(b * 31 + c)
    logits = torch.randn(m, b, c, generator=g, dtype=dtype) * scale
    if problem == SINGLE_LABEL:
        targets = torch.randint(c, (b,), generator=g)
    elif problem == REGRESSION:
        targets = torch.randn(b, c, generator=g, dtype=torch.float64)
    else:
        targets = torch.rand(b, c, generator=g, dtype=torch.float64).round(decimals=1)
    return ForwardOutput(logits, targets, problem=problem)


def one_sample(name, problem, c):
    """The slow loss of one sample, with the default settings."""
    apl = (c / 10, 10 / c)
    return {
        ("ce", SINGLE_LABEL): lambda z, y: reference.cross_entropy(z, reference.onehot(y, c)),
        ("mae", SINGLE_LABEL): reference.mae,
        ("mae", REGRESSION): reference.mean_abs,
        ("huber", REGRESSION): lambda z, y: reference.huber(z, y, 1.0),
        ("mse", REGRESSION): reference.mean_square,
        ("bce", MULTI_LABEL): reference.binary_cross_entropy,
        ("gce", SINGLE_LABEL): lambda z, y: reference.gce(z, y, 0.7),
        ("sce", SINGLE_LABEL): lambda z, y: 0.1 * reference.cross_entropy(z, reference.onehot(y, c)) + reference.rce(z, y),
        ("nce", SINGLE_LABEL): reference.nce,
        ("rce", SINGLE_LABEL): reference.rce,
        ("boosted-ce", SINGLE_LABEL): reference.boosted,
        ("model", UNLABELLED): lambda z, y: z[0],
        ("nce-rce", SINGLE_LABEL): lambda z, y: apl[0] * reference.nce(z, y) + apl[1] * reference.rce(z, y),
        ("bootstrap-soft", SINGLE_LABEL): lambda z, y: reference.soft_bootstrap(z, y, 0.95),
    }[name, problem]


@pytest.mark.parametrize("name,problem", EVERY)
@every_row("b,c,m", SHAPES)
def test_losses_equal_the_loop(name, problem, b, c, m):
    v = view(b, c, m, problem)
    losses = make_objective(name, {}, problem)(v, v.network_targets())
    slow = one_sample(name, problem, c)
    expected = [[slow(v.logits[k, i].tolist(), v.targets[i].tolist()) for i in range(b)] for k in range(m)]
    assert losses.shape == (m, b) and losses.dtype == torch.float64
    assert torch.allclose(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    single = ForwardOutput(v.logits.float(), v.targets, problem=problem)
    assert torch.allclose(
        make_objective(name, {}, problem)(single, single.network_targets()).double(), losses, rtol=1e-4, atol=1e-6
    )


@every_row("name,problem", EVERY)
@every_row("c", [2, 10])
def test_gradients_are_those_of_finite_differences(name, problem, c):
    v = view(3, c, 2, problem, scale=1.0)
    objective = make_objective(name, {}, problem)
    assert torch.autograd.gradcheck(
        lambda z: objective(ForwardOutput(z, v.targets, problem=problem), v.network_targets()), v.logits.requires_grad_(True)
    )


@every_row("name,problem", ON_TARGETS)
@every_row("c", [2, 10, 1000])
@every_row("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_finite_at_the_extremes(name, problem, c, dtype):
    v = view(8, c, 1, problem, dtype=torch.float32)
    z = (800.0 * v.logits.sign()).to(dtype)
    z[0, 0], z[0, 1] = 800.0, -800.0
    if problem == SINGLE_LABEL:
        z[0, 2], z[0, 3] = -800.0, 800.0
        z[0, 2, v.targets[2]], z[0, 3, v.targets[3]] = 800.0, -800.0
    z.requires_grad_(True)
    v = ForwardOutput(z, v.targets, problem=problem)
    losses = make_objective(name, {}, problem)(v, v.network_targets())
    losses.sum().backward()
    assert losses.dtype == torch.float32 and losses.isfinite().all() and (losses >= -1.1e-4).all()  # boosted-ce takes log 1.0001
    assert z.grad.dtype == dtype and z.grad.isfinite().all()


@every_row("name,problem", EVERY)
def test_low_precision_logits_are_computed_in_float32(name, problem):
    v = view(6, 10, 2, problem)
    low = ForwardOutput(v.logits.to(torch.bfloat16), v.targets, problem=problem)
    same = ForwardOutput(low.logits.float(), v.targets, problem=problem)
    objective = make_objective(name, {}, problem)
    assert torch.equal(objective(low, low.network_targets()), objective(same, same.network_targets()))


def losses_of(v):
    """``losses(name, **settings)`` on one view."""
    return lambda name, **settings: make_objective(name, settings, v.problem)(v, v.network_targets())


def every_label(objective, logits):
    """The sum of the loss over all labels of each sample, (B,)."""
    c = logits.shape[-1]
    return sum(
        objective(ForwardOutput(logits, y), y.unsqueeze(0))[0] for y in (torch.full((logits.shape[1],), k) for k in range(c))
    )


@every_row("b,c,m", [(7, 2, 1), (6, 10, 1), (4, 100, 1)])
def test_symmetric_losses_sum_to_a_constant_over_the_labels(b, c, m):  # NRAT, eq. 6
    z = view(b, c, m).logits
    a = -math.log(1e-4)
    for name, constant in (("mae", c - 1), ("nce", 1), ("rce", a * (c - 1)), ("nce-rce", c / 10 + 10 / c * a * (c - 1))):
        assert torch.allclose(every_label(make_objective(name, {}), z), torch.tensor(constant, dtype=z.dtype)), name
    assert every_label(make_objective("ce", {}), z).std() > 0.1


def test_gce_lies_between_cross_entropy_and_mae():
    v = view(64, 5)
    of = losses_of(v)
    assert torch.allclose(of("gce", gce_q=1.0), of("mae"), rtol=1e-12)
    assert torch.allclose(of("gce", gce_q=1e-9), of("ce"), rtol=1e-6)
    assert (of("gce") <= of("ce")).all() and (of("gce") >= of("mae")).all()


def test_ranges_and_weights():
    v = view(200, 4, scale=30.0)
    of = losses_of(v)
    assert ((of("nce") >= 0) & (of("nce") <= 1)).all()
    assert (of("mae") <= 1).all() and (of("rce") <= 9.2104).all() and (of("gce") <= 1 / 0.7).all()
    assert torch.allclose(of("sce", sce_alpha=2.0, sce_beta=3.0), 2 * of("ce") + 3 * of("rce"))
    assert torch.allclose(of("nce-rce", apl_alpha=2.0, apl_beta=3.0), 2 * of("nce") + 3 * of("rce"))
    assert torch.allclose(of("nce-rce"), 0.4 * of("nce") + 2.5 * of("rce"))
    assert torch.equal(of("bootstrap-soft", bootstrap_beta=1.0), of("ce"))


@every_row("c,alpha,beta", [(10, 1.0, 1.0), (100, 10.0, 0.1)])
def test_active_passive_weights_are_the_authors_on_cifar(c, alpha, beta):
    v = view(8, c)
    ours = make_objective("nce-rce", {"apl_alpha": None, "apl_beta": None})(v, v.network_targets())
    assert torch.allclose(ours, robust_losses.ActivePassive(alpha, beta)(v, v.network_targets()))


@every_row("b,c", [(7, 3), (9, 10), (5, 100)])
def test_reverse_cross_entropy_is_the_authors_up_to_their_clamp(b, c):
    v = view(b, c, scale=8.0)
    p = v.logits[0].softmax(-1).clamp(1e-7, 1.0)
    onehot = torch.nn.functional.one_hot(v.targets, c).double().clamp(1e-4, 1.0)
    ours = make_objective("rce", {})(v, v.network_targets())[0]
    difference = -(p * onehot.log()).sum(-1) - ours
    assert (difference >= -1e-9).all() and (difference <= 9.22e-7 * (c - 1)).all()


def test_mae_and_rce_stay_exact_where_the_probability_rounds_to_one():
    v = ForwardOutput(torch.tensor([[[30.0, 0.0]]]), torch.tensor([0]))
    for name, factor in (("mae", 1.0), ("rce", -math.log(1e-4))):
        assert float(make_objective(name, {})(v, v.network_targets())) == pytest.approx(factor * math.exp(-30), rel=1e-5, abs=0)


def test_soft_bootstrap_is_cross_entropy_and_entropy_with_gradient_through_the_prediction():
    v = view(6, 4)
    z = v.logits.requires_grad_(True)
    entropy = torch.distributions.Categorical(logits=z).entropy()
    combined = 0.8 * make_objective("ce", {})(v, v.network_targets()) + 0.2 * entropy
    (expected,) = torch.autograd.grad(combined.sum(), z)
    (got,) = torch.autograd.grad(robust_losses.SoftBootstrap(0.8)(v, v.network_targets()).sum(), z)
    assert torch.allclose(got, expected)


@every_row(
    "name,problem,torch_loss",
    [
        ("mse", REGRESSION, torch.nn.MSELoss()),
        ("mae", REGRESSION, torch.nn.L1Loss()),
        ("huber", REGRESSION, torch.nn.HuberLoss(delta=0.5)),
        ("bce", MULTI_LABEL, torch.nn.BCEWithLogitsLoss()),
    ],
)
@every_row("k", [1, 3])
def test_the_mean_over_samples_is_torchs(name, problem, torch_loss, k):
    v = view(9, k, 1, problem)
    losses = make_objective(name, {"huber_delta": 0.5, "gce_q": 0.1}, problem)(v, v.network_targets())
    assert torch.allclose(losses.mean(), torch_loss(v.logits[0], v.targets))


def test_huber_is_half_the_square_within_delta_and_linear_outside():
    v = view(20, 3, 1, REGRESSION)
    of = losses_of(v)
    assert torch.allclose(of("huber", huber_delta=1e6), of("mse") / 2)
    assert torch.allclose(of("huber", huber_delta=1e-6) / 1e-6, of("mae"), rtol=1e-4)


def test_integer_targets_are_read_as_numbers():
    v = ForwardOutput(torch.tensor([[[0.5, 2.0]]]), torch.tensor([[1, 0]]), problem=MULTI_LABEL)
    expected = reference.binary_cross_entropy([0.5, 2.0], [1.0, 0.0])
    assert float(make_objective("bce", {}, MULTI_LABEL)(v, v.network_targets())) == pytest.approx(expected)


@every_row("name", [name for name in ON_LABELS if name != "ce"])
def test_mixtures_are_refused_by_all_but_cross_entropy(name):
    v = view(4, 3)
    mixed = objectives.HardBootstrap(0.8)(v)
    with pytest.raises(ValueError, match=f"^objective='{name}' takes class labels") as e:
        make_objective(name, {})(v, mixed)
    assert "\n" not in str(e.value)
    assert make_objective("ce", {})(v, mixed).shape == (1, 4)


@every_row("name,problem", [(n, p) for n, p in ON_TARGETS if p != SINGLE_LABEL])
def test_targets_that_would_broadcast_are_refused(name, problem):
    v = view(4, 3, 1, problem)
    with pytest.raises(ValueError, match="they must be the same"):
        make_objective(name, {}, problem)(v, v.network_targets()[..., :1])


@every_row("problem", list(PROBLEMS.values()))
def test_auto_is_the_problems_own_loss(problem):
    assert type(make_objective("auto", {}, problem)) is OBJECTIVES[problem.objective]


@every_row(
    "name,problem,message",
    [
        ("gce", REGRESSION, "objective='gce' is a loss on class labels, but problem_type='regression': choose one of mse, mae"),
        (
            "mse",
            MULTI_LABEL,
            "objective='mse' is a loss on regression values, but problem_type='multi_label_classification': choose bce",
        ),
        ("gcee", SINGLE_LABEL, "unknown objective 'gcee': choose one of auto, ce, mae, "),
        (None, SINGLE_LABEL, "unknown objective None: choose one of auto, "),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, problem, message):
    with pytest.raises(ValueError) as e:
        make_objective(name, {}, problem)
    assert str(e.value).startswith(message) and "\n" not in str(e.value)


def test_the_choices_start_with_the_problems_own_loss():
    with pytest.raises(ValueError, match=": choose one of mse, mae, huber.$"):
        make_objective("gce", {}, REGRESSION)


def test_every_loss_fits_exactly_the_problems_it_names():
    for name, kind in OBJECTIVES.items():
        for problem in PROBLEMS.values():
            if problem in kind.problems:
                assert type(make_objective(name, {}, problem)) is kind
            else:
                with pytest.raises(ValueError, match="but problem_type="):
                    make_objective(name, {}, problem)
    assert type(make_objective("huber", {}, None)) is objectives.Huber  # the problem is not known yet


def test_settings_reach_their_own_loss_only():
    settings = {"huber_delta": 2.0, "gce_q": 0.5, "sce_alpha": 0.3, "sce_beta": 0.4, "apl_alpha": 5.0, "apl_beta": 6.0}
    settings["bootstrap_beta"] = 0.7
    for name, kind in OBJECTIVES.items():
        values = [settings[key] for key in parameters_of(name)]
        assert make_objective(name, settings, kind.problems[0]) == kind(*values)
    assert {key for name in OBJECTIVES for key in parameters_of(name)} == set(settings)


@every_row("make", [lambda x: robust_losses.GeneralizedCrossEntropy(x), lambda x: objectives.Huber(x)])
@every_row("value", [0.0, -1.0, float("nan")])
def test_settings_that_would_divide_by_zero_are_refused(make, value):
    with pytest.raises(ValueError, match="expected a number"):
        make(value)
