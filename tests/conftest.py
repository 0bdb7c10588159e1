import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import datasets
import pytest
import torch
import transformers

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
