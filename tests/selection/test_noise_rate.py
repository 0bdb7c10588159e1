"""The estimate of the noise rate, on made-up predictions whose noise is known."""

import math

import pytest
import torch
from helpers.tables import every_row

from robust_trainer.selection.noise_rate import KINDS, RateEstimate, RateEstimator, _true_shares, confident_joint, tightest_bound


def made_up(size, classes, kind, rate, errors=0.02, seed=0):
    """Out-of-sample probabilities, given labels and the realised rate; errors: share of wrong predictions, most doubtful."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (size,), generator=g)
    given = truth.clone()
    wrong = torch.rand(size, generator=g) < rate
    if kind == "uneven":  # only the even classes, at twice the rate
        wrong = (torch.rand(size, generator=g) < 2 * rate) & (truth % 2 == 0)
    steps = torch.randint(1, classes, (size,), generator=g) if kind == "symmetric" else torch.ones(size, dtype=torch.long)
    given[wrong] = (truth + steps)[wrong] % classes
    doubt = torch.rand(size, generator=g)
    mistaken = torch.rand(size, generator=g) < (4 * errors * doubt**3).clamp(max=0.9)
    guess = torch.where(mistaken, (truth + torch.randint(1, classes, (size,), generator=g)) % classes, truth)
    confidence = 1.0 - 0.9 * (1.0 - 1.0 / classes) * doubt
    probs = ((1.0 - confidence) / (classes - 1)).unsqueeze(1).repeat(1, classes)
    return probs.scatter(1, guess.unsqueeze(1), confidence.unsqueeze(1)), given, float((given != truth).float().mean())


def visit(estimator, probs, given, epoch, order=None, batch=97):
    for index in (torch.arange(len(given)) if order is None else order).split(batch):
        estimator.update(index, probs[index], given[index], epoch)


def after(estimator, probs, given, epochs=2):
    for epoch in range(epochs):
        visit(estimator, probs, given, epoch)
        found = estimator.estimate(epoch + 1)
    return found


@every_row("rate", [0.2, 0.4])
@every_row("kind", ["symmetric", "pairflip", "uneven"])
@every_row("classes", [2, 10, 100])
def test_known_noise_is_found(classes, kind, rate):
    probs, given, realised = made_up(8000, classes, kind, rate)
    found = after(RateEstimator(8000, classes, "cpu"), probs, given)
    assert -0.03 < found.rate - realised < 0.05
    assert found.low <= realised <= found.high


def test_heavy_symmetric_noise():
    probs, given, realised = made_up(8000, 10, "symmetric", 0.7, errors=0.1)
    found = after(RateEstimator(8000, 10, "cpu"), probs, given)
    assert -0.03 < found.rate - realised < 0.05 and found.low <= realised <= found.high


@every_row("classes", [2, 10, 100])
def test_clean_data_stays_low(classes):
    probs, given, _ = made_up(8000, classes, "symmetric", 0.0)
    assert after(RateEstimator(8000, classes, "cpu"), probs, given).rate < 0.02


def test_clean_but_hard_data_is_not_called_noisy():
    probs, given, _ = made_up(8000, 10, "symmetric", 0.0, errors=0.4)
    disagreement = float((probs.argmax(1) != given).float().mean())
    found = after(RateEstimator(8000, 10, "cpu"), probs, given)
    assert disagreement > 0.25 and found.rate < 0.05
    assert confident_joint(probs, given, 10)[1] > 0.1  # the known weakness of the other one


def test_a_class_that_is_not_learned_yet_is_not_called_clean():
    probs, given, realised = made_up(8000, 10, "uneven", 0.2)
    even = torch.arange(10) % 2 == 0
    probs[:, even] = 0.0  # the noisy classes are never predicted
    found = tightest_bound(probs / probs.sum(1, keepdim=True), given, 10, 8000)
    assert found.rate > realised - 0.03


def test_small_data_errs_high_and_the_interval_covers():
    off = []
    for seed in range(40):
        probs, given, realised = made_up(1400, 10, "symmetric", 0.4, seed=seed)
        found = after(RateEstimator(1400, 10, "cpu", seed=seed), probs, given)
        off.append(found.rate - realised)
        assert found.low <= realised <= found.high
    assert 0.0 < sum(off) / len(off) < 0.03
    assert sum(-0.03 < value < 0.06 for value in off) >= 38


def test_no_confident_set_of_a_few_samples_decides_by_luck():
    probs, given, _ = made_up(3000, 10, "symmetric", 0.4)
    top = probs.max(1).values.argsort(descending=True)[:40]
    given[top] = probs[top].argmax(1)  # the 40 most confident happen to agree
    assert tightest_bound(probs, given, 10, 8000).rate > 0.35


@every_row("kind", KINDS)
def test_order_of_the_updates_does_not_matter(kind):
    probs, given, _ = made_up(3000, 10, "pairflip", 0.3)
    first, second = RateEstimator(3000, 10, "cpu", kind), RateEstimator(3000, 10, "cpu", kind)
    for epoch in range(2):
        moved = (probs * (1 + epoch)).softmax(1)
        visit(first, moved, given, epoch)
        visit(second, moved, given, epoch, torch.randperm(3000), batch=32)
        assert first.estimate(epoch + 1) == second.estimate(epoch + 1)
    assert first.best == second.best


def test_a_sample_counts_once_per_epoch_and_later_visits_weigh_more():
    estimator = RateEstimator(10, 3, "cpu")
    held = torch.arange(10)[estimator.hold_out(torch.arange(10))]
    assert len(held) == 4
    one, two = torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([[0.0, 0.3, 0.7]])
    index, label = held[[0, 0, 1]], torch.tensor([1, 1, 2])
    estimator.update(index, one.expand(3, 3), label, 0)
    estimator.update(held[:1], two, label[:1], 0)  # once more in the same epoch, as padding of the last batch
    rows = estimator._row[held].long()
    assert torch.equal(estimator._probs[rows[0]], one[0])
    assert estimator._facts[rows, 0].tolist() == [1, 1, 0, 0] and estimator._facts[rows[:2], 1].tolist() == [1, 2]
    estimator.update(held[:1], two, label[:1], 1)
    assert torch.allclose(estimator._probs[rows[0]], (one + 2 * two)[0] / 3)


def test_only_held_out_samples_and_finite_predictions_matter():
    probs, given, _ = made_up(2000, 5, "symmetric", 0.3)
    plain, spoilt = RateEstimator(2000, 5, "cpu"), RateEstimator(2000, 5, "cpu")
    nobody = ~plain.hold_out(torch.arange(2000))
    other = torch.where(nobody, (given + 1) % 5, given)
    visit(plain, probs, given, 0)
    visit(spoilt, torch.full_like(probs, math.nan), given, 0)
    visit(spoilt, probs, other, 0)
    plain.estimate(1), spoilt.estimate(1)
    assert plain.best == spoilt.best


def test_hold_out_is_keyed_by_seed_and_index():
    every = torch.arange(20_000)
    held = RateEstimator(20_000, 10, "cpu", seed=3).hold_out(every)
    assert held.sum() == 3000
    again = RateEstimator(20_000, 10, "cpu", seed=3)
    order = torch.randperm(20_000)
    assert torch.equal(again.hold_out(order), held[order])
    assert not torch.equal(RateEstimator(20_000, 10, "cpu", seed=4).hold_out(every), held)


def schedule(rates, **settings):
    """The answers to a sequence of bounds, and the estimator."""
    import robust_trainer.selection.noise_rate as module

    estimator = RateEstimator(50, 10, "cpu", **settings)
    visit(estimator, torch.full((50, 10), 0.1), torch.arange(50) % 10, 0)
    bounds = iter(rates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tightest_bound", lambda *_: RateEstimate(next(bounds), 0.0, 1.0, 20))
        answers = [estimator.estimate(epoch + 1) for epoch in range(len(rates))]
    return [answer and answer.rate for answer in answers], estimator


def test_no_estimate_while_it_sinks_then_it_never_rises():
    answers, estimator = schedule([0.6, 0.5, 0.45, 0.46, 0.42, 0.5, 0.5, 0.5, 0.5, 0.1])
    # four still epochs and it is settled: the last is not looked at
    assert answers == [None, None, None, 0.46, 0.42, 0.42, 0.42, 0.42, 0.42, 0.42]
    assert estimator.settled and not estimator.falling and not estimator.hold_out(torch.arange(50)).any()


def test_many_small_steps_down_are_not_a_standstill():
    answers, estimator = schedule([0.5, 0.5, *(0.5 - 0.006 * i for i in range(1, 11))])
    assert answers[-1] == pytest.approx(0.44) and not estimator.settled


def test_what_was_found_before_the_first_estimate_is_forgotten():
    assert schedule([0.08, 0.25, 0.22, 0.23])[0] == [None, 0.25, 0.22, 0.22]


def test_half_of_the_training_is_the_end():
    answers, estimator = schedule([0.6, 0.5, 0.4, 0.3], max_epochs=7)
    assert answers == [None, None, 0.4, 0.4]
    assert estimator.settled and estimator.falling
    assert schedule([0.6], max_epochs=1)[0] == [0.6]


def test_an_estimate_with_no_room_to_sink_is_final():
    answers, estimator = schedule([0.3, 0.004])
    assert answers == [None, 0.004] and estimator.settled


def test_nothing_seen_no_estimate():
    assert RateEstimator(50, 2, "cpu", max_epochs=2).estimate(1) is None


@every_row("stop", [1, 2, 3])
def test_resumed_is_a_straight_run(stop):
    straight, killed = RateEstimator(1000, 10, "cpu", seed=1), RateEstimator(1000, 10, "cpu", seed=1)
    for epoch in range(6):
        probs, given, _ = made_up(1000, 10, "pairflip", 0.3, errors=0.3 / (epoch + 1), seed=5)
        visit(straight, probs, given, epoch)
        visit(killed, probs, given, epoch)
        if epoch == stop:
            resumed = RateEstimator(1000, 10, "cpu", seed=99)
            resumed.load_state(killed.state())
            killed = resumed
        assert straight.estimate(epoch + 1) == killed.estimate(epoch + 1)
        assert (straight.started, straight.settled, straight.falling) == (killed.started, killed.settled, killed.falling)
    assert straight.best is not None


def test_state_of_another_data_set_is_refused():
    state = RateEstimator(1000, 10, "cpu").state()
    with pytest.raises(ValueError, match="1000 rows and 10 classes, not 900 and 10"):
        RateEstimator(900, 10, "cpu").load_state(state)


def test_update_and_hold_out_do_not_wait_for_the_device():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # reading a value, or a shape that depends on one, raises
        estimator = RateEstimator(100, 3, "cpu")
        index = torch.zeros(8, dtype=torch.long)
        estimator.update(index, torch.zeros(8, 3), index, 0)
        assert estimator.hold_out(index).shape == (8,)


def test_unknown_kind():
    with pytest.raises(ValueError, match="choose one of held-out, confident-joint"):
        RateEstimator(10, 2, "cpu", "mixture")


def test_one_line():
    assert str(RateEstimate(0.412, 0.381, 0.439, 900)) == "0.41 (0.38 to 0.44)"


# ---- confident joint ---------------------------------------------------------------------------------------------------


def slow_joint(probs, labels, classes):
    """Confident learning as the paper defines it, one sample at a time."""
    probs, labels = probs.tolist(), labels.tolist()
    threshold = []
    for j in range(classes):
        own = [p[j] for p, label in zip(probs, labels) if label == j]
        threshold.append(sum(own) / len(own) if own else math.inf)
    counts = [[0.0] * classes for _ in range(classes)]
    for p, label in zip(probs, labels):
        reached = [j for j in range(classes) if p[j] >= threshold[j]]
        if reached:
            counts[label][max(reached, key=lambda j: p[j])] += 1
    joint = [[0.0] * classes for _ in range(classes)]
    for i in range(classes):
        row = sum(counts[i])
        for j in range(classes):
            share = counts[i][j] / row if row else float(i == j)
            joint[i][j] = share * labels.count(i)
    total = sum(map(sum, joint))
    return torch.tensor([[value / total for value in row] for row in joint], dtype=torch.float64)


@every_row("classes", [2, 5, 30])
def test_confident_joint_by_the_definition(classes):
    g = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (400,), generator=g)
    labels[labels == classes - 1] = 0  # a label that is never given
    logits = torch.randn(400, classes, generator=g, dtype=torch.float64)
    probs = (logits + 2 * torch.nn.functional.one_hot(labels, classes)).softmax(1)
    joint, rate = confident_joint(probs, labels, classes)
    expected = slow_joint(probs, labels, classes)
    assert torch.allclose(joint, expected)
    assert rate == pytest.approx(1.0 - float(expected.diagonal().sum())) and float(joint.sum()) == pytest.approx(1.0)


def test_confident_joint_of_the_papers_figure():
    """Counts dog, fox, cow of figure 1, and the joint beside them."""
    counts = torch.tensor([[100, 40, 20], [56, 60, 0], [32, 12, 80]])
    cells = torch.arange(9).repeat_interleave(counts.flatten())
    labels, true = cells // 3, cells % 3
    joint, rate = confident_joint(torch.nn.functional.one_hot(true, 3).float(), labels, 3)
    figure = torch.tensor([[0.25, 0.1, 0.05], [0.14, 0.15, 0.0], [0.08, 0.03, 0.2]], dtype=torch.float64)
    assert torch.allclose(joint, figure) and rate == pytest.approx(0.4)


@every_row("kind", ["symmetric", "pairflip"])
def test_confident_joint_finds_known_noise_on_easy_data(kind):
    probs, given, realised = made_up(8000, 10, kind, 0.3)
    found = after(RateEstimator(8000, 10, "cpu", "confident-joint"), probs, given)
    assert abs(found.rate - realised) < 0.04 and found.low <= realised <= found.high


# ---- many classes ----------------------------------------------------------------------------------------------------------


def dense_shares(true, given, count, labelled):
    """The true shares by the matrix of given labels by true ones, one cell after another."""
    classes = len(count)
    pairs = [[sum(t == a and g == b for t, g in zip(true, given)) for b in range(classes)] for a in range(classes)]
    rows = [[v / max(sum(row), 1e-9) for v in row] for row in pairs]
    share = [c * (sum(row) >= 1) for c, row in zip(count, pairs)]
    share = [s / max(sum(share), 1) for s in share]
    for _ in range(5):
        told = [max(sum(share[a] * rows[a][b] for a in range(classes)), 1e-12) for b in range(classes)]
        share = [share[a] * sum(rows[a][b] * labelled[b] / told[b] for b in range(classes)) for a in range(classes)]
        share = [s / max(sum(share), 1e-12) for s in share]
    return share


@every_row("seed", range(6))
def test_the_true_shares_are_those_of_the_matrix(seed):
    generator = torch.Generator().manual_seed(seed)
    true, given = torch.randint(0, 7, (60,), generator=generator), torch.randint(0, 9, (60,), generator=generator)
    members = torch.bincount(true, minlength=9).double().clamp_min(1e-9)
    count, labelled = torch.randint(0, 30, (9,), generator=generator), torch.rand(9, generator=generator)
    found = _true_shares(true, given, members, count * (members >= 1), labelled)
    assert found.tolist() == pytest.approx(dense_shares(true.tolist(), given.tolist(), count.tolist(), labelled.tolist()), rel=1e-9)


@every_row("kind", KINDS)
def test_an_estimate_over_ten_thousand_classes_needs_no_matrix_of_their_square(kind):
    """It held 16 matrices of 10,000 x 10,000 one after another, which did not end in minutes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10_000, (400,), generator=generator)
    probs = torch.rand(400, 10_000, generator=generator)
    probs[torch.arange(400), labels] += 50.0 * (torch.rand(400, generator=generator) > 0.2)
    estimator = RateEstimator(1000, 10_000, "cpu", kind=kind)
    held = estimator.hold_out(torch.arange(1000)).nonzero().flatten()
    estimator.update(held, probs / probs.sum(1, keepdim=True), labels, 0)
    estimator.estimate(1)
    assert estimator.best is not None and 0.0 < estimator.best.rate <= 1.0
