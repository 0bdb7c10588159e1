"""Thresholds and ranks where many samples have one score."""

import numpy as np
import pytest
import torch
from helpers.audits import numbers_rows
from helpers.tables import every_row

from robust_trainer.audit import make_audit
from robust_trainer.selection.erat_split import Split
from robust_trainer.selection.ranking import tie_order
from robust_trainer.selection.rules import KeepByScore
from robust_trainer.selection.thresholds import of_share, of_spread
from robust_trainer.types import Progress

LATE = Progress(20.0, 30.0)


@every_row("seed", range(10))
def test_without_equal_scores_it_is_the_quantile(seed):
    rng = np.random.default_rng(seed)
    scores, share = rng.normal(size=int(rng.integers(1, 300))), float(rng.uniform(0.01, 0.5))
    found = of_share(scores, share)
    assert found.value == np.quantile(scores, 1 - share) and found.note == ""
    wide = of_spread(scores, 0.3, 0.7, 3.0)
    assert wide.value == 0.3 + 3.0 * 1.4826 * 0.7 and wide.note == ""


@every_row(
    "top,equal,rest,share,beyond",
    [
        (0, 40, 160, 0.1, 40),  # the same anomaly again and again
        (0, 50, 150, 0.1, 50),
        (5, 20, 175, 0.1, 25),
        (10, 100, 90, 0.1, 10),  # ten and a hundred more: ten is closer to twenty
        (0, 150, 50, 0.1, 0),  # most samples are no anomalies
        (0, 200, 0, 0.1, 0),
        (20, 30, 150, 0.1, 20),
        (19, 2, 179, 0.1, 19),
    ],
)
def test_equal_scores_at_the_cut_are_taken_in_or_left_out_and_told(top, equal, rest, share, beyond):
    rng = np.random.default_rng(0)
    scores = rng.permutation(np.concatenate([rng.uniform(2, 3, top), np.ones(equal), rng.uniform(0, 0.9, rest)]))
    found = of_share(scores, share)
    assert (scores > found.value).sum() == beyond
    assert (found.note == "") == (abs(beyond - share * len(scores)) <= 1)
    if found.note:
        assert f"{equal} of {len(scores)} samples have one score" in found.note


def test_no_spread_is_measured_among_equal_scores():
    scores = np.concatenate([np.full(120, 1.0), np.linspace(1.0, 1.1, 70), np.full(10, 9.0)])
    found = of_spread(scores, 1.0, 0.0, 3.0)
    assert (scores > found.value).sum() == 10 and "121 of 200 samples have one score" in found.note
    assert of_spread(np.ones(9), 1.0, 0.0, 3.0).value == 1.0 and "all samples" in of_spread(np.ones(9), 1.0, 0.0, 3.0).note


@every_row("settings,flagged", [({"noise_rate": 0.1}, 40), ({}, 40)])
def test_an_audit_of_numbers_flags_equal_errors_and_says_so(settings, flagged):
    """40 of 200 samples with one large error: at a rate of 0.1 nobody was flagged, without a word."""
    scores = np.concatenate([np.full(40, 5.0), np.linspace(0.1, 0.5, 160)])
    audit = make_audit(numbers_rows(scores), {"settings": settings})
    assert audit.column("flagged").sum() == flagged and audit.column("flagged")[:40].all()
    assert ("40 of 200 samples have one score" in " ".join(audit.cautions)) == bool(settings)


@pytest.mark.parametrize("rule", ["all", "per_class", "rebalance", "split"])
def test_equal_scores_of_a_whole_data_set_are_not_dropped_by_their_position(rule):
    """Of 400 rows that are sorted by class, whose scores are one, the last classes went."""
    labels = torch.arange(4).repeat_interleave(100)
    scores, everybody = torch.zeros(400), torch.ones(400, dtype=torch.bool)
    scores[:8] = 0.5 if rule == "split" else 0.0
    named = KeepByScore(0.4, per_class=rule == "per_class", rebalance=rule == "rebalance", memory="scan")
    chosen = Split(scale="minmax") if rule == "split" else named
    mask = chosen.keep_mask(scores, torch.ones(400), labels, 4, LATE, everybody)
    left = torch.bincount(labels[mask], minlength=4)
    assert int(mask.sum()) == (392 if rule == "split" else 240) and int(left.min()) >= 40
    halves = (
        [int(mask[c * 100 : c * 100 + 50].sum()) for c in range(4)],
        [int(mask[c * 100 + 50 : c * 100 + 100].sum()) for c in range(4)],
    )
    if rule != "split":
        assert min(halves[1]) > 15  # within a class it is not the last that go, either
    again = chosen.keep_mask(scores, torch.ones(400), labels, 4, LATE, everybody)
    other = chosen.keep_mask(scores, torch.ones(400), labels, 4, Progress(20.0, 30.0, seed=1), everybody)
    assert torch.equal(mask, again) and not torch.equal(mask, other)


@every_row("seed", range(5))
def test_without_equal_scores_the_order_in_which_they_are_ranked_has_no_effect(seed):
    generator = torch.Generator().manual_seed(seed)
    scores, labels = torch.rand(300, generator=generator), torch.randint(0, 5, (300,), generator=generator)
    seen = (torch.rand(300, generator=generator) > 0.1).long()
    mask = KeepByScore(0.3, per_class=True).keep_mask(scores, seen, labels, 5, LATE)
    for c in range(5):
        mine = [i for i in range(300) if labels[i] == c and seen[i]]
        best = sorted(mine, key=lambda i: float(scores[i]))[: round(0.7 * len(mine))]
        assert {i for i in mine if mask[i]} == set(best)
    assert mask[seen == 0].all() and sorted(tie_order(300, seed, torch.device("cpu")).tolist()) == [*range(300)]
