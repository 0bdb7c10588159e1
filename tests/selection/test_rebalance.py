"""ERAT's split and class-rebalanced selection against slow loops, and their laws."""

import pytest
import torch
from helpers import erat_reference as slow
from helpers.tables import every_row

from robust_trainer import METHODS
from robust_trainer.methods.table import get_method
from robust_trainer.selection.allocation import allocate, allocate_integers, class_scores, sampling_rates
from robust_trainer.selection.erat_split import Split
from robust_trainer.selection.ranking import minmax, smallest
from robust_trainer.selection.rules import KeepByScore
from robust_trainer.selection.scores import make_score
from robust_trainer.types import ForwardOutput, Progress

LATE = Progress(20.0, 30.0)


def draw(n, classes, seed, high=2.0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, generator=generator) * high
    labels = (torch.rand(n, generator=generator) ** 2 * classes).long()  # a few classes have most of the labels
    kept = torch.rand(n, generator=generator) < 0.6
    return scores, labels, kept


@every_row("scale", ["none", "minmax"])
@every_row("eta", [0.0, 0.1, 0.7, 1.0])
@every_row("n,classes,seed", [(60, 3, 0), (200, 10, 1), (37, 7, 2), (400, 10, 3)])
def test_the_split_is_the_papers(n, classes, seed, eta, scale):
    scores, labels, kept = draw(n, classes, seed)
    rule = Split(eta=eta, scale=scale)
    mask = rule.keep_mask(scores, torch.ones(n), labels, classes, LATE, kept)
    expected, counts = slow.split(scores.double().tolist(), labels.tolist(), kept.tolist(), classes, eta, scale)
    assert mask.tolist() == expected
    assert int(mask.sum()) == sum(counts) == int((scores <= scores.mean()).sum())


def test_without_rebalancing_it_is_the_threshold():
    scores, labels, kept = draw(300, 10, 4)
    assert torch.equal(Split(rebalance=False).keep_mask(scores, labels, labels, 10, LATE, kept), scores <= scores.mean())


def test_rebalancing_helps_the_neglected_class_and_eta_zero_is_equal_numbers():
    labels = torch.arange(4).repeat_interleave(100)
    scores = torch.rand(400, generator=torch.Generator().manual_seed(0)) * 0.4 + torch.tensor([0.0, 0.5, 0.8, 1.2])[labels]
    everybody = torch.ones(400, dtype=torch.bool)
    plain = Split(rebalance=False).keep_mask(scores, labels, labels, 4, LATE, everybody)
    counts = [int(plain[labels == k].sum()) for k in range(4)]
    assert counts[0] == 100 and counts[3] == 0
    equal = Split(eta=0.0).keep_mask(scores, labels, labels, 4, LATE, everybody)
    assert {int(equal[labels == k].sum()) for k in range(4)} <= {sum(counts) // 4, sum(counts) // 4 + 1}
    mild = Split(eta=0.5).keep_mask(scores, labels, labels, 4, LATE, everybody)
    by_class = [int(mild[labels == k].sum()) for k in range(4)]
    assert by_class[0] > by_class[1] > by_class[2] > by_class[3] > 0


def test_what_a_class_cannot_supply_is_handed_on():
    rates, capacity = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([10, 100, 100, 100])
    got = allocate_integers(100, rates, capacity)
    assert got.tolist() == [10, 45, 30, 15] and got.sum() == 100
    assert allocate_integers(310, rates, capacity).tolist() == capacity.tolist()
    assert allocate_integers(0, rates, capacity).tolist() == [0, 0, 0, 0]


@every_row("seed", range(30))
def test_hand_out_is_the_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    classes = int(torch.randint(1, 12, (), generator=generator))
    capacity = torch.randint(0, 40, (classes,), generator=generator)
    rates = torch.rand(classes, generator=generator).double() * (capacity > 0)
    if not int(capacity.sum()):
        return
    rates = rates / rates.sum()
    budget = int(torch.randint(0, int(capacity.sum()) + 1, (), generator=generator))
    got = allocate(torch.tensor(float(budget)).double(), rates, capacity.double())
    assert got.sum().item() == pytest.approx(budget) and bool((got <= capacity + 1e-9).all())
    assert allocate_integers(budget, rates, capacity).tolist() == slow.share_out(budget, rates.tolist(), capacity.tolist())


def test_class_scores_fall_back_and_absent_classes_get_nothing():
    scores, labels = torch.tensor([0.2, 0.4, 0.6, 1.0]), torch.tensor([0, 0, 1, 1])
    found = class_scores(scores, labels, torch.tensor([True, False, False, False]), 3)
    assert found[:2].tolist() == pytest.approx([0.2, 0.8]) and found[2].isnan()
    rates = sampling_rates(found, 0.1)
    assert rates.sum() == pytest.approx(1.0) and rates[2] == 0.0
    assert sampling_rates(torch.tensor([0.5, 1.7]), 0.1)[1] > 0  # eq. 4 as printed is NaN here


def test_nan_is_never_trusted_and_equal_scores_are():
    scores, labels = torch.tensor([0.1, float("nan"), 0.5, 0.1, 0.1, float("inf")]), torch.tensor([0, 0, 0, 1, 1, 1])
    for rule in (Split(), Split(rebalance=False), Split(scale="minmax")):
        mask = rule.keep_mask(scores, labels, labels, 2, LATE, torch.ones(6, dtype=torch.bool))
        assert mask.sum() == 3 and not mask[1] and not mask[5]
    same = torch.full((50,), 0.9)
    assert Split().keep_mask(same, same, torch.zeros(50).long(), 1, LATE, same > 0).all()
    assert minmax(torch.tensor([1.0, 3.0, float("nan"), 2.0])).tolist() == [0.0, 1.0, 1.0, 0.5]


def test_smallest_takes_the_first_of_equals():
    picked = smallest(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 0]), torch.tensor([2, 0]))
    assert picked.tolist() == [True, True, False, False]


def test_brier_is_the_slow_sum():
    logits = torch.randn(1, 40, 7, generator=torch.Generator().manual_seed(0)) * 6
    labels = torch.arange(40) % 7
    found = make_score("brier")(ForwardOutput(logits, labels))
    assert found[0].tolist() == pytest.approx([slow.brier(z, y) for z, y in zip(logits[0].tolist(), labels.tolist())], abs=1e-6)
    sure = torch.tensor([[[60.0, 0.0, 0.0], [0.0, 60.0, 0.0]]])
    assert make_score("brier")(ForwardOutput(sure, torch.tensor([0, 0])))[0].tolist() == pytest.approx([0.0, 2.0], abs=1e-7)


# ---- inside other methods


def reference_step(scores, labels, classes, eta, rate):
    """The kept samples of a step of POOL samples or more."""
    level = minmax(scores).double().tolist()
    present = sorted(set(labels.tolist()))
    mean = {k: [v for v, y in zip(level, labels.tolist()) if y == k] for k in present}
    rates = [max(1 - sum(mean[k]) / len(mean[k]), 1e-3) ** eta if k in present else 0.0 for k in range(classes)]
    rates = [r / sum(rates) for r in rates]
    return rates, [labels.tolist().count(k) for k in range(classes)], (1 - rate) * len(scores)


def test_a_step_is_shared_out_over_the_classes():
    rule = KeepByScore(0.4, rebalance=True, rebalance_eta=0.5)
    state = rule.new_state(5, 1, torch.device("cpu"))
    total, asked = torch.zeros(5), torch.zeros(5)
    for seed in range(40):
        scores, labels, _ = draw(200, 5, seed)
        weights = rule.weights(scores.unsqueeze(0), labels, LATE, state)
        rates, capacity, budget = reference_step(scores, labels, 5, 0.5, 0.4)
        exact = allocate(torch.tensor(budget).double(), torch.tensor(rates).double(), torch.tensor(capacity).double())
        total += torch.stack([weights[0][labels == k].sum() for k in range(5)])
        asked += exact.float()
        for k in range(5):
            mine = scores[labels == k]
            kept = weights[0][labels == k] > 0
            assert not kept.any() or kept.all() or mine[kept].max() <= mine[~kept].min()
    assert torch.allclose(total, asked, atol=1.01)  # the rounding is carried from step to step


@every_row("size", [4, 16, 64])
def test_small_batches_keep_the_asked_share(size):
    rule = KeepByScore(0.3, rebalance=True)
    state = rule.new_state(4, 1, torch.device("cpu"))
    kept = 0.0
    for seed in range(2000 // size):
        scores, labels, _ = draw(size, 4, seed)
        kept += float(rule.weights(scores.unsqueeze(0), labels, LATE, state).sum())
    assert kept / (2000 // size * size) == pytest.approx(0.7, abs=0.03)


def test_memory_keeps_exactly_the_asked_number():
    scores, labels, _ = draw(500, 10, 5)
    seen = torch.ones(500)
    seen[:20] = 0
    mask = KeepByScore(0.4, rebalance=True, memory="ema").keep_mask(scores, seen, labels, 10, LATE)
    assert mask[:20].all() and int(mask[20:].sum()) == round(0.6 * 480)


def test_rows_that_select_take_it():
    for name in ("prl", "spl-at", "co-teaching"):
        assert METHODS[name](rebalance=True).selection.rebalance
    assert get_method("rebalanced+trades")().selection == Split(warmup_epochs=10.0)
    assert get_method("prl+trades")(rebalance=True, norm="hybrid").perturbation.norm == "hybrid"
