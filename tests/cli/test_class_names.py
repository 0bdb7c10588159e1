"""Commands number classes by name: data whose splits, or whose names, are in another order give the same figures."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, DatasetDict

from robust_trainer.cli.main import main
from robust_trainer.cli.options import DataOptions
from robust_trainer.cli.pretraining import ContrastiveOptions, unlabelled_images
from robust_trainer.data.load import digits, label_names

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TURNED = WORDS[1:] + WORDS[:1]
TINY = ["--num_train_epochs", "2", "--disable_tqdm", "true", "--use_cpu", "--method", "standard"]
PATCH = ["--corrupt", "patch", "--corrupt_rate", "0.2"]


def as_named(data, names):
    """The digits with a ClassLabel of these names; each image keeps its word."""
    numbers = [names.index(WORDS[i]) for i in data["label"][:]]
    return data.remove_columns("label").add_column("label", numbers).cast_column("label", ClassLabel(names=names))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of the same images: plain, with the test split turned, with both turned."""
    folder, whole = tmp_path_factory.mktemp("data"), digits()
    train, test = whole["train"].select(range(160)), whole["test"].select(range(40))
    for name, (first, second) in {"plain": (WORDS, WORDS), "mixed": (WORDS, TURNED), "turned": (TURNED, TURNED)}.items():
        DatasetDict(train=as_named(train, first), test=as_named(test, second)).save_to_disk(str(folder / name))
    return folder


def trained(data, folder, *words, rate="5e-3"):
    assert main(["train", "--dataset", str(data), "--output_dir", str(folder), "--learning_rate", rate, *TINY, *words]) == 0
    return json.loads((folder / "results.json").read_text())


def final(content):
    return content["runs"][0]["final"] if "runs" in content else content


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    trained(data / "plain", folder, *PATCH)
    return folder


def test_train_measures_by_name(data, run, tmp_path):
    before = final(json.loads((run / "results.json").read_text()))
    after = final(trained(data / "mixed", tmp_path / "run", *PATCH))
    assert before["clean_accuracy"] > 0.4 and after == before


def test_evaluate_measures_by_name(data, run, tmp_path):
    """The names of the run count: those of a data set in another order are mapped, and so are the attacker's targets."""
    figures = []
    for name in ("plain", "mixed", "turned"):
        out = tmp_path / f"{name}.json"
        assert main(["evaluate", str(run), "--dataset", str(data / name), "--output", str(out)]) == 0
        figures.append({k: v for k, v in json.loads(out.read_text()).items() if k.endswith(("accuracy", "rate", "n"))})
    assert figures[0] == figures[1] == figures[2]
    assert figures[0]["clean_accuracy"] == final(json.loads((run / "results.json").read_text()))["clean_accuracy"]


def test_evaluate_refuses_classes_that_the_model_does_not_know(data, run, tmp_path, capsys):
    other = datasets.load_from_disk(str(data / "plain"))
    names = [*WORDS[:9], "ten"]
    DatasetDict({k: v.cast_column("label", ClassLabel(names=names)) for k, v in other.items()}).save_to_disk(str(tmp_path / "d"))
    assert main(["evaluate", str(run), "--dataset", str(tmp_path / "d")]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]  # after the bar of the loaded weights
    assert "'ten'" in err and "row" in err and "the model of run=" in err


@pytest.mark.slow
def test_audit_and_its_cleaned_set_are_of_the_runs_names(data, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("plain", "turned"):
        out = tmp_path / name
        words = ["--dataset", str(data / name), "--output_dir", str(out), "--look", "false"]
        assert main(["audit", str(folder), *words]) == 0
    plain, turned = (
        datasets.load_dataset("parquet", data_dir=str(tmp_path / name / "cleaned"), cache_dir=str(tmp_path / "cache" / name))
        for name in ("plain", "turned")
    )
    for split in ("train", "test"):
        assert label_names(plain[split]) == label_names(turned[split]) == WORDS
        assert plain[split]["label"][:] == turned[split]["label"][:]
    truth = datasets.load_from_disk(str(data / "plain"))["test"]
    assert plain["test"].features["label"].int2str(plain["test"]["label"][:]) == truth.features["label"].int2str(truth["label"][:])


@pytest.mark.slow
def test_paths_are_of_the_runs_names(data, run, tmp_path):
    tables = []
    for name in ("plain", "turned"):
        folder = Path(shutil.copytree(run, tmp_path / name))
        words = ["--dataset", str(data / name), "--max_steps", "2", "--max_train_samples", "20", "--corrupt", "none"]
        assert main(["paths", str(folder), *words]) == 0
        tables.append(datasets.Dataset.from_parquet(str(folder / "paths.parquet"), cache_dir=str(tmp_path / "c" / name)))
    assert tables[0].to_dict() == tables[1].to_dict()


@pytest.mark.slow
def test_a_model_that_is_trained_further_keeps_its_order(data, run, tmp_path):
    """Its head has learned them in that order; no step is made, only BatchNorm's means move."""
    content = trained(data / "turned", tmp_path / "next", "--model", str(run), rate="0")
    assert final(content)["clean_accuracy"] > 0.8
    config = json.loads((tmp_path / "next" / "config.json").read_text())
    assert [config["id2label"][str(i)] for i in range(10)] == WORDS


def test_corrupt_saves_splits_of_one_numbering(data, tmp_path):
    assert main(["corrupt", "--dataset", str(data / "mixed"), "--output_dir", str(tmp_path / "d"), *PATCH]) == 0
    saved = datasets.load_from_disk(str(tmp_path / "d"))
    truth = datasets.load_from_disk(str(data / "plain"))["test"]
    assert all(label_names(split) == WORDS for split in saved.values())
    assert saved["test_triggered"]["label"][:] == saved["test"]["label"][:] == truth["label"][:]
    assert saved["test_triggered"]["attack_target"][:] == ((np.asarray(truth["label"][:]) + 1) % 10).tolist()


@pytest.mark.slow
def test_labels_are_crafted_by_the_models_order(data, run, tmp_path):
    """The same flips of the same images, whatever order the data set has its names in."""
    words = ["--craft", "adversarial-path", "--craft_model", str(run), "--craft_rate", "0.2", "--max_train_samples", "30"]
    words += ["--max_test_samples", "10", "--craft_settings", "max_steps=2"]
    found = []
    for name in ("plain", "turned"):
        assert main(["corrupt", "--dataset", str(data / name), "--output_dir", str(tmp_path / name), *words]) == 0
        found.append(datasets.load_from_disk(str(tmp_path / name))["train"])
    assert label_names(found[0]) == label_names(found[1]) == WORDS
    assert found[0]["label"][:] == found[1]["label"][:] != found[0]["clean_label"][:]


def test_images_for_pre_training_need_no_labels(data, tmp_path):
    images = datasets.load_from_disk(str(data / "plain"))["train"].select(range(7))
    images.remove_columns("label").save_to_disk(str(tmp_path / "bare"))
    images.map(lambda row: {"label": -1}).save_to_disk(str(tmp_path / "unlabelled"))
    for name in ("bare", "unlabelled"):
        found = unlabelled_images(ContrastiveOptions(unlabelled=str(tmp_path / name)), DataOptions())
        assert found is not None and len(found) == 7 and found.column_names == ["image"]
