import json
import os
import subprocess
import sys

import pytest
from helpers.fingerprints import fingerprints


@pytest.mark.slow
def test_fingerprints_are_stable_across_processes_and_tell_settings_apart():
    """A process that salts Python's hash otherwise tells the same: what was mapped once is found in the cache."""
    code = "import json; from helpers.fingerprints import fingerprints; print(json.dumps(fingerprints()))"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    here = fingerprints()
    assert json.loads(run.stdout.splitlines()[-1]) == here == fingerprints()
    assert len(set(here)) == len(here) == 17
