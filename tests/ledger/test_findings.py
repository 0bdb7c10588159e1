"""What a run found about its labels and did about them, from the ledger's columns."""

from __future__ import annotations

import numpy as np
import torch
from helpers.tables import every_row

from robust_trainer.ledger.findings import label_findings
from robust_trainer.ledger.ledger import SampleLedger
from robust_trainer.selection.noise_rate import RateEstimate

RATE = RateEstimate(0.2, 0.18, 0.22, 400)
C, EACH = 8, 50


def judged(given, right, wrong, weight=None, target=None, carrier=None):
    """A ledger after labels were judged: the columns as `step.evidence` writes them."""
    ledger = SampleLedger(len(given), judged=True, run={"names": [f"class{c}" for c in range(C)]})
    columns = {
        "label": given, "suggested": right, "label_wrong": wrong, "weight": 1.0 - wrong if weight is None else weight,
        "target": given if target is None else target, "carrier": np.zeros(len(given), bool) if carrier is None else carrier,
    }  # fmt: skip
    for name, values in columns.items():
        ledger._columns[name].copy_(torch.from_numpy(np.asarray(values)))
    return ledger


def mislabelled(turn, share=0.4):
    """Right labels, given ones of which a share is turned by a rule, and which are."""
    draw = np.random.default_rng(0)
    right = np.repeat(np.arange(C), EACH)
    wrong = draw.random(len(right)) < share
    return np.where(wrong, turn(right, draw), right), right, wrong


def to_next(right, draw):
    return (right + 1) % C


def to_any(right, draw):
    return (right + draw.integers(1, C, len(right))) % C


def to_two(right, draw):
    return (right + draw.choice([1, 2], len(right))) % C


@every_row("turn, spread", [(to_next, "one"), (to_two, "few"), (to_any, "all")])
def test_how_wrong_labels_are_spread_is_told(turn, spread):
    given, right, wrong = mislabelled(turn)
    findings = label_findings(judged(given, right, wrong.astype(np.float32)), RATE)
    assert findings.spread == spread and findings.kind == "wrong labels" and "20.0 % of the labels are wrong" in findings.found
    (s, g, n), *_ = findings.pairs
    assert n == ((right == s) & (given == g) & wrong).sum() and sum(row[2] for row in findings.pairs) <= wrong.sum()
    for c, rows, bad in findings.classes:
        assert rows == (given == c).sum() and bad == ((given == c) & wrong).sum()
    assert (f"class{s} labelled class{g}" in findings.found) == (spread != "all")


def test_of_two_classes_and_of_few_rows_nothing_is_said_of_the_spread():
    right = np.repeat([0, 1], 50)
    wrong = (np.arange(100) % 5 == 0).astype(np.float32)
    given = np.where(wrong > 0, 1 - right, right)
    assert label_findings(judged(given, right, wrong), RATE).spread == "two"
    few = np.where(np.arange(100) < 5, 1.0, 0.0).astype(np.float32)
    findings = label_findings(judged(np.where(few > 0, 1 - right, right), right, few), RateEstimate(0.05, 0.01, 0.1, 100))
    assert findings.spread == "" and findings.kind == "wrong labels"
    clean = label_findings(judged(right, right, np.zeros(100, np.float32)), RateEstimate(0.0, 0.0, 0.01, 100))
    assert clean.kind == "none" and clean.done.startswith("0.0 % of the rows are left out")


def test_every_row_is_counted_once_in_what_was_done():
    given, right, wrong = mislabelled(to_any)
    weight, target = np.ones(len(given), np.float32), given.copy()
    out, moved, less = (np.flatnonzero(wrong)[i::3] for i in range(3))
    weight[out], target[moved], weight[moved], weight[less] = 0.0, right[moved], 0.9, 0.5
    findings = label_findings(judged(given, right, wrong.astype(np.float32), weight, target), RATE)
    assert (findings.left_out, findings.relabelled, findings.weighted) == (len(out), len(moved), len(less))
    record = findings.record()
    assert record["left_out"] * len(given) == len(out) and record["rate"] == 0.2 and record["kind"] == "wrong labels"


@every_row("one_target", [True, False])
def test_a_trigger_is_told_with_its_target(one_target):
    right = np.repeat(np.arange(C), EACH)
    carrier = np.arange(len(right)) % 4 == 0
    given = np.where(carrier, 3 if one_target else (right + 1) % C, right)
    findings = label_findings(judged(given, right, carrier.astype(np.float32), carrier=carrier), RATE)
    assert findings.kind == "trigger" and findings.carriers == carrier.sum() and not findings.pairs
    told = "nearly all labelled class3" if one_target else "with labels of 8 classes"
    assert f"{carrier.sum()} rows share a pattern, as triggers are, {told}" in findings.found
    assert findings.left_out == carrier.sum()


def test_where_nothing_is_known_nothing_is_claimed_or_done():
    right = np.repeat(np.arange(C), EACH)
    ledger = judged(right, right, np.zeros(len(right), np.float32))
    findings = label_findings(ledger, None)
    assert not findings.known and findings.kind == "unknown" and "no label is doubted" in findings.found
    assert findings.done == "All rows are trained on as they are."
    assert (findings.rate.low, findings.rate.high) == (0.0, 1.0) and findings.record()["left_out"] == 0
    assert label_findings(SampleLedger(10), RATE) is None, "a method that judges none"


def test_names_of_classes_are_safe_to_print():
    given, right, wrong = mislabelled(to_next)
    ledger = judged(given, right, wrong.astype(np.float32))
    ledger.run["names"] = [f"\x1b[31mclass\n{c}" for c in range(C)]
    findings = label_findings(ledger, RATE)
    assert "\x1b" not in findings.found and "\n" not in findings.found and "\x1b" not in str(findings.record())
