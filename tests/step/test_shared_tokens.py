"""Texts without the tokens that are tied to one label: what is left is what the model would read had they never been there."""

import numpy as np
import pytest
import torch
from helpers.text import CLASSES, CONFIGS, net, padded, sentences

from robust_trainer.evidence.tied_tokens import TiedTokens
from robust_trainer.ledger.ledger import SampleLedger
from robust_trainer.models.modes import eval_mode
from robust_trainer.step.input_reader import TOKENS
from robust_trainer.step.records import MicroBatch, Run
from robust_trainer.step.shared_tokens import Removal, look_without

GONE = (3, 7)


def group(rows):
    tokens = np.isin(np.arange(TOKENS), GONE)
    return TiedTokens(tokens, rows, 0)


def with_tokens(row):
    return bool(np.isin(row["input_ids"].numpy(), GONE).any()) and not np.isin(row["input_ids"].numpy(), GONE).all()


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("side", ["right", "left"])
def test_features_are_those_of_the_texts_without_the_words(kind, side):
    if side == "left" and kind != "llama":
        pytest.skip("absolute positions are counted from the left, padding included")
    model, rows = net(kind).eval(), sentences(24)
    chosen = np.array([with_tokens(row) for row in rows])
    batches = []
    for start in range(0, 24, 8):
        batch = padded(rows[start : start + 8], side)
        labels = batch.pop("labels")
        batches.append(MicroBatch(batch, labels, torch.arange(start, start + 8)))

    def read(batch):
        return [model(**batch.inputs).logits]

    run = Run(recipe=None, device=torch.device("cpu"), classes=CLASSES, ledger=SampleLedger(24))
    with torch.no_grad(), eval_mode(model):
        as_given = torch.cat([read(batch)[0] for batch in batches])
        (found,) = look_without(model, batches, run, [group(chosen)], [as_given], read)
        for i, row in enumerate(rows):
            ids = row["input_ids"]
            kept = ids[~torch.isin(ids, torch.tensor(GONE))] if chosen[i] else ids
            alone = model(input_ids=kept.unsqueeze(0), attention_mask=torch.ones(1, len(kept), dtype=torch.long)).logits[0]
            torch.testing.assert_close(found[i], alone, atol=1e-5, rtol=1e-5)
    assert chosen.any() and not chosen.all() and torch.equal(found[~chosen], as_given[~chosen])


def test_nothing_is_looked_at_without_a_mask_or_where_the_model_fails():
    rows = padded(sentences(8))
    labels = rows.pop("labels")
    run = Run(recipe=None, device=torch.device("cpu"), classes=CLASSES, ledger=SampleLedger(8))
    everyone, features = [group(np.ones(8, dtype=bool))], [torch.zeros(8, 2)]
    bare = MicroBatch({"input_ids": rows["input_ids"]}, labels, torch.arange(8))
    assert Removal.of(everyone, run.device).without(bare.inputs, bare.positions, 0) is None

    def fails(batch):
        raise RuntimeError("no")

    whole = MicroBatch(rows, labels, torch.arange(8))
    assert look_without(net(), [bare], run, everyone, features, lambda batch: [torch.zeros(8, 2)]) == []
    assert look_without(net(), [whole], run, everyone, features, fails) == []
    assert look_without(net(), [whole], run, [], features, fails) == []
