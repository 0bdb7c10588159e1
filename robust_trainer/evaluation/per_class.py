"""Adversarial accuracy class by class, under untargeted PGD and under PGD towards the label that a class's flips were given.

Crafting algorithm 1 and sec. 4.6.1, 4.10.1: where flips went from class s to class t, the attack from s to t shows what they did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..attacks.autoattack import read_eps
from ..attacks.pgd import input_gradient
from ..data import columns
from ..data.label_rules import class_targets
from ..data.labels import check_model_names
from ..models.pixel_model import frozen_copy, pixel_model
from ..models.pixel_source import PixelSource
from ..perturbations.region import Region
from .boundary_paths import log_odds


@dataclass(frozen=True, eq=False)
class ClassRobustness:
    """What `class_robustness` found, per class (C,), in the order of the class numbers; accuracies in [0, 1], NaN without samples.

    A sample that is wrong without attack is wrong under the untargeted one, and broken under the targeted one where its
    prediction is the target.

    Attributes:
        n: samples.
        clean: share predicted right.
        untargeted: share that is right under untargeted PGD.
        targeted: share that PGD towards ``target`` does not bring there; NaN where the target is the class itself.
        target: the class that each class is attacked towards, (C,).
        eps: the radius, in [0, 1] pixels.
        norm: of the ball.
        class_names: (C,).
    """

    n: np.ndarray
    clean: np.ndarray
    untargeted: np.ndarray
    targeted: np.ndarray
    target: np.ndarray
    eps: float
    norm: str
    class_names: tuple[str, ...]

    def overall(self, figure: str = "untargeted") -> float:
        """Returns the share over all samples of the classes that have the figure (clean, untargeted, targeted)."""
        values = getattr(self, figure)
        known = ~np.isnan(values)
        return float((values[known] * self.n[known]).sum() / self.n[known].sum())

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures for JSON, one entry per class; None where there is no figure."""
        names = ("clean", "untargeted", "targeted")
        shares = {k: [None if np.isnan(v) else float(v) for v in getattr(self, k)] for k in names}
        whole = {f"{k}_overall": self.overall(k) for k in names}
        return {
            "classes": list(self.class_names), "n": self.n.tolist(), "target": self.target.tolist(), "eps": self.eps,
            "norm": self.norm, **shares, **whole,
        }  # fmt: skip

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Returns the heading and the rows of the table, in percent."""
        heading = ["class", "n", "clean %", "untargeted %", "target", "targeted %"]
        shown = lambda v: "-" if np.isnan(v) else f"{100 * v:.2f}"  # noqa: E731
        aim = [self.class_names[t] if t < len(self.class_names) else str(t) for t in self.target]
        body = [
            [name, str(n), shown(c), shown(u), t, shown(v)]
            for name, n, c, u, t, v in zip(self.class_names, self.n, self.clean, self.untargeted, aim, self.targeted)
        ]
        clean, untargeted, targeted = (shown(self.overall(figure)) for figure in ("clean", "untargeted", "targeted"))
        return heading, [*body, ["all", str(self.n.sum()), clean, untargeted, "", targeted]]


def class_robustness(
    model: nn.Module,
    dataset: datasets.Dataset,
    eps: float | str,
    *,
    target: Any = "cyclic",
    norm: str = "linf",
    steps: int = 40,
    step_size: float | None = None,
    batch_size: int = 256,
    processing_class: Any = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    device: torch.device | str | None = None,
) -> ClassRobustness:
    """Returns clean, untargeted and targeted accuracy of an image classifier for each class of a data set.

    PGD without a random start, clipped to [0, 1]; a sample is broken by any iterate. The direction is the cross-entropy's.

    Args:
        model: an image classifier.
        dataset: images and labels, as in `path_lengths`.
        eps: radius in [0, 1] pixels, a number or a text such as 8/255.
        target: what each class is attacked towards, as in `class_targets`; ``extra`` needs a model with one output more than the
            data set has classes.
        norm: a name of `perturbations.norms.NORMS`.
        steps: gradient steps.
        step_size: in [0, 1] pixels; default 2.5 eps / steps.
        batch_size: images at a time.
        processing_class: the image processor, which tells the normalisation.
        image_mean: the normalisation where there is no processor, with ``image_std``.
        image_std: see ``image_mean``.
        image_column: default the one that holds images.
        label_column: default label or labels.
        device: default the model's.

    Raises:
        ValueError: in one line, for settings out of range, and for a model whose number of classes does not fit.

    References:
        Crafting sec. 4.6.1 and 4.10.1.
    """
    radius = read_eps(eps, norm)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} must be a whole number >= 1: give for instance 40.")
    columns.check_dataset(dataset)
    label_column = columns.label_column(dataset, label_column)
    labels, classes = columns.read_labels(dataset, label_column)
    check_model_names(dataset.with_format(None), model, [label_column])
    aim = class_targets(target, classes)
    pixels = pixel_model(model, processing_class, image_mean, image_std)
    source = PixelSource.of(dataset, pixels, processing_class, image_column)
    place = torch.device(device) if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    copy: Any = frozen_copy(pixels, place).float()
    with torch.no_grad():
        outputs = copy(source([0]).to(place)).shape[1]
    if outputs not in (classes, classes + 1) or (outputs == classes and aim.max() == classes):
        room = " and one more for the extra class" if aim.max() == classes else ""
        raise ValueError(f"the model has {outputs} classes but the data set {classes}{room}: give a model that fits.")
    size = 2.5 * radius / steps if step_size is None else step_size
    clean, free, aimed = (np.zeros(len(labels), dtype=bool) for _ in range(3))
    for part in logging.tqdm(np.array_split(np.arange(len(labels)), range(batch_size, len(labels), batch_size)), desc="PGD"):
        x, y = source(part.tolist()).to(place), torch.from_numpy(labels[part]).to(place)
        t = torch.from_numpy(aim[labels[part]]).to(place)
        with torch.no_grad():
            clean[part] = (copy(x).argmax(1) == y).cpu().numpy()
        free[part] = ~broken(copy, x, y, None, radius, norm, steps, size).cpu().numpy()
        aimed[part] = ~broken(copy, x, y, t, radius, norm, steps, size).cpu().numpy()
    count = np.bincount(labels, minlength=classes)
    share = lambda right: np.where(count > 0, np.bincount(labels, right, classes) / np.maximum(count, 1), np.nan)  # noqa: E731
    names = getattr(dataset.features[label_column], "names", None) or [str(i) for i in range(classes)]
    targeted = np.where(aim == np.arange(classes), np.nan, share(aimed))
    return ClassRobustness(count, share(clean), share(free), targeted, aim, radius, norm, tuple(names))


def broken(model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, eps: float, norm: str, steps: int, size: float) -> Tensor:
    """Returns whether PGD finds a wrong prediction, or the ``target``, (B,).

    Args:
        model: pixels -> logits (B, K).
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        target: (B,), or None.
        eps: the radius, in [0, 1] pixels.
        norm: a name of `perturbations.norms.NORMS`.
        steps: gradient steps.
        size: the length of a step, in [0, 1] pixels.
    """
    out = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    left, image, within = torch.arange(len(x), device=x.device), x, Region(norm, eps, x)
    for step in range(steps + 1):
        with torch.enable_grad():
            leaf = image.detach().requires_grad_(True)
            logits = model(leaf)
            losses = log_odds(logits, y, target)
        predicted = logits.detach().argmax(1)
        there = predicted != y if target is None else predicted == target
        out[left[there]] = True
        if step == steps or bool(there.all()):
            break
        grad = input_gradient(losses, leaf)
        if bool(there.any()):
            going = (~there).nonzero().flatten()
            left, image, grad, y, within = left[going], image[going], grad[going], y[going], within.only(going)
            target = None if target is None else target[going]
        image = within.step(image, grad, size)
    return out
