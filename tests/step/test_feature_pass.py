"""The pass for features: small images enlarged where the network then tells more of the labels, and only there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from robust_trainer.data.batch_rows import rows_of
from robust_trainer.ledger.ledger import SampleLedger
from robust_trainer.step import feature_pass
from robust_trainer.step.feature_pass import ENLARGED, SMALL, TRIED, look_at_all
from robust_trainer.step.records import MicroBatch, Run

CLASSES, SIDE = 3, 8


class Sighted(nn.Module):
    """Sees the brightness, which tells the class, in images from a given side on; in smaller ones next to nothing."""

    def __init__(self, sees_from, largest=10**6, refusal=None):
        super().__init__()
        self.sees_from, self.largest, self.seen = sees_from, largest, []
        self.refusal = refusal or ValueError("Input image size doesn't match model")
        self.head = nn.Linear(2 * CLASSES, CLASSES)

    def forward(self, pixel_values):
        side = pixel_values.shape[2]
        if side > self.largest:
            raise self.refusal
        self.seen.append((side, len(pixel_values)))
        bright = pixel_values.flatten(1).mean(1, keepdim=True)
        levels = torch.arange(2 * CLASSES, device=bright.device) / 2
        strength = 1.0 if side >= self.sees_from else 0.01
        noise = torch.sin(1e4 * pixel_values.flatten(1).sum(1, keepdim=True) * (1 + levels))
        return self.head(strength * (-4 * (bright - levels).square()).exp() + 0.3 * noise)


def micro_batches(n=240, side=SIDE, size=32):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    images = labels.view(-1, 1, 1, 1) + 0.1 * torch.rand(n, 1, side, side, generator=generator)
    batches = []
    for rows in torch.arange(n).split(size):
        targets = labels[rows]
        batches.append(MicroBatch({"pixel_values": images[rows]}, targets, rows))
    return batches, labels


def look(model, n=240, side=SIDE, enlarge=True, **run):
    batches, labels = micro_batches(n, side)
    own = Run(recipe=None, device=torch.device("cpu"), classes=CLASSES, ledger=SampleLedger(n), **run)
    return look_at_all(model, batches, lambda *_: None, own, n, compare=True, enlarge=enlarge), labels


def test_enlarged_images_are_taken_where_they_tell_more():
    model = Sighted(sees_from=2 * SIDE)
    gathered, labels = look(model)
    plain, _ = look(model, enlarge=False)
    assert torch.equal(gathered.small, plain.features[0]) and torch.equal(gathered.labels, labels)
    large = nn.functional.interpolate(micro_batches()[0][0].inputs["pixel_values"], scale_factor=2.0, mode="bilinear")
    seen = []
    handle = model.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model(large)
    handle.remove()
    torch.testing.assert_close(gathered.features[0][:32].float(), seen[0], rtol=0, atol=2e-3)
    assert gathered.shape == (SIDE, SIDE, 1) and gathered.inputs.shape == (240, SIDE * SIDE)  # compared as they are


@pytest.mark.parametrize(
    "model,side,enlarge",
    [
        (Sighted(sees_from=1), SIDE, True),  # tells as much of small ones
        (Sighted(sees_from=2 * SIDE, largest=SIDE), SIDE, True),  # takes one size alone
        (Sighted(sees_from=2 * SIDE, largest=SIDE, refusal=KeyError(2 * SIDE)), SIDE, True),  # and says so in its own way
        (Sighted(sees_from=2 * SIDE), SIDE, False),
        (Sighted(sees_from=SMALL + 2), SMALL + 1, True),  # not small
    ],
)
def test_otherwise_images_stay_as_they_are(model, side, enlarge):
    gathered, _ = look(model, n=64, side=side, enlarge=enlarge)
    plain, _ = look(model, n=64, side=side, enlarge=False)
    assert gathered.small is None and torch.equal(gathered.features[0], plain.features[0])
    assert not model._forward_hooks and not model.head._forward_hooks


def test_what_it_costs(monkeypatch):
    monkeypatch.setattr(feature_pass, "TRIED", 50)
    blind, sighted = Sighted(sees_from=10**6), Sighted(sees_from=2 * SIDE)
    for model, passes in ((blind, 0), (sighted, 240)):
        look(model)
        rows = {side: sum(count for s, count in model.seen if s == side) for side in (SIDE, ENLARGED * SIDE)}
        assert rows == {SIDE: 240, ENLARGED * SIDE: 50 + passes}
    assert TRIED >= 200


def test_two_processes_decide_as_one_does():
    """Each has every other batch, and both a repeat that fills up the last one; the tried rows are spread over the data."""
    batches, _ = micro_batches(n=1200)
    model = Sighted(sees_from=2 * SIDE)
    gathered, _ = look(model, n=1200, enlarge=False)
    run = Run(recipe=None, device=torch.device("cpu"), classes=CLASSES, seed=5)
    whole, *parts = (feature_pass._Trial(run, 1200) for _ in range(3))
    assert torch.equal(parts[0]._rows, whole._rows) and len(whole._rows.unique()) == TRIED
    assert torch.bincount(whole._rows // 300, minlength=4).min() > TRIED / 6
    with torch.no_grad(), feature_pass.watched(model) as layers:
        shares = [(whole, batches), (parts[0], [*batches[::2], batches[0]]), (parts[1], [*batches[1::2], batches[0]])]
        for trial, share in shares:
            for batch in share:
                trial.see(model, batch, gathered.features[0][batch.positions], layers)
    sums = [trial._sums(2 * CLASSES) for trial in (whole, *parts)]
    both = sums[1] + sums[2]
    torch.testing.assert_close(both[:, :-1] / both[:, -1:], sums[0][:, :-1])
    parts[0].run = Run(
        recipe=None, device=torch.device("cpu"), classes=CLASSES, seed=5, total=lambda t: both if t.dim() else t
    )  # fmt: skip
    assert whole.tells_more(gathered) and parts[0].tells_more(gathered)
    one_failed = Run(recipe=None, device=torch.device("cpu"), classes=CLASSES, total=lambda t: both if t.dim() else t + 1)
    parts[0].run = one_failed
    assert not parts[0].tells_more(gathered)


def test_enlarged_images_need_no_more_memory():
    """A batch's enlarged images come in four parts, none of a single row, which models that squeeze their outputs take amiss."""
    batches, labels = micro_batches(n=70, size=32)
    parts = [*feature_pass._enlarged(batches)]
    assert [len(part) for part in parts] == [8] * 8 + [2] * 3
    assert torch.equal(torch.cat([part.positions for part in parts]), torch.arange(70))
    assert torch.equal(torch.cat([part.targets for part in parts]), labels)
    assert [len(part) for part in feature_pass._enlarged(micro_batches(n=5, size=5)[0])] == [3, 2]
    assert [len(part) for part in feature_pass._enlarged(micro_batches(n=1, size=1)[0])] == [1]


def test_inputs_that_are_lists_are_cut_with_the_rows():
    """A collator may leave what is no tensor in the batch; what has not an entry for each row goes to the model as it is."""
    n = 6
    inputs = {
        "pixel_values": torch.rand(n, 3, 4, 4), "names": list("abcdef"), "sizes": tuple((i, i) for i in range(n)),
        "numbers": np.arange(n), "nested": {"mask": torch.arange(n), "on": True}, "pair": (torch.arange(n), np.arange(n)),
        "words": ["x", "y"], "text": "abcdef", "scale": np.float32(2.0), "count": torch.tensor(n), "none": None, "empty": [],
    }  # fmt: skip
    mask = torch.tensor([True, False, True, False, False, True])
    for rows, kept in ((mask, [0, 2, 5]), (torch.tensor([5, 1]), [5, 1]), (slice(2), [0, 1])):
        cut = rows_of(inputs, rows, n)
        assert list(cut) == list(inputs)
        assert torch.equal(cut["pixel_values"], inputs["pixel_values"][kept])
        assert cut["names"] == ["abcdef"[i] for i in kept] and cut["sizes"] == tuple((i, i) for i in kept)
        assert cut["numbers"].tolist() == kept == cut["nested"]["mask"].tolist() and cut["nested"]["on"] is True
        assert [part.tolist() for part in cut["pair"]] == [kept, kept]
        for name in ("words", "text", "scale", "count", "none", "empty"):
            assert cut[name] is inputs[name] or cut[name] == inputs[name], name
    batches, labels = micro_batches(n=64)
    named = [replace(b, inputs={**b.inputs, "names": [f"{i}" for i in b.positions.tolist()]}) for b in batches]
    for part in feature_pass._enlarged(named):
        assert part.inputs["names"] == [f"{i}" for i in part.positions.tolist()]


@pytest.mark.parametrize("n", [1, 2, 49])
def test_of_few_rows_nothing_is_tried(n):
    model = Sighted(sees_from=2 * SIDE)
    gathered, _ = look(model, n=n)
    assert gathered.small is None and {side for side, _ in model.seen} == {SIDE}


def test_a_number_beyond_an_embedding_never_reaches_it():
    """On a GPU it would be an assertion of the device, after which nothing runs any more."""

    class Places(Sighted):
        def __init__(self):
            super().__init__(sees_from=2 * SIDE)
            self.place, self.asked = nn.Embedding(SIDE, 1), []
            self.place.register_forward_hook(lambda module, inputs, output: self.asked.append(int(inputs[0].max())))

        def forward(self, pixel_values):
            self.place.forward = lambda numbers: torch.zeros(*numbers.shape, 1)  # as a GPU: it does not raise
            self.place(torch.arange(pixel_values.shape[2]))
            return super().forward(pixel_values)

    model = Places()
    gathered, _ = look(model)
    assert gathered.small is None and set(model.asked) == {SIDE - 1} and not model.place._forward_pre_hooks


def test_processes_that_share_a_sharded_model_run_it_equally_often(monkeypatch):
    """Each forward gathers every process's weights: where one has no row to try, or cannot, the other would wait for ever."""
    monkeypatch.setattr(feature_pass, "TRIED", 60)
    monkeypatch.setattr(feature_pass, "is_sharded", lambda model: True)
    batches, _ = micro_batches(n=1200, size=4)
    model = Sighted(sees_from=2 * SIDE)
    shares, votes = (batches[::2], batches[1::2]), []

    def forwards(share, agreed):
        trial, calls = feature_pass._Trial(Run(recipe=None, device=torch.device("cpu"), classes=CLASSES), 1200), []
        model.seen.clear()
        answers = iter(agreed)

        def all_agree(flag, device):
            votes.append(flag)
            return next(answers, True)

        monkeypatch.setattr(feature_pass, "all_agree", all_agree)
        with torch.no_grad(), feature_pass.watched(model) as layers:
            for batch in share:
                before = len(model.seen)
                trial.see(model, batch, torch.zeros(len(batch), 2 * CLASSES), layers)
                calls.append(len(model.seen) - before)
        tried = torch.cat([slots for slots, _ in trial._found])
        assert not bool((tried < 0).any())
        return calls, len(tried)

    (one, some), (other, rest) = (forwards(share, ()) for share in shares)
    assert one == other == [1] * 150 and some + rest == 60 and all(votes)
    votes.clear()
    one, _ = forwards(shares[0], [True] * 9 + [False] + [False] * 140)  # another process cannot from its tenth batch on
    assert one == [1] * 9 + [0] * 141 and votes[:11] == [True] * 10 + [False] and len(votes) == 150
