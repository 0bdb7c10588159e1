"""Processes that go through their shares together: what one of them raises, all raise."""

import json

import pytest
import torch
from helpers.processes import launch
from torch import nn

from robust_trainer.step import agreement, feature_pass
from robust_trainer.step.agreement import for_each
from robust_trainer.step.dataset_scores import score_dataset
from robust_trainer.step.feature_pass import look_at_all
from robust_trainer.step.records import MicroBatch, Run

ROWS, SIZE, SIDE, CLASSES = 192, 8, 4, 3


class OddError(Exception):
    """Nothing that Python knows."""


class Bright(nn.Module):
    """Sees the brightness, which tells the class, in large images alone; ``fails`` is called before each forward."""

    def __init__(self, fails=lambda images: None):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.fails, self.seen = nn.Linear(2 * CLASSES, CLASSES), fails, []

    def forward(self, pixel_values, names):
        assert len(names) == len(pixel_values)
        self.fails(pixel_values)
        self.seen.append((pixel_values.shape[2], len(pixel_values)))
        bright = pixel_values.flatten(1).mean(1, keepdim=True)
        strength = 1.0 if pixel_values.shape[2] > SIDE else 0.0
        noise = torch.sin(1e4 * pixel_values.flatten(1).sum(1, keepdim=True) * torch.arange(1, 2 * CLASSES + 1))
        return self.head(strength * (-4 * (bright - torch.arange(2 * CLASSES) / 2).square()).exp() + 0.3 * noise)


def micro_batches():
    """Images with their names, which are a list, and their numbers, a tuple of arrays."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    images = labels.view(-1, 1, 1, 1) + 0.1 * torch.rand(ROWS, 1, SIDE, SIDE, generator=generator)
    return [
        MicroBatch({"pixel_values": images[rows], "names": [str(row) for row in rows.tolist()]}, labels[rows], rows)
        for rows in torch.arange(ROWS).split(SIZE)
    ]


def run_of(rank=0, processes=1):
    def gather(values):
        parts = [torch.empty_like(values) for _ in range(processes)]
        torch.distributed.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def total(values):
        torch.distributed.all_reduce(values)
        return values

    several = {"gather": gather, "total": total} if processes > 1 else {}
    return Run(recipe=None, device=torch.device("cpu"), classes=CLASSES, rank=rank, processes=processes, **several)


def failing(batches, at, error):
    for number, batch in enumerate(batches):
        if number == at:
            raise error
        yield batch


class Failing:
    """Batches of which one fails, as often as they are gone through."""

    def __init__(self, batches, at, error):
        self.batches, self.at, self.error = batches, at, error

    def __iter__(self):
        return failing(self.batches, self.at, self.error)


def raises(error, when=lambda images: True):
    def fails(images):
        if when(images):
            raise error

    return fails


@pytest.mark.parametrize("at", [0, 3])
def test_one_process_raises_what_was_raised(at):
    done = []
    with pytest.raises(OddError, match="^row 7$"):
        for_each(run_of(), failing(micro_batches(), at, OddError("row 7")), done.append)
    assert len(done) == at
    with pytest.raises(OddError, match="^row 8$"):
        for_each(run_of(), micro_batches(), raises(OddError("row 8")))
    for_each(run_of(), [], raises(OddError("of nothing")))


def test_what_one_process_raises_all_raise(tmp_path):
    """The second of two, or each something else; then both go on, with what one process finds alone."""

    def work(out):
        rank = torch.distributed.get_rank()
        agreement.EVERY, feature_pass.TRIED = 3, 50
        run, share = run_of(rank, 2), micro_batches()[rank::2]
        told = {}

        def tell(name, do):
            try:
                told[name] = ["went on", str(do())]
            except Exception as error:
                told[name] = [type(error).__name__, str(error)]

        def look(model, batches=share, enlarge=True, size=ROWS):
            return look_at_all(model, batches, lambda *_: None, run, size, compare=True, enlarge=enlarge)

        second, odd = rank == 1, OddError("a broken\nimage")
        reader = Failing(share, 4, odd) if second else share
        seen = []
        tell("reading", lambda: for_each(run, reader, seen.append))
        tell("reading, asked each time", lambda: for_each(run, reader, seen.append, each=True))
        told["seen"] = len(seen)
        tell("a mistake", lambda: look(Bright(raises(ValueError("mend it")) if second else lambda _: None)))
        tell("the model", lambda: look(Bright(raises(odd) if second else lambda _: None)))
        large = [0]

        def later(images):
            large[0] += len(images) if images.shape[2] > SIDE else 0
            return second and large[0] > 100  # after those that are tried

        tell("enlarged", lambda: look(Bright(raises(RuntimeError("out of memory"), later))))
        headless = Bright()
        headless.head = nn.Identity() if second else headless.head
        wide = nn.Sequential(headless)
        wide.forward = lambda **inputs: headless(**inputs)[:, :CLASSES]
        tell("no features", lambda: look(wide))
        tell("both", lambda: look(wide if second else Bright(raises(odd))))
        recipe = type("", (), {"score": lambda self, output: 1 / 0 if second else torch.zeros(1, SIZE)})()
        run.recipe = recipe
        output = type("", (), {"logits": torch.zeros(1, SIZE, CLASSES)})()
        rival = torch.zeros(ROWS, dtype=torch.long)
        ledger = type("", (), {"rival": rival, "keeps_probs": False, "__len__": lambda self: ROWS})()
        tell("a scan", lambda: score_dataset(run, ledger, Bright(), share, lambda *_: output))
        (out / f"told-{rank}.json").write_text(json.dumps(told))
        torch.save(look(Bright()), out / f"found-{rank}.pt")

    launch(work, 2, tmp_path, tmp_path)
    one, other = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2))
    for name in ("reading", "reading, asked each time", "the model"):
        assert other[name] == ["OddError", "a broken\nimage"], name
        assert one[name] == ["RuntimeError", "process 1: OddError: a broken image"], name
    assert other["seen"] == 8 and one["seen"] == 6 + 4  # up to the next time that they ask each other
    assert one["a mistake"] == ["ValueError", "process 1: mend it"] and other["a mistake"] == ["ValueError", "mend it"]
    assert one["enlarged"] == ["ValueError", f"process 1: {other['enlarged'][1]}"]
    assert "(RuntimeError: out of memory)" in other["enlarged"][1] and "'enlarge': False" in other["enlarged"][1]
    assert one["no features"] == other["no features"] and one["no features"][0] == "went on" and "linear" in one["no features"][1]
    assert one["both"][0] == "OddError" and other["both"] == ["RuntimeError", "process 0: OddError: a broken image"]
    assert other["a scan"][0] == "ZeroDivisionError" and one["a scan"][1].startswith("process 1: ZeroDivisionError: ")
    found = [torch.load(tmp_path / f"found-{rank}.pt", weights_only=False) for rank in range(2)]
    feature_pass_tried = feature_pass.TRIED
    feature_pass.TRIED = 50
    try:
        alone = look_at_all(Bright(), micro_batches(), lambda *_: None, run_of(), ROWS, compare=True, enlarge=True)
    finally:
        feature_pass.TRIED = feature_pass_tried
    assert alone.small is not None
    for each in found:
        torch.testing.assert_close(each.features[0], alone.features[0], rtol=0, atol=2e-3)
        assert torch.equal(each.labels, alone.labels) and torch.equal(each.inputs, alone.inputs) and each.shape == alone.shape
