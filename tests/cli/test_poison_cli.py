"""robust-trainer corrupt --poison as a user types it, on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers.tables import every_row

from robust_trainer.cli import poison as poison_run
from robust_trainer.cli.main import main
from robust_trainer.cli.parser import make_parser, parse
from robust_trainer.cli.poison_options import PoisonOptions
from robust_trainer.corruptions import load_trigger, trigger_all
from robust_trainer.data.load import load_data
from robust_trainer.data.pixels import read_levels

TINY = ["--dataset", "digits", "--max_train_samples", "60", "--max_test_samples", "30"]
FEWER = ["--max_train_samples", "20", "--max_test_samples", "10"]
QUICK = [*TINY, "--poison_model", "plain-cnn", "--poison_model_epochs", "2", "--self_check_epochs", "0"]
DUAL = ["--corrupt", "symmetric", "--corrupt_rate", "0.5"]


def fails(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(["corrupt", *words]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("robust-trainer: error: ") and "Traceback" not in err
    return err


def clean() -> datasets.DatasetDict:
    return load_data("digits", max_train_samples=60, max_test_samples=30)


def test_dual_corruption_is_written_and_trained_on(tmp_path, capsys):
    out = tmp_path / "data"
    words = ["--poison", "up-class", "--eps", "16/255", "--poison_settings", "max_rounds=2", "--self_check_epochs", "1", *DUAL]
    assert main(["corrupt", *TINY, "--poison_model", "plain-cnn", "--output_dir", str(out), *words]) == 0
    shown = capsys.readouterr().out
    assert "self-check (plain-cnn): a plain training on the poisoned images" in shown
    assert "poisoned: up-class, linf 16/255, 60 images; as stored linf at most " in shown
    assert "nominal rate 50.0 %, realised 50.0 % (30 of 60 samples)" in shown
    assert {p.name for p in out.iterdir()} == {"train", "test", "README.md", "corruption.json", "dataset_dict.json"}

    data, before = datasets.load_from_disk(str(out)), clean()
    assert data["train"]["is_poisoned"] == [True] * 60 and "is_poisoned" not in data["test"].column_names
    assert data["train"]["clean_label"] == before["train"]["label"] and sum(data["train"]["is_corrupted"]) == 30
    moved = read_levels(data["train"], "image").astype(int) - read_levels(before["train"], "image")
    assert 1 <= np.abs(moved).max() <= 16
    assert np.array_equal(read_levels(data["test"], "image"), read_levels(before["test"], "image"))
    told = json.loads((out / "corruption.json").read_text())
    assert told["corrupted"] == 30 and told["poison"]["poison"] == "up-class" and told["poison"]["self_check"]["epochs"] == 1
    assert told["poison"]["realised"]["linf_max"] == pytest.approx(np.abs(moved).max() / 255)
    card = (out / "README.md").read_text()
    assert "50.0 % wrong (symmetric label noise, after the poison)" in card and '{"class_wise": true, "max_rounds": 2}' in card

    run = ["--num_train_epochs", "1", "--disable_tqdm", "true", "--use_cpu", "--output_dir", str(tmp_path / "run")]
    assert main(["train", "--dataset", str(out), "--method", "standard", "--corrupt", "none", "--model", "plain-cnn", *run]) == 0
    assert "as saved, realised 50.0 %" in capsys.readouterr().out
    ledger = datasets.Dataset.from_parquet(str(tmp_path / "run/ledger.parquet"))
    assert sum(ledger["is_corrupted"]) == 30
    weak = ["--method_settings", '{"strong_augmentation": "crop"}']
    erat = ["--method", "erat", "--steps", "1", "--warmup_epochs", "0", *weak, "--eps", "16/255", *run, *FEWER, "--overwrite"]
    assert main(["train", "--dataset", str(out), "--model", "plain-cnn", *erat]) == 0
    assert "--attacks pgd-20 cw-20 autoattack --norm linf --eps 16/255" in capsys.readouterr().out
    sparse = ["--method", "pgd-at", "--norm", "l1", "--steps", "1", "--eps", "2", "--step_size", "1", *run, *FEWER, "--overwrite"]
    assert main(["train", "--dataset", str(out), "--model", "plain-cnn", *sparse]) == 0
    assert "--attacks pgd-20 cw-20 --norm l1 --eps 2" in capsys.readouterr().out  # autoattack has no l_1
    assert "is poisoned already" in fails(capsys, "--dataset", str(out), "--poison", "urp", "--output_dir", str(tmp_path / "b"))


def test_the_poison_is_crafted_from_the_true_labels(tmp_path):
    for name, words in (("plain", []), ("dual", DUAL)):
        assert main(["corrupt", *QUICK, "--poison", "urp", "--norm", "l2", "--output_dir", str(tmp_path / name), *words]) == 0
    plain, dual = (datasets.load_from_disk(str(tmp_path / name))["train"] for name in ("plain", "dual"))
    assert np.array_equal(read_levels(plain, "image"), read_levels(dual, "image"))
    assert plain["label"] == dual["clean_label"] != dual["label"] and "is_corrupted" not in plain.column_names
    assert "Not run." in (tmp_path / "plain/README.md").read_text()


def test_a_stopped_command_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    words = [*QUICK, "--poison", "ap", "--poison_settings", "steps=2", "--poison_batch_size", "20"]
    assert main(["corrupt", *words, "--output_dir", str(tmp_path / "straight")]) == 0
    assert "attacked: plain-cnn, trained on the clean data for 2 epochs" in capsys.readouterr().out

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    again = [*words, "--output_dir", str(tmp_path / "again")]
    with monkeypatch.context() as patch:
        patch.setattr(poison_run, "poison_record", stopped)
        assert main(["corrupt", *again]) == 130
    left = {str(p.relative_to(tmp_path / "again")) for p in (tmp_path / "again").rglob("*.safetensors")}
    assert ".unfinished/model/weights.safetensors" in left and len(left) > 1
    assert "begun with seed=0, now 7" in fails(capsys, *again, "--poison_seed", "7")
    with monkeypatch.context() as patch:
        patch.setattr(poison_run, "train_plain", stopped)  # the network is there already
        assert main(["corrupt", *again]) == 0
    first, second = (datasets.load_from_disk(str(tmp_path / name))["train"] for name in ("straight", "again"))
    assert np.array_equal(read_levels(first, "image"), read_levels(second, "image"))
    assert not (tmp_path / "again/.unfinished").exists()


def test_a_trained_model_s_folder_is_attacked(tmp_path, capsys):
    run = str(tmp_path / "run")
    words = ["--model", "plain-cnn", "--num_train_epochs", "1", "--disable_tqdm", "true", "--use_cpu", "--output_dir", run]
    assert main(["train", *TINY, "--method", "standard", *words]) == 0
    out = ["--output_dir", str(tmp_path / "data")]
    assert main(["corrupt", *TINY, *out, "--poison", "ap", "--poison_settings", "steps=2", "--poison_model", run,
                 "--self_check_epochs", "0"]) == 0  # fmt: skip
    assert "attacked: the model of run, accuracy on clean test images" in capsys.readouterr().out
    assert "the model of run" in (tmp_path / "data/README.md").read_text()
    words = [*TINY, "--poison", "up", "--poison_model", run, *out, "--overwrite"]
    assert f"poison_model={run!r} is unknown: choose small-cnn" in fails(capsys, *words)


def test_options_from_a_file_and_settings(tmp_path):
    (tmp_path / "c.yaml").write_text("poison: tap\neps: 4/255\npoison_settings: {steps: 3}\n")
    (options,) = parse(make_parser("corrupt", [PoisonOptions], ""), [str(tmp_path / "c.yaml"), "--norm", "linf"])
    assert options.poison == "tap" and options.eps == "4/255" and options.settings() == {"steps": 3}
    assert PoisonOptions(poison_settings="class_wise=true, steps=2,stop_error=0.5").settings() == {
        "class_wise": True, "steps": 2, "stop_error": 0.5,
    }  # fmt: skip
    assert PoisonOptions().settings() == {}


@every_row(
    "words, told",
    [
        ([], "--noisy_label_column, or --poison"),
        (["--poison", "upp"], "poison='upp' is unknown: choose one of l2c, up"),
        (["--poison", "urp", "--eps", "8"], "give 8/255"),
        (["--poison", "urp", "--eps", "nine"], "eps='nine' is no finite number"),
        (["--poison", "urp", "--norm", "l0"], "norm='l0' is unknown"),
        (["--poison", "ap", "--poison_settings", "stps=3"], "stps=3 is no setting of poison='ap': choose from steps"),
        (["--poison", "ap", "--poison_settings", "steps=many"], "steps='many' is of the wrong kind"),
        (["--poison", "ap", "--poison_settings", "steps"], "are no name=value pairs"),
        (["--poison", "ap", "--poison_settings", "{steps"], "cannot be read"),
        (["--poison", "ap", "--poison_model", "vgg"], "poison_model='vgg' is unknown: choose small-cnn, plain-cnn"),
        (["--poison", "urp", "--self_check_epochs", "-1"], "self_check_epochs=-1 must be at least 0"),
        (["--poison", "urp", "--corrupt", "patch"], "leave one out"),
        (["--poison", "urp", "--poison_modle", "x"], "did you mean '--poison_model'?"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("robust_trainer.cli.stages.load_data", None)
    assert told in fails(capsys, "--dataset", "digits", *words, "--output_dir", str(tmp_path / "out"))
    assert not Path(tmp_path / "out").exists()


def test_labels_are_not_corrupted_twice(tmp_path, capsys):
    saved = str(tmp_path / "saved")
    assert main(["corrupt", *TINY, *DUAL, "--output_dir", saved]) == 0
    words = ["--dataset", saved, "--poison", "urp", "--self_check_epochs", "0", "--output_dir", str(tmp_path / "data")]
    assert "is corrupted already" in fails(capsys, *words, *DUAL)
    assert main(["corrupt", *words]) == 0
    assert "as saved, realised 50.0 %" in capsys.readouterr().out
    assert sum(datasets.load_from_disk(str(tmp_path / "data"))["train"]["is_corrupted"]) == 30
    assert "| labels | 50.0 % wrong |" in (tmp_path / "data/README.md").read_text()


def test_label_consistent_is_a_backdoor_with_a_triggered_test_set(tmp_path, capsys):
    words = ["--poison", "label-consistent", "--corrupt_rate", "0.05", "--label_rule", "clean-label", "--target_label", "3"]
    words = [*TINY, "--poison_model", "plain-cnn", "--poison_model_epochs", "1", *words, "--poison_settings", "steps=2"]
    out = tmp_path / "data"
    assert main(["corrupt", *words, "--output_dir", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "corrupted: label-consistent (linf 16/255; 3 pixels, top-left and top-right and bottom-left and bottom-right; " in shown
    assert "attacked: plain-cnn" in shown and "realised 5.0 % (3 of 60 samples)" in shown
    data, before = datasets.load_from_disk(str(out)), clean()
    hit = np.asarray(data["train"]["is_corrupted"][:])
    assert hit.sum() == 3 and data["train"]["label"][:] == before["train"]["label"][:]
    assert set(np.asarray(data["train"]["label"][:])[hit]) == {3} and set(data["test_triggered"]["attack_target"]) == {3}
    moved = np.abs(read_levels(data["train"], "image").astype(int) - read_levels(before["train"], "image"))
    assert (moved[~hit] == 0).all() and (moved[hit][:, 3:5, 3:5] <= 16).all() and moved[hit][:, 3:5, 3:5].max() > 0
    assert json.loads((out / "corruption.json").read_text())["steps"] == 2 and not (out / ".unfinished").exists()


@every_row(
    "name, settings, attacked",
    [
        ("narcissus", "rounds=2", True),
        ("ssba", "epochs=1,width=4", False),
        ("input-aware", "epochs=1,mask_epochs=1,width=4", True),
    ],
)
def test_a_trained_trigger_is_saved_beside_the_data_and_stamps_other_images(name, settings, attacked, tmp_path, capsys):
    rule = ["--label_rule", "clean-label" if name == "narcissus" else "all-to-one", "--target_label", "3", "--corrupt_rate", "0.05"]
    words = [*TINY, "--poison", name, "--poison_settings", settings]
    words += ["--poison_model", "plain-cnn", "--poison_model_epochs", "1"] if attacked else []
    out = tmp_path / name
    assert main(["corrupt", *words, *rule, "--output_dir", str(out)]) == 0
    shown = capsys.readouterr().out
    assert ("attacked: plain-cnn" in shown) is attacked and f"trained trigger: trigger.safetensors in {out}" in shown
    assert f"corrupted: {name} (" in shown and "realised 5.0 % (3 of 60 samples)" in shown
    assert ("and 3 covers that keep their label" in shown) is (name == "input-aware")
    data = datasets.load_from_disk(str(out))
    again = trigger_all(clean()["test"], load_trigger(out))
    assert np.array_equal(read_levels(data["test_triggered"], "image"), read_levels(again, "image"))
    assert main(["corrupt", *TINY, "--corrupt", "patch", "--output_dir", str(out), "--overwrite"]) == 0
    assert not (out / "trigger.safetensors").exists()


def test_more_rows_than_the_target_class_has_are_refused_before_a_network_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("robust_trainer.cli.poison._trained", None)
    words = ["--dataset", "digits", "--poison", "label-consistent", "--label_rule", "clean-label", "--corrupt_rate", "0.25"]
    assert "leaves 135 eligible" in fails(capsys, *words, "--output_dir", str(tmp_path / "out"))


@every_row(
    "words, told",
    [
        ([], "label_rule='multi-target' changes them: give --label_rule clean-label"),
        (["--label_rule", "clean-label", "--corrupt", "patch"], "corrupt='patch' and poison='label-consistent'"),
        (["--label_rule", "clean-label", "--self_check_epochs", "3"], "self_check_epochs=3 is for availability poisons"),
        (["--label_rule", "clean-label", "--poison_settings", "stps=3"], "stps=3 is no setting of poison='label-consistent'"),
        (["--label_rule", "clean-label", "--cover_rate", "0.1"], "cover_rate=0.1 has no effect without a trigger"),
        (["--poison", "narcissus"], "poison='narcissus' keeps the labels"),
        (["--poison", "input-aware", "--eps", "8/255"], "eps='8/255' has no effect with 'input-aware'"),
        (["--poison", "ssba", "--poison_settings", "bites=3"], "bites=3 is no setting of poison='ssba'"),
        (["--poison", "ssba", "--poison_model", "plain-cnn"], "poison_model='plain-cnn' has no effect with poison='ssba'"),
    ],
)
def test_mistakes_of_a_backdoor_with_a_network(words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("robust_trainer.cli.stages.load_data", None)
    poison = [] if "--poison" in words else ["--poison", "label-consistent"]
    assert told in fails(capsys, "--dataset", "digits", *poison, *words, "--output_dir", str(tmp_path / "out"))
