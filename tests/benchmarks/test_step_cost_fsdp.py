"""benchmarks/step_cost_fsdp.py: two processes shard the model, and rows are compared with the plain Trainer beside them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_time_every_row():
    script = Path(__file__).parents[2] / "benchmarks" / "step_cost_fsdp.py"
    words = "--rounds 1 --steps 2 --batch_size 4 --width 32 --layers 1 --rows prl prl-at prl-g".split()
    found = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    ratios = {row: float(ratio) for row, ratio in re.findall(r"^\| ([a-z-]+) \| ([\d.]+) \|", found.stdout, re.M)}
    assert list(ratios) == ["prl", "prl-at", "prl-g"] and all(ratio > 0 for ratio in ratios.values())
