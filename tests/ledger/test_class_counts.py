"""How many samples of each class are kept, and of which classes hardly anybody is."""

import numpy as np
import torch
from helpers.tables import every_row
from helpers.toy import images, robust

from robust_trainer.ledger.class_counts import count_classes, trusted_by_class
from robust_trainer.ledger.ledger import SampleLedger


@every_row("seed", range(8))
def test_the_counts_are_the_loops(seed):
    rng = np.random.default_rng(seed)
    label, left = rng.integers(-1, 9, 120), rng.random(120) < 0.3
    found = count_classes(["a"] * 3, label, left)
    for c in range(len(found.samples)):
        mine = [i for i in range(120) if label[i] == c]
        kept = sum(left[i] for i in mine)
        assert (found.samples[c], found.left[c]) == (len(mine), kept)
        assert found.few[c] == (len(mine) > 0 and kept < min(max(len(mine) // 4, 1), 10))


def test_classes_are_named_safely_and_not_all_of_ten_thousand():
    names = ["cat\x1b[31m", "dog"]
    counts = count_classes(names, np.array([0, 0, 1, 1, 2]), np.array([False, False, True, True, False]))
    assert counts.told(counts.few) == "cat\ufffd[31m (0 of 2), 2 (0 of 1)"
    assert counts.rows()[1] == {"class": "dog", "samples": 2, "kept": 2, "few": False} and "\x1b" not in counts.rows()[0]["class"]
    many = count_classes((), np.arange(10_000), np.zeros(10_000, bool))
    assert many.told(many.few).endswith("19 (0 of 1) and 9980 more")


def test_samples_that_training_saw_are_counted_by_the_ledgers_labels():
    ledger = SampleLedger(5, run={"names": ["a", "b"]})
    assert trusted_by_class(ledger) is None
    ledger._columns["label"][:] = torch.tensor([0, 0, 1, 1, 1])
    ledger._columns["seen"][:] = torch.tensor([1, 1, 1, 1, 0])
    ledger._columns["doubt"][:] = torch.tensor([0, 1, 1, 1, 0])
    counts = trusted_by_class(ledger)
    assert counts.samples.tolist() == [2, 2] and counts.left.tolist() == [1, 0]


def test_a_class_that_the_selection_empties_is_told_once_by_its_name(tmp_path, caplog):
    """A model that gives every sample to class 0: all others are the suspicious ones, and it was not said."""
    from transformers.utils import logging

    data = images(60, noisy=0.0)
    trainer = robust(
        tmp_path, data=data, method="prl", noise_rate=0.9, drop_schedule="constant", num_train_epochs=3, learning_rate=0.0
    )
    with torch.no_grad():
        trainer.model.head.weight.zero_()
        trainer.model.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
    logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            trainer.train()
    finally:
        logging.disable_propagation()
    lines = [r.getMessage() for r in caplog.records if "hardly any sample of class" in r.getMessage()]
    assert (
        len(lines) == 1 and all(f"{c} (" in lines[0] for c in (1, 2, 3)) and "0 (" not in lines[0] and "per_class=True" in lines[0]
    )
