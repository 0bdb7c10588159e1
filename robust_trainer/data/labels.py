"""The labels of a batch, checked before a step uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..types import MULTI, SINGLE


def check_labels(
    batch: Mapping[str, Any],
    names: Sequence[str],
    classes: int | None,
    index: Sequence[int],
    example: Any = None,
    problem: str = SINGLE,
) -> None:
    """Raises a one-line ``ValueError`` where the batch's labels are missing, of the wrong kind or out of range."""
    name = next((n for n in names if n in batch), None)
    if name is None:
        text = next((n for n in names if isinstance(example, Mapping) and isinstance(example.get(n), str)), None)
        if text is not None:
            raise ValueError(
                f"'{text}' holds strings (row {index[0]}: {example[text]!r}), expected class numbers: "
                f"use dataset.class_encode_column('{text}')."
            )
        raise ValueError(
            f"no labels in the batch: expected one of {list(names)}, got {list(batch)}; rename the label column or set label_names."
        )
    labels = batch[name]
    if problem != SINGLE:
        return _check_targets(name, labels, classes, index, problem)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1:
        kind = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(
            f"'{name}' is {kind}, expected integer class labels of shape (B,): robust methods need one class number per sample; "
            "encode names with dataset.class_encode_column(...), one-hot rows with argmax; for numbers to predict or several "
            "labels a sample set problem_type='regression' or 'multi_label_classification'."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        value = low if low < 0 else high
        row = index[int((labels == value).nonzero()[0])]
        upper = "C" if classes is None else classes
        raise ValueError(f"'{name}' is {value} in training row {row}, expected [0, {upper}): repair the label or num_labels.")


def _check_targets(name: str, targets: Any, outputs: int | None, index: Sequence[int], problem: str) -> None:
    """Targets of regression, (B,) or (B, K) finite numbers, or of multi-label classification, (B, K) in [0, 1]."""
    kind = f"{targets.dtype} of shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
    multi = problem == MULTI
    width = targets.shape[1] if isinstance(targets, Tensor) and targets.dim() == 2 else 1
    if not multi and isinstance(targets, Tensor) and not targets.is_floating_point():
        raise ValueError(
            f"'{name}' is {kind}, class numbers it seems, but problem_type='regression': cast the column to float, or set "
            "problem_type='single_label_classification'."
        )
    if not isinstance(targets, Tensor) or targets.dim() not in ((2,) if multi else (1, 2)) or width != (outputs or width):
        raise ValueError(
            f"'{name}' is {kind}, expected {'numbers in [0, 1]' if multi else 'numbers'} of shape (B, {outputs or 'K'}) for "
            f"problem_type={problem!r}: repair the labels, num_labels or problem_type."
        )
    wrong = ~torch.isfinite(targets.float()) | ((targets < 0) | (targets > 1) if multi else False)
    bad = [index[i] for i in wrong.reshape(len(index), -1).any(1).nonzero().flatten().tolist()]
    if bad:
        told = "outside [0, 1]" if multi else "NaN or infinite"
        raise ValueError(f"'{name}' is {told} in training rows {bad[:5]}: repair or remove these rows.")
