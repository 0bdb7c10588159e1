"""Stand-ins for models, attacks and data whose robustness is known, and what the tests of evaluate_robustness share."""

from __future__ import annotations

from dataclasses import dataclass, field

import datasets
import numpy as np
import torch
from helpers.toy import NORMALISATION, images
from torch import nn

PIXELS = dict(image_mean=[0.0], image_std=[1.0], progress=False)
TOY = dict(NORMALISATION, progress=False)


class Linear(nn.Module):
    def __init__(self, classes: int, size: int, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.map = nn.Linear(size, classes)
        with torch.no_grad():
            self.map.weight.mul_(3)

    def forward(self, x):
        return self.map(x.flatten(1))


class Bit(nn.Module):
    """Class 1 where the second pixel is above one half; counts what it sees in a buffer, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, pixel_values):
        self.seen += len(pixel_values)
        z = self.scale * (pixel_values[:, 0, 0, 1] - 0.5)
        return torch.stack([-z, z], 1)


@dataclass
class Flip:
    """A stand-in attack on `Bit`: turns the second pixel of the images whose first pixel holds one of the wanted numbers."""

    name: str
    wins: frozenset = frozenset()
    visited: list = field(default_factory=list, compare=False, repr=False)
    fails_at: int | None = field(default=None, compare=False, repr=False)
    eps: float = 0.3
    norm: str = "linf"

    def __call__(self, forward, x, y, draws):
        numbers = (x[:, 0, 0, 0] * 100).round().int().tolist()
        self.visited += numbers
        if self.fails_at in numbers:
            raise KeyboardInterrupt
        out = x.clone()
        wins = torch.tensor([n in self.wins for n in numbers])
        out[wins, 0, 0, 1] = 1 - x[wins, 0, 0, 1]
        return out


def bits(n: int = 20, wrong: tuple[int, ...] = ()) -> datasets.Dataset:
    labels = np.arange(n) % 2
    x = np.zeros((n, 1, 2, 2), dtype=np.float32)
    x[:, 0, 0, 0] = np.arange(n) / 100
    x[:, 0, 0, 1] = np.where(labels == 1, 0.6, 0.4)
    given = [1 - v if i in wrong else v for i, v in enumerate(labels)]
    return datasets.Dataset.from_dict({"pixel_values": x, "labels": given}).with_format("torch")


def linear_case(classes: int, n: int = 24):
    """Model, normalised data, its mean and std, and the closed form: right iff every margin > eps x dual norm."""
    rng = np.random.default_rng(classes)
    model = Linear(classes, 27)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
    pixels = rng.uniform(0.3, 0.7, (n, 3, 3, 3))
    inputs = ((pixels - mean[:, None, None]) / std[:, None, None]).astype(np.float32)
    logits = model(torch.tensor(inputs)).detach().double().numpy()
    labels = logits.argmax(1)
    labels[:2] = (labels[:2] + 1) % classes
    weight = model.map.weight.detach().double().numpy().reshape(classes, 3, 3, 3) / std[:, None, None]

    def truth(eps: float, norm: str) -> np.ndarray:
        right = []
        for z, label in zip(logits, labels):
            ok = True
            for other in range(classes):
                difference = (weight[label] - weight[other]).ravel()
                dual = np.abs(difference).sum() if norm == "linf" else np.sqrt((difference**2).sum())
                ok = ok and (other == label or z[label] - z[other] > eps * dual)
            right.append(ok)
        return np.array(right)

    data = datasets.Dataset.from_dict({"pixel_values": inputs, "label": labels}).with_format("torch")
    return model, data, dict(image_mean=mean.tolist(), image_std=std.tolist()), truth


def fitted(model: nn.Module, steps: int = 60) -> nn.Module:
    """The toy model after some steps on its blobs, so that the attacks have something to break."""
    batch = images(96, seed=1, noisy=0.0)[:]
    x, y = batch["pixel_values"], batch["labels"]
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()
