import faulthandler
import gc
import os
from pathlib import Path

import pytest
from helpers import fork_server

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["OMP_NUM_THREADS"] = "1"  # workers share the cores
_ROOT = Path(__file__).resolve().parents[1]
# what a test starts in a process of its own imports the same package and helpers
_PATHS = [str(_ROOT), str(_ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(_PATHS))


def pytest_xdist_auto_num_workers(config):
    """All tests are shared by the cores; a few are sooner done in one process, as each pays ten seconds of imports."""
    whole = not config.option.keyword and all(Path(arg).resolve() in (_ROOT, _ROOT / "tests") for arg in config.args)
    return min(os.cpu_count() or 1, 8) if whole else 0


def pytest_configure(config):
    if getattr(config.option, "numprocesses", None):
        fork_server.start_server()  # one for all workers; it imports when it is needed
        return  # this process hands the tests to others and needs no library
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)  # one order of summation everywhere, and tiny models gain nothing from a second thread
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()


def pytest_runtest_setup(item):
    """A slow test may take longer than the time after which others are taken to hang."""
    if item.get_closest_marker("slow"):
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Every training ends in a garbage collection, most of whose time goes to what the imports made."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
