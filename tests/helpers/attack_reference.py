"""Slow loops of PGD and APGD, one sample at a time, the models they are tried on, and every gradient attack by a name."""

import math
from fractions import Fraction

import torch
from helpers.toy import CHANNELS, CLASSES, SIZE, Logits

from robust_trainer.attacks.apgd import APGD
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


def slow_apgd(attack, forward, x, y, target, draws):
    """Algorithm 1 on one sample, with its whole history: (visited points, result)."""
    n = attack.steps
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    w = [math.ceil(q * n) for q in p if q <= 1]
    noise = draws.uniform(*SHAPE)[0] * 2 - 1 if attack.norm == "linf" else draws.normal(*SHAPE)[0]
    noise = noise / (noise.abs().max() if attack.norm == "linf" else noise.norm())
    start = in_ball(x + attack.eps * noise, x, attack.eps, attack.norm) if attack.random_start else x
    points, losses, visited = [start], [], []
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
