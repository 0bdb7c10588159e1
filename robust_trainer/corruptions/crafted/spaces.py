"""Where a class graph or a Gaussian lives: pixels, principal components, the features of a trained network, or two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn

from ...evaluation.boundary_paths import check_classes
from ...models.pixel_model import frozen_copy, pixel_model
from ...models.pixel_source import PixelSource, inputs, last_features
from .class_graph import check_graph, class_graph, usual_gamma
from .plan import FlipPlan

BOTH = "input-and-features"
SPACES = ("input", "pca", "features", BOTH)


def gammas_of(gamma: Any, space: str, norm: str, search: str) -> tuple[Any, ...]:
    """Returns one gamma per graph of the space, each a number or None.

    Args:
        gamma: None, a number, or one for each graph.
        space: one of SPACES.
        norm: of the graphs.
        search: of the graphs.

    Raises:
        ValueError: for settings out of range.
    """
    if space not in SPACES:
        raise ValueError(f"space={space!r} is unknown: choose one of {', '.join(SPACES)}.")
    graphs = 2 if space == BOTH else 1
    gammas = (gamma,) * graphs if gamma is None else tuple(gamma) if isinstance(gamma, Sequence) else (gamma,)
    if len(gammas) != graphs:
        raise ValueError(f"gamma={gamma!r} but space={space!r} has {graphs} class graph(s): give one gamma for each.")
    for value in gammas:
        check_graph(value, norm, search)
    return gammas


def graph_of(points: np.ndarray, gamma: float | None, norm: str, degree: int, search: str, plan: FlipPlan, rows: np.ndarray) -> Any:
    """Returns the class graph of one class.

    Args:
        points: of its rows, (n, d).
        gamma: distance, or None: the usual one.
        norm: l1, l2 or linf.
        degree: of the usual gamma, >= 1.
        search: of `class_graph`.
        plan: of the data set.
        rows: positions in the data set (n,).

    Raises:
        ValueError: where it has no edge.
    """
    if not isinstance(degree, int) or isinstance(degree, bool) or degree < 1:
        raise ValueError(f"degree={degree!r} must be a whole number of neighbours >= 1: give for instance 10.")
    wide = usual_gamma(points, norm, degree, plan.seed) if gamma is None else gamma
    name = plan.names[plan.labels[rows[0]]]
    if not wide > 0:
        raise ValueError(f"gamma=None: half of class {name} has {degree} equal samples, so that no distance is usual: give gamma.")
    graph = class_graph(points, wide, norm, search=search, seed=plan.seed)
    if not graph.nnz:
        nearest = usual_gamma(points, norm, 1, plan.seed)
        raise ValueError(
            f"gamma={wide:g} leaves class {name} without an edge: half of its samples have their nearest neighbour within "
            f"{nearest:.4g} ({norm}); give more."
        )
    return graph


def points_of(
    dataset: datasets.Dataset, plan: FlipPlan, space: str, components: int, model: nn.Module | None, processing_class: Any,
    feature_columns: str | Sequence[str] | None,
) -> list[np.ndarray]:  # fmt: skip
    """Returns the points (N, d) of the space, of both spaces for ``input-and-features``.

    Args:
        dataset: one split.
        plan: of the data set.
        space: one of SPACES.
        components: of ``pca``.
        model: of ``features``.
        processing_class: the model's image processor.
        feature_columns: of ``input``; default the images.

    Raises:
        ValueError: for an unknown space, components out of range, and a missing model.
    """
    if space not in SPACES:
        raise ValueError(f"space={space!r} is unknown: choose one of {', '.join(SPACES)}.")
    seen = [] if space == "features" else [inputs(dataset, feature_columns or plan.image_column, plan.label_column)]
    if space == "pca":
        most = min(seen[0].shape)
        if not isinstance(components, int) or not 1 <= components <= most:
            raise ValueError(f"components={components!r} must be a whole number in [1, {most}]: give for instance {min(32, most)}.")
        return [PCA(components, random_state=plan.seed % 2**32).fit_transform(seen[0]).astype(np.float32)]
    if space in ("features", BOTH):
        if model is None:
            raise ValueError(f"space={space!r} needs a trained model: pass model= and processing_class=.")
        pixels = pixel_model(model, processing_class)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        source = PixelSource.of(dataset, pixels, processing_class, plan.image_column)
        copy = frozen_copy(pixels, device)
        check_classes(copy, source([0]), plan.classes)
        seen.append(last_features(copy, source))
    return seen
