import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
_ROOT = Path(__file__).resolve().parents[1]
# what a test starts in a process of its own imports the same package and helpers
_FOUND = [path for path in sys.path if Path(path).resolve().is_relative_to(_ROOT)]
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(_ROOT), *_FOUND, *filter(None, [os.environ.get("PYTHONPATH")])]))

import datasets  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

torch.set_num_threads(1)  # one order of summation everywhere, and tiny models gain nothing from a second thread
datasets.disable_progress_bars()
transformers.utils.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Every training ends in a garbage collection, most of whose time goes to what the imports made."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
