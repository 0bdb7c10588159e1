"""Exact search against a slow reference; laws of neighbours and of votes; hostile inputs."""

import sys

import numpy as np
import pytest
import torch

from robust_trainer.evidence import approximate, exact, neighbours
from robust_trainer.evidence.neighbours import Neighbours, find_neighbours, normalise
from robust_trainer.evidence.votes import vote


def reference(features, k, queries=None, among=None):
    """Each row's neighbours by a loop over pairs in float64, and a sort by similarity and row number."""
    base = np.asarray(features, dtype=np.float64)
    centre = base.mean(0)
    asked = base if queries is None else np.asarray(queries, dtype=np.float64)
    unit = []
    for rows in (base, asked):
        away = rows - centre
        length = np.linalg.norm(away, axis=1, keepdims=True)
        still = length <= 1e-6 * (np.linalg.norm(rows, axis=1, keepdims=True) + np.linalg.norm(centre))
        unit.append(np.where(still, 0, away / np.where(still, 1, length)).astype(np.float32).astype(np.float64))
    index, similarity = [], []
    for i, row in enumerate(unit[1]):
        pairs = []
        for j, other in enumerate(unit[0]):
            if (queries is None and i == j) or (among is not None and not among[j]):
                continue
            pairs.append((-float(np.float32(np.clip((row * other).sum(), -1, 1))), j))
        pairs.sort()
        index.append([j for _, j in pairs[:k]])
        similarity.append([-s for s, _ in pairs[:k]])
    return torch.tensor(index), torch.tensor(similarity, dtype=torch.float32)


def agree(found: Neighbours, expected) -> None:
    torch.testing.assert_close(found.similarity, expected[1], rtol=0, atol=2e-7)
    assert torch.equal(found.index, expected[0])


def points(n=60, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32) + 3


def with_ties(n=60, seed=0):
    """Corners of a cube, many times each: neighbours of equal similarity everywhere, and rows of no direction."""
    return np.random.default_rng(seed).integers(-1, 2, size=(n, 3)).astype(np.float32)


@pytest.mark.parametrize("rows", [points(), points(9, 2), with_ties(), np.concatenate([points(20, 3), points(20, 3)])])
@pytest.mark.parametrize("k", [1, 4, 19])
def test_exact_search_is_the_slow_loop(rows, k):
    if len(rows) == 60 and rows.shape[1] == 3:
        rows = np.concatenate([rows, -rows])  # the mean is 0 exactly, so that ties stay ties
    found = find_neighbours(rows, k)
    agree(found, reference(rows, k))
    assert found.index.dtype == torch.int64 and found.similarity.dtype == torch.float32
    assert found.searched == len(found) == len(rows) and found.within


@pytest.mark.parametrize("chunk_bytes", [1, 40, 333, 4096, 2**20])
def test_the_size_of_the_chunks_changes_nothing(chunk_bytes):
    n = 15 if chunk_bytes < 100 else 80
    for rows in (points(2 * n), np.concatenate([with_ties(n), -with_ties(n)])):
        whole, parts = find_neighbours(rows, 7), find_neighbours(rows, 7, chunk_bytes=chunk_bytes)
        assert torch.equal(whole.index, parts.index) and torch.equal(whole.similarity, parts.similarity)


def test_many_columns_and_many_copies(monkeypatch):
    """More columns than a tile has, and more equal rows than there are spare candidates."""
    monkeypatch.setattr(exact, "_COLUMNS", 512)
    rows = np.random.default_rng(0).normal(size=(1700, 4)).astype(np.float32)
    rows[::100] = rows[0]
    found = find_neighbours(rows, 5)
    copies = torch.arange(0, 1700, 100)
    for i in (0, 100, 1600):
        assert torch.equal(found.index[i], copies[copies != i][:5])
        torch.testing.assert_close(found.similarity[i], torch.ones(5))
    some = torch.tensor([3, 77, 999, 1699])
    unit = normalise(rows)
    near = unit[some].double() @ unit.double().T
    near[torch.arange(4), some] = -9
    assert torch.equal(found.index[some], near.topk(5).indices)


def test_queries_and_among():
    base, asked = points(40), points(25, seed=1)
    agree(find_neighbours(base, 6, queries=asked), reference(base, 6, asked))
    mask = np.arange(40) % 3 != 0
    agree(find_neighbours(base, 6, among=mask), reference(base, 6, among=mask))
    agree(find_neighbours(base, 6, queries=asked, among=torch.from_numpy(mask)), reference(base, 6, asked, mask))
    same = find_neighbours(base, 1, queries=base)  # as queries, rows find themselves
    assert torch.equal(same.index[:, 0], torch.arange(40)) and not same.within


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_rows_than_neighbours(n):
    found = find_neighbours(points(n), 5)
    assert found.index.shape == (n, n - 1) == found.similarity.shape
    assert all(i not in row for i, row in enumerate(found.index.tolist()))
    assert find_neighbours(points(n), 5, queries=points(4)).index.shape == (4, n)
    assert vote(found, torch.zeros(n, dtype=torch.long), 2).shape == (n, 2)


def test_a_row_that_equals_the_centre_is_similar_to_nothing():
    rows = np.concatenate([points(10), -points(10), np.zeros((2, 5), np.float32)])
    unit = normalise(rows)
    assert torch.equal(unit[-2:], torch.zeros(2, 5))
    torch.testing.assert_close(unit[:-2].norm(dim=1), torch.ones(20))
    found = find_neighbours(rows, 3)
    assert torch.equal(found.similarity[-2:], torch.zeros(2, 3))
    assert torch.equal(vote(found, torch.zeros(22, dtype=torch.long), 2)[-2:], torch.zeros(2, 2))
    alike = np.full((7, 4), 0.1, np.float32)
    assert not normalise(alike).any() and find_neighbours(alike, 2).index[0].tolist() == [1, 2]


def test_number_formats_and_read_only_arrays():
    rows = points(50).astype(np.float16)
    expected = find_neighbours(rows.astype(np.float32), 4)
    frozen = rows.copy()
    frozen.flags.writeable = False
    for given in (rows, frozen, torch.from_numpy(rows), torch.from_numpy(rows).double().requires_grad_(), rows[::-1][::-1]):
        found = find_neighbours(given, 4)
        assert torch.equal(found.index, expected.index) and torch.equal(found.similarity, expected.similarity)
    again = find_neighbours(normalise(rows), 4, normalised=True)
    assert torch.equal(again.index, expected.index) and torch.equal(again.similarity, expected.similarity)


def test_shifting_and_scaling_the_features_changes_nothing():
    rows = points(80).astype(np.float64)
    assert torch.equal(find_neighbours(rows, 5).index, find_neighbours(rows * 37 - 11, 5).index)


@pytest.mark.parametrize("newer", [False, True])
def test_precision_of_the_run_is_left_as_it_was_and_not_used(newer, monkeypatch):
    """As the run says it by torch's older function, or by the newer attributes, which transformers sets for ``tf32=True``."""
    rows = points(300, 64)
    expected = find_neighbours(rows, 5)
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch before 2.9")
    product = torch.backends.mkldnn.matmul
    seen = []
    monkeypatch.setattr(
        neighbours,
        "exact_neighbours",
        lambda *args, real=exact.exact_neighbours: (seen.append(product.fp32_precision), real(*args))[1],
    )
    try:
        if newer:
            torch.backends.fp32_precision = "tf32"
            product.fp32_precision = "bf16"
        else:
            torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = find_neighbours(rows, 5)
        assert seen == ["ieee"] and product.fp32_precision == "bf16"
        assert newer or torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found.index, expected.index) and torch.equal(found.similarity, expected.similarity)


@pytest.mark.parametrize("among", [False, True])
def test_votes_are_the_slow_loop(among):
    rows, labels = points(70), np.random.default_rng(2).integers(0, 4, 70)
    trusted = np.random.default_rng(3).random(70) < 0.5 if among else None
    found = find_neighbours(rows, 9)
    expected = torch.zeros(70, 6)
    for i in range(70):
        for j, s in zip(found.index[i].tolist(), found.similarity[i].tolist(), strict=True):
            if trusted is None or trusted[j]:
                expected[i, labels[j]] += max(s, 0.0)
    total = expected.sum(1, keepdim=True)
    expected = torch.where(total > 0, expected / total.clamp_min(1e-30), 0.0)
    shares = vote(found, labels, 6, trusted)
    torch.testing.assert_close(shares, expected)
    assert not shares[:, 4:].any()  # classes without rows
    torch.testing.assert_close(shares.sum(1), (total[:, 0] > 0).float())


def test_votes_among_nobody_are_zeros_and_labels_that_do_not_count_are_not_read():
    found = find_neighbours(points(10), 3)
    assert not vote(found, np.full(10, -100), 2, np.zeros(10, bool)).any()
    labels = np.r_[np.full(5, -1), np.zeros(5, np.int64)]
    assert set(vote(found, labels, 2, labels >= 0)[:, 0].tolist()) <= {0.0, 1.0}


def test_a_vote_does_not_depend_on_the_order_of_rows_or_the_names_of_classes():
    rows, labels = points(50), np.random.default_rng(1).integers(0, 3, 50)
    order = np.random.default_rng(2).permutation(50)
    shares = vote(find_neighbours(rows, 5), labels, 3)
    moved = vote(find_neighbours(rows[order], 5), (labels[order] + 1) % 3, 3)
    torch.testing.assert_close(moved, shares[order].roll(1, 1))


BAD = np.where(np.arange(50).reshape(10, 5) == 17, np.nan, 1.0)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: find_neighbours(BAD, 2), "features: row 3 holds NaN or infinity"),
        (lambda: find_neighbours(points(10), 2, queries=BAD), "queries: row 3 holds NaN"),
        (lambda: find_neighbours(np.full((3, 2), 1e300), 2), "row 0 holds NaN or infinity"),
        (lambda: find_neighbours(np.zeros(5), 2), r"of shape \(5,\), expected \(rows, features\)"),
        (lambda: find_neighbours(np.zeros((0, 5)), 2), r"of shape \(0, 5\)"),
        (lambda: find_neighbours([[1.0, 2.0]], 2), "of type list"),
        (lambda: find_neighbours(np.array([["a"]]), 2), "dtype <U1"),
        (lambda: find_neighbours(torch.zeros(3, 2, dtype=torch.complex64), 2), "dtype torch.complex64"),
        (lambda: find_neighbours(points(), 0), "k=0, expected a whole number >= 1"),
        (lambda: find_neighbours(points(), True), "k=True"),
        (lambda: find_neighbours(points(), 2, chunk_bytes=0), "chunk_bytes=0"),
        (lambda: find_neighbours(points(), 2, queries=points(3, 4)), "queries have 4 features and the rows searched 5"),
        (
            lambda: find_neighbours(points(), 2, among=np.ones(3, bool)),
            r"of shape \(3,\), expected bool \(60,\)",
        ),
        (lambda: find_neighbours(points(), 2, among=np.zeros(60, bool)), "among marks no row"),
        (lambda: find_neighbours(points(), 2, normalised=True), "features hold rows longer than 1"),
        (lambda: normalise(points(), centre=torch.zeros(4)), r"centre is of shape \(4,\), expected 5 finite numbers"),
        (lambda: vote(find_neighbours(points(5), 2), [0, 1, 2, 0, 1], 2), r"label 2 of row 2, expected a class number in \[0, 2\)"),
        (lambda: vote(find_neighbours(points(5), 2), [0, 1], 2), r"of shape \(2,\), expected class numbers \(5,\)"),
        (lambda: vote(find_neighbours(points(5), 2), np.zeros(5), 2), "torch.float64"),
        (lambda: vote(find_neighbours(points(5), 2), [0] * 5, 0), "classes=0"),
        (lambda: vote(find_neighbours(points(5), 2), [0] * 5, 2, among=[1] * 5), "among is torch.int64"),
    ],
)
def test_errors_are_one_line(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def clustered(n, d, seed=0):
    rng = np.random.default_rng(seed)
    inner = rng.normal(size=(20, 8))[rng.integers(0, 20, n)] + 0.5 * rng.normal(size=(n, 8))
    return (inner @ rng.normal(size=(8, d)) + 0.5 * rng.normal(size=(n, d))).astype(np.float32)


@pytest.mark.parametrize("d", [10, *(pytest.param(d, marks=pytest.mark.slow) for d in (90, 270))])
def test_approximate_search_finds_nearly_all(d):
    """Of rows as they are, and of codes for two and for four features."""
    pytest.importorskip("faiss")
    rows = clustered(5000, d)
    exact, found = find_neighbours(rows, 10, index="exact"), find_neighbours(rows, 10, index="approximate")
    assert (found.similarity >= exact.similarity[:, -1:] - 1e-6).float().mean() > 0.95
    assert (found.index[:, 0] == exact.index[:, 0]).float().mean() > 0.98
    unit = normalise(rows)
    torch.testing.assert_close(found.similarity, torch.einsum("nkd,nd->nk", unit[found.index], unit), rtol=0, atol=1e-6)
    assert (found.similarity.diff(dim=1) <= 0).all()
    assert (found.index != torch.arange(5000)[:, None]).all() and found.index.sort(1)[0].diff(dim=1).min() > 0
    again = find_neighbours(rows, 10, index="approximate", chunk_bytes=10_000)
    assert torch.equal(again.index, found.index) and torch.equal(again.similarity, found.similarity)


def test_approximate_search_among_many_copies_queries_and_trusted_rows():
    """Copies of a row are its neighbours, never the row itself, more of them than there are candidates or not."""
    pytest.importorskip("faiss")
    rows = clustered(6000, 24)
    rows[:5000:50] = rows[0]  # 100 copies
    rows[5000:] = rows[4000:5000]
    found = find_neighbours(rows, 8, index="approximate")
    own = torch.arange(6000)
    assert (found.index != own[:, None]).all()
    torch.testing.assert_close(found.similarity[:5000:50], torch.ones(100, 8))
    assert set(found.index[:5000:50].flatten().tolist()) <= {*range(0, 5000, 50), *range(5000, 6000, 50)}
    single = [i for i in range(4000, 5000) if i % 50]
    assert torch.equal(found.index[single, 0], torch.tensor(single) + 1000)
    trusted = np.arange(6000) < 5000
    among = find_neighbours(rows, 8, among=trusted, index="approximate")
    assert among.index.max() < 5000 and (among.index != own[:, None]).all()
    assert torch.equal(among.index[[i + 1000 for i in single], 0], torch.tensor(single))
    asked = find_neighbours(rows[:5000], 1, queries=rows[5000:], index="approximate")
    assert asked.index.shape == (1000, 1) and not asked.within
    assert torch.equal(asked.index[[i - 4000 for i in single], 0], torch.tensor(single))


def test_rows_for_which_the_index_finds_too_few_are_searched_exactly(monkeypatch):
    rows = clustered(300, 12)

    def sparse_candidates(asked, columns, wanted):
        yield torch.arange(0, 300, 2), torch.arange(wanted).repeat(150, 1)
        yield torch.arange(1, 300, 2), torch.full((150, wanted), -1)

    monkeypatch.setattr(neighbours, "FEWEST", 1)
    monkeypatch.setattr(neighbours, "load_faiss", lambda: None)
    monkeypatch.setattr(approximate, "candidates", sparse_candidates)
    exact, found = find_neighbours(rows, 6), find_neighbours(rows, 6, index="approximate")
    assert torch.equal(found.index[1::2], exact.index[1::2]) and torch.equal(found.similarity[1::2], exact.similarity[1::2])
    assert found.index[::2].max() < 6 + 60


def test_auto_is_exact_for_few_rows_and_says_what_many_need(monkeypatch):
    rows = clustered(5000, 6)
    expected = find_neighbours(rows, 3, index="exact")
    assert torch.equal(find_neighbours(rows, 3).index, expected.index)
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 4999**2)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"pip install 'robust-trainer\[neighbours\]', or index='exact'") as error:
        find_neighbours(rows, 3)
    assert "\n" not in str(error.value)
    assert torch.equal(find_neighbours(rows, 3, index="exact").index, expected.index)
    with pytest.raises(ValueError, match="index='fast', expected one of auto, exact, approximate"):
        find_neighbours(rows, 3, index="fast")
