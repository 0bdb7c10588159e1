"""Crafted label noise: WHICH labels to flip with a given budget.

Every strategy is a function like `corrupt_labels`: a data set in, the data set with ``is_corrupted`` and ``clean_label`` out. A new
one is a function and its row in `CRAFTED`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn

from ...data.pixels import read_pixels
from ...evaluation.boundary_paths import PathLengths, path_lengths
from ...reporting.suggest import did_you_mean
from .class_graph import check_graph, degrees, dominating_order
from .plan import Flips, flip, plan_flips, rank_in_range
from .scores import colouring_scores, log_density
from .spaces import BOTH, gammas_of, graph_of, points_of

#: Of the path lengths of a class: middle to far, where flips were found to hurt most (Crafting figures 15 and 17).
MIDDLE_TO_FAR = (0.5, 0.9)


def random_flips(dataset: datasets.Dataset, **flips: Any) -> datasets.Dataset:
    """Returns the data set with randomly chosen labels flipped: the baseline.

    With ``target="cyclic"`` the same rows as ``corrupt_labels(noise="pairflip", stratified=True)``.

    Args:
        dataset: one split with class labels.
        flips: of `Flips`.
    """
    plan = plan_flips(dataset, **flips)
    return flip(dataset, "random", plan, lambda rows: rows[np.argsort(plan.keys[rows])])


def class_graph_greedy(
    dataset: datasets.Dataset,
    *,
    space: str = "input",
    gamma: float | Sequence[float] | None = None,
    norm: str = "l2",
    degree: int = 10,
    search: str = "auto",
    components: int = 32,
    quantiles: tuple[float, float] | None = None,
    model: nn.Module | None = None,
    processing_class: Any = None,
    feature_columns: str | Sequence[str] | None = None,
    **flips: Any,
) -> datasets.Dataset:
    """Returns the data set with the labels of the samples flipped that have the most neighbours of their class within gamma.

    Args:
        dataset: one split with class labels.
        space: where the class graph lives: ``input`` ([0, 1] pixels, or numeric feature_columns), ``pca`` (its first
            ``components``, of all samples), ``features`` (what the last linear layer of a trained ``model`` takes), or
            ``input-and-features``: the samples that are first in both, those whose worse rank is best (the paper takes b from
            what the first 2b of both have in common).
        gamma: > 0 in the space's unit, two of them for ``input-and-features``; None: half of a class's samples have ``degree``
            neighbours.
        norm: l1, l2 or linf.
        degree: neighbours, >= 1.
        search: as in `class_graph`.
        components: of ``pca``.
        quantiles: (low, high) in [0, 1]: choose at random from that range of the degrees instead of the highest.
        model: of ``features``.
        processing_class: the model's image processor.
        feature_columns: of ``input``; default the images.
        flips: of `Flips`.

    Raises:
        ValueError: for settings out of range, and for a gamma that leaves a class without edges.

    References:
        Crafting sec. 4.1.1 to 4.1.4, 4.6.1 and Algorithm 2.
    """
    plan = plan_flips(dataset, **flips)
    gammas = gammas_of(gamma, space, norm, search)
    points = points_of(dataset, plan, space, components, model, processing_class, feature_columns)

    def choose(rows: np.ndarray) -> np.ndarray:
        counts = [degrees(graph_of(p[rows], g, norm, degree, search, plan, rows)) for p, g in zip(points, gammas)]
        places = [rank_in_range(c, plan.keys[rows], quantiles) for c in counts]
        if len(places) == 1:
            return rows[places[0]]
        ranks = np.empty((2, len(rows)), dtype=int)
        for i, place in enumerate(places):
            ranks[i, place] = np.arange(len(place))
        return rows[np.lexsort((plan.keys[rows], ranks.sum(0), ranks.max(0)))]

    if space == BOTH and quantiles is not None:
        raise ValueError(f"quantiles={quantiles!r} does not go with space={BOTH!r}, which takes the highest: leave it out.")
    return flip(dataset, f"class-graph-greedy in {space}", plan, choose)


def class_graph_dominating_set(
    dataset: datasets.Dataset,
    *,
    space: str = "input",
    gamma: float | Sequence[float] | None = None,
    norm: str = "l2",
    degree: int = 10,
    search: str = "auto",
    components: int = 32,
    model: nn.Module | None = None,
    processing_class: Any = None,
    feature_columns: str | Sequence[str] | None = None,
    **flips: Any,
) -> datasets.Dataset:
    """Returns the data set with the labels of samples flipped whose neighbourhoods cover as much of their class as possible.

    The greedy approximation of the smallest dominating set (`dominating_order`).

    Args:
        dataset: one split with class labels.
        space: where the class graph lives: ``input`` ([0, 1] pixels, or numeric feature_columns), ``pca`` (its first
            ``components``, of all samples), ``features`` (what the last linear layer of a trained ``model`` takes), or
            ``input-and-features``: neighbours are those in both.
        gamma: > 0 in the space's unit, two of them for ``input-and-features``; None: half of a class's samples have ``degree``
            neighbours.
        norm: l1, l2 or linf.
        degree: neighbours, >= 1.
        search: as in `class_graph`.
        components: of ``pca``.
        model: of ``features``.
        processing_class: the model's image processor.
        feature_columns: of ``input``; default the images.
        flips: of `Flips`.

    Raises:
        ValueError: for settings out of range, and for a gamma that leaves a class without edges.

    References:
        Crafting sec. 4.1.1 and Algorithm 3.
    """
    plan = plan_flips(dataset, **flips)
    gammas = gammas_of(gamma, space, norm, search)
    points = points_of(dataset, plan, space, components, model, processing_class, feature_columns)

    def choose(rows: np.ndarray) -> np.ndarray:
        graphs = [graph_of(p[rows], g, norm, degree, search, plan, rows) for p, g in zip(points, gammas)]
        graph = graphs[0] if len(graphs) == 1 else graphs[0].multiply(graphs[1]).tocsr()
        if not graph.nnz:
            name = plan.names[plan.labels[rows[0]]]
            raise ValueError(f"gamma={gamma!r}: no two samples of class {name} are neighbours in both spaces: give larger ones.")
        order = np.argsort(np.argsort(plan.keys[rows]))
        return rows[dominating_order(graph, plan.counts[plan.labels[rows[0]]], order)]

    return flip(dataset, f"class-graph-dominating-set in {space}", plan, choose)


def gaussian_density(
    dataset: datasets.Dataset,
    *,
    space: str = "input",
    quantiles: tuple[float, float] | None = None,
    components: int = 32,
    model: nn.Module | None = None,
    processing_class: Any = None,
    feature_columns: str | Sequence[str] | None = None,
    **flips: Any,
) -> datasets.Dataset:
    """Returns the data set with the labels of the samples flipped that are densest under a Gaussian fitted to their class.

    Args:
        dataset: one split with class labels.
        space: input, pca or features, as in `class_graph_greedy`.
        quantiles: (low, high) in [0, 1]: choose at random from that range of the densities; None: the highest.
        components: of ``pca``.
        model: of ``features``.
        processing_class: the model's image processor.
        feature_columns: of ``input``; default the images.
        flips: of `Flips`.

    Raises:
        ValueError: for settings out of range, and for a class that no Gaussian fits.

    References:
        Crafting sec. 4.6.2 and 4.6.3.
    """
    if space == BOTH:
        raise ValueError(f"space={BOTH!r} has no Gaussian: choose input, pca or features.")
    plan = plan_flips(dataset, **flips)
    (points,) = points_of(dataset, plan, space, components, model, processing_class, feature_columns)

    def choose(rows: np.ndarray) -> np.ndarray:
        return rows[rank_in_range(log_density(points[rows]), plan.keys[rows], quantiles)]

    return flip(dataset, f"gaussian-density in {space}", plan, choose)


def adversarial_path(
    dataset: datasets.Dataset,
    *,
    model: nn.Module | None = None,
    processing_class: Any = None,
    paths: Any = None,
    targeted: bool = True,
    quantiles: tuple[float, float] | None = MIDDLE_TO_FAR,
    step_size: float = 0.01,
    norm: str = "linf",
    max_steps: int = 200,
    batch_size: int = 256,
    folder: str | Path | None = None,
    **flips: Any,
) -> datasets.Dataset:
    """Returns the data set with labels flipped by the length of the path to a decision boundary of a model trained on clean labels.

    Args:
        dataset: one split with class labels.
        model: whose boundary is measured.
        processing_class: the model's image processor.
        paths: `PathLengths` computed before, instead of the model.
        targeted: the path to the class that the label is flipped to (an extra class has no boundary, so there the path is
            untargeted).
        quantiles: (low, high) in [0, 1]: chosen at random from that range of a class's path lengths, 0 the shortest; the default is
            middle to far, where the paper found most harm; None: the longest.
        step_size: of `path_lengths`, like all that follow.
        norm: of the steps.
        max_steps: of a path.
        batch_size: images at once.
        folder: where lengths are kept.
        flips: of `Flips`.

    Raises:
        ValueError: for neither model nor paths, and for paths of another data set.

    References:
        Crafting sec. 4.9.2 and 4.10.
    """
    plan = plan_flips(dataset, **flips)
    if paths is None:
        if model is None:
            raise ValueError("adversarial-path needs the model whose boundary is measured: pass model=, or paths=.")
        aim = np.where(plan.targets < plan.classes, plan.targets, -1)
        lengths = path_lengths(
            model, dataset, target=(lambda labels, _: aim[labels]) if targeted and (aim >= 0).all() else None, step_size=step_size,
            norm=norm, max_steps=max_steps, batch_size=batch_size, processing_class=processing_class, folder=folder,
            image_column=plan.image_column, label_column=plan.label_column,
        )  # fmt: skip
    else:
        lengths = paths
    if not isinstance(lengths, PathLengths) or len(lengths) != len(dataset):
        got = f"{len(lengths)} samples" if isinstance(lengths, PathLengths) else f"a {type(lengths).__name__}"
        raise ValueError(f"paths has {got} and the data set {len(dataset)} rows: compute them on this data set.")
    # as much farther as the margin at the start is larger, where the steps are the same
    place = np.empty(len(dataset))
    place[np.lexsort((lengths.margin, lengths.steps))] = np.arange(len(dataset))

    def choose(rows: np.ndarray) -> np.ndarray:
        return rows[rank_in_range(place[rows], plan.keys[rows], quantiles)]

    return flip(dataset, "adversarial-path", plan, choose)


def min_colouring(
    dataset: datasets.Dataset,
    *,
    gamma: float | None = None,
    norm: str = "linf",
    degree: int = 10,
    search: str = "auto",
    epochs: int = 60,
    eps: float = 0.1,
    steps: int = 20,
    make: Callable[[int], nn.Module] | None = None,
    device: torch.device | str | None = None,
    **flips: Any,
) -> datasets.Dataset:
    """Returns the data set with the labels of the samples flipped whose colour is within reach of most of their neighbours.

    The class graph on the pixels is coloured so that neighbours and second neighbours differ, a network is fitted to the colours
    for ``epochs``, and a sample's score is the number of neighbours that a targeted attack (`reach`) moves to its colour.

    Args:
        dataset: one split of images with class labels.
        gamma: > 0 in [0, 1] pixels; None: half of a class's samples have ``degree`` neighbours.
        norm: l1, l2 or linf (the paper's).
        degree: neighbours, >= 1.
        search: as in `class_graph`.
        epochs: in which the network learns the colours, >= 1.
        eps: l_inf radius of the attack in [0, 1] pixels, in (0, 1].
        steps: of the attack, >= 1.
        make: makes a network of so many outputs that takes [0, 1] pixels; default plain-cnn.
        device: default the accelerator, where there is one.
        flips: of `Flips`.

    Raises:
        ValueError: for settings out of range, and for a gamma that leaves a class without edges.

    References:
        Crafting sec. 4.8.
    """
    plan = plan_flips(dataset, **flips)
    check_graph(gamma, norm, search)
    for name, value in (("epochs", epochs), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number >= 1: give for instance 20.")
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps <= 1:
        raise ValueError(f"eps={eps!r} must be in (0, 1], in [0, 1] pixels: give for instance 0.1.")
    images, _ = read_pixels(dataset, plan.image_column, plan.label_column)
    place = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def choose(rows: np.ndarray) -> np.ndarray:
        members = images[torch.from_numpy(rows)]
        graph = graph_of(members.flatten(1).numpy(), gamma, norm, degree, search, plan, rows)
        scores = colouring_scores(members, graph, plan.seed, place, epochs, eps, steps, make)
        return rows[rank_in_range(scores, plan.keys[rows], None)]

    return flip(dataset, "min-colouring", plan, choose)


CRAFTED: Mapping[str, Callable[..., datasets.Dataset]] = {
    "random": random_flips,
    "class-graph-greedy": class_graph_greedy,
    "class-graph-dominating-set": class_graph_dominating_set,
    "gaussian-density": gaussian_density,
    "adversarial-path": adversarial_path,
    "min-colouring": min_colouring,
}


def craft_labels(dataset: datasets.Dataset, strategy: str, **settings: Any) -> datasets.Dataset:
    """Returns the data set with labels flipped by a strategy.

    Args:
        dataset: one split with class labels.
        strategy: a key of `CRAFTED`.
        settings: of its function and of `Flips`.

    Raises:
        ValueError: for an unknown name or setting.
    """
    if strategy not in CRAFTED:
        raise ValueError(f"strategy={strategy!r} is unknown: {did_you_mean(strategy, CRAFTED)}choose one of {', '.join(CRAFTED)}.")
    function = CRAFTED[strategy]
    code = function.__code__
    takes = [*code.co_varnames[1 : 1 + code.co_kwonlyargcount], *Flips.__annotations__]
    wrong = next((name for name in settings if name not in takes), None)
    if wrong is not None:
        raise ValueError(f"strategy {strategy!r} takes no {wrong!r} (got {settings[wrong]!r}); it takes {', '.join(takes)}.")
    return function(dataset, **settings)
