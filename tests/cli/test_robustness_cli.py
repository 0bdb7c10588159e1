"""robust-trainer evaluate --attacks: table, JSON, plot, resuming, several processes, one-line errors."""

from __future__ import annotations

import contextlib
import json
import os

import numpy as np
import pytest
import torch
from helpers.processes import launch
from helpers.robustness_toy import TOY, fitted
from helpers.tables import every_row
from helpers.toy import images, logits_module
from PIL import Image

from robust_trainer.attacks.pgd import PGD
from robust_trainer.cli.evaluate import plot
from robust_trainer.cli.main import main
from robust_trainer.evaluation.robustness import Robustness, evaluate_robustness
from robust_trainer.models.zoo import build_model

FEW = ["--max_test_samples", "24"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model trained on the digits for one epoch, as `train` leaves it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    words = [
        "--max_train_samples",
        "160",
        "--num_train_epochs",
        "2",
        "--per_device_train_batch_size",
        "8",
        "--learning_rate",
        "5e-3",
        "--disable_tqdm",
        "true",
        "--use_cpu",
    ]
    assert main(["train", "--dataset", "digits", "--output_dir", str(out), *FEW, *words]) == 0
    return out


def test_attacks_on_a_saved_model(run, capsys, monkeypatch):
    words = ["evaluate", str(run), "--attacks", "fgsm", "pgd-3", "cw-3", "--eps", "24/255", *FEW]
    capsys.readouterr()
    assert main(words) == 0
    shown = capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    robust = found["robustness"]
    assert robust["clean_accuracy"] == pytest.approx(found["clean_accuracy"]) and robust["n"] == found["n"] == 24
    assert (robust["eps"], robust["norm"], list(robust["accuracies"])) == (24 / 255, "linf", ["fgsm", "pgd-3", "cw-3"])
    assert robust["worst_case"] <= min(robust["accuracies"].values()) < robust["clean_accuracy"]
    assert "linf, eps 24/255" in shown and f"{100 * robust['worst_case']:.2f}" in shown and "robustness.png" in shown
    for line in shown.splitlines():
        if line.startswith(("fgsm", "pgd-3", "cw-3")):
            name, accuracy, seconds, n = line.split()
            assert float(accuracy) == round(100 * robust["accuracies"][name], 2) and float(seconds) >= 0 and n == "24"
    with Image.open(run / "robustness.png") as image:
        assert min(image.size) > 300 and len(np.unique(np.asarray(image.convert("L")))) > 10

    def never(*args, **kwargs):
        raise AssertionError("attacked again")

    _, *rows = map(json.loads, (run / "robustness.jsonl").read_text().splitlines())  # the settings come first
    assert [len(row["index"]) for row in rows if "next" not in row] == [24]  # one batch, whatever was written on the way
    monkeypatch.setattr(PGD, "__call__", never)
    assert main([*words, "--resume"]) == 0
    assert json.loads((run / "evaluation.json").read_text())["robustness"] == robust
    assert main([*words, "--resume", "--norm", "l2"]) == 2 and "was written with" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="attacked again"):
        main(words)


def test_without_attacks_nothing_is_attacked(run, capsys):
    out = run / "plain.json"
    assert main(["evaluate", str(run), "--output", str(out), *FEW]) == 0
    assert "robustness" not in json.loads(out.read_text()) and not list(run.glob("plain_*"))
    assert "robust" not in capsys.readouterr().out.replace(str(run), "").replace("robust_trainer", "")


def test_class_by_class(run, tmp_path, capsys):
    out = tmp_path / "found.json"
    assert main(["evaluate", str(run), *FEW, "--per_class", "9", "--eps", "12/255", "--output", str(out)]) == 0
    shown, found = capsys.readouterr().out, json.loads(out.read_text())
    classes = found["per_class"]
    assert "robustness" not in found and "PGD-40 class by class, linf, eps 12/255" in shown
    assert classes["target"] == [9] * 10 and classes["targeted"][9] is None and sum(classes["n"]) == 24
    assert classes["clean_overall"] == pytest.approx(found["clean_accuracy"])
    assert classes["untargeted_overall"] <= min(classes["clean_overall"], classes["targeted_overall"])
    capsys.readouterr()
    for words, told in (
        (["--per_class", "next"], "per_class='next' is no class"),
        (["--per_class", "cyclic", "--norm", "l2"], "norm='l2' needs eps"),
        (["--per_class", "cyclic", "--resume"], "resume is for attacks"),
    ):
        assert main(["evaluate", str(run), *FEW, *words]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line and "Loading weights" not in line]
        assert len(lines) == 1 and told in lines[0]


def test_two_processes_are_one(run, tmp_path):
    """gloo on the CPU: every process returns the whole, one writes it, and one process resumes what two began."""
    words = ["evaluate", str(run), "--attacks", "pgd-3", "--eps", "24/255", "--batch_size", "5", *FEW]
    assert main([*words, "--output", str(tmp_path / "one.json")]) == 0
    model, data = fitted(logits_module()), images(31, noisy=0.0)

    def work(out):
        rank = os.environ["RANK"]
        found = evaluate_robustness(
            model, data, ["pgd-3", "apgd-ce"], 0.055, batch_size=5, resume_from=str(out / "found.jsonl"), **TOY
        )
        (out / f"{rank}.json").write_text(json.dumps({k: v.tolist() for k, v in found.per_sample.items()}))
        with open(out / f"{rank}.txt", "w") as file, contextlib.redirect_stdout(file):
            assert main([*words, "--output", str(out / "two.json")]) == 0

    launch(work, 2, tmp_path, tmp_path)
    assert "".join((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)).count("worst case") == 1
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    for key in ("clean_accuracy", "accuracies", "worst_case", "n", "members"):
        assert one["robustness"][key] == two["robustness"][key], key
    assert one["clean_accuracy"] == two["clean_accuracy"]
    counts = [len((tmp_path / name).read_text().splitlines()) for name in ("two_robustness.jsonl", "two_robustness.jsonl.1")]
    assert counts == [4, 4]  # settings and three batches each: 12 samples

    found = evaluate_robustness(model, data, ["pgd-3", "apgd-ce"], 0.055, **TOY)
    expected = {k: v.tolist() for k, v in found.per_sample.items()}
    assert 0 < found.worst_case < 1
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
    files = [tmp_path / "found.jsonl", tmp_path / "found.jsonl.1"]
    rows = [[json.loads(line) for line in file.read_text().splitlines()[1:]] for file in files]
    assert [sum(len(row["index"]) for row in part) for part in rows] == [16, 15]
    files[1].write_text("\n".join(files[1].read_text().splitlines()[:-1]) + "\n")  # the second one was killed; one goes on
    resumed = evaluate_robustness(model, data, ["pgd-3", "apgd-ce"], 0.055, batch_size=5, resume_from=files[0], **TOY)
    assert {k: v.tolist() for k, v in resumed.per_sample.items()} == expected
    assert len(files[0].read_text().splitlines()) == 1 + len(rows[0]) + 1


BAD = [
    (["--attacks", "pgd-20", "--eps", "8"], "eps='8' looks like the 0-255 scale, pixels are in [0, 1] here: did you mean 8/255?"),
    (["--attacks", "pgd-20", "--eps", "0"], "eps='0' must be positive"),
    (["--attacks", "pgd-20", "--norm", "l3"], "norm='l3' is unknown: choose one of linf, l2, l1."),
    (["--attacks", "pgd-20", "--norm", "l2"], "norm='l2' needs eps"),
    (["--attacks", "pgd20"], "attack 'pgd20' is unknown: did you mean 'pgd-20'?"),
    (["--attacks", "square", "auto-attack"], "did you mean 'autoattack'?"),
    (["--eps", "8/255"], "eps='8/255' is for attacks: give some"),
    (["--resume"], "resume is for attacks"),
    (["--attack", "pgd-20"], "unknown option '--attack': did you mean '--attacks'?"),
    (["--attacks"], "--attacks has no value (expected at least one argument)"),
]


@every_row("words, told", BAD)
def test_mistakes_are_one_line_before_any_work(words, told, capsys):
    assert main(["evaluate", "/nowhere", *words]) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("robust-trainer: error: ") and told in err and "\n" not in err


def test_help_names_the_attacks(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for word in ("--attacks", "--eps", "--norm", "--resume", "autoattack: apgd-ce, apgd-t, fab-t and square", "for linf: 8/255"):
        assert word in shown


def test_the_plot_has_a_bar_per_figure(tmp_path):
    found = Robustness(0.9, {"pgd-20": 0.5, "cw-20": 0.4}, 0.4, 10, 0.03, "l2", {}, {})
    few = Image.open(plot(found, tmp_path / "few.png")).size
    found.accuracies.update({f"attack {i}": 0.5 for i in range(6)})
    assert Image.open(plot(found, tmp_path / "many.png")).size[0] > few[0]


def test_a_diverged_model_is_not_robust(tmp_path):
    """NaN logits are wrong answers, not classes."""
    torch.manual_seed(0)
    model, processor = build_model("small-cnn", ["a", "b"], channels=1, image_size=8)
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    data = [(torch.rand(1, 8, 8) * 2 - 1, i % 2) for i in range(6)]
    found = evaluate_robustness(model, data, "pgd-1", processing_class=processor, progress=False)
    assert found.clean_accuracy == found.worst_case == 0.0
