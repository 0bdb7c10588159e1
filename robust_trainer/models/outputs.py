"""Forward passes: what a model returned, read as a `ForwardOutput`; and a forward that leaves no trace in the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..types import SINGLE, UNSUPERVISED, ForwardOutput


def logits_of(outputs: Any) -> Tensor | None:
    """The logits of a model's output: a tensor, a tuple's first entry, or a mapping's ``logits``."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict):
        return outputs.get("logits")
    if isinstance(outputs, tuple | list) and outputs:
        return outputs[0]
    return getattr(outputs, "logits", None)


def image_logits(outputs: Any, model: nn.Module, images: int) -> Tensor:
    """The logits (B, K) float32 of an image classifier's output. Raises a one-line ``ValueError`` where it has none."""
    logits = logits_of(outputs)
    if logits is None or logits.dim() != 2 or len(logits) != images:
        got = "none" if logits is None else str(tuple(logits.shape))
        raise ValueError(
            f"{type(model).__name__} returned logits {got} for {images} images, expected ({images}, K): "
            "use an image classification model."
        )
    return logits.float()


def read_view(outputs: Any, targets: Tensor, index: Tensor | None, problem: str, method: str) -> ForwardOutput:
    """The forward pass with its targets, (B,) class labels or (B, K) floats; peers' logits (B, M, K) become rows (M, B, K).

    Raises a one-line ``ValueError`` where the model's output is no (B, K) logits, or K is not the targets' K.
    """
    if problem == UNSUPERVISED:
        both = outputs.get("peer_losses") if isinstance(outputs, dict) else None  # (B, M, 2)
        if both is None:
            both = losses_and_scores(outputs, len(targets), f"method '{method}'").unsqueeze(1)
        return ForwardOutput(both.transpose(0, 1), targets, index, outputs, problem)
    stacked = outputs.get("peer_logits") if isinstance(outputs, dict) else None
    logits = logits_of(outputs) if stacked is None else stacked.transpose(0, 1)
    single = problem == SINGLE
    if logits is not None and stacked is None:
        if not single and logits.dim() == 1:
            logits = logits.unsqueeze(1)  # one output, squeezed
        logits = logits.unsqueeze(0)
    size = len(targets)
    if logits is None or logits.dim() != 3 or logits.shape[1] != size:
        got = "none" if logits is None else str(tuple(logits.shape[1:]))
        kind = "classification logits of shape ({}, C)" if single else "outputs of shape ({}, K)"
        raise ValueError(
            f"method '{method}' needs {kind.format(size)}, got {got}: use a sequence or image classification model, or method=None."
        )
    if not single and logits.shape[2] != targets.shape[1]:
        raise ValueError(
            f"the model has {logits.shape[2]} outputs but each sample {targets.shape[1]} targets (problem_type={problem!r}): "
            f"pass num_labels={targets.shape[1]} to the model."
        )
    return ForwardOutput(logits, targets, index, outputs, problem)


def losses_and_scores(outputs: Any, size: int, told: str) -> Tensor:
    """(B, 2), each sample's ``losses`` and ``scores`` in one network's output, the losses twice where it has no scores.

    told: who needs them. Raises a one-line ``ValueError`` where they are not of shape (size,).
    """
    found = outputs if isinstance(outputs, dict) else {}
    losses: Any = found.get("losses")
    scores: Any = losses if found.get("scores") is None else found["scores"]
    for one, many, value in (("loss", "losses", losses), ("score", "scores", scores)):
        if value is None or value.shape != (size,):
            got = "none" if value is None else str(tuple(value.shape))
            raise ValueError(
                f"{told} needs one {one} per sample of shape ({size},), the model's {many} are {got}: return an AnomalyOutput, "
                "see docs/guides/anomaly.md."
            )
    return torch.stack([losses, scores.detach()], 1)
