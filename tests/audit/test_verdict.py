"""The audit of a run that judged its labels by features: what it doubted is flagged, whatever the training learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset

from robust_trainer.audit import GROUPS, load_ledger, make_audit, write_audit_report
from robust_trainer.audit.groups import FINE, MISLABELLED, TRIGGERED, UNCLEAR, UNSEEN
from robust_trainer.audit.load import LEDGER_FILE
from robust_trainer.audit.summary import summarise
from robust_trainer.ledger.ledger import SampleLedger

N, CLASSES = 60, 3
WRONG, UNSURE, CARRIER = 4, 5, 6


def ledger(verdict=True, aum=-0.1, seen=3):
    """Of a run that hardly learned; row WRONG has a wrong label, UNSURE one without a sure suggestion, CARRIER a pattern."""
    made = SampleLedger(N, judged=verdict, run={"names": ["a", "b", "c"], "rows": N})
    label = torch.arange(N) % CLASSES
    for name, value in {"label": label, "seen": seen, "kept": seen, "aum": aum, "rival": (label + 1) % CLASSES}.items():
        made._columns[name][:] = value
    if verdict:
        made._columns["suggested"][:] = label
        made._columns["suggested_confidence"][:] = 0.9
        for row, confidence in ((WRONG, 0.95), (UNSURE, 0.4), (CARRIER, 0.9)):
            made._columns["label_wrong"][row] = 0.97
            made._columns["suggested"][row] = (label[row] + 2) % CLASSES
            made._columns["suggested_confidence"][row] = confidence
        made._columns["carrier"][CARRIER] = True
    return made


def test_what_the_run_doubted_is_flagged_and_can_be_cleaned():
    made = ledger()
    audit = make_audit(made.rows(), made.run)
    assert audit.column("flagged").tolist() == [i in (WRONG, UNSURE, CARRIER) for i in range(N)]
    assert audit.column("suggested_label")[WRONG] == (WRONG + 2) % CLASSES
    assert audit.column("suspicion")[WRONG] == pytest.approx(0.97) and audit.column("suspicion")[0] < 0.5
    assert audit.group_numbers[CARRIER] == TRIGGERED and "verdict" in audit.groups_told
    assert not audit.blocked, audit.cautions
    assert audit.group_numbers[0] == FINE and audit.group_numbers[UNSURE] == audit.group_numbers[WRONG] == UNCLEAR


def test_training_that_doubts_more_is_heard():
    made = ledger()
    made._columns["aum"][:] = 5.0
    made._columns["aum"][20] = -20.0
    audit = make_audit(made.rows(), made.run)
    assert audit.column("flagged")[20] and audit.column("suggested_label")[20] == (20 + 1) % CLASSES
    assert audit.column("flagged").sum() == 4


def test_a_verdict_that_knows_nothing_changes_nothing():
    made, plain = ledger(), ledger(verdict=False)
    made._columns["suggested"][:], made._columns["label_wrong"][:], made._columns["carrier"][:] = -1, 0.0, False
    one, other = (make_audit(x.rows(), x.run) for x in (made, plain))
    assert one.table.to_dict() == other.table.to_dict() and one.meaning == other.meaning
    assert [str(c) for c in one.cautions] == [str(c) for c in other.cautions] and one.blocked == other.blocked


def test_rows_that_training_did_not_reach_are_judged():
    made = ledger()
    made._columns["seen"][:40], made._columns["kept"][:40] = 0, 0
    audit = make_audit(made.rows(), made.run)
    assert audit.column("flagged")[WRONG] and not audit.blocked and any("features alone" in str(c) for c in audit.cautions)
    assert UNSEEN not in audit.group_numbers and audit.group_numbers[0] == FINE and "unseen" not in repr(audit)
    assert audit.noise_rate == 3 / N and audit.transition[(WRONG + 2) % CLASSES, WRONG % CLASSES] > 0
    assert make_audit(ledger(False, seen=0).rows(), {"names": ["a", "b", "c"], "rows": N}).blocked


def test_a_row_of_the_table_tells_its_group_in_the_words_of_the_report(tmp_path):
    made = ledger()
    audit = make_audit(made.rows(), made.run)
    assert audit.table[CARRIER]["group"] == "triggered" and audit.table[0]["group"] == "fine"
    assert audit.column("group").tolist() == [GROUPS[number] for number in audit.group_numbers]
    stored = Dataset.from_parquet(str(audit.to_parquet(tmp_path / "audit.parquet")))
    numbered = stored.remove_columns("group").add_column("group", audit.group_numbers.tolist())
    named = numbered.cast_column("group", ClassLabel(names=list(GROUPS)))  # as audits were stored before
    for table in (stored, numbered, named, stored.select(range(N - 1, -1, -1)).select(range(N - 1, -1, -1))):
        again = replace(audit, table=table)
        assert np.array_equal(again.group_numbers, audit.group_numbers) and repr(again) == repr(audit)
        assert np.array_equal(again.plan("relabel"), audit.plan("relabel")) and summarise(again) == summarise(audit)
        page = write_audit_report(tmp_path / "report.html", again, environment={}).read_text()
        assert page == write_audit_report(tmp_path / "same.html", audit, environment={}).read_text()


@pytest.mark.parametrize("column", ["labels", "of_mine", None])
def test_labels_of_rows_that_training_did_not_reach_are_known(column, tmp_path):
    """The ledger has them of visited rows; of others the look tells them, but for those that it would replace."""
    made = ledger()
    label = made._columns["label"].clone()
    made._columns["target"][:] = label
    made._columns["target"][WRONG] = (WRONG + 2) % CLASSES
    for name, nothing in (("seen", 0), ("kept", 0), ("label", -1), ("rival", -1), ("aum", 0.0)):
        made._columns[name][:40] = nothing
    made.run["label_column"] = "labels"
    data = None
    if column is not None:
        data = Dataset.from_dict({"x": [0] * N, "other": ((label + 1) % CLASSES).tolist(), column: label.tolist()})
        del made.run["rows"]
    made.to_parquet(tmp_path / LEDGER_FILE)
    for rows, facts in ((made.rows(), made.run), load_ledger(tmp_path)):
        audit = make_audit(rows, facts, data, look=False)
        known = np.ones(N, dtype=bool)
        known[WRONG] = column is not None
        assert (audit.column("label")[known] == label.numpy()[known]).all() and (audit.column("label")[~known] == -1).all()
        assert audit.column("flagged").tolist() == [i in (WRONG, UNSURE, CARRIER) for i in range(N)]
        assert audit.column("suggested_label")[WRONG] == (WRONG + 2) % CLASSES
        assert audit.column("suggested_label")[0] == label[0] and audit.column("suggested_confidence")[0] == 1.0
        assert audit.transition.sum() == pytest.approx(CLASSES)


def test_the_files_of_a_run_tell_it(tmp_path):
    made = ledger()
    made.to_parquet(tmp_path / LEDGER_FILE)
    rows, facts = load_ledger(tmp_path)
    here, there = make_audit(made.rows(), made.run), make_audit(rows, facts)
    assert np.array_equal(here.column("flagged"), there.column("flagged")) and there.column("flagged").sum() == 3
    assert MISLABELLED not in there.group_numbers  # without the inputs groups are not told apart


@pytest.mark.parametrize("low,high,left", [(0.01, 1.0, 9), (0.01, 0.1, 6), (0.01, 0.05, 3), (0.0, 0.0, 3), (0.0, 1.0, 3)])
def test_what_training_alone_doubts_is_flagged_as_far_as_the_rate_leaves_room(low, high, left):
    """Six rows beside the verdict's three; of 60 rows the upper end of the rate's interval allows 60, 6, 3 and none.

    An interval that begins at 0 allows the rate itself, here none.
    """
    made = ledger()
    made._columns["aum"][:] = 5.0
    made._columns["aum"][20:26] = -20.0 - torch.arange(6)
    made.run["label_rate"] = [low, low, high]
    audit = make_audit(made.rows(), made.run)
    free = make_audit(made.rows(), {**made.run, "label_rate": [1.0, 1.0, 1.0]})
    assert audit.column("flagged").sum() == left and free.column("flagged").sum() == 9
    order = [np.argsort(-x.column("suspicion")[20:26].astype(np.float64), kind="stable").tolist() for x in (audit, free)]
    assert order[0] == order[1] and audit.column("suspicion")[20:26].min() > audit.column("suspicion")[7]
    held = ~audit.column("flagged") & free.column("flagged")
    assert (audit.column("suggested_label")[held] == audit.column("label")[held]).all()
    assert free.column("flagged")[audit.column("flagged").astype(bool)].all()


def test_the_rate_is_the_one_that_the_run_told():
    made = ledger()
    made.run["label_rate"] = [0.2, 0.1, 0.4]
    audit = make_audit(made.rows(), made.run)
    assert (audit.noise_rate, audit.noise_interval) == (0.2, (0.1, 0.4)) and ("flagged", "3 (5.0 %)") in summarise(audit).facts
    assert ("estimated noise rate", "20.0 % (10.0 to 40.0 %)") in summarise(audit).facts
    blind = ledger(verdict=False)
    assert make_audit(blind.rows(), made.run).noise_interval is None


def test_a_damaged_rate_is_refused(tmp_path):
    made = ledger()
    for wrong in ([0.1, 0.2], [0.1, 0.0, 7.0], ["a", "b", "c"]):
        made.run["label_rate"] = wrong
        made.to_parquet(tmp_path / LEDGER_FILE)
        with pytest.raises(ValueError, match="label_rate is no rate with an interval"):
            load_ledger(tmp_path)
