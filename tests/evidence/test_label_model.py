"""What each label should be: planted noise on blobs, laws of probabilities, symmetries, poor and odd data."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from robust_trainer.corruptions.label_noise.transitions import noise_transition
from robust_trainer.evidence.label_model import (
    LabelModel,
    fit_label_model,
    fit_probabilities,
    neighbours_votes,
    rate_of,
    scale_transition,
    soft_votes,
    tells_more,
)
from robust_trainer.evidence.neighbours import find_neighbours, normalise

N, CLASSES, WIDTH = 600, 5, 24


def blobs(noise="symmetric", rate=0.3, n=N, classes=CLASSES, seed=0, apart=1.2):
    """Normalised rows around one centre a class, given labels, the right ones, and the transition that made the first."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    rows = rng.normal(0, apart, (classes, WIDTH))[truth] + rng.normal(0, 1, (n, WIDTH))
    transition = noise_transition(noise, classes, rate)
    given = np.array([rng.choice(classes, p=transition[c]) for c in truth])
    return normalise(rows), torch.from_numpy(given), truth, transition


def softened(rows, truth, classes=CLASSES, scale=4.0):
    """Probabilities of classes from the distances to the right classes' means: those of a model that has seen no given label."""
    means = torch.stack([rows[truth == c].mean(0) for c in range(classes)])
    return (scale * rows @ normalise(means, centre=torch.zeros(WIDTH)).T).softmax(1)


def check_laws(model: LabelModel, labels, classes=CLASSES):
    n = len(labels)
    for shares in (model.probs, model.posterior, model.transition):
        assert bool(shares.isfinite().all()) and float(shares.min()) >= -1e-6
        torch.testing.assert_close(shares.sum(1), torch.ones(len(shares)), rtol=0, atol=1e-4)
    assert model.probs.shape == model.posterior.shape == (n, classes) and model.transition.shape == (classes, classes)
    assert 0.0 <= model.rate.low <= model.rate.rate <= model.rate.high <= 1.0
    assert model.doubts.shape == (n,) and int(model.doubts.min()) >= 0 and int(model.doubts.max()) < classes


def doubt(model, labels):
    return (1.0 - model.posterior.gather(1, labels[:, None]).squeeze(1)).numpy()


@pytest.mark.parametrize("noise,rate", [("symmetric", 0.2), ("symmetric", 0.4), ("pairflip", 0.3)])
def test_planted_noise_is_found(noise, rate):
    rows, labels, truth, _ = blobs(noise, rate, n=1200)
    model, wrong = fit_label_model(rows, labels, CLASSES), labels.numpy() != truth
    check_laws(model, labels)
    assert roc_auc_score(wrong, doubt(model, labels)) > 0.95
    assert (model.posterior.argmax(1).numpy() == truth).mean() > 0.93
    assert abs(model.rate.rate - wrong.mean()) < 0.05


def test_the_mean_doubt_is_the_rate():
    """Also where the rate is given, and whatever it is."""
    rows, labels, _, _ = blobs()
    model = fit_label_model(rows, labels, CLASSES)
    assert doubt(model, labels).mean() == pytest.approx(model.rate.rate, abs=0.01)
    for rate in (0.05, 0.2, 0.35):
        moved = scale_transition(model.probs, labels, model.transition, rate)
        joint = model.probs * moved.T[labels]
        own = (joint / joint.sum(1, keepdim=True)).gather(1, labels[:, None])
        assert 1.0 - float(own.mean()) == pytest.approx(rate, abs=0.01)
        torch.testing.assert_close(moved.sum(1), torch.ones(CLASSES), rtol=0, atol=1e-4)
    assert torch.equal(scale_transition(model.probs, labels, model.transition, 0.0), torch.eye(CLASSES))


def test_no_class_loses_all_of_its_labels():
    """One class's labels are doubted most; a rate far beyond what was fitted leaves it half of the right ones."""
    rows, labels, _, _ = blobs("pairflip", 0.3)
    model = fit_label_model(rows, labels, CLASSES)
    fitted = model.transition.clone()
    fitted[0] = 0.55 * torch.eye(CLASSES)[0] + 0.45 * torch.eye(CLASSES)[1]
    moved = scale_transition(model.probs, labels, fitted, 0.85)
    assert (moved.diagonal() >= fitted.diagonal() / 2 - 1e-6).all() and (moved.diagonal() < fitted.diagonal()).any()
    torch.testing.assert_close(moved.sum(1), torch.ones(CLASSES), rtol=0, atol=1e-4)


def test_clean_labels_are_hardly_doubted():
    rows, labels, _, _ = blobs(rate=0.0, apart=2.0)
    model = fit_label_model(rows, labels, CLASSES)
    check_laws(model, labels)
    assert model.rate.rate < 0.02 and (doubt(model, labels) > 0.5).mean() < 0.02


def test_other_names_of_the_classes_change_nothing_else():
    rows, labels, _, _ = blobs("pairflip")
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(1))
    one, other = fit_label_model(rows, labels, CLASSES), fit_label_model(rows, order[labels], CLASSES)
    torch.testing.assert_close(other.posterior[:, order], one.posterior, rtol=0, atol=5e-3)
    torch.testing.assert_close(other.transition[order][:, order], one.transition, rtol=0, atol=5e-3)
    assert other.rate.rate == pytest.approx(one.rate.rate, abs=1e-3)


def test_the_rows_order_changes_nothing_else():
    rows, labels, _, _ = blobs()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    one, other = fit_label_model(rows, labels, CLASSES), fit_label_model(rows[order], labels[order], CLASSES)
    torch.testing.assert_close(other.posterior, one.posterior[order], rtol=0, atol=5e-3)
    torch.testing.assert_close(other.transition, one.transition, rtol=0, atol=5e-3)


def test_it_is_the_same_each_time():
    rows, labels, _, _ = blobs()
    one, other = fit_label_model(rows, labels, CLASSES, seed=3), fit_label_model(rows, labels, CLASSES, seed=3)
    assert torch.equal(one.posterior, other.posterior) and torch.equal(one.transition, other.transition)


def test_features_in_half_precision_are_as_good():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CLASSES, N)
    raw = (rng.normal(0, 1.2, (CLASSES, WIDTH))[truth] + rng.normal(0, 1, (N, WIDTH))).astype(np.float32)
    labels = torch.from_numpy(np.where(rng.random(N) < 0.3, rng.integers(0, CLASSES, N), truth))
    one, other = (fit_label_model(normalise(raw.astype(kind)), labels, CLASSES) for kind in (np.float32, np.float16))
    assert abs(doubt(one, labels) - doubt(other, labels)).mean() < 0.01
    assert one.rate.rate == pytest.approx(other.rate.rate, abs=0.02)


def test_two_classes():
    rows, labels, truth, _ = blobs(classes=2, rate=0.25)
    model = fit_label_model(rows, labels, 2)
    check_laws(model, labels, 2)
    assert roc_auc_score(labels.numpy() != truth, doubt(model, labels)) > 0.95


def test_a_class_of_which_there_is_no_row():
    rows, labels, truth, _ = blobs(classes=4)
    model = fit_label_model(rows, labels, 7)
    check_laws(model, labels, 7)
    assert (model.posterior.argmax(1) < 4).all() and (model.posterior.argmax(1).numpy() == truth).mean() > 0.9


def test_one_class_alone_is_not_doubted():
    rows, _, _, _ = blobs(n=80)
    labels = torch.zeros(80, dtype=torch.long)
    model = fit_label_model(rows, labels, 3)
    check_laws(model, labels, 3)
    assert model.rate.rate < 0.02 and (doubt(model, labels) < 0.5).all()


@pytest.mark.parametrize("case", ["constant", "duplicates", "few", "one feature"])
def test_poor_features_break_nothing(case):
    rows, labels, _, _ = blobs(n=12 if case == "few" else 120)
    if case == "constant":
        rows = torch.zeros_like(rows)
    if case == "duplicates":
        rows = rows[torch.arange(120) % 6]
    if case == "one feature":
        rows = rows[:, :1].sign()
    model = fit_label_model(rows, labels, CLASSES)
    check_laws(model, labels)
    if case == "constant":
        # nothing is known: the share that is doubted is no more than the estimated one
        assert doubt(model, labels).mean() <= model.rate.rate + 0.01


def test_rows_that_it_was_not_made_of():
    rows, labels, truth, _ = blobs(n=800)
    model = fit_label_model(rows[:600], labels[:600], CLASSES)
    found = model.predict(rows[600:])
    assert (found.argmax(1).numpy() == truth[600:]).mean() > 0.9
    torch.testing.assert_close(found.sum(1), torch.ones(200), rtol=0, atol=1e-4)
    assert model.predict(rows[:0]).shape == (0, CLASSES)


def test_given_probabilities_in_the_place_of_features():
    rows, labels, truth, _ = blobs("pairflip", 0.3, n=1200)
    probs = softened(rows, truth)
    model = fit_probabilities(probs, labels, CLASSES)
    check_laws(model, labels)
    assert roc_auc_score(labels.numpy() != truth, doubt(model, labels)) > 0.95 and model.neighbours is None
    torch.testing.assert_close(model.predict(probs), model.probs, rtol=0, atol=1e-5)
    hard = torch.nn.functional.one_hot(torch.from_numpy(truth), CLASSES).float()  # zeros and ones
    check_laws(fit_probabilities(hard, labels, CLASSES), labels)


def test_votes_are_the_slow_loop():
    rows, labels, _, _ = blobs(n=60)
    near, shares = find_neighbours(rows, 8, normalised=True), torch.nn.functional.one_hot(labels, CLASSES).float()
    for k in (3, 8):
        for i, found in enumerate(soft_votes(near, shares, k)):
            weight = near.similarity[i, :k].clamp_min(0)
            expected = sum(w * shares[j] for w, j in zip(weight, near.index[i, :k])) / weight.sum().clamp_min(1e-9)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_no_rows_have_no_rate():
    found = rate_of(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 3)
    assert found.n == 0 and found.rate == 0.0


def test_features_tell_more_where_they_explain_far_more_of_the_labels():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 4, 256))
    means = torch.from_numpy(rng.normal(0, 1, (4, 12)).astype(np.float32))[labels]
    noise = torch.from_numpy(rng.normal(0, 1, (256, 12)).astype(np.float32))
    clear, little_less, dull = means + 0.5 * noise, means + 0.55 * noise, means + 4 * noise
    assert tells_more(clear, dull, labels, 4) and not tells_more(dull, clear, labels, 4)
    assert not tells_more(clear, clear, labels, 4) and not tells_more(clear, little_less, labels, 4)
    assert not tells_more(noise, noise.flip(0), labels, 4)  # neither tells anything


def test_votes_of_neighbours_are_those_of_the_model():
    rng = np.random.default_rng(1)
    labels = torch.from_numpy(rng.integers(0, 3, 90))
    rows = normalise(torch.from_numpy(rng.normal(0, 1, (90, 8)).astype(np.float32)))
    torch.testing.assert_close(neighbours_votes(rows, labels, 3), fit_label_model(rows, labels, 3).votes)


def test_a_class_that_nothing_is_confused_with_does_not_blur_the_scale():
    """A row of the transition without any wrong label stays, and the mean doubt is the rate as closely as without such a class."""
    generator = torch.Generator().manual_seed(0)
    probs = (torch.randn(2000, 4, generator=generator) * 2).softmax(1)
    labels = probs.argmax(1)
    labels[:300] = (labels[:300] + 1) % 4
    transition = 0.9 * torch.eye(4) + 0.1 * torch.eye(4).roll(-1, 1)
    transition[0] = torch.eye(4)[0]
    scaled = scale_transition(probs, labels, transition, 0.05)
    joint = probs * scaled.T[labels]
    doubt = 1 - (joint / joint.sum(1, keepdim=True)).gather(1, labels.unsqueeze(1)).mean()
    assert abs(float(doubt) - 0.05) < 1e-4 and torch.equal(scaled[0], transition[0])
