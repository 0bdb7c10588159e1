"""robust-trainer audit --dataset D --model M as a user types it: what it writes, what it says, and its one-line errors."""

from __future__ import annotations

import csv
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from helpers.one_line import fails
from transformers import ResNetConfig, ResNetModel

from robust_trainer.cli.audit import _held_out
from robust_trainer.cli.main import main
from robust_trainer.cli.options import CorruptionOptions, DataOptions
from robust_trainer.cli.stages import prepare
from robust_trainer.data.load import load_data
from robust_trainer.models.zoo import PlainProcessor

FILES = {"audit.parquet", "report.html", "audit.json", "cleaned", "duplicates.csv"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A parquet file of embeddings, probabilities and words for labels: a fifth of them is wrong."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400)
    features = rng.normal(0, 1.5, (3, 16))[truth] + rng.normal(0, 1, (400, 16))
    wrong = rng.random(400) < 0.2
    given = np.where(wrong, (truth + rng.integers(1, 3, 400)) % 3, truth)
    features[30] = features[20]
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    sure = rng.uniform(0.4, 0.9, (400, 1))
    probs = np.eye(3)[truth] * sure + (1 - sure) / 3
    columns = {"vector": features.tolist(), "probs": probs.tolist(), "label": [["cat", "dog", "emu"][c] for c in given]}
    datasets.Dataset.from_dict(columns).to_parquet(str(path))
    np.save(path.parent / "vectors.npy", features)
    return path, wrong, truth


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Random filters, which tell digits apart well enough."""
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    sizes = {"embedding_size": 32, "hidden_sizes": [64], "depths": [1], "layer_type": "basic"}
    ResNetModel(ResNetConfig(**sizes, downsample_in_first_stage=False)).save_pretrained(folder)
    PlainProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    load_data("digits", max_train_samples=300, max_test_samples=40).save_to_disk(str(folder))
    return folder


def audit(capsys, *words):
    capsys.readouterr()
    assert main(["audit", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_a_column_of_embeddings(table, tmp_path, capsys):
    path, wrong, truth = table
    told = audit(capsys, "--dataset", path, "--features", "vector", "--output_dir", tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES
    rows = datasets.Dataset.from_parquet(str(tmp_path / "out" / "audit.parquet"))
    flagged = np.asarray(rows["flagged"][:])
    assert (flagged == wrong).mean() > 0.95 and len(rows) == 400  # without a test split nobody is held out
    figures = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert figures["noise_interval"][0] <= wrong.mean() <= figures["noise_interval"][1] and figures["flagged"] == flagged.sum()
    assert "estimated noise rate" in told and " to " in told and "most often suggested" in told and "cat" in told
    assert f"then, without the flagged samples: robust-trainer train --dataset {tmp_path / 'out' / 'cleaned'}" in told
    left = datasets.Dataset.from_parquet(str(tmp_path / "out" / "cleaned" / "train.parquet"))
    assert len(left) == 400 - flagged.sum() and left.features["label"].names == ["cat", "dog", "emu"]
    with open(tmp_path / "out" / "duplicates.csv") as lines:
        like = list(csv.DictReader(lines))
    assert ("train", "30", "20") in [(row["split"], row["row"], row["like_row"]) for row in like] and len(like) < 5


@pytest.mark.parametrize("words", [[], ["--label_column", "target"]])
def test_labels_in_a_column_of_another_name(words, table, tmp_path, capsys):
    """Beside embeddings alone, where no image or text is renamed either."""
    path, wrong, _ = table
    datasets.Dataset.from_parquet(str(path)).rename_column("label", "target").to_parquet(str(tmp_path / "rows.parquet"))
    audit(capsys, "--dataset", tmp_path / "rows.parquet", "--features", "vector", "--output_dir", tmp_path / "out", *words)
    flagged = datasets.Dataset.from_parquet(str(tmp_path / "out" / "audit.parquet"))["flagged"][:]
    assert (np.asarray(flagged) == wrong).mean() > 0.95


def test_files_of_numbers_and_probabilities_tell_the_same(table, tmp_path, capsys):
    path, wrong, _ = table
    audit(capsys, "--dataset", path, "--features", path.parent / "vectors.npy", "--output_dir", tmp_path / "a")
    audit(capsys, "--dataset", path, "--features", "vector", "--output_dir", tmp_path / "b", "--clean", "none")
    a, b = (datasets.Dataset.from_parquet(str(tmp_path / name / "audit.parquet")) for name in "ab")
    assert np.allclose(a["suspicion"][:], b["suspicion"][:], atol=1e-4) and not (tmp_path / "b" / "cleaned").exists()
    told = audit(capsys, "--dataset", path, "--pred_probs", "probs", "--output_dir", tmp_path / "a", "--clean", "relabel")
    assert {p.name for p in (tmp_path / "a").iterdir()} == FILES - {"duplicates.csv"} and "near-duplicates" not in told
    c = datasets.Dataset.from_parquet(str(tmp_path / "a" / "audit.parquet"))
    assert (np.asarray(c["flagged"][:]) == wrong).mean() > 0.95


def test_a_model_on_images_with_planted_wrong_labels(data, network, tmp_path, capsys):
    words = ["--dataset", data, "--model", network, "--output_dir", tmp_path / "out", "--corrupt", "symmetric"]
    told = audit(capsys, *words, "--corrupt_rate", 0.2, "--max_train_samples", 200)
    assert "flagged of the corrupted (recall)" in told and "rows of test with a near-duplicate here" in told
    assert {p.name for p in (tmp_path / "out").iterdir()} >= FILES - {"cleaned"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "linear model" in page and "data:image/png" in page
    left = load_data(str(tmp_path / "out" / "cleaned"))
    assert len(left["test"]) == 40


def test_a_config_file_and_help(table, tmp_path, capsys):
    config = tmp_path / "audit.yaml"
    config.write_text(f"dataset: {table[0]}\nfeatures: vector\noutput_dir: {tmp_path / 'out'}\n")
    audit(capsys, config)
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES
    for words in (["--model", "m", "--help"], ["--dataset", "d", "--features", "f", "-h"]):
        with pytest.raises(SystemExit):
            main(["audit", *words])
        assert "--pred_probs" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    assert "Without a training: robust-trainer audit --dataset D" in " ".join(capsys.readouterr().out.split())


def test_what_comes_next_is_told(table, data, network, tmp_path, capsys):
    """Where nothing is flagged there is nothing to go on without; a network that was trained by a run may know these labels."""
    numbers = np.random.default_rng(0).normal(0, 1, (3, 8))[np.arange(90) % 3] * 9
    numbers += np.random.default_rng(1).normal(0, 1, (90, 8))
    rows = {"vector": numbers.tolist(), "label": ["abc"[i % 3] for i in range(90)]}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "clean.parquet"))
    told = audit(capsys, "--dataset", tmp_path / "clean.parquet", "--features", "vector", "--output_dir", tmp_path / "a")
    assert (
        f"nothing is flagged, so {tmp_path / 'a' / 'cleaned'} holds the data as they were" in told
        and "robust-trainer train" not in told
    )
    shutil.copytree(network, tmp_path / "net")
    words = ("--dataset", data, "--output_dir", tmp_path / "b", "--clean", "none")
    assert "was trained by a run" not in audit(capsys, *words, "--model", tmp_path / "net")
    (tmp_path / "net" / "ledger.parquet").write_bytes(b"of a run")
    assert f"or audit the run: robust-trainer audit {tmp_path / 'net'}\n" in audit(capsys, *words, "--model", tmp_path / "net")


def test_rows_that_a_run_held_out_are_counted(tmp_path):
    """They have no verdict, and are in the cleaned set as they were; a test split of its own is no such thing."""
    one = tmp_path / "rows.csv"
    one.write_text("text,target\n" + "".join(f"some words {i},{'ab'[i % 2]}\n" for i in range(30)))
    (tmp_path / "two").mkdir()
    for split in ("train", "test"):
        shutil.copy(one, tmp_path / "two" / f"{split}.csv")
    counts = [_held_out(prepare(DataOptions(dataset=str(place)), CorruptionOptions())) for place in (one, tmp_path / "two")]
    assert counts == [6, 0]
    fewer = DataOptions(dataset=str(one), max_train_samples=10, max_test_samples=4)
    assert _held_out(prepare(fewer, CorruptionOptions())) == 4


def test_a_data_set_given_as_a_run_is_called_one(table, data, tmp_path, capsys):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "1.PNG").write_bytes(b"")
    for place in (table[0], tmp_path / "images"):
        told = fails(capsys, "audit", str(place))
        assert "is a data set, no training: give it by --dataset" in told and f"audit --dataset {place} --model MODEL" in told
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("no data")
    for place in (tmp_path / "other", tmp_path / "nowhere.csv"):
        assert "is a data set" not in fails(capsys, "audit", str(place))


def test_mistakes_are_one_line(table, data, network, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(table[0])
    assert "'vectors' is not in the data set" in fails(capsys, "audit", "--dataset", path, "--features", "vectors")
    assert "no column of images, texts or sounds" in fails(capsys, "audit", "--dataset", path, "--model", str(network))
    assert "dataset is missing" in fails(capsys, "audit", "--model", str(network))
    told = fails(capsys, "audit", "--dataset", path, "--features", "vector", "--model", "m")
    assert "are both given" in told
    assert "are both given" in fails(capsys, "audit", str(data), "--model", "m")
    assert "clean='all' is unknown" in fails(capsys, "audit", "--dataset", path, "--features", "vector", "--clean", "all")
    assert "threshold=2.0" in fails(capsys, "audit", "--dataset", path, "--features", "vector", "--threshold", "2")
    assert "no.npy" in fails(capsys, "audit", "--dataset", path, "--features", "no.npy")
    (tmp_path / "bad.npy").write_bytes(b"not numbers")
    assert "could not be read" in fails(capsys, "audit", "--dataset", path, "--features", "bad.npy")
    assert "is for a model" in fails(capsys, "audit", "--dataset", path, "--features", "vector", "--max_length", "5")
    told = fails(capsys, "audit", "--dataset", path, "--features", "vector", "--corrupt", "patch")
    assert "corrupt='patch' is for images" in told
    assert "model='/no/such' could not be loaded" in fails(capsys, "audit", "--dataset", str(data), "--model", "/no/such")
    told = fails(capsys, "audit", "--dataset", path)
    assert "robust_run" in told and "--model" in told
    assert not (tmp_path / "robust_audit").exists() or not any((tmp_path / "robust_audit").iterdir())
