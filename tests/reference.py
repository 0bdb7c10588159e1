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
