"""benchmarks/label_noise.py: runs are made, found again and told in the papers' tables."""

import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("label_noise")


def rows_of(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_papers_figures():
    tables = json.loads((FOLDER / "paper_label_noise.json").read_text())["tables"]
    assert {table: [len(rows) for rows in data.values()] for table, data in tables.items()} == {
        "4.1": [20], "4.2": [6, 6], "4.4": [3, 3], "4.6": [3]
    }  # fmt: skip
    assert tables["4.2"]["cifar10"]["pairflip:0.45"]["co-prl"] == [73.78, 0.17]
    assert tables["4.4"]["cifar10"]["pairflip:0.45"]["+0.00"] == tables["4.2"]["cifar10"]["pairflip:0.45"]["co-prl"]
    assert tables["4.1"]["celeba"]["mixture:0.40"]["standard"] == [-3.13, 1.51]


def test_classification(benchmark, tmp_path, capsys):
    out = tmp_path / "runs.jsonl"
    command = "--data digits --max_train 128 --max_test 64 --epochs 2 --last_k 1 --ramp_epochs 1 --batch_size 32 "
    command += f"--noise pairflip:0.45 --seeds 0 1 --out {out} "
    benchmark.main([*command.split(), "--methods", "standard,prl", "no-such-method"])
    assert "no-such-method: skipped" in capsys.readouterr().out
    rows = rows_of(out)
    assert [(r["method"], r["seed"]) for r in rows] == [("standard", 0), ("prl", 0), ("standard", 1), ("prl", 1)]
    assert all(abs(r["realised_rate"] - 0.45) < 0.01 and len(r["epochs"]) == 2 for r in rows)
    assert rows[1]["settings"]["noise_rate"] == 0.45 and rows[1]["settings"]["drop_ramp_epochs"] == 1
    benchmark.main([*command.split(), "--methods", "standard,prl"])
    assert len(rows_of(out)) == 4  # found, not run again
    benchmark.main([*command.split(), "--table", "4.4", "--methods", "standard,prl"])
    assert len(rows_of(out)) == 12  # the told rates that are off; the true one was there; standard is told none
    capsys.readouterr()
    benchmark.main(["--report", "--out", str(out), "--last_k", "1"])
    told = capsys.readouterr().out
    assert "### Table 4.2" in told and "### Table 4.4" in told
    line = next(line for line in told.splitlines() if line.startswith("| pairflip:0.45 |"))
    assert "[48.05]" in line and "[71.42]" in line and line.count("±") == 2


def test_regression(benchmark, tmp_path, capsys):
    out = tmp_path / "runs.jsonl"
    command = f"--table 4.1 --data diabetes --epochs 3 --last_k 2 --batch_size 64 --noise clean linadv:0.4 --seeds 0 --out {out} "
    benchmark.main([*command.split(), "--methods", "standard,huber,prl,bootstrap"])
    assert "refused" in capsys.readouterr().out  # bootstrap mixes class labels
    rows = rows_of(out)
    assert [r["method"] for r in rows] == ["standard", "huber", "prl"] * 2
    assert rows[1]["settings"]["objective"] == "huber"
    assert rows[3]["realised_rate"] == pytest.approx(0.4, abs=0.01) and rows[0]["realised_rate"] == 0
    benchmark.main(["--report", "--out", str(out)])
    told = capsys.readouterr().out
    assert "### Table 4.1" in told and "[-32.220]" in told


def test_epoch_times(benchmark, tmp_path, capsys):
    out = tmp_path / "runs.jsonl"
    command = f"--table 4.6 --data digits --max_train 64 --batch_size 32 --rounds 2 --seeds 0 --out {out} --methods standard,prl"
    benchmark.main(command.split())
    assert [(r["method"], len(r["epoch_seconds"])) for r in rows_of(out)] == [("standard", 2), ("prl", 2)]
    benchmark.main(["--report", "--out", str(out)])
    assert "[54.80 s; 1.48]" in capsys.readouterr().out
