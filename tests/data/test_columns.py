"""How many classes a column of numbers has, where nothing names them."""

import logging
import re

import datasets
import numpy as np
import pytest

from robust_trainer.corruptions import corrupt_labels
from robust_trainer.data import columns


def numbered(labels):
    return datasets.Dataset.from_dict({"label": labels})


@pytest.mark.parametrize("labels", [[10, 200, 5000] * 20, [2084071, 2124075] * 20, [1, 2**62] * 9, [0, 1, 2, 999] * 9])
def test_numbers_with_wide_gaps_are_no_class_numbers(labels):
    """Not 5,001 classes, of which label noise gives 4,998 to the rows that nobody has."""
    with pytest.raises(ValueError, match="'label' holds . numbers up to .*class_encode_column.'label'.*num_classes=") as refused:
        corrupt_labels(numbered(labels), "symmetric", rate=0.5, seed=0)
    assert "\n" not in str(refused.value)


def test_the_mends_are_ones_that_every_caller_can_follow():
    """Not "give num_classes" where the function has no such argument."""
    labels = [0, 1, 2, 40] * 9
    with pytest.raises(ValueError) as refused:
        columns.read_labels(numbered(labels), "label")
    for mend in re.findall(r"dataset\.(\w+_column\(.*?\)+)[,.]", str(refused.value)):
        mended = eval(f"numbered(labels).{mend}", {"numbered": numbered, "labels": labels, "datasets": datasets})
        assert columns.read_labels(mended, "label")[1] in (4, 41)
    with pytest.raises(ValueError, match=r"correct the labels\.$"):
        columns.read_labels(numbered([-1, 0, 1]), "label")
    with pytest.raises(ValueError, match=r"correct the labels or num_classes\.$"):
        columns.read_labels(numbered([0, 1, 5]), "label", num_classes=3)


@pytest.mark.parametrize("labels, classes, missing", [([1, 2, 3, 3], 4, "0"), ([0, 1, 4, 3], 5, "2"), ([0, 1, 2, 2], 3, None)])
def test_numbers_with_small_gaps_are_counted_and_said(monkeypatch, labels, classes, missing):
    said = []
    monkeypatch.setattr(columns.logger, "warning", said.append)
    found, count = columns.read_labels(numbered(labels), "label")
    assert np.array_equal(found, labels) and count == classes
    assert (said == []) if missing is None else (len(said) == 1 and f"no row of {missing}" in said[0])


def test_what_is_told_is_not_guessed(caplog):
    with caplog.at_level(logging.WARNING):
        assert columns.read_labels(numbered([10, 200]), "label", num_classes=5001)[1] == 5001
        named = numbered([0, 2]).cast_column("label", datasets.ClassLabel(names=list("abcdefgh")))
        assert columns.read_labels(named, "label")[1] == 8
    assert not caplog.records


@pytest.mark.parametrize("change", ["none", "shuffled", "selected", "concatenated", "torch", "sliced"])
def test_a_column_by_itself_is_the_columns(change):
    """In the data set's order, whatever its rows were selected from and however it is stored."""
    data = numbered(list(range(40))).add_column("text", [str(i) for i in range(40)])
    data = {
        "none": lambda: data, "shuffled": lambda: data.shuffle(seed=1), "selected": lambda: data.select([5, 3, 3, 9]),
        "concatenated": lambda: datasets.concatenate_datasets([data, data.shuffle(seed=2)]).select(range(30, 70)),
        "torch": lambda: data.with_format("torch", columns=["text"]), "sliced": lambda: data.select(range(7, 19)),
    }[change]()  # fmt: skip
    plain = data.with_format(None)
    assert columns.arrow_column(data, "label").to_pylist() == plain["label"][:]
    assert columns.arrow_column(data, "text").to_pylist() == plain["text"][:]
    assert columns.read_column(data, "label").tolist() == plain["label"][:]
