"""The report: one file that needs nothing else, with what the run says in it."""

from __future__ import annotations

import re

import numpy as np
from helpers.pages import content, run
from helpers.tables import every_row
from PIL import Image

from robust_trainer.reporting.html import figures, image_uri, write_report
from robust_trainer.reporting.results import table


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
