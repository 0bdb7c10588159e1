"""Near-duplicates: planted copies are found, groups are components, thresholds mean what they say."""

import numpy as np
import pytest
import torch

from robust_trainer.evidence.duplicates import conflicting, find_copies, find_duplicates, outlierness
from robust_trainer.evidence.neighbours import Neighbours, find_neighbours


def rows(n=300, d=16, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def altered(some, size, seed=1):
    return some + size * np.random.default_rng(seed).normal(size=some.shape).astype(np.float32)


def test_exact_and_slightly_altered_copies_are_found_and_nothing_else():
    base = rows()
    data = np.concatenate([base, base[:20], altered(base[20:40], 0.1)])
    group = find_duplicates(find_neighbours(data, 15))
    expected = np.full(340, -1)
    expected[:40] = expected[300:] = np.arange(40)
    assert np.array_equal(group, expected)
    assert (find_duplicates(find_neighbours(base, 15)) == -1).all()


def test_scale_of_the_data_decides_and_not_a_fixed_similarity():
    """Tight clusters, in which all are similar: the copy in a cluster is found, its other rows are none."""
    rng = np.random.default_rng(0)
    tight = np.concatenate([c + 0.1 * rng.normal(size=(50, 16)) for c in rng.normal(size=(4, 16))]).astype(np.float32)
    data = np.concatenate([tight, altered(tight[:1], 0.005)])
    found = find_neighbours(data, 15)
    assert found.similarity[:, 0].min() > 0.98
    assert np.flatnonzero(find_duplicates(found) >= 0).tolist() == [0, 200]
    assert (find_duplicates(found, similarity=0.95) >= 0).all()


@pytest.mark.parametrize("copies", [12, 60])
def test_more_copies_of_a_row_than_neighbours_are_one_group(copies):
    base = rows()
    for size in (0.0, 0.03):
        data = np.concatenate([base, altered(np.repeat(base[:1], copies, axis=0), size)])
        group = find_duplicates(find_neighbours(data, 10))
        assert np.flatnonzero(group >= 0).tolist() == [0, *range(300, 300 + copies)] and set(group[group >= 0]) == {0}


def test_most_rows_are_copies():
    data = np.repeat(rows(20), 30, axis=0)
    assert np.array_equal(find_duplicates(find_neighbours(data, 10)), np.repeat(np.arange(20), 30))


def components(found: Neighbours, least: float) -> list[set[int]]:
    """Groups by hand: sets are merged pair by pair."""
    groups = [{i} for i in range(len(found))]
    for i in range(len(found)):
        for j, s in zip(found.index[i].tolist(), found.similarity[i].tolist(), strict=True):
            a, b = (next(g for g in groups if x in g) for x in (i, j))
            if s >= least and a is not b:
                groups.remove(b)
                a |= b
    return sorted((g for g in groups if len(g) > 1), key=min)


def test_groups_are_the_components_of_similar_pairs():
    found = find_neighbours(rows(150, 3), 6)
    group = find_duplicates(found, similarity=0.99)
    expected = components(found, 0.99)
    assert len(expected) > 5 and max(map(len, expected)) > 2
    assert [set(np.flatnonzero(group == g).tolist()) for g in range(group.max() + 1)] == expected


def test_more_closeness_joins_more():
    found = find_neighbours(rows(200, 4), 12)
    sizes = [(find_duplicates(found, closeness=c) >= 0).sum() for c in (0.1, 0.3, 0.5, 0.8)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_across_splits():
    base, other = rows(), rows(50, seed=5)
    other[:10], other[10:20] = base[100:110], altered(base[200:210], 0.1)
    copies = find_copies(find_neighbours(base, 15, queries=other))
    assert copies.tolist() == [*range(100, 110), *range(200, 210)] + [-1] * 30
    assert find_copies(find_neighbours(base, 15, queries=other), similarity=0.99999)[:12].tolist() == [*range(100, 110), -1, -1]


def test_conflicting_labels():
    group = np.array([0, 0, 1, 1, -1, -1, 2, 2, 2])
    labels = np.array([3, 3, 3, 4, 1, 2, 5, 5, 0])
    expected = [False, False, True, True, False, False, True, True, True]
    assert conflicting(group, labels).tolist() == expected
    assert conflicting(group, np.array(list("ccabxyddz"))).tolist() == [False, False, True, True, False, False, True, True, True]
    assert not conflicting(np.full(3, -1), [0, 1, 2]).any() and not len(conflicting(np.zeros(0, int), []))


def test_outliers_lie_farthest():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16))
    data = np.concatenate([centres[i % 3] + 0.2 * rng.normal(size=(1, 16)) for i in range(300)] + [rng.normal(size=(5, 16))])
    found = find_neighbours(data, 10)
    share = outlierness(found)
    assert set(np.argsort(share)[-5:]) == set(range(300, 305))
    far = -found.similarity[:, -1].numpy()
    assert np.allclose(share, [(far < f).mean() for f in far]) and share.min() == 0
    strange = find_neighbours(data, 10, queries=rng.normal(size=(7, 16)))
    assert (outlierness(strange, reference=found) > 0.97).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_rows(n):
    found = find_neighbours(rows(n), 10)
    assert (find_duplicates(found) == -1).all() and outlierness(found).shape == (n,)
    twice = find_neighbours(np.concatenate([rows(3), rows(3)]), 10)
    assert find_duplicates(twice).tolist() == [0, 1, 2, 0, 1, 2]


def test_rows_without_a_direction_are_nobodys_copies():
    data = np.concatenate([rows(40), -rows(40), np.zeros((3, 16), np.float32)])
    assert (find_duplicates(find_neighbours(data, 12))[-3:] == -1).all()


FOUND = Neighbours(torch.tensor([[1], [0]]), torch.ones(2, 1), 2, True)
ASKED = Neighbours(torch.tensor([[1], [0]]), torch.ones(2, 1), 2, False)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: find_duplicates(FOUND, closeness=0), "closeness=0, expected a number > 0"),
        (lambda: find_duplicates(FOUND, closeness=float("nan")), "closeness=nan"),
        (lambda: find_duplicates(FOUND, similarity=1.5), "similarity=1.5, expected a cosine similarity"),
        (lambda: find_duplicates(ASKED), "neighbours among other rows"),
        (lambda: find_copies(FOUND), "neighbours among the rows themselves"),
        (lambda: conflicting(np.zeros(3, int), [0, 1]), r"labels are of shape \(2,\), expected \(3,\)"),
        (lambda: outlierness(FOUND, reference=find_neighbours(rows(5), 2)), "reference holds 2 neighbours of each row, expected 1"),
    ],
)
def test_errors_are_one_line(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
