"""Slow loops, one sample at a time, that say what the fast code must give."""

from __future__ import annotations

import math

import torch


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    e = [math.exp(z - top) for z in logits]
    return [v / sum(e) for v in e]


def cross_entropy(logits: list[float], target: list[float], smoothing: float = 0.0) -> float:
    """-sum_k t_k log p_k for target mixtures t."""
    top = max(logits)
    log_z = top + math.log(sum(math.exp(z - top) for z in logits))
    smooth = [(1 - smoothing) * t + smoothing / len(target) for t in target]
    return -sum(t * (z - log_z) for t, z in zip(smooth, logits))


def onehot(y: int, classes: int) -> list[float]:
    return [1.0 if k == y else 0.0 for k in range(classes)]


def loss_layer_norm(logits: list[float], y: int) -> float:
    p = softmax(logits)
    return math.sqrt(sum((pk - tk) ** 2 for pk, tk in zip(p, onehot(y, len(p)))))


def keep_smallest(scores: list[float], kept: int) -> list[int]:
    """Positions of the ``kept`` smallest, ties by position."""
    return sorted(sorted(range(len(scores)), key=lambda i: (scores[i], i))[:kept])


def input_gradients(model, x, y, mean, std, pixels):
    """d CE(model((pixel - mean) / std), y) / d pixel, one sample at a time."""
    out = []
    for i in range(len(x)):
        pixel = pixels[i : i + 1].clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model((pixel - mean) / std), y[i : i + 1])
        out.append(torch.autograd.grad(loss, pixel)[0][0])
    return out


# one sample's losses on class labels: logits, label -> number


def mae(logits: list[float], y: int) -> float:
    p = softmax(logits)
    return sum(abs(pk - tk) for pk, tk in zip(p, onehot(y, len(p)))) / 2


def gce(logits: list[float], y: int, q: float) -> float:
    return (1 - softmax(logits)[y] ** q) / q


def nce(logits: list[float], y: int) -> float:
    every = [cross_entropy(logits, onehot(k, len(logits))) for k in range(len(logits))]
    return every[y] / sum(every)


def rce(logits: list[float], y: int) -> float:
    p = softmax(logits)
    return -sum(pk * math.log(tk if tk else 1e-4) for pk, tk in zip(p, onehot(y, len(p))))


def boosted(logits: list[float], y: int) -> float:
    others = [p for k, p in enumerate(softmax(logits)) if k != y]
    return cross_entropy(logits, onehot(y, len(logits))) - math.log(1.0001 - max(others) + 1e-12)


def soft_bootstrap(logits: list[float], y: int, beta: float) -> float:
    p = softmax(logits)
    return -sum((beta * tk + (1 - beta) * pk) * math.log(pk) for pk, tk in zip(p, onehot(y, len(p))))


# one sample's losses and score on outputs and targets that are lists of numbers


def mean_abs(out: list[float], y: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(out, y)) / len(y)


def mean_square(out: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(out, y)) / len(y)


def huber(out: list[float], y: list[float], delta: float) -> float:
    total = 0.0
    for a, b in zip(out, y):
        r = abs(a - b)
        total += r * r / 2 if r <= delta else delta * (r - delta / 2)
    return total / len(y)


def binary_cross_entropy(out: list[float], y: list[float]) -> float:
    p = [1 / (1 + math.exp(-z)) for z in out]
    return -sum(t * math.log(pk) + (1 - t) * math.log(1 - pk) for pk, t in zip(p, y)) / len(y)


def norm(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values))
