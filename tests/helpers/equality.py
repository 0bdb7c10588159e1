"""Trainings by several processes against one, with the networks and data of ``benchmarks/process_equality.py``."""

import importlib
from pathlib import Path

import torch

from .processes import launch


def equality_module(monkeypatch):
    """The module ``process_equality``."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("process_equality")


def check_processes(equality, row, cut, length, tmp_path):
    """gloo on the CPU, in float64 so that no sign of a gradient hangs on rounding; the logged loss is float32."""

    def work(out):
        found = equality.train(row, length, "float64", cut, str(out))
        if torch.distributed.get_rank() == 0:
            torch.save(found, out / "found.pt")

    launch(work, equality.CUTS[cut][0], tmp_path, tmp_path)
    one = equality.train(row, length, "float64", "1", str(tmp_path))
    found = equality.differences(one, torch.load(tmp_path / "found.pt"))
    assert found["steps"] >= 20 and found["weights"] < 1e-6 and found["loss"] < 1e-5 and found["decisions"] == 0, found
    return one
