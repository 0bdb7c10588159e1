"""One pass over a data set in evaluation mode that leaves no trace: batches as the model takes them, and its last layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import default_data_collator

from ..models.features import forward_names
from ..models.outputs import logits_of


@dataclass(frozen=True)
class Pass:
    """How a data set is read: rows in order, labels taken out under one of the names, everything else by the forward's names.

    Args:
        dataset: map-style, one split.
        collate: rows -> batch; None: transformers' ``default_data_collator``, of the columns that the forward names.
        batch_size: rows of a batch, >= 1.
        label_names: columns under one of which the labels stand.
        device: where batches go; None: where the model is.

    Raises:
        ValueError: for no rows, a stream, a dict of splits or a batch size below 1.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] | None = None
    batch_size: int = 256
    label_names: Sequence[str] = ("labels", "label")
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r}: expected a whole number of at least 1.")
        if not hasattr(self.dataset, "__len__") or not hasattr(self.dataset, "__getitem__") or isinstance(self.dataset, Mapping):
            kind = type(self.dataset).__name__
            raise ValueError(f"dataset is a {kind}: give one split with a length and rows by number, not a stream or a dict.")
        if len(self.dataset) == 0:
            raise ValueError("dataset is empty (0 rows): give one with samples.")

    def outputs(self, model: nn.Module) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """Yields per batch what the model returned, its logits (B, C) float32 and the given labels (B,), in order.

        Args:
            model: a classifier, in the mode in which it is to be read.

        Raises:
            ValueError: where there are no labels or logits that fit.
        """
        for inputs, labels in self.inputs(model):
            outputs = model(**inputs)
            yield outputs, checked_logits(outputs, model, labels), labels

    def inputs(self, model: nn.Module) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Yields per batch what the model's forward takes of it, on the device, and the given labels (B,), in order.

        Args:
            model: a classifier.

        Raises:
            ValueError: where there are no labels or nothing that the forward takes.
        """
        device = self.device if self.device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
        labelled = {*self.label_names, "labels", "label", "label_ids"}
        names = forward_names(model)

        def of_the_model(rows: list[Any]) -> Any:
            if not isinstance(rows[0], Mapping):
                raise ValueError(f"a row is a {type(rows[0]).__name__}, expected a dict with labels: pass collate.")
            kept = [{k: v for k, v in row.items() if names is None or k in names or k in labelled} for row in rows]
            return default_data_collator(kept)

        loader = DataLoader(self.dataset, self.batch_size, collate_fn=self.collate or of_the_model)
        for batch in loader:
            if not isinstance(batch, Mapping):
                raise ValueError(f"a batch is a {type(batch).__name__}, expected a dict with labels: pass collate.")
            name = next((n for n in self.label_names if n in batch), None)
            if name is None:
                raise ValueError(f"no labels in the batch: expected one of {list(self.label_names)}, got {sorted(batch)}.")
            labels = torch.as_tensor(batch[name])
            rest = {k: v for k, v in batch.items() if k not in labelled}
            taken = {k: v for k, v in rest.items() if names is None or k in names}
            if not taken:
                kind = type(model).__name__
                raise ValueError(f"{kind} takes {sorted(names or ())} but the batch has {sorted(rest)}: rename the columns.")
            yield {k: v.to(device) if isinstance(v, Tensor) else v for k, v in taken.items()}, labels


def checked_logits(outputs: Any, model: nn.Module, labels: Tensor) -> Tensor:
    """Returns the logits of what a model returned, (B, C) float32.

    Args:
        outputs: of a forward.
        model: that returned it.
        labels: (B,), which are checked too.

    Raises:
        ValueError: where there are no logits that fit, or labels outside their classes.
    """
    logits = logits_of(outputs)
    kind = type(model).__name__
    if logits is None or logits.dim() != 2 or len(logits) != len(labels):
        got = "none" if logits is None else str(tuple(logits.shape))
        raise ValueError(f"{kind} returned logits {got} for {len(labels)} samples, expected (N, C): use a classifier.")
    if labels.dim() != 1 or labels.is_floating_point():
        got = f"{tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"labels are {got}, expected one class number each: detectors are for single-label classification.")
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise ValueError(f"label {wrong} is outside 0 to {logits.shape[1] - 1}, the model's classes: mend the labels or the model.")
    return logits.float()
