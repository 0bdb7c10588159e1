"""The poisons that attack a trained model, or train one: inside the ball, doing what they claim, resumable to the bit."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from helpers.tables import every_row
from helpers.toy import Logits, vit
from torch import nn

from robust_trainer.attacks import Draws
from robust_trainer.corruptions.poisons.autoattack import craft_aa
from robust_trainer.corruptions.poisons.learning_to_confuse import Generator, clean_loss_after_step, craft_l2c
from robust_trainer.corruptions.poisons.targeted import craft_ap, craft_tap, flip_and_crop
from robust_trainer.corruptions.poisons.task import Task, fit
from robust_trainer.corruptions.poisons.universal import craft_uap, craft_uhp, universal_deltas
from robust_trainer.perturbations.norms import Ball
from robust_trainer.reporting.resumable import Work

N, CLASSES = 12, 4
BALLS = [Ball("linf", 16 / 255), Ball("l2", 0.6)]
ENGINES = {
    "ap": functools.partial(craft_ap, steps=10),
    "tap": functools.partial(craft_tap, steps=12, restarts=2),
    "uap": functools.partial(craft_uap, steps=10, batch=6, save_every=7),
    "uhp": functools.partial(craft_uhp, steps=10, batch=6, save_every=7),
    "aa": functools.partial(craft_aa, steps=5, targets=1),
    "l2c": functools.partial(craft_l2c, rounds=3, epochs=1, width=2),
}
ATTACKS = [name for name in ENGINES if name != "l2c"]


class Net(nn.Module):
    """With BatchNorm, whose buffers a poison must leave alone, and with dropout, which must be off in an attack."""

    def __init__(self):
        super().__init__()
        self.norm, self.logits, self.dropout = nn.BatchNorm2d(3), Logits(CLASSES), nn.Dropout(0.2)

    def forward(self, x):
        return self.logits(self.dropout(self.norm(x)))


def samples(n=N, size=8, seed=0):
    """Class-dependent blobs that reach both ends of [0, 1], so that the clip counts."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    x = torch.rand(n, 3, size, size, generator=g)
    half = size // 2
    for i, c in enumerate(y.tolist()):
        x[i, c % 3, (c // 2) * half : (c // 2) * half + half] += 0.6
    return x.clamp(0, 1), y


@functools.cache
def trained():
    torch.manual_seed(0)
    model = Net()
    x, y = samples()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        loss = F.cross_entropy(model(x), y, label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def task(ball=BALLS[0], **kwargs):
    x, y = samples()
    told = {"model": copy.deepcopy(trained()), "fresh": Net, "batch_size": 5, "seed": 5, **kwargs}
    return Task(x, y, CLASSES, ball, **told)


@functools.cache
def crafted(name, norm="linf"):
    return ENGINES[name](task(BALLS[norm == "l2"]))


def loss_to(model, x, target):
    model.eval()
    with torch.no_grad():
        return F.cross_entropy(model(x), target, reduction="none")


def random_delta(t, delta):
    """A random direction, as long as ``delta``, sample by sample."""
    noise = torch.randn(delta.shape, generator=torch.Generator().manual_seed(1))
    return fit(t.ball.direction(noise) * t.ball.eps, t.images, t.ball)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ENGINES)
def test_a_poison_lies_in_its_ball_and_leaves_pixels_in_range(name, norm):
    t, delta = task(BALLS[norm == "l2"]), crafted(name, norm)
    assert delta.shape == t.images.shape and delta.dtype == torch.float32 and delta.device.type == "cpu"
    size = delta.abs().amax((1, 2, 3)) if norm == "linf" else delta.flatten(1).norm(dim=1)
    assert size.max() <= t.ball.eps + 1e-6
    assert size.min() > 0.2 * t.ball.eps  # every sample is poisoned
    poisoned = t.images + delta
    assert poisoned.min() >= -1e-6 and poisoned.max() <= 1 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_poison_does_to_the_source_model_what_it_says(name, norm):
    t, delta = task(BALLS[norm == "l2"]), crafted(name, norm)
    target = t.labels if name in ("uhp", "aa") else (t.labels + 1) % CLASSES
    if name == "uap":  # class y carries what targets the next class
        assert torch.equal(target, (t.labels + 1) % CLASSES)
    sign = -1 if name == "aa" else 1
    found, plain, rival = (
        sign * loss_to(t.model, t.images + d, target) for d in (delta, torch.zeros_like(delta), random_delta(t, delta))
    )
    if name in ("uap", "uhp"):  # promised on average only
        assert found.mean() < plain.mean() - 0.02 and found.mean() < rival.mean() - 0.02
    else:
        assert (found < plain).all() and (found < rival).all()
        assert found.mean() < plain.mean() - 0.2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ap_is_the_plain_loop(norm):
    t = task(BALLS[norm == "l2"])
    eps, target, model = t.ball.eps, (t.labels + 1) % CLASSES, t.model.eval()
    image = t.images.clone()
    for _ in range(10):
        leaf = image.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), target, reduction="sum"), leaf)
        if norm == "linf":
            delta = (image - eps / 5 * grad.sign() - t.images).clamp(-eps, eps)
        else:
            delta = image - eps / 5 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - t.images
            delta = delta * (eps / delta.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
        image = (t.images + delta).clamp(0, 1)
    # a sign that hangs on rounding may differ in a pixel or two
    assert ((crafted("ap", norm) - (image - t.images)).abs() > 1e-5).float().mean() < 0.01


def test_tap_keeps_the_best_restart_of_each_sample():
    t, steps, restarts, runs = task(), 6, 4, []
    target, model, eps = (t.labels + 1) % CLASSES, t.model.eval(), t.ball.eps
    for r in range(restarts):
        rows = []
        for i in range(N):
            draws = Draws(t.seed, [i])
            for _ in range(r + 1):  # the stream goes on from one restart to the next
                start, views = draws.normal(3, 8, 8), draws.uniform(steps, 3)
            x = t.images[i : i + 1]
            image = (x + (start * eps).clamp(-eps, eps)).clamp(0, 1)
            for step in range(steps):
                leaf = image.clone().requires_grad_()
                loss = F.cross_entropy(model(shown(leaf, views[0, step].tolist())), target[i : i + 1])
                (grad,) = torch.autograd.grad(loss, leaf)
                image = (x + (image - eps / 20 * grad.sign() - x).clamp(-eps, eps)).clamp(0, 1)
            rows.append(image)
        runs.append(torch.cat(rows))
    losses = torch.stack([loss_to(model, image, target) for image in runs])
    best = losses.argmin(0)
    assert len(best.unique()) > 1
    expected = torch.stack(runs)[best, torch.arange(N)] - t.images
    found = craft_tap(t, steps=steps, restarts=restarts)
    assert ((found - expected).abs() > 1e-5).float().mean() < 0.01
    torch.testing.assert_close(loss_to(model, t.images + found, target), losses.amin(0), atol=1e-3, rtol=1e-3)


def shown(image, draws, padding=1):
    """What `flip_and_crop` shows of one image (1, C, H, W)."""
    down, right, flip = int(draws[0] * (2 * padding + 1)), int(draws[1] * (2 * padding + 1)), draws[2] >= 0.5
    side = image.shape[2]
    out = F.pad(image, (padding,) * 4)[:, :, down : down + side, right : right + side]
    return out.flip(3) if flip else out


def test_flip_and_crop_is_slicing_per_sample_and_differentiable():
    x, _ = samples()
    draws = torch.rand(N, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([shown(x[i : i + 1], draws[i].tolist(), 2) for i in range(N)])
    assert torch.equal(flip_and_crop(x, draws, 2), expected)
    leaf, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
    (flip_and_crop(leaf, draws, 2) * weight).sum().backward()
    (torch.cat([shown(reference[i : i + 1], draws[i].tolist(), 2) for i in range(N)]) * weight).sum().backward()
    assert torch.equal(leaf.grad, reference.grad)


def test_uap_is_uhp_with_the_classes_moved_on():
    t = task()
    deltas = universal_deltas(t, steps=10, batch=6)
    assert deltas.shape == (CLASSES, 3, 8, 8) and deltas.abs().amax() <= t.ball.eps
    assert torch.equal(crafted("uhp"), fit(deltas[t.labels], t.images, t.ball))
    assert torch.equal(crafted("uap"), fit(deltas[(t.labels + 1) % CLASSES], t.images, t.ball))
    for name, shift in (("uhp", 0), ("uap", 1)):
        whole = (t.images + deltas[(t.labels + shift) % CLASSES]).sub(0.5).abs() <= 0.5  # pixels that no clip touched
        assert 0.5 < whole.float().mean() < 1
        expected = deltas[(t.labels + shift) % CLASSES][whole]
        torch.testing.assert_close(crafted(name)[whole], expected, atol=1e-6, rtol=0)


def test_universal_deltas_are_not_clipped_to_any_image():
    """In a white picture a positive delta shows nowhere; it must be kept for the images where it does."""
    t = task(Ball("linf", 0.2))
    t.images = torch.ones_like(t.images)
    deltas = universal_deltas(t, steps=3, batch=16)
    assert (deltas < 0).any() and (fit(deltas[t.labels], t.images, t.ball) <= 0).all()


def test_aa_perturbs_samples_that_are_wrong_already():
    t = task()
    t.labels = (t.labels + 1) % CLASSES  # nearly everything is misclassified now
    delta = craft_aa(t, steps=8, targets=0)
    assert (delta.abs().amax((1, 2, 3)) > 0.9 * t.ball.eps).all()
    assert (loss_to(t.model, t.images + delta, t.labels) > loss_to(t.model, t.images, t.labels)).all()


def test_aa_goes_beyond_the_first_image_that_fools():
    t = task(BALLS[1])
    few, many = (loss_to(t.model, t.images + craft_aa(t, steps=s, targets=0), t.labels) for s in (2, 10))
    assert many.mean() > few.mean()
    both = loss_to(t.model, t.images + craft_aa(t, steps=10, targets=2), t.labels)
    assert (both >= many - 1e-5).all()  # more runs, the best of them


def test_aa_moves_what_a_very_sure_model_sees():
    """A cross-entropy of 0 in float32 still has a direction in which it rises."""
    t = task()
    with torch.no_grad():
        t.model.logits.head.weight.mul_(50)
        t.model.logits.head.bias.mul_(50)
    logits = t.model.eval()(t.images)
    t.labels = logits.argmax(1)
    assert (loss_to(t.model, t.images, t.labels) == 0).sum() > N // 2
    delta = craft_aa(t, steps=10, targets=0)
    own = t.labels.unsqueeze(1)
    assert (t.model(t.images + delta).gather(1, own) < logits.gather(1, own)).all()


def test_aa_needs_no_four_classes():
    x, y = samples()
    torch.manual_seed(0)
    t = Task(x, y % 2, 2, BALLS[0], model=Logits(2), batch_size=8)
    assert (loss_to(t.model, x + craft_aa(t, steps=5), y % 2) > loss_to(t.model, x, y % 2)).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_source_model_is_as_it_was(name):
    t = task()
    t.model.train()
    t.model.norm.eval()
    t.model.logits.head.weight.requires_grad_(False)
    t.model.logits.conv.weight.grad = torch.ones_like(t.model.logits.conv.weight)
    before = copy.deepcopy(t.model.state_dict())
    ENGINES[name](t)
    assert [m.training for m in t.model.modules()] == [m is not t.model.norm for m in t.model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in t.model.state_dict().items())
    for key, p in t.model.named_parameters():
        assert p.requires_grad == (key != "logits.head.weight")
        assert (p.grad is None) if key != "logits.conv.weight" else torch.equal(p.grad, torch.ones_like(p))


@pytest.mark.parametrize("name", ENGINES)
def test_a_poison_depends_on_its_seed_alone(name):
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again = ENGINES[name](task())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again, crafted(name))
    if name != "ap":
        assert not torch.equal(ENGINES[name](task(seed=6)), again)


@pytest.mark.parametrize("name", ["ap", "tap", "aa"])
def test_sample_wise_poisons_do_not_depend_on_the_batches(name):
    found = ENGINES[name](task(batch_size=12))
    assert ((found - crafted(name)).abs() > 1e-5).float().mean() < 0.02


class Stopped(Exception):
    pass


class Fragile(Work):
    """Stops after so many parts; counts what it keeps."""

    left = 10**9
    kept = 0

    def save(self, name, tensors):
        if self.left == 0:
            raise Stopped
        self.left -= 1
        self.kept += 1
        super().save(name, tensors)


@pytest.mark.parametrize("name", ENGINES)
def test_a_stopped_crafting_goes_on_to_the_same_bits(name, tmp_path):
    fragile = Fragile(tmp_path)
    fragile.left = 2
    with pytest.raises(Stopped):
        ENGINES[name](task(work=fragile))
    assert any(tmp_path.glob("*.safetensors"))
    work = Fragile(tmp_path)
    assert torch.equal(ENGINES[name](task(work=work)), crafted(name))
    whole = Fragile(tmp_path / "whole")
    ENGINES[name](task(work=whole))
    assert 0 < work.kept < whole.kept  # what was done was not done again
    finished = Fragile(tmp_path)
    assert torch.equal(ENGINES[name](task(work=finished)), crafted(name)) and finished.kept == 0


def test_the_unrolled_loss_is_that_after_a_real_step():
    torch.manual_seed(0)
    model = Net().train()
    model.dropout.p = 0.0
    x, y = samples()
    poisoned = (x * 0.9).requires_grad_()
    before = copy.deepcopy(model.state_dict())
    found = clean_loss_after_step(model, x, poisoned, y, lr=0.1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())

    def reference(images):
        real = copy.deepcopy(model)
        optimizer = torch.optim.SGD(real.parameters(), lr=0.1)
        F.cross_entropy(real(images), y).backward()
        optimizer.step()
        return F.cross_entropy(real(x), y)

    torch.testing.assert_close(found, reference(poisoned.detach()))
    (grad,) = torch.autograd.grad(found, poisoned)
    model.double()  # for finite differences
    x = x.double()
    direction = grad.double() / grad.norm()
    ends = [reference(poisoned.detach().double() + s * 1e-3 * direction) for s in (1, -1)]
    slope = (ends[0] - ends[1]).detach() / 2e-3
    torch.testing.assert_close(float(slope), float(grad.norm()), rtol=0.02, atol=0)


def test_l2c_takes_a_transformer():
    class Vit(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = vit()

        def forward(self, x):
            return self.vit(pixel_values=x).logits

    t = task(fresh=Vit)
    delta = craft_l2c(t, rounds=1, epochs=1, width=2)
    assert delta.isfinite().all() and delta.abs().amax() > 0


@pytest.mark.parametrize("size", [(28, 28), (7, 9)])
def test_the_generator_takes_any_size_and_each_sample_by_itself(size):
    for ball in BALLS:
        torch.manual_seed(0)
        g = Generator(1, ball, width=4)
        x = torch.rand(3, 1, *size)
        out = g(x)
        assert out.shape == x.shape
        torch.testing.assert_close(out[1:2], g(x[1:2]))
        assert (ball.project(out) - out).abs().max() < 1e-6


@every_row("name", ENGINES)
@every_row("wrong", [{"steps": 0, "rounds": 0}, {"step_share": 0.0, "epochs": -1, "restarts": 0}, None])
def test_bad_input_is_named_in_one_line(name, wrong):
    code = ENGINES[name].func.__code__
    known = code.co_varnames[: code.co_argcount]
    settings = {k: v for k, v in (wrong or {}).items() if k in known}
    t = task() if wrong else task(model=None, fresh=None)
    with pytest.raises(ValueError, match="must be" if wrong else "=None") as caught:
        ENGINES[name].func(t, **settings)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def faint(n, seed):
    """Four classes in noise that a small network tells apart, normalised in the network."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    x = 0.5 + 0.15 * torch.randn(n, 3, 8, 8, generator=g)
    for i, c in enumerate(y.tolist()):
        x[i, c % 3, (c // 2) * 4 : (c // 2) * 4 + 4] += 0.1
    return x.clamp(0, 1), y


class Normalised(nn.Module):
    def forward(self, x):
        return (x - 0.5) / 0.15


def small():
    layers = Normalised(), nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, CLASSES)
    return nn.Sequential(*layers)


def accuracy_after(x, y, seed):
    """The share of clean test samples that a fresh network gets right after learning (x, y)."""
    torch.manual_seed(seed)
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.04)
    for _ in range(12):
        for rows in torch.randperm(len(x)).split(16):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    test, labels = faint(100, seed=1)
    return float((model(test).argmax(1) == labels).float().mean())


def test_l2c_keeps_a_fresh_network_from_learning():
    x, y = faint(64, seed=0)
    t = Task(x, y, CLASSES, Ball("linf", 0.1), fresh=small, batch_size=32)
    delta = craft_l2c(t, rounds=4, epochs=4, lr=3e-3, classifier_lr=0.05, width=8)
    assert accuracy_after(x, y, seed=3) > 0.8
    assert accuracy_after(x + random_delta(t, delta), y, seed=3) > 0.6
    assert accuracy_after(x + delta, y, seed=3) < 0.3
