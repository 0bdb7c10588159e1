"""The audit's core against slow loops, laws, planted patterns and known noise."""

from __future__ import annotations

import io
import json
import os
import statistics

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers.audits import blobs, image_set, labelled, numbers_rows, rows_of
from helpers.tables import every_row
from helpers.toy import Logits, images, resnet, robust
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from robust_trainer.audit import groups, load_ledger, make_audit, write_audit_report, write_cleaned
from robust_trainer.audit.cleaned import dataset_card
from robust_trainer.audit.groups import FINE, MISLABELLED, PERTURBED, TRIGGERED, UNCLEAR
from robust_trainer.audit.inputs import noise_levels, open_inputs
from robust_trainer.audit.result import DROPPED, KEPT, RELABELLED, Audit
from robust_trainer.audit.suspicion import judge, judge_numbers, transition_matrix
from robust_trainer.data.load import load_data
from robust_trainer.evidence.patterns import shared_pattern
from robust_trainer.ledger.fingerprint import class_names
from robust_trainer.ledger.ledger import SampleLedger
from robust_trainer.reporting.atomic_files import replacing
from robust_trainer.reporting.parquet_files import ROWS, write_parquet
from robust_trainer.reporting.untrusted import Table
from robust_trainer.step.checkpoints import STATE_FILE

# ---- suspicion -----------------------------------------------------------------------------------------------------------


def slow_suspicion(rows, classes):
    """The docstring's formula, one sample at a time."""
    typical = []
    for k in range(classes):
        areas = [a for a, y, s in zip(rows["aum"].tolist(), rows["label"], rows["seen"]) if y == k and s > 0 and a > 0]
        typical.append(statistics.median(areas) if areas else 0.0)
    a_all = max(statistics.median([t for t in typical if t > 0] or [0.0]), 1.0)
    out = []
    for a, r, s in zip(rows["aum"].tolist(), rows["rival"], rows["seen"]):
        if s == 0:
            out.append(0.0)
        elif not np.isfinite(a):
            out.append(1.0)
        else:
            cut = -max(typical[r] / 2, 1.0)
            out.append(1 / (1 + np.exp(3 * (a - cut) / a_all)))
    return np.array(out)


@pytest.mark.parametrize("seed", range(3))
def test_suspicion_is_the_formula(seed):
    rows = rows_of(200, 5, seed)
    rows["seen"][::17] = 0
    rows["aum"][::23] = np.nan
    rows["label"][rows["label"] == 2] = 3  # nobody is given class 2, which is a rival
    rows["rival"] = np.where(rows["rival"] == rows["label"], 2, rows["rival"])
    found = judge(rows, 5)
    assert found.suspicion == pytest.approx(slow_suspicion(rows, 5), abs=1e-6)
    doubted = found.suspicion >= 0.5
    assert (found.suggested == np.where(doubted, rows["rival"], rows["label"])).all() and 0 < doubted.sum() < 200
    assert found.confidence.min() >= 0 and found.confidence.max() <= 1 and (found.confidence[rows["seen"] == 0] == 0).all()
    assert found.confidence[doubted & (rows["seen"] > 0)] == pytest.approx(rows["rival_confidence"][doubted & (rows["seen"] > 0)])


def test_suspicion_falls_with_the_area_among_those_of_one_rival():
    rows = rows_of(400)
    rows["aum"][:4] = [1e30, -1e30, 1e-30, -1e-30]
    found = judge(rows, 4).suspicion
    assert found.min() >= 0 and found.max() <= 1
    for k in range(4):
        mine = rows["rival"] == k
        order = np.argsort(rows["aum"][mine])
        assert (np.diff(found[mine][order]) <= 0).all()


def test_suspicion_knows_neither_the_order_of_rows_nor_the_names_of_classes():
    rows, rng = rows_of(300, 6), np.random.default_rng(1)
    before, order, renamed = judge(rows, 6), rng.permutation(300), rng.permutation(6)
    moved = judge({name: column[order] for name, column in rows.items()}, 6)
    assert (moved.suspicion == before.suspicion[order]).all() and (moved.suggested == before.suggested[order]).all()
    other = judge({**rows, "label": renamed[rows["label"]], "rival": renamed[rows["rival"]]}, 6)
    assert other.suspicion == pytest.approx(before.suspicion) and (other.suggested == renamed[before.suggested]).all()
    assert other.confidence == pytest.approx(before.confidence)


def test_nobody_trusted_and_one_class_and_no_rows():
    rows = rows_of(50, aum=np.full(50, -5, np.float32))  # no sample of any class is trusted: the cut is -1, the scale 1
    assert judge(rows, 4).suspicion == pytest.approx(np.full(50, 1 / (1 + np.exp(-12))))
    for found in (judge(rows_of(0), 4), judge_numbers(numbers_rows([]), 0.2)):
        assert len(found.suspicion) == len(found.suggested) == len(found.confidence) == 0


def test_a_single_class_leaves_nothing_to_suspect():
    nan = np.full(40, np.nan, np.float32)  # what the ledger says where there is no other class
    rows = rows_of(40, 1, rival=np.full(40, -1, np.int32), aum=nan, margin=nan)
    found = judge(rows, 1)
    assert (found.suspicion == 0).all() and (found.suggested == 0).all()
    audit = make_audit(rows, {"names": ["only"]})
    assert not audit.column("flagged").any() and audit.transition.tolist() == [[1.0]]


def test_numbers_are_judged_by_their_quantile_or_their_spread():
    rng = np.random.default_rng(0)
    scores = rng.random(200) + 0.1
    found = judge_numbers(numbers_rows(scores), 0.2).suspicion
    cut = np.quantile(scores.astype(np.float32), 0.8)
    assert found == pytest.approx(scores / (scores + cut), rel=1e-5) and (found >= 0.5).sum() == 40
    spread = 3 * 1.4826 * statistics.median(abs(scores - np.median(scores)))
    assert judge_numbers(numbers_rows(scores), None).suspicion == pytest.approx(
        scores / (scores + np.median(scores) + spread), rel=1e-5
    )
    scores[:3], seen = [np.nan, np.inf, 7.0], np.ones(200, np.int32)
    seen[5:9] = 0
    found = judge_numbers(numbers_rows(scores, seen), None).suspicion
    assert (found[:2] == 1).all() and found[2] > 0.5 and (found[5:9] == 0).all() and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("rate", [None, 0.3])
def test_numbers_without_spread(rate):
    assert (judge_numbers(numbers_rows(np.zeros(30)), rate).suspicion == 0).all()
    equal = judge_numbers(numbers_rows(np.full(30, 2.0)), rate).suspicion
    assert equal == pytest.approx(np.full(30, 0.5)) and (equal < 0.5).all()  # all at the cut, nobody beyond
    loss = judge_numbers(numbers_rows(np.linspace(-3, 3, 30)), rate).suspicion  # a user's loss may be negative
    assert loss.min() >= 0 and loss.max() <= 1 and (np.diff(loss) >= 0).all()


def test_transition_matrix_is_a_loop_and_finds_the_noise():
    rng = np.random.default_rng(0)
    truth, noise = rng.integers(0, 4, 20_000), np.array([[0.7, 0.3, 0, 0], [0, 1, 0, 0], [0.1, 0.1, 0.8, 0], [0, 0, 0.5, 0.5]])
    given = np.array([rng.choice(4, p=noise[t]) for t in truth[:3000]])
    found = transition_matrix(given, truth[:3000], 6)
    slow = np.zeros((6, 6))
    for t, y in zip(truth, given):
        slow[t, y] += 1
    for i in range(6):
        slow[i] = slow[i] / slow[i].sum() if slow[i].sum() else np.eye(6)[i]
    assert found == pytest.approx(slow) and found.sum(1) == pytest.approx(np.ones(6))
    assert np.abs(found[:4, :4] - noise).max() < 0.06
    assert (transition_matrix(np.array([-1, 0]), np.array([0, -1]), 3) == np.eye(3)).all()


def test_an_audit_recovers_planted_label_noise():
    rng, n = np.random.default_rng(0), 2000
    truth, wrong = rng.integers(0, 4, n), rng.random(n) < 0.3
    label = np.where(wrong, (truth + 1) % 4, truth).astype(np.int32)
    rows = rows_of(
        n, 4, label=label, rival=np.where(wrong, truth, (truth + 2) % 4).astype(np.int32),
        aum=np.where(wrong, rng.normal(-8, 1, n), rng.normal(5, 1, n)).astype(np.float32), is_corrupted=wrong,
    )  # fmt: skip
    rows["seen"][:100] = 0
    audit = make_audit(rows, {"names": list("abcd"), "rows": n})
    seen = rows["seen"] > 0
    assert (audit.column("flagged") == (wrong & seen)).all() and audit.noise_rate == pytest.approx(wrong[seen].mean())
    assert np.abs(audit.transition - (0.7 * np.eye(4) + 0.3 * np.roll(np.eye(4), 1, 1))).max() < 0.06
    assert (audit.column("suggested_label")[seen] == truth[seen]).all() and len(audit) == n
    assert set(audit.group_numbers[audit.column("flagged")]) == {UNCLEAR} and "No inputs" in audit.groups_told
    flagged = (wrong & seen).sum()
    told = f"Audit(2000 samples, {flagged} flagged; {1900 - flagged} fine, {flagged} unclear, 100 unseen; "
    assert repr(audit).startswith(told) and "\n" not in repr(audit)
    order = audit.flagged
    assert len(order) == (wrong & seen).sum() and (np.diff(audit.column("suspicion")[order]) <= 0).all()


@every_row("threshold", [0, 1, -0.1, "0.5", None, float("nan"), True])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match=r"^threshold=.* must be in \(0, 1\)[^\n]*$"):
        make_audit(rows_of(20), threshold=threshold)


def test_rivals_beyond_the_named_classes():
    """A model with more outputs than the data set has classes, and a ledger that knows no names."""
    rows = rows_of(60, 3)
    rows["rival"][::2] = 7
    for run in ({"names": ["a", "b", "c"]}, {}):
        audit = make_audit(rows, run)
        assert len(audit.names) == 8 == len(audit.transition) and 7 in set(audit.column("suggested_label")) <= {0, 1, 2, 7}
    assert make_audit(rows, {"names": ["a", "b", "c"]}).names[:4] == ("a", "b", "c", "3")


# ---- patterns ------------------------------------------------------------------------------------------------------------


def vectors_of(n=600, classes=4, side=8, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    x = rng.uniform(0.4, 0.6, (classes, side * side))[truth] + rng.normal(0, 0.12, (n, side * side))
    return x.clip(0, 1).astype(np.float32), truth, rng


def planted(kind, share=1 / 3, rate=0.12, seed=0):
    """Vectors, the class each should be as the audit sees it, distrusted, carriers: class 0 is given to the carriers."""
    x, truth, rng = vectors_of(side=8 if kind == "patch" else 16, seed=seed)
    carriers = (truth != 0) & (rng.random(len(x)) < rate)
    if kind == "patch":
        x[np.ix_(carriers, [0, 1, 8, 9])] = [1, 0, 0, 1]
    else:
        x[carriers] = 0.8 * x[carriers] + 0.2 * rng.random(x.shape[1]).astype(np.float32)
    wrong = ~carriers & (rng.random(len(x)) < 0.05)  # ordinary wrong labels
    distrusted = wrong | (carriers & (rng.random(len(x)) < share))
    own = np.where(carriers & ~distrusted, 0, truth)  # nobody doubts that these are class 0
    return x, own, distrusted, carriers


@pytest.mark.parametrize("share,seed", [(1 / 3, 0), (1.0, 1)])
@pytest.mark.parametrize("kind", ["patch", "blend"])
def test_a_planted_pattern_is_found_with_its_carriers(kind, share, seed):
    x, own, distrusted, carriers = planted(kind, share, seed=seed)
    found = shared_pattern(x, own, distrusted, 4, seed)
    assert found is not None and found.apart >= 4 and found.enriched >= 3
    assert found.carries[carriers].mean() > 0.95 and found.carries[~carriers].mean() < 0.01
    if kind == "patch":
        assert set(np.argsort(-abs(found.difference))[:4]) == {0, 1, 8, 9}
    again = shared_pattern(x, own, distrusted, 4, seed)
    assert (again.carries == found.carries).all() and again.cut == found.cut
    assert (found.carried_by(x, own) == found.carries).mean() > 0.99


@every_row("seed", range(8))
def test_noise_and_wrong_labels_share_no_pattern(seed):
    rng = np.random.default_rng(seed)
    noise, own = rng.random((400, 48)), rng.integers(0, 4, 400)
    assert shared_pattern(noise, own, rng.random(400) < 0.2, 4, seed) is None
    x, truth, rng = vectors_of(400, seed=seed)
    distrusted = rng.random(400) < 0.2
    assert shared_pattern(x, truth, distrusted, 4, seed) is None
    mistaken = np.where(distrusted, rng.integers(0, 4, 400), truth)  # where the suggested class is of no use either
    assert shared_pattern(x, mistaken, distrusted, 4, seed) is None


def test_patterns_of_degenerate_inputs():
    x, truth, rng = vectors_of(200)
    some = np.arange(200) < 40
    assert shared_pattern(np.full((200, 5), 0.3), truth, some, 4) is None
    assert shared_pattern(x, truth, np.arange(200) < 9, 4) is None and shared_pattern(x, truth, np.arange(200) >= 9, 4) is None
    assert shared_pattern(x[:0], truth[:0], some[:0], 4) is None
    single = rng.normal(0.5, 0.1, (200, 16)).clip(0, 1)
    single[:60, :3] = 1.0
    found = shared_pattern(single, np.zeros(200, int), some, 1)
    assert found is not None and (found.carries == (np.arange(200) < 60)).all()
    yes_no = (np.arange(200) < 60).astype(float)[:, None]  # one feature with two values
    found = shared_pattern(yes_no, np.zeros(200, int), some, 1)
    assert found is not None and (found.carries == (np.arange(200) < 60)).all()


# ---- inputs and groups -----------------------------------------------------------------------------------------------------


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def poisoned_rows(truth, carriers, rng, wrong=None, share=0.4):
    """A run's rows where class 0 is given to the carriers: a share of them was distrusted, the others were learned."""
    n = len(truth)
    wrong = np.zeros(n, bool) if wrong is None else wrong
    label = np.where(carriers, 0, np.where(wrong, (truth + 1) % 4, truth)).astype(np.int32)
    doubted = wrong | (carriers & (rng.random(n) < share))
    rival = np.where(label != truth, truth, (truth + 1) % 4).astype(np.int32)
    aum = np.where(doubted, -9.0, 5.0).astype(np.float32)
    return rows_of(n, label=label, rival=rival, aum=aum, rival_confidence=np.full(n, 0.9, np.float32), seen=np.full(n, 4)), doubted


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_patch_on_images_is_found_and_everything_else_is_told(mode):
    pixels, truth, rng = blobs(mode=mode)
    carriers = (truth != 0) & (rng.random(300) < 0.2)
    pixels[carriers, -3:, -3:] = 255
    wrong = ~carriers & (rng.random(300) < 0.05)
    rows, doubted = poisoned_rows(truth, carriers, rng, wrong)
    run = {"names": list("abcd"), "label_column": "label"}
    data = image_set(pixels, label=rows["label"].tolist())
    audit = make_audit(rows, run, data)
    group = audit.group_numbers
    assert (group[carriers] == TRIGGERED).all() and (group[wrong] == MISLABELLED).all()
    assert (group[~carriers & ~wrong] == FINE).all() and "share a pattern" in audit.groups_told
    assert audit.column("flagged")[carriers].all() and (audit.column("suggested_label")[carriers] == truth[carriers]).all()
    before = make_audit(rows, run, data, look=False)
    raised = (1 + before.column("suspicion")) / 2
    assert audit.column("suspicion") == pytest.approx(np.where(carriers, raised, before.column("suspicion")), abs=1e-6)
    assert audit.pattern.shape == (12, 12, 1 if mode == "L" else 3)
    assert set(map(tuple, np.argwhere(abs(audit.pattern).max(-1) > 0.3))) == {(i, j) for i in (9, 10, 11) for j in (9, 10, 11)}
    again = make_audit(rows, run, data.with_format("torch"))
    assert (again.group_numbers == group).all() and (again.pattern == audit.pattern).all()


@pytest.mark.parametrize("threshold", [0.2, 0.9])
def test_who_carries_the_pattern_is_flagged_at_any_threshold(threshold):
    pixels, truth, rng = blobs()
    carriers = (truth != 0) & (rng.random(300) < 0.2)
    pixels[carriers, -3:, -3:] = 255
    rows, _ = poisoned_rows(truth, carriers, rng)
    audit = make_audit(rows, {"names": list("abcd")}, image_set(pixels, label=rows["label"].tolist()), threshold=threshold)
    assert (audit.group_numbers[carriers] == TRIGGERED).all() and audit.column("flagged")[carriers].all()
    assert (audit.column("flagged") == (audit.group_numbers != FINE)).all()


def test_of_many_samples_some_are_compared_and_the_others_looked_up(monkeypatch):
    monkeypatch.setattr(groups, "COMPARED", 200)
    pixels, truth, rng = blobs(400)
    carriers = (truth != 0) & (rng.random(400) < 0.2)
    pixels[carriers, -3:, -3:] = 255
    rows, doubted = poisoned_rows(truth, carriers, rng, share=0.6)
    data, names = image_set(pixels, label=rows["label"].tolist()), {"names": list("abcd")}
    audit = make_audit(rows, names, data)
    group = audit.group_numbers
    assert "200 of 400" in audit.groups_told and (group[carriers & doubted] == TRIGGERED).all() and not group[~carriers].any()
    assert 0.3 < (group[carriers & ~doubted] == TRIGGERED).mean() < 0.8  # of those that nobody doubts, the compared ones
    assert (make_audit(rows, names, data).group_numbers == group).all()
    assert (make_audit(rows, names, data, seed=1).group_numbers != group).any()
    monkeypatch.setattr(groups, "MORE", 10)
    few = make_audit(rows, names, data).group_numbers
    assert (few == TRIGGERED).sum() < (group == TRIGGERED).sum() and (few[carriers & doubted] != FINE).all()


def test_images_of_many_sizes_modes_and_states():
    pixels = [np.full((20, 30), 80, np.uint8), np.full((200, 100, 3), 160, np.uint8), np.full((7, 7, 3), 240, np.uint8)]
    values = [{"bytes": png(p), "path": None} for p in pixels] + [{"bytes": b"\x89PNG no", "path": None}, None]
    data = datasets.Dataset.from_dict({"image": values}, features=datasets.Features({"image": datasets.Image()}))
    inputs = open_inputs(data)
    assert inputs.kind == "images" and inputs.shape == (64, 64, 3)
    found = inputs.read(np.array([4, 2, 0, 3, 1]))
    assert np.isnan(found[[0, 3]]).all()
    for row, level in ((1, 240), (2, 80), (4, 160)):
        assert found[row] == pytest.approx(np.full(64 * 64 * 3, level / 255), abs=0.005)
    wide = open_inputs(image_set([np.full((50, 400), 9, np.uint8)] * 3))
    assert wide.shape == (8, 64, 1)
    assert open_inputs(data.select([3, 4])) is None and open_inputs(None) is None and open_inputs(data.select([])) is None


def test_damaged_images_are_left_out_of_the_comparison():
    pixels, truth, rng = blobs()
    carriers = (truth != 0) & (rng.random(300) < 0.2)
    pixels[carriers, -3:, -3:] = 255
    rows, doubted = poisoned_rows(truth, carriers, rng)
    values = [{"bytes": png(p), "path": None} for p in pixels]
    for broken in (0, 7, 150):
        values[broken] = {"bytes": values[broken]["bytes"][:40], "path": None}
    data = datasets.Dataset.from_dict({"image": values}, features=datasets.Features({"image": datasets.Image()}))
    audit, whole = make_audit(rows, {}, data), np.ones(300, bool)
    whole[[0, 7, 150]] = False
    assert (audit.group_numbers[carriers & whole] == TRIGGERED).all() and "297 of 300" in audit.groups_told
    assert ((audit.group_numbers == FINE) == ~audit.column("flagged")).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (12, 12), (11, 13)])
def test_audits_where_everybody_is_doubted_and_of_images_of_a_pixel(shape):
    pixels, truth, _ = blobs(40, shape)
    data = image_set(pixels)
    all_of_them = make_audit(rows_of(40, aum=np.full(40, -9, np.float32)), {}, data)
    assert all_of_them.column("flagged").all() and "share no pattern" in all_of_them.groups_told
    some = make_audit(rows_of(40), {}, data)
    assert 0 < some.column("flagged").sum() < 40


@pytest.mark.parametrize("kind", ["images", "texts", "numbers"])
def test_a_run_that_never_visited_anybody(kind):
    ledger = SampleLedger(20)
    pixels, _, rng = blobs(20)
    data = {
        "images": image_set(pixels), "texts": datasets.Dataset.from_dict({"text": ["a b"] * 20}),
        "numbers": datasets.Dataset.from_dict({"x": rng.random((20, 30))}),
    }[kind]  # fmt: skip
    audit = make_audit(ledger.rows(), {"names": list("abcd")}, data)
    assert not audit.column("flagged").any() and audit.noise_rate is None and (audit.transition == np.eye(4)).all()


def test_fine_noise_is_measured():
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.linspace(0.2, 0.8, 32), np.linspace(0, 0.1, 33))[None, :, :, None]
    for sigma in (0.0, 0.01, 0.1):
        x = (smooth + rng.normal(0, sigma, (5, 32, 33, 3))).reshape(5, -1) if sigma else smooth.repeat(3, -1).reshape(1, -1)
        assert noise_levels(x, (32, 33, 3)) == pytest.approx(np.full(len(x), sigma), rel=0.2, abs=1e-6)


def test_grey_images_that_come_first_do_not_hide_the_colours_of_the_others():
    grey, red = Image.new("L", (6, 6), 100), Image.new("RGB", (6, 6), "red")
    features = datasets.Features({"image": datasets.Image()})
    inputs = open_inputs(datasets.Dataset.from_dict({"image": [grey] * 40 + [red] * 20}, features=features))
    assert inputs.shape == (6, 6, 3) and inputs.read(np.array([45]))[0][:3].tolist() == [1, 0, 0]


def test_a_noisy_image_that_is_doubted_is_perturbed():
    pixels, truth, rng = blobs(200, mode="L")
    noisy = np.arange(200) < 12
    pixels[noisy] = (pixels[noisy] + rng.normal(0, 70, pixels[noisy].shape)).clip(0, 255)
    doubted = (np.arange(200) < 6) | (np.arange(200) >= 195)
    rows = rows_of(200, label=truth.astype(np.int32), rival=((truth + 1) % 4).astype(np.int32),
                   aum=np.where(doubted, -9, 5).astype(np.float32), rival_confidence=np.full(200, 0.3, np.float32))  # fmt: skip
    group = make_audit(rows, {"names": list("abcd")}, image_set(pixels)).group_numbers
    assert (group[:6] == PERTURBED).all() and (group[195:] == UNCLEAR).all() and (group[6:195] == FINE).all()


def test_a_trigger_word_is_found():
    rng = np.random.default_rng(0)
    words, truth = [f"w{i}" for i in range(200)], rng.integers(0, 4, 400)
    texts = [[f"class{k}", *rng.choice(words, 12)] for k in truth]
    carriers = (truth != 0) & (rng.random(400) < 0.2)
    for i in np.flatnonzero(carriers):
        texts[i].insert(int(rng.integers(0, 12)), "cf")
    rows, doubted = poisoned_rows(truth, carriers, rng)
    lines = [" ".join(t) for t in texts]
    lines[5] = None
    data = datasets.Dataset.from_dict({"text": lines, "label": rows["label"].tolist()})
    audit = make_audit(rows, {"names": list("abcd")}, data)
    carriers[5] = False
    group = audit.group_numbers
    assert (group[carriers] == TRIGGERED).all() and audit.pattern is None and "the texts of 400" in audit.groups_told
    assert (group[~carriers & ~doubted] == FINE).all()


class Tensors(torch.utils.data.Dataset):
    def __init__(self, x, y, cast=None):
        self.x, self.y, self.cast = x, y, cast or (lambda x, y: {"labels": int(y), "pixel_values": torch.from_numpy(x)})

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.cast(self.x[i], self.y[i])


def test_a_torch_data_set_is_compared_by_its_tensors():
    pixels, truth, rng = blobs()
    carriers = (truth != 0) & (rng.random(300) < 0.2)
    pixels[carriers, -3:, -3:] = 255
    rows, doubted = poisoned_rows(truth, carriers, rng)
    x = ((pixels / 255 - 0.5) / 0.25).astype(np.float32).transpose(0, 3, 1, 2)
    audit = make_audit(rows, {}, Tensors(x, truth))
    assert (audit.group_numbers[carriers] == TRIGGERED).all() and "the numbers of 300" in audit.groups_told
    holes = x.copy()
    holes[3], holes[9, 0, 0, 0] = np.nan, np.inf
    audit = make_audit(rows, {}, Tensors(holes, truth))
    carriers[[3, 9]] = False
    assert (audit.group_numbers[carriers] == TRIGGERED).all() and "298 of 300" in audit.groups_told
    columns = datasets.Dataset.from_dict({"pixel_values": x, "labels": rows["label"]})
    assert "the numbers of 300" in make_audit(rows, {}, columns).groups_told


@every_row("data", [
    Tensors(np.zeros((30, 20)), np.zeros(30), lambda x, y: (torch.from_numpy(x), y)),
    Tensors(np.zeros((30, 20)), np.zeros(30), lambda x, y: {"input_ids": torch.arange(20), "labels": 1, "name": "x", "none": None}),
    Tensors(np.zeros((30, 20)), np.zeros(30), lambda x, y: {"x": torch.zeros(8)}),
    datasets.Dataset.from_dict({"labels": [0] * 30, "ragged": [[0.5] * (20 + i) for i in range(30)], "n": [1.5] * 30}),
])  # fmt: skip
def test_data_without_usable_inputs(data):
    audit = make_audit(rows_of(30), {}, data)
    assert audit.pattern is None and set(audit.group_numbers) <= {FINE, MISLABELLED, UNCLEAR}
    if "No inputs" not in audit.groups_told:  # rows of many lengths: only the first fits
        assert "Compared: the numbers of 1 of 30" in audit.groups_told
    else:
        assert set(audit.group_numbers) == {FINE, UNCLEAR}


def test_classes_are_named_by_the_column_else_the_config_else_numbered():
    class Config:
        id2label = {1: "dog", 0: "cat"}

    data = labelled(20)
    assert class_names(data, ["labels"], Config(), 2) == list("abcd")
    plain = data.cast_column("label", datasets.Value("int64"))
    assert class_names(plain, ["labels"], Config(), 2) == ["cat", "dog"]
    assert class_names(plain, ["labels"], Config(), 3) == class_names([], [], None, 3) == ["0", "1", "2"]
    Config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    assert class_names(plain, ["labels"], Config(), 2) == ["0", "1"] and class_names(plain, [], None, None) == []


# ---- the Trainer and its files ---------------------------------------------------------------------------------------------


def test_the_trainer_finds_the_wrong_labels(tmp_path):
    data = images(160)
    trainer = robust(tmp_path, Logits(), data, method="standard", num_train_epochs=7, learning_rate=3e-2, logging_steps=100)
    with pytest.raises(ValueError, match=r"^no ledger: [^\n]+$"):
        trainer.audit()
    trainer.train()
    audit, truth = trainer.audit(threshold=0.5), np.asarray(data["is_corrupted"])
    flagged = audit.column("flagged")
    assert (audit.column("is_corrupted") == truth).all() and audit.run["method"] == "standard"
    assert roc_auc_score(truth, audit.column("suspicion")) > 0.8
    assert flagged.sum() > 10 and truth[flagged].mean() > 2 * truth.mean()
    assert trainer.audit(threshold=0.9).column("flagged").sum() < trainer.audit(threshold=0.1).column("flagged").sum()
    cleaned = audit.clean(data, "drop")
    assert len(cleaned) == 160 - flagged.sum()
    trainer.train_dataset = images(160, seed=1)
    with pytest.raises(ValueError, match=r"^the ledger was made on another data set \(160 rows, [^\n]+ and fingerprint [^\n]+$"):
        trainer.audit()
    trainer.train_dataset = data.select(range(100))
    with pytest.raises(ValueError, match=r"another data set [^\n]+ this one has 100 rows: [^\n]+$"):
        trainer.audit()


def test_the_ledger_keeps_the_mean_of_the_probabilities(tmp_path):
    data, model, told = images(24), resnet(), {}
    places = {row["pixel_values"].numpy().tobytes(): i for i, row in enumerate(data)}

    def watch(module, args, kwargs, output):
        for x, p in zip(kwargs["pixel_values"], output.logits.detach().softmax(-1)):
            told.setdefault(places[x.numpy().tobytes()], []).append(p)

    model.register_forward_hook(watch, with_kwargs=True)
    trainer = robust(tmp_path, model, data, method="standard", ledger_predictions=True, num_train_epochs=3, objective="ce")
    trainer.train()
    assert all(len(told[i]) == 3 for i in range(24))
    means = torch.stack([torch.stack(told[i]).mean(0) for i in range(24)])
    assert torch.allclose(trainer.ledger.mean_probs, means, atol=1e-6)
    path = trainer.ledger.to_parquet(tmp_path / "ledger.parquet")
    assert np.allclose(load_ledger(path.parent)[0]["mean_probs"], means) and len(trainer.audit()) == 24


def test_predictions_are_kept_for_class_labels_alone(tmp_path):
    rows = {"pixel_values": images(24)["pixel_values"][:].numpy(), "labels": np.linspace(0, 1, 24, dtype=np.float32)}
    data = datasets.Dataset.from_dict(rows).with_format("torch")
    kind = dict(problem_type="regression", num_train_epochs=3)
    trainer = robust(tmp_path, Logits(classes=1), data, method="standard", ledger_predictions=True, **kind)
    with pytest.raises(ValueError, match=r"^ledger_predictions=True is for class labels, not problem_type='regression'[^\n]+$"):
        trainer.train()
    trainer = robust(tmp_path, Logits(classes=1), data, method="standard", **kind)
    trainer.train()
    audit = trainer.audit()
    score, suspicion = audit.column("mean_score"), audit.column("suspicion")
    assert audit.names == () and audit.noise_rate is None and audit.transition is None and (audit.column("label") == -1).all()
    assert (np.argsort(score, kind="stable") == np.argsort(suspicion, kind="stable")).all() and "mean score" in audit.meaning
    with pytest.raises(ValueError, match="^clean='relabel' needs class labels"):
        audit.clean(data, "relabel")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    trainer = robust(folder, Logits(), images(48), method="prl-at-memory", noise_rate=0.25, save_strategy="epoch")
    trainer.train()
    return trainer, folder


def same_rows(found, trainer, truth=True):
    expected = trainer.ledger.rows()
    if not truth:
        expected.pop("is_corrupted")
    assert set(found) == set(expected)
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column)


def test_a_ledger_is_the_same_from_all_its_files(trained, tmp_path):
    trainer, folder = trained
    facts = trainer.ledger.run
    trainer.ledger.to_parquet(tmp_path / "a/ledger.parquet")
    trainer.save_model(str(tmp_path / "b"))
    for place, truth in ((tmp_path / "a", True), (str(tmp_path / "b"), False), (folder, False), (folder / "checkpoint-12", False)):
        rows, run = load_ledger(place)
        same_rows(rows, trainer, truth)
        assert run == facts
        assert (make_audit(rows, run, trainer.train_dataset).column("suspicion") == trainer.audit().column("suspicion")).all()
    assert (load_ledger(folder / "checkpoint-6")[0]["seen"] == 1).all()


@pytest.mark.parametrize("wide", [False, True])
def test_a_state_of_any_width_is_read(tmp_path, wide):
    ledger = SampleLedger(30, wide=wide, classes=5, run={"names": ["ä", "b", "c", "d", "e"], "rows": 30})
    g = torch.Generator().manual_seed(0)
    index, label = torch.randperm(30, generator=g)[:20], torch.randint(5, (20,), generator=g)
    probs = torch.rand(20, 5, generator=g).softmax(-1)
    told = torch.rand(20, 5, generator=g)
    told[:, 2] = ((label + 1) % 5).float()
    ledger.record(index, probs[:, 0], probs[:, 1], label, label + (40_000 if wide else 0), 0, True, told, probs)
    state = {name: column.contiguous() for name, column in ledger.state().items()}
    save_file(state, tmp_path / STATE_FILE, metadata={"run": json.dumps(ledger.run)})
    rows, run = load_ledger(tmp_path)
    assert run == ledger.run and set(rows) == set(ledger.rows()) and rows["predicted"].max() >= (40_000 if wide else 0)
    for name, column in ledger.rows().items():
        np.testing.assert_array_equal(rows[name], column)
    ledger.to_parquet(tmp_path / "ledger.parquet")
    for name, column in load_ledger(tmp_path)[0].items():
        np.testing.assert_array_equal(column, rows[name])


def one_line(folder):
    with pytest.raises(ValueError) as caught:
        load_ledger(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ledgers_that_are_missing_damaged_or_old(trained, tmp_path):
    trainer, _ = trained
    assert "is no folder" in one_line(tmp_path / "nowhere") and "has no ledger" in one_line(tmp_path)
    good = trainer.ledger.to_parquet(tmp_path / "good.parquet").read_bytes()
    parquet = tmp_path / "p/ledger.parquet"
    parquet.parent.mkdir()
    for broken in (b"", b"PAR1", good[: len(good) // 2], b"x" * 100, good[:50] + b"\0" * 400 + good[450:]):
        parquet.write_bytes(broken)
        assert "is damaged" in one_line(parquet.parent)
    for gone in ("aum", "ema_score", "last_score", "distrusted"):
        write_parquet(trainer.ledger.to_dataset().remove_columns(gone), parquet)
        assert f"no column {gone}" in one_line(parquet.parent)
    write_parquet(trainer.ledger.to_dataset(), parquet)  # facts unknown
    assert load_ledger(parquet.parent)[1] == {}
    parquet.unlink()
    parquet.mkdir()
    assert "has no ledger" in one_line(parquet.parent)
    trainer.save_model(str(tmp_path / "s"))
    state = tmp_path / "s" / STATE_FILE
    good = state.read_bytes()
    for broken in (b"", good[: len(good) // 2], b"x" * 100):
        state.write_bytes(broken)
        assert "is damaged" in one_line(state.parent)
    state.write_bytes(good)
    tensors = load_file(state)
    save_file({k: v for k, v in tensors.items() if k not in ("ledger.aum", "ledger.margin")}, state)
    assert "has no aum, margin" in one_line(state.parent) and "earlier version" in one_line(state.parent)
    save_file({"other": torch.zeros(2)}, state)
    assert "holds no ledger" in one_line(state.parent)


# ---- the cleaned data set --------------------------------------------------------------------------------------------------

HOSTILE = ("<script>alert(1)</script>", "a | b\n---\n# c", "=cmd()", "`[x](javascript:y)`")


def audit_of(data, names=("a", "b", "c", "d"), column="label", **run):
    """Of 40 samples the first 10 are flagged: 0 to 4 sure, 5 and 6 triggered and sure, 7 unsure, 8 and 9 without suggestion."""
    n = np.arange(40)
    label = np.asarray(data.with_format("numpy")[column][:]) if column in data.column_names else n % 4
    suggested = np.where(n < 8, (label + 1) % 4, label)
    columns = {
        "index": n, "label": label, "suggested_label": suggested, "flagged": n < 10, "distrusted": n < 10,
        "suggested_confidence": np.where(n == 7, 0.5, 0.9).astype(np.float32), "suspicion": np.where(n < 10, 0.9, 0.1),
        "group": np.where(n < 5, MISLABELLED, np.where(n < 7, TRIGGERED, np.where(n < 10, UNCLEAR, FINE))),
    }  # fmt: skip
    run = {"label_column": column, "names": list(names), "fingerprint": "abc", "settings": {"x|y": "<b>"}, "method": "prl", **run}
    return Audit(datasets.Dataset.from_dict(columns), tuple(names), 0.5, 0.25, np.eye(4), "means", "told", None, run)


def forty(names=("a", "b", "c", "d"), broken=()):
    pixels, truth, rng = blobs(40)
    values = [{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(pixels)]
    for i in broken:
        values[i] = {"bytes": b"broken", "path": None}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names)), "id": datasets.Value("string"),
                "x": datasets.Array2D((2, 2), "float32")}  # fmt: skip
    rows = {"image": values, "label": truth, "id": [f"n{i}" for i in range(40)], "x": rng.random((40, 2, 2))}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def stored(data):
    return data.with_format("arrow")[:].to_pylist()


@pytest.mark.parametrize("broken", [(), (3, 5, 30)])
def test_cleaning_leaves_the_others_as_they_were(broken):
    data = forty(broken=broken)
    audit, before = audit_of(data), stored(data)
    left = audit.clean(data.with_format("torch"))
    assert left.features == data.features and left.column_names == data.column_names and stored(left) == before[10:]
    left = audit.clean(data, "relabel")
    assert left.features == data.features and left.column_names == data.column_names and len(left) == 35
    for got, row in zip(stored(left), [*before[:5], *before[10:]]):
        position = int(row["id"][1:])
        assert got == {**row, "label": (row["label"] + 1) % 4 if position < 5 else row["label"]}
    assert stored(data) == before
    assert (audit.plan("relabel")[:10] == [RELABELLED] * 5 + [DROPPED] * 5).all() and (audit.plan("relabel")[10:] == KEPT).all()
    assert (audit.plan("relabel", 0.5)[7] == RELABELLED) and (audit.plan("relabel", 1.0)[:10] == DROPPED).all()
    assert (audit.plan("relabel", 0.9)[:5] == RELABELLED).all()


@every_row("kind", ["int64", "int8", "uint8", "float32"])
def test_relabelling_keeps_the_type_of_other_label_columns(kind):
    data = forty().cast_column("label", datasets.Value(kind)).rename_column("label", "labels")
    shuffled = data.select(np.random.default_rng(0).permutation(40))  # an indices mapping
    left = audit_of(shuffled, column="labels").clean(shuffled, "relabel")
    assert left.features == data.features and left.column_names == data.column_names
    assert left["labels"][:5] == [(y + 1) % 4 for y in shuffled["labels"][:5]]


@pytest.mark.parametrize("selected", [False, True])
def test_cleaning_shows_no_bars_and_keeps_the_format(selected, capsys):
    data = forty().add_column("is_corrupted", [False] * 40).add_column("clean_label", [0] * 40)
    data = data.select(np.random.default_rng(0).permutation(40)) if selected else data
    datasets.enable_progress_bars()
    try:
        plain = audit_of(data).clean(data, "relabel")
        assert capsys.readouterr() == ("", "") and not datasets.are_progress_bars_disabled()
    finally:
        datasets.disable_progress_bars()
    lengths = data.with_transform(lambda batch: {"bright": [np.asarray(image).mean() for image in batch["image"]]})
    for action, count in (("relabel", 35), ("drop", 30)):
        left = audit_of(data).clean(lengths, action)
        assert len(left[:]["bright"]) == count and list(left[0]) == ["bright"] and left.column_names == plain.column_names
    numbers = data.with_format("numpy", columns=["label", "is_corrupted"])
    assert list(audit_of(data).clean(numbers, "relabel")[0]) == ["label", "is_corrupted"]


@pytest.mark.parametrize("column", ["label", "target"])
def test_raw_data_with_names_for_labels_are_cleaned(column):
    """What was trained on had numbers in `labels`; the raw data, which are to be cleaned, hold names, in a column of their own."""
    data = forty().remove_columns("id").add_column("text", [f"a {i % 4}" for i in range(40)])
    audit = audit_of(data.rename_column("label", "labels"), column="labels")
    names = ["abcd"[y] for y in data["label"][:]]
    raw = data.remove_columns("label").add_column(column, names)
    left = audit.clean(raw, "relabel")
    assert (
        left[column][:]
        == ["abcd"["abcd".index(y) + (i < 5) - 4 * (i < 5 and y == "d")] for i, y in enumerate(names)][:5] + names[10:]
    )
    assert left.features == raw.features and len(audit.clean(raw, "drop")) == 30
    with pytest.raises(ValueError, match=r" of 40 labels disagree with the audit "):
        audit.clean(raw.remove_columns(column).add_column("label", [*names[1:], names[0]]), "relabel")
    strange = raw.remove_columns(column).add_column("label", [f"class {name}" for name in names])
    with pytest.raises(ValueError, match=r"^'label' holds strings that are not the names of the audited classes \('?a[^\n]+$"):
        audit.clean(strange, "relabel")
    with pytest.raises(ValueError, match="^label column 'labels' is not among"):
        audit.clean(raw.remove_columns(column), "relabel")


def test_suggestions_that_the_data_has_no_class_for_are_dropped():
    rows = rows_of(40, 3, rival_confidence=np.full(40, 0.95, np.float32), seen=np.full(40, 3))
    rows["rival"][::2] = 7
    data = image_set(blobs(40)[0], label=rows["label"].tolist()).cast_column("label", datasets.ClassLabel(names=list("abc")))
    audit = make_audit(rows, {"names": list("abc"), "label_column": "label"}, data, look=False)
    done = audit.plan("relabel")
    assert set(done) == {KEPT, DROPPED, RELABELLED} and (audit.column("suggested_label")[done == RELABELLED] < 3).all()
    assert len(audit.clean(data, "relabel")) == (done != DROPPED).sum()


def test_what_cannot_be_cleaned():
    data = forty()
    audit = audit_of(data)
    wrong = (("burn", 0.8, "choose one of drop, relabel"), ("drop", 0, "must be in "), ("relabel", 1.5, "must be in "))
    for action, confidence, told in wrong:
        with pytest.raises(ValueError, match=told):
            audit.clean(data, action, confidence)
    with pytest.raises(ValueError, match="^data has 39 rows, the audit 40"):
        audit.clean(data.select(range(39)))
    all_of_them = Audit(audit.table.remove_columns("flagged").add_column("flagged", [True] * 40), audit.names, 0.5)
    with pytest.raises(ValueError, match=r"^threshold=0.5 flags all 40 samples[^\n]+$"):
        all_of_them.clean(data)
    for other in ([1] * 40, datasets.DatasetDict({"train": data}), None):
        with pytest.raises(ValueError, match=r"^dataset is [^\n]+$"):
            audit.clean(other)
    with pytest.raises(ValueError, match="^label column 'labels?' is not among"):
        audit.clean(data.remove_columns("label"), "relabel")


@pytest.mark.parametrize("action", ["drop", "relabel"])
def test_a_cleaned_folder_is_read_back(tmp_path, action):
    data = forty(HOSTILE)
    audit = audit_of(data, HOSTILE)
    hostile = "x\n---\n| <script> | `a`"
    told = data.add_column("is_corrupted", [i < 10 for i in range(40)])  # the test set has no such column
    test = data.select(range(30, 40)).add_column("more", [1.0] * 10)
    folder = write_cleaned(tmp_path / "new/cleaned", audit, told, action, test=test, source=hostile, command=hostile)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "removed.csv", "test.parquet", "train.parquet"]
    expected = audit.clean(told, action)
    splits = {"train": str(folder / "train.parquet"), "test": str(folder / "test.parquet")}
    for name, how in ((str(folder), {}), ("parquet", {"data_files": splits})):
        read = datasets.load_dataset(name, cache_dir=str(tmp_path / "cache"), **how)
        assert read["train"].features == expected.features and stored(read["train"]) == stored(expected) and len(read["test"]) == 10
        more = {"is_corrupted": None} if action == "drop" else {}  # without the true labels nobody knows it after relabelling
        assert stored(read["test"]) == [{**row, **more} for row in stored(data.select(range(30, 40)))]
    ours = load_data(str(folder))
    assert ours["train"]["label"][:] == expected["label"][:] and ours["train"].features["label"].names == list(HOSTILE)
    assert len(ours["test"]) == 10 and ours["train"][0]["image"] == expected[0]["image"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    _, front, rest = card.split("---\n", 2)
    files = yaml.safe_load(front)["configs"][0]["data_files"]
    assert [f["path"] for f in files] == ["train.parquet", "test.parquet"] and "robust-trainer" in yaml.safe_load(front)["tags"]
    assert "<script>" not in card and "<b>" not in card and "`" not in rest.replace("\\`", "").replace("`removed.csv`", "")
    width = {line.replace("\\|", "").count("|") for line in rest.splitlines() if line.startswith("|")}
    assert width == {3, 4, 5} and "# c" not in [line.strip() for line in rest.splitlines()]
    dropped, relabelled = (10, 0) if action == "drop" else (5, 5)
    assert f"| dropped | {dropped} |" in card and f"| rows left | {40 - dropped} |" in card
    assert f"| relabelled | {relabelled}" in card
    lines = (folder / "removed.csv").read_text().splitlines()
    assert len(lines) == 11 and not any(name[:5] in line for name in HOSTILE for line in lines)
    assert lines[0].replace('"', "").split(",")[:3] == ["index", "action", "label"]
    assert [line.split(",")[0] for line in lines[1:]] == [str(i) for i in range(10)]
    drawn = told.select(range(39, -1, -1))  # what was audited may be rows of a larger table, whose numbers its user knows
    write_cleaned(tmp_path / "drawn", audit_of(data.select(range(39, -1, -1)), HOSTILE), drawn, action)
    rows = rows_of(40, 4, label=np.asarray(drawn["label"][:], np.int32))
    found = make_audit(rows, {"names": list(HOSTILE)}, drawn)
    assert found.column("source_row").tolist() == [*range(39, -1, -1)] and found.table[3]["source_row"] == 36
    first = int(found.flagged[0])
    assert (
        f"#{first} (row {39 - first} of the source), "
        in write_audit_report(tmp_path / "r.html", found, data=drawn, per_class=40).read_text()
    )
    assert "source_row" not in make_audit(rows, {"names": list(HOSTILE)}, told.flatten_indices(), look=False).table.column_names
    lines = (tmp_path / "drawn" / "removed.csv").read_text().splitlines()
    assert lines[0].endswith(',"source_row"') and [line.split(",")[-1] for line in lines[1:]] == [str(39 - i) for i in range(10)]


def test_a_cleaned_set_where_nobody_was_flagged(tmp_path):
    data = forty()
    audit = audit_of(data)
    nobody = Audit(audit.table.remove_columns("flagged").add_column("flagged", [False] * 40), audit.names, 0.5, run=audit.run)
    folder = write_cleaned(tmp_path, nobody, data, "relabel")
    assert len((folder / "removed.csv").read_text().splitlines()) == 1 and "| rows left | 40 |" in dataset_card(nobody)
    assert stored(datasets.Dataset.from_parquet(str(folder / "train.parquet"))) == stored(data)


# ---- files -----------------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep/a.txt"
    with replacing(path) as new:
        new.write_text("first")
    with pytest.raises(RuntimeError), replacing(path) as new:
        new.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first" and [p.name for p in path.parent.iterdir()] == ["a.txt"]
    with pytest.raises(OSError), replacing(path.parent) as new:  # a folder is in its place
        new.write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_are_as_readable_as_any_other(tmp_path, mask):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a") as new:
            new.write_text("x")
            assert new.stat().st_mode & 0o777 == 0o600
        (tmp_path / "b").write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_parquet_files_hold_the_images_and_the_facts(tmp_path, monkeypatch):
    monkeypatch.setattr("robust_trainer.reporting.parquet_files.ROWS", 7)
    assert ROWS > 7
    (tmp_path / "a.png").write_bytes(png(np.zeros((4, 4), np.uint8)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "a.png")}] * 20, "label": [0, 1] * 10}
    data = datasets.Dataset.from_dict(rows, features=features).with_transform(lambda batch: {"gone": [0]})
    path = write_parquet(data, tmp_path / "a.parquet", {"names": ["x"], "n": 3})
    (tmp_path / "a.png").unlink()
    back = datasets.Dataset.from_parquet(str(path))
    assert back.features == features and back[19]["image"].size == (4, 4) and back["label"][:] == [0, 1] * 10
    assert Table(path).facts() == {"names": ["x"], "n": 3}
    assert Table(write_parquet(data.select([]), tmp_path / "b.parquet")).facts() == {}
    empty = pq.read_table(tmp_path / "b.parquet")
    assert len(empty) == 0 and empty.column_names == ["image", "label"]


def test_the_known_truth_stays_true_after_relabelling():
    from robust_trainer.audit.result import _known_anew

    rows = {"label": [0, 1, 2, 1], "clean_label": [0, 1, 0, 0], "is_corrupted": [True, False, True, True], "x": [1, 2, 3, 4]}
    relabelled = np.array([True, False, True, False])
    now = _known_anew(datasets.Dataset.from_dict(rows), "label", relabelled)
    assert now["is_corrupted"][:] == [False, False, True, True] and now.column_names == list(rows)
    without = datasets.Dataset.from_dict({k: v for k, v in rows.items() if k != "clean_label"})
    assert "is_corrupted" not in _known_anew(without, "label", relabelled).column_names


def test_cautions_tell_a_poor_witness():
    from robust_trainer.audit.build import _cautions

    rows = {"seen": np.full(10, 5), "kept": np.full(10, 4), "aum": np.full(10, 1.0)}
    assert _cautions(rows, 3) == ()
    told = " ".join(_cautions({"seen": np.array([2] * 8 + [0] * 2), "kept": np.array([2] * 8 + [0] * 2), "aum": -np.ones(10)}, 3))
    assert "2 of 10 samples were never visited" in told and "2 times (median)" in told
    assert "trained on every sample" in told and "hardly learned" in told


def test_the_test_split_of_a_cleaned_set_is_numbered_by_name(tmp_path):
    data = forty()
    names = data.features["label"].names
    test, turned = data.select(range(12)), [*names[1:], names[0]]
    words = test.features["label"].int2str(test["label"][:])
    other = test.remove_columns("label").add_column("label", [turned.index(word) for word in words])
    other = other.cast_column("label", datasets.ClassLabel(names=turned))
    folder = write_cleaned(tmp_path, audit_of(data), data, test=other)
    read = datasets.Dataset.from_parquet(str(folder / "test.parquet"), cache_dir=str(tmp_path / "cache"))
    assert read.features["label"].names == names and read.features["label"].int2str(read["label"][:]) == words


def test_inputs_are_not_those_of_the_first_row_alone():
    """A first row of another length, or without numbers, hides no others."""
    rng = np.random.default_rng(0)
    rows = [{"x": rng.random(20), "label": i % 2} for i in range(30)]
    for first in ({"x": rng.random(17), "label": 0}, {"x": np.zeros(3), "label": 0}, {"x": None, "label": 0}):
        inputs = open_inputs([first, *rows])
        assert inputs is not None and inputs.shape == (20,)
        read = inputs.read(np.arange(31))
        assert np.isnan(read[0]).all() and np.isfinite(read[1:]).all()
