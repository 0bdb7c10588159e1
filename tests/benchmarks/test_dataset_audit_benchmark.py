"""benchmarks/dataset_audit.py: its figures are those of the audit against the truth, by hand."""

import importlib
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers.audits import make_audit

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("dataset_audit")


def test_a_row_of_figures(benchmark):
    audit = make_audit(240, rate=0.25)
    flagged = audit.column("flagged").astype(bool)
    truth = flagged.copy()
    truth[np.flatnonzero(flagged)[:6]] = False
    truth[np.flatnonzero(~flagged)[:12]] = True
    rows = datasets.Dataset.from_dict({"is_corrupted": truth.tolist()})
    area, precision, recall, wrong, true, estimated = benchmark.cell(rows, audit)
    suspicion = audit.column("suspicion")
    pairs = suspicion[truth][:, None] - suspicion[~truth][None]
    assert float(area) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=6e-4)
    assert (precision, recall) == ("90.0", f"{100 * 54 / 66:.1f}") and wrong == f"{100 * 6 / 174:.1f}"
    assert true == "27.5" and estimated == "25.0 (0 to 100)"


def test_clean_rows_have_a_share_that_is_flagged_and_no_ranking(benchmark):
    rows = datasets.Dataset.from_dict({"label": [0] * 240})
    assert benchmark.cell(rows, make_audit(240))[:5] == ["-", "-", "-", "25.0", "0.0"]


def test_a_digit_task_runs(benchmark, monkeypatch, capsys, tmp_path):
    """From loading to the table, with the small network in the place of the pretrained ones, on digits."""
    tasks = sys.modules["fine_tuning_tasks"]
    processor = benchmark.PlainProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    monkeypatch.setattr(benchmark, "ROWS", {"digits": 300})
    monkeypatch.setattr(benchmark, "network", lambda loaded, side: {"model": loaded.model(), "processing_class": processor})
    words = ["--data_dir", "", "--tasks", "digits", "--corruptions", "clean", "symmetric20", "--out", str(tmp_path / "t.md")]
    monkeypatch.setattr(sys, "argv", ["dataset_audit.py", *words])
    benchmark.main()
    told = capsys.readouterr().out.splitlines()
    assert len([line for line in told if line.startswith("| digits")]) == 2 and tasks.TASKS["digits"].name == "digits"
    assert (tmp_path / "t.md").read_text().splitlines()[2:] == [line for line in told if line.startswith("|")]
