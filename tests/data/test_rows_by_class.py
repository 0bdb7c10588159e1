"""Samples by class, in one pass."""

import numpy as np
from helpers.tables import every_row

from robust_trainer.data.labels import rows_by_class
from robust_trainer.evidence.patterns import _class_means


@every_row("seed", range(12))
def test_rows_by_class_are_the_loops(seed):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 30))
    labels = rng.integers(-2, classes + 3, int(rng.integers(0, 80)))
    found = rows_by_class(labels, classes)
    assert len(found) == classes
    assert all((rows == np.flatnonzero(labels == c)).all() and len(rows) == (labels == c).sum() for c, rows in enumerate(found))


@every_row("seed", range(6))
def test_the_means_of_classes_are_the_loops_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    x, labels, chosen = rng.normal(size=(70, 5)).astype(np.float32), rng.integers(0, 12, 70), rng.random(70) < 0.4
    means = [x[chosen & (labels == k)].mean(0) if (chosen & (labels == k)).any() else None for k in range(12)]
    assert (_class_means(x, labels, chosen, 12) == np.stack([x[chosen].mean(0) if m is None else m for m in means])).all()
    of_classes = _class_means(x, labels, chosen, 12, mean_of_classes=True)
    assert (of_classes == np.mean([m for m in means if m is not None], axis=0)).all()
