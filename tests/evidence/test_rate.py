"""The share of wrong labels from disagreement by margin, on curves with a known rate."""

import numpy as np
import pytest

from robust_trainer.evidence.rate import wrong_label_rate


def draw(rate, n=2000, classes=10, sharp=4.0, seed=0):
    """Margins and disagreements: a model that errs less the larger the margin, on two thirds at 0; a share of labels is wrong."""
    rng = np.random.default_rng(seed)
    margins = np.abs(rng.normal(0, 1, n))
    errs = rng.random(n) < 1.0 / (1.0 + np.exp(sharp * margins - np.log(min(2, classes - 1))))  # of two classes on one half
    wrong = rng.random(n) < rate
    # of the rows on which the model errs, a wrong label is the predicted class by chance
    return margins, np.where(wrong & errs, rng.random(n) > 1.0 / (classes - 1), wrong | errs)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_the_planted_rate_is_found(rate, classes):
    found = [wrong_label_rate(*draw(rate, classes=classes, seed=seed), classes) for seed in range(4)]
    assert abs(np.mean([f.rate for f in found]) - rate) < 0.05
    assert max(abs(f.rate - rate) for f in found) < 0.08
    assert all(0.0 <= f.low <= f.rate <= f.high <= 1.0 and f.n == 2000 for f in found)
    assert sum(f.low - 0.005 <= rate <= f.high + 0.005 for f in found) >= 3  # the grid of rates has steps of 0.01


@pytest.mark.parametrize("sharp", [2.0, 8.0])
def test_without_wrong_labels_it_is_near_zero(sharp):
    """Whether the model knows much or little."""
    assert np.mean([wrong_label_rate(*draw(0.0, sharp=sharp, seed=seed), 10).rate for seed in range(3)]) <= 0.025


def test_it_rises_with_the_planted_rate():
    found = [np.mean([wrong_label_rate(*draw(rate, seed=seed), 10).rate for seed in range(2)]) for rate in (0, 0.2, 0.5)]
    assert (np.diff(found) > 0.05).all(), found


def test_more_rows_narrow_the_interval():
    widths = []
    for n in (200, 2000, 20000):
        found = wrong_label_rate(*draw(0.2, n=n), 10)
        widths.append(found.high - found.low)
    assert widths[0] > widths[1] > widths[2]


def test_the_unit_and_the_order_of_margins_do_not_matter():
    margins, disagrees = draw(0.2)
    order = np.random.default_rng(1).permutation(len(margins))
    one = wrong_label_rate(margins, disagrees, 10)
    for other in (wrong_label_rate(1000 * margins, disagrees, 10), wrong_label_rate(margins[order], disagrees[order], 10)):
        assert (one.rate, one.low, one.high) == pytest.approx((other.rate, other.low, other.high), abs=1e-6)


def test_all_agree_and_all_disagree():
    margins, _ = draw(0.0)
    none = np.zeros(len(margins), dtype=bool)
    assert wrong_label_rate(margins, none, 10).rate < 0.005
    assert wrong_label_rate(margins, ~none, 10).rate > 0.5


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_few_rows_tell_nothing_and_break_nothing(n):
    found = wrong_label_rate(np.linspace(0, 1, n), np.zeros(n, dtype=bool), 3)
    assert found.n == n and 0.0 <= found.low <= found.rate <= found.high <= 1.0
    assert found.rate < 0.3 and found.high - found.low > 0.1


def test_one_class_and_equal_margins():
    assert wrong_label_rate(np.ones(5), np.ones(5, dtype=bool), 1).rate == 0.0
    found = wrong_label_rate(np.ones(500), np.arange(500) % 4 == 0, 10)
    assert 0.0 <= found.low <= found.rate <= found.high <= 1.0 and found.rate <= 0.3
