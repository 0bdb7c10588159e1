"""The ledger's learning curves against a loop over the logits that the model really returned."""

import numpy as np
import pytest
import torch
from helpers.toy import CLASSES, images, resnet, robust, vit

from robust_trainer.ledger.ledger import SampleLedger
from robust_trainer.ledger.margins import QUANTA, RIVAL_DECAY, follow_rival, forgotten, trace


def slow(logits, label):
    """One sample's curves from its logits per visit (V, M, C) and its label."""
    out = {"margins": [], "logit_margins": [], "forgetting": -1, "rival": None, "confidence": 0.0, "right": None}
    for visit in logits.double():
        p, z = visit.softmax(-1).mean(0), visit.mean(0)
        others = [c for c in range(len(z)) if c != label]
        out["logit_margins"].append(float(z[label] - max(z[c] for c in others)))
        best = max(others, key=lambda c: float(p[c]))
        out["margins"].append(float(p[label] - p[best]))
        right = int(z.argmax()) == label
        if out["forgetting"] < 0:
            out["forgetting"] = 0 if right else -1
        elif out["right"] and not right:
            out["forgetting"] += 1
        out["right"] = right
        if out["rival"] is None:
            out["rival"], out["confidence"] = best, float(p[best])
            continue
        now = RIVAL_DECAY * out["confidence"] + (1 - RIVAL_DECAY) * float(p[out["rival"]])
        bid = (1 - RIVAL_DECAY) * float(p[best])
        if best != out["rival"] and bid > now:
            out["rival"], now = best, bid
        out["confidence"] = now
    return out


@pytest.mark.parametrize("peers", [1, 2])
def test_the_curves_equal_a_loop(peers):
    generator = torch.Generator().manual_seed(0)
    n, visits, classes = 60, 12, 5
    drift = torch.randn(n, 1, classes, generator=generator) * 2
    logits = drift.unsqueeze(0) + 1.5 * torch.randn(visits, n, peers, classes, generator=generator)
    labels, ledger = torch.randint(classes, (n,), generator=generator), SampleLedger(n, classes=classes)
    for epoch in range(visits):
        for index in torch.randperm(n, generator=generator).split(7):
            z = logits[epoch, index].transpose(0, 1)
            told = trace(z, labels[index], ledger.rival[index])
            probs = z.softmax(-1).mean(0)
            predicted = z.mean(0).argmax(-1)
            zero, one = torch.zeros(len(index)), torch.ones(len(index))
            for _ in range(2):  # the second is a repeat within the epoch
                ledger.record(index, zero, one, labels[index], predicted, epoch, True, told, probs)
    rows = ledger.rows()
    changed = 0
    for i in range(n):
        want = slow(logits[:, i], int(labels[i]))
        assert rows["aum"][i] == pytest.approx(np.mean(want["logit_margins"]), abs=1e-5)
        assert rows["margin"][i] == pytest.approx(np.mean(want["margins"]), abs=1e-5)
        assert rows["forgetting"][i] == want["forgetting"] and rows["rival"][i] == want["rival"]
        assert rows["rival_confidence"][i] == pytest.approx(want["confidence"], abs=visits / QUANTA)
        changed += want["forgetting"] > 0
        mean = logits[:, i].softmax(-1).mean((0, 1))
        assert np.allclose(rows["mean_probs"][i], mean.numpy(), atol=1e-5)
    assert changed > 5 and (rows["forgetting"] == -1).any()


@pytest.mark.parametrize("method", ["prl-at-memory", "trades", "co-prl", "erat"])
def test_a_training_records_what_the_first_forward_said(tmp_path, method):
    """AUM from the logits that the recorded view had, for methods with one forward, an attack, two forwards, peers and a scan."""
    trainer = robust(tmp_path, resnet(), images(24), method=method, num_train_epochs=3)
    seen = []
    import robust_trainer.ledger.pending as visits_room
    import robust_trainer.step.dataset_scores as scan_room

    def watched(logits, labels, rivals, real=visits_room.trace):
        seen.append((logits.detach().clone(), labels.clone()))
        return real(logits, labels, rivals)

    real = visits_room.trace
    visits_room.trace = scan_room.trace = watched
    try:
        trainer.train()
    finally:
        visits_room.trace = scan_room.trace = real
    rows = trainer.ledger.rows()
    assert np.isfinite(rows["aum"]).all() and (np.abs(rows["margin"]) <= 1).all() and (rows["rival"] != rows["label"]).all()
    assert (rows["rival"] >= 0).all() and (rows["rival"] < CLASSES).all() and seen
    if method != "erat":  # its steps record nothing after the scan of an epoch
        every = torch.cat([_margins(z, y) for z, y in seen])
        recorded = float((rows["aum"] * rows["seen"]).sum() / rows["seen"].sum())
        assert float(every.mean()) == pytest.approx(recorded, rel=1e-4, abs=1e-5)


def _margins(logits, labels):
    z = logits.float().mean(0)
    own = z.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own - z.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)


def test_margins_are_those_of_the_inputs_as_they_came(tmp_path):
    """A method that attacks records its first, clean forward: with weights that stand still, those of the plain images."""
    model, data = vit(), images(24)
    trainer = robust(tmp_path, model, data, method="prl-at-memory", eps=0.2, num_train_epochs=1, learning_rate=0.0)
    trainer.train()
    with torch.no_grad():
        z = model.eval()(pixel_values=torch.as_tensor(data["pixel_values"][:])).logits
    want = _margins(z.unsqueeze(0), torch.as_tensor(data["labels"][:]))
    assert np.allclose(trainer.ledger.rows()["aum"], want.numpy(), atol=1e-4)


def test_no_margins_for_numbers():
    ledger = SampleLedger(3)
    index = torch.arange(3)
    ledger.record(index, torch.rand(3), torch.ones(3), torch.full((3,), -1), torch.full((3,), -1.0), 0)
    rows = ledger.rows()
    assert np.isnan(rows["aum"]).all() and np.isnan(rows["margin"]).all() and (rows["forgetting"] == -1).all()


def test_a_class_of_its_own_has_no_rival():
    told = trace(torch.randn(1, 4, 1), torch.zeros(4, dtype=torch.long), torch.full((4,), -1))
    assert told[:, 2].eq(-1).all() and told[:, :2].eq(0).all()


def test_nan_logits_do_not_spread_and_count_as_such():
    ledger, index, labels = SampleLedger(2), torch.arange(2), torch.zeros(2, dtype=torch.long)
    z = torch.tensor([[[torch.nan] * 3, [2.0, 1.0, 0.0]]])
    for epoch in range(2):
        told = trace(z, labels, ledger.rival[index])
        ledger.record(index, torch.zeros(2), torch.ones(2), labels, z[0].argmax(-1), epoch, True, told)
    rows = ledger.rows()
    assert np.isnan(rows["aum"][0]) and rows["aum"][1] == pytest.approx(1.0)
    assert rows["rival"][1] == 1 and 0 <= rows["rival_confidence"][0] <= 1


def test_forgetting_counts():
    """Right, wrong, right, wrong: two events; wrong, right: none; never right: -1 (Toneva et al. 2019)."""
    for visits, want in (([1, 0, 1, 0], 2), ([0, 1], 0), ([0, 0], -1), ([0, 1, 0, 0, 1, 0], 2)):
        events, before = torch.tensor([-1], dtype=torch.int16), torch.tensor([False])
        for k, right in enumerate(visits):
            now = torch.tensor([bool(right)])
            events, before = forgotten(events, torch.tensor([k]), before, now), now
        assert int(events) == want


def test_the_rival_needs_more_than_one_odd_visit():
    rival, confidence = torch.tensor([2], dtype=torch.int16), torch.tensor([QUANTA * 8 // 10], dtype=torch.int16)
    odd = torch.tensor([[0.0, 0.0, 1.0, 0.9, 0.05]])
    kept, _ = follow_rival(rival, confidence, torch.tensor([5]), odd)
    assert int(kept) == 2
    for k in range(4):
        rival, confidence = follow_rival(rival, confidence, torch.tensor([5 + k]), odd)
    assert int(rival) == 1


def test_a_model_in_double_precision(tmp_path):
    data = images(24).map(lambda row: {"pixel_values": row["pixel_values"].double()})
    trainer = robust(tmp_path, vit().double(), data.with_format("numpy"), method="prl-at-memory", num_train_epochs=1)
    trainer.train()
    assert np.isfinite(trainer.ledger.rows()["aum"]).all()


@pytest.mark.parametrize("wide", [False, True])
def test_size_and_checkpoint(wide):
    ledger = SampleLedger(100, wide=wide)
    per_row = sum(c.numel() * c.element_size() for c in ledger.columns.values()) / 100
    assert per_row == (61 if wide else 41)
    index = torch.arange(100)
    told = trace(torch.randn(1, 100, 4), index % 4, ledger.rival)
    ledger.record(index, torch.rand(100), torch.ones(100), index % 4, index % 3, 0, True, told)
    again = SampleLedger(100, wide=wide)
    again.load_state(ledger.state())
    for name, column in ledger.rows().items():
        assert np.array_equal(column, again.rows()[name], equal_nan=True), name
    with pytest.raises(ValueError, match="mean_probs"):
        SampleLedger(100, classes=4).load_state(ledger.state())


def test_many_classes_or_epochs_take_wider_counts():
    assert not SampleLedger.needs_wide(1000, 300) and SampleLedger.needs_wide(2**15, 3)
    assert SampleLedger.needs_wide(10, 2**15) and SampleLedger.needs_wide(None, 3)
    ledger, label = SampleLedger(1, wide=True), torch.tensor([40_000])
    ledger.record(torch.tensor([0]), torch.ones(1), torch.ones(1), label, label.float(), 0)
    assert int(ledger.label[0]) == 40_000 and int(ledger.predicted[0]) == 40_000
