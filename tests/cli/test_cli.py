"""The command line as a user types it: each subcommand on tiny data, and the one-line errors."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers.one_line import fails
from helpers.tables import every_row
from PIL import Image
from transformers import AutoModelForImageClassification

from robust_trainer.cli.main import COMMANDS, main
from robust_trainer.cli.options import CorruptionOptions, DataOptions, read_class_map, read_matrix
from robust_trainer.cli.parser import make_parser, parse
from robust_trainer.corruptions import noise_transition
from robust_trainer.data.load import digits, label_names, load_data
from robust_trainer.data.preprocess import ImageTransform, image_shape
from robust_trainer.models.zoo import SMALL, build_model, load_model
from robust_trainer.reporting.results import curves, mean_last

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ["--dataset", "digits"]
TINY = ["--max_train_samples", "64", "--max_test_samples", "32", "--num_train_epochs", "2", "--disable_tqdm", "true", "--use_cpu"]
BLEND = ["--corrupt", "blend", "--corrupt_rate", "0.25", "--blend_std", "1.0"]


def test_train_writes_a_run_that_evaluate_reads_back(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", *DIGITS, "--method", "prl-at-memory", "--output_dir", out, *TINY, *BLEND]) == 0
    shown = capsys.readouterr().out
    assert "nominal rate 25.0 %, realised 25.0 %" in shown and "prl-at-memory" in shown and "epoch 2" in shown
    content = json.loads((tmp_path / "run/results.json").read_text())
    (run,) = content["runs"]
    assert [row["epoch"] for row in run["curves"]] == [1.0, 2.0]
    assert {"clean_accuracy", "poison_accuracy", "kept_clean", "kept_corrupted"} <= set(run["curves"][-1])
    assert run["mean_last_k"]["k"] == 2 and run["settings"]["noise_rate"] == 0.25
    ledger = datasets.Dataset.from_parquet(str(tmp_path / "run/ledger.parquet"))
    assert len(ledger) == 64 and sum(ledger["is_corrupted"][:]) == 16
    assert (tmp_path / "run/report.html").stat().st_size > 20_000

    assert main(["evaluate", out]) == 0  # data and trigger come from the run
    found = json.loads((tmp_path / "run/evaluation.json").read_text())
    for name in ("clean_accuracy", "poison_accuracy", "attack_success_rate"):
        assert found[name] == pytest.approx(run["final"][name])
    assert main(["evaluate", out, "--corrupt", "none", "--output", str(tmp_path / "clean.json")]) == 0
    assert "poison_accuracy" not in json.loads((tmp_path / "clean.json").read_text())


@pytest.mark.slow
def test_a_run_of_two_networks_says_which_one_is_the_model(tmp_path, capsys):
    out = str(tmp_path / "run")
    tiny = ["--max_train_samples", "32", "--max_test_samples", "16", "--max_steps", "2", "--disable_tqdm", "true", "--use_cpu"]
    assert main(["train", *DIGITS, "--method", "co-prl", "--output_dir", out, *tiny]) == 0
    record = json.loads((tmp_path / "run/results.json").read_text())["runs"][0]
    best = record["export"]["exported"]
    assert f"model.safetensors is peer{best} of 2 networks (loss on trusted samples " in capsys.readouterr().out
    assert main(["evaluate", out]) == 0
    found = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert found["clean_accuracy"] == pytest.approx(record["final"]["clean_accuracy"]) and found["networks"] == 2
    assert f"mean of 2 networks; saved_model_accuracy: of peer{best} alone" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "run/peers")  # what another program sees
    assert main(["evaluate", out]) == 0
    alone = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert alone["clean_accuracy"] == found["saved_model_accuracy"] and "networks" not in alone


def test_corrupt_then_train_on_what_it_saved(tmp_path, capsys):
    saved = str(tmp_path / "data")
    words = ["--corrupt", "patch", "--corrupt_rate", "0.5", "--label_rule", "all-to-one", "--target_label", "3"]
    assert main(["corrupt", *DIGITS, "--max_train_samples", "60", "--max_test_samples", "30", "--output_dir", saved, *words]) == 0
    assert "nominal rate 50.0 %, realised 50.0 % (30 of 60 samples)" in capsys.readouterr().out
    data = datasets.load_from_disk(saved)
    assert set(data) == {"train", "test", "test_triggered"} and set(data["test_triggered"]["attack_target"][:]) == {3}
    assert all(row["label"] == 3 for row in data["train"] if row["is_corrupted"])
    out = str(tmp_path / "run")
    assert main(["train", "--dataset", saved, "--method", "prl", "--output_dir", out, *TINY]) == 0
    (run,) = json.loads((tmp_path / "run/results.json").read_text())["runs"]
    assert run["detection"] and "attack_success_rate" in run["final"]
    ledger = datasets.Dataset.from_parquet(str(tmp_path / "run/ledger.parquet")).to_pandas()
    by_class = {row["class"]: (row["samples"], row["kept"]) for row in run["classes"]}
    kept = ledger[~ledger["distrusted"]].groupby("label").size()
    assert by_class == {str(c): (n, int(kept.get(c, 0))) for c, n in ledger.groupby("label").size().items()}
    capsys.readouterr()
    assert "twice" in fails(capsys, "train", "--dataset", saved, "--corrupt", "blend", "--output_dir", out + "2", *TINY)


NOISE = {
    "symmetric": ["--corrupt_rate", "0.5"],
    "symmetric-redraw": ["--corrupt_rate", "0.5", "--noise_form", "probability"],
    "pairflip": ["--corrupt_rate", "0.5"],
    "asymmetric": ["--corrupt_rate", "0.5", "--class_map", "9:1,2:0,4:7"],
    "transition": ["--transition_matrix", "matrix.csv"],
    "instance": ["--corrupt_rate", "0.5"],
}


@pytest.mark.parametrize("noise", NOISE)
def test_corrupt_prints_and_saves_label_noise(noise, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savetxt("matrix.csv", 0.5 * np.eye(10) + 0.5 * np.roll(np.eye(10), 1, axis=1), delimiter=",")
    assert main(["corrupt", *DIGITS, "--corrupt", noise, "--max_train_samples", "200", "--output_dir", "data", *NOISE[noise]]) == 0
    shown = capsys.readouterr().out
    assert f"corrupted: {noise} label noise" in shown and "nominal %  realised %" in shown
    data = datasets.load_from_disk("data")
    assert set(data) == {"train", "test"} and set(data["test"].column_names) == {"image", "label"}
    told = json.loads((tmp_path / "data/corruption.json").read_text())
    wrong = [a != b for a, b in zip(data["train"]["label"], data["train"]["clean_label"])]
    assert data["train"]["is_corrupted"][:] == wrong and sum(wrong) == told["corrupted"] > 0
    if noise in ("symmetric", "pairflip", "instance"):
        assert sum(wrong) == 100
    if noise == "asymmetric":
        assert {a for a, hit in zip(data["train"]["clean_label"], wrong) if hit} == {9, 2, 4}
        assert told["nominal_per_class"]["9"] == 0.5 and told["nominal_per_class"]["0"] == 0


def test_train_and_evaluate_on_noisy_labels(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("matrix.npy", noise_transition("symmetric", 10, 0.25))
    words = ["--corrupt", "transition", "--transition_matrix", "matrix.npy", *TINY]
    assert main(["train", *DIGITS, "--method", "prl", "--noise_rate", "0.25", "--output_dir", "run", *words]) == 0
    shown = capsys.readouterr().out
    assert "nominal rate 25.0 %" in shown and "nominal %  realised %" in shown and "poison" not in shown
    (run,) = json.loads((tmp_path / "run/results.json").read_text())["runs"]
    assert run["detection"] and set(run["final"]) == {"clean_accuracy", "n"}
    page = (tmp_path / "run/report.html").read_text()
    assert "label noise" in page and "matrix.npy" in page and "poison %" not in page
    (tmp_path / "matrix.npy").unlink()  # the test images never were corrupted
    assert main(["evaluate", "run"]) == 0
    found = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert found["clean_accuracy"] == pytest.approx(run["final"]["clean_accuracy"]) and "poison_accuracy" not in found


def test_a_column_of_real_noisy_labels(tmp_path, capsys):
    data = digits()
    worse = (np.array(data["train"]["label"]) + (np.arange(1400) % 4 == 0)) % 10
    data["train"] = data["train"].add_column("worse_label", worse)
    data.save_to_disk(str(tmp_path / "data"))
    words = ["--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "o")]
    assert main(["corrupt", "--noisy_label_column", "worse_label", *words]) == 0
    assert "labels of the column worse_label, realised 25.0 % (350 of 1400 samples)" in capsys.readouterr().out
    made = datasets.load_from_disk(str(tmp_path / "o"))["train"]
    assert made["label"][:] == worse.tolist() and made["clean_label"][:] == data["train"]["label"][:]
    assert "not among the columns ['worse_label']" in fails(
        capsys, "corrupt", "--noisy_label_column", "label", *words, "--overwrite"
    )
    words = ["--dataset", str(tmp_path / "o"), "--output_dir", str(tmp_path / "again")]
    assert "noisy_label_column='worse_label' would do it twice" in fails(
        capsys, "corrupt", "--noisy_label_column", "worse_label", *words
    )


def test_class_maps_are_read(tmp_path):
    assert read_class_map("nrat") == "nrat" and read_class_map(" 9:1, 2:0 ") == {9: 1, 2: 0}
    assert read_class_map('{"9": 1, "cat": "dog"}') == {9: 1, "cat": "dog"} and read_class_map("cat:dog") == {"cat": "dog"}
    (tmp_path / "c.yaml").write_text("corrupt: asymmetric\nclass_map: {9: 1, 2: 0}\n")
    (options,) = parse(make_parser("corrupt", [CorruptionOptions], ""), [str(tmp_path / "c.yaml")])
    assert options.noise() == {"noise": "asymmetric", "rate": 0.25, "class_map": {9: 1, 2: 0}}
    assert options.trigger() is None and CorruptionOptions(corrupt="patch").noise() is None
    matrix = [[0.5, 0.5], [0.0, 1.0]]
    (tmp_path / "m.json").write_text(json.dumps(matrix))
    assert read_matrix(str(tmp_path / "m.json")).tolist() == matrix


def test_flags_win_over_yaml_and_small_models_have_their_own_defaults(tmp_path):
    from robust_trainer import RobustConfig
    from robust_trainer.cli.options import ModelOptions
    from robust_trainer.cli.train import DEFAULTS_BY_MODEL, SMALL_DEFAULTS, TRAIN_DEFAULTS

    file = tmp_path / "c.yaml"
    lines = ["method: prl-at", "noise_rate: 0.1", "learning_rate: 1e-3", "image_mean: [0.5]", "image_std: [0.25]", "use_cpu: true"]
    file.write_text("\n".join([*lines, "eps: null"]))

    def read(*words):
        parser = make_parser("train", [DataOptions, CorruptionOptions, ModelOptions, RobustConfig], "")
        parser.set_defaults(**TRAIN_DEFAULTS | {"output_dir": str(tmp_path / "o")})
        return parse(parser, [str(file), *words], defaults=lambda words: DEFAULTS_BY_MODEL.get(words.model, {}))

    _, _, model, args = read("--noise_rate", "0.3")
    assert (args.method, args.noise_rate, args.learning_rate, args.eps) == ("prl-at", 0.3, 1e-3, None)
    assert args.image_mean == [0.5] and args.use_cpu and model.model == "small-cnn"
    assert args.num_train_epochs == SMALL_DEFAULTS["num_train_epochs"]
    *_, args = read("--model", "some/vit")
    assert args.num_train_epochs == 3 and args.remove_unused_columns is False


@every_row(
    "words, told",
    [
        (["tain"], "did you mean 'train'?"),
        (["train", "--noise_rte", "0.3"], "did you mean '--noise_rate'?"),
        (["train", "--method", "prl_at"], "did you mean 'prl-at'?"),
        (["train", "--method", "standard", "--noise_rate", "0.3"], "takes no 'noise_rate'"),
        (["train", "--learning_rate", "fast"], "--learning_rate"),
        (["train", "nowhere.yaml"], "could not be read"),
        (["train", "stray"], "unexpected argument 'stray': give a .yaml file first"),
        (["train", "data.csv"], "unexpected argument 'data.csv': a data set is --dataset data.csv, and a .yaml file stands first"),
        (["train", "--dataset", "./nowhere"], "dataset='./nowhere' does not exist"),
        (["train", "--model", "/nowhere"], "model='/nowhere' could not be loaded"),
        (["train", "--corrupt", "pach"], "choose one of none, patch, blend"),
        (["train", "--corrupt", "blend", "--corrupt_rate", "25"], "corrupt_rate=25.0 must be in [0, 1)"),
        (["train", "--corrupt", "blend", "--alpha", "2"], "alpha=2.0"),
        (["train", "--corrupt", "symmetric", "--corrupt_rate", "1"], "corrupt_rate=1.0 must be in [0, 1)"),
        (["train", "--corrupt", "symmetric", "--class_map", "nrat"], "give --corrupt asymmetric"),
        (["train", "--corrupt", "symmetric", "--noise_form", "exactly"], "choose exact or probability"),
        (["corrupt", "--corrupt", "asymmetric"], "give --class_map"),
        (["corrupt", "--corrupt", "asymmetric", "--class_map", "9:1,2"], "source:target pairs as 9:1,2:0"),
        (["corrupt", "--corrupt", "asymmetric", "--class_map", "9:1,9:2"], "names class 9 twice"),
        (["corrupt", "--corrupt", "asymmetric", "--class_map", "9:10"], "unknown class 10"),
        (["corrupt", "--corrupt", "asymmetric", "--class_map", "{9"], "is no JSON"),
        (["corrupt", "--corrupt", "transition"], "give --transition_matrix"),
        (["corrupt", "--corrupt", "transition", "--transition_matrix", "nowhere.npy"], "no existing .npy, .json or .csv"),
        (["corrupt", "--corrupt", "pairflip", "--noisy_label_column", "w"], "corrupt the labels twice"),
        (["corrupt", "--noisy_label_column", "w"], "noisy_label_column='w'"),
        (["train", "--last_k", "0"], "last_k=0"),
        (["train", "--max_train_samples", "0"], "max_train_samples=0"),
        (["corrupt"], "give --corrupt patch, blend or a label noise"),
        (["corrupt", "--corrupt", "patch", "--patch_size", "9"], "does not fit"),
        (["evaluate", "/nowhere"], "run='/nowhere' is no folder"),
        (["demo", "--epochs", "0"], "epochs=0"),
        (["demo", "--method", "prl-att"], "did you mean 'prl-at'?"),
        (["env", "x"], "env takes none"),
    ],
)
def test_mistakes_are_one_line(words, told, capsys, tmp_path):
    extra = ["--output_dir", str(tmp_path / "o")] if words[0] in ("train", "corrupt", "demo") else []
    extra += DIGITS if words[0] in ("train", "corrupt") and "--dataset" not in words else []
    assert told in fails(capsys, *words, *extra)
    assert not (tmp_path / "o").exists()


def test_unknown_yaml_key_names_file_and_key(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("noise_rte: 0.3\n")
    told = fails(capsys, "train", str(file))
    assert "c.yaml" in told and "'noise_rte'" in told and "'noise_rate'" in told
    file.write_text("- a\n- b\n")
    assert "expected lines of the form" in fails(capsys, "train", str(file))


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError):
        main(["train", "--debug", "--method", "nope"])


def test_help_env_and_module(capsys, monkeypatch):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    for name in ("train", "evaluate", "corrupt", "demo"):
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
    assert main(["env", "--help"]) == 0 and "usage: robust-trainer env" in capsys.readouterr().out
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("robust_trainer", "python", "torch", "transformers", "cores", "device"))
    monkeypatch.setattr(sys, "argv", ["cli", "tain"])
    with pytest.raises(SystemExit) as stop:  # as accelerate launch -m runs it
        runpy.run_module("robust_trainer.cli", run_name="__main__")
    assert stop.value.code == 2 and "did you mean 'train'" in capsys.readouterr().err


def test_sources_folder_parquet_and_disk(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(random.integers(0, 255, (9, 7, 3), dtype=np.uint8)).save(tmp_path / f"images/{name}/{i}.png")
    data = load_data(str(tmp_path / "images"))
    assert label_names(data["train"]) == ["cat", "dog"] and (len(data["train"]), len(data["test"])) == (16, 4)
    assert image_shape(data["train"]) == (3, 9)

    strings = digits()["test"].select(range(20)).cast_column("label", datasets.Value("string")).rename_column("label", "y")
    (tmp_path / "pq").mkdir()
    strings.select(range(15)).rename_column("image", "picture").to_parquet(str(tmp_path / "pq/train-00000.parquet"))
    strings.select(range(15, 20)).rename_column("image", "picture").to_parquet(str(tmp_path / "pq/test-00000.parquet"))
    data = load_data(str(tmp_path / "pq"))
    assert (len(data["train"]), len(data["test"])) == (15, 5)
    assert set(data["train"].column_names) == {"image", "label"}
    assert data["train"].features["label"] == data["test"].features["label"]

    digits().save_to_disk(str(tmp_path / "disk"))
    assert len(load_data(str(tmp_path / "disk"), max_train_samples=50)["train"]) == 50
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither images"):
        load_data(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="could not be loaded from the hub"):
        load_data("nobody/nothing")
    with pytest.raises(ValueError, match="test_split='tests'"):
        load_data("digits", test_split="tests")


def test_digits_are_the_same_every_time():
    first, second = digits(), digits()
    assert (len(first["train"]), len(first["test"])) == (1400, 397)
    assert first["train"]["label"][:] == second["train"]["label"][:]
    image = first["train"][0]["image"]
    assert image.mode == "L" and image.size == (8, 8) and max(image.getextrema()) <= 255
    together = sorted(first["train"]["label"][:] + first["test"]["label"][:])
    from sklearn.datasets import load_digits

    assert together == sorted(load_digits().target.tolist())


@pytest.mark.parametrize("name", SMALL)
def test_small_models_save_and_load_bit_for_bit(name, tmp_path):
    model, processor = build_model(name, ["a", "b", "c"], channels=1, image_size=8)
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = load_model(str(tmp_path))
    images = [Image.fromarray(np.full((8, 8), 40 * i, np.uint8)) for i in range(3)]
    batch = {"image": images, "label": [0, 1, 2]}
    one, two = (ImageTransform(p, 1)(batch) for p in (processor, processor_again))
    assert torch.equal(one["pixel_values"], two["pixel_values"]) and one["pixel_values"].shape == (3, 1, 8, 8)
    with torch.no_grad():
        output = model(**one)
        assert torch.equal(output.logits, again.eval()(**two).logits)
    assert torch.allclose(output.loss, torch.nn.functional.cross_entropy(output.logits, one["labels"]))
    assert isinstance(AutoModelForImageClassification.from_pretrained(tmp_path), SMALL[name][1])


def test_resnet32_is_the_papers():
    model, _ = build_model("resnet32", [str(i) for i in range(10)], channels=3, image_size=32)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == 32 and sum(p.numel() for p in model.parameters()) == 464_154


def test_curves_gather_an_epoch_and_means_take_the_last():
    history = [{"epoch": 1.0, "loss": 2.0}, {"epoch": 1.0, "eval_clean_accuracy": 0.5}, {"epoch": 2.0, "eval_clean_accuracy": 0.7}]
    rows = curves(history)
    assert rows == [{"epoch": 1.0, "loss": 2.0, "clean_accuracy": 0.5}, {"epoch": 2.0, "clean_accuracy": 0.7}]
    assert mean_last(rows, 10) == {"clean_accuracy": pytest.approx(0.6), "k": 2}
    assert mean_last(rows, 1) == {"clean_accuracy": 0.7, "k": 1}


@every_row("file", sorted((ROOT / "examples").glob("*.yaml")))
def test_example_configs_are_read(file, tmp_path, monkeypatch):
    from robust_trainer import RobustConfig
    from robust_trainer.cli.options import ModelOptions
    from robust_trainer.cli.pretraining import ContrastiveOptions

    monkeypatch.chdir(tmp_path)
    parser = make_parser("train", [DataOptions, CorruptionOptions, ModelOptions, ContrastiveOptions, RobustConfig], "")
    *_, args = parse(parser, [str(file)])
    assert args.recipe() is not None


def test_example_script_runs(tmp_path, capsys, monkeypatch):
    script = str(ROOT / "examples/image_classification.py")
    monkeypatch.setattr(sys, "argv", [script, str(ROOT / "examples/digits_blend.yaml"), "--output_dir", str(tmp_path), *TINY])
    runpy.run_path(script, run_name="__main__")
    assert "eval_clean_accuracy" in capsys.readouterr().out and (tmp_path / "model.safetensors").exists()
