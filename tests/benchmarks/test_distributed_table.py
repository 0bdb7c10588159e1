"""The table of rows by several processes: what counts as wrong, and what a cell says."""

import importlib
import os
from pathlib import Path

import pytest
import torch


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("distributed_table")


GOOD = {"weights": 2e-16, "loss": 1e-7, "decisions": 0, "resumed": 0.0, "resumed_decisions": 0}


@pytest.mark.parametrize("more,wrong,words", [
    ({}, False, "2e-16 / 0"), ({"resumed_by_three": 3e-9, "three_decisions": 0}, False, "2e-16 / 0 / 3e-09"),
    ({"weights": 2e-5}, True, "2e-05 / 0 **<**"), ({"weights": float("nan")}, True, "nan / 0 **<**"),
    ({"resumed_decisions": 2}, True, "2e-16 / 0, 2 decisions differ **<**"), ({"loss": 1e-4}, True, "2e-16 / 0 **<**"),
])  # fmt: skip
def test_a_cell_is_wrong_where_anything_differs(table, more, wrong, words):
    found = {**GOOD, **more}
    assert table.wrong(found) == wrong and table.in_words(found) == words


def test_a_refusal_is_one_line_and_a_failure_is_none(table):
    refused = {"refused": "method 'trades' needs DDP: use it."}
    assert not table.wrong(refused) and table.in_words(refused) == "refused: method 'trades' needs DDP: use it."
    for bad in ({"refused": "two\nlines"}, {"refused": ""}, {"refused": "", "failed": True}):
        assert table.wrong(bad)
    assert table.in_words({"refused": "", "failed": True}) == "**failed**"
    alone = {**GOOD, "weights": 0.0, "cut": "1"}
    done = {("prl", "1"): alone, ("prl", "fsdp2"): {**GOOD, "weights": 1.0}, ("at", "1"): alone, ("at", "zero1"): GOOD}
    done |= {(row, "fsdp2"): {"refused": f"method '{row}' is refused.", "failed": False, "row": row} for row in ("at", "mart")}
    lines = table.report(done, ["1", "fsdp2"]).splitlines()
    assert lines[2:5] == ["| `at` | 0 | refused: 1 |", "| `prl` | 0 | 1e+00 / 0 **<** |", "| `mart` |  | refused: 1 |"]
    assert lines[6] == "1. method '...' is refused." and lines[-1].startswith("1 of 5 cells") and "2 refused in" in lines[-1]


def test_the_rest_goes_on_where_a_process_dies(table, monkeypatch):
    """Each row trains once and is resumed in the same processes; of a refused row nothing is resumed; a dead one is told."""

    def train(row, length, dtype, cut, folder, resume=None, **more):
        assert (more["save_steps"] == table.STEP) if resume is None else resume == f"{folder}/checkpoint-{table.STEP}"
        if row == "at":
            os._exit(3)
        if row == "mart":
            raise ValueError("method 'mart' is refused: use another.")
        moved = 1.0 + (1e-3 if resume and row == "trades" else 0.0)
        losses = torch.ones(14 if resume else 24, 4, dtype=torch.float64)
        return {"weights": {"w": torch.tensor([moved])}, "losses": losses, "decided": {"kept": torch.tensor([1.0, 0.0])}}

    monkeypatch.setattr(table, "train", train)
    rows = ["prl", "at", "mart", "trades"]
    found = table.cells(rows, ["1"], {("prl", "1"): GOOD})
    assert [row for row, _ in found] == rows[1:]
    assert found["at", "1"]["failed"] and found["mart", "1"]["refused"] == "method 'mart' is refused: use another."
    assert found["trades", "1"]["weights"] == 0.0 and found["trades", "1"]["resumed"] == pytest.approx(1e-3, rel=1e-3)
    assert [table.wrong(told) for told in found.values()] == [True, False, True]
