"""robust-trainer corrupt --craft and robust-trainer paths as a user types them, on tiny data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers.tables import every_row

from robust_trainer.cli import craft as craft_run
from robust_trainer.cli import paths as paths_command
from robust_trainer.cli.craft_options import CraftOptions, class_number
from robust_trainer.cli.main import main
from robust_trainer.cli.parser import make_parser, parse
from robust_trainer.corruptions.crafted.craft_labels import CRAFTED, craft_labels
from robust_trainer.data.load import load_data
from robust_trainer.evaluation import boundary_paths as adversarial_paths
from robust_trainer.evaluation import path_table
from robust_trainer.evaluation.boundary_paths import path_lengths
from robust_trainer.evaluation.path_table import PathLengths, load_paths
from robust_trainer.models.zoo import load_model

TINY = ["--dataset", "digits", "--max_train_samples", "200", "--max_test_samples", "40"]
RATE = ["--craft_rate", "0.1"]
MODEL = ["--craft_model", "plain-cnn", "--craft_model_epochs", "2"]
#: What each strategy is given, and the same as settings of `craft_labels`.
STRATEGIES = {
    "random": ([], {}),
    "class-graph-greedy": (["--craft_gamma", "1.9", "--craft_norm", "l2"], {"gamma": 1.9}),
    "class-graph-dominating-set": (
        ["--craft_space", "pca", "--craft_settings", "components=8,degree=5"], {"space": "pca", "components": 8, "degree": 5},
    ),
    "gaussian-density": (["--craft_quantiles", "0.2,0.8", "--craft_seed", "3"], {"quantiles": (0.2, 0.8), "seed": 3}),
    "min-colouring": (["--craft_settings", "epochs=2,steps=2"], {"epochs": 2, "steps": 2}),
}  # fmt: skip


def fails(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("robust-trainer: error: ") and "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def clean():
    return load_data("digits", max_train_samples=200, max_test_samples=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished training on labels with noise, and its data folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["--method", "standard", "--model", "plain-cnn", "--num_train_epochs", "2", "--disable_tqdm", "true", "--use_cpu"]
    noise = ["--corrupt", "symmetric", "--corrupt_rate", "0.1", "--squeeze", "bits"]
    small = ["--max_train_samples", "120", "--max_test_samples", "20", "--learning_rate", "5e-3"]
    assert main(["train", *TINY[:2], *small, *words, *noise, "--output_dir", str(folder)]) == 0
    return folder


# ---- corrupt --craft -----------------------------------------------------------------------------------------------------


@every_row("name", STRATEGIES)
def test_a_strategy_is_written_as_its_function_makes_it(name, clean, tmp_path, capsys):
    words, settings = STRATEGIES[name]
    assert main(["corrupt", *TINY, *RATE, "--craft", name, *words, "--output_dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"crafted label noise {name} (" in shown and "nominal rate 10.0 %, realised 10.0 % (20 of 200 samples)" in shown
    data, wanted = datasets.load_from_disk(str(tmp_path)), craft_labels(clean["train"], name, rate=0.1, **settings)
    assert data["train"]["label"][:] == wanted["label"][:] != clean["train"]["label"][:]
    assert data["train"]["clean_label"][:] == clean["train"]["label"][:] and sum(data["train"]["is_corrupted"][:]) == 20
    assert data["test"]["label"][:] == clean["test"]["label"][:]
    told = json.loads((tmp_path / "corruption.json").read_text())
    assert told["corrupted"] == 20 and told["craft"] == name and told["craft_settings"]["target"] == "cyclic"
    assert {p.name for p in tmp_path.iterdir()} == {"train", "test", "corruption.json", "dataset_dict.json"}
    assert main(["train", "--dataset", str(tmp_path), "--corrupt", "patch", "--output_dir", str(tmp_path / "run")]) == 2
    assert "is corrupted already" in capsys.readouterr().err


def test_every_strategy_is_tried_here():
    assert {*STRATEGIES, "adversarial-path"} == set(CRAFTED)


def test_paths_are_walked_through_a_network_trained_first(clean, tmp_path, capsys, monkeypatch):
    words = [*TINY, *RATE, *MODEL, "--craft", "adversarial-path", "--craft_settings", "step_size=0.05,max_steps=20,batch_size=64"]

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(craft_run, "craft_labels", stopped)
        assert main(["corrupt", *words, "--output_dir", str(tmp_path)]) == 130
    work = tmp_path / ".unfinished/labels"
    kept = sorted(str(p.relative_to(work).with_suffix("")) for p in tmp_path.rglob("*.safetensors"))
    assert kept == ["model/weights", "paths/0", "paths/1", "paths/2", "paths/3"]
    (tmp_path / "paths.png").write_text("an earlier one")
    with monkeypatch.context() as patch:
        patch.setattr(adversarial_paths, "walk_out", stopped)  # they are there already, as is the network
        patch.setattr("robust_trainer.cli.poison.train_plain", stopped)
        assert main(["corrupt", *words, "--output_dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "model: plain-cnn, trained on the clean labels for 2 epochs, accuracy on test images" in shown
    assert f"paths.parquet, paths.png in {tmp_path}" in shown and not (tmp_path / ".unfinished").exists()
    found, data = load_paths(tmp_path / "paths.parquet"), datasets.load_from_disk(str(tmp_path))["train"]
    assert found.labels.tolist() == data["clean_label"][:] and found.step_size == 0.05 and found.max_steps == 20
    assert (found.targets == (found.labels + 1) % 10).all() and (tmp_path / "paths.png").read_bytes()[:4] == b"\x89PNG"
    assert data["label"][:] == craft_labels(clean["train"], "adversarial-path", rate=0.1, paths=found)["label"][:]


@pytest.mark.parametrize(
    "words, targets, low",
    [
        (["--craft_target", "4", "--craft_source", "1,2"], {4}, 0.5),
        (["--craft_settings", "targeted=false,step_size=0.1,max_steps=10"], {-1}, 0.5),
        (["--craft_quantiles", "none"], set(range(10)), 0.8),
    ],
)
def test_what_the_paths_lead_to(words, targets, low, run, clean, tmp_path):
    words = words if "--craft_settings" in words else [*words, "--craft_settings", "step_size=0.1,max_steps=10"]
    words += ["--craft", "adversarial-path", "--craft_model", str(run), "--craft_budget", "8", "--output_dir", str(tmp_path)]
    assert main(["corrupt", *TINY, *words]) == 0
    found, data = load_paths(tmp_path / "paths.parquet"), datasets.load_from_disk(str(tmp_path))["train"]
    assert set(found.targets.tolist()) == targets
    flipped = np.flatnonzero(data["is_corrupted"][:])
    assert len(flipped) == 8 and json.loads((tmp_path / "corruption.json").read_text())["model"] == "the model of run"
    for row in flipped:
        mine = np.flatnonzero(found.labels == found.labels[row])
        place = np.lexsort((found.margin[mine], found.steps[mine])).argsort()[mine.tolist().index(row)]
        assert place / len(mine) >= low - 0.05, (row, place, len(mine))
        assert not targets == {4} or found.labels[row] in (1, 2)


def test_both_spaces_of_a_trained_network(run, clean, tmp_path, capsys):
    words = ["--craft", "class-graph-greedy", "--craft_space", "input-and-features", "--craft_gamma", "1.9,50"]
    assert main(["corrupt", *TINY, *RATE, *words, "--craft_model", str(run), "--output_dir", str(tmp_path)]) == 0
    model, processor = load_model(str(run))
    wanted = craft_labels(clean["train"], "class-graph-greedy", rate=0.1, space="input-and-features", gamma=(1.9, 50.0),
                          model=model, processing_class=processor)  # fmt: skip
    assert datasets.load_from_disk(str(tmp_path))["train"]["label"][:] == wanted["label"][:]
    assert "(in input-and-features; to cyclic)" in capsys.readouterr().out


def test_a_poison_comes_first(tmp_path, capsys):
    words = ["--poison", "urp", "--self_check_epochs", "0", "--craft", "gaussian-density", *RATE]
    assert main(["corrupt", *TINY, *words, "--output_dir", str(tmp_path)]) == 0
    data = datasets.load_from_disk(str(tmp_path))["train"]
    assert data["is_poisoned"][:] == [True] * 200 and sum(data["is_corrupted"][:]) == 20
    assert "(crafted label noise gaussian-density (to cyclic), after the poison)" in (tmp_path / "README.md").read_text()
    told = json.loads((tmp_path / "corruption.json").read_text())
    assert told["poison"]["poison"] == "urp" and told["craft"] == "gaussian-density"
    poisoned = data.remove_columns(["is_corrupted", "label"]).rename_column("clean_label", "label")
    assert data["label"][:] == craft_labels(poisoned, "gaussian-density", rate=0.1)["label"][:]
    assert "is_poisoned" in data.column_names and not (tmp_path / ".unfinished").exists()
    words = ["--dataset", str(tmp_path), "--poison", "urp", "--craft", "random", *RATE, "--output_dir", str(tmp_path / "again")]
    assert "is corrupted already and craft='random'" in fails(capsys, "corrupt", *words)


def test_an_extra_class_is_trained_evaluated_and_audited(tmp_path, capsys):
    out, run = str(tmp_path / "data"), str(tmp_path / "run")
    words = ["--craft", "random", "--craft_target", "extra", "--craft_source", "3,7", "--craft_budget", "15"]
    assert main(["corrupt", *TINY, *words, "--output_dir", out]) == 0
    shown = capsys.readouterr().out
    assert "nominal rate 7.5 %, realised 7.5 % (15 of 200 samples)" in shown
    assert [line.split()[1] for line in shown.splitlines() if line[:1] in "12"] == ["0.0", "0.0"]
    data = datasets.load_from_disk(out)
    assert data["train"].features["label"].names == data["test"].features["label"].names == [*map(str, range(10)), "extra"]
    assert data["train"].features["clean_label"].names == [*map(str, range(10))] and max(data["test"]["label"][:]) == 9
    assert {c for c, label in zip(data["train"]["clean_label"][:], data["train"]["label"][:]) if label == 10} == {3, 7}
    quick = ["--num_train_epochs", "1", "--disable_tqdm", "true", "--use_cpu", "--model", "plain-cnn", "--method", "prl"]
    assert main(["train", "--dataset", out, *quick, "--output_dir", run]) == 0
    model = load_model(run)[0]
    assert model.config.num_labels == 11 and model.config.id2label[10] == "extra"
    assert main(["evaluate", run, "--attacks", "pgd-2"]) == 0
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["n"] == 40
    assert main(["paths", run, "--step_size", "0.2", "--max_steps", "5"]) == 0
    assert main(["audit", run, "--clean", "relabel"]) == 0
    table = datasets.Dataset.from_parquet(str(tmp_path / "run/audit/audit.parquet"))
    assert max(table["label"][:]) == 10 and "extra" in (tmp_path / "run/audit/report.html").read_text()


@every_row(
    "words, told",
    [
        ([], "--craft, --noisy_label_column, or --poison"),
        (["--craft", "randum", *RATE], "strategy='randum' is unknown: did you mean 'random'?"),
        (["--craft", "random", "--craft_quantiles", "0.1,0.5", *RATE], "strategy 'random' takes no 'quantiles'"),
        (["--craft", "min-colouring", "--craft_space", "pca", *RATE], "strategy 'min-colouring' takes no 'space'"),
        (["--craft", "random", "--craft_settings", "degree=3", *RATE], "strategy 'random' takes no 'degree'"),
        (["--craft", "random"], "craft_rate=None and craft_budget=None: give one of them"),
        (["--craft", "random", *RATE, "--craft_budget", "3"], "craft_rate=0.1 and craft_budget=3: give one of them"),
        (["--craft", "random", "--craft_rate", "2"], "rate=2.0 must be a fraction in [0, 1)"),
        (["--craft", "random", *RATE, "--craft_seed", "-1"], "seed=-1 must be an integer"),
        (["--corrupt", "blnd"], "corrupt='blnd' is unknown: did you mean 'blend'? choose one of none, patch, blend"),
        (["--craft", "random", *RATE, "--corrupt", "symmetric"], "corrupt='symmetric' and craft='random' would corrupt the labels"),
        (["--craft", "random", *RATE, "--noisy_label_column", "x"], "noisy_label_column='x' and craft='random' would corrupt"),
        (["--craft", "random", *RATE, "--craft_model", "plain-cnn"], "craft='random' looks at no model here"),
        (["--craft", "class-graph-greedy", *RATE, "--craft_space", "pixels"], "craft_space='pixels' is unknown: choose one of"),
        (["--craft", "class-graph-greedy", *RATE, "--craft_gamma", "a"], "craft_gamma='a' is no 1 or 2 number(s)"),
        (["--craft", "class-graph-greedy", *RATE, "--craft_gamma", "1,2,3"], "craft_gamma='1,2,3' is no 1 or 2 number(s)"),
        (["--craft", "class-graph-greedy", *RATE, "--craft_quantiles", "0.5"], "craft_quantiles='0.5' is no 2 number(s)"),
        (["--craft", "class-graph-greedy", *RATE, "--craft_settings", "gamma=3"], "give --craft_gamma"),
        (["--craft", "min-colouring", *RATE, "--craft_settings", "make=x"], "which only Python can give"),
        (["--craft", "min-colouring", *RATE, "--craft_settings", "epochs=many"], "epochs='many' is of the wrong kind: give a"),
        (["--craft", "min-colouring", *RATE, "--craft_settings", "epochs=true"], "epochs=True is of the wrong kind"),
        (["--craft", "random", *RATE, "--craft_settings", "epochs"], "craft_settings='epochs' are no name=value pairs"),
        (["--craft", "adversarial-path", *RATE, "--craft_model_epochs", "0"], "craft_model_epochs=0 must be at least 1"),
        (["--craft_rate", "0.1", "--corrupt", "patch"], "craft_rate=0.1 is given but craft is not: give --craft, one of random"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("robust_trainer.cli.stages.load_data", None)
    assert told in fails(capsys, "corrupt", *TINY[:2], *words, "--output_dir", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@every_row(
    "words, told",
    [
        (["--craft_target", "ten"], "craft_target='ten' is no class: give a class number in [0, 10) or a class name."),
        (["--craft_target", "10"], "craft_target='10' is no class"),
        (["--craft_source", "3,x"], "craft_source='x' is no class"),
        (["--craft_target", "3", "--craft_source", "3"], "class 3 is the target already"),
        (["--craft_rate", "0.9", "--craft_source", "3"], "rate=0.9 is 180 labels but class 3 has"),
        (["--craft_quantiles", "0.9,0.5"], "0 <= low < high <= 1"),
        (["--craft_model", "vgg"], "craft_model='vgg' is unknown: choose small-cnn"),
        (["--craft_norm", "l0"], "norm='l0' is unknown: choose one of linf, l2, l1"),
        (["--craft_settings", "step_size=0"], "step_size=0 must be above 0"),
    ],
)
def test_mistakes_of_the_data_are_told_in_one_line(words, told, run, tmp_path, capsys):
    rate = [] if "--craft_rate" in words else RATE
    model = [] if "--craft_model" in words else ["--craft_model", str(run)]
    base = ["--craft", "adversarial-path", *rate, *model, "--output_dir", str(tmp_path)]
    if "--craft_quantiles" in words:
        base += ["--craft_settings", "step_size=0.2,max_steps=3"]
    assert told in fails(capsys, "corrupt", *TINY, *base, *words)
    assert not (tmp_path / "train").exists()


def test_nothing_is_trained_for_flips_that_cannot_be(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(craft_run, "trained_network", None)
    words = [*TINY, "--craft", "adversarial-path", "--craft_budget", "150", "--craft_source", "3"]
    assert "budget=150 labels but class 3" in fails(capsys, "corrupt", *words, "--output_dir", str(tmp_path))


def test_options_from_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("craft: class-graph-greedy\ncraft_rate: 0.02\ncraft_settings: {degree: 4}\ncraft_gamma: 3\n")
    (options,) = parse(make_parser("corrupt", [CraftOptions], ""), [str(tmp_path / "c.yaml"), "--craft_quantiles", "None"])
    assert options.settings() == {"seed": 0, "rate": 0.02, "gamma": 3.0, "degree": 4, "quantiles": None}
    assert CraftOptions().check() is None and not CraftOptions(craft="random").needs_model


def test_classes_by_number_and_name():
    assert class_number("cat", ["dog", "cat"], "target") == 1 and class_number(" 0", ["dog", "cat"], "target") == 0
    assert class_number("1", ["3", "5", "1"], "target") == 1  # a number is a class number
    with pytest.raises(ValueError, match="target='cta' is no class: did you mean 'cat'"):
        class_number("cta", ["dog", "cat"], "target")


# ---- paths ---------------------------------------------------------------------------------------------------------------

QUICK = ["--step_size", "0.05", "--max_steps", "12", "--batch_size", "50"]
FEW_STEPS = ["--step_size", "0.1", "--max_steps", "4", "--batch_size", "50"]


@pytest.fixture
def copied(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_paths_of_a_run_are_those_of_its_training_data(copied, capsys):
    capsys.readouterr()
    assert main(["paths", str(copied), *QUICK]) == 0
    shown = capsys.readouterr().out
    found = load_paths(copied / "paths.parquet")
    told = json.loads((copied / "results.json").read_text())["options"]
    prepared = paths_command.prepare(
        *(kind(**{k: told[k] for k in kind.__dataclass_fields__ if k in told}) for kind in (
            paths_command.DataOptions, paths_command.CorruptionOptions, paths_command.PreprocessOptions))
    )  # fmt: skip
    assert prepared.corruption["corrupted"] == 12 and prepared.squeeze is not None
    model, processor = load_model(str(copied))
    wanted = path_lengths(model, prepared.train, processing_class=processor, step_size=0.05, max_steps=12)
    assert (found.steps == wanted.steps).all() and np.allclose(found.margin, wanted.margin, atol=1e-4)
    assert len(found) == 120 and found.labels.tolist() == prepared.train["label"][:] and (found.targets == -1).all()
    lines = [line.split() for line in shown.splitlines() if line[:1].isdigit()]
    assert len(lines) == 10
    for number, line in enumerate(lines):
        mine = np.sort(found.steps[found.labels == number])
        assert line[:2] == [str(number), str(len(mine))] and line[6:] == [str(r) for r in found.closest(5, number)]
        shown_steps = [13 if word == ">12" else int(word) for word in line[2:5]]
        assert shown_steps == [np.quantile(mine, q, method="lower") for q in (0.5, 0.1, 0.9)]
        assert int(line[5]) == (mine > 12).sum()
    assert (copied / "paths.png").read_bytes()[:4] == b"\x89PNG" and "written to" in shown


def test_finished_batches_are_taken_again(copied, capsys, monkeypatch):
    walked, walk_out, stop = [], adversarial_paths.walk_out, 2

    def counted(*given):
        if len(walked) == stop:
            raise KeyboardInterrupt
        walked.append(len(given[1]))
        return walk_out(*given)

    monkeypatch.setattr(adversarial_paths, "walk_out", counted)
    assert main(["paths", str(copied), *FEW_STEPS]) == 130
    assert walked == [50, 50] and not (copied / "paths.parquet").exists()
    before = {p.name: p.stat().st_mtime_ns for p in (copied / "paths").glob("*.safetensors")}
    stop = 3
    assert main(["paths", str(copied), *FEW_STEPS]) == 0 and walked == [50, 50, 20]
    after = {p.name: p.stat().st_mtime_ns for p in (copied / "paths").glob("*.safetensors")}
    assert set(before) == {"0.safetensors", "1.safetensors"} and before.items() < after.items()
    assert main(["paths", str(copied), *FEW_STEPS]) == 0 and len(walked) == 3
    stop = 6
    assert main(["paths", str(copied), *FEW_STEPS, "--target", "cyclic"]) == 0 and len(walked) == 6
    assert "begun anew" in capsys.readouterr().out
    assert (load_paths(copied / "paths.parquet").targets >= 0).all()


def test_another_model_begins_anew(copied, capsys):
    assert main(["paths", str(copied), *FEW_STEPS]) == 0
    assert not paths_command.is_stale(copied)
    model, processor = load_model(str(copied))
    torch.nn.init.zeros_(model.head.weight)
    model.save_pretrained(copied)
    assert paths_command.is_stale(copied)
    capsys.readouterr()
    assert main(["audit", str(copied), "--clean", "none", "--look", "false", "--per_class", "1"]) == 0
    assert "is of another model than the run's and is left out" in capsys.readouterr().out
    assert "path_length" not in datasets.Dataset.from_parquet(str(copied / "audit/audit.parquet")).column_names
    assert main(["paths", str(copied), *FEW_STEPS, "--target", "3", "--norm", "l2"]) == 0
    shown = capsys.readouterr().out
    found = load_paths(copied / "paths.parquet")
    assert "begun anew" in shown and not paths_command.is_stale(copied) and found.norm == "l2"
    assert (found.steps[found.labels == 3] == -1).all() and not [ln for ln in shown.splitlines() if ln.startswith("3  ")]


@every_row(
    "words, told",
    [
        (["--target", "extra"], "target='extra': no model has a boundary"),
        (["--target", "x"], "target='x' is no class"),
        (["--norm", "l3"], "norm='l3' is unknown: choose one of linf, l2, l1"),
        (["--max_steps", "0"], "max_steps=0 must be a whole number"),
        (["--step_sise", "1"], "did you mean '--step_size'?"),
    ],
)
def test_wrong_options_of_paths(words, told, copied, capsys):
    assert told in fails(capsys, "paths", str(copied), *words)
    assert not (copied / "paths.parquet").exists()


def test_runs_that_do_not_tell_enough(copied, tmp_path, capsys):
    assert "is no folder" in fails(capsys, "paths", str(tmp_path / "none"))
    (copied / "results.json").unlink()
    assert "does not tell its data: give --dataset" in fails(capsys, "paths", str(copied))
    words = ["--dataset", "digits", "--max_train_samples", "120", *FEW_STEPS]
    assert main(["paths", str(copied), *words]) == 0
    assert len(load_paths(copied / "paths.parquet")) == 120


def test_names_of_classes_are_drawn_as_they_are(tmp_path):
    steps = np.array([0, 3, 4, 9])
    names = ("$\\frac{$", "_hidden\u202e", "x" * 300, "\u4e2d")
    margins = np.array([-1.0, 1, 1, 2], dtype=np.float32)
    found = PathLengths(steps, margins, np.arange(4), np.full(4, -1), np.zeros(4, dtype=int), 0.01, "linf", 8, names)
    found.plot(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000
    heading, rows = paths_command.lengths_table(found)
    assert len(heading) == 7 and rows[3][2:6] == [">8", ">8", ">8", "1"] and len(rows[2][0]) == 40
    assert path_table.NO_PATH == -1
