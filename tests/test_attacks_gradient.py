"""PGD and APGD against slow loops of one sample, and against linear models whose robust accuracy is known exactly."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from toy import CHANNELS, CLASSES, SIZE, Logits

from robust_trainer.attacks.apgd import APGD, checkpoints
from robust_trainer.attacks.base import Draws
from robust_trainer.attacks.pgd import PGD

SHAPE = (CHANNELS, SIZE, SIZE)
EPS = {"linf": 0.06, "l2": 0.7}


def network(classes=CLASSES, sharpness=20.0):
    """A small CNN as a function that counts in float64, so that the batch's size cannot turn a gradient's sign."""
    torch.manual_seed(1)
    model = Logits(classes).double().eval()
    return model, lambda x: (sharpness * model(x.double())).to(x.dtype)


def data(forward, n=6, seed=0):
    """Images that reach the edges of [0, 1] and the model's own labels, but for the first sample's, which is wrong."""
    x = (torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 1.2 - 0.1).clamp(0, 1)
    logits = forward(x).detach()
    y = logits.argmax(1)
    y[0] = (y[0] + 1) % logits.shape[1]
    return x, y


def wrong(forward, x, y):
    return forward(x).detach().argmax(1) != y


def size(delta, norm):
    return delta.abs().flatten(1).amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


def in_ball(point, x, eps, norm):
    delta = point - x
    if norm == "linf":
        delta = torch.max(torch.min(delta, delta.new_tensor(eps)), delta.new_tensor(-eps))
    elif float(delta.norm()) > eps:
        delta = delta / delta.norm() * eps
    return torch.max(torch.min(x + delta, torch.ones_like(x)), torch.zeros_like(x))


def unit(grad, norm):
    if norm == "linf":
        return torch.sign(grad)
    return grad / grad.norm() if float(grad.norm()) > 0 else grad


def slow_loss(name, z, y, t=None):
    """Of one sample's logits (K,)."""
    others = [z[k] for k in range(len(z)) if k != y]
    if name == "ce":
        return -torch.log_softmax(z, 0)[y] if t is None else torch.log_softmax(z, 0)[t]
    order = torch.sort(z, descending=True).values
    if name == "dlr":
        return -(z[y] - torch.stack(others).max()) / (order[0] - order[2] + 1e-12)
    if name == "dlr-targeted":
        return -(z[y] - z[t]) / (order[0] - 0.5 * (order[2] + order[3]) + 1e-12)
    return torch.stack(others).max() - z[y] if t is None else z[t] - z[y]


def slow_grad(forward, point, name, y, t=None):
    leaf = point.clone().requires_grad_(True)
    z = forward(leaf.unsqueeze(0))[0]
    loss = slow_loss(name, z, y, t)
    return torch.autograd.grad(loss, leaf)[0], loss.item(), int(z.argmax()) != y


def slow_pgd(attack, forward, x, y, draws):
    """One sample (C, H, W), every restart and target in turn."""
    step = attack.step_size or max(attack.eps / 4, 2.5 * attack.eps / attack.steps)
    targets = [None]
    if attack.targeted:
        z = forward(x.unsqueeze(0))[0].tolist()
        targets = sorted((k for k in range(len(z)) if k != y), key=lambda k: -z[k])[: attack.targets]
    best, best_loss = None, -math.inf
    for _ in range(attack.restarts):
        for target in targets:
            point = x
            if attack.random_start and attack.norm == "linf":
                point = (x + attack.eps * (2 * draws.uniform(*SHAPE)[0] - 1)).clamp(0, 1)
            elif attack.random_start:
                noise = draws.normal(*SHAPE)[0]
                point = (x + noise / noise.norm() * draws.uniform()[0] * attack.eps).clamp(0, 1)
            for _ in range(attack.steps):
                grad, _, fooled = slow_grad(forward, point, attack.loss, y, target)
                if fooled and attack.early_stop:
                    return point
                point = in_ball(point + step * unit(grad, attack.norm), x, attack.eps, attack.norm)
            _, loss, fooled = slow_grad(forward, point, attack.loss, y, target)
            if fooled:
                return point
            if loss > best_loss:
                best, best_loss = point, loss
    return best


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("restarts,targeted", [(1, False), (3, False), (2, True)])
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
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


def slow_apgd(attack, forward, x, y, target, draws):
    """Algorithm 1 on one sample, with its whole history: (visited points, result)."""
    n = attack.steps
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    w = [math.ceil(q * n) for q in p if q <= 1]
    noise = draws.uniform(*SHAPE)[0] * 2 - 1 if attack.norm == "linf" else draws.normal(*SHAPE)[0]
    noise = noise / (noise.abs().max() if attack.norm == "linf" else noise.norm())
    points, losses, visited = [in_ball(x + attack.eps * noise, x, attack.eps, attack.norm)], [], []
    eta, etas, maxima = 2 * attack.eps, {0: 2 * attack.eps}, {}
    top = None  # (loss, point, gradient)
    for k in range(n + 1):
        visited.append(points[k])
        grad, loss, fooled = slow_grad(forward, points[k], attack.loss, y, target)
        if fooled:
            return visited, points[k]
        losses.append(loss)
        if top is None or loss > top[0]:
            top = (loss, points[k], grad)
        if k == 0:
            maxima[0] = loss
        if k in w[1:]:
            before = w[w.index(k) - 1]
            first = sum(losses[i + 1] > losses[i] for i in range(before, k)) < attack.rho * (k - before)
            etas[k], maxima[k] = eta, top[0]
            if first or (etas[before] == etas[k] and maxima[before] == maxima[k]):
                eta = eta / 2
                losses[k], points[k], grad = top
        z = in_ball(points[k] + eta * unit(grad, attack.norm), x, attack.eps, attack.norm)
        if k > 0:
            moved = points[k] + 0.75 * (z - points[k]) + 0.25 * (points[k] - points[k - 1])
            z = in_ball(moved, x, attack.eps, attack.norm)
        points.append(z)
    return visited, top[1]


@pytest.mark.parametrize("loss,rho", [("ce", 0.75), ("ce", 0.0), ("dlr", 0.75), ("dlr-targeted", 0.75), ("dlr-targeted", 0.0)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
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


def test_checkpoints_of_a_hundred_steps():
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10)[:4] == [0, 3, 5, 6] and checkpoints(1) == [0, 1]


EVERY = {
    "pgd": dict(cls=PGD, steps=7, restarts=2),
    "pgd-plain": dict(cls=PGD, steps=7, early_stop=False),
    "cw": dict(cls=PGD, steps=7, loss="margin", restarts=2),
    "pgd-targeted": dict(cls=PGD, steps=5, targeted=True),
    "apgd-ce": dict(cls=APGD, steps=20, restarts=2),
    "apgd-dlr": dict(cls=APGD, steps=20, loss="dlr"),
    "apgd-t": dict(cls=APGD, steps=12, loss="dlr-targeted"),
}


def build(name, norm, eps=None, **extra):
    settings = {**EVERY[name], **extra}
    return settings.pop("cls")(EPS[norm] if eps is None else eps, norm, **settings)


@pytest.mark.parametrize("norm", ["linf", "l2"])
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


@pytest.mark.parametrize("norm", ["linf", "l2"])
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


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
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
    """Logits whose gradient is NaN: the square root's infinite slope at 0 times 0."""
    return (x.flatten(1)[:, :4] - 2).relu().sqrt() + x.flatten(1).sum(1, keepdim=True) * torch.tensor([0.1, 0.2, 0.3, 0.4])


WEIGHTS = torch.ones(4, requires_grad=True)
DEAD = {
    "no graph": lambda x: torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(len(x), 1),
    "weights alone": lambda x: (WEIGHTS * torch.arange(4.0)).repeat(len(x), 1),
    "zero gradient": lambda x: x.flatten(1)[:, :4] * 0 + torch.arange(4.0),
    "tied": lambda x: x.flatten(1)[:, :1].repeat(1, 4),
    "saturated": lambda x: (1e4 * x.flatten(1)[:, :4]).softmax(1),
    "NaN gradient": masked,
}


@pytest.mark.parametrize("model", DEAD)
@pytest.mark.parametrize("name", EVERY)
def test_dead_gradients_stay_finite(name, model):
    x = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    for norm in ("linf", "l2"):
        for y in (DEAD[model](x).detach().argmax(1), torch.full((5,), 2)):
            got = build(name, norm)(DEAD[model], x, y, Draws(0, range(5)))
            assert got.isfinite().all() and (size(got - x, norm) <= EPS[norm] + 1e-6).all()
            assert got.min() >= 0 and got.max() <= 1


def test_wrong_samples_keep_a_margin_gradient_and_apgd_leaves_them_alone():
    """The clamp of Carlini and Wagner's loss would leave them at the start."""
    _, forward = network()
    x, y = data(forward)
    got = PGD(EPS["linf"], loss="margin", random_start=False, early_stop=False)(forward, x, y, Draws(0, range(6)))
    assert (got - x)[0].abs().max() > 0.05 and wrong(forward, got, y)[0]
    assert torch.equal(APGD(EPS["linf"], steps=5)(forward, x, y, Draws(0, range(6)))[0], x[0])


@pytest.mark.parametrize(
    "cls,settings,message",
    [
        (PGD, dict(eps=8), "eps=8 must be a radius"),
        (PGD, dict(eps=-0.1, norm="l2"), "eps=-0.1 must be a radius"),
        (APGD, dict(eps=float("nan")), "eps=nan must be a radius"),
        (PGD, dict(eps=0.1, norm="l1"), "norm='l1': choose one of linf, l2"),
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
