"""robust-trainer demo: its table, its runs, which other commands open, and its report."""

from __future__ import annotations

import json

import pytest
from helpers.pages import Parsed

from robust_trainer.cli.demo import CORRUPTIONS, TRAINED_BY
from robust_trainer.cli.main import main
from robust_trainer.methods.table import METHODS


def records(folder):
    """The runs in results.json, by data and method."""
    content = json.loads((folder / "results.json").read_text())
    return content, {(run["data"], run["method"]): run for run in content["runs"]}


def test_every_method_is_trained_on_every_data_and_each_run_is_one_that_other_commands_open(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert main(["demo", "--output_dir", str(folder), "--epochs", "1", "--method", "auto"]) == 0
    told = capsys.readouterr().out
    content, runs = records(folder)
    assert set(runs) == {(data, "auto") for data in CORRUPTIONS}
    assert content["corruptions"]["poisoned"]["overall"] == 0.25 and content["corruptions"]["mislabelled"]["overall"] == 0.4
    for (data, _), run in runs.items():
        assert f"{data}  " in told and run["labels"]["found"] in told and run["labels"]["done"] in told
        own = json.loads((folder / run["folder"] / "results.json").read_text())
        assert own["options"]["corrupt"] == CORRUPTIONS[data]["corrupt"] and own["runs"][0]["final"] == run["final"]
        assert (folder / run["folder"] / "model.safetensors").is_file()
    page = Parsed((folder / "report.html").read_text()).text
    assert "poisoned: auto" in page and "mislabelled: auto" in page and "Most suspicious training images" in page
    last = f"robust-trainer audit {folder / runs['mislabelled', 'auto']['folder']}"
    assert last in told
    assert main(last.split()[1:]) == 0
    assert "560 (40.0 %)" in capsys.readouterr().out
    # a second one is not written over the first, nor over a run of it where the comparison itself is gone
    (folder / "results.json").unlink()
    assert main(["demo", "--output_dir", str(folder), "--epochs", "1"]) == 2
    assert "poisoned_auto' holds results.json of an earlier command" in capsys.readouterr().err


def test_one_method_is_told_nothing_and_one_the_rate():
    for names in TRAINED_BY.values():
        assert names[:2] == ("standard", "auto") and "noise_rate" not in METHODS["auto"].settings
        assert "noise_rate" in METHODS[names[2]].settings


@pytest.mark.slow
def test_demo_meets_its_bars(tmp_path):
    assert main(["demo", "--output_dir", str(tmp_path / "demo")]) == 0
    _, runs = records(tmp_path / "demo")
    final = {key: run["final"] for key, run in runs.items()}
    assert final["poisoned", "standard"]["poison_accuracy"] <= 0.20
    assert final["poisoned", "prl-at-memory"]["poison_accuracy"] >= 0.85
    assert final["poisoned", "auto"]["poison_accuracy"] >= 0.85 and final["poisoned", "auto"]["clean_accuracy"] >= 0.93
    assert final["mislabelled", "standard"]["clean_accuracy"] <= 0.85
    assert final["mislabelled", "auto"]["clean_accuracy"] >= 0.92
    for data, corruption in CORRUPTIONS.items():
        labels = runs[data, "auto"]["labels"]
        assert abs(labels["rate"] - corruption["corrupt_rate"]) <= 0.1  # so faint a blend is seen on some clean digits, too
        assert labels["kind"].startswith("trigger" if data == "poisoned" else "wrong labels")
