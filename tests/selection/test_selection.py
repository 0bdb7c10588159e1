import pytest
import torch
from helpers import reference
from helpers.tables import every_row

from robust_trainer.selection.rules import RANK_AMONG, KeepByScore
from robust_trainer.types import Progress

START = Progress(0.0, 10.0)


def epoch(e):
    return Progress(float(e), 20.0)


def run(rule, batches, classes=1, labels=None):
    state = rule.new_state(classes, 1, torch.device("cpu"))
    out = []
    for i, s in enumerate(batches):
        y = torch.zeros(len(s), dtype=torch.long) if labels is None else labels[i]
        out.append(rule.weights(s.unsqueeze(0), y, START, state)[0])
    return out


def test_one_batch_of_128_keeps_exactly_the_96_smallest():
    s = torch.rand(128)
    kept = run(KeepByScore(0.25), [s])[0]
    assert kept.nonzero().flatten().tolist() == reference.keep_smallest(s.tolist(), 96)


@every_row("size,among", [(128, "recent"), (333, "recent"), (8, "batch"), (5, "batch"), (200, "batch")])
@every_row("rate", [0.1, 0.25, 0.45, 0.9])
def test_the_smallest_of_a_batch_are_kept_and_the_fraction_is_carried(size, among, rate):
    batches = [torch.rand(size, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    asked, kept = 0.0, 0
    for s, w in zip(batches, run(KeepByScore(rate, rank_among=among), batches)):
        asked += (1 - rate) * size
        number = int(asked - kept + 1e-4)
        assert w.nonzero().flatten().tolist() == reference.keep_smallest(s.tolist(), number)
        kept += number


@every_row("drift,rate", [("falling", 0.45), ("rising", 0.05)])
@pytest.mark.parametrize("size", [1, 16, 128])
@pytest.mark.parametrize("among", RANK_AMONG)
def test_the_kept_share_of_an_epoch_is_the_asked_one(among, size, rate, drift):
    n = 2000
    s = torch.rand(n, generator=torch.Generator().manual_seed(1))
    move = {"still": 1.0, "falling": torch.linspace(3, 0.3, n), "rising": torch.linspace(0.3, 3, n)}[drift]
    batches = list((s * move).split(size))  # the last one is short
    kept = torch.cat(run(KeepByScore(rate, rank_among=among), batches)).mean()
    assert abs(float(kept) - (1 - rate)) <= 0.01


@every_row("size", [1, 16])
def test_small_batches_drop_the_suspicious_and_not_blindly(size):
    """A quarter of the samples has clearly larger scores: batches of any size find them."""
    g = torch.Generator().manual_seed(0)
    bad = torch.rand(4000, generator=g) < 0.25
    s = torch.rand(4000, generator=g) + 1.0 * bad
    kept = torch.cat(run(KeepByScore(0.25, rank_among="recent"), list(s.split(size)))) > 0
    assert float((~kept & bad).sum() / bad.sum()) > 0.9


def test_per_class_keeps_the_share_within_each_class():
    g = torch.Generator().manual_seed(0)
    labels = [torch.randint(10, (128,), generator=g) for _ in range(30)]
    batches = [torch.rand(128, generator=g) + y.float() for y in labels]  # class 9 has the largest scores
    kept = torch.cat(run(KeepByScore(0.5, per_class=True), batches, 10, labels))
    y = torch.cat(labels)
    for c in range(10):
        assert abs(float(kept[y == c].mean()) - 0.5) < 0.01
    without = torch.cat(run(KeepByScore(0.5), batches, 10, labels))
    assert float(without[y == 9].mean()) == 0.0  # the starved class


def test_permuting_a_batch_permutes_its_weights():
    s, p = torch.rand(50), torch.randperm(50)
    rule = KeepByScore(0.3)
    assert torch.equal(run(rule, [s])[0][p], run(rule, [s[p]])[0])


def test_schedules():
    ramp = KeepByScore(0.4, drop_schedule="ramp", drop_ramp_epochs=10)
    assert [ramp.rate(epoch(e)) for e in (0, 0.9, 4, 9, 15)] == pytest.approx([0.04, 0.04, 0.2, 0.4, 0.4])
    risen = KeepByScore(0.4, drop_schedule="ramp", drop_ramp_epochs=4, drop_ramp_from=0.5)
    assert [risen.rate(epoch(e)) for e in (0, 1, 3, 9)] == pytest.approx([0.25, 0.3, 0.4, 0.4])
    short = KeepByScore(0.4, drop_schedule="ramp", drop_ramp_epochs=0.8)
    assert [short.rate(epoch(e)) for e in (0, 0.19, 0.2, 0.4, 0.7, 2)] == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.4, 0.4])
    steps = KeepByScore(0.4, drop_schedule="ramp", drop_ramp_steps=316, memory="ema")
    at = [Progress(s / 79, 20.0, s) for s in (0, 78, 79, 237, 316)]
    assert [steps.rate(p) for p in at] == pytest.approx([0.1, 0.1, 0.2, 0.4, 0.4])
    assert [steps.decides(p) for p in at] == [False, False, False, False, True]
    assert KeepByScore(0.4, rate_multiplier=1.5, max_drop_rate=0.55).rate(START) == 0.55
    judged = [ramp.filter_active(Progress(e, 20.0)) for e in range(12)]
    assert (
        judged == [False] * 4 + [True] * 8 and not KeepByScore(0.0).filter_active(START) and KeepByScore(0.1).filter_active(START)
    )
    auto = KeepByScore("auto")
    assert not auto.filter_active(START) and auto.filter_active(Progress(3.0, 10.0, 5, 0.2))


def test_memory_keeps_the_share_of_each_class_in_the_data_set():
    g = torch.Generator().manual_seed(0)
    memory, labels = torch.rand(1000, generator=g), torch.randint(4, (1000,), generator=g)
    seen = torch.ones(1000, dtype=torch.int32)
    seen[:10] = 0
    rule = KeepByScore(0.25, rate_multiplier=1.2, per_class=True, memory="ema")
    keep = rule.keep_mask(memory, seen, labels, 4, epoch(1))
    assert keep[:10].all()
    for c in range(4):
        rows = [i for i in range(10, 1000) if labels[i] == c]
        chosen = reference.keep_smallest([float(memory[i]) for i in rows], round(0.7 * len(rows)))
        assert [rows[j] for j in chosen] == [i for i in rows if keep[i]]
