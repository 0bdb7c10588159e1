"""benchmarks/step_cost_models.py: its dry run goes through every cell, and its floors are what the rows compute."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("step_cost_models")


def command(tmp_path, *words):
    file = tmp_path / "cells.jsonl"
    words = [sys.executable, str(FOLDER / "step_cost_models.py"), "--dry_run", "--output", str(file), *words]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout, [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_the_dry_run_goes_through_every_cell_and_a_second_one_finds_them(module, tmp_path):
    out, cells = command(tmp_path)
    wanted = module.order(["bf16", "eager", "compiled"], ["resnet50", "vit-b16"], list(module.FLOORS)[1:], dry_run=True)
    assert {(c["mode"], c["model"], c["row"]) for c in cells} == set(wanted) and "no time left" not in out
    refused = {(c["model"], c["row"]) for c in cells if "refused" in c}
    assert refused == {("resnet50", "prl-g")} and all(c["seconds"] > 0 for c in cells if "refused" not in c)
    again, same = command(tmp_path)
    assert same == cells and again.count("\n| ") == out.count("\n| ")


def test_what_there_is_no_time_for_is_said(module, tmp_path, monkeypatch, capsys):
    file, words = tmp_path / "cells.jsonl", "--dry_run --models vit-b16 --modes eager --rows prl --minutes 0 --check"
    monkeypatch.setattr(sys, "argv", ["step_cost_models.py", *words.split(), "--output", str(file)])
    module.main()
    assert not file.exists() and "| eager | prl | not run: no time left |" in capsys.readouterr().out


class Products(TorchDispatchMode):
    """Counts the arithmetic of matrix products and convolutions, forward and backward."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


#: Plain steps, and forwards of an attack, each with a backward for the input or none.
PASSES = {"prl": (1, 0), "prl-at": (1, 2), "pgd-at": (1, 20), "trades": (2, 21)}


@pytest.mark.parametrize("row", [pytest.param(row, marks=pytest.mark.slow if row == "pgd-at" else ()) for row in PASSES])
def test_floors_are_the_arithmetic_of_a_step(module, tmp_path, row):
    """A plain step is three forwards, less the first layer's backward for its input, which an attack has."""
    network = module.make_model("vit-b16", True)
    with Products() as products:
        network(torch.zeros(8, 3, 32, 32))
    forward, first = products.total, 2 * 8 * 4 * 3 * 16 * 16 * network.config.hidden_size  # of four patches
    counts = {}
    for steps in (2, 3):  # of two epochs each; what is done once is taken off
        args = argparse.Namespace(dry_run=True, steps=steps, batch_size=8, device="cpu")
        with Products() as products:
            module.run(row, "eager", "vit-b16", args, str(tmp_path))
        counts[steps] = products.total
    steps, passes = PASSES[row]
    assert steps + passes / 3 == pytest.approx(module.FLOORS[row])
    assert (counts[3] - counts[2]) / 2 == pytest.approx(steps * (3 * forward - first) + passes * forward, rel=0.01)


def test_a_row_far_above_its_floor_misses_its_bar(module, capsys):
    args = argparse.Namespace(models=["vit-b16"], modes=["eager"], rows=["prl", "pgd-at", "prl-g"], dry_run=False)
    cell = lambda seconds: {"seconds": seconds, "peak": 10.0}  # noqa: E731
    cells = {
        ("eager", "vit-b16", row): cell(s) for row, s in {"plain": 1.0, "plain again": 3.0, "prl": 2.2, "pgd-at": 15.0}.items()
    }
    cells["eager", "vit-b16", "prl-g"] = {"refused": "why: what"}
    assert module.table(cells, args) == ["vit-b16, eager, prl: 1.100 floors, bar 1.05"]
    out = capsys.readouterr().out
    assert "| eager | plain | 2000.0 | 1.000 |" in out and "refused: why" in out and torch.is_grad_enabled()
