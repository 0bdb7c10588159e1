"""What a user's data sets are checked for before they are trained on or evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy

from ..data.class_names import names_of
from ..data.labels import check_label_column
from ..ledger.fingerprint import label_column
from ..models.modes import preserve_rng
from ..models.peers import PeerModel
from ..models.problem import number_of_classes, problem_of
from ..problems import Problem


def number_of_rows(data: Any) -> int | None:
    """Returns the rows of a training set, None for a streaming one.

    Args:
        data: the Trainer's ``train_dataset``.

    Raises:
        ValueError: for one without rows, and for several splits.
    """
    size = None if data is None or isinstance(data, IterableDataset) or not hasattr(data, "__len__") else len(data)
    if size == 0:
        raise ValueError("train_dataset is empty (0 rows): nothing to train on.")
    if isinstance(data, dict):
        kind = type(data).__name__
        raise ValueError(f"train_dataset is a {kind} of {list(data)}: pass one split, train_dataset=data['train'].")
    return size


def validate_datasets(trainer: Trainer, problem: Problem, classes: int | None, model: nn.Module) -> None:
    """Checks the label columns of the training set and of the sets that are evaluated while it trains.

    Args:
        trainer: with its arguments and data.
        problem: what kind of problem the samples pose.
        classes: the model's number of classes, None where unknown.
        model: unwrapped.

    Raises:
        ValueError: as `data.labels.check_label_column`.
    """
    validate_dataset(trainer, trainer.train_dataset, "train_dataset", problem, classes, model)
    evaluated: Any = trainer.eval_dataset if trainer.args.eval_strategy != IntervalStrategy.NO else None
    sets = evaluated if isinstance(evaluated, Mapping) else {"": evaluated}
    for name, data in sets.items():
        validate_dataset(trainer, data, f"eval_dataset[{name!r}]" if name else "eval_dataset", problem, classes, model)


def validate_dataset(trainer: Trainer, data: Any, role: str, problem: Problem, classes: int | None, model: nn.Module) -> None:
    """Checks the label column of one data set; what is no `datasets.Dataset` is checked batch by batch.

    Args:
        trainer: with its arguments and data.
        data: the data set.
        role: what it is to the Trainer, as messages begin.
        problem: what kind of problem the samples pose.
        classes: the model's number of classes, None where unknown.
        model: unwrapped.

    Raises:
        ValueError: as `data.labels.check_label_column`.
    """
    if not isinstance(data, datasets.Dataset) or not len(data):
        return

    def made(row: int) -> Mapping[str, Any] | None:
        rows = trainer._remove_unused_columns(data, description=role)
        try:
            with preserve_rng(trainer.args.device):
                batch = trainer.data_collator([rows[row]])
        except (ValueError, TypeError, RuntimeError, KeyError, OSError):  # told where it is met, with all rows of its batch
            return None
        return batch if isinstance(batch, Mapping) else None

    config = getattr(model.peers[0] if isinstance(model, PeerModel) else model, "config", None)
    names = names_of(config) if config is not None else None
    if names is None and role != "train_dataset" and isinstance(trainer.train_dataset, datasets.Dataset):
        label = label_column(trainer.train_dataset, trainer.label_names)
        names = getattr(trainer.train_dataset.features.get(label), "names", None)
    check_label_column(
        data, role, trainer.label_names, classes, problem, made, names, columns_removed=trainer.args.remove_unused_columns
    )


def validate_evaluation(trainer: Trainer, loader: Any, prefix: str, model: nn.Module) -> None:
    """Checks the label column of what is evaluated, before the first batch.

    Args:
        trainer: with its arguments and data.
        loader: the evaluation's.
        prefix: of the metrics, which tells what is evaluated.
        model: unwrapped.

    Raises:
        ValueError: as `data.labels.check_label_column`.
    """
    data, problem = getattr(loader, "dataset", None), problem_of(model, getattr(trainer.args, "problem_type", None))
    role = "the data set to evaluate" if prefix == "eval" else f"the data set of {prefix!r}"
    try:
        validate_dataset(trainer, data, role, problem, number_of_classes(model), model)
    except ValueError as error:
        if prefix == "eval":
            raise
        raise ValueError(f"{str(error).rstrip('.')}, or remove the column, to predict without labels.") from error
