"""A scan of the data set leaves the training as it was, and several networks trade in the documented direction."""

import random

import numpy as np
import pytest
import torch
from helpers import erat_reference as slow
from helpers.toy import curve, images, robust, vit
from transformers import TrainerCallback

from robust_trainer.selection.erat_split import Split
from robust_trainer.types import Progress


def noisy(rows):
    """A transform that draws from Python's, numpy's and torch's generators, as augmentations do."""
    x = torch.as_tensor(np.asarray(rows["pixel_values"], dtype=np.float32))
    draws = (random.random(), float(np.random.uniform()), float(torch.rand(())))
    return {"pixel_values": list(x + 0.05 * sum(draws)), "labels": [int(label) for label in rows["labels"]]}


def test_a_scan_with_dropout_and_a_random_transform_leaves_the_training_as_it_was(tmp_path):
    """Where everybody is kept, training with a scan at each epoch is training without one, number by number."""
    curves, scanned = [], []
    for memory in ("scan", "none"):
        trainer = robust(
            tmp_path, vit(dropout=0.3), images(32).with_transform(noisy), method="prl", noise_rate=0.0, memory=memory,
            num_train_epochs=3, remove_unused_columns=False,
        )  # fmt: skip
        trainer.train()
        curves.append(curve(trainer))
        scanned.append(int(trainer.ledger.columns["keep"].numel()) and "keep" in trainer._robust_step.run.states)
    assert scanned == [True, False] and curves[0] == curves[1]


@pytest.mark.parametrize("micro", [1, 2])
def test_each_of_three_networks_trains_on_what_the_one_before_it_keeps(tmp_path, micro):
    """``peer_exchange="next"``: network m's weights are those that network m - 1's scores give, so network 0's are the last's."""
    trainer = robust(
        tmp_path, data=images(24), method="co-prl", num_networks=3, peer_exchange="next", noise_rate=0.25,
        drop_schedule="constant", rank_among="batch", max_steps=2, per_device_train_batch_size=24 // micro,
        gradient_accumulation_steps=micro,
    )  # fmt: skip
    decider, seen = trainer, []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            weights = decider._robust_step.weights
            real = weights.decide_weights

            def watched(batches, place, progress, scores):
                decided = real(batches, place, progress, scores)
                seen.append((torch.cat(list(scores), 1), torch.cat(decided, 1)))
                return decided

            weights.decide_weights = watched

    trainer.add_callback(Watch())
    trainer.train()
    assert len(seen) == 2
    for scores, weights in seen:
        kept = [set(row.argsort()[:18].tolist()) for row in scores]
        assert kept[0] != kept[1] != kept[2] != kept[0]
        assert [set(row.nonzero().flatten().tolist()) for row in weights] == [kept[2], kept[0], kept[1]]


@pytest.mark.parametrize("train,evaluation,scanned", [(32, 8, 2), (8, 64, 1), (8, 8, 6)])
def test_a_scan_takes_the_larger_one_of_the_two_batches(tmp_path, train, evaluation, scanned):
    """By the Trainer's default evaluation batch of 8 a scan took most of a training with batches of 256."""
    trainer = robust(
        tmp_path, data=images(48), method="rebalanced", warmup_epochs=0.0, max_steps=1, per_device_train_batch_size=train,
        per_device_eval_batch_size=evaluation,
    )  # fmt: skip
    sizes = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: None if module.training else sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    trainer.train()
    assert len(sizes) == scanned and sum(sizes) == 48


def test_rebalancing_over_many_classes_is_the_slow_loop():
    """Few samples a class, and classes without any: what each class keeps, against a loop over the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 800, (400,), generator=generator)
    scores = torch.rand(400, generator=generator)
    mask = Split(scale="minmax").keep_mask(scores, scores, labels, 800, Progress(20.0, 30.0), torch.ones(400, dtype=torch.bool))
    expected, counts = slow.split(scores.double().tolist(), labels.tolist(), [True] * 400, 800, 0.1, "minmax")
    assert mask.tolist() == expected and sum(counts) == int(mask.sum())
