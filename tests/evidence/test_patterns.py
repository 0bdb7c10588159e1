"""A shared pattern: planted directions are found, with who carries them; nothing shared is nothing found."""

import numpy as np
import pytest

from robust_trainer.evidence import patterns
from robust_trainer.evidence.patterns import details, find_pattern, shared_pattern

N, CLASSES, SHAPE = 600, 4, (12, 12, 3)
WIDTH = int(np.prod(SHAPE))


def pictures(seed=0, share=0.15, strength=0.5, trusted_too=0.0):
    """Smooth random images of four classes; those with a bright 3 x 3 patch are distrusted, but for a share; who carries it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, N)
    coarse = rng.uniform(0.2, 0.6, (CLASSES, 3, 3, 3))[labels] + rng.normal(0, 0.1, (N, 3, 3, 3))
    images = np.clip(coarse.repeat(4, 1).repeat(4, 2) + rng.normal(0, 0.03, (N, *SHAPE)), 0, 1)
    carries = rng.random(N) < share
    images[carries, 8:11, 8:11] = np.clip(images[carries, 8:11, 8:11] + strength, 0, 1)
    distrusted = (carries & (rng.random(N) >= trusted_too)) | (rng.random(N) < 0.03)
    return images.reshape(N, WIDTH).astype(np.float32), labels, distrusted, carries


@pytest.mark.parametrize("trusted_too", [0.0, 0.4])
def test_carriers_are_found_though_not_all_are_distrusted(trusted_too):
    vectors, labels, distrusted, carries = pictures(trusted_too=trusted_too)
    found = find_pattern(vectors, labels, distrusted, CLASSES, SHAPE)
    assert found is not None and (found.carries == carries).mean() > 0.99
    difference = found.difference.reshape(SHAPE)
    inside = np.zeros(SHAPE, dtype=bool)
    inside[7:12, 7:12] = True
    assert abs(difference[inside]).max() > 5 * abs(difference[~inside]).max()


def test_levels_and_numbers_say_the_same():
    vectors, labels, distrusted, _ = pictures()
    levels = (255 * vectors).round().astype(np.uint8)
    one, other = (find_pattern(x, labels, distrusted, CLASSES, SHAPE) for x in (vectors, levels))
    assert np.array_equal(one.carries, other.carries)


def test_others_are_held_against_it():
    vectors, labels, distrusted, carries = pictures()
    known = np.arange(N) < 400
    found = find_pattern(vectors[known], labels[known], distrusted[known], CLASSES, SHAPE)
    assert (found.carried_by(vectors[~known], labels[~known]) == carries[~known]).mean() > 0.98
    broken = vectors[~known].copy()
    broken[0] = np.nan
    assert not found.carried_by(broken, labels[~known])[0]


@pytest.mark.parametrize("seed", range(4))
def test_distrust_at_random_shares_nothing(seed):
    vectors, labels, _, _ = pictures(seed, share=0.0)
    distrusted = np.random.default_rng(seed + 10).random(N) < 0.15
    assert find_pattern(vectors, labels, distrusted, CLASSES, SHAPE) is None
    assert shared_pattern(vectors, labels, distrusted, CLASSES) is None


def test_a_pattern_that_is_not_distrusted_is_none():
    vectors, labels, _, _ = pictures()
    assert find_pattern(vectors, labels, np.random.default_rng(3).random(N) < 0.1, CLASSES, SHAPE) is None


@pytest.mark.parametrize("case", ["few distrusted", "few trusted", "constant"])
def test_too_little_tells_nothing(case):
    vectors, labels, distrusted, _ = pictures()
    if case == "few distrusted":
        distrusted = np.arange(N) < patterns.FEWEST - 1
    if case == "few trusted":
        distrusted = np.arange(N) >= patterns.FEWEST - 1
    if case == "constant":
        vectors = np.full_like(vectors, 0.5)
    assert find_pattern(vectors, labels, distrusted, CLASSES, SHAPE) is None


def test_it_is_the_same_each_time_and_in_any_order():
    vectors, labels, distrusted, _ = pictures()
    one, again = (find_pattern(vectors, labels, distrusted, CLASSES, SHAPE, seed=1) for _ in range(2))
    assert np.array_equal(one.carries, again.carries)
    order = np.random.default_rng(2).permutation(N)
    moved = find_pattern(vectors[order], labels[order], distrusted[order], CLASSES, SHAPE, seed=1)
    assert (moved.carries == one.carries[order]).mean() > 0.99


def test_details_are_what_a_flat_image_has_not():
    flat = np.full((2, WIDTH), 0.3, dtype=np.float32)
    assert np.allclose(details(flat, SHAPE), 0, atol=1e-6)
    one = flat.copy().reshape(2, *SHAPE)
    one[0, 5, 5, 1] = 1.0
    changed = np.argwhere(abs(details(one.reshape(2, WIDTH), SHAPE).reshape(2, *SHAPE)) > 1e-6)
    assert set(changed[:, 0]) == {0} and set(changed[:, 3]) == {1} and len(changed) == 9
