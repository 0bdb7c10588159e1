"""PendingRecords wait and are recorded together: nothing that reads the ledger can tell."""

import pytest
import torch
from helpers.toy import images, robust, vit

import robust_trainer.ledger.pending as room
from robust_trainer.ledger.pending import STEPS, PendingRecords, StepRecord


def visit(n=3, peers=1, classes=4, epoch=0, filter_active=True):
    labels = torch.zeros(n, dtype=torch.long)
    return StepRecord(torch.randn(peers, n, classes), torch.rand(n), torch.ones(n), labels, torch.arange(n), epoch, filter_active)


def test_they_are_taken_in_their_order_and_once():
    visits, given = PendingRecords(), [visit(n, peers=2) for n in (3, 1, 2)]
    visits.waiting += given
    taken = visits.flush()
    assert torch.equal(taken.logits, torch.cat([v.logits for v in given], 1)) and taken.logits.shape == (2, 6, 4)
    for name in ("score", "weight", "labels", "index"):
        assert torch.equal(getattr(taken, name), torch.cat([getattr(v, name) for v in given])), name
    assert visits.flush() is None


def test_only_alike_ones_wait_together(monkeypatch):
    visits = PendingRecords([visit()])
    assert visits.accepts(visit()) and not visits.accepts(visit(epoch=1)) and not visits.accepts(visit(filter_active=False))
    visits.waiting += [visit() for _ in range(STEPS - 2)]
    assert not visits.full
    visits.waiting.append(visit())
    assert visits.full
    monkeypatch.setattr(room, "NUMBERS", 20)
    assert not PendingRecords([visit()]).full and PendingRecords([visit(), visit()]).full


@pytest.mark.parametrize("method", ["prl-at-memory", "co-prl", "erat"])
def test_waiting_changes_nothing(tmp_path, monkeypatch, method):
    """The same ledger and the same log, number by number, as when every step is recorded by itself."""
    found = []
    for steps in (1, STEPS):
        monkeypatch.setattr(room, "STEPS", steps)
        sizes = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "logging_steps": 7}
        trainer = robust(tmp_path, vit(), images(31), method=method, **sizes, **({"steps": 1} if method == "erat" else {}))
        trainer.train()
        told = [{k: v for k, v in row.items() if "time" not in k and "per_second" not in k} for row in trainer.state.log_history]
        found.append((trainer.ledger.columns, told))
    for name, column in found[0][0].items():
        assert torch.equal(column, found[1][0][name]), name
    assert len(found[0][1]) == len(found[1][1])
    for one, other in zip(found[0][1], found[1][1]):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_reader_in_the_middle_of_an_epoch_sees_every_step(tmp_path):
    from transformers import TrainerCallback

    counts = []

    class Reader(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            counts.append(int(trainer.ledger.seen.sum()))

    trainer = robust(tmp_path, vit(), images(40), method="prl", num_train_epochs=1, per_device_train_batch_size=8)
    trainer.add_callback(Reader())
    trainer.train()
    assert counts == [8, 16, 24, 32, 40]
