"""A cleaned set rests on evidence, loses no class unless told to, and is of the rows that were audited."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from helpers.audits import rows_of
from helpers.tables import every_row
from helpers.toy import Logits, images, robust

from robust_trainer.audit import make_audit, write_cleaned
from robust_trainer.audit.groups import FINE, TRIGGERED, UNSEEN
from robust_trainer.audit.result import DROPPED, GROUPS, KEPT, RELABELLED, Audit

TAIL = (140, 70, 35, 18, 9, 5, 3, 2, 2, 2)


def ledger(sizes, doubted, **changes):
    """A ledger's rows in which the last ``doubted[c]`` of the samples of class c are taken for another class."""
    label = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    place = np.concatenate([np.arange(n) for n in sizes])
    wrong = place >= (np.asarray(sizes) - np.asarray(doubted))[label]
    aum = np.where(wrong, -6.0 - 0.1 * place, 4.0).astype(np.float32)
    n = len(label)
    return rows_of(
        n, len(sizes), label=label, aum=aum, rival=((label + 1) % len(sizes)).astype(np.int32), seen=np.full(n, 8, np.int32),
        kept=np.full(n, 7, np.int32), rival_confidence=np.full(n, 0.9, np.float32), **changes,
    )  # fmt: skip


def data_of(rows, names=None):
    label = rows["label"].tolist()
    features = {"label": datasets.ClassLabel(names=names) if names else datasets.Value("int64"), "x": datasets.Value("int64")}
    return datasets.Dataset.from_dict({"label": label, "x": [*range(len(label))]}, features=datasets.Features(features))


def sizes_of(data, classes):
    return np.bincount(data["label"][:], minlength=classes).tolist()


# ---- classes ---------------------------------------------------------------------------------------------------------------


@every_row("action", ["drop", "relabel"])
def test_a_cleaned_set_keeps_every_class_of_a_long_tail(action):
    """The counts that a run of ``prl`` over right labels left before: 135, 70, 33, 18, 9, 1, 1, 0, 0, 0."""
    rows = ledger(TAIL, [5, 0, 2, 0, 0, 4, 2, 2, 2, 2])
    names = [f"kind {c}" for c in "abcdefghij"]
    audit, data = make_audit(rows, {"names": names}, look=False), data_of(rows, names)
    assert (
        audit.blocked == () and audit.plan(action, class_floor=0)[-2:].tolist() == [DROPPED if action == "drop" else RELABELLED] * 2
    )
    done = audit.plan(action)
    assert [int((done[rows["label"] == c] == KEPT).sum()) for c in range(10)] == [135, 70, 33, 18, 9, 5, 3, 2, 2, 2]
    told = " ".join(audit.cautions)
    assert "kind f (1 of 5), kind g (1 of 3), kind h (0 of 2)" in told and "class_floor" in told and "kind e" not in told
    assert min(sizes_of(audit.clean(data, action), 10)) > 0
    assert sizes_of(audit.clean(data, "drop", class_floor=0), 10)[-3:] == [0, 0, 0]  # told to


def test_the_least_suspicious_of_a_class_stay():
    rows = ledger((200, 200, 24), [0, 0, 24])
    audit = make_audit(rows, {"names": list("abc")}, look=False)
    suspicion, mine = audit.column("suspicion"), rows["label"] == 2
    left = mine & (audit.plan() == KEPT)
    assert left.sum() == 10 and suspicion[left].max() <= suspicion[mine & ~left].min()
    assert audit.plan(class_floor=3)[mine].tolist().count(KEPT) == 3
    for wrong in (-1, True, 2.5):
        with pytest.raises(ValueError, match=r"^class_floor=[^\n]+ must be a whole number >= 0[^\n]+$"):
            audit.plan(class_floor=wrong)


def test_a_trigger_does_not_stay_for_its_class_sake():
    rows = ledger((100, 100, 6), [0, 0, 6])
    audit = make_audit(rows, {"names": list("abc")}, look=False)
    group = np.where(rows["label"] == 2, TRIGGERED, audit.group_numbers)
    table = audit.table.remove_columns("group").add_column("group", [GROUPS[number] for number in group])
    audit = Audit(table, audit.names, 0.5)
    assert (audit.plan()[rows["label"] == 2] == DROPPED).all()
    with pytest.raises(ValueError, match=r"^no cleaned set: nobody would be left of class c; [^\n]+ class_floor=0\.$"):
        audit.clean(data_of(rows))
    assert sizes_of(audit.clean(data_of(rows), class_floor=0), 3) == [100, 100, 0]


@every_row("sizes,doubted", [((50, 50, 50), (0, 0, 50)), ((50, 50, 50), (0, 45, 0)), ((200, 60, 4), (195, 0, 0))])
def test_a_run_that_lost_a_class_that_is_not_rare_cleans_nothing(sizes, doubted, tmp_path):
    rows = ledger(sizes, doubted)
    audit, data = make_audit(rows, {"names": ["ay", "be", "ce"]}, look=False), data_of(rows)
    lost = ["ay", "be", "ce"][int(np.argmax(doubted))]
    for clean in (audit.clean, lambda d: write_cleaned(tmp_path / "new", audit, d)):
        with pytest.raises(ValueError, match=rf"^no cleaned set: [^\n]*{lost} \([^\n]+force=True[^\n]+$"):
            clean(data)
    assert not (tmp_path / "new").exists()
    assert len(audit.clean(data, class_floor=0, force=True)) == sum(sizes) - sum(doubted)


def test_a_target_class_of_a_backdoor_may_lose_most_of_its_samples():
    rows = ledger((700, 80, 80, 80, 80), (500, 0, 0, 0, 0))  # four ninths of all samples were poisoned into the first
    audit = make_audit(rows, {"names": list("abcde")}, look=False)
    assert audit.blocked == () and sizes_of(audit.clean(data_of(rows)), 5) == [200, 80, 80, 80, 80]


# ---- evidence --------------------------------------------------------------------------------------------------------------


def test_samples_that_no_training_saw_are_no_fine_ones():
    rows = ledger((80, 80, 80), (8, 8, 8))
    data = data_of(rows)
    gone = np.zeros(240, dtype=bool)
    gone[::20] = True
    for name, nothing in (("seen", 0), ("kept", 0), ("label", -1), ("rival", -1), ("aum", np.nan), ("margin", np.nan)):
        rows[name] = np.where(gone, nothing, rows[name]).astype(rows[name].dtype)
    audit = make_audit(rows, {"names": list("abc"), "label_column": "label"}, data)
    assert (audit.group_numbers[gone] == UNSEEN).all() and not audit.column("flagged")[gone].any()
    assert (audit.group_numbers[~gone] != UNSEEN).all() and (audit.column("label") == np.repeat([0, 1, 2], 80)).all()
    assert "12 of 240 samples were never visited" in audit.blocked[0] and len(audit.blocked) == 1
    with pytest.raises(ValueError, match="^no cleaned set: 12 of 240 samples were never visited"):
        audit.clean(data)
    left = audit.clean(data, force=True)
    assert set(np.flatnonzero(gone)) <= set(left["x"][:])
    few = {**rows, "seen": np.where(np.arange(240) == 0, 0, 8).astype(np.int32)}
    audit = make_audit(few, {"names": list("abc")}, look=False)
    assert "1 of 240 samples were never visited" in audit.cautions[0] and audit.blocked == () and audit.clean(data)


def test_which_cautions_forbid_cleaning():
    good = ledger((80, 80, 80), (8, 8, 8))

    def blocked(**changes):
        audit = make_audit({**good, **changes}, {"names": list("abc")}, look=False)
        return " ".join(audit.blocked), " ".join(audit.cautions)

    assert blocked() == ("", "")
    told = blocked(seen=np.full(240, 2, np.int32), kept=np.full(240, 2, np.int32))
    assert told[0] == "" and "2 times (median)" in told[1] and "trained on every sample" in told[1]
    unlearned = np.where(np.arange(240) % 3 == 0, 0.2, -0.4).astype(np.float32)
    assert "hardly learned" in blocked(aum=unlearned)[0]
    assert "More than half of the samples, 160, are flagged" in blocked(aum=unlearned * 20)[0]
    noisy = make_audit(ledger((80, 80, 80), (36, 36, 36)), {"names": list("abc")}, look=False)  # 45 % wrong, all found
    assert noisy.blocked == ()


@pytest.mark.parametrize("epochs", [0.25, pytest.param(1, marks=pytest.mark.slow)])
def test_a_short_run_is_no_reason_to_drop_samples(tmp_path, epochs):
    data = images(160)
    trainer = robust(
        tmp_path, Logits(), data, method="prl", noise_rate=0.4, drop_schedule="constant", num_train_epochs=epochs,
        logging_steps=100, learning_rate=1e-3,
    )  # fmt: skip
    trainer.train()
    audit = trainer.audit()
    assert (audit.group_numbers == UNSEEN).sum() == (120 if epochs < 1 else 0)
    assert not (audit.group_numbers[audit.column("seen") == 0] == FINE).any() and (audit.column("label") >= 0).all()
    with pytest.raises(ValueError, match=r"^no cleaned set: [^\n]+force=True[^\n]+$"):
        audit.clean(data)


# ---- the same rows ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    data = images(96).with_format("torch")
    trainer = robust(tmp_path_factory.mktemp("run"), Logits(), data, method="standard", num_train_epochs=5, learning_rate=3e-2,
                     logging_steps=100)  # fmt: skip
    trainer.train()
    return trainer.audit(), data


def test_another_order_of_the_rows_is_refused(audited):
    audit, data = audited
    with pytest.raises(ValueError, match=r"^\d+ of 96 labels disagree with the audit \(row \d+: \d, audited \d\): [^\n]+$"):
        audit.clean(data.shuffle(seed=1), force=True)
    label = np.asarray(data["labels"])
    order = np.arange(96)
    order[label == 2] = np.roll(order[label == 2], 1)  # the labels agree, the rows are others
    with pytest.raises(ValueError, match=r"^the ledger was made on another data set [^\n]+$"):
        audit.clean(data.select(order), force=True)
    with pytest.raises(ValueError, match="labels disagree"):
        audit.clean(images(96, seed=5), force=True)
    assert len(audit.clean(data, force=True)) < 96


def test_other_columns_of_the_same_rows_are_taken_and_compared_by_their_labels(audited):
    audit, data = audited
    raw = data.remove_columns("pixel_values").rename_column("labels", "label").add_column("name", [f"n{i}" for i in range(96)])
    done = audit.plan()
    assert audit.clean(raw, force=True)["name"][:] == [f"n{i}" for i in np.flatnonzero(done == KEPT)]
    with pytest.raises(ValueError, match="labels disagree"):
        audit.clean(raw.shuffle(seed=1), force=True)
    told = data.remove_columns(["is_corrupted", "clean_label"])  # these tell of a corruption and are no content
    assert len(audit.clean(told, force=True)) == (done == KEPT).sum()


def test_numbers_in_another_order_are_refused_by_their_content(tmp_path):
    rows = {"pixel_values": images(24)["pixel_values"][:].numpy(), "labels": np.linspace(0, 1, 24, dtype=np.float32)}
    data = datasets.Dataset.from_dict(rows).with_format("torch")
    trainer = robust(tmp_path, Logits(classes=1), data, method="standard", problem_type="regression", num_train_epochs=3)
    trainer.train()
    audit = trainer.audit()
    assert len(audit.clean(data)) <= 24
    with pytest.raises(ValueError, match="another data set"):
        audit.clean(data.shuffle(seed=1))
