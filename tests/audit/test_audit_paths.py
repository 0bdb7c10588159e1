"""Path lengths in the audit: whether they fit, the table's columns, the report's section, what is said in words."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers.audits import SCRIPT, image_data, numbers_rows, png, rows_of
from helpers.audits import make_audit as made_up
from helpers.one_line import fails
from helpers.pages import Parsed, card, report

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.audit import boundary, make_audit
from robust_trainer.audit.boundary import closest_by_class
from robust_trainer.audit.pictures import path_histogram
from robust_trainer.audit.samples import show
from robust_trainer.audit.summary import summarise
from robust_trainer.cli.main import main
from robust_trainer.data.load import load_data
from robust_trainer.data.preprocess import ImageTransform
from robust_trainer.evaluation.boundary_paths import path_lengths
from robust_trainer.evaluation.path_table import PathLengths, load_paths
from robust_trainer.models.zoo import build_model

SECTION = "Closest to the decision boundary"


def lengths(label, seed=0, steps=None, classes=4, **changes):
    """Path lengths of samples with these labels; the model predicts the next class where they are 0."""
    rng = np.random.default_rng(seed)
    label = np.asarray(label).astype(np.int64)
    steps = rng.integers(0, 12, len(label)) if steps is None else np.asarray(steps)
    margin = np.where(steps == 0, -1, 1) * rng.random(len(label)).astype(np.float32)
    found = PathLengths(steps, margin, label, np.full(len(label), -1), (label + 1) % classes, 0.01, "linf", 10)
    return dataclasses.replace(found, **changes)


def with_paths(audit, paths):
    """A made-up audit as `make_audit` would have made it with path lengths."""
    return dataclasses.replace(audit, paths=paths)


def section(page):
    """The page's section, without pictures."""
    assert page.count(SECTION) == 1
    return re.sub(r"base64,[^\"]*", "", page[page.index(SECTION) : page.index("<h2>Made with")])


# ---- the table -----------------------------------------------------------------------------------------------------------


def test_the_table_gets_two_columns_and_nothing_else_changes():
    rows = rows_of()
    paths = lengths(rows["label"])
    before, after = make_audit(rows, {"names": list("abcd")}), make_audit(rows, {"names": list("abcd")}, paths=paths)
    assert set(after.table.column_names) - set(before.table.column_names) == {"path_length", "path_margin"}
    assert (after.column("path_length") == paths.steps).all() and (after.column("path_margin") == paths.margin).all()
    for name in before.table.column_names:
        assert (after.column(name) == before.column(name)).all(), name
    assert after.paths is paths and before.paths is None and "path" not in " ".join(map(str, summarise(before).facts))


def test_paths_of_other_data_are_refused():
    rows = rows_of(60)
    good, bad = lengths(rows["label"]), rows["label"].copy()
    bad[[7, 9]] = (bad[[7, 9]] + 1) % 4
    wrong = [
        (lengths(rows["label"][:-1]), "paths has 59 samples, the ledger 60"),
        (lengths(bad), f"other labels than the ledger in 2 of 60 samples (row 7: {bad[7]} instead of {rows['label'][7]})"),
        ({"steps": good.steps}, "paths is a dict"),
        (dataclasses.replace(good, norm="<b>"), "paths is damaged"),
        (dataclasses.replace(good, step_size="0.01"), "paths is damaged"),
        (dataclasses.replace(good, max_steps=2.5), "paths is damaged"),
        (dataclasses.replace(good, margin=good.steps), "paths is damaged"),
        (dataclasses.replace(good, ended=good.margin), "paths is damaged"),
        (dataclasses.replace(good, ended=good.ended[1:]), "its columns differ in length"),
        (dataclasses.replace(good, labels=np.array(["a"] * 60)), "paths is damaged"),
    ]
    for paths, told in wrong:
        with pytest.raises(ValueError, match=re.escape(told)) as error:
            make_audit(rows, paths=paths)
        assert "\n" not in str(error.value)
    make_audit(rows, paths=good)
    with pytest.raises(ValueError, match="other labels than the ledger"):
        make_audit(numbers_rows(np.arange(60.0)), paths=good)


# ---- what is told --------------------------------------------------------------------------------------------------------


def test_facts_and_the_known_truth():
    audit = made_up(n=240, truth=True)
    wrong = audit.column("is_corrupted").astype(bool)
    steps = np.where(wrong, 0, 7)
    steps[np.flatnonzero(wrong)[:15]] = 9
    told = summarise(with_paths(audit, lengths(audit.column("label"), steps=steps)))
    assert dict(told.facts)["median path to the boundary"] == "7 steps"
    assert dict(told.facts)["beyond the boundary already"] == "45 (18.8 %)"
    known = dict(told.known)
    assert known["corrupted of the 50 closest to the boundary"] == "45 (90.0 %)"
    assert known["corrupted of the 50 most suspicious"] == "50 (100.0 %)"
    few = made_up(n=20, truth=True)
    assert "corrupted of the 20 closest to the boundary" in dict(summarise(with_paths(few, lengths(few.column("label")))).known)


def test_long_paths_and_none_at_all():
    audit = made_up(n=40)
    far = lengths(audit.column("label"), steps=np.full(40, 11))
    assert dict(summarise(with_paths(audit, far)).facts)["median path to the boundary"] == "more than 10 steps"
    none = dataclasses.replace(far, steps=np.full(40, -1), targets=far.labels)
    assert "median path to the boundary" not in dict(summarise(with_paths(audit, none)).facts)
    assert closest_by_class(with_paths(audit, none), 3) == ([], 0)


def test_the_card_has_the_same_figures(tmp_path):
    audit = made_up(truth=True)
    text = card(tmp_path, with_paths(audit, lengths(audit.column("label"))))
    assert "median path to the boundary" in text and "corrupted of the 50 closest to the boundary" in text
    assert "path" not in card(tmp_path, audit)


# ---- the section ---------------------------------------------------------------------------------------------------------


def test_the_closest_of_each_class_are_shown(tmp_path):
    audit = made_up(n=80, truth=True)
    paths = lengths(audit.column("label"))
    audit = with_paths(audit, paths)
    data = image_data([{"bytes": png(seed=i), "path": None} for i in range(80)])
    page, parsed = report(tmp_path, audit, data=data, per_class=3)
    part = section(page)
    first = list(dict.fromkeys(paths.labels[paths.order].tolist()))
    pictures = re.findall(r'src="(data:image/png[^"]*)" alt="#\d+, margin', page)
    assert pictures == [sample.uri for c in first for sample in show(data, paths.closest(3, c).tolist(), 80)]
    assert re.findall(r"<h3>given class (\d)</h3>", part) == [str(c) for c in first]
    shown = [int(row) for row in re.findall(r'<div class="quiet">#(\d+), margin', part)]
    assert shown == [row for c in first for row in paths.closest(3, c).tolist()]
    tiles = part.split("<li")[1:]
    assert len(tiles) == 12
    for row, tile in zip(shown, tiles):
        label, steps = int(paths.labels[row]), int(paths.steps[row])
        predicted = paths.ended[row] if steps == 0 else label
        assert f"given class {label}<" in tile and f"<div>predicted class {predicted}</div>" in tile
        length = "more than 10" if steps == 11 else steps
        assert f"<div>path {length}</div>" in tile and f"suspicion {audit.table[row]['suspicion']:.3f}" in tile
        assert f"margin {paths.margin[row]:.2f}" in tile and tile.count("<img") == 1
        corrupted = audit.table[row]["is_corrupted"]
        assert tile.startswith(f' class="{"bad" if corrupted else "good"}"') and ("truth: corrupted" in tile) == corrupted
    assert "the steps of 0.01 (linf, [0, 1] pixels) up the loss until the trained model predicts another class" in parsed.text
    assert 'alt="Histogram of the path lengths"' in part and "likeliest label errors" in parsed.text
    assert "Most suspicious samples" in page and SECTION not in report(tmp_path, dataclasses.replace(audit, paths=None))[0]


def test_paths_to_a_target(tmp_path):
    audit = made_up(n=40)
    label = audit.column("label")
    steps = np.where(label == 2, -1, np.arange(40) % 5)
    paths = lengths(label, steps=steps, targets=np.full(40, 2), ended=np.full(40, 2))
    page, parsed = report(tmp_path, with_paths(audit, paths), per_class=4)
    part = section(page)
    assert "given class 2" not in part and "until the trained model predicts the target class; 0" in parsed.text
    assert "<div>path 0 to class 2</div>" in part
    beyond = [tile for tile in part.split("<li")[1:] if "predicted" in tile]
    assert beyond and all("predicted class 2" in tile and "path 0 to" in tile for tile in beyond)


def test_names_are_escaped_and_many_classes_are_cut(tmp_path, monkeypatch):
    names = [SCRIPT, "$\\frac$", 'x" onload="alert(1)', "d\u202egnp\x00"]
    audit = made_up(names=names, truth=True)
    data = image_data([{"bytes": png(seed=i), "path": f"dir/{SCRIPT[:8]}{i}.png"} for i in range(240)], text=[SCRIPT + "!"] * 240)
    paths = lengths(audit.column("label"), class_names=tuple(names))
    page, parsed = report(tmp_path, with_paths(audit, paths), data=data, per_class=3)
    part = section(page)
    assert "<script" not in part and "\u202e" not in page and Parsed(part).text.count(SCRIPT) > 8 and SCRIPT + "!" in parsed.text
    monkeypatch.setattr(boundary, "CLOSE", 6)
    parts, left = closest_by_class(with_paths(audit, paths), 2)
    assert len(parts) == 3 and left == 1 and all(len(rows) == 2 for _, rows in parts)
    audit = with_paths(made_up(n=40), lengths(made_up(n=40).column("label")))
    assert "1 more classes are not shown" in section(report(tmp_path, audit, per_class=2)[0])
    assert [len(rows) for _, rows in closest_by_class(audit, 50)[0]] == [6]


def test_pictures_of_both_sections_share_one_limit(tmp_path, monkeypatch):
    audit = made_up(n=240)
    audit = with_paths(audit, lengths(audit.column("label")))
    data = image_data([{"bytes": png((90, 90), seed=i), "path": None} for i in range(240)])
    monkeypatch.setattr("robust_trainer.audit.report.show", lambda *given: show(*given, budget=60_000))
    page, parsed = report(tmp_path, audit, data=data, per_class=4)
    assert 'class="smooth"' in section(page) and "samples are without picture or text" in parsed.text
    assert len(page) < 400_000


def test_the_histogram_counts_every_sample(monkeypatch):
    drawn, bars = [], []
    from matplotlib.axes import Axes

    stairs = Axes.stairs

    def draw(self, counts, edges, **options):
        drawn.append((counts, edges))
        return stairs(self, counts, edges, **options)

    monkeypatch.setattr(Axes, "stairs", draw)
    monkeypatch.setattr(Axes, "bar", lambda self, x, height, **k: bars.append(height[0]))
    steps = np.array([0, 0, 3, 7, 200, 201, 201])
    assert path_histogram(steps, 200).startswith("data:image/png;base64,")
    assert [counts.sum() for counts, _ in drawn] == [5] and bars == [2] and drawn[0][0][0] == 3 and len(drawn[0][0]) <= 51
    path_histogram(steps, 200, np.array([1, 0, 0, 0, 0, 1, 1]).astype(bool))
    assert [counts.sum() for counts, _ in drawn[1:]] == [4, 1] and bars[1:] == [0, 2]
    bars.clear()
    path_histogram(np.array([0, 1, 1, 2]), 200)
    assert drawn[-1][0].tolist() == [1, 2, 1] and drawn[-1][1].tolist() == [-0.5, 0.5, 1.5, 2.5] and not bars


# ---- through the Trainer and the command line ----------------------------------------------------------------------------


def test_the_trainer_takes_paths(tmp_path):
    raw = load_data("digits", max_train_samples=64, max_test_samples=10)["train"]
    model, processor = build_model("plain-cnn", [str(i) for i in range(10)], channels=1, image_size=8)
    args = RobustConfig(output_dir=str(tmp_path), method="standard", num_train_epochs=1, report_to="none", use_cpu=True,
                        disable_tqdm=True, save_strategy="no", remove_unused_columns=False)  # fmt: skip
    trainer = RobustTrainer(model, args, train_dataset=raw.with_transform(ImageTransform(processor, 1)), processing_class=processor)
    trainer.train()
    paths = path_lengths(trainer.model, raw, processing_class=processor, step_size=0.2, max_steps=4)
    audit = trainer.audit(paths=paths)
    assert (audit.column("path_length") == paths.steps).all() and audit.paths.closest(3).tolist() == paths.closest(3).tolist()
    with pytest.raises(ValueError, match="paths has 10 samples, the ledger 64"):
        trainer.audit(paths=lengths(np.zeros(10)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["--method", "standard", "--model", "plain-cnn", "--num_train_epochs", "1", "--disable_tqdm", "true", "--use_cpu"]
    small = ["--max_train_samples", "100", "--max_test_samples", "20", "--corrupt", "symmetric", "--corrupt_rate", "0.2"]
    assert main(["train", "--dataset", "digits", *words, *small, "--output_dir", str(folder)]) == 0
    assert main(["paths", str(folder), "--step_size", "0.1", "--max_steps", "6"]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def columns(run):
    return datasets.Dataset.from_parquet(str(run / "audit/audit.parquet")).column_names


def test_the_command_takes_the_paths_of_the_run(run, capsys):
    capsys.readouterr()
    assert main(["audit", str(run), "--clean", "none", "--per_class", "2"]) == 0
    shown = capsys.readouterr().out
    assert "median path to the boundary" in shown and "corrupted of the 50 closest to the boundary" in shown
    found = load_paths(run / "paths.parquet")
    table = datasets.Dataset.from_parquet(str(run / "audit/audit.parquet"))
    assert table["path_length"][:] == found.steps.tolist() and table["path_margin"][:] == pytest.approx(found.margin.tolist())
    part = section((run / "audit/report.html").read_text())
    assert part.count("<li") == 20 == part.count('src="data:image/png;') - 1
    assert json.loads((run / "audit/audit.json").read_text())["paths"] == {"step_size": 0.1, "norm": "linf", "max_steps": 6}


def test_paths_by_name_and_none(run, capsys, tmp_path):
    given = ["audit", str(run), "--clean", "none", "--look", "false"]
    assert main([*given, "--paths", "none"]) == 0
    assert "path_length" not in columns(run) and SECTION not in (run / "audit/report.html").read_text()
    other = shutil.move(run / "paths.parquet", tmp_path / "p.parquet")
    assert main([*given, "--paths", str(other)]) == 0 and "path_length" in columns(run)
    before = (run / "audit/audit.parquet").read_bytes()
    for path, told in ((run / "ledger.parquet", "is no file of path lengths"), (tmp_path / "none.parquet", "is no file of path")):
        assert told in fails(capsys, *given, "--paths", str(path))
    label = load_paths(other).labels
    lengths(label[:9], classes=10).to_parquet(tmp_path / "few.parquet")
    assert "paths has 9 samples, the ledger 100" in fails(capsys, *given, "--paths", str(tmp_path / "few.parquet"))
    lengths((label + 1) % 10, classes=10).to_parquet(run / "paths.parquet")
    assert "other labels than the ledger in 100 of 100" in fails(capsys, *given)
    assert (run / "audit/audit.parquet").read_bytes() == before
