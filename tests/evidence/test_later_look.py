"""The share of wrong labels at a later look: between both looks', nearer to the surer one, and nearer to the truth."""

import numpy as np
import pytest
import torch
from helpers.warped import warped_digits

from robust_trainer.evidence.label_model import rate_of
from robust_trainer.evidence.later_look import refined_rate, weighted_mean
from robust_trainer.evidence.neighbours import normalise
from robust_trainer.evidence.ridge import LeaveOneOutRidge
from robust_trainer.selection.noise_rate import RateEstimate

CLASSES = 5


def noisy(rate, n=600, seed=0, apart=1.6):
    """Features in clusters (N, 12) and given labels (N,), some of which are another class's."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, n)
    wrong = rng.random(n) < rate
    labels = np.where(wrong, (truth + rng.integers(1, CLASSES, n)) % CLASSES, truth)
    features = apart * rng.normal(0, 1, (CLASSES, 12))[truth] + rng.normal(0, 1, (n, 12))
    return torch.from_numpy(features).float(), torch.from_numpy(labels), torch.zeros(n, dtype=torch.bool)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4])
def test_an_unsure_first_rate_comes_nearer_to_the_truth(rate):
    for seed in range(3):
        unsure = RateEstimate(rate + 0.12, rate, rate + 0.3, 600)
        found = refined_rate(unsure, 0.0, *noisy(rate, seed=seed)[:2], CLASSES, torch.zeros(600, dtype=torch.bool))
        assert abs(found.rate - rate) < 0.06 and found.high - found.low < 0.3 and found.low <= found.rate <= found.high


def test_a_sure_first_rate_stays():
    features, labels, none = noisy(0.3)
    sure = RateEstimate(0.1, 0.099, 0.101, 600)
    assert refined_rate(sure, 0.0, features, labels, CLASSES, none).rate == pytest.approx(0.1, abs=0.01)


def test_a_look_that_predicts_fewer_labels_does_not_count():
    features, labels, none = noisy(0.3)
    before = RateEstimate(0.5, 0.3, 0.7, 600)
    assert refined_rate(before, 0.9, features, labels, CLASSES, none) == before
    assert refined_rate(before, 0.5, features, labels, CLASSES, none).rate < 0.45


@pytest.mark.parametrize("ends", [(0.0, 0.0, 0.0, 0.2, 0.1, 0.3), (0.3, 0.1, 0.5, 0.4, 0.35, 0.45), (0.2, 0.2, 0.2, 0.2, 0.2, 0.2)])
def test_the_mean_is_between_both_and_nearer_to_the_narrower(ends):
    one, other = RateEstimate(*ends[:3], 50), RateEstimate(*ends[3:], 50)
    mean, again = weighted_mean(one, other), weighted_mean(other, one)
    for end in ("rate", "low", "high"):
        low, high = sorted((getattr(one, end), getattr(other, end)))
        assert low <= getattr(mean, end) <= high and getattr(mean, end) == pytest.approx(getattr(again, end))
    narrower = min(one, other, key=lambda r: r.high - r.low)
    assert abs(mean.rate - narrower.rate) <= abs(one.rate - other.rate) / 2 + 1e-12


def test_equally_sure_looks_count_alike():
    mean = weighted_mean(RateEstimate(0.2, 0.1, 0.3, 9), RateEstimate(0.4, 0.3, 0.5, 9))
    assert (mean.rate, mean.low, mean.high) == pytest.approx((0.3, 0.2, 0.4))


def test_rows_with_a_pattern_do_not_count():
    features, labels, carriers = noisy(0.2)
    carriers[:200] = True
    before = RateEstimate(0.2, 0.1, 0.3, 400)
    found = refined_rate(before, 0.0, features, labels, CLASSES, carriers)
    labels[:200] = (labels[:200] + 1) % CLASSES
    features[:200] *= -3.0
    assert refined_rate(before, 0.0, features, labels, CLASSES, carriers) == found
    ridge = LeaveOneOutRidge(normalise(features[200:]))
    targets = torch.nn.functional.one_hot(labels[200:], CLASSES).float()
    alone = rate_of(ridge.left_out(targets, ridge.best_penalty(targets)), labels[200:], CLASSES)
    assert found == weighted_mean(before, alone)
    carriers[:] = True  # nothing is left to tell
    assert refined_rate(before, 0.0, features, labels, CLASSES, carriers) == before


def test_the_rows_order_and_the_features_scale_do_not_matter():
    features, labels, none = noisy(0.3)
    before, order = RateEstimate(0.2, 0.0, 0.4, 600), torch.randperm(600, generator=torch.Generator().manual_seed(0))
    one = refined_rate(before, 0.0, features, labels, CLASSES, none)
    for rows, scale in ((order, 1.0), (torch.arange(600), 9.0)):
        other = refined_rate(before, 0.0, scale * features[rows], labels[rows], CLASSES, none)
        assert (other.rate, other.low, other.high) == pytest.approx((one.rate, one.low, one.high), abs=2e-3)


def test_a_network_that_learned_wrong_labels_is_not_asked():
    """Its own features agree with those; the rate of a third round of predictions counts where that is seen."""
    pixels, truth, labels = warped_digits(0.1)
    features, given, none = torch.from_numpy(pixels), torch.from_numpy(labels), torch.zeros(len(labels), dtype=torch.bool)
    before = RateEstimate(0.1, 0.08, 0.12, len(labels))
    targets, ridge = torch.nn.functional.one_hot(given, 10).float(), LeaveOneOutRidge(normalise(features))
    assert rate_of(ridge.left_out(targets, ridge.best_penalty(targets)), given, 10).high < before.low
    found = refined_rate(before, 0.0, features, given, 10, none)
    assert found.rate == pytest.approx((labels != truth).mean(), abs=0.02)
