"""The verdict on labels: nothing is doubted without evidence; rates, transitions and triggers as planted in digits."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.warped import warped_digits
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from robust_trainer.corruptions.label_noise.transitions import noise_transition
from robust_trainer.evidence import judge, telling
from robust_trainer.evidence.judge import LabelEvidence, judge_labels, with_earlier

CLASSES, SHAPE = 10, (8, 8, 1)


def fails(*parts):
    """A ValueError of one line that says all of this."""
    return pytest.raises(ValueError, match="^" + "".join(f"(?=.*{re.escape(part)})" for part in parts) + r"[^\n]+$")


def digits(n=900, seed=0):
    """Pixels (n, 64) in [0, 1] and the right classes, int64."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))[:n]
    return (data.data[order] / 16).astype(np.float32), data.target[order].astype(np.int64)


def noisy(truth, noise, rate, seed=0):
    rng = np.random.default_rng(seed)
    transition = noise_transition(noise, CLASSES, rate)
    return np.array([rng.choice(CLASSES, p=transition[c]) for c in truth])


def poisoned(share, target=0, seed=0, n=900, seen=0.2):
    """Digits with a bright 2 x 2 patch in a corner, which are labelled as the target.

    Returns features, which hardly see the corner, as a pretrained network hardly sees a patch; pixels; right and given classes; and
    who carries the patch.
    """
    pixels, truth = digits(n, seed)
    carries = (np.random.default_rng(seed + 1).random(n) < share) & (truth != target)
    patched = pixels.reshape(-1, 8, 8).copy()
    patched[carries, 6:, 6:] = 1.0
    patched = patched.reshape(n, 64)
    return pixels + seen * (patched - pixels), patched, truth, np.where(carries, target, truth), carries


def check_laws(found: LabelEvidence, labels, classes=CLASSES):
    n = len(labels)
    assert len(found) == n and found.wrong.dtype == np.float32 and found.wrong.shape == (n,)
    assert np.isfinite(found.wrong).all() and found.wrong.min() >= 0 and found.wrong.max() <= 1
    assert found.suggested.dtype.kind == "i" and set(np.unique(found.suggested)) <= set(range(classes))
    assert ((found.confidence >= 0) & (found.confidence <= 1 + 1e-6)).all()
    assert found.carriers.dtype == bool and (found.wrong[found.carriers] == 1).all()
    for rate in (found.rate, found.rest):
        assert 0 <= rate.low <= rate.rate <= rate.high <= 1
    assert np.allclose(found.transition.sum(1), 1, atol=1e-4) and (found.transition >= 0).all()
    assert found.told and "\n" not in found.told


def doubts_nobody(found: LabelEvidence, labels):
    assert not found.informative and (found.wrong == 0).all() and (found.suggested == labels).all()
    assert not found.carriers.any() and found.rate.rate == 0 and not found.patterns


@pytest.mark.parametrize("noise,rate", [("symmetric", 0.0), ("symmetric", 0.4), ("pairflip", 0.3)])
def test_planted_noise(noise, rate):
    pixels, truth = digits(1500)
    labels = noisy(truth, noise, rate)
    found, wrong = judge_labels(pixels, labels, CLASSES, inputs=pixels, shape=SHAPE), labels != truth
    check_laws(found, labels)
    assert found.informative and found.neighbours is not None and len(found.neighbours) == len(labels)
    assert not found.carriers.any() and abs(found.rate.rate - wrong.mean()) < 0.06
    if rate:
        assert roc_auc_score(wrong, found.wrong) > 0.95 and (found.suggested[wrong] == truth[wrong]).mean() > 0.85
    assert (found.wrong[~wrong] > 0.5).mean() < 0.02
    planted = np.array([np.bincount(labels[truth == c], minlength=CLASSES) / (truth == c).sum() for c in range(CLASSES)])
    assert abs(found.transition - planted).max() < 0.12


@pytest.mark.parametrize("seed", range(3))
def test_features_that_say_nothing_doubt_nobody(seed):
    pixels, truth = digits(400)
    features = np.random.default_rng(seed).normal(size=(400, 16))
    found = judge_labels(features, noisy(truth, "symmetric", 0.3), CLASSES, inputs=pixels, shape=SHAPE)
    check_laws(found, truth)
    doubts_nobody(found, noisy(truth, "symmetric", 0.3))
    assert "hardly better than chance" in found.told and found.agreement < 0.3


def weak(pixels, dims, spread, seed):
    """A random layer of ReLU units on a few random directions of the pixels, with noise: features that tell few classes apart."""
    rng = np.random.default_rng(seed)
    few = (pixels - pixels.mean(0)) @ rng.normal(size=(pixels.shape[1], dims))
    few = few / few.std(0) + spread * rng.normal(size=few.shape)
    return np.maximum(few @ rng.normal(size=(dims, 32)) + rng.normal(size=32), 0)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("dims,spread,seed", [(2, 0.5, 2), (2, 0.0, 2), (4, 0.5, 1), (2, 0.5, 3)])
def test_features_that_say_little_doubt_nobody(dims, spread, seed, rate):
    """Of right labels such features once held up to 41 % for wrong. What they say is left as an order, below the cut."""
    pixels, truth = digits(1797)
    labels = noisy(truth, "symmetric", rate)
    found = judge_labels(weak(pixels, dims, spread, seed), labels, CLASSES)
    check_laws(found, labels)
    assert not found.informative and "predict too few of the labels" in found.told and found.agreement > found.chance + 0.05
    assert (found.wrong < 0.5).all() and (found.suggested == labels).all() and found.rate.rate == 0
    if rate:
        assert roc_auc_score(labels != truth, found.wrong) > 0.55


def test_carriers_of_a_pattern_are_found_by_features_that_say_little(monkeypatch):
    """They alone are doubted; the rate is their share, or more."""
    features, pixels, _, labels, carries = poisoned(0.1, n=1797)
    monkeypatch.setattr(telling, "TELLING", 1.1)
    found = judge_labels(features, labels, CLASSES, inputs=pixels, shape=SHAPE)
    check_laws(found, labels)
    assert found.informative and (found.carriers == carries).mean() > 0.99 and (found.wrong[~found.carriers] == 0).all()
    share = found.carriers.mean()
    assert found.rate.rate == found.rate.low == pytest.approx(share) and found.rate.high > share and found.rest.rate == 0
    assert (found.suggested[~found.carriers] == labels[~found.carriers]).all() and "Of the other rows: The features" in found.told
    np.testing.assert_array_equal(found.transition, np.eye(CLASSES))  # as of labels that nobody doubts


@pytest.mark.parametrize("case", ["constant", "random labels", "one class", "few rows", "few of a class"])
def test_data_that_say_nothing_doubt_nobody(case):
    pixels, labels = digits(400)
    if case == "constant":
        pixels = np.ones_like(pixels)
    if case == "random labels":
        labels = np.random.default_rng(0).integers(0, CLASSES, 400)
    if case == "one class":
        labels = np.zeros(400, dtype=np.int64)
    if case == "few rows":
        pixels, labels = pixels[:20], labels[:20]
    classes = CLASSES
    if case == "few of a class":
        labels, classes = np.arange(400) // 2 * 2, 400
        labels[::3] += 1
    found = judge_labels(pixels, labels, classes)
    check_laws(found, labels, classes)
    doubts_nobody(found, labels)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25])
def test_a_planted_trigger_is_carried_by_its_carriers_alone(share):
    features, pixels, _, labels, carries = poisoned(share)
    found = judge_labels(features, labels, CLASSES, inputs=pixels, shape=SHAPE)
    check_laws(found, labels)
    assert found.carriers[carries].mean() > 0.98 and found.carriers[~carries].mean() < 0.03 and found.patterns
    assert abs(found.rate.rate - carries.mean()) < 0.03 and found.rest.rate < 0.03
    assert (found.wrong[~carries] > 0.5).mean() < 0.04 and "share a pattern" in found.told


def test_a_trigger_among_wrong_labels():
    features, pixels, truth, labels, carries = poisoned(0.1)
    other = np.random.default_rng(5).random(len(labels)) < 0.2
    labels = np.where(other & ~carries, noisy(truth, "symmetric", 0.9), labels)
    found = judge_labels(features, labels, CLASSES, inputs=pixels, shape=SHAPE)
    assert found.carriers[carries].mean() > 0.95 and found.carriers[~carries].mean() < 0.01
    assert roc_auc_score((labels != truth)[~carries], found.wrong[~carries]) > 0.95
    assert abs(found.rate.rate - (labels != truth).mean()) < 0.06


@pytest.mark.parametrize("seed", range(6))
def test_clean_digits_carry_nothing(seed):
    """Rare strokes are no trigger, though a few hard digits share them."""
    pixels, labels = digits(seed=seed)
    found = judge_labels(pixels, labels, CLASSES, inputs=pixels, shape=SHAPE)
    assert not found.carriers.any() and found.rate.rate < 0.02 and (found.wrong > 0.5).mean() < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_a_clean_long_tail_carries_nothing(seed):
    """Classes of 1 to 20 in size: who is rare is neither a carrier nor doubted at large."""
    pixels, labels = digits(1797, seed)
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(160, 8, CLASSES).astype(int)
    rows = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:size] for c, size in enumerate(sizes)])
    found = judge_labels(pixels[rows], labels[rows], CLASSES, inputs=pixels[rows], shape=SHAPE)
    check_laws(found, labels[rows])
    assert not found.carriers.any() and found.rate.rate < 0.03 and (found.wrong > 0.5).mean() < 0.02


def test_many_rows_are_compared_in_part(monkeypatch):
    """Those that were not are held against what the others share; inputs may come as a reader of row numbers or as levels."""
    features, pixels, _, labels, carries = poisoned(0.15)
    monkeypatch.setattr(judge, "COMPARED", 500)
    asked = []

    def read(rows):
        asked.append(len(rows))
        return pixels[rows]

    ways = [read, (pixels * 255).round().astype(np.uint8)]
    for inputs in ways:
        found = judge_labels(features, labels, CLASSES, inputs=inputs, shape=SHAPE)
        assert found.carriers[carries].mean() > 0.98 and found.carriers[~carries].mean() < 0.01
    assert max(asked) <= 500


def test_inputs_that_cannot_be_read_carry_nothing():
    features, pixels, _, labels, carries = poisoned(0.15)
    broken = pixels.copy()
    broken[::7] = np.nan
    found = judge_labels(features, labels, CLASSES, inputs=lambda rows: broken[rows], shape=SHAPE)
    readable = np.arange(len(labels)) % 7 > 0
    assert not found.carriers[~readable].any() and found.carriers[carries & readable].mean() > 0.98


def test_earlier_carriers_stay_where_none_are_found():
    """As in a later look of a run: where no pattern is found the earlier carriers hold, and the known rate of the others does."""
    features, pixels, _, labels, carries = poisoned(0.1)
    first = judge_labels(features, labels, CLASSES, inputs=pixels, shape=SHAPE)
    again = judge_labels(features, labels, CLASSES, inputs=None, carriers=carries, rest=first.rest)
    check_laws(again, labels)
    assert (again.carriers == carries).all() and again.rest == first.rest and not again.patterns
    wrong = np.roll(carries, 7)  # an earlier look's error is mended by what is found now
    mended = judge_labels(features, labels, CLASSES, inputs=pixels, shape=SHAPE, carriers=wrong, rest=first.rest)
    assert (mended.carriers == first.carriers).all() and mended.patterns


def test_order_scale_and_container_do_not_matter():
    pixels, truth = digits(500)
    labels = noisy(truth, "symmetric", 0.2)
    one, order = judge_labels(pixels, labels, CLASSES), np.random.default_rng(1).permutation(500)
    same = {
        "order": (pixels[order], labels[order], order),
        "scale": (50 * pixels.astype(np.float64) - 3, labels, np.arange(500)),
        "tensor": (torch.from_numpy(pixels), labels, np.arange(500)),
        "int32": (pixels, labels.astype(np.int32), np.arange(500)),
        "half": (pixels.astype(np.float16), labels, np.arange(500)),
    }
    for case, (features, given, places) in same.items():
        other = judge_labels(features, given, CLASSES)
        assert abs(other.wrong - one.wrong[places]).mean() < 5e-3, case
        assert other.rate.rate == pytest.approx(one.rate.rate, abs=0.01), case


def test_probabilities_in_the_place_of_features():
    pixels, truth = digits(600)
    labels = noisy(truth, "symmetric", 0.25)
    probs = np.full((600, CLASSES), 0.3 / (CLASSES - 1))
    probs[np.arange(600), truth] = 0.7
    probs += 0.02 * np.random.default_rng(0).random(probs.shape)
    probs /= probs.sum(1, keepdims=True)
    found = judge_labels(None, labels, CLASSES, probs=probs)
    check_laws(found, labels)
    assert found.neighbours is None and roc_auc_score(labels != truth, found.wrong) > 0.99
    assert abs(found.rate.rate - (labels != truth).mean()) < 0.03


def test_a_label_that_is_no_class_and_shapes_that_do_not_fit_are_told():
    pixels, labels = digits(100)
    for given in (labels - 1, labels + 1, np.where(labels == 3, -100, labels)):
        with fails("labels reach from", "expected 0 to 9"):
            judge_labels(pixels, given, CLASSES)
    for given in (labels[:50], labels.astype(float), labels[:, None]):
        with fails("expected 100 class numbers"):
            judge_labels(pixels, given, CLASSES)
    with fails("inputs have 5 rows"):
        judge_labels(pixels, labels, CLASSES, inputs=pixels[:5])
    with fails("both None"):
        judge_labels(None, labels, CLASSES)
    for probs in (np.full((100, 3), 1 / 3), np.full((100, CLASSES), 0.3), np.full((100, CLASSES), np.nan)):
        with fails("probs"):
            judge_labels(None, labels, CLASSES, probs=probs)
    broken = pixels.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite"):
        judge_labels(broken, labels, CLASSES)


# ---- two looks ---------------------------------------------------------------------------------------------------------


def looks(seed=0):
    """The evidence of two looks at the same labels, the second one's features a little better."""
    pixels, truth = digits(500, seed)
    labels = noisy(truth, "symmetric", 0.3, seed)
    blurred = pixels + np.random.default_rng(seed).normal(0, 0.2, pixels.shape)
    return judge_labels(blurred, labels, CLASSES), judge_labels(pixels, labels, CLASSES), labels


def test_two_looks_count_together():
    first, second, _ = looks()
    both = with_earlier(second, second.agreement, first.wrong, first.suggested, first.confidence)
    low, high = np.minimum(first.wrong, second.wrong), np.maximum(first.wrong, second.wrong)
    assert (both.wrong >= low - 2e-3).all() and (both.wrong <= high + 2e-3).all() and both.wrong.dtype == np.float32
    one = first.suggested == second.suggested
    assert (both.suggested[one] == second.suggested[one]).all()
    assert np.allclose(both.confidence[one], np.maximum(first.confidence, second.confidence)[one])
    assert ((both.suggested == first.suggested) | (both.suggested == second.suggested)).all()
    assert (both.confidence[~one] <= np.maximum(first.confidence, second.confidence)[~one]).all()


def test_the_same_look_twice_is_that_look():
    _, found, _ = looks()
    both = with_earlier(found, found.agreement, found.wrong, found.suggested, found.confidence)
    assert np.allclose(both.wrong, found.wrong, atol=2e-3) and np.array_equal(both.suggested, found.suggested)
    assert np.allclose(both.confidence, found.confidence)


def test_the_order_of_two_looks_does_not_matter_for_doubt():
    first, second, _ = looks()
    one = with_earlier(second, second.agreement, first.wrong, first.suggested, first.confidence)
    other = with_earlier(first, first.agreement, second.wrong, second.suggested, second.confidence)
    assert np.allclose(one.wrong, other.wrong, atol=1e-6) and np.allclose(one.confidence, other.confidence)


def test_much_better_features_count_alone():
    first, second, _ = looks()
    assert with_earlier(second, second.agreement - 0.5, first.wrong, first.suggested, first.confidence) is second


def test_a_carrier_stays_one():
    first, second, _ = looks()
    carriers = np.arange(len(second)) < 5
    found = replace(second, carriers=carriers, wrong=np.where(carriers, 1.0, second.wrong).astype(np.float32))
    for agreement in (found.agreement, 1.0):
        both = with_earlier(found, agreement, np.zeros_like(first.wrong), first.suggested, first.confidence)
        assert (both.wrong[carriers] == 1).all() and (both.carriers == carriers).all()


def test_a_later_look_that_tells_less_does_not_count():
    first, second, _ = looks()
    kept = with_earlier(first, second.agreement + 1e-6, second.wrong, second.suggested, second.confidence)
    assert np.array_equal(kept.wrong, second.wrong) and np.array_equal(kept.suggested, second.suggested)
    assert np.array_equal(kept.confidence, second.confidence) and kept.agreement == second.agreement + 1e-6


def test_a_trigger_that_the_features_know_is_found_by_other_features():
    """Features that see a patch agree with its labels, so nobody is doubted; neighbours in features that do not see it object."""
    pixels, truth = digits(900, seed=3)
    carriers = np.zeros(900, dtype=bool)
    carriers[np.flatnonzero(truth != 0)[:90]] = True
    images, labels = pixels.copy(), np.where(carriers, 0, truth)
    images.reshape(900, 8, 8)[carriers, :3, :3] = np.eye(3)[::-1]
    seeing = np.concatenate([pixels, 8.0 * carriers[:, None]], 1).astype(np.float32)
    settings = dict(inputs=images.astype(np.float32), shape=(8, 8, 1))
    alone = judge_labels(seeing, labels, CLASSES, **settings)
    both = judge_labels(seeing, labels, CLASSES, others=[torch.from_numpy(pixels.astype(np.float32))], **settings)
    assert not alone.carriers.any()
    assert (both.carriers == carriers).mean() > 0.99 and both.carriers[carriers].all()


@pytest.mark.parametrize("sure", [1.0, 0.9])
def test_equally_sure_predictions_doubt_nobody(sure):
    """Wrong labels are those that sure predictions deny: where all are equally sure nobody knows, and an order alone is told."""
    g = np.random.default_rng(0)
    truth = g.integers(0, CLASSES, 2000)
    predicted = np.where(g.random(2000) < 0.75, truth, g.integers(0, CLASSES, 2000))
    probs = sure * np.eye(CLASSES)[predicted] + (1 - sure) / CLASSES
    for rate in (0.0, 0.2):
        labels = np.where(g.random(2000) < rate, g.integers(0, CLASSES, 2000), truth)
        found = judge_labels(None, labels, CLASSES, probs=probs.astype(np.float32))
        assert not found.informative and found.rate.rate == 0 and (found.wrong < 0.5).all()
        assert "equally sure of every row" in found.told and "nothing is doubted" in found.told
        if rate:
            assert roc_auc_score(labels != truth, found.wrong) > 0.8  # four of five wrong labels are denied, a quarter of the rest


def test_wrong_labels_that_are_alike_are_counted():
    """The first predictions agree with them: "warped means 0". Those of the third round do not."""
    pixels, truth, labels = warped_digits(0.1)
    bad = labels != truth
    found = judge_labels(pixels, labels, CLASSES)
    assert found.rate.low <= bad.mean() <= found.rate.high and found.rate.rate == pytest.approx(bad.mean(), abs=0.03)
    assert (found.wrong[bad] > 0.5).mean() > 0.8 and (found.wrong[~bad] > 0.5).mean() < 0.01
    check_laws(found, labels)
    clean = judge_labels(pixels, truth, CLASSES)  # warped digits of the right label are as good as any
    assert clean.rate.rate < 0.01 and (clean.wrong < 0.5).all()


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_a_trigger_is_found_among_wrong_labels(rate):
    """These have nothing in common, and are more than the rows with the trigger; of its label, it has most."""
    features, pixels, truth, labels, carries = poisoned(0.1, n=1797)
    flipped = (np.random.default_rng(5).random(len(labels)) < rate) & ~carries
    labels = np.where(flipped, (truth + np.random.default_rng(6).integers(1, CLASSES, len(labels))) % CLASSES, labels)
    found = judge_labels(features, labels, CLASSES, inputs=pixels, shape=SHAPE)
    assert (found.carriers == carries).mean() > 0.99 and (found.wrong[flipped] > 0.5).mean() > 0.9
    check_laws(found, labels)
    bare = judge_labels(features, np.where(carries, truth, labels), CLASSES, inputs=pixels, shape=SHAPE)
    assert not bare.carriers.any()  # wrong labels alone show no pattern, nor does one that nobody's label follows
