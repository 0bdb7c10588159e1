"""Crafted label noise: every strategy against its rule written out, the laws of the budget, and one-line errors."""

from __future__ import annotations

import inspect
import itertools
import logging

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from helpers.tables import every_row
from PIL import Image as Pillow
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from torch import nn

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.corruptions import CRAFTED, corrupt_labels, craft_labels
from robust_trainer.corruptions.crafted import spaces as spaces
from robust_trainer.corruptions.crafted.class_graph import class_graph, colour, is_colouring, usual_gamma
from robust_trainer.corruptions.crafted.plan import Flips, rank_in_range
from robust_trainer.corruptions.crafted.scores import colouring_scores, fit_colours, log_density, reach
from robust_trainer.data.label_rules import class_targets
from robust_trainer.data.pixels import read_pixels
from robust_trainer.data.preprocess import ImageTransform
from robust_trainer.evaluation.boundary_paths import path_lengths
from robust_trainer.models.zoo import build_model

PIXELS = {"image_mean": [0.0], "image_std": [1.0]}
SIZES = [30, 50, 40]


class Net(nn.Module):
    """Grey 6 x 6 pixels to logits; ``head`` takes 8 features."""

    def __init__(self, classes: int = 3):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Linear(36, 8), nn.Linear(8, classes)

    def forward(self, pixel_values):
        return self.head(self.body(pixel_values.flatten(1) - 0.5).tanh())


class Plain:
    """An image processor that only scales to [0, 1]."""

    do_rescale, do_normalize, image_mean, image_std = True, False, None, None

    def __call__(self, images, return_tensors):
        grey = np.stack([np.asarray(i.convert("L")) for i in images])
        return {"pixel_values": torch.tensor(grey, dtype=torch.float32).unsqueeze(1) / 255}


def pictures(seed: int = 0, sizes: list[int] = SIZES) -> Dataset:
    """Grey 6 x 6 pictures in a shuffled order, each class around a picture of its own."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = rng.integers(60, 196, (len(sizes), 6, 6))
    levels = np.clip(centres[labels] + rng.normal(0, 25, (len(labels), 6, 6)), 0, 255).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[f"c{i}" for i in range(len(sizes))])})
    return Dataset.from_dict({"image": [Pillow.fromarray(x) for x in levels], "label": labels.tolist()}, features=features)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return pictures()


@pytest.fixture(scope="module")
def paths(data):
    return path_lengths(Net(), data, target="cyclic", step_size=0.02, **PIXELS)


def needs(name: str, paths) -> dict:
    return {"adversarial-path": {"paths": paths}, "min-colouring": {"epochs": 2, "steps": 3}}.get(name, {})


def flipped(noisy: Dataset) -> np.ndarray:
    return np.flatnonzero(noisy["is_corrupted"][:])


# ---- what every strategy shares -----------------------------------------------------------------------------------------


@every_row("name", list(CRAFTED))
def test_budget_targets_and_columns(name, data, paths):
    given = needs(name, paths)
    labels = np.asarray(data["label"][:])
    noisy = craft_labels(data, name, rate=0.1, seed=4, **given)
    new = np.asarray(noisy["label"][:])
    assert noisy["clean_label"][:] == labels.tolist() and noisy.features["label"] == data.features["label"]
    np.testing.assert_array_equal(np.asarray(noisy["is_corrupted"][:]), new != labels)
    assert (new != labels).sum() == 12  # of 120, split 3 to 5 to 4
    assert np.bincount(labels[new != labels]).tolist() == [3, 5, 4]
    assert (new[new != labels] == (labels[new != labels] + 1) % 3).all()
    assert [np.asarray(a).tolist() for a in noisy["image"][:3]] == [np.asarray(a).tolist() for a in data["image"][:3]]
    again = craft_labels(data, name, rate=0.1, seed=4, **given)
    assert again["label"][:] == noisy["label"][:]
    assert not len(flipped(craft_labels(data, name, rate=0.0, **given)))
    one = craft_labels(data, name, budget=7, source=1, target=0, **given)
    assert (labels[flipped(one)] == 1).all() and len(flipped(one)) == 7
    assert (np.asarray(one["label"][:])[flipped(one)] == 0).all()
    two = craft_labels(data, name, budget=7, target=0, **given)  # class 0 has the target already
    assert set(labels[flipped(two)]) == {1, 2} and len(flipped(two)) == 7


@every_row("name", list(CRAFTED))
def test_extra_class_gets_a_name(name, data, paths):
    noisy = craft_labels(data, name, budget=6, target="extra", **needs(name, paths))
    assert noisy.features["label"].names == ["c0", "c1", "c2", "extra"]
    assert noisy.features["clean_label"] == data.features["label"]
    assert set(np.asarray(noisy["label"][:])[flipped(noisy)]) == {3} and len(flipped(noisy)) == 6


def test_every_strategy_has_the_interface_of_the_random_generators(data):
    shared = {"rate", "seed", "label_column", "num_classes", "num_proc"}
    assert shared <= set(inspect.signature(corrupt_labels).parameters) and shared <= set(Flips.__annotations__)
    for function in CRAFTED.values():
        first, *rest = inspect.signature(function).parameters.values()
        assert first.name == "dataset" and all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in rest)
        assert all(p.default is not p.empty for p in rest if p.kind is p.KEYWORD_ONLY)


def test_random_is_the_pairwise_flip_of_the_random_generators(data):
    for seed, rate in itertools.product((0, 3), (0.05, 0.3)):
        ours = craft_labels(data, "random", rate=rate, seed=seed)
        theirs = corrupt_labels(data, "pairflip", rate=rate, seed=seed, stratified=True)
        assert ours["label"][:] == theirs["label"][:]
    one, two = (flipped(craft_labels(data, "random", budget=9, seed=s)).tolist() for s in (1, 2))
    assert one != two
    few, many = (set(flipped(craft_labels(data, "random", budget=b, source=1))) for b in (5, 20))
    assert few < many


def test_a_second_call_keeps_the_first_truth(data):
    once = craft_labels(data, "random", budget=10)
    twice = craft_labels(once, "random", budget=10, seed=1)
    assert twice["clean_label"][:] == data["label"][:] and len(flipped(twice)) > 10


def test_rates_are_logged(data, caplog):
    with caplog.at_level(logging.INFO):
        craft_labels(data, "class-graph-greedy", rate=0.1)
    assert "craft_labels class-graph-greedy in input: nominal rate 0.1000, realised 0.1000 (12 of 120" in caplog.text


def test_ranges_of_scores():
    scores, keys = np.array([5.0, 1.0, 3.0, 3.0, 2.0, 9.0, 7.0, 8.0, 4.0, 6.0]), np.arange(10)[::-1]
    assert rank_in_range(scores, keys, None).tolist() == [5, 7, 6, 9, 0, 8, 3, 2, 4, 1]
    assert sorted(rank_in_range(scores, keys, (0.0, 0.2))) == [1, 4]
    assert rank_in_range(scores, keys, (0.8, 1.0)).tolist() == [7, 5]  # by keys
    for parts in (2, 5, 10):
        found = [rank_in_range(scores, keys, (i / parts, (i + 1) / parts)) for i in range(parts)]
        assert sorted(np.concatenate(found)) == list(range(10))
        assert all(len(f) == 10 / parts for f in found)
    for wrong in ((0.5, 0.5), (-0.1, 1), (0, 1.1), (0.5,), 3, "ab", (0.9, 0.1)):
        with pytest.raises(ValueError, match="quantiles="):
            rank_in_range(scores, keys, wrong)


def test_targets():
    assert class_targets("cyclic", 3).tolist() == [1, 2, 0]
    assert class_targets("extra", 3).tolist() == [3, 3, 3]
    assert class_targets(2, 3).tolist() == [2, 2, 2] == class_targets(np.int64(2), 3).tolist()
    assert class_targets(lambda labels, n: (labels + 2) % n, 3).tolist() == [2, 0, 1]


# ---- the strategies -----------------------------------------------------------------------------------------------------


def in_space(data, space):
    images, labels = read_pixels(data)
    flat = images.flatten(1).numpy()
    if space == "features":
        with torch.no_grad():
            flat = (Net().body(torch.from_numpy(flat) - 0.5).tanh()).numpy()
    if space == "pca":
        centred = flat.astype(float) - flat.mean(0)
        flat = (centred @ np.linalg.svd(centred, full_matrices=False)[2][:4].T).astype(np.float32)
    return flat, labels.numpy()


@every_row("norm", ["l2", "linf"])
@every_row("space", ["input", "pca", "features"])
def test_greedy_takes_the_highest_degrees(space, norm, data):
    points, labels = in_space(data, space)
    gamma = float(np.median([usual_gamma(points[labels == c], norm, 6) for c in range(3)]))
    settings = {"space": space, "norm": norm, "gamma": gamma, **({"components": 4} if space == "pca" else {})}
    settings |= {"model": Net(), "processing_class": Plain()} if space == "features" else {}
    found = flipped(craft_labels(data, "class-graph-greedy", rate=0.1, **settings))
    for c, count in enumerate((3, 5, 4)):
        rows = np.flatnonzero(labels == c)
        away = np.linalg.norm(points[rows][:, None].astype(float) - points[rows][None], np.inf if norm == "linf" else 2, axis=2)
        degree = (away <= gamma).sum(1) - 1
        chosen = np.isin(rows, found)
        assert chosen.sum() == count and degree[chosen].min() >= degree[~chosen].max()
        assert len(set(degree.tolist())) > 4
    low = flipped(craft_labels(data, "class-graph-greedy", rate=0.1, quantiles=(0, 0.3), **settings))
    assert not set(low) & set(found)


def test_greedy_in_both_spaces_takes_what_is_first_in_both(data):
    net = {"model": Net(), "processing_class": Plain()}
    first = {}
    for space, given in (("input", {}), ("features", net)):
        made = (craft_labels(data, "class-graph-greedy", budget=b, source=1, space=space, **given) for b in range(1, 31))
        first[space] = [set(flipped(noisy)) for noisy in made]
    common = [a & b for a, b in zip(first["input"], first["features"])]
    for budget in (3, 8):
        found = set(flipped(craft_labels(data, "class-graph-greedy", budget=budget, source=1, space="input-and-features", **net)))
        enough = next(i for i, both in enumerate(common) if len(both) >= budget)
        assert found <= common[enough] and (enough == 0 or common[enough - 1] <= found)


def test_dominating_set_covers_more_than_the_greedy_choice(data):
    points, labels = in_space(data, "input")
    rows = np.flatnonzero(labels == 1)
    graph = class_graph(points[rows], usual_gamma(points[rows], "l2", 10), "l2").toarray() | np.eye(50, dtype=bool)
    covers = {}
    for name in ("class-graph-greedy", "class-graph-dominating-set"):
        chosen = np.isin(rows, flipped(craft_labels(data, name, budget=5, source=1)))
        covers[name] = graph[chosen].any(0).sum()
    assert covers["class-graph-dominating-set"] > covers["class-graph-greedy"]
    net = {"model": Net(), "processing_class": Plain(), "gamma": (1.2, 1.0)}
    both = flipped(craft_labels(data, "class-graph-dominating-set", budget=5, source=1, space="input-and-features", **net))
    features = in_space(data, "features")[0][rows]
    shared = class_graph(points[rows], 1.2).toarray() & class_graph(features, 1.0).toarray() | np.eye(50, dtype=bool)
    assert shared.sum() > 70
    best = shared.sum(1).max()
    assert shared[np.isin(rows, both)].sum(1).max() == best  # the first one covers most


def test_log_density_is_the_gaussian_one():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 5)) @ rng.standard_normal((5, 5)) + 7
    wanted = multivariate_normal(x.mean(0), LedoitWolf().fit(x).covariance_).logpdf(x)
    np.testing.assert_allclose(log_density(x.astype(np.float32)), wanted, atol=1e-4)
    sample = multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x)  # shrinkage is slight where there are many points
    assert np.corrcoef(wanted, sample)[0, 1] > 0.99
    few = log_density(np.hstack([x[:20], np.ones((20, 30))]))  # more coordinates than points, most of them constant
    assert np.isfinite(few).all()
    with pytest.raises(ValueError, match="all the same"):
        log_density(np.ones((5, 3)))
    with pytest.raises(ValueError, match="9000"):
        log_density(np.ones((2, 9000)))


@pytest.mark.parametrize("space", ["input", "pca", "features"])
def test_density_takes_the_densest_of_each_class(space, data):
    points, labels = in_space(data, space)
    settings = {"components": 4} if space == "pca" else {"model": Net(), "processing_class": Plain()} if space == "features" else {}
    found = flipped(craft_labels(data, "gaussian-density", rate=0.1, space=space, **settings))
    thin = flipped(craft_labels(data, "gaussian-density", rate=0.1, space=space, quantiles=(0, 0.2), **settings))
    for c in range(3):
        rows = np.flatnonzero(labels == c)
        density = log_density(points[rows])
        chosen, last = np.isin(rows, found), np.isin(rows, thin)
        assert density[chosen].min() >= density[~chosen].max() - 1e-3
        assert density[last].max() <= np.quantile(density, 0.25)


def test_paths_choose_a_range_of_lengths(data, paths):
    labels = np.asarray(data["label"][:])
    place = {int(row): i for c in range(3) for i, row in enumerate(paths.closest(999, c))}
    size = np.array(SIZES)[labels]
    for low, high in ((0, 0.2), (0.5, 0.9), (0.8, 1.0)):
        found = flipped(craft_labels(data, "adversarial-path", budget=12, paths=paths, quantiles=(low, high), seed=2))
        q = np.array([(place[int(r)] + 0.5) / size[r] for r in found])
        assert ((q >= low) & (q <= high)).all() and len(found) == 12
    far = flipped(craft_labels(data, "adversarial-path", budget=4, source=2, paths=paths, quantiles=None))
    assert set(far) == set(paths.farthest(4, 2))
    # with a model they are measured, towards the label that is given
    own = craft_labels(data, "adversarial-path", budget=12, model=Net(), processing_class=Plain(), step_size=0.02, seed=2)
    same = craft_labels(data, "adversarial-path", budget=12, paths=paths, seed=2)
    assert own["label"][:] == same["label"][:]
    free = craft_labels(data, "adversarial-path", budget=12, model=Net(), processing_class=Plain(), step_size=0.02, seed=2,
                        targeted=False)  # fmt: skip
    assert free["label"][:] != own["label"][:]


class Nearest(nn.Module):
    """Predicts the colour of the nearest of the pictures it holds: what a network that memorised them all would do."""

    def __init__(self, known, colours, count):
        super().__init__()
        self.register_buffer("known", known.flatten(1))
        self.register_buffer("colours", torch.as_tensor(colours))
        self.count, self.weight = count, nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        close = -40 * (pixel_values.flatten(1)[:, None] - self.known[None]).square().sum(2)
        parts = [close.masked_fill(self.colours != c, -1e4).logsumexp(1) for c in range(self.count)]
        return torch.stack(parts, 1) + 0 * self.weight


def test_reach_counts_neighbours_that_an_attack_moves(data):
    images, labels = read_pixels(data)
    own = images[labels == 1]
    graph = class_graph(own.flatten(1).numpy(), usual_gamma(own.flatten(1).numpy(), "linf", 4), "linf")
    colours = colour(graph)
    assert is_colouring(graph, colours)
    network = Nearest(own, colours, int(colours.max()) + 1)
    found = reach(network, own, graph, colours, eps=0.08, steps=10, batch_size=7)
    wanted = np.zeros(len(own), dtype=int)
    dense = graph.toarray()
    for x, u in itertools.product(range(len(own)), repeat=2):
        if not dense[x, u]:
            continue
        image = own[u : u + 1].clone()
        for step in range(11):
            image = image.detach().requires_grad_(True)
            logits = network(image)
            if int(logits.argmax()) == colours[x]:
                wanted[x] += 1
                break
            if step == 10:
                break
            (grad,) = torch.autograd.grad(nn.functional.cross_entropy(logits.double(), torch.tensor([colours[x]])), image)
            image = (image - 0.02 * grad.sign()).clamp(own[u : u + 1] - 0.08, own[u : u + 1] + 0.08).clamp(0, 1)
    assert 0 < wanted.sum() < graph.nnz
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(reach(network, own, graph, colours, eps=0.08, steps=10), wanted)


def test_colours_are_learned_and_their_scores_choose(data, caplog):
    images, labels = read_pixels(data)
    own = images[labels == 0]
    graph = class_graph(own.flatten(1).numpy(), usual_gamma(own.flatten(1).numpy(), "linf", 2), "linf")
    colours = colour(graph)
    with caplog.at_level(logging.INFO):
        network = fit_colours(own, colours, epochs=150)
    assert (network(own).argmax(1).numpy() == colours).mean() > 0.9 and "colours are learned" in caplog.text
    make = lambda count: Net(count)  # noqa: E731
    settings = dict(gamma=usual_gamma(own.flatten(1).numpy(), "linf", 2), epochs=5, steps=4, make=make)
    scores = colouring_scores(own, graph, 3, epochs=5, steps=4, make=make)
    found = flipped(craft_labels(data, "min-colouring", budget=5, source=0, seed=3, **settings))
    chosen = np.isin(np.flatnonzero(labels.numpy() == 0), found)
    assert scores[chosen].min() >= scores[~chosen].max() and scores.max() > 0


def test_numeric_columns_without_images():
    rng = np.random.default_rng(0)
    features = Features({"x": List(Value("float32")), "label": ClassLabel(names=["a", "b"])})
    rows = {"x": rng.normal(0, 1, (60, 3)).tolist(), "label": (np.arange(60) % 2).tolist()}
    data = Dataset.from_dict(rows, features=features)
    for name in ("class-graph-greedy", "class-graph-dominating-set", "gaussian-density"):
        assert len(flipped(craft_labels(data, name, budget=6, feature_columns="x"))) == 6
    assert len(flipped(craft_labels(data, "random", budget=6))) == 6


def test_the_model_is_left_as_it_was(data):
    net = Net().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    craft_labels(data, "class-graph-greedy", budget=5, space="features", model=net, processing_class=Plain())
    assert net.training and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not net.head._forward_hooks and all(p.grad is None for p in net.parameters())


# ---- errors -------------------------------------------------------------------------------------------------------------

NET = {"processing_class": Plain()}
FEATURES, OTHER = {"space": "features", **NET}, "classes but the data set 3"


@every_row(
    "name, settings, told",
    [
        ("greedy", {"rate": 0.1}, "strategy='greedy' is unknown: did you mean 'class-graph-greedy'?"),
        ("radnom", {"rate": 0.1}, "did you mean 'random'?"),
        ("", {"rate": 0.1}, "strategy='' is unknown: choose one of"),
        ("random", {"rate": 0.1, "gamma": 1}, "strategy 'random' takes no 'gamma'"),
        ("random", {}, "give one of them"),
        ("random", {"rate": 0.1, "budget": 3}, "give one of them"),
        ("random", {"rate": 1.0}, "rate=1.0"),
        ("random", {"budget": -1}, "budget=-1"),
        ("random", {"budget": 2.5}, "budget=2.5"),
        ("random", {"budget": 31, "source": 0}, "budget=31 labels but class c0 has 30 samples: give at most so many"),
        ("random", {"rate": 0.9, "source": [0, 1]}, "rate=0.9 is 108 labels but class c0, c1 has 80 samples"),
        ("random", {"budget": 1, "source": 3}, "source=3 holds 3, no class"),
        ("random", {"budget": 1, "target": 1, "source": 1}, "class 1 is the target already"),
        ("random", {"budget": 1, "target": 3}, "target=3"),
        ("random", {"budget": 1, "target": "next"}, "target='next'"),
        ("random", {"budget": 1, "seed": -1}, "seed=-1"),
        ("random", {"budget": 1, "label_column": "y"}, "label_column='y'"),
        ("class-graph-greedy", {"budget": 1, "gamma": 1e-6}, "gamma=1e-06 leaves class c1 without an edge"),
        ("class-graph-dominating-set", {"budget": 1, "gamma": 1e-6, "source": 2}, "gamma=1e-06 leaves class c2 without an edge"),
        ("class-graph-greedy", {"budget": 1, "gamma": -1}, "gamma=-1"),
        ("class-graph-greedy", {"budget": 1, "gamma": (1, 2)}, "has 1 class graph"),
        ("class-graph-greedy", {"budget": 1, "norm": "l0"}, "norm='l0'"),
        ("class-graph-greedy", {"budget": 1, "space": "pixels"}, "space='pixels'"),
        ("class-graph-greedy", {"budget": 1, "space": "features"}, "needs a trained model"),
        ("class-graph-greedy", {"budget": 1, "space": "pca", "components": 99}, "components=99"),
        ("class-graph-greedy", {"budget": 1, "degree": 0}, "degree=0"),
        ("class-graph-greedy", {"budget": 30, "quantiles": (0, 0.1)}, "wanted and 3 to choose from"),
        ("class-graph-greedy", {"budget": 1, "space": "input-and-features", "model": Net(), "quantiles": (0, 1), **NET}, "quantil"),
        ("class-graph-greedy", {"budget": 1, "model": Net(4), **FEATURES}, f"the model has 4 {OTHER}"),
        ("gaussian-density", {"budget": 1, "space": "input-and-features"}, "has no Gaussian"),
        ("gaussian-density", {"budget": 1, "model": Net(2), **FEATURES}, f"the model has 2 {OTHER}"),
        ("adversarial-path", {"budget": 1}, "needs the model"),
        ("adversarial-path", {"budget": 1, "model": Net(5), **NET}, "the model has 5 classes but the data set 3"),
        ("adversarial-path", {"budget": 1, "paths": [1, 2]}, "paths has a list"),
        ("min-colouring", {"budget": 1, "epochs": 1.5}, "epochs=1.5"),
        ("min-colouring", {"budget": 1, "eps": 0}, "eps=0"),
        ("min-colouring", {"budget": 1, "gamma": 1e-6}, "gamma=1e-06 leaves class c1 without an edge"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(name, settings, told, data):
    with pytest.raises(ValueError) as error:
        craft_labels(data, name, **settings)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_two_graphs_without_a_shared_edge_are_one_line(data):
    def closest(space: str, c: int) -> tuple[float, set[int]]:
        points, labels = in_space(data, space)
        own = points[labels == c].astype(float)
        away = np.linalg.norm(own[:, None] - own[None], axis=2) + 9 * np.eye(len(own))
        return away.min() * 1.0001, {int(i) for i in np.unravel_index(away.argmin(), away.shape)}

    found = {c: (closest("input", c), closest("features", c)) for c in range(3)}
    c, ((one, _), (two, _)) = next((c, both) for c, both in found.items() if both[0][1] != both[1][1])
    settings = {"budget": 1, "source": c, "gamma": (one, two), "model": Net(), **NET, "space": "input-and-features"}
    with pytest.raises(ValueError, match=f"no two samples of class c{c} are neighbours in both spaces") as error:
        craft_labels(data, "class-graph-dominating-set", **settings)
    assert "\n" not in str(error.value)


def test_paths_of_another_data_set_are_refused(paths):
    with pytest.raises(ValueError, match="paths has 120 samples and the data set 60 rows"):
        craft_labels(pictures(sizes=[20, 20, 20]), "adversarial-path", budget=1, paths=paths)


def test_equal_points_have_no_usual_gamma():
    features = Features({"x": List(Value("float32")), "label": ClassLabel(names=["a", "b"])})
    data = Dataset.from_dict({"x": [[1.0]] * 40, "label": [0, 1] * 20}, features=features)
    with pytest.raises(ValueError, match="no distance is usual"):
        craft_labels(data, "class-graph-greedy", budget=1, feature_columns="x")
    assert len(flipped(craft_labels(data, "class-graph-greedy", budget=2, feature_columns="x", gamma=1.0))) == 2


def test_an_extra_class_on_a_model_without_room_is_one_line(data, tmp_path):
    noisy = craft_labels(data, "random", budget=6, target="extra")
    args = RobustConfig(output_dir=str(tmp_path), method="prl", remove_unused_columns=False, use_cpu=True, report_to=[],
                        num_train_epochs=1, dataloader_pin_memory=False, disable_tqdm=True)  # fmt: skip

    def trainer(names):
        model, processor = build_model("plain-cnn", names, channels=1, image_size=8)
        rows = noisy.with_transform(ImageTransform(processor, 1))
        return RobustTrainer(model=model, args=args, train_dataset=rows)

    with pytest.raises(ValueError, match="expected \\[0, 3\\)") as error:
        trainer(["c0", "c1", "c2"]).train()
    assert "\n" not in str(error.value)
    trainer(noisy.features["label"].names).train()


def test_the_space_both_is_named_once():
    assert spaces.BOTH in spaces.SPACES and len(spaces.SPACES) == 4
