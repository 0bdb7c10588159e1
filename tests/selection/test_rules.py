"""The simple rules against loops, and steps of PRL(G) and per-sample clipping written out one sample at a time."""

import copy

import pytest
import torch
from helpers.tables import every_row
from helpers.toy import batches, images, logits_module, robust, vit
from torch import nn

from robust_trainer.selection.rules import ClipSamples, KeepByScore, KeepDisputed, KeepSmallest
from robust_trainer.types import Progress

START = Progress(0.0, 10.0)


@every_row("size,group", [(12, None), (12, 4), (13, 4), (3, 8), (1, None)])
def test_smallest_of_each_group(size, group):
    scores = torch.rand(2, size, generator=torch.Generator().manual_seed(size))
    weights = KeepSmallest(group).weights(scores, torch.zeros(size), START, {})
    for row, kept in zip(scores.tolist(), weights.tolist()):
        step = group or size
        expected = [0.0] * size
        for begin in range(0, size, step):
            part = row[begin : begin + step]
            expected[begin + part.index(min(part))] = 1.0
        assert kept == expected
    spoiled = scores.clone()
    spoiled[:, 0] = float("nan")
    assert size == 1 or not KeepSmallest(group).weights(spoiled, torch.zeros(size), START, {})[:, 0].any()


def test_clipping_and_disagreement():
    scores = torch.tensor([[0.0, 0.5, 1.0, 4.0, float("inf"), float("nan")]])
    weights = ClipSamples(1.0).weights(scores, scores[0], START, {})
    assert weights.tolist() == [[1.0, 1.0, 1.0, 0.25, 0.0, 0.0]] and ClipSamples().divisor(weights).tolist() == [6.0]
    agreed = torch.tensor([[1.0, 0.0]])
    assert KeepDisputed().weights(agreed, scores[0], START, {}).tolist() == [[1.0, 1.0]]
    assert KeepDisputed().weights(agreed, scores[0], Progress(1.0, 10.0), {}).tolist() == [[0.0, 1.0]]


def test_exchange_rolls_the_peers():
    scores = torch.stack([torch.arange(200.0), torch.arange(200.0).flip(0)])
    rule = KeepByScore(0.5)
    own = rule.weights(scores, torch.zeros(200, dtype=torch.long), START, rule.new_state(2, 2, torch.device("cpu")))
    rule = KeepByScore(0.5, peer_exchange="next")
    theirs = rule.weights(scores, torch.zeros(200, dtype=torch.long), START, rule.new_state(2, 2, torch.device("cpu")))
    assert torch.equal(own.flip(0), theirs) and own[0, :100].all() and theirs[1, :100].all()


@pytest.mark.parametrize(
    "method,make", [("prl-g", logits_module), ("prl-g", vit), ("ignormclip", logits_module), ("min-sgd", logits_module)]
)
def test_a_step_written_out(tmp_path, method, make):
    """Plain SGD: each sample's gradient by autograd, ranked or clipped by its norm over all parameters, then averaged."""
    size, rate, largest, lr = 128, 0.3, 0.7, 0.2
    own = {"prl-g": dict(noise_rate=rate, drop_schedule="constant"), "ignormclip": dict(sample_clip_norm=largest)}.get(method, {})
    trainer = robust(
        tmp_path, make(), images(size * 2), method=method, optim="sgd", learning_rate=lr, per_device_train_batch_size=size,
        max_grad_norm=0.0, num_train_epochs=1, **own,
    )  # fmt: skip
    net = copy.deepcopy(trainer.model)
    seen = batches(trainer)
    trainer.train()
    owed = 0.0
    for batch in seen:
        rows = []
        for x, y in zip(batch["pixel_values"], batch["labels"]):
            out = net(x[None])
            loss = nn.functional.cross_entropy(getattr(out, "logits", out), y[None])
            # a ViT's pooler-less heads leave no parameter out; the norm is over all of them
            rows.append((loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])))
        norms = torch.stack([g for _, g in rows]).norm(dim=1)
        if method == "prl-g":
            asked = (1 - rate) * size + owed
            keep = norms.argsort()[: int(asked + 1e-4)]
            owed = asked - len(keep)
            step = torch.stack([rows[i][1] for i in keep]).mean(0)
        elif method == "ignormclip":
            step = torch.stack([g * min(1.0, largest / float(n)) for (_, g), n in zip(rows, norms)]).mean(0)
        else:
            step = min(rows, key=lambda row: row[0])[1]
        with torch.no_grad():
            for p, g in zip(net.parameters(), step.split([p.numel() for p in net.parameters()])):
                p -= lr * g.view_as(p)
    assert len(seen) == 2
    for a, b in zip(trainer.model.parameters(), net.parameters()):
        assert torch.allclose(a, b, atol=1e-5), (a - b).abs().max()
    scores = trainer.ledger.last_score[seen[-1]["_robust_index"]]
    if method != "min-sgd":
        assert torch.allclose(scores, norms, rtol=1e-4)


def test_norm_clipping_replaces_the_trainers_own(tmp_path):
    """clip_norm bounds the step's gradient whether max_grad_norm is larger, smaller or off."""
    moved = []
    for largest in (0.0, 0.01, 5.0):
        model = vit()
        before = [p.detach().clone() for p in model.parameters()]
        trainer = robust(
            tmp_path, model, method="normclip", clip_norm=0.1, optim="sgd", learning_rate=1.0, max_steps=1, max_grad_norm=largest
        )
        trainer.train()
        moved.append(torch.cat([(a - b).detach().flatten() for a, b in zip(before, model.parameters())]).norm().item())
    assert moved == pytest.approx([0.1] * 3, rel=1e-3)
