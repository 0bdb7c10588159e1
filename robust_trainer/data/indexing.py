"""The sample's position in the data set travels with it, from the data set through the collator into the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..problems import SINGLE_LABEL, Problem
from .columns import source_row
from .decode import ImageError
from .labels import check_labels

#: Key of the positions in a batch; named so that no user column is called the same.
INDEX = "_robust_index"


class _Example(NamedTuple):
    """An example and its position: not a mapping, so that nothing between data set and collator takes it apart."""

    example: Any
    position: int


class Indexed(Dataset):
    """A map-style data set whose examples carry their position; everything else is the wrapped data set's."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["dataset"], name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Example:
        try:
            return _Example(self.dataset[index], int(index))
        except ImageError as error:
            raise ImageError(f"row {source_row(self.dataset, index)}: {error}") from None

    def __getitems__(self, indices: Sequence[int]) -> list[_Example]:
        fetch = getattr(self.dataset, "__getitems__", None)
        try:
            rows = fetch(indices) if fetch is not None else [self.dataset[i] for i in indices]
        except ImageError:
            for i in indices:  # one by one, so that the row is known
                self[i]
            raise
        return [_Example(row, int(i)) for row, i in zip(rows, indices)]


@dataclass
class IndexCollator:
    """The user's collator, with the positions added (B,), and what it made checked before it travels.

    Runs on the host (in the data loader's workers where there are any), so the checks cost the device nothing.

    Raises:
        ValueError: For labels that are missing, not integers or outside [0, classes), and for NaN or infinite inputs; where the
            problem is no single-label classification, for targets that are no finite numbers, or outside [0, 1] for labels.
    """

    collate: Callable[[list[Any]], Mapping[str, Any]]
    label_names: Sequence[str]
    classes: int | None
    main_input: str | None = None
    problem: Problem = SINGLE_LABEL

    def __call__(self, features: list[_Example]) -> dict[str, Any]:
        """Returns the batch with the positions of its samples."""
        index = [f.position for f in features]
        try:
            batch = self.collate([f.example for f in features])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise _collation_error(error, [f.example for f in features], index) from error
        if not isinstance(batch, Mapping):
            raise ValueError(f"data_collator returned {type(batch).__name__}, expected a mapping: return a dict of tensors.")
        if self.problem.labelled:
            check_labels(batch, self.label_names, self.classes, index, features[0].example, self.problem)
        for key, value in batch.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value.sum())):
                # an attention mask may hold -inf; the model's main input may not
                wrong = ~torch.isfinite(value) if key == self.main_input else torch.isnan(value)
                rows = wrong.reshape(len(index), -1).any(1)
                bad = [index[i] for i in rows.nonzero().flatten().tolist()]
                if bad:
                    raise ValueError(f"'{key}' is NaN or infinite in training rows {bad[:5]}: repair or remove these rows.")
        return {**batch, INDEX: torch.tensor(index, dtype=torch.long)}


def _collation_error(error: Exception, examples: list[Any], index: list[int]) -> ValueError:
    """The likeliest cause of a failed collation, in one line."""
    if examples and isinstance(examples[0], Mapping):
        for key in examples[0]:
            values = [e.get(key) for e in examples]
            missing = next((i for v, i in zip(values, index) if v is None), None)
            if missing is not None:
                return ValueError(f"'{key}' is None in training row {missing}: repair or remove the row.")
            if all(isinstance(v, Tensor | np.ndarray) for v in values):
                shapes = {tuple(v.shape): i for v, i in zip(values, index)}
                if len(shapes) > 1:
                    listed_shapes = ", ".join(f"{s} (row {i})" for s, i in list(shapes.items())[:3])
                    return ValueError(
                        f"'{key}' has mixed sizes in one batch: {listed_shapes}; resize the images to one size first."
                    )
            if any(isinstance(v, str) for v in values):
                return ValueError(
                    f"'{key}' holds strings (row {index[0]}: {values[0]!r}), expected numbers: "
                    "encode labels with dataset.class_encode_column(...)."
                )
    return ValueError(f"the data collator failed on training rows {index[:5]}: {error}")
