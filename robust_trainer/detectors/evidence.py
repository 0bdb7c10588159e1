"""What detectors judge by: given labels, features, predicted probabilities and losses of every training sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.labels import check_model_names
from ..models.features import last_linear, watched
from ..models.modes import scoring_mode
from .passes import Pass


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of N samples, in the data set's order; what a detector does not need may be None.

    Args:
        labels: the given ones (N,), int64.
        features: the input of the model's last linear layer, (N, D) float32.
        probs: predicted probabilities (N, C) float32 (confident-joint: out-of-sample ones, or running means over training).
        losses: the cross-entropy of the given labels in nats, (N,) float32 (loss-isolation: early in training).

    Raises:
        ValueError: for shapes that do not fit, labels out of range and numbers that are not finite.
    """

    labels: np.ndarray
    features: np.ndarray | None = None
    probs: np.ndarray | None = None
    losses: np.ndarray | None = None

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0:
            raise ValueError(f"labels are {labels.shape} {labels.dtype}, expected integers (N,) with N of at least 1.")
        if labels.min() < 0:
            raise ValueError(f"labels go down to {labels.min()}, expected classes from 0: drop or mend these rows.")
        object.__setattr__(self, "labels", labels.astype(np.int64))
        for name, axes in (("features", 2), ("probs", 2), ("losses", 1)):
            numbers = getattr(self, name)
            if numbers is None:
                continue
            array = np.asarray(numbers)
            if array.ndim != axes or len(array) != len(labels) or array.size == 0 or array.dtype.kind not in "fiu":
                expected = f"({len(labels)},)" if axes == 1 else f"({len(labels)}, {'D' if name == 'features' else 'C'})"
                raise ValueError(f"{name} are {array.shape} {array.dtype}, expected numbers {expected}, a row for each label.")
            array = array.astype(np.float32)
            broken = ~np.isfinite(array.reshape(len(array), -1)).all(1)
            if broken.any():
                rows = f"{int(broken.sum())} of {len(array)} rows of {name} are not finite, first row {int(broken.argmax())}"
                raise ValueError(f"{rows}: training diverged? Train with a smaller learning rate.")
            object.__setattr__(self, name, array)
        if self.probs is not None and labels.max() >= self.probs.shape[1]:
            raise ValueError(f"labels go up to {labels.max()} but probs have {self.probs.shape[1]} classes: give one column each.")
        if self.probs is not None and (self.probs.min() < -1e-4 or self.probs.max() > 1 + 1e-4):
            raise ValueError(f"probs reach from {self.probs.min():g} to {self.probs.max():g}, expected 0 to 1: apply a softmax.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Returns the number of classes: the columns of probs, without them the largest label and one."""
        return int(self.labels.max()) + 1 if self.probs is None else self.probs.shape[1]


def collect_evidence(
    model: nn.Module,
    dataset: Any,
    *,
    collate: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 256,
    label_names: Sequence[str] = ("labels", "label"),
    device: torch.device | str | None = None,
) -> Evidence:
    """Returns all of the evidence from one pass of a classifier over a data set, in evaluation mode, in its order.

    Features: the input of the last linear layer that ran and is as wide as the logits; where it runs on every token (decoders that
    classify texts), at the token that gives the logits. probs: softmax of the logits. losses: cross-entropy of the given labels.
    A data set that augments at random gives one such view.

    Guarantee: mode, hooks and random state are as before, also after an exception.

    Args:
        model: returns logits, a tuple that they head, or a transformers output; of a `PeerModel` the features are the first
            network's, the logits the mean. Keys of a batch that its forward does not name are left out.
        dataset: map-style, one split.
        collate: rows -> batch; None: transformers' default.
        batch_size: rows of a batch, >= 1.
        label_names: columns under one of which the labels stand.
        device: where batches go; None: where the model is, which is not moved.

    Raises:
        ValueError: for a model without such a layer, for no or unfit labels, and where a number is not finite.
    """
    reading = Pass(dataset, collate, batch_size, label_names, device)
    check_model_names(dataset, model, label_names)
    labels, features, probs, losses = [], [], [], []
    with scoring_mode(model), watched(model) as layers:
        for outputs, logits, batch_labels in reading.outputs(model):
            features.append(last_linear(layers, outputs, logits)[1].cpu())
            probs.append(logits.softmax(-1).cpu())
            losses.append(F.cross_entropy(logits, batch_labels.long().to(logits.device), reduction="none").cpu())
            labels.append(batch_labels.long().cpu())
            layers.linear.clear()
    arrays = [torch.cat(parts).numpy() for parts in (labels, features, probs, losses)]
    return Evidence(*arrays)


def evidence_of(trainer: Any) -> Evidence:
    """Returns `collect_evidence` of a trained `RobustTrainer` on its own training set, with its collator.

    The batch size is ``args.per_device_eval_batch_size``. Where the ledger has mean predictions over the training
    (``ledger_predictions=True``) they are the probs.

    Args:
        trainer: after `train`.

    Raises:
        ValueError: without a training set that has a length.
    """
    if trainer.train_dataset is None:
        raise ValueError("train_dataset=None: give the trainer the data set that is to be judged.")
    evidence = collect_evidence(
        trainer.model,
        trainer.train_dataset,
        collate=trainer._get_collator_with_removed_columns(trainer.data_collator),
        batch_size=trainer.args.per_device_eval_batch_size,
        label_names=tuple(dict.fromkeys([*(trainer.label_names or []), "labels", "label"])),
        device=trainer.args.device,
    )
    means = getattr(trainer.ledger, "mean_probs", None)
    return evidence if means is None else replace(evidence, probs=means.detach().float().cpu().numpy())
