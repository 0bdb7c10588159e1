"""Forward passes: what a model returned, read as a `ForwardOutput`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..problems import Problem
from ..types import ForwardOutput


def logits_of(outputs: Any) -> Tensor | None:
    """Returns the logits of a model's output: a tensor, a tuple's first entry, or a mapping's ``logits``; None without any.

    Args:
        outputs: what a model returned.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict):
        return outputs.get("logits")
    if isinstance(outputs, tuple | list) and outputs:
        return outputs[0]
    return getattr(outputs, "logits", None)


def image_logits(outputs: Any, model: nn.Module, images: int) -> Tensor:
    """Returns the logits (B, K) of an image classifier's output, float32.

    Args:
        outputs: what it returned.
        model: for the message.
        images: B.

    Raises:
        ValueError: where it has none of that shape.
    """
    logits = logits_of(outputs)
    if logits is None or logits.dim() != 2 or len(logits) != images:
        got = "none" if logits is None else str(tuple(logits.shape))
        raise ValueError(
            f"{type(model).__name__} returned logits {got} for {images} images, expected ({images}, K): "
            "use an image classification model."
        )
    return logits.float()


def read_output(outputs: Any, targets: Tensor, index: Tensor | None, problem: Problem, method: str) -> ForwardOutput:
    """Returns the forward pass with its targets.

    Args:
        outputs: what the model returned.
        targets: class labels (B,) or numbers (B, K).
        index: the samples' positions (B,), None where unknown.
        problem: what kind of problem the samples pose.
        method: the method's name, for the message.

    Raises:
        ValueError: where the outputs do not fit the targets.
    """
    return ForwardOutput(problem.read(outputs, logits_of(outputs), targets, method), targets, index, outputs, problem)
