"""Texts on the command line: trained, audited and evaluated as images are, and told in one line where something is for images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest
from helpers.one_line import fails
from helpers.reviews import reviews, write_reviews
from helpers.tables import every_row
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from robust_trainer.cli.main import main
from robust_trainer.data.load import load_data
from robust_trainer.models.text_models import build_text_model

BERT = ["--model", "small-bert", "--use_cpu", "--disable_tqdm", "true"]
NOISE = ["--corrupt", "symmetric", "--corrupt_rate", "0.25", "--method", "prl", "--noise_rate", "0.25"]


def results(folder) -> dict:
    return json.loads((Path(folder) / "results.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with train.csv and test.csv."""
    folder = tmp_path_factory.mktemp("reviews")
    write_reviews(folder / "train.csv", reviews(80))
    write_reviews(folder / "test.csv", reviews(20, seed=1))
    return folder


@pytest.fixture(scope="module")
def trained(data):
    """A run of two epochs with a quarter of the labels wrong; the fixture's tests copy it where they write."""
    out = data.parent / "trained"
    shutil.rmtree(out, ignore_errors=True)
    assert main(["train", "--dataset", str(data), *BERT, *NOISE, "--num_train_epochs", "2", "--output_dir", str(out)]) == 0
    return out


def test_a_run_leaves_what_a_run_of_images_leaves(trained, data):
    content = results(trained)
    (run,) = content["runs"]
    assert content["options"]["model"] == "small-bert" and (content["train_samples"], content["test_samples"]) == (80, 20)
    assert content["corruption"]["corrupted"] == 20 and run["learning_rate"] == 5e-4 and run["final"]["n"] == 20
    ledger = datasets.Dataset.from_parquet(str(trained / "ledger.parquet"))
    own = load_data(str(data))["train"]
    assert len(ledger) == 80 and sum(ledger["is_corrupted"][:]) == 20
    flipped = [a != b for a, b in zip(ledger["label"][:], own["label"][:])]
    assert flipped == ledger["is_corrupted"][:]
    page = (trained / "report.html").read_text()
    assert "Most suspicious training texts" in page and '<img src="data:image/png;base64' in page  # the curves
    shown = [text for text in own["text"][:] if f'<div class="text">{text}</div>' in page]
    assert len(shown) >= 20


def test_another_program_opens_the_model(trained):
    model = AutoModelForSequenceClassification.from_pretrained(str(trained))
    tokenizer = AutoTokenizer.from_pretrained(str(trained))
    assert model.config.id2label == {0: "bad", 1: "good"} and tokenizer.model_max_length == 128
    assert model(**tokenizer(["a good film", "dull"], padding=True, return_tensors="pt")).logits.shape == (2, 2)


def test_the_audit_shows_texts_and_writes_them_cleaned(trained, data, tmp_path, capsys):
    out = str(tmp_path / "audit")
    words = ["--threshold", "0.05", "--output_dir", out, "--detectors", "spectral", "--force"]
    assert main(["audit", str(trained), *words]) == 0
    assert "Compared: the texts of 80 of 80" in capsys.readouterr().out
    own = load_data(str(data))["train"]["text"][:]
    page = (tmp_path / "audit/report.html").read_text()
    assert sum(text in page for text in own) > 5
    assert "pipeline_tag: text-classification" in (tmp_path / "audit/MODEL_CARD.md").read_text()
    audited = datasets.Dataset.from_parquet(str(tmp_path / "audit/audit.parquet"))
    left = load_data(str(tmp_path / "audit/cleaned"))
    kept = [text for text, flagged in zip(own, audited["flagged"][:]) if not flagged]
    assert left["train"]["text"][:] == kept and len(kept) < 80 and len(left["test"]) == 20
    detected = datasets.Dataset.from_parquet(str(tmp_path / "audit/detectors.parquet"))
    assert len(detected) == 80 and "spectral_score" in detected.column_names
    assert main(["audit", str(trained), "--output_dir", str(tmp_path / "none"), "--detectors", "fct"]) == 2
    assert "detector 'fct' judges images, and these data are of the kind text" in capsys.readouterr().err


def test_evaluate_reads_the_run_and_other_files(trained, data, tmp_path, capsys):
    out = ["--output", str(tmp_path / "e.json")]
    assert main(["evaluate", str(trained), *out]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["clean_accuracy"] == results(trained)["runs"][0]["final"]["clean_accuracy"]
    capsys.readouterr()
    # a file of its own is tested whole, whatever its columns and the order of its classes
    other = write_reviews(tmp_path / "other.csv", reviews(20, seed=1)[::-1], ("review", "target"))
    assert main(["evaluate", str(trained), *out, "--dataset", other]) == 0
    assert "20 test texts of" in capsys.readouterr().out
    again = json.loads((tmp_path / "e.json").read_text())
    assert again["clean_accuracy"] == results(trained)["runs"][0]["final"]["clean_accuracy"] and again["n"] == 20
    pictures = tmp_path / "pictures.parquet"
    table = {"image": [Image.new("L", (4, 4), i) for i in range(10)], "label": ["bad", "good"] * 5}
    datasets.Dataset.from_dict(table).to_parquet(str(pictures))
    for words, told in (
        (["--attacks", "pgd-20"], "attacks=['pgd-20'] is for images, the data are texts"),
        (["--per_class", "good"], "per_class='good' is for images"),
        (["--corrupt", "patch"], "corrupt='patch' is for images"),
        (["--dataset", str(pictures)], f"run={str(trained)!r} takes texts, the data are images: give texts"),
        (["--dataset", write_reviews(tmp_path / "third.csv", [("a", "ugly")] * 10)], "'ugly' in row 0 (10 such rows)"),
    ):
        assert told in fails(capsys, "evaluate", str(trained), *out, *words), words
    assert "takes texts" in fails(capsys, "paths", str(trained))


def test_the_same_words_give_the_same_run_and_a_stopped_one_goes_on(data, tmp_path):
    """The vocabulary of small-bert is learned anew, and must be the same; so are the figures of a run that is cut in two."""
    words = ["train", "--dataset", str(data), *BERT, *NOISE, "--max_train_samples", "48", "--max_length", "12"]
    words += ["--lr_scheduler_type", "constant", "--save_total_limit", "1", "--output_dir"]  # what it goes on from is removed
    assert main([*words, str(tmp_path / "one"), "--num_train_epochs", "2"]) == 0
    assert main([*words, str(tmp_path / "two"), "--num_train_epochs", "1"]) == 0
    assert main([*words, str(tmp_path / "two"), "--num_train_epochs", "2", "--resume_from_checkpoint", "true"]) == 0
    one, two = (results(tmp_path / name)["runs"][0] for name in ("one", "two"))
    for first, second in zip(one["curves"], two["curves"], strict=True):
        assert first == pytest.approx(second)
    assert one["final"] == two["final"]
    first, second = (datasets.Dataset.from_parquet(str(tmp_path / name / "ledger.parquet")).to_dict() for name in ("one", "two"))
    for name in ("mean_score", "predicted", "kept", "label"):
        assert first[name] == pytest.approx(second[name]), name


def test_a_config_file_and_a_single_file_with_names_of_its_own(tmp_path, capsys):
    path = write_reviews(tmp_path / "all.csv", [*reviews(40), ("good " * 200, "good")], ("body", "verdict"))
    lines = {
        "dataset": path, "label_column": "verdict", "model": "small-bert", "max_length": 16, "num_train_epochs": 1, "use_cpu": True,
        "disable_tqdm": True, "output_dir": str(tmp_path / "out"), "method": "none", "split_seed": 3,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items()))
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    content = results(tmp_path / "out")
    capsys.readouterr()
    assert (content["train_samples"], content["test_samples"]) == (33, 8)
    told = fails(capsys, "train", str(tmp_path / "run.yaml"), "--label_column", "null", "--output_dir", str(tmp_path / "none"))
    assert "set label_column to one of the columns ['body', 'verdict']" in told


@every_row(
    "words, told",
    [
        (["--model", "small-cnn"], "model='small-cnn' (the default) takes images, the data are texts: give the hub name"),
        (["--image_size", "32"], "image_size=32 is for images, the data are texts: leave it out"),
        (["--squeeze", "jpeg"], "squeeze='jpeg' is for images"),
        (["--corrupt", "blend"], "corrupt='blend' is for images, the data are texts: give symmetric"),
        (["--corrupt", "instance"], "corrupt='instance' is for images"),
        (["--patch_size", "5"], "patch_size=5 has no effect"),
        (["--method", "prl-simclr", "--noise_rate", "0.2"], "SimCLR"),
        (["--method", "prl-simclr", "--noise_rate", "0.2", "--contrastive_epochs", "3"], "contrastive_epochs=3.0 is for images"),
        (["--max_length", "2"], "max_length=2 must be in [3, "),
        (["--text_column", "nobody"], "text_column='nobody' is not in the data set: choose one of ['text', 'label']"),
        (["--image_column", "text"], "image_column='text' is Value('large_string')"),
        (["--method", "erat"], "the model reads texts"),
        (["--model", "/nowhere/bert"], "give small-cnn"),
        (["--dataset", "digits", "--model", "small-bert"], "model='small-bert' takes texts, the data are images"),
        (["--dataset", "digits", "--model", "small-cnn", "--max_length", "9"], "max_length=9 is for texts, the data are images"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_training(words, told, data, tmp_path, capsys):
    base = ["train", "--dataset", str(data), *BERT, "--method", "none", "--output_dir", str(tmp_path / "out")]
    given = {word for word in words if word.startswith("--")}
    kept = [w for i in range(1, len(base)) for w in [base[i]] if base[i] not in given and base[i - 1] not in given]
    assert told in fails(capsys, "train", *kept, *words)
    assert not list((tmp_path / "out").glob("checkpoint*"))


def test_a_pretrained_model_by_its_folder(data, tmp_path, capsys, caplog):
    """A saved encoder with classes of its own gets a new head; what it cannot read of long texts is told."""
    texts = [text for text, _ in reviews(80)]
    model, tokenizer = build_text_model("small-bert", ["x", "y", "z"], texts, max_length=10, hidden_size=16)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "encoder")
    words = ["train", "--dataset", str(data), "--model", str(tmp_path / "encoder"), *BERT[2:], "--num_train_epochs", "1"]
    assert (
        main([*words, "--method", "prl-at-memory", "--eps", "0.3", "--step_size", "0.3", "--output_dir", str(tmp_path / "out")])
        == 0
    )
    loaded = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "out"))
    assert loaded.config.num_labels == 2 and loaded.config.id2label == {0: "bad", 1: "good"}
    told = fails(capsys, *words, "--max_length", "11", "--output_dir", str(tmp_path / "more"))
    assert "max_length=11 must be in [3, 10]" in told
    other = fails(
        capsys, "train", "--dataset", "digits", "--model", str(tmp_path / "encoder"), "--output_dir", str(tmp_path / "more")
    )
    assert "takes texts, the data are images: give the hub name or folder of a pretrained model for images" in other


def test_corrupt_saves_texts(data, tmp_path, capsys):
    out = str(tmp_path / "wrong")
    assert main(["corrupt", "--dataset", str(data), "--corrupt", "pairflip", "--corrupt_rate", "0.5", "--output_dir", out]) == 0
    saved = datasets.load_from_disk(out)
    assert saved["train"].column_names[:2] == ["text", "label"] and sum(saved["train"]["is_corrupted"][:]) == 40
    assert load_data(out)["train"]["text"][:] == load_data(str(data))["train"]["text"][:]
    told = fails(capsys, "corrupt", "--dataset", str(data), "--poison", "ap", "--eps", "8/255", "--output_dir", str(tmp_path / "p"))
    assert "poison='ap' is for images" in told
