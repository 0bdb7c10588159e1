"""The report: one file that needs nothing else, with what the run says in it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers.pages import content, run
from helpers.tables import every_row
from PIL import Image

from robust_trainer.reporting.html import figures, image_uri, write_report
from robust_trainer.reporting.results import check_results, table


def suspect(**changes):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    row = {"image": image, "index": 7, "given": "<b>3</b>", "predicted": "4", "truth": "4", "corrupted": True}
    return {**row, "kept": 0, "seen": 2, "score": 1.4, **changes}


def test_one_file_that_needs_no_network_and_escapes_what_came_from_the_data(tmp_path):
    path = write_report(tmp_path / "new/report.html", content(run(), run("standard")), suspects=[suspect()], suspects_of="x&y")
    page = path.read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http://" not in page and "https://" not in page and "<script" not in page and "@import" not in page
    assert "&lt;b&gt;3&lt;/b&gt;" in page and "<b>3" not in page and "x&amp;y" in page and "blend &lt;0.1&gt;" in page
    assert 'name="viewport"' in page and "max-width: 100%" in page
    for told in ("97.2", "98.1", "robust-trainer demo --seed 0", "torch", "noise_rate 0.25", "truth 4 (corrupted)", "kept 0 of 2"):
        assert told in page


def test_plots_are_those_that_have_values():
    titles = [figure["title"] for figure in figures([run()])]
    assert titles == ["Clean accuracy", "Poison accuracy", "Kept of the clean samples", "Kept of the corrupted samples"]
    plain = run("none", curves=[{"epoch": 1.0, "loss": 1.0, "clean_accuracy": 0.5}])
    assert [figure["title"] for figure in figures([plain])] == ["Clean accuracy"]
    unknown = run(curves=[{"epoch": 1.0, "kept_fraction": 0.5}])
    assert [figure["title"] for figure in figures([unknown])] == ["Kept of all samples"]
    assert figures([run(curves=[])]) == []


def test_a_run_without_method_trigger_and_ledger(tmp_path):
    bare = run("none", curves=[], detection=None, distrusted=None, mean_last_k={}, settings={})
    bare["final"] = {"clean_accuracy": 0.5, "n": 4}
    page = write_report(tmp_path / "r.html", content(bare, corruption=False)).read_text()
    assert "none known" in page and "suspicious" not in page and "AUROC" not in page
    assert table([bare]) == (["method", "clean %", "seconds"], [["none", "50.0", "1.0"]])


def test_truth_is_left_out_where_it_is_not_known(tmp_path):
    page = write_report(tmp_path / "r.html", content(run()), suspects=[suspect(truth=None, corrupted=None)]).read_text()
    assert "truth" not in page.split("Most suspicious")[1].split("Settings")[0] and "Red frame" not in page


@every_row("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_thumbnails_of_every_mode(mode):
    assert image_uri(Image.new("RGB", (300, 200)).convert("RGB" if mode == "LA" else mode)).startswith("data:image/png;base64,")


def test_classes_of_which_hardly_anybody_is_kept_are_shown_by_name(tmp_path):
    rows = [{"class": "<cat>", "samples": 140, "kept": 3, "few": True}, {"class": "dog", "samples": 90, "kept": 80, "few": False}]
    page = write_report(tmp_path / "r.html", content(run("prl", classes=rows), run("standard"))).read_text()
    part = page.split("hardly any sample is kept")[1].split("<h2>")[0]
    assert "<td>prl</td><td>&lt;cat&gt;</td><td>140</td><td>3</td>" in part and "dog" not in part
    assert "hardly any sample" not in write_report(tmp_path / "s.html", content(run())).read_text()


LABELS = {
    "known": True, "rate": 0.391, "low": 0.36, "high": 0.42, "kind": "wrong labels", "spread": "all", "carriers": 0,
    "left_out": 0.105, "relabelled": 0.286, "weighted": 0.042,
    "found": "About 39.1 % of <b>labels</b>.", "done": "10.5 % are left out.",
    "classes": [{"class": "<cat>", "samples": 140, "doubted": 61}], "pairs": [{"suggested": "dog", "given": "cat", "samples": 9}],
}  # fmt: skip


def test_what_was_found_about_labels_and_done_is_shown(tmp_path):
    told = run("prl", settings={"noise_rate": 0.4})
    told["curves"] = [{"epoch": 1.0, "kept_fraction": 0.9}, {"epoch": 2.0, "kept_fraction": 0.6}, {"epoch": 2.0, "loss": 0.1}]
    runs = [run("standard", settings={}, curves=[]), run("auto", labels=LABELS, settings={}), told]
    heading, rows = table(runs)
    cells = {row[0]: dict(zip(heading, row)) for row in rows}
    shown = {name: [cells[name][k] for k in ("wrong labels %", "left out %", "relabelled %")] for name in cells}
    assert shown == {"standard": ["-"] * 3, "auto": ["39.1 found", "10.5", "28.6"], "prl": ["40.0 told", "40.0", "-"]}
    page = write_report(tmp_path / "r.html", content(*runs)).read_text()
    part = page.split("What was found about the labels")[1].split("<h2>")[0]
    assert "About 39.1 % of &lt;b&gt;labels&lt;/b&gt;. 10.5 % are left out." in part and "<strong>auto</strong>" in part
    assert "<td>&lt;cat&gt;</td><td>140</td><td>61</td>" in part and "<td>dog</td><td>cat</td><td>9</td>" in part
    assert "What was found" not in write_report(tmp_path / "s.html", content(run())).read_text()


def test_runs_on_several_data_sets_are_told_apart(tmp_path):
    runs = [run("auto", data=data, labels=LABELS) for data in ("poisoned", "mislabelled")]
    assert table(runs)[0][:2] == ["data", "method"] and [row[:2] for row in table(runs)[1]] == [[r["data"], "auto"] for r in runs]
    titles = [figure["title"] for figure in figures(runs)]
    assert titles[:2] == ["Clean accuracy: poisoned", "Poison accuracy: poisoned"] and len(titles) == 8
    corruptions = {
        "poisoned": {"trigger": "blend <0.1>", "overall": 0.25, "corrupted": 350},
        "mislabelled": {"noise": "symmetric label noise", "overall": 0.4, "corrupted": 560},
    }
    page = write_report(tmp_path / "r.html", content(*runs, corruption=False) | {"corruptions": corruptions}).read_text()
    assert "poisoned: auto" in page and "mislabelled: auto" in page and "none known" not in page
    assert "blend &lt;0.1&gt;; 25.0 % of the training samples (350)" in page and "symmetric label noise; 40.0 %" in page


def test_a_suggestion_is_shown_beside_the_prediction(tmp_path):
    rows = [suspect(suggested="5", wrong=0.9, carrier=True), suspect(suggested=None, wrong=0.2, carrier=False)]
    page = write_report(tmp_path / "r.html", content(run("auto")), suspects=rows, suspects_of="auto").read_text()
    assert page.count("suggested 5") == 1 and page.count("carries a shared pattern") == 1
    assert "The highest probabilities of a wrong label" in page


@every_row("name, value", [("rate", "0.4"), ("left_out", None), ("found", 3), ("done", None)])
def test_damaged_findings_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"labels\.{name} is"):
        check_results(content(run("auto", labels=LABELS | {name: value})), "results.json")
