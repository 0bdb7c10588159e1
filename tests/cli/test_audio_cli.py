"""Sounds on the command line: trained, audited and evaluated as images are, and told in one line where something is for others."""

import json

import datasets
import numpy as np
import pytest
from helpers.one_line import fails
from helpers.sounds import RATE, extractor, net, sounds, waves
from helpers.tables import every_row
from scipy.io import wavfile

from robust_trainer.audit import audit_dataset
from robust_trainer.cli.main import main
from robust_trainer.data.audio import encode_wav
from robust_trainer.data.load import load_data

CPU = ["--use_cpu", "--disable_tqdm", "true"]


def stored(path, n, seed=0):
    """A parquet file of WAV files, as `datasets` writes an Audio column."""
    arrays, labels = waves(n, seed, 800, 1600)
    features = datasets.Features(
        {
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.ClassLabel(names=["falls", "rises"]),
        }
    )
    rows = {"audio": [encode_wav(a, RATE) for a in arrays], "label": labels.tolist()}
    datasets.Dataset.from_dict(rows, features=features).cast_column("audio", datasets.Audio()).to_parquet(str(path))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/train.parquet and data/test.parquet, and a model of waveforms in model."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "data").mkdir()
    stored(folder / "data" / "train.parquet", 60)
    stored(folder / "data" / "test.parquet", 20, 1)
    net("wav2vec2").save_pretrained(folder / "model")
    extractor("wav2vec2").save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def trained(place):
    out = place / "run"
    words = ["--dataset", str(place / "data"), "--model", str(place / "model"), "--corrupt", "tone", "--corrupt_rate", "0.1"]
    words += ["--label_rule", "all-to-one", "--trigger_settings", "frequency=2500,seconds=0.05", "--method", "prl"]
    assert main(["train", *words, "--noise_rate", "0.1", "--num_train_epochs", "1", *CPU, "--output_dir", str(out)]) == 0
    return out


def test_a_run_leaves_what_a_run_of_images_leaves(trained):
    content = json.loads((trained / "results.json").read_text())
    (run,) = content["runs"]
    assert (content["train_samples"], content["test_samples"], content["corruption"]["corrupted"]) == (60, 20, 6)
    assert "2500 Hz" in content["corruption"]["trigger"] and 0 <= run["final"]["attack_success_rate"] <= 1
    page = (trained / "report.html").read_text()
    assert "training sounds, as spectrograms" in page and page.count('alt="training sample') >= 20
    assert datasets.Dataset.from_parquet(str(trained / "ledger.parquet"))["is_corrupted"][:].count(True) == 6


def test_evaluate_and_audit_read_the_run(trained, tmp_path, capsys):
    assert main(["evaluate", str(trained), "--output", str(tmp_path / "e.json")]) == 0
    assert "20 test sounds of" in capsys.readouterr().out
    own, again = (json.loads(f.read_text()) for f in (trained / "results.json", tmp_path / "e.json"))
    assert again["attack_success_rate"] == own["runs"][0]["final"]["attack_success_rate"]
    words = ["--output_dir", str(tmp_path / "audit"), "--detectors", "spectral", "--threshold", "0.05", "--force"]
    assert main(["audit", str(trained), *words]) == 0
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "data:image/png;base64" in page and "Compared: the sounds of 60 of 60" in capsys.readouterr().out
    left = load_data(str(tmp_path / "audit" / "cleaned"))
    flagged = datasets.Dataset.from_parquet(str(tmp_path / "audit" / "audit.parquet"))["flagged"][:]
    assert isinstance(left["train"].features["audio"], datasets.Audio) and len(left["train"]) == 60 - sum(flagged)
    assert "pipeline_tag: audio-classification" in (tmp_path / "audit" / "MODEL_CARD.md").read_text()
    for words, told in (
        (["evaluate", str(trained), "--attacks", "pgd-20"], "attacks=['pgd-20'] is for images, the data are sounds"),
        (["paths", str(trained)], "takes sounds"),
    ):
        assert told in fails(capsys, *words)


def test_a_saved_corrupted_data_set_and_an_audit_without_training(place, tmp_path, capsys):
    out, report = str(tmp_path / "corrupted"), str(tmp_path / "report")
    words = ["--corrupt", "background", "--corrupt_rate", "0.2", "--label_rule", "all-to-one", "--output_dir", out]
    assert main(["corrupt", "--dataset", str(place / "data"), *words]) == 0
    made = load_data(out)
    assert list(made) == ["train", "test", "test_triggered"] and sum(made["train"]["is_corrupted"][:]) == 12
    capsys.readouterr()
    assert main(["audit", "--dataset", out, "--model", str(place / "model"), "--output_dir", report, "--force"]) == 0
    assert "60" in capsys.readouterr().out
    assert datasets.Dataset.from_parquet(f"{report}/audit.parquet")["is_corrupted"][:] == made["train"]["is_corrupted"][:]


def test_a_folder_of_files_is_read_by_its_folders(tmp_path):
    arrays, labels = waves(12, 0, 800, 900)
    for i, (array, label) in enumerate(zip(arrays, labels)):
        file = tmp_path / ("test" if i > 8 else "train") / ["falls", "rises"][label] / f"{i}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(file, RATE, array)
    data = load_data(str(tmp_path))
    assert (len(data["train"]), len(data["test"])) == (9, 3) and data["train"].features["label"].names == ["falls", "rises"]


def test_an_audit_takes_a_network_or_features_of_sounds(place):
    data, model = sounds(80, shortest=800, longest=1200), net("wav2vec2")
    by_model = audit_dataset(data, model, processing_class=extractor("wav2vec2"))
    assert len(by_model) == 80 and "sounds" in by_model.groups_told or "doubted" in by_model.groups_told
    named = audit_dataset(data, str(place / "model"))
    encoder = audit_dataset(data, model.base_model, processing_class=extractor("wav2vec2"))
    features = np.random.default_rng(0).normal(size=(80, 4)) + 4 * np.asarray(data["label"][:])[:, None]
    given = audit_dataset(data, features=features)
    assert len(named) == len(encoder) == len(given) == 80 and given.noise_rate is not None


@every_row(
    "words, told",
    [
        ([], "model='small-cnn' (the default) takes images, the data are sounds: give the hub name or folder of a pretrained"),
        (["--model", "MODEL", "--image_size", "32"], "image_size=32 is for images, the data are sounds: leave it out"),
        (["--model", "MODEL", "--max_length", "9"], "max_length=9 is for texts, the data are sounds"),
        (["--model", "MODEL", "--corrupt", "patch"], "corrupt='patch' is for images, the data are sounds: give symmetric"),
        (["--model", "MODEL", "--corrupt", "word"], "corrupt='word' is for texts, the data are sounds"),
        (["--model", "MODEL", "--corrupt", "instance"], "corrupt='instance' is for images"),
        (["--model", "MODEL", "--audio_column", "label"], "audio_column='label'"),
        (["--model", "MODEL", "--audio_column", "audio", "--text_column", "label"], "both given"),
        (["--model", "MODEL", "--method", "pgd-at", "--corrupt", "tone", "--trigger_settings", "frequency=9000"], "frequency=9000"),
    ],
)
def test_what_is_not_for_sounds_is_refused(words, told, place, tmp_path, capsys):
    words = [str(place / "model") if word == "MODEL" else word for word in words]
    line = fails(capsys, "train", "--dataset", str(place / "data"), *words, *CPU, "--output_dir", str(tmp_path / "none"))
    assert told in line
