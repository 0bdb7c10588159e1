"""robust-trainer anomaly and its example as a user types them: tables read, files written, one-line errors, plots."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.one_line import fails
from helpers.tables import every_row
from PIL import Image

from robust_trainer.anomaly import load_detector
from robust_trainer.anomaly.plots import measure, plot_curves, plot_scores
from robust_trainer.anomaly.tables import read_table
from robust_trainer.cli.anomaly import CURVES, FIGURES, FITTED, SCORES
from robust_trainer.cli.main import main
from robust_trainer.reporting.untrusted import Table

FEW = ["--detector", "rca-e", "--epochs", "2"]
EXAMPLE = str(Path(__file__).parents[2] / "examples" / "anomaly_detection.py")


def frame(n=80, seed=0):
    """n rows of three columns, the first tenth far off, two cells missing; a name and the truth."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 3))
    x[: n // 10] += 5
    x[3, 1] = x[n // 2, 2] = np.nan
    data = pandas.DataFrame(x, columns=["a", "b", "c"])
    data["truth"] = (np.arange(n) < n // 10).astype(int)
    data.insert(0, "name", [f"row-{i}" for i in range(n)])
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The table as CSV, with and without the truth, as parquet and npz; and a second one."""
    path = tmp_path_factory.mktemp("tables")
    data = frame()
    data.to_csv(path / "data.csv", index=False)
    data.rename(columns={"truth": "label"}).to_csv(path / "auto.csv", index=False)
    data.drop(columns="truth").to_csv(path / "blind.csv", index=False)
    data.to_parquet(path / "data.parquet", index=False)
    np.savez(path / "data.npz", X=data[["a", "b", "c"]].to_numpy(), y=data["truth"].to_numpy())
    frame(30, seed=1)[["truth", "c", "name", "b", "a"]].to_csv(path / "new.csv", index=False)
    return path


@pytest.fixture(scope="module")
def fitted(folder):
    """A run of the command on the table with truth and names."""
    words = [str(folder / "data.csv"), "--label_column", "truth", "--id_column", "name"]
    assert main(["anomaly", *words, *FEW, "--output_dir", str(folder / "run")]) == 0
    return folder / "run"


def run(capsys, *words):
    capsys.readouterr()
    assert main(["anomaly", *map(str, words)]) == 0
    return capsys.readouterr().out


def scores(path):
    return pq.read_table(path / SCORES).to_pandas()


def blank(path):
    return np.asarray(Image.open(path).convert("L")).std() < 5


# ---- the command -----------------------------------------------------------------------------------------------------------


def test_it_writes_its_files(fitted, folder):
    assert {p.name for p in fitted.iterdir()} == {SCORES, CURVES, FIGURES, FITTED}
    found, content = scores(fitted), json.loads((fitted / FIGURES).read_text())
    assert list(found) == ["row", "id", "score", "predicted", "probability", "truth"]
    assert found["row"].tolist() == list(range(80)) and found["id"].tolist() == [f"row-{i}" for i in range(80)]
    assert found["truth"].tolist() == [1] * 8 + [0] * 72 and found["probability"].between(0, 1).all()
    assert (found["predicted"] == (found["score"] > content["threshold"])).all()
    assert content["flagged"] == found["predicted"].sum() == 8 and content["n"] == content["fitted_to"] == 80
    assert content["contamination"] == 0.1 and content["settings"]["epochs"] == 2 and content["detector"] == "rca-e"
    data = content["data"]
    assert data["columns"] == ["a", "b", "c"] and data["cells_missing"] == 2 and data["abnormal"] == 8
    assert content["measured"] == pytest.approx(measure(found["truth"].to_numpy(), found["score"], found["predicted"]))
    assert content["measured"]["auc"] > 0.9 and "torch" in content["environment"] and "--id_column name" in content["command"]
    assert Table(fitted / SCORES).facts()["threshold"] == content["threshold"] and not blank(fitted / CURVES)
    detector = load_detector(fitted / FITTED)
    rows = read_table(folder / "data.csv", label_column="truth", exclude=["name"]).features
    assert (detector.decision_function(rows) == found["score"]).all() and (detector.predict(rows) == found["predicted"]).all()


def test_what_it_says(folder, tmp_path, capsys):
    told = run(capsys, folder / "auto.csv", "--id_column", "name", *FEW, "--output_dir", tmp_path)
    assert "the truth is column 'label'" in told and "missing cells: 2, in 2 of 80 rows" in told and "AUC %" in told
    assert "the 10 most abnormal rows" in told and "row-1" in told and f"written to {tmp_path}: {SCORES}, {CURVES}" in told
    ranked = told[told.index("the 10 most") : told.index("written to")].splitlines()[3:]
    shown = [float(line.split()[2]) for line in ranked]
    assert len(shown) == 10 and shown == sorted(shown, reverse=True)


def test_the_truth_is_not_used_in_fitting(fitted, folder, tmp_path, capsys):
    told = run(capsys, folder / "blind.csv", "--exclude", "name", *FEW, "--output_dir", tmp_path)
    assert (scores(tmp_path)["score"] == scores(fitted)["score"]).all() and "AUC" not in told
    assert list(scores(tmp_path)) == ["row", "score", "predicted", "probability"] and not blank(tmp_path / CURVES)
    content = json.loads((tmp_path / FIGURES).read_text())
    assert content["measured"] is None and content["data"]["abnormal"] is None


@pytest.mark.parametrize("file", ["data.parquet", "data.npz"])
def test_formats_agree(fitted, folder, tmp_path, capsys, file):
    words = ["--exclude", "name", "--label_column", "truth"] if file == "data.parquet" else []
    run(capsys, folder / file, *words, *FEW, "--output_dir", tmp_path)
    assert (scores(tmp_path)["score"] == scores(fitted)["score"]).all()
    assert (scores(tmp_path)["truth"] == scores(fitted)["truth"]).all()


def test_a_loaded_detector_gives_the_same_scores(fitted, folder, tmp_path, capsys):
    words = ["--load", fitted / FITTED, "--output_dir", tmp_path]
    told = run(capsys, folder / "data.csv", "--label_column", "truth", *words)
    found, content = scores(tmp_path), json.loads((tmp_path / FIGURES).read_text())
    for name in ("score", "predicted", "probability", "truth"):
        assert (found[name] == scores(fitted)[name]).all()
    assert "left out, since the detector does not know them: 'name'" in told and content["detector"] == "RCA"
    assert "epochs" not in content["options"] and content["settings"]["epochs"] == 2 and not (tmp_path / FITTED).exists()
    run(capsys, folder / "data.npz", *words, "--overwrite")  # names no columns: taken in order
    assert (scores(tmp_path)["score"] == scores(fitted)["score"]).all()


def test_another_table_is_scored(fitted, folder, tmp_path, capsys):
    """Its columns are found by name, whatever their order, and without the truth it is unknown."""
    words = ["--exclude", "name", "--label_column", "truth", *FEW]
    run(capsys, folder / "data.csv", *words, "--test_data", folder / "new.csv", "--output_dir", tmp_path)
    found = scores(tmp_path)
    rows = frame(30, seed=1)
    assert (found["score"] == load_detector(fitted / FITTED).decision_function(rows[["a", "b", "c"]])).all()
    assert found["truth"].tolist() == rows["truth"].tolist()
    rows.drop(columns="truth").to_csv(tmp_path / "blind.csv", index=False)
    told = run(capsys, folder / "data.csv", *words, "--test_data", tmp_path / "blind.csv", "--output_dir", tmp_path / "b")
    assert "there is no column 'truth' here" in told and (scores(tmp_path / "b")["score"] == found["score"]).all()


def test_contamination_auto(folder, tmp_path, capsys):
    run(capsys, folder / "data.npz", *FEW, "--contamination", "auto", "--output_dir", tmp_path)
    content = json.loads((tmp_path / FIGURES).read_text())
    assert content["settings"]["contamination"] == "auto" and content["flagged"] == scores(tmp_path)["predicted"].sum()


def test_hostile_ids_do_not_reach_the_terminal(tmp_path, capsys):
    data = frame(40)
    data["name"] = "\x1b[31mred\u202e"
    data.to_parquet(tmp_path / "data.parquet", index=False)
    out = tmp_path / "out"
    told = run(capsys, tmp_path / "data.parquet", "--id_column", "name", "--exclude", "truth", *FEW, "--output_dir", out)
    assert "\x1b" not in told and "\u202e" not in told and scores(out)["id"][0] == "\x1b[31mred\u202e"


def test_help(capsys):
    with pytest.raises(SystemExit):
        main(["anomaly", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "rcva: RCA of variational" in told and "--label_column" in told and "[DATA]" in told
    assert main(["--help"]) == 0 and "anomaly" in capsys.readouterr().out


SETTINGS = {
    "no data": ([], "data is missing: give a table"),
    "unknown detector": (["{data}", "--detector", "rcaa"], "unknown detector 'rcaa': did you mean 'rca'"),
    "contamination": (["{data}", "--contamination", "0.7"], r"contamination=0.7 must be in \(0, 0.5\]"),
    "contamination word": (["{data}", "--contamination", "much"], "contamination='much' must be in"),
    "epochs": (["{data}", "--epochs", "0"], "epochs=0 must be a whole number >= 1"),
    "seed": (["{data}", "--seed=-1"], r"seed=-1 must be a whole number in \[0"),
    "unknown option": (["{data}", "--epoch", "3"], "unknown option '--epoch': did you mean '--epochs'"),
    "no detector there": (["{data}", "--load", "{folder}"], "holds no detector"),
    "fitting when loading": (["{data}", "--load", "{run}/detector", "--epochs=3"], "epochs=3 has no effect with load="),
    "over the run": (["{data}", "--load", "{run}/detector", "--output_dir", "{run}"], "holds the run that load="),
    "other columns": (["{new}", "--load", "{run}/detector", "--exclude", "a"], "lacks column 'a'"),
    "test data missing": (["{data}", "--exclude", "name", "--test_data", "gone.csv"], "'gone.csv' does not exist"),
}


@every_row("case", SETTINGS)
def test_wrong_settings(case, fitted, folder, tmp_path, capsys):
    words, told = SETTINGS[case]
    places = {"data": folder / "data.npz", "new": folder / "new.csv", "run": fitted, "folder": folder}
    if case == "test data missing":
        places["data"] = folder / "data.csv"
    out = [] if "--output_dir" in words else ["--output_dir", str(tmp_path / "out")]
    capsys.readouterr()
    error = fails(capsys, "anomaly", *(word.format(**places) for word in words), *out)
    assert re.search(told, error), error
    assert not (tmp_path / "out").exists()


# ---- tables ----------------------------------------------------------------------------------------------------------------


def csv(text):
    return lambda path: (path.with_suffix(".csv").write_text(text), path.with_suffix(".csv"))[1]


def npz(**arrays):
    return lambda path: (np.savez(path, **arrays), path.with_suffix(".npz"))[1]


def raw(suffix, content):
    return lambda path: (path.with_suffix(suffix).write_bytes(content), path.with_suffix(suffix))[1]


def parquet(**columns):
    return lambda path: (pq.write_table(pa.table(columns), path.with_suffix(".parquet")), path.with_suffix(".parquet"))[1]


X = np.arange(12.0).reshape(6, 2) ** 2
TABLES = {
    "missing": (lambda path: path.with_suffix(".csv"), "does not exist: give a .csv"),
    "folder": (lambda path: path.parent, "is a folder: give a .csv"),
    "extension": (raw(".xlsx", b"PK"), "ends with '.xlsx', expected a table"),
    "text": (csv("city,x,land\nParis,1,F\nRome,2,I\n"), r"'city' holds text \('Paris' in row 0\).*exclude it.*the same for 'land'"),
    "placeholder": (csv("a,b\n1,2\n?,3\n"), r"column 'a' holds text \('\?' in row 1\).*leave a cell empty"),
    "no number": (csv("city,land\nParis,F\n"), "has no numeric column .*'city', 'land'"),
    "empty": (csv(""), "could not be read .Empty CSV file"),
    "no rows": (csv("a,b\n"), "has no rows, expected at least two"),
    "no names": (csv("1.5,2\n3,4\n"), r"begins with a line of numbers \('1.5,2'\)"),
    "ragged": (csv("a,b\n1,2\n1,2,3\n"), "Expected 2 columns, got 3"),
    "names twice": (csv("a,a\n1,2\n3,4\n"), "more than one column named 'a'"),
    "latin names": (raw(".csv", b"a\xe9,b\n1,2\n"), "could not be read .*utf-8"),
    "labels of three": (csv("a,b,label\n1,2,0\n3,4,2\n"), "label column 'label' holds 2, expected 0 .*label_column=none"),
    "labels of text": (csv("a,b,Label\n1,2,good\n3,4,bad\n"), "label column 'Label' holds 'bad', 'good', expected 0"),
    "labels of -1": (npz(X=X, y=np.array([1, 1, 1, 1, 1, -1])), "label column 'y' holds -1, expected 0"),
    "labels missing": (csv("a,b,y\n1,2,0\n3,4,\n5,6,1\n"), "label column 'y' is empty in 1 of 3 rows"),
    "two truths": (csv("a,b,y,label\n1,2,0,0\n3,4,1,1\n"), "columns 'y' and 'label' could both be the truth"),
    "pickle": (raw(".npz", pickle.dumps({"X": 1})), "is no npz archive: save it by numpy.savez"),
    "objects": (npz(X=np.array([{}], dtype=object)), r"holds Python objects in 'X' \(a pickle\), which are never read"),
    "damaged": (raw(".npz", b"PK\x03\x04 and nothing else"), "could not be read .File is not a zip file"),
    "no key": (npz(data=X), "has no key 'X' but 'data': save the rows by"),
    "one dimension": (npz(X=X[0]), r"has X of shape \(2,\) and type float64, expected rows \(n, d\)"),
    "labels too few": (npz(X=X, y=np.zeros(5)), r"has 'y' of shape \(5,\).*expected 6 values"),
    "no parquet": (raw(".parquet", b"x"), "could not be read .Parquet"),
    "lists": (parquet(a=[[1.0], [2.0]], b=[1, 2]), "column 'a' holds list<"),
    "infinity": (csv("a,b\n1,2\n3,inf\n5,6\n"), "infinity in 1 rows .row 1, column 'b'"),
    "empty column": (csv("a,b,c\n1,,2\n2,,2\n3,,4\n"), "column 'b' of X is all NaN"),
    "constant": (csv("a,b\n1,2\n1,2\n1,2\n"), "all 2 columns of X are constant"),
    "one column": (csv("a\n1\n2\n3\n"), "1 feature"),
    "one row": (csv("a,b\n1,2\n"), "1 sample"),
}


@every_row("case", TABLES)
def test_bad_tables(case, tmp_path, capsys):
    make, told = TABLES[case]
    error = fails(capsys, "anomaly", str(make(tmp_path / "table")), *FEW, "--output_dir", str(tmp_path / "out"))
    assert re.search(told, error), error
    assert not (tmp_path / "out").exists()


NAMES = {
    "label": (dict(label_column="nope"), "label_column='nope' is no column of the table: it has 'name', 'a'"),
    "exclude": (dict(exclude=["nom"]), "exclude='nom' is no column of the table"),
    "id": (dict(id_column="no"), "id_column='no' is no column of the table"),
    "not 0 and 1": (dict(label_column="b"), "label column 'b' is empty in 1 of 80 rows"),
    "nothing left": (dict(exclude=["name", "a", "b", "c", "truth"]), "has no numeric column .nothing is left"),
    "too many": (dict(columns=2, exclude=["name", "truth"]), "has 3 columns, the detector was fitted to 2"),
    "too few": (dict(columns=["a", "z", "q"]), r"lacks column 'z' \(and 1 more: 'q'\): the detector was fitted to 'a', 'z', 'q'"),
}


@every_row("case", NAMES)
def test_wrong_names(case, folder):
    settings, told = NAMES[case]
    with pytest.raises(ValueError, match=told) as caught:
        read_table(folder / "data.csv", **settings)
    assert "\n" not in str(caught.value)


def test_what_a_table_is(tmp_path):
    """Missing cells in several spellings, true and false, an index without a name, semicolons, a name that only seems the truth."""
    text = ";a; y ;b;c\n0;1;0.5;true;+3\n1;;1.5;false;NaN\n2;NA;2;;4e1\n"
    found = read_table(csv(text)(tmp_path / "table"))
    expected = [[1, 0.5, 1, 3], [np.nan, 1.5, 0, np.nan], [np.nan, 2, np.nan, 40]]
    assert np.array_equal(found.rows, expected, equal_nan=True) and found.rows.dtype == np.float64
    assert found.names == ["a", "y", "b", "c"] and found.truth is None and found.ids is None
    told = "; ".join(found.notes)
    assert "'y' is named as labels are but holds fractions" in told and "a column without a name" in told
    assert list(found.features.columns) == found.names


def test_a_late_fraction_is_read(tmp_path):
    """A column's type is told by the whole file."""
    rows = "\n".join(["a,b", *(f"{i},{i}" for i in range(200_000)), "0.5,x"]) + "\n"
    path = csv(rows)(tmp_path / "table")
    assert read_table(path, exclude=["b"]).rows[-1, 0] == 0.5
    with pytest.raises(ValueError, match="column 'b' holds text .'x' in row 200000"):
        read_table(path)


def test_columns_that_count_and_columns_named_as_labels_are_told(tmp_path):
    path = csv("id,a,b,y\n" + "".join(f"{i + 5},{i * i},{i % 3},{i % 2}\n" for i in range(20)))(tmp_path / "table")
    found = read_table(path, label_column="none")
    told = "; ".join(found.notes)
    assert "column 'id' only counts the rows" in told and "column 'y' is named as labels are: exclude it" in told
    assert found.names == ["id", "a", "b", "y"] and found.truth is None
    assert read_table(path, id_column="id").ids.to_pylist() == list(range(5, 25))
    assert read_table(path, exclude=["y"]).truth is None and read_table(path).truth.tolist() == [0, 1] * 10


# ---- plots and the example -------------------------------------------------------------------------------------------------


def test_measure():
    truth, found = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    told = measure(truth, found, (found > 0.3).astype(int))
    assert told == pytest.approx({"auc": 0.75, "average_precision": 5 / 6, "precision": 2 / 3, "recall": 1.0})
    assert measure(truth, found, np.zeros(4, int))["precision"] == 0
    assert measure(None, found, truth) is None and measure(np.zeros(4), found, truth) is None


def test_plots_are_drawn_whatever_the_scores(tmp_path):
    draw = np.random.default_rng(0)
    truth = (draw.random(200) < 0.2).astype(int)
    found = {f"$detector {i}": draw.normal(size=200) + truth * i for i in range(8)}
    thresholds = {"$detector 0": 1.0, "$detector 1": 99.0}
    path = plot_curves(truth, found, tmp_path / "a" / "curves.png", thresholds=thresholds, title="a $")
    assert not blank(path) and [p.name for p in path.parent.iterdir()] == ["curves.png"]
    many = ([1, 1, 1], 1), ([1, 2, 3], 9), ([1, 2, 3], 0), ([0] * 50 + [1], 0), ([-1e9, 1, 1e12], 0), ([1e-9, 1.0], 0.5), ([5], 5)
    for values, threshold in many:
        assert not blank(plot_scores(values, threshold, tmp_path / "scores.png"))
    assert plot_scores(found["$detector 1"], 1.0, tmp_path / "both.png", truth=truth).read_bytes() != path.read_bytes()
    assert not blank(plot_scores(found["$detector 1"], 1.0, tmp_path / "one.png", truth=np.zeros(200)))
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_scores([1.0, np.nan], 1.0, tmp_path / "no.png")
    with pytest.raises(ValueError, match="curves need 0, 1"):
        plot_curves(np.zeros(3), {"a": [1, 2, 3]}, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def example(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [EXAMPLE, *map(str, words)])
    runpy.run_path(EXAMPLE, run_name="__main__")


def test_the_example_runs(tmp_path, capsys, monkeypatch):
    example(monkeypatch, "--detectors", "ae", "vae", "--epochs", "3", "--output_dir", tmp_path)
    told = capsys.readouterr().out
    assert "1000 rows of 2 columns" in told and "missing cells" in told and "vae: abnormal" in told and "auc" in told
    found = pandas.read_parquet(tmp_path / "scores.parquet")
    assert list(found) == ["row", "truth", "ae_score", "ae_predicted", "vae_score", "vae_predicted"] and len(found) == 400
    assert not blank(tmp_path / "curves.png") and load_detector(tmp_path / "ae").feature_names_in_.tolist() == ["east", "north"]


def test_the_example_runs_on_a_file_without_truth(folder, tmp_path, capsys, monkeypatch):
    example(monkeypatch, folder / "blind.csv", "--exclude", "name", "--detectors", "ae", "--epochs", "3", "--output_dir", tmp_path)
    assert "auc" not in capsys.readouterr().out and not blank(tmp_path / "curves.png")
    assert list(pandas.read_parquet(tmp_path / "scores.parquet")) == ["row", "ae_score", "ae_predicted"]
