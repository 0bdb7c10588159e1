"""How far each sample is from a decision boundary: the steps of an unbounded gradient ascent until the prediction flips.

Crafting sec. 4.9.2 and 4.10.1: untargeted-unbounded-gradient-ascent and its targeted form. Points close to the boundary are also
the likeliest label errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from ..attacks.pgd import input_gradient, margin
from ..data import columns
from ..data.fingerprint import fingerprint
from ..data.label_rules import class_targets
from ..data.labels import check_model_names
from ..models.pixel_model import frozen_copy, pixel_model
from ..models.pixel_source import PixelSource
from ..perturbations.norms import find_norm
from ..reporting.resumable import Work
from .path_table import NO_PATH, PathLengths, load_paths

__all__ = ["NO_PATH", "PathLengths", "load_paths", "path_lengths"]


def path_lengths(
    model: nn.Module,
    dataset: datasets.Dataset,
    *,
    target: Any = None,
    step_size: float = 0.01,
    norm: str = "linf",
    max_steps: int = 200,
    clip: bool = True,
    batch_size: int = 256,
    processing_class: Any = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    device: torch.device | str | None = None,
    folder: str | Path | None = None,
) -> PathLengths:
    """Returns the path length of every sample of a data set to the decision boundary of a trained image classifier.

    From each image steps are taken up the loss, in the direction of the norm, without any ball around the image, until the model's
    prediction is another than the label, or is the target. The direction is the cross-entropy's; its value is computed so that
    confident predictions do not lose the gradient to rounding. A progress bar is shown
    (`transformers.utils.logging.disable_progress_bar`).

    Guarantee: the model is left as it was.

    Args:
        model: an image classifier.
        dataset: images and labels; with a ``processing_class`` they are prepared by it, and pixels are counted at the model's size.
        target: None: untargeted; ``cyclic``: the next class; a class number: that class; or a label rule.
        step_size: the length of a step, in [0, 1] pixels.
        norm: a name of `perturbations.norms.NORMS`.
        max_steps: steps after which a sample counts as far.
        clip: whether images stay in [0, 1] (the paper does not say).
        batch_size: images at a time.
        processing_class: the image processor, which tells the normalisation.
        image_mean: the normalisation where there is no processor, with ``image_std``.
        image_std: see ``image_mean``.
        image_column: default the one that holds images.
        label_column: default label or labels.
        device: default the model's.
        folder: finished batches are kept there, and a second call goes on from them.

    Raises:
        ValueError: in one line, for settings out of range, a model of another number of classes than the data set, and a folder of
            other settings, model or data.

    References:
        Crafting sec. 4.10.1.
    """
    if isinstance(step_size, bool) or not isinstance(step_size, int | float) or not 0 < step_size < math.inf:
        raise ValueError(f"step_size={step_size!r} must be above 0, in [0, 1] pixels: give for instance 0.01.")
    for name, value in (("max_steps", max_steps), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number >= 1: give for instance 200.")
    find_norm(norm)
    columns.check_dataset(dataset)
    label_column = columns.label_column(dataset, label_column)
    labels, classes = columns.read_labels(dataset, label_column)
    check_model_names(dataset.with_format(None), model, [label_column])
    pixels = pixel_model(model, processing_class, image_mean, image_std)
    source = PixelSource.of(dataset, pixels, processing_class, image_column)
    device = torch.device(device) if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    copy: Any = frozen_copy(pixels, device).float()
    check_classes(copy, source([0]), classes)
    aim = None if target is None else class_targets(target, classes)
    if aim is not None and aim.max() >= classes:
        raise ValueError(f"target={target!r} has no boundary in a model of {classes} classes: leave target out, or name a class.")
    targets = np.full(len(labels), -1) if aim is None else aim[labels]
    identity = {
        "step_size": step_size, "norm": norm, "max_steps": max_steps, "clip": clip, "batch_size": batch_size,
        "model": fingerprint(copy), "data": source.fingerprint(), "labels": fingerprint(labels, targets),
    }  # fmt: skip
    work = Work(None if folder is None else Path(folder), identity, "path lengths")
    parts = []
    rows = np.arange(len(labels))
    for number, batch in enumerate(work.progress(np.array_split(rows, range(batch_size, len(rows), batch_size)), "paths")):
        part = work.load(str(number))
        if part is None:
            x, y = source(batch.tolist()).to(device), torch.from_numpy(labels[batch]).to(device)
            t = None if aim is None else torch.from_numpy(targets[batch]).to(device)
            part = walk_out(copy, x, y, t, step_size, norm, max_steps, clip)
            work.save(str(number), part)
        parts.append(part)
    steps, start, ended = (torch.cat([p[k].cpu() for p in parts]).numpy() for k in ("steps", "margin", "ended"))
    steps = np.where(targets == labels, NO_PATH, steps)
    names = getattr(dataset.features[label_column], "names", None) or [str(i) for i in range(classes)]
    return PathLengths(steps, start, labels, targets, ended, float(step_size), norm, int(max_steps), tuple(names))


@torch.no_grad()
def walk_out(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    step_size: float,
    norm: str = "linf",
    max_steps: int = 200,
    clip: bool = True,
) -> dict[str, Tensor]:
    """Returns steps, margin at the start and prediction at the end, (B,) each: see `path_lengths`.

    Args:
        model: pixels -> logits (B, K).
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        target: (B,), or None.
        step_size: the length of a step, in [0, 1] pixels.
        norm: a name of `perturbations.norms.NORMS`.
        max_steps: steps after which a sample counts as far.
        clip: whether images stay in [0, 1].
    """
    steps = torch.full_like(y, max_steps + 1)
    start, ended = x.new_zeros(len(x)), torch.zeros_like(y)
    left, image = torch.arange(len(x), device=x.device), x
    rule = find_norm(norm)
    for step in range(max_steps + 1):
        with torch.enable_grad():
            leaf = image.detach().requires_grad_(True)
            logits = model(leaf)
            losses = log_odds(logits, y[left], None if target is None else target[left])
        predicted = logits.detach().argmax(1)
        if step == 0:
            start = -margin(logits.detach(), y) if target is None else margin(logits.detach(), target)
        there = predicted != y[left] if target is None else predicted == target[left]
        ended[left] = predicted
        steps[left[there]] = step
        if step == max_steps or bool(there.all()):
            break
        grad = input_gradient(losses, leaf)
        going = (~there).nonzero().flatten()
        left, image, grad = left[going], image[going], grad[going]
        image = image + rule.direction(grad) * step_size
        image = image.clamp_(0, 1) if clip else image
    return {"steps": steps, "margin": start, "ended": ended}


def log_odds(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Returns minus the log-odds of the label, log sum_{k != y} exp z_k - z_y, or the log-odds of the target, (B,).

    Its gradient has the direction of the cross-entropy's (of minus the target's cross-entropy), and does not underflow.
    """
    index = (y if target is None else target).unsqueeze(1)
    rest = logits.scatter(1, index, -torch.inf).logsumexp(1) - logits.gather(1, index).squeeze(1)
    return rest if target is None else -rest


def check_classes(model: nn.Module, x: Tensor, classes: int) -> None:
    """Raises ``ValueError`` where the model has another number of outputs than there are classes; x (1, C, H, W)."""
    device = next((p.device for p in model.parameters()), x.device)
    with torch.no_grad():
        outputs = model(x.to(device)).shape[1]
    if outputs != classes:
        raise ValueError(f"the model has {outputs} classes but the data set {classes}: give a model trained on the same classes.")
