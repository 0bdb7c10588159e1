"""The benchmark of crafted label noise: which runs there are, that a stopped command goes on, and what its tables say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_the_runs_of_a_data_set():
    import crafted_noise as bench

    for name, protocol in bench.PROTOCOLS.items():
        runs = list(bench.wanted(protocol, list(bench.EXPERIMENTS)))
        assert len({json.dumps(r, sort_keys=True) for r in runs}) == len(runs)
        kinds = {kind for kind, _ in runs}
        assert kinds == set(bench.EXPERIMENTS) - (set() if protocol.density_source is not None else {"density", "single"})
        assert {c["strategy"] for k, c in runs if k == "strategies"} >= {"clean", "random", "adversarial-path", *bench.GRAPHS}
        for kind in ("paths", "density"):
            buckets = [tuple(c["quantiles"]) for k, c in runs if k == kind and "bucket" in c]
            assert not buckets or (min(buckets)[0], max(buckets)[1]) == (0, 1), name
        assert [c["target"] for k, c in runs if k == "extra"] == ["extra"]


def test_a_run_from_start_to_table(tmp_path, monkeypatch, capsys):
    import crafted_noise as bench
    import crafted_noise_report as tables

    out = tmp_path / "runs.jsonl"
    small = ["--set", "train_size=150", "test_size=60", "width=4", "most_epochs=6", "buckets=2", "path_budget=3"]
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    command = ["--data", "digits", "--experiments", "paths", "extra", "--seeds", "0", "1", "--out", str(out), *small]
    bench.main(command)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 10 and len({r["key"] for r in rows}) == 10
    by = {(r["experiment"], r["craft"]["strategy"], r["craft"].get("bucket"), r["seed"]): r for r in rows}
    clean, wrong = by["paths", "clean", None, 0], by["paths", "random", None, 0]
    assert clean["flipped"] == 0 and clean["memorised"] is None and wrong["flipped"] == 3
    assert by["extra", "random", None, 1]["flipped"] == 3 and len(wrong["per_class"]["n"]) == 10
    assert wrong["per_class"]["n"][9] and not wrong["per_class"]["n"][0]  # attacked on the class whose labels were flipped
    for row in rows:
        assert 0 <= row["untargeted"] <= row["targeted"] <= 1 or row["experiment"] == "extra"
    bench.main(command)
    assert len(out.read_text().splitlines()) == 10
    capsys.readouterr()
    tables.main([str(out), "--figures", str(tmp_path / "pictures")])
    told = capsys.readouterr().out
    mean = np.mean([100 * by["paths", "random", None, s]["targeted"] for s in (0, 1)])
    line = next(x for x in told.splitlines() if x.startswith("| random |"))
    assert f"{mean:.1f}" in told and "| 2 |" in line
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["crafted_extra.png", "crafted_paths.png"]


def test_differences_are_seed_by_seed():
    import crafted_noise_report as tables

    one = {0: {"x": 0.5}, 1: {"x": 0.7}, 2: {"x": 0.1}}
    base = {0: {"x": 0.4}, 1: {"x": 0.4}, 5: {"x": 0.9}}
    assert tables.against(one, base, "x") == "+20.0 ± 10.0"
    assert tables.against(one, {}, "x") == "–"


def test_a_single_flip_is_one_label_of_the_source():
    import crafted_noise as bench

    protocol = bench.replace(bench.PROTOCOLS["digits"], train_size=100, test_size=20)
    made = bench.Bench(protocol, *bench.load(protocol, None))
    seen = set()
    for number in range(3):
        craft = {"strategy": "single", "bucket": number, "source": 5, "target": 6}
        labels = np.asarray(made.flipped(craft, 0)["label"][:])
        row = np.flatnonzero(labels != made.labels.numpy())
        assert len(row) == 1 and labels[row] == 6 and made.labels[row] == 5
        assert (np.asarray(made.flipped(craft, 9)["label"][:]) == labels).all()  # the same point for every seed
        seen.add(int(row[0]))
    assert len(seen) > 1


def test_bad_arguments(capsys):
    import crafted_noise as bench

    with pytest.raises(SystemExit, match="--data mnist needs --path"):
        bench.main(["--data", "mnist"])
    with pytest.raises(SystemExit, match="unknown \\['epochs'\\]"):
        bench.main(["--set", "epochs=3"])
