"""Class graphs, covers and colourings against brute force on small sets."""

from __future__ import annotations

import itertools

import networkx
import numpy as np
import pytest
from helpers.tables import every_row
from scipy import sparse

from robust_trainer.corruptions.crafted import class_graph as rooms
from robust_trainer.corruptions.crafted.class_graph import class_graph, colour, degrees, dominating_order, is_colouring, usual_gamma

ORDER = {"l1": 1, "l2": 2, "linf": np.inf}


def points(n: int, d: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, d)).astype(np.float32)


def by_pairs(x: np.ndarray, gamma: float, norm: str) -> np.ndarray:
    """Definition 1, one pair after the other."""
    out = np.zeros((len(x), len(x)), dtype=bool)
    for i, j in itertools.combinations(range(len(x)), 2):
        out[i, j] = out[j, i] = np.linalg.norm(x[i].astype(float) - x[j].astype(float), ORDER[norm]) <= gamma
    return out


def random_graph(n: int, share: float, seed: int) -> sparse.csr_array:
    half = np.triu(np.random.default_rng(seed).random((n, n)) < share, 1)
    return sparse.csr_array(half | half.T)


@every_row("norm", list(ORDER))
@every_row("search", ["auto", "exact"])
def test_edges_are_the_pairs_within_gamma(norm, search):
    x = points(130)
    gamma = {"l1": 1.0, "l2": 0.5, "linf": 0.3}[norm]
    wanted = by_pairs(x, gamma, norm)
    found = class_graph(x, gamma, norm, search=search)
    assert found.dtype == bool and 200 < wanted.sum() < 130 * 129
    np.testing.assert_array_equal(found.toarray(), wanted)
    np.testing.assert_array_equal(degrees(found), wanted.sum(1))


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_blocks_do_not_show(norm, monkeypatch):
    x = points(90)
    monkeypatch.setattr(rooms, "_BLOCK", 7)
    gamma = {"l1": 1.0, "l2": 0.5, "linf": 0.3}[norm]
    np.testing.assert_array_equal(class_graph(x, gamma, norm).toarray(), by_pairs(x, gamma, norm))


@every_row("norm", ["l1", "linf"])
@every_row("share", [0.02, 0.5])
def test_coordinates_looked_at_first_do_not_show(norm, share, monkeypatch):
    x = points(90, d=12)
    x[:, :6] *= 0.2  # in the first ones pairs are near each other
    gamma = float(np.quantile(np.linalg.norm(x[:, None] - x[None], ORDER[norm], axis=2), share))
    wanted = by_pairs(x, gamma, norm)
    monkeypatch.setattr(rooms, "_PAIRS", 11)
    for first in (1, 4, 12):
        monkeypatch.setattr(rooms, "_FIRST", first)
        found = class_graph(x, gamma, norm).toarray()
        assert (found != wanted).sum() <= 2  # a pair at gamma itself may round either way


def test_a_pair_at_gamma_is_joined_and_equal_points_are():
    x = np.array([[0.0], [1.0], [1.0], [2.5]], dtype=np.float32)
    for norm in ORDER:
        wanted = [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
        np.testing.assert_array_equal(class_graph(x, 1.0, norm).toarray(), np.array(wanted, dtype=bool))


def test_approximate_search_invents_no_edge_and_misses_few(monkeypatch):
    rng = np.random.default_rng(1)
    centres = rng.random((15, 8)) * 3
    x = (centres[rng.integers(0, 15, 900)] + 0.1 * rng.standard_normal((900, 8))).astype(np.float32)
    monkeypatch.setattr(rooms, "_CELL", 60)
    gamma = usual_gamma(x, "l2", 10)
    exact = class_graph(x, gamma, search="exact").toarray()
    near = class_graph(x, gamma, search="approximate").toarray()
    assert (near == near.T).all() and not near.diagonal().any()
    assert not (near & ~exact).any()
    assert near.sum() > 0.9 * exact.sum()
    again = class_graph(x, gamma, search="approximate").toarray()
    np.testing.assert_array_equal(near, again)
    monkeypatch.setattr(rooms, "_PROBES", 10**6)  # every cell searched: nothing is missed
    np.testing.assert_array_equal(class_graph(x, gamma, search="approximate").toarray(), exact)


def test_large_classes_are_searched_approximately_in_l2_and_exactly_in_the_others(monkeypatch, caplog):
    asked = []
    monkeypatch.setattr(rooms, "_in_cells", lambda *given: asked.append(given) or iter(()))
    monkeypatch.setattr(rooms, "LARGE", 50)
    class_graph(points(49), 0.5)
    assert not asked
    assert not class_graph(points(50), 0.5).nnz and asked
    class_graph(points(50), 0.5, search="exact")
    assert len(asked) == 1 and not caplog.records
    assert class_graph(points(50), 0.5, "linf").nnz and len(asked) == 1 and "50 points" in caplog.text


def test_usual_gamma_gives_half_of_the_points_so_many_neighbours():
    x = points(200)
    for norm, degree in itertools.product(ORDER, (1, 10)):
        gamma = usual_gamma(x, norm, degree, look_at=200)
        has = (by_pairs(x, gamma * (1 + 1e-6), norm).sum(1) >= degree).mean()
        assert 0.5 <= has < 0.56, (norm, degree, has)


def slow_cover(graph: np.ndarray, count: int, ties: np.ndarray) -> list[int]:
    """The rule as it is told: most uncovered points, smallest tie; when nobody covers more, anew."""
    closed, n = graph | np.eye(len(graph), dtype=bool), len(graph)
    order: list[int] = []
    covered = np.zeros(n, dtype=bool)
    while len(order) < min(count, n):
        rest = [v for v in range(n) if v not in order]
        gain = {v: int((closed[v] & ~covered).sum()) for v in rest}
        if not max(gain.values()):
            covered[:] = False
            continue
        best = min(rest, key=lambda v: (-gain[v], ties[v]))
        order.append(best)
        covered |= closed[best]
    return order


@every_row("share", [0.0, 0.05, 0.2, 0.6])
def test_cover_is_the_greedy_rule(share):
    for seed in range(6):
        graph = random_graph(24, share, seed)
        ties = np.random.default_rng(seed).permutation(24)
        for count in (1, 5, 24, 30):
            found = dominating_order(graph, count, ties)
            assert found.tolist() == slow_cover(graph.toarray(), count, ties)
            assert len(set(found.tolist())) == min(count, 24)


def test_cover_is_within_the_logarithm_of_the_smallest_dominating_set():
    for seed in range(8):
        graph = random_graph(13, 0.2, seed)
        closed = graph.toarray() | np.eye(13, dtype=bool)
        best = next(k for k in range(1, 14) for s in itertools.combinations(range(13), k) if closed[list(s)].any(0).all())
        order = dominating_order(graph, 13, np.arange(13))
        ours = next(k for k in range(1, 14) if closed[order[:k]].any(0).all())
        assert best <= ours <= best * (np.log(13) + 1)
        for k in (1, 2, 3):  # of the largest cover by k points at least 1 - 1/e
            most = max(closed[list(s)].any(0).sum() for s in itertools.combinations(range(13), k))
            assert closed[order[:k]].any(0).sum() >= (1 - 1 / np.e) * most


def valid(graph: np.ndarray, colours: tuple[int, ...]) -> bool:
    """No pair at distance 1 or 2 has one colour."""
    two = graph | (graph.astype(int) @ graph.astype(int) > 0)
    return not any(two[i, j] and colours[i] == colours[j] for i, j in itertools.combinations(range(len(graph)), 2))


@every_row("share", [0.0, 0.1, 0.3, 0.9])
def test_colouring_is_networkxs_greedy_one_of_the_squared_graph(share):
    for seed in range(5):
        graph = random_graph(30, share, seed)
        colours = colour(graph)
        one = graph.astype(int).toarray()
        squared = networkx.from_numpy_array((one + one @ one > 0) & ~np.eye(30, dtype=bool))
        order = np.argsort(-degrees(graph), kind="stable").tolist()
        theirs = networkx.greedy_color(squared, strategy=lambda *_, order=order: order)
        assert colours.tolist() == [theirs[v] for v in range(30)]
        assert valid(graph.toarray(), tuple(colours)) and is_colouring(graph, colours)
        assert colours.max() + 1 <= 1 + degrees(graph).max() ** 2


def test_colours_against_the_fewest_possible():
    close = 0
    for seed in range(6):
        graph = random_graph(7, 0.3, seed)
        fewest = next(
            k for k in range(1, 8) if any(valid(graph.toarray(), c) for c in itertools.product(range(k), repeat=7) if c[0] == 0)
        )
        ours = colour(graph).max() + 1
        assert fewest <= ours <= fewest + 1
        close += ours == fewest
    assert close >= 4


def test_a_bad_colouring_is_told():
    path = sparse.csr_array(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=bool))
    assert is_colouring(path, np.array([0, 1, 2]))
    assert not is_colouring(path, np.array([0, 1, 0]))  # second neighbours
    assert not is_colouring(path, np.array([0, 0, 1]))  # neighbours
    assert is_colouring(sparse.csr_array(np.zeros((3, 3), dtype=bool)), np.zeros(3, dtype=int))


@every_row(
    "settings, told",
    [
        ({"gamma": 0.0}, "gamma=0.0"), ({"gamma": float("nan")}, "gamma=nan"), ({"gamma": True}, "gamma=True"),
        ({"gamma": "1"}, "gamma='1'"), ({"gamma": 1.0, "norm": "l3"}, "norm='l3'"),
        ({"gamma": 1.0, "search": "fast"}, "search='fast'"), ({"gamma": 1.0, "norm": "l1", "search": "approximate"}, "norm='l1'"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(settings, told):
    with pytest.raises(ValueError, match=told) as error:
        class_graph(points(10), **settings)
    assert "\n" not in str(error.value)


def test_a_graph_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(rooms, "MOST_EDGES", 100)
    for norm, search in (*itertools.product(ORDER, ("exact",)), ("l2", "approximate")):
        with pytest.raises(ValueError, match="joins more than"):
            class_graph(points(60), 9.0, norm, search=search)
