"""The fingerprint of the data that a ledger belongs to: the same for the same content, however it is stored."""

from __future__ import annotations

import random

import datasets
import numpy as np
import torch
from helpers.audits import image_set, labelled, rows_of

from robust_trainer.audit import make_audit
from robust_trainer.ledger.fingerprint import data_fingerprint
from robust_trainer.reporting.parquet_files import write_parquet


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    data = labelled()
    known = data_fingerprint(data, "label")
    assert len(known) == 16 and int(known, 16) >= 0
    data.save_to_disk(str(tmp_path / "disk"))
    data.to_parquet(str(tmp_path / "data.parquet"))
    write_parquet(data, tmp_path / "ours.parquet")
    chunks = [data.select(range(0, 70)), data.select(range(70, 71)), data.select(range(71, 200))]
    same = [
        data.with_format("torch"), data.with_format("numpy", columns=["label"]), data.with_transform(lambda batch: {"x": [0]}),
        data.select(range(200)), data.select(list(range(199, -1, -1))).select(list(range(199, -1, -1))),
        datasets.load_from_disk(str(tmp_path / "disk")), datasets.Dataset.from_parquet(str(tmp_path / "data.parquet")),
        datasets.Dataset.from_parquet(str(tmp_path / "ours.parquet")), datasets.concatenate_datasets(chunks),
        data.add_column("is_corrupted", [True] * 200).add_column("clean_label", [0] * 200), data.select_columns(["label", "image"]),
        data.cast_column("image", datasets.Image(decode=False)), data.flatten_indices(),
    ]  # fmt: skip
    for i, other in enumerate(same):
        assert data_fingerprint(other, "label") == known, i


def test_the_fingerprint_differs_where_the_data_does():
    data = labelled()
    labels = data["label"][:]
    looked_at = np.unique(np.linspace(0, 199, 64).astype(int))
    hidden = next(i for i in range(200) if i not in looked_at)
    flipped = list(labels)
    flipped[hidden] = (flipped[hidden] + 1) % 4

    def relabelled(values):
        return image_set([r["image"] for r in data], label=values).cast_column("label", data.features["label"])

    pixels = np.array([np.asarray(r["image"]) for r in data])
    pixels[looked_at[5], 0, 0] += 1
    others = [
        relabelled(flipped), data.select(np.random.default_rng(0).permutation(200)), data.select(range(199)),
        image_set(pixels, label=labels), data.rename_column("image", "picture"), data.add_column("more", [1] * 200),
        data.remove_columns("image"), data.select([]),
    ]  # fmt: skip
    found = [data_fingerprint(other, "label") for other in (data, *others)]
    assert len(set(found)) == len(found)
    assert data_fingerprint(relabelled(labels), "label") == found[0]


def test_fingerprints_of_all_kinds_of_columns(tmp_path):
    rng = np.random.default_rng(0)
    features = datasets.Features({
        "x": datasets.Array2D((3, 4), "float32"), "half": datasets.List(datasets.Value("float16")),
        "text": datasets.Value("string"),
        "list": datasets.List(datasets.Value("int64")), "flag": datasets.Value("bool"), "gone": datasets.Value("int64"),
        "labels": datasets.Value("float32"), "deep": {"a": datasets.Value("string"), "b": datasets.List(datasets.Value("int8"))},
    })  # fmt: skip
    rows = {
        "x": rng.random((70, 3, 4)).astype(np.float32), "half": rng.random((70, 2)).astype(np.float16), "text": ["a"] * 69 + [None],
        "list": [[i] * (i % 3) for i in range(70)], "flag": [True, None] * 35, "gone": [None] * 70, "labels": rng.random(70),
        "deep": [{"a": "x", "b": [1]}] * 70,
    }  # fmt: skip
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(str(tmp_path / "disk"))
    known = data_fingerprint(data, "labels")
    assert known == data_fingerprint(datasets.load_from_disk(str(tmp_path / "disk")), "labels")
    assert known == data_fingerprint(datasets.concatenate_datasets([data.select(range(9)), data.select(range(9, 70))]), "labels")
    for name in set(rows) - {"gone"}:
        values = list(rows[name])
        values[0] = {"x": np.ones((3, 4)), "half": [0.5, 0.5], "text": "b", "list": [7], "flag": False, "labels": 5.0,
                     "deep": {"a": "y", "b": [1]}}[name]  # fmt: skip
        assert data_fingerprint(datasets.Dataset.from_dict({**rows, name: values}, features=features), "labels") != known, name
    assert data_fingerprint(data, None) != known and data_fingerprint(data, "no such column") == data_fingerprint(data, None)
    assert data_fingerprint([1, 2], None) == data_fingerprint("ab", None) != data_fingerprint([1], None)


def test_the_fingerprint_draws_nothing_at_random():
    data = labelled(80)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    data_fingerprint(data, "label")
    make_audit(rows_of(80), {}, data)
    drawn = random.random(), np.random.random(), torch.rand(1).item()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    assert drawn == (random.random(), np.random.random(), torch.rand(1).item())
