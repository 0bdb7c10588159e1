"""No class is left out whole where classes differ in size; where they do not, nothing is otherwise than without a floor."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from helpers.tables import every_row
from helpers.toy import curve, images, robust

from robust_trainer import METHODS
from robust_trainer.ledger.fingerprint import given_labels
from robust_trainer.ledger.ledger import SampleLedger
from robust_trainer.selection.allocation import class_floors
from robust_trainer.step.class_floor import ClassFloor
from robust_trainer.step.records import MicroBatch, Run
from robust_trainer.types import Progress

SIZES = (40, 14, 3, 2)


@functools.cache
def long_tail():
    """The toy images of a long tail, all labels right."""
    data = images(200, noisy=0.0)
    label = np.asarray(data["labels"])
    rows = np.concatenate([np.flatnonzero(label == c)[:n] for c, n in enumerate(SIZES)])
    return data.select(np.random.default_rng(0).permutation(rows)).flatten_indices()


def slow_floors(sizes, least):
    present = [n for n in sizes if n]
    rare = [0 < n < 0.5 * sum(present) / len(present) for n in sizes]
    return [min(least, n if r else n // 2) if any(rare) else 0 for n, r in zip(sizes, rare)]


@every_row("seed", range(20))
def test_the_floors_are_the_slow_loops(seed):
    rng = np.random.default_rng(seed)
    sizes = (rng.integers(0, 60, int(rng.integers(1, 9))) ** 2 // 60).tolist()
    least = int(rng.integers(0, 25))
    found = class_floors(torch.tensor(sizes), least)
    assert found.tolist() == (slow_floors(sizes, least) if any(sizes) else [0] * len(sizes))
    assert (found <= torch.tensor(sizes)).all()


def test_balanced_classes_have_no_floor_nor_have_those_of_a_poisoned_set():
    assert not class_floors(torch.full((10,), 7), 10).any()
    assert not class_floors(torch.tensor([5000] * 10), 10).any()
    assert not class_floors(torch.tensor([9500] + [4500] * 9), 10).any()  # a tenth of the others poisoned into the first
    assert class_floors(torch.tensor([140, 70, 35, 18, 9, 5, 3, 2, 2, 2]), 10).tolist() == [10, 10, 10, 9, 9, 5, 3, 2, 2, 2]
    assert not class_floors(torch.zeros(3, dtype=torch.long), 10).any()


DROPPING = {
    "prl": dict(drop_schedule="constant"),
    "co-prl": dict(drop_schedule="constant"),
    "prl-at": dict(drop_schedule="constant"),
    "prl+trades": dict(drop_schedule="constant", steps=1),
    "trim": dict(drop_schedule="constant", memory="ema"),
    "spl": dict(drop_schedule="constant", memory="scan"),
    "rebalanced": dict(warmup_epochs=1.0, rebalance=False),
}


QUICK = ("prl", "rebalanced")


@pytest.mark.parametrize("method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in DROPPING])
def test_no_class_is_left_out_whole(tmp_path, method):
    kept = {}
    for floor in (0, 10):
        rate = {} if method == "rebalanced" else {"noise_rate": 0.4}
        trainer = robust(
            tmp_path, data=long_tail(), method=method, num_train_epochs=3, logging_steps=100, class_floor=floor,
            per_device_train_batch_size=20, **rate, **DROPPING[method],
        )  # fmt: skip
        trainer.train()
        rows = trainer.ledger.rows()
        full = rows["kept"] == rows["seen"]
        kept[floor] = [int(full[rows["label"] == c].sum()) for c in range(4)]
    assert sum(kept[0][2:]) < 5  # else this would show nothing
    assert kept[10][2:] == [3, 2]  # each, in each visit
    assert METHODS["prl"]().class_floor == METHODS["erat"]().class_floor == 10 and METHODS["min-sgd"]().class_floor == 0


@pytest.mark.parametrize("kind", ["balanced", "rate 0"])
def test_without_rare_classes_or_without_dropping_nothing_changes(tmp_path, kind):
    data, rate = (images(48), 0.4) if kind == "balanced" else (long_tail(), 0.0)
    curves = []
    for floor in (0, 10):
        trainer = robust(tmp_path, data=data, method="prl", noise_rate=rate, drop_schedule="constant", class_floor=floor)
        trainer.train()
        curves.append(curve(trainer))
        assert ("floor" in trainer._robust_step.run.states) == (floor > 0 and kind == "rate 0")
    assert curves[0] == curves[1]


def test_a_sample_that_is_not_finite_is_never_kept_by_the_floor():
    labels = torch.tensor([0] * 20 + [1] * 12 + [2, 2, 2])
    ledger = SampleLedger(35)
    ledger.given = labels
    floor = ClassFloor(Run(METHODS["prl"](class_floor=2), torch.device("cpu"), ledger=ledger))
    scores = torch.rand(35, generator=torch.Generator().manual_seed(0))
    scores[33], ledger._columns["ema_score"][:] = torch.nan, scores
    ledger._columns["ema_score"][33] = torch.nan
    floor.open_epoch(Progress(0.0, 3.0))
    assert floor.chosen(scores).nonzero().flatten().tolist() == sorted(
        [*best(scores[:20]), *[20 + i for i in best(scores[20:32])], 32, 34]
    )
    batch = MicroBatch({}, labels[30:], torch.arange(30, 35))
    weights, own = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.25]]), scores[None, 30:].clone()
    assert floor.raised([weights], [own], [batch])[0][0, 2:].tolist() == [1.0, 0.0, 0.25]  # a rule's own weight stays
    own[0, 2] = torch.inf
    assert floor.raised([weights], [own], [batch])[0][0, 2:].tolist() == [0.0, 0.0, 0.25]


def best(scores):
    return scores.argsort()[:2].tolist()


def test_resumed_within_an_epoch_it_goes_on_as_if_not_stopped(tmp_path):
    options = dict(method="prl", noise_rate=0.4, drop_schedule="constant", num_train_epochs=3, class_floor=2)
    whole = robust(tmp_path / "a", data=long_tail(), save_strategy="steps", save_steps=11, **options)
    whole.train()
    again = robust(tmp_path / "a", data=long_tail(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-11"))
    one, two = whole.ledger.rows(), again.ledger.rows()
    assert all(np.array_equal(one[name], two[name], equal_nan=True) for name in one)
    assert not np.array_equal(one["kept"], one["seen"])


class Rows(torch.utils.data.Dataset):
    """The same rows where no column says the labels."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, place):
        row = self.data[place]
        return {"pixel_values": row["pixel_values"], "labels": row["labels"]}


def test_labels_that_only_training_tells_count_from_the_second_epoch_on(tmp_path):
    data = long_tail()
    assert given_labels(Rows(data), "labels") is None and given_labels(data, "labels", 3) is None
    assert given_labels(data, "labels", 4).tolist() == np.asarray(data["labels"]).tolist()
    trainer = robust(tmp_path, data=Rows(data), method="prl", noise_rate=0.4, drop_schedule="constant", num_train_epochs=3)
    trainer.train()
    rows = trainer.ledger.rows()
    assert (rows["kept"] >= 2)[rows["label"] >= 2].all() and trainer._robust_step.run.states["floor"]["keep"].sum() == 5 + 10 + 7


class DropsAll:
    """Drops whom it can; a `BatchRule`."""

    def new_state(self, classes, peers, device):
        return {}

    def weights(self, scores, labels, progress, state):
        return (labels == 0).float().expand_as(scores)

    def divisor(self, weights):
        return weights.sum(1)

    def filter_active(self, progress):
        return True


def test_it_holds_for_rules_of_ones_own(tmp_path):
    for floor in (0, 4):
        own = dataclasses.replace(METHODS["spl"](), selection=DropsAll(), class_floor=floor)
        trainer = robust(tmp_path, data=long_tail(), trainer={"recipe": own}, logging_steps=100)
        trainer.train()
        rows = trainer.ledger.rows()
        kept = [int((rows["kept"] == rows["seen"])[rows["label"] == c].sum()) for c in range(4)]
        assert kept[0] == 40 and kept[2:] == ([3, 2] if floor else [0, 0]) and (kept[1] > 0) == (floor > 0)


def test_the_estimate_of_the_noise_rate_holds_no_class_out_whole(tmp_path):
    """Two fifths of the samples are held out of the updates at first, drawn by chance: all of a rare class, or none."""
    held = []
    for seed in range(2):
        trainer = robust(tmp_path, data=long_tail(), method="prl", noise_rate="auto", max_steps=1, seed=seed, logging_steps=100)
        trainer.train()
        out = trainer._robust_step.weights.estimator.hold_out(torch.arange(59))
        label = torch.as_tensor(np.asarray(long_tail()["labels"]))
        assert int(out.sum()) == 23 and not out[label >= 2].any()
        held.append(out)
    assert not torch.equal(held[0], held[1])
