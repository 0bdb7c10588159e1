"""Slow loops of adversarial training in plain torch, pixels in: what the Trainer's weights and buffers must be.

Networks in float64 and perturbations in float32, as the library keeps them, of pixels that float32 holds exactly: no sign of a
gradient hangs on rounding.
"""

import copy

import torch
import torch.nn.functional as F
from helpers.toy import CHANNELS, CLASSES, SIZE, resnet

from robust_trainer.data.randomness import RowDraws

BATCH, STEPS, SEED, LR, MOMENTUM, DECAY = 8, 5, 3, 0.02, 0.9, 5e-3


def samples(n=40, dtype=torch.float64):
    """Noise over the whole of [0, 1], so that the clip to the box counts, in 1024ths; mean and std 0.5."""
    g = torch.Generator().manual_seed(7)
    x = torch.rand(n, CHANNELS, SIZE, SIZE, generator=g, dtype=torch.float64)
    y = torch.randint(CLASSES, (n,), generator=g)
    x[torch.arange(n), y % CHANNELS] = (x[torch.arange(n), y % CHANNELS] + 0.4).clamp(max=1.0)
    x = (x * 1024).round() / 1024
    return [{"pixel_values": ((a - 0.5) / 0.5).to(dtype), "labels": b} for a, b in zip(x, y)]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)


def net(model, pixels):
    return model(pixel_values=((pixels - 0.5) / 0.5).float().double()).logits


def ce(z, y):
    return F.cross_entropy(z, y, reduction="none")


def apl(alpha, beta):
    def loss(z, y):
        log_p = z.log_softmax(1)
        log_py = log_p.gather(1, y[:, None])[:, 0]
        return alpha * log_py / log_p.sum(1) + beta * 9.210340371976182 * (1 - log_py.exp())

    return loss


def boosted(z, y):
    others = z.softmax(1).masked_fill(F.one_hot(y, z.shape[1]).bool(), -1.0)
    return ce(z, y) - (1.0001 - others.max(1).values + 1e-12).log()


def kl(z, w):
    return F.kl_div(w.log_softmax(1), z.softmax(1), reduction="none").sum(1)


def symmetric(z, w):
    return 0.5 * kl(z, w) + 0.5 * kl(w, z)


NCE_RCE = apl(CLASSES / 10, 10 / CLASSES)
#: OuterMinimization losses of the two training forwards, clean then adversarial; None: one forward, on the adversarial batch alone.
OUTER = {
    "pgd-at": (None, ce),
    "pgd-at-apl": (None, NCE_RCE),
    "trades": (lambda z, w, y, beta: ce(z, y) + beta * kl(z, w), ce),
    "trades-apl": (lambda z, w, y, beta: NCE_RCE(z, y) + beta * kl(z, w), NCE_RCE),
    "mart": (lambda z, w, y, beta: boosted(w, y) + beta * kl(z, w) * (1 - z.softmax(1)[range(len(y)), y]), boosted),
    "mart-apl": (lambda z, w, y, beta: NCE_RCE(w, y) + beta * kl(z, w) * (1 - z.softmax(1)[range(len(y)), y]), NCE_RCE),
    "nrat": (lambda z, w, y, beta: NCE_RCE(z, y) + beta * symmetric(z, w), NCE_RCE),
}
OUTER["fast-at"] = OUTER["pgd-at"]


def start(step, shape, eps, random_start, start_std):
    """The library's random numbers, drawn again: they belong to the seed, the step and the place in it."""
    draws = RowDraws(torch.arange(shape[0]), "random start", SEED, step)
    if not random_start:
        return torch.zeros(shape)
    if start_std is not None:
        return draws.normal(*shape[1:]) * start_std
    return (draws.uniform(*shape[1:]) * 2 - 1) * eps


def attack(model, pixels, y, delta, inner, own, eps, step_size, steps, norm="linf", mode="eval", keep=None):
    """PGD in pixels; keep: what picks the samples that are attacked from the first forward's logits."""
    buffers = copy.deepcopy(dict(model.named_buffers()))
    model.train(mode == "train")
    loss = {"ce": lambda z, w: ce(w, y), "objective": lambda z, w: own(w, y), "kl": kl, "kl-sym": symmetric}[inner]
    with torch.no_grad():
        clean = net(model, pixels)
    lower, upper = (-pixels).float(), (1 - pixels).float()
    delta = delta.clamp(lower, upper)
    moving = torch.ones(len(y))
    if keep is not None:
        with torch.no_grad():
            moving = keep(clean if inner.startswith("kl") else net(model, pixels + delta), y)
    for _ in range(steps):
        delta = delta.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(loss(clean, net(model, pixels + delta)).sum(), delta)
        if norm == "linf":
            delta = (delta + step_size * g.sign()).clamp(-eps, eps)
        else:
            delta = delta + step_size * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            size = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            delta = delta * (eps / size).clamp(max=1.0)
        delta = torch.minimum(torch.maximum(delta.detach(), lower), upper) * moving.float().view(-1, 1, 1, 1)
    model.train()
    for name, buffer in model.named_buffers():
        buffer.data.copy_(buffers[name])
    return (pixels + delta).detach()


def keep_smallest_norms(rate):
    """PRL(L): weights 0 for the largest distances between prediction and one-hot label."""

    def keep(z, y):
        scores = (z.detach().softmax(1) - F.one_hot(y, z.shape[1])).norm(dim=1)
        weights = torch.ones(len(y), dtype=torch.float64)
        weights[scores.argsort(descending=True)[: round(rate * len(y))]] = 0.0
        return weights

    return keep


def awp_offsets(model, loss_of, gamma):
    """As the authors: one SGD step uphill of a copy in train mode; gamma ||w|| / ||d|| d of weights with two dimensions or more."""
    proxy = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-loss_of(proxy)).backward()
    optimizer.step()
    offsets = {}
    moved = proxy.state_dict()
    for name, old in model.state_dict().items():
        if "weight" in name and old.dim() > 1:
            d = moved[name] - old
            offsets[name] = gamma * old.norm() / (d.norm() + 1e-20) * d
    return offsets


def reference(
    method, inner, random_start=False, start_std=None, beta=6.0, gamma=None, warmup_steps=0, rate=None, outer=None, updates=STEPS,
    data=None, eps=1 / 8, step_size=3 / 64, steps=3, norm="linf", attack_mode="eval", inner_filter=True, batch=BATCH,
):  # fmt: skip
    """The network after ``updates`` steps of the optimizer."""
    model = resnet().double()
    optimizer = sgd(model)
    data = samples() if data is None else data
    pair, own = OUTER[method] if outer is None else outer
    keep = None if rate is None else keep_smallest_norms(rate)
    for step in range(updates):
        rows = [data[(step * batch + i) % len(data)] for i in range(batch)]
        pixels = torch.stack([row["pixel_values"] for row in rows]) * 0.5 + 0.5
        y = torch.stack([row["labels"] for row in rows])
        delta = start(step, pixels.shape, eps, random_start, start_std)
        adversarial = attack(
            model, pixels, y, delta, inner, own, eps, step_size, steps, norm, attack_mode, keep if inner_filter else None
        )
        decided = {}

        def loss_of(network, pixels=pixels, y=y, adversarial=adversarial, decided=decided):
            z = net(network, adversarial if pair is None else pixels)
            losses = own(z, y) if pair is None else pair(z, net(network, adversarial), y, beta)
            if keep is None:
                return losses.mean()
            weights = decided.setdefault("weights", keep(z, y))  # at the weights as they are, not at AWP's
            return (losses * weights).sum() / weights.sum()

        model.train()
        perturbed_weights = gamma is not None and step >= warmup_steps
        offsets = awp_offsets(model, loss_of, gamma) if perturbed_weights else {}
        parameters = dict(model.named_parameters())
        backup = {name: parameters[name].detach().clone() for name in offsets}
        with torch.no_grad():
            for name, offset in offsets.items():
                parameters[name] += offset
        optimizer.zero_grad()
        loss_of(model).backward()
        with torch.no_grad():
            for name, old in backup.items():
                parameters[name].copy_(old)
        optimizer.step()
    return model
