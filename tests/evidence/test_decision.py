"""What training does with each row: weights, targets, carriers, the floor of rare classes, and when labels are judged."""

from dataclasses import replace

import numpy as np
import pytest

from robust_trainer.evidence.decision import ActOnEvidence
from robust_trainer.evidence.judge import LabelEvidence
from robust_trainer.selection.noise_rate import RateEstimate

CLASSES = 4


def evidence(n=400, seed=0, doubted=0.3, carriers=0.1) -> tuple[LabelEvidence, np.ndarray]:
    """Evidence of all kinds: sure and unsure, suggestions the given class and others, carriers of a pattern."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    wrong = np.where(rng.random(n) < doubted, rng.uniform(0.5, 1, n), rng.uniform(0, 0.5, n)).astype(np.float32)
    suggested = np.where(rng.random(n) < 0.5, labels, rng.integers(0, CLASSES, n))
    carried = rng.random(n) < carriers
    wrong[carried] = 1.0
    rate = RateEstimate(float(wrong.mean()), 0.0, 1.0, n)
    made = LabelEvidence(
        wrong=wrong, suggested=suggested, confidence=rng.random(n).astype(np.float32), carriers=carried, rate=rate, rest=rate,
        transition=np.eye(CLASSES), agreement=0.8, chance=0.25, informative=True, patterns=(), told="", predicted=suggested,
        support=np.zeros(n, np.float32),
    )  # fmt: skip
    return made, labels


@pytest.mark.parametrize("act", [ActOnEvidence(), ActOnEvidence(relabel_from=0.3), ActOnEvidence(class_floor=0)])
@pytest.mark.parametrize("seed", range(3))
def test_laws(act, seed):
    found, labels = evidence(seed=seed)
    made = act.decide(found, labels)
    assert made.weight.dtype == np.float32 and made.weight.min() >= 0 and made.weight.max() <= 1
    assert made.target.dtype == np.int64 and set(np.unique(made.target)) <= set(range(CLASSES))
    moved = made.target != labels
    assert (made.target[moved] == found.suggested[moved]).all() and (found.confidence[moved] >= act.relabel_from).all()
    assert moved.any() and made.dropped.any() and not (moved & made.dropped).any()
    # a carrier is trained on neither as it is nor as another class
    assert made.dropped[found.carriers].all() and not made.trusted[found.carriers].any() and not moved[found.carriers].any()
    # a label is trusted exactly where the row is trained on as it came
    assert ((made.weight > 0) & ~moved == made.trusted).all()


def test_nothing_wrong_is_training_as_always():
    found, labels = evidence(doubted=0.0, carriers=0.0)
    made = ActOnEvidence().decide(replace(found, wrong=np.zeros(len(labels), np.float32)), labels)
    assert (made.weight == 1).all() and (made.target == labels).all() and made.trusted.all() and not made.dropped.any()
    assert "0.0 % of the rows are left out, 0.0 % trained as the suggested class, 0.0 % count for less" in made.told(labels)


def test_everything_wrong_leaves_no_more_than_the_floor():
    found, labels = evidence(carriers=0.0)
    found = replace(found, wrong=np.ones(len(labels), np.float32), confidence=np.zeros(len(labels), np.float32))
    assert ActOnEvidence(class_floor=0).decide(found, labels).dropped.all()


def test_weights_fall_as_doubt_grows():
    """Among the rows that are trained on as they came; the floor keeps rows whole."""
    found, labels = evidence(carriers=0.0)
    made = ActOnEvidence(relabel_from=1.0, class_floor=0).decide(found, labels)
    order = np.argsort(found.wrong, kind="stable")
    assert (np.diff(made.weight[order]) <= 1e-6).all()


@pytest.mark.parametrize("seed", range(3))
def test_relabelling_can_be_switched_off(seed):
    found, labels = evidence(seed=seed)
    found = replace(found, confidence=np.ones(len(labels), np.float32))
    assert (ActOnEvidence(relabel_from=1.0).decide(found, labels).target == labels).all()
    assert (ActOnEvidence(relabel_from=0.99).decide(found, labels).target != labels).any()


def test_a_lower_threshold_relabels_more():
    found, labels = evidence()
    counts = [(ActOnEvidence(relabel_from=p).decide(found, labels).target != labels).sum() for p in (0.3, 0.6, 0.9, 1.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 0


def test_a_rare_class_keeps_its_least_doubted_rows():
    """All labels of the rare class look wrong: some stay, whole and as they are, none of them a carrier."""
    found, labels = evidence(1000, carriers=0.0)
    rare = labels == 3
    labels = np.where(rare & (np.cumsum(rare) > 12), 0, labels)
    rare = labels == 3
    wrong = np.where(rare, np.linspace(0.9, 1.0, len(labels)), 0.0).astype(np.float32)
    carriers = rare & (np.cumsum(rare) <= 4)  # those that would be kept first
    found = replace(found, wrong=wrong, carriers=carriers, confidence=np.full(len(labels), 0.99, np.float32))
    kept = ActOnEvidence(class_floor=5).decide(found, labels)
    here = np.flatnonzero(rare & kept.trusted)
    assert 0 < len(here) <= 5 and (kept.weight[here] == 1).all() and (kept.target[here] == 3).all()
    assert not carriers[here].any() and wrong[here].max() <= wrong[rare & ~kept.trusted & ~carriers].min()
    assert not ActOnEvidence(class_floor=0).decide(found, labels).trusted[rare].any()


def test_a_rare_class_of_carriers_alone_is_not_kept():
    found, labels = evidence(1000, carriers=0.0)
    rare = np.arange(1000) < 8
    labels = np.where(rare, 3, np.where(labels == 3, 0, labels))
    found = replace(found, carriers=rare, wrong=np.where(rare, 1.0, 0.0).astype(np.float32))
    made = ActOnEvidence(class_floor=5).decide(found, labels)
    assert made.dropped[rare].all() and not made.dropped[~rare].any()


def test_the_rows_order_does_not_matter():
    found, labels = evidence()
    order = np.random.default_rng(1).permutation(len(labels))
    moved = replace(found, **{name: getattr(found, name)[order] for name in ("wrong", "suggested", "confidence", "carriers")})
    one, other = ActOnEvidence().decide(found, labels), ActOnEvidence().decide(moved, labels[order])
    for name in ("weight", "target", "trusted"):
        assert np.array_equal(getattr(one, name)[order], getattr(other, name)), name


@pytest.mark.parametrize("epochs", [0.01, 0.5, 1, 1.5, 2, 3, 4, 8.4, 25, 300])
@pytest.mark.parametrize("looks", [1, 2, 3, 5])
def test_labels_are_judged_first_before_training_and_last_within_its_first_half(epochs, looks):
    turns = ActOnEvidence(looks=looks).looks_at(epochs)
    assert turns[0] == 0 and turns == sorted(set(turns)) and len(turns) <= looks
    assert all(isinstance(turn, int) and turn <= epochs / 2 for turn in turns)
    if epochs >= 2 * looks:
        assert len(turns) == looks
