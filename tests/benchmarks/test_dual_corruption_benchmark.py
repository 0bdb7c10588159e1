"""benchmarks/dual_corruption.py: runs are made, shared, found again and told in ERAT's tables."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
COMMAND = (
    "--data digits --train_size 60 --test_size 40 --width 4 --epochs 2 --batch_size 20 --warmup_epochs 1 --steps 2 --poisons urp "
    "--noise symmetric:0.6 --seeds 0 --erat_set strong_augmentation=crop-flip"
).split()


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("dual_corruption")


@pytest.fixture
def told(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("dual_corruption_report")


@pytest.fixture
def here(tmp_path):
    return [*COMMAND, "--cache", str(tmp_path / "data"), "--out", str(tmp_path / "runs.jsonl")]


def rows_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]


def test_papers_figures(told):
    tables = told.PAPER["tables"]
    assert len(tables["2"]) == 8
    assert [[len(row) for row in noise.values()] for noise in tables["3"].values()] == [[7] * 8] * 3
    assert [[len(row) for row in noise.values()] for noise in tables["6"].values()] == [[7] * 9] * 3
    assert set(told.ABLATIONS) == set(tables["6"]["instance:0.6"])
    assert tables["2"]["at"] == 89.05 and tables["2"]["erat"] == 93.78
    assert tables["3"]["instance:0.6"]["mspl"]["uap"] == 90.73
    assert tables["3"]["symmetric:0.6"]["at"]["uhp"] == 66.02
    assert tables["3"]["asymmetric:0.4"]["iss"]["ap"] == 34.03
    assert tables["3"]["asymmetric:0.4"]["erat"]["urp"] == 90.46
    assert tables["6"]["instance:0.6"]["erat-linf"]["uhp"] == 18.18
    assert tables["6"]["symmetric:0.6"]["no-uni"]["up-class"] == 75.95
    assert tables["6"]["asymmetric:0.4"]["no-ss"]["up-class"] == 72.66
    means = [sum(noise["erat"].values()) / 7 for noise in tables["3"].values()]
    assert means == pytest.approx([84.24, 84.65, 86.01], abs=0.01)  # sec. IV.C tells them


def test_runs_and_resume(benchmark, here, tmp_path, capsys):
    benchmark.main([*here, "--tables", "3", "--methods", "at", "iss", "erat"])
    rows = rows_of(tmp_path)
    assert [(r["name"], r["poison"]["poison"], r["realised"]) for r in rows] == [(m, "urp", 0.6) for m in ("at", "iss", "erat")]
    assert all(len(r["epochs"]) == 2 and r["last"] == r["epochs"][-1] and r["best"] == max(r["epochs"]) for r in rows)
    assert rows[0]["given"]["norm"] == "l2" and rows[0]["given"]["eps"] == 0.5
    found = [set(r["detection"]) for r in rows]
    assert found == [{"auroc"}, {"auroc"}, {"auroc", "precision", "recall", "labelled", "labelled_clean"}]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:-1]))
    poison = next((tmp_path / "data").glob("*/urp-*"))
    before = poison.stat().st_mtime_ns
    benchmark.main([*here, "--tables", "3", "--methods", "at", "iss", "erat"])
    again = rows_of(tmp_path)
    assert len(again) == 3 and again[-1]["epochs"] == rows[-1]["epochs"]  # only the lost one, and the same
    assert poison.stat().st_mtime_ns == before
    capsys.readouterr()
    benchmark.main(["--report", "--out", str(tmp_path / "runs.jsonl")])
    text = capsys.readouterr().out
    assert "### Table III" in text and "### Table VI" not in text and "### Table II:" not in text and "### Selection" in text


def test_parts_share_the_work(benchmark, here, tmp_path):
    command = [*here, "--tables", "2", "3", "--methods", "ce", "--epochs", "1"]
    benchmark.main([*command, "--part", "2/2"])
    assert [r["noise"] for r in rows_of(tmp_path)] == ["symmetric:0.6"]
    benchmark.main([*command, "--part", "1/2"])
    assert [r["noise"] for r in rows_of(tmp_path)] == ["symmetric:0.6", "clean"]


def test_prepare(benchmark, here, tmp_path, capsys):
    benchmark.main([*here, "--prepare", "--surrogate_epochs", "1"])
    rows = rows_of(tmp_path)
    assert [r["check"]["poison"] for r in rows] == ["none", "urp"]
    assert 0.3 < rows[1]["l2_max"] < 0.51 and 0 <= rows[1]["accuracy"] <= 100  # black pixels cannot become darker
    benchmark.main([*here, "--prepare", "--surrogate_epochs", "1"])
    assert len(rows_of(tmp_path)) == 2
    assert "### The poisons alone" in capsys.readouterr().out


def test_keys_depend_on_settings(benchmark, here):
    def args(*more):
        found = benchmark.arguments().parse_args([*here, *more])
        found.eps_linf, found.eps_l2 = 8 / 255, 0.5
        return found

    assert benchmark.poison_told(args(), "aa", 1) == benchmark.poison_told(args("--poison_set", "ap.steps=3"), "aa", 1)
    assert benchmark.poison_told(args("--poison_set", "aa.steps=3"), "aa", 1)["settings"] == {"steps": 3}
    assert benchmark.poison_told(args("--poison_seed", "5"), "aa", 1)["seed"] == 5
    assert benchmark.method_of(args(), "at", "l2c")[1]["norm"] == "linf"
    assert benchmark.method_of(args(), "ce", "urp") == benchmark.method_of(args("--jpeg_quality", "30"), "ce", "urp")
    for name in ("erat-linf", "erat-l2", "ce-score", "no-rb", "no-uni", "no-aug", "no-at", "no-ss"):
        own, whole = (benchmark.method_of(args(), n, "urp")[1] for n in (name, "erat"))
        assert own.items() >= benchmark.VARIANTS[name].items() and own != whole
    jobs = [set(benchmark.jobs(args("--tables", "2", "3", "6", "--part", f"{i}/3"))) for i in (1, 2, 3)]
    assert set.union(*jobs) == set(benchmark.jobs(args("--tables", "2", "3", "6")))
    assert sum(map(len, jobs)) == len(set.union(*jobs)) == 16
    for wrong in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(SystemExit, match="1/n to n/n"):
            benchmark.part_of(wrong)


def test_data(benchmark):
    labels = [0] * 30 + [1] * 10
    rows = benchmark.balanced(labels, 12)
    assert len(rows) == 12 and np.bincount(np.asarray(labels)[rows]).tolist() == [6, 6] and (np.diff(rows) > 0).all()
    assert benchmark.balanced(labels, None).tolist() == list(range(40))
    levels = np.arange(2 * 4 * 4).reshape(2, 4, 4, 1).astype(np.uint8)
    means = torch.nn.functional.avg_pool2d(torch.from_numpy(levels).permute(0, 3, 1, 2).float(), 2)
    assert (benchmark.averaged(levels, 2)[..., 0] == means[:, 0].numpy().round()).all()
    with pytest.raises(SystemExit, match="divisor of 4"):
        benchmark.averaged(levels, 3)


def made_up(name, noise, poison, seed, last):
    machine = {"device": "toaster", "cores": 1, "torch": "2", "transformers": "5", "commit": "abc"}
    protocol = {"data": "cifar10", "train": 9, "test": 9, "side": 16, "model": "small-cnn", "width": 4, "epochs": 2, "lr": 0.05,
                "lr_schedule": "cosine", "batch_size": 64}  # fmt: skip
    detection = {"precision": 0.5, "recall": 0.25, "auroc": 0.75} if name not in ("ce", "at", "iss", "no-ss") else {}
    return {"key": "k", "name": name, "noise": noise, "poison": {"poison": poison}, "seed": seed, "given": {},
            "protocol": protocol, "last": last, "best": last + 1, "epochs": [last], "detection": detection, "realised": 0.6,
            "train_seconds": 36.0, "cpu_seconds": 30.0, "machine": machine, "command": "--x"}  # fmt: skip


def test_report(told):
    rows = [made_up(name, "clean", "none", 0, 70.0) for name in ("ce", "erat")]
    rows += [made_up("ce", "symmetric:0.6", p, s, v) for p, s, v in [("aa", 0, 10.0), ("aa", 1, 20.0), ("urp", 0, 30.0)]]
    rows += [made_up("erat", "symmetric:0.6", p, 0, 50.0) for p in ("aa", "urp", "none")]
    text = told.report(rows)
    assert "| CE | 70.0 (1) [95.2] |" in text and "| ERAT | 70.0 (1) [93.8] |" in text
    assert "| noise | method | none | aa (l_inf) | urp (l_2) | mean over the poisons |" in text
    # the mean is seed 0's, which has both poisons, and leaves the column without a poison out
    assert "| symmetric:0.6 | CE | – | 15.0 ± 7.1 (2) [32.6] | 30.0 (1) [39.9] | 20.0 (1) [36.2] |" in text
    assert "| symmetric:0.6 | ERAT | 50.0 (1) | 50.0 (1) [85.5] | 50.0 (1) [86.4] | 50.0 (1) [86.0] |" in text
    assert "Table VI" not in text and "| symmetric:0.6 (60.0 %) | ERAT | 50.0 ± 0.0 (3) |" in text
    assert "abc" in text and "`benchmarks/dual_corruption.py --x`" in text and "| CE | 36 ± 0 (4) |" in text
    assert "| CE | 71.0 (1) [95.2] |" in told.report(rows, "best")
    rows += [made_up("no-ss", "symmetric:0.6", p, 0, 40.0) for p in ("aa", "urp")]
    text = told.report(rows)
    assert "### Table VI" in text and text.count("| symmetric:0.6 | CE |") == 1
    assert "| symmetric:0.6 | ERAT w/o SS | – | 40.0 (1) [73.3] | 40.0 (1) [55.7] | 40.0 (1) [64.5] |" in text
    weak = {**rows[2], "poison": {"poison": "aa", "settings": {"steps": 1}}, "last": 60.0}
    text = told.report([*rows, weak])  # another poison of that name has a column of its own
    assert "aa settings={'steps': 1} (l_inf)" in text
    assert "| symmetric:0.6 | CE | – | 15.0 ± 7.1 (2) [32.6] | 60.0 (1) [32.6] |" in text
    other = {**made_up("ce", "clean", "none", 0, 1.0), "protocol": {**rows[0]["protocol"], "epochs": 3}}
    assert told.report([*rows, other]).count("## Dual corruption") == 2  # other protocols are not averaged
    assert told.report([]) == "no finished runs."
