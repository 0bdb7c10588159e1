"""benchmarks/matrix.py: cells hold what they say, rows are made once and found again, the corner has its stored figures."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_trainer.corruptions import LABEL_RULES, NETWORK_BACKDOORS, POISONS, TRIGGERS
from robust_trainer.detectors import DETECTORS, REPAIRS

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def digits(module):
    tasks = module("fine_tuning_tasks")
    return tasks.load(tasks.TASKS["digits"], None, 40)


# ---- cells ------------------------------------------------------------------------------------------------------------


def test_every_row_of_the_packages_tables_is_an_attack_or_a_defence(module):
    cells, defences = module("matrix_cells"), module("matrix_defences")
    assert {*TRIGGERS, *NETWORK_BACKDOORS, *POISONS, "none", "symmetric", "pairflip", "instance"} == {*cells.ATTACKS}
    assert {*DETECTORS} < {*defences.JUDGES} and {*REPAIRS} < {*defences.REPAIRED}
    assert all(set(row.rules) <= {*LABEL_RULES} for row in cells.ATTACKS.values())
    matrix = module("matrix")
    for board in ("cpu", "gpu"):
        found = list(matrix.cells(matrix.parse(["--board", board])))
        assert {cell.attack for cell, _ in found} >= {*matrix.IMAGES} and all(defences.kind_of(d) for _, ds in found for d in ds)
    known = {name for name, row in cells.ATTACKS.items() if {"image", "text"} & {*row.inputs}}
    assert {cell.attack for cell, _ in matrix.cells(matrix.parse([]))} == known


@pytest.mark.parametrize("rule", list(LABEL_RULES))
def test_a_backdoor_cell_holds_its_share_its_labels_and_its_covers(module, digits, rule):
    cells = module("matrix_cells")
    data = cells.make(digits, cells.Cell("digits", "patch", rule, 0.05, seed=1), 200)
    clean = cells.make(digits, cells.Cell("digits", "none", seed=1), 200).train
    bad, covers = data.train.corrupted.numpy(), data.covers
    assert bad.sum() == 10 and covers.sum() == (10 if rule == "source-specific" else 0) and not (bad & covers).any()
    changed = (data.train.inputs != clean.inputs).flatten(1).any(1).numpy()
    assert (changed == bad | covers).all() and torch.equal(data.train.clean, clean.labels)
    moved = (data.train.labels != clean.labels).numpy()
    assert (moved == (bad if rule != "clean-label" else np.zeros(200, bool))).all()
    assert len(data.clean) == 200 - bad.sum() - covers.sum() and torch.equal(data.clean.labels, data.clean.clean)


def test_covers_are_neither_hits_nor_false_alarms(module, digits):
    cells = module("matrix_cells")
    data = cells.make(digits, cells.Cell("digits", "patch", "source-specific", 0.05), 200)
    bad, covers = data.train.corrupted.numpy(), data.covers
    assert data.caught(bad)["tpr"] == 1 and data.caught(bad)["fpr"] == 0
    assert data.caught(bad | covers) == data.caught(bad)
    one = int(np.flatnonzero(~bad & ~covers)[0])
    flagged = np.arange(200) == one
    found = data.caught(flagged)
    own = (data.train.clean == data.train.clean[one]).numpy() & ~bad & ~covers
    assert found["tpr"] == 0 and found["fpr"] == pytest.approx(1 / 180, abs=1e-4)
    assert found["fpr_worst_class"] == pytest.approx(1 / own.sum(), abs=1e-4)


def test_of_an_availability_poison_the_reference_has_the_images_before_it(module, digits):
    cells = module("matrix_cells")
    data = cells.make(digits, cells.Cell("digits", "urp", None, 1.0), 60)
    before = cells.make(digits, cells.Cell("digits", "none"), 60).train
    assert torch.equal(data.clean.inputs, before.inputs) and torch.equal(data.clean.labels, data.train.labels)
    assert (data.train.inputs != before.inputs).flatten(1).any(1).all() and not data.train.corrupted.any()


def test_attack_success_counts_what_the_attacker_would_change(module, digits, monkeypatch):
    cells, defences = module("matrix_cells"), module("matrix_defences")
    truth = digits.part(digits.test).clean.numpy()

    def figures(rule, said):
        cell = cells.Cell("digits", "patch", rule, 0.05)
        monkeypatch.setattr(defences, "predict", lambda *_: said[None])
        return defences.test_figures(None, digits, cell, cells.make(digits, cell, 100))

    always0 = np.zeros_like(truth)
    assert figures("all-to-one", always0)["attack_success"] == 1 and figures("all-to-one", always0)["triggered_accuracy"] == 0
    assert figures("all-to-one", truth) == {"accuracy": 1, "triggered_accuracy": 1, "attack_success": 0}
    assert figures("multi-target", (truth + 1) % 10)["attack_success"] == 1
    assert figures("source-specific", np.where(truth == 1, 0, truth))["attack_success"] == 1  # the source class alone counts
    assert figures("source-specific", np.where(truth == 1, 1, 0))["attack_success"] == 0
    half = np.where(np.arange(len(truth)) % 2, (truth + 3) % 10, truth)
    assert figures("untargeted", half)["attack_success"] == pytest.approx(0.5) == figures("untargeted", half)["triggered_accuracy"]


@pytest.mark.parametrize("name", ["gpu-preact-resnet18", "gpu-vit"])
def test_networks_for_a_gpu_take_small_images(module, name):
    networks, tasks = module("fine_tuning_networks"), module("fine_tuning_tasks")
    make = {"preact-resnet18": networks.preact_resnet18, "vit": lambda names: networks.vit(names, 32)}
    model = make[tasks.TASKS[name].network](["a", "b", "c"])
    assert model(torch.rand(2, 3, 32, 32), labels=torch.tensor([0, 2])).loss.requires_grad
    if name == "gpu-preact-resnet18":
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(11.2e6, rel=0.01)
        assert model.features(torch.rand(1, 3, 32, 32)).shape == (1, 512, 4, 4)


# ---- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_made_once_and_detectors_come_from_the_kept_network(module, tmp_path, capsys):
    matrix, out = module("matrix"), tmp_path / "rows.jsonl"
    cells = "--tasks digits --attacks patch none --rules all-to-one --rates 0.1 --train_rows 160 --test_rows 40 --epochs 3"
    command = f"{cells} --models {tmp_path / 'models'} --out {out}".split()
    first = "plain audit spectral spectral+retrain repairs clean-only auto".split()
    matrix.main([*command, "--defences", *first])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = ["plain", "audit", "spectral", "spectral+retrain", *module("matrix_defences").REPAIRED, "clean-only", "auto"]
    assert [row["defence"] for row in rows if row["attack"] == "patch"] == names
    assert [row["defence"] for row in rows if row["attack"] == "none"] == [n for n in names if n != "clean-only"]
    by = {(row["attack"], row["defence"]): row for row in rows}
    assert (
        by["patch", "clean-only"]["n_train"] == 144
        and by["patch", "plain"]["rate"] == 0.1
        and "robust_accuracy" in by["none", "auto"]
    )
    assert by["patch", "spectral"].keys() >= {"tpr", "fpr", "auroc", "machine", "cpu_seconds"}
    capsys.readouterr()
    matrix.main([*command, "--defences", *first])
    assert "0 rows in 0 cells to do" in capsys.readouterr().out
    matrix.main([*command, "--defences", "plain", "spectral", "--out", str(tmp_path / "other.jsonl")])  # the network is there
    again = [json.loads(line) for line in (tmp_path / "other.jsonl").read_text().splitlines()]
    own = next(row for row in again if (row["attack"], row["defence"]) == ("patch", "spectral"))
    assert [own[k] for k in ("tpr", "fpr", "auroc")] == [by["patch", "spectral"][k] for k in ("tpr", "fpr", "auroc")]
    matrix.main([*command, "--dry_run"])
    assert "CPU seconds" in capsys.readouterr().out


def test_a_watched_plain_run_is_the_plain_run(module, digits):
    """What detectors ask for beside it moves no weight."""
    defences, cells, matrix = module("matrix_defences"), module("matrix_cells"), module("matrix")
    args = matrix.parse("--train_rows 60 --epochs 2".split())
    cell = cells.Cell("digits", "patch", "all-to-one", 0.1)
    row, data = matrix.run_settings(args, cell, "plain"), cells.make(digits, cell, 60)
    watched = defences.plain(args, digits, data.train, row).model.state_dict()
    alone = defences.train(args, digits, data.train, row, "plain").model.state_dict()
    assert all(torch.equal(value, alone[name]) for name, value in watched.items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--defences", "prll"], "--defences prll: choose from"),
        (["--rates", "1.5"], "--rates 1.5: must be a share"),
        (["--shard", "3/2"], "--shard 3/2"),
        (["--shard", "half"], "--shard half: write i/n"),
        (["--epochs", "0"], "--epochs 0: must be above 0"),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(module, given, said):
    with pytest.raises(SystemExit, match=re.escape(said)):
        module("matrix").parse(given)


def test_shards_share_the_board(module, tmp_path):
    matrix = module("matrix")
    whole = [cell for cell, _ in matrix.todo(matrix.parse([]), tmp_path / "none")]
    parts = [[cell for cell, _ in matrix.todo(matrix.parse(["--shard", f"{i}/3"]), tmp_path / "none")] for i in (1, 2, 3)]
    assert sorted(map(str, whole)) == sorted(str(cell) for part in parts for cell in part) and all(parts)


# ---- the stored corner ------------------------------------------------------------------------------------------------


def test_the_corner_has_its_stored_figures(module, capsys):
    with pytest.raises(SystemExit) as found:
        module("matrix").main(["--check"])
    assert found.value.code == 0, capsys.readouterr().out


def test_the_comparison_sees_what_moved_or_is_missing(module):
    check = module("matrix_check")
    stored = {"a: plain": {"accuracy": 0.9, "tpr": 0.5}, "a: auto": {"fpr": 0.0}}
    assert check.compare(stored, {**stored, "a: plain": {"accuracy": 0.93, "tpr": 0.58}}) == []
    moved = check.compare(stored, {"a: plain": {"accuracy": 0.931, "auroc": 0.5}, "b: plain": {}})
    assert [line.split(" ")[2].rstrip(",") for line in moved] == ["only", "accuracy", "auroc", "tpr", "only"]


# ---- the report -------------------------------------------------------------------------------------------------------


def row(attack, defence, rule="all-to-one", rate=0.1, task="cifar10", seed=0, **figures):
    fixed = {"task": task, "network": "n", "side": 0, "train_rows": 1500, "test_rows": 9, "epochs": 4, "batch_size": 32, "lr": 1.0}
    kind = {"none": "none", "symmetric": "labels"}.get(attack, "trigger")
    rule = rule if kind == "trigger" else None
    what = {"attack": attack, "rule": rule, "asked": rate, "rate": rate, "kind": kind, "seed": seed, "defence": defence}
    sort = {"plain": "reference", "clean-only": "reference", "auto": "training", "spectral": "detector"}.get(defence, "retraining")
    machine = {"device": "x CPU", "cores": 2, "torch": "1", "transformers": "1", "commit": "c"}
    key = f"{attack} {defence} {rule} {rate} {task} {seed}"
    base = {"key": key, **fixed, **what, "defence_kind": sort, "settings": {}, "machine": machine, "cpu_seconds": 10.0}
    return {**base, **figures}


def auto_rows(success=0.05, accuracy=0.68, tpr=0.95, fpr=0.02, clean_fpr=0.02):
    return [
        row("patch", "plain", accuracy=0.7, attack_success=1.0), row("patch", "clean-only", accuracy=0.7, attack_success=0.02),
        row("patch", "auto", accuracy=accuracy, attack_success=success, tpr=tpr, fpr=fpr),
        row("none", "plain", accuracy=0.7), row("none", "auto", accuracy=0.7, fpr=clean_fpr),
    ]  # fmt: skip


def test_each_bar_holds_on_its_side_of_the_bound(module):
    report, bars = module("matrix_report"), module("matrix_bars")
    told = "\n".join(bars.bars(report.Board(auto_rows())))
    assert "not reached" not in told and told.count(": reached") == 4
    for change, name in (
        ({"success": 0.0501}, "attacks"), ({"accuracy": 0.6799}, "attacks"), ({"tpr": 0.9499}, "detection"),
        ({"fpr": 0.0201}, "detection"), ({"clean_fpr": 0.0201}, "clean data"),
    ):  # fmt: skip
        told = "\n".join(bars.bars(report.Board(auto_rows(**change))))
        assert told.count("not reached") == 1 and f"cifar10: {name}**: not reached" in told, change


def test_attacks_that_beat_auto_are_named_and_those_not_learned_are_not_counted(module, tmp_path, monkeypatch):
    report, bars = module("matrix_report"), module("matrix_bars")
    names = ("patch", "blend", "sig", "warp")
    rows = [row(a, d, attack_success=v) for a in names for d, v in (("plain", 0.9), ("clean-only", 0.1), ("auto", 0.5))]
    rows += [row("quantise", d, attack_success=v) for d, v in (("plain", 0.25), ("clean-only", 0.1), ("auto", 0.5))]
    monkeypatch.setattr(bars, "DIAGNOSES", tmp_path / "none.json")
    told = "\n".join(bars.bars(report.Board(rows)))
    assert "diagnosis: not reached (blend, patch, sig, warp)" in told and "- cifar10 quantise" not in told
    assert "not learned here (less than 20 points above clean-only): quantise all-to-one 10 % 25 %" in told
    (tmp_path / "some.json").write_text(json.dumps({"* patch *": "Because.", "cifar10 blend all-to-one": "So."}))
    monkeypatch.setattr(bars, "DIAGNOSES", tmp_path / "some.json")
    told = "\n".join(bars.bars(report.Board(rows)))
    assert "diagnosis: reached (sig, warp)" in told and "Because." in told and "So." in told


def test_runs_of_an_attack_with_other_settings_are_another_cell(module):
    report = module("matrix_report")
    board = report.Board(
        [row("sig", "plain"), row("sig", "plain", seed=1), {**row("sig", "auto"), "attack_settings": {"delta": 0.2}}]
    )
    assert [place.told() for place in board.places] == ["sig all-to-one 10 %", "sig (delta 0.2) all-to-one 10 %"]


def test_costs_count_in_what_a_defence_rests_on(module):
    report = module("matrix_report")
    own = {"plain": 10.0, "auto": 15.0, "spectral": 2.0, "spectral+retrain": 8.0}
    board = report.Board([row("patch", name, cpu_seconds=seconds) for name, seconds in own.items()])
    place = next(iter(board.places))
    assert {name: board.cost(place, name) for name in own} == {"plain": 1, "auto": 1.5, "spectral": 1.2, "spectral+retrain": 2.0}


def test_the_report_writes_escaped_files_and_means_over_seeds(module, tmp_path):
    report = module("matrix_report")
    rows = [*auto_rows(), row("patch", "plain", seed=1, accuracy=0.8, attack_success=0.9), row("<b>x</b>", "plain", accuracy=0.123)]
    told = report.report([*rows, rows[0]], tmp_path)
    assert "## Bars for auto" in told
    text = (tmp_path / "board.md").read_text()
    assert "| patch all-to-one 10 % | 75.0 / 95.0 / – | 70.0 / 2.0 / – | 68.0 / 5.0 / – |" in text
    page = (tmp_path / "board.html").read_text()
    assert "<b>x" not in page and "&lt;b&gt;x&lt;/b&gt;" in page and "http" not in re.sub(r"<meta[^>]*>", "", page)
    lines = (tmp_path / "board.csv").read_text().splitlines()
    assert len(lines) == 1 + len(rows) and lines[0].startswith("task,network,attack,kind,rule,rate,seed,defence")
    assert report.report([], tmp_path) == ""


def test_published_figures_name_their_source_and_a_known_attack(module):
    found, cells = module("matrix_published").published(), module("matrix_cells")
    assert found["rows"] and all(row["source"] in found["sources"] for row in found["rows"])
    assert {row["attack"] for row in found["rows"]} <= {*cells.ATTACKS}
    figures = [row[f] for row in found["rows"] for f in ("ca", "asr", "ra", "tpr", "fpr") if f in row]
    assert all(0 <= value <= 100 for value in figures) and len(figures) > 300
