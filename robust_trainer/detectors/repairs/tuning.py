"""Training inside a repair: the plain Trainer on a part of the rows for a part of the time, by a loss of each sample."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from transformers import Trainer, TrainingArguments

from ...models.modes import scoring_mode
from ...models.outputs import logits_of
from ..passes import Pass

#: Logits (B, C) float32 and the labels as the data set has them (B,) -> losses (B,), which may be negative.
SampleLoss = Callable[[Tensor, Tensor], Tensor]


def chosen_rows(data: Any, rows: Sequence[int] | np.ndarray) -> Any:
    """Returns the rows of a data set, in the order given.

    Args:
        data: map-style.
        rows: positions in it.
    """
    places = np.asarray(rows, dtype=np.int64).tolist()
    return data.select(places) if isinstance(data, datasets.Dataset) else Subset(data, places)


def stage_of(args: TrainingArguments, share: float, learning_rate: float = 1.0) -> TrainingArguments:
    """Returns the arguments of one stage of a training: a share of its epochs, or of ``max_steps``; nothing is saved or evaluated.

    Args:
        args: of the whole training.
        share: of it, above 0; at least one step remains.
        learning_rate: times that of the whole.
    """
    stage = copy.copy(args)
    stage.num_train_epochs = args.num_train_epochs * share
    stage.max_steps = max(round(args.max_steps * share), 1) if args.max_steps > 0 else args.max_steps
    stage.learning_rate = args.learning_rate * learning_rate
    stage.save_strategy, stage.eval_strategy, stage.load_best_model_at_end = "no", "no", False
    stage.report_to, stage.push_to_hub = [], False
    return stage


def tune(
    model: nn.Module, args: TrainingArguments, data: Any, collate: Callable[[list[Any]], Any] | None, loss: SampleLoss | None = None
) -> None:
    """Trains the model itself with the plain `Trainer`.

    Args:
        model: a classifier.
        args: of the training.
        data: map-style.
        collate: as the Trainer's ``data_collator``.
        loss: of each sample; their sum over a step is divided by its samples. None: the model's own loss of labels, or the
            cross-entropy where it has none.
    """
    per_sample: SampleLoss = loss or (lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"))

    def mean(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = logits_of(outputs)
        assert logits is not None
        losses = per_sample(logits.float(), labels.long())
        return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch

    labelled = "labels" in inspect.signature(model.forward).parameters
    trainer = Trainer(
        model=model, args=args, train_dataset=data, data_collator=collate,
        compute_loss_func=None if labelled and loss is None else mean,
    )  # fmt: skip
    if not labelled:
        trainer.label_names = ["labels"]  # a module that returns bare logits names none
    trainer.train()


def losses_of(model: nn.Module, data: Any, collate: Callable[[list[Any]], Any] | None, batch_size: int) -> tuple[np.ndarray, int]:
    """Returns each sample's cross-entropy of its given label in evaluation mode, in nats, (N,) float32, and the number of classes.

    Args:
        model: a classifier.
        data: map-style.
        collate: as the Trainer's ``data_collator``.
        batch_size: rows of a batch.
    """
    parts, classes = [], 0
    with scoring_mode(model):
        for _, logits, labels in Pass(data, collate, batch_size).outputs(model):
            parts.append(F.cross_entropy(logits.cpu(), labels.long().cpu(), reduction="none"))
            classes = logits.shape[1]
    return torch.cat(parts).numpy(), classes


class Unlearned(Dataset):
    """Rows to keep and rows to unlearn in one data set; those to unlearn come again and again, and their labels are marked.

    A label y becomes ``y + classes`` where the row is to be unlearned. `ascent` reads it.

    Args:
        data: map-style; rows are dicts.
        keep: positions that are learned.
        unlearn: positions that are unlearned.
        classes: how many there are.
        share: about which share of the entries is to be unlearned, in (0, 1).
        label_names: columns under one of which the labels stand.

    Raises:
        ValueError: where one of the two has no rows.
    """

    def __init__(
        self, data: Any, keep: np.ndarray, unlearn: np.ndarray, classes: int, share: float = 0.2,
        label_names: Sequence[str] = ("labels", "label"),
    ):  # fmt: skip
        if len(keep) == 0 or len(unlearn) == 0:
            raise ValueError(f"{len(unlearn)} rows to unlearn and {len(keep)} to keep: expected at least 1 of each.")
        self.data, self.classes, self.names = data, classes, tuple(label_names)
        copies = max(round(share / (1 - share) * len(keep) / len(unlearn)), 1)
        self.rows = np.concatenate([keep, np.tile(unlearn, copies)])
        self.kept = len(keep)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = dict(self.data[int(self.rows[i])])
        if i >= self.kept:
            name = next(n for n in self.names if n in row)
            row[name] = row[name] + self.classes
        return row

    def ascent(self, ceiling: float) -> SampleLoss:
        """Returns the loss whose mean over the entries is E_keep[l] - E_unlearn[min(l, ceiling)], l the cross-entropy in nats.

        Args:
            ceiling: above it a sample counts as unlearned and is left alone; inf: the paper's unbounded ascent.
        """
        up, down = len(self) / (len(self) - self.kept), len(self) / self.kept

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            losses = F.cross_entropy(logits, labels % self.classes, reduction="none")
            return torch.where(labels >= self.classes, -up * losses.clamp_max(ceiling), down * losses)

        return loss
