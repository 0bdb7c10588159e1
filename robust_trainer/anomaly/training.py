"""Training of a model of unlabelled rows by `RobustTrainer`, as an estimator wants it: silent, seeded, without a trace."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback

from ..config import RobustConfig
from ..trainer import RobustTrainer

#: Products of the widest layer in a step up to which training takes one thread: 128 rows and 256 x 512 weights. A second one gains
#: little there, and costs many times as much where another program has the other core.
SMALL = 2**24


class Rows(Dataset):
    """Rows (n, d) of a tensor as examples ``{"features": row}``."""

    def __init__(self, rows: Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"features": self.rows[index]}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        return [{"features": row} for row in self.rows[torch.as_tensor(indices)].unbind(0)]


def collate(examples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The examples of `Rows` as one batch.

    Args:
        examples: Of `Rows`.
    """
    return {"features": torch.stack([example["features"] for example in examples])}


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Within it the global generators start from ``seed``; afterwards they are as they were.

    Args:
        seed: Of weights and order.
    """
    state, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numbers)


@contextmanager
def few_threads(products: int) -> Iterator[None]:
    """Within it torch has one thread on the CPU, where that many products a step are too few to share.

    Args:
        products: Multiplications of a step.
    """
    before = torch.get_num_threads()
    try:
        if products <= SMALL:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def fit_model(
    make: Callable[[], PreTrainedModel], rows: Tensor, seed: int, width: int, verbose: bool, **settings: Any
) -> RobustTrainer:
    """Builds a model, trains it on rows and returns the trainer that did.

    Args:
        make: Makes the model.
        rows: (n, d) float32.
        seed: Of weights and order.
        width: Units of its widest layer.
        verbose: The Trainer's own progress.

        **settings: Of `RobustConfig`.
    """
    products = settings["per_device_train_batch_size"] * width * max(width, rows.shape[1])
    with own_randomness(seed), few_threads(products), tempfile.TemporaryDirectory() as folder:
        args = RobustConfig(
            output_dir=folder, seed=seed, lr_scheduler_type="constant", max_grad_norm=0.0, save_strategy="no",
            logging_strategy="epoch" if verbose else "no", report_to=[], disable_tqdm=not verbose, remove_unused_columns=False,
            dataloader_pin_memory=False, **settings,
        )  # fmt: skip
        trainer = RobustTrainer(model=make(), args=args, train_dataset=Rows(rows), data_collator=collate)
        if not verbose:
            trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer
