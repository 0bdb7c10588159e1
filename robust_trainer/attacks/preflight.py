"""What makes robustness figures untrustworthy, looked for before and after the attacks; each warning names a page of the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .target import Target

_PAGE = "see docs/guides/robustness.md#"
#: Share of all samples from which a weaker attack's wins over the stronger ones are told (AutoAttack's own check takes the same).
TOLD_FROM = 0.002


def check_inputs(inputs: Any, name: str) -> None:
    """Raises a one-line ``ValueError`` where a batch's main input is no float images (B, C, H, W)."""
    if not isinstance(inputs, Tensor):
        raise ValueError(f"'{name}' is {type(inputs).__name__}, expected a float tensor (B, C, H, W): let a transform make it.")
    kind = f"'{name}' is {inputs.dtype} of shape {tuple(inputs.shape)}"
    if not inputs.is_floating_point() and inputs.dim() < 3:
        raise ValueError(
            f"{kind}, token ids it seems, and pixels are attacked here: give an image model; for robust text classifiers train on "
            "perturbed inputs_embeds."
        )
    if not inputs.is_floating_point():
        raise ValueError(f"{kind}, expected floats: let the image processor rescale and normalise the images.")
    if inputs.dim() != 4:
        raise ValueError(f"{kind}, expected images (B, C, H, W): other inputs than images cannot be attacked.")


def before(target: Target, x: Tensor, y: Tensor) -> list[str]:
    """Warnings about the model on images x (B, C, H, W) with labels y (B,): probabilities, zero gradients, randomised output.

    Gradients are those of the cross-entropy, exactly zero for all pixels of a sample; probabilities are rows in [0, 1] that sum to
    1 within 1e-3; randomised are outputs of two forwards that differ by more than 1e-4 of the largest logit.
    """
    warnings = []
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        logits = target(leaf)
        (grad,) = _gradient(logits, y, leaf)
    z, again = logits.detach(), target.judge(x)
    first = target.judge(x)
    if bool((z >= 0).all() and (z <= 1).all() and ((z.sum(1) - 1).abs() < 1e-3).all()):
        warnings.append(
            "the model seems to return probabilities, not logits (rows in [0, 1] that sum to 1): gradients vanish where it is "
            f"sure, so attacks look weaker than they are; return the values before the softmax ({_PAGE}probabilities)"
        )
    zero = grad.flatten(1).eq(0).all(1)
    if bool(zero.any()):
        warnings.append(
            f"the gradient is exactly zero for {int(zero.sum())} of {len(x)} samples: gradient attacks cannot move them; "
            f"trust square and fab more ({_PAGE}zero-gradients)"
        )
    if float((first - again).abs().max()) > 1e-4 * max(1.0, float(first.abs().max())):
        warnings.append(
            "two forwards of the same images differ: the output is randomised, and one draw decides what counts as broken; "
            f"switch the randomness off ({_PAGE}randomised-output)"
        )
    return warnings


def _gradient(logits: Tensor, y: Tensor, leaf: Tensor) -> tuple[Tensor]:
    if not logits.requires_grad:
        return (torch.zeros_like(leaf),)
    loss = nn.functional.cross_entropy(logits, y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    return (torch.zeros_like(leaf) if grad is None else grad,)


def after(broken_by: Mapping[str, np.ndarray], clean: np.ndarray) -> list[str]:
    """Warnings about figures that contradict each other: an attack without gradients, or of one step, beats the stronger ones.

    broken_by: member attack's name -> whether it broke the sample (N,), False where it did not visit it; clean (N,): right before.
    """
    warnings, n = [], max(1, len(clean))
    others = [broken for name, broken in broken_by.items() if name != "square"]
    if "square" in broken_by and others:
        only = int((broken_by["square"] & ~np.any(others, axis=0)).sum())
        if only > TOLD_FROM * n:
            warnings.append(
                f"square, which sees no gradient, broke {only} of {n} samples that every gradient attack left: the gradients may "
                f"be masked, and the true robustness lower still ({_PAGE}masked-gradients)"
            )
    steps = {name: broken for name, broken in broken_by.items() if name.startswith("pgd-")}
    if "fgsm" in broken_by and steps:
        best = max(int(broken.sum()) for broken in steps.values())
        more = int(broken_by["fgsm"].sum()) - best
        if more > TOLD_FROM * n:
            warnings.append(
                f"fgsm broke {more} of {n} samples more than {' and '.join(steps)}: one step beats many only where gradients "
                f"mislead ({_PAGE}masked-gradients)"
            )
    return warnings


def merge(broken: Sequence[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Member attack's name -> whether it broke the sample in any of its appearances (N,)."""
    out: dict[str, np.ndarray] = {}
    for name, rows in broken:
        out[name] = out[name] | rows if name in out else rows
    return out
