"""Batches of images alone, for pre-training without labels: which examples they come from, and how many make a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset


@dataclass
class ImageCollator:
    """A batch of the model's images alone, ``{main_input: (B, C, H, W)}``, from examples that hold them among other columns.

    Args:
        main_input: name of the model's image input.
        collate: the user's collator, which gets the examples as they are; None: the images are stacked.
    """

    main_input: str
    collate: Callable[[list[Any]], Mapping[str, Any]] | None = None

    def __call__(self, examples: list[Any]) -> dict[str, Tensor]:
        """Returns the batch.

        Args:
            examples: rows of the data set.

        Raises:
            ValueError: where images are missing, of different sizes, or NaN or infinite.
        """
        key = self.main_input
        if self.collate is None:
            bad = next((e for e in examples if not isinstance(e, Mapping) or e.get(key) is None), None)
            if bad is not None:
                what = f"the columns {sorted(bad)}" if isinstance(bad, Mapping) else f"a {type(bad).__name__}"
                raise ValueError(f"an example is {what}, without '{key}': give a dict with it, or a data_collator that makes it.")
            try:
                batch: Mapping[str, Any] = {key: torch.stack([torch.as_tensor(e[key]) for e in examples])}
            except (RuntimeError, ValueError, TypeError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"'{key}' cannot be stacked ({reason}): resize the images to one size first.") from error
        else:
            batch = self.collate(examples)
        x = batch.get(key) if isinstance(batch, Mapping) else None
        if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"'{key}' is {got}, expected floats (B, C, H, W): preprocess with the model's image processor.")
        if not bool(torch.isfinite(x.sum())):
            raise ValueError(f"'{key}' is NaN or infinite in a batch: repair or remove these images.")
        return {key: x}


def joined(dataset: Any, extra: Any) -> Any:
    """Returns the data set and the extra ones, one after the other.

    Args:
        dataset: the training set.
        extra: a data set, a list of them, or None.

    Raises:
        ValueError: for streams and empty ones, where there are extra ones.
    """
    several = isinstance(extra, list | tuple) and not (extra and isinstance(extra[0], Mapping))  # else a list of examples
    parts = [dataset, *(extra if several else [] if extra is None else [extra])]
    if len(parts) == 1:
        return dataset
    for name, part in zip(("train_dataset", *["extra_dataset"] * len(parts)), parts):
        if isinstance(part, Mapping) or not (hasattr(part, "__len__") and hasattr(part, "__getitem__")):
            raise ValueError(f"{name} is a {type(part).__name__}: to be joined it must be a data set with a length, not a stream.")
        if len(part) == 0:
            raise ValueError(f"{name} is empty (0 rows): give images, or leave it out.")
    return ConcatDataset(parts)


def batch_size_for(dataset: Any, name: str, batch_size: int, processes: int, training: bool, drop_last: bool) -> int:
    """Returns the images of a batch on each process: as asked; in evaluations no more than the data set has for each.

    Args:
        dataset: with a length.
        name: of the data set, as messages begin.
        batch_size: asked for, on each process.
        processes: their number.
        training: False in evaluations.
        drop_last: whether a smaller last batch is left out.

    Raises:
        ValueError: where a batch would be of one image over all processes, or none would be whole.
    """
    if isinstance(dataset, Mapping):
        raise ValueError(f"{name} set is a {type(dataset).__name__} of {list(dataset)[:5]}: pass one split, data['train'].")
    images = len(dataset)
    if images < max(2, processes):
        raise ValueError(f"{name} set has {images} images, and SimCLR contrasts images with each other: give at least 2.")
    if not training:
        batch_size = min(batch_size, images // processes)
    if batch_size * processes < 2:
        raise ValueError(f"{name} batches have 1 image, and no other to contrast it with: raise the batch size.")
    whole = batch_size * processes
    if training and drop_last and images < whole:
        raise ValueError(
            f"{name} set has {images} images, less than one batch of {whole}: lower per_device_train_batch_size, or set "
            "dataloader_drop_last=False."
        )
    if training and not drop_last and images % whole == 1 and processes == 1:
        raise ValueError(
            f"{name} set has {images} images, which leaves 1 after batches of {whole} and no other to contrast it with: set "
            "dataloader_drop_last=True."
        )
    return batch_size
