"""A ledger in parts, one a process, is the ledger that one process holds, bit for bit: visits, reading, checkpoints, trainings."""

import numpy as np
import pytest
import torch
from helpers.processes import launch
from helpers.toy import images, logits_module, robust

from robust_trainer.ledger import parts as ledger_parts
from robust_trainer.ledger.ledger import SampleLedger
from robust_trainer.ledger.margins import trace
from robust_trainer.ledger.parts import Parts
from robust_trainer.ledger.pending import gathered
from robust_trainer.selection.rules import KeepByScore

ROWS, CLASSES, NETWORKS = 37, 4, 2  # 37: the last part is shorter


def together(tensor):
    every = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(every, tensor.contiguous())
    return torch.cat(every)


def summed(tensor):
    torch.distributed.all_reduce(tensor := tensor.clone())
    return tensor


def own_parts():
    return Parts(ROWS, torch.distributed.get_world_size(), torch.distributed.get_rank(), together, summed)


def made(parts=None, **given):
    return SampleLedger(ROWS, classes=CLASSES, networks=NETWORKS, judged=True, parts=parts, **given)


def same(one, other, names=None):
    columns, others = one.columns, other.columns
    assert [*columns] == [*others]
    for name in names or columns:
        assert torch.equal(columns[name], others[name]) and columns[name].dtype == others[name].dtype, name


@pytest.mark.parametrize(("processes", "wide"), [pytest.param(2, True, marks=pytest.mark.slow), (3, False)])
def test_visits_are_those_of_a_whole_ledger(tmp_path, processes, wide):
    """Repeats within a step and an epoch, rows that nobody visits; a checkpoint of parts is read whole, and the other way round."""

    def work(out):
        generator = torch.Generator().manual_seed(torch.distributed.get_rank())
        split, whole = made(own_parts(), wide=wide), made(wide=wide)
        assert len(split) == ROWS and len(split._counts) == -(-ROWS // processes) + 1
        for epoch in range(3):
            for _ in range(4):
                index = torch.randint(ROWS - 2, (5,), generator=generator)
                logits = torch.randn(NETWORKS, 5, CLASSES, generator=generator)
                rivals = split.rivals(index)
                assert torch.equal(rivals, whole.rivals(index)) and rivals.dtype == whole.rivals(index).dtype
                table = [index, torch.rand(5, generator=generator), trace(logits, index % CLASSES, rivals), logits.transpose(0, 1)]
                index, score, margins, logits = gathered(table, together)
                for ledger in (split, whole):
                    ledger.record(
                        index, score, (score > 0.4).float(), index % CLASSES, logits.mean(1).argmax(-1), epoch, True, margins,
                        logits.softmax(-1).mean(1), logits.logsumexp(-1),
                    )  # fmt: skip
            same(split, whole)
            assert split.detection() == {} and split.network_losses() == whole.network_losses()
        split.columns["keep"] = torch.arange(ROWS) % 2 == 0
        assert split.keep.sum() == 19
        with pytest.raises(ValueError, match=r"column 'seen' of the ledger is in parts, one a process: change _columns\['seen'\]"):
            split.columns["seen"] = torch.zeros(ROWS)
        with pytest.raises(ValueError, match="column 'keep' of the ledger cannot be removed"):
            del split.columns["keep"]
        whole.columns["keep"] = split.columns["keep"]
        with split.gathered(here=torch.distributed.get_rank() == 0):
            if torch.distributed.get_rank() == 0:  # alone
                for name, rows in whole.rows().items():
                    np.testing.assert_array_equal(split.rows()[name], rows, err_msg=name)
        state = split.state()
        again, entire = made(own_parts(), wide=wide), made(wide=wide)
        for ledger in (again, entire):
            ledger.load_state(state)
            same(ledger, split)
        again.unite()
        assert again._parts is None
        if torch.distributed.get_rank() == processes - 1:  # alone, and it goes on as a whole one
            same(again, entire)
            for ledger in (again, entire):
                at = torch.arange(3)
                ledger.record(at, torch.rand(3).fill_(0.3), torch.ones(3), at, at, 7)
            same(again, entire)

    launch(work, processes, tmp_path, tmp_path)


def test_tables_are_exchanged_bit_for_bit():
    tables = [torch.tensor([[float("nan"), -0.0], [1e-45, torch.inf]]), torch.tensor([2**62 + 1, -1]), torch.rand(2, 1, 3).double()]
    for one, other in zip(tables, gathered(tables, lambda t: torch.cat([t, t]))):
        assert other.dtype == one.dtype and other.shape == (4, *one.shape[1:])
        bits = [t.contiguous().view(torch.uint8) for t in (torch.cat([one, one]), other)]
        assert torch.equal(*bits)


RUNS = {
    "prl-at-memory": dict(drop_ramp_steps=2, steps=1, noise_rate=0.25),
    "prl": dict(memory="scan", drop_schedule="constant", noise_rate=0.25),
    "co-prl": dict(drop_schedule="constant", noise_rate=0.25),
    "auto": dict(),
}  # fmt: skip
SIZE = 61


def train(out, method, rows, resume=None, batch=12):
    """A training whose ledger is in parts from so many rows on: the trainer, and its log without timings."""
    ledger_parts.PARTS_FROM = rows
    sizes = dict(num_train_epochs=2, per_device_train_batch_size=batch, logging_steps=1, save_strategy="steps", save_steps=3)
    trainer = robust(out, logits_module(), images(SIZE), method=method, **{**RUNS[method], **sizes})
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.ledger._parts is None
    torch.distributed.barrier()
    logs = trainer.state.log_history
    return trainer, [{k: v for k, v in row.items() if "second" not in k and "runtime" not in k} for row in logs]


def alike(one, other, last=None):
    same(one[0].ledger, other[0].ledger)
    assert one[1][:last] == other[1][:last] and len(one[1]) > 5
    for a, b in zip(one[0].model.parameters(), other[0].model.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", ["prl-at-memory", *(pytest.param(name, marks=pytest.mark.slow) for name in [*RUNS][1:])])
def test_trainings_are_those_with_a_whole_ledger(tmp_path, method):
    """Weights, log and ledger; and a run that goes on in parts from a checkpoint of parts."""

    def work(out):
        whole = train(out / "whole", method, SIZE + 1)
        alike(whole, train(out / "parts", method, SIZE))
        alike(whole, train(out / "parts", method, SIZE, str(out / "parts" / "checkpoint-3")), last=-1)  # the last has mean and time

    launch(work, 2, tmp_path, tmp_path / "logs")


def test_a_decision_that_fails_on_the_first_process_ends_all(tmp_path):
    def work(out):
        def fails(*args, **kwargs):
            assert torch.distributed.get_rank() == 0
            raise KeyError("a rule of the user's")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KeepByScore, "keep_mask", fails)
            rank = torch.distributed.get_rank()
            with pytest.raises(RuntimeError if rank else KeyError, match="a rule of the user's"):
                train(out, "prl-at-memory", SIZE)

    launch(work, 2, tmp_path, tmp_path / "logs")


@pytest.mark.slow
def test_three_processes_go_on_with_the_parts_of_two(tmp_path):
    """From a checkpoint in parts: in parts again, and whole; the ledger counts what that of two has counted."""

    def two(out):
        trainer, _ = train(out, "prl-at-memory", SIZE)
        torch.save({name: column.clone() for name, column in trainer.ledger.columns.items()}, out / "columns.pt")

    def three(out):
        for rows in (SIZE, SIZE + 1):
            trainer, _ = train(out / str(rows), "prl-at-memory", rows, str(out / "checkpoint-3"), batch=8)
            for name in ("seen", "kept", "label", "epoch", "doubt"):
                assert torch.equal(trainer.ledger.columns[name], torch.load(out / "columns.pt")[name]), name

    launch(two, 2, tmp_path, tmp_path / "two")
    launch(three, 3, tmp_path, tmp_path / "three")
