"""What a crafted strategy scores a class's samples by: Gaussian density, and reach in a distance-2 colouring."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from ...data.randomness import sample_keys
from ...evaluation.per_class import broken
from ..poisons.networks import accuracy, fresh_factory, seeded, train_plain
from .class_graph import colour

logger = logging.getLogger(__name__)
_MOST_DIMENSIONS = 8192


def log_density(points: np.ndarray) -> np.ndarray:
    """Returns the log-density (n,) of each point under the Gaussian fitted to them, in nats.

    The covariance is Ledoit and Wolf's shrunk one, which has an inverse where the points are few or some coordinates constant.

    Args:
        points: (n, d).

    Raises:
        ValueError: for more than 8192 coordinates, and for points that are all the same.

    References:
        Crafting sec. 4.6.2; Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
    """
    n, d = points.shape
    if d > _MOST_DIMENSIONS:
        raise ValueError(f"a Gaussian over {d} coordinates needs a covariance of {d} x {d}: choose space='pca' or 'features'.")
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    covariance = LedoitWolf(assume_centered=True).fit(centred).covariance_
    sign, logdet = np.linalg.slogdet(covariance)
    if sign <= 0 or not np.isfinite(logdet):
        raise ValueError(f"a class's {n} points are all the same or nearly so: no Gaussian fits them; leave the class out.")
    distance = (centred * np.linalg.solve(covariance, centred.T).T).sum(axis=1)
    return -0.5 * (distance + logdet + d * np.log(2 * np.pi))


def fit_colours(
    images: Tensor,
    colours: np.ndarray,
    *,
    make: Callable[[int], nn.Module] | None = None,
    epochs: int = 60,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Returns a network (pixels -> logits of the colours) fitted to the colours of one class's images.

    The share of colours that it has learned is logged: the score means little where it is low.

    Args:
        images: (n, C, H, W) in [0, 1].
        colours: (n,), numbers from 0 on.
        make: makes an untrained network of so many outputs; default plain-cnn.
        epochs: of the fit.
        seed: of weights and order.
        device: where it is fitted.

    References:
        Crafting sec. 4.8.
    """
    count = int(colours.max()) + 1
    if make is None:
        names = [str(i) for i in range(max(count, 2))]
        fresh: Callable[[], nn.Module] = fresh_factory("plain-cnn", names, channels=images.shape[1], image_size=images.shape[2])
    else:
        fresh = lambda: make(max(count, 2))  # noqa: E731
    network = seeded(fresh, seed)
    targets = torch.from_numpy(colours)
    train_plain(
        network, images, targets, epochs, weight_decay=0.0, flip=False, device=device, seed=seed, desc=f"fitting {count} colours"
    )
    learned = accuracy(network, images, targets)
    (logger.info if learned >= 0.9 else logger.warning)("min-colouring: %.1f %% of the colours are learned", 100 * learned)
    return network


def reach(
    network: nn.Module,
    images: Tensor,
    graph: sparse.csr_array,
    colours: np.ndarray,
    *,
    eps: float = 0.1,
    steps: int = 20,
    norm: str = "linf",
    batch_size: int = 512,
) -> np.ndarray:
    """Returns for each sample how many of its neighbours a targeted attack moves to the sample's own colour, (n,).

    PGD from each neighbour, without a random start, towards the colour of the sample; a neighbour counts once its prediction is
    that colour.

    Args:
        network: of `fit_colours`.
        images: (n, C, H, W) in [0, 1].
        graph: the class graph (n, n).
        colours: (n,).
        eps: radius in [0, 1] pixels.
        steps: of the attack.
        norm: of the ball.
        batch_size: pairs at once.

    References:
        Crafting sec. 4.8.
    """
    device = next(network.parameters()).device
    sample = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    neighbour = graph.indices
    hits = np.zeros(graph.shape[0], dtype=np.int64)
    size = 2.5 * eps / steps
    for part in tqdm(list(torch.arange(len(sample)).split(batch_size)), desc="attacks between neighbours"):
        rows = part.numpy()
        x = images[torch.from_numpy(neighbour[rows]).long()].to(device)
        target = torch.from_numpy(colours[sample[rows]]).to(device)
        np.add.at(hits, sample[rows], broken(network, x, target, target, eps, norm, steps, size).cpu().numpy())
    return hits


def colouring_scores(
    images: Tensor, graph: sparse.csr_array, seed: int, device: torch.device | str = "cpu", epochs: int = 60, eps: float = 0.1,
    steps: int = 20, make: Callable[[int], nn.Module] | None = None,
) -> np.ndarray:  # fmt: skip
    """Returns `reach` (n,) on a distance-2 colouring of the graph that a fresh network was fitted to.

    The colours are permuted by the seed, so that a number says nothing of a point's degree.

    Args:
        images: (n, C, H, W) in [0, 1].
        graph: the class graph (n, n).
        seed: of the permutation and the network.
        device: where the network is.
        epochs: of `fit_colours`.
        eps: of `reach`.
        steps: of `reach`.
        make: of `fit_colours`.
    """
    colours = colour(graph)
    shuffled = np.argsort(sample_keys(seed, np.arange(int(colours.max()) + 1)))
    colours = shuffled[colours].astype(np.int64)
    network = fit_colours(images, colours, make=make, epochs=epochs, seed=seed, device=device)
    return reach(network.requires_grad_(False), images, graph, colours, eps=eps, steps=steps)
