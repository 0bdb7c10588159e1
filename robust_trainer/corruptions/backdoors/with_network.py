"""Backdoors for which the attacker has a trained network: poisoned rows are perturbed by it before they get the trigger.

A new one is a function ``(task, **settings) -> delta`` like those of the availability poisons and its row in `NETWORK_BACKDOORS`;
one that instead trains what paints the trigger (an encoder, say) returns a picklable `PixelTrigger`, which `poison` takes as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...attacks.base import Draws
from ...attacks.pgd import PGD
from ...data import columns
from ...data.fingerprint import fingerprint
from ...data.label_rules import BackdoorRule, CleanLabel, LabelRule, backdoor_labels
from ...data.pixels import image_column as find_image_column
from ...data.pixels import read_levels, to_levels, to_pixels
from ...data.randomness import key_limits
from ...models.pixel_model import frozen_copy, pixel_model
from ...reporting.resumable import Work
from ..poisons.parts import sample_wise, source_model
from ..poisons.poison_images import check_classes
from ..poisons.table import TRAINED, Poison, check_radius, check_settings, make_ball
from ..poisons.task import Craft, Task
from .patches import PatchesTrigger
from .pixel_trigger import PixelTrigger, trigger_at
from .poisoning import eligible_classes, poison, within_limits


def craft_label_consistent(task: Task, steps: int = 100, step_share: float = 0.1) -> Tensor:
    """Returns delta (N, C, H, W) float32 in the ball, in [0, 1] pixels: each image made hard to recognise for a trained network.

    PGD away from the label, CE(f(x + delta), y) to be maximised, from a random start, to the last of its steps. So a network that
    is trained on the image with its right label learns the trigger instead, which is easier.

    Args:
        task: the images, their labels, the ball and the trained model.
        steps: gradient steps, >= 1.
        step_share: the length of a step as a share of eps, > 0.

    Raises:
        ValueError: for no model and settings out of range.

    References:
        Turner, Tsipras and Madry 2019 (Label-consistent backdoor attacks), whose networks are trained adversarially: a
        stronger attack. Steps and their length are this project's.
    """
    if not step_share > 0:
        raise ValueError(f"label-consistent: step_share={step_share!r} must be above 0, a share of eps: leave it out.")
    attack = PGD(task.ball.eps, task.ball.norm, steps, step_share * task.ball.eps, early_stop=False)
    with source_model(task, "label-consistent") as model:

        def craft(x: Tensor, y: Tensor, positions: Tensor) -> Tensor:
            return attack(model, x, y, Draws(task.seed, positions.tolist(), task.device))

        return sample_wise(task, "label-consistent", craft)


@dataclass(frozen=True)
class NetworkBackdoor(Poison):
    """A row of `NETWORK_BACKDOORS`: a row of `POISONS`, and the trigger and the label rule that its paper goes on with.

    Attributes:
        trigger: makes the trigger.
        label_rule: its paper's.
        eps: the usual radius in the l_inf norm.
    """

    trigger: Callable[[], PixelTrigger] = PatchesTrigger
    label_rule: str | LabelRule | BackdoorRule = CleanLabel()
    eps: str = "8/255"

    def radius(self, norm: str, eps: float | str | None) -> float | str | None:
        """Returns the radius that is given, else the attack's own in the l_inf norm, else None for the norm's usual one.

        Args:
            norm: of the perturbation.
            eps: that was given.
        """
        return self.eps if eps is None and norm == "linf" else eps

    def craft(self) -> Craft:
        """Returns the function that perturbs the rows: ``(task, **settings) -> delta`` (N, C, H, W)."""
        return getattr(import_module(f".{self.module}", __package__), self.function)


#: Backdoors that need a trained network, by name.
NETWORK_BACKDOORS: dict[str, NetworkBackdoor] = {
    row.name: row
    for row in (
        NetworkBackdoor(
            "label-consistent", "images of the target class made hard to recognise, then four patches", "Turner et al. 2019",
            TRAINED, "with_network", "craft_label_consistent", eps="16/255",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class PerturbedTrigger:
    """A trigger that in training rows of a table is put on another image than the data set's; image -> image elsewhere.

    Args:
        trigger: that is put on all of them.
        levels: the images (n, H, W, C) uint8 of the rows.
        rows: numbers of the rows (n,), ascending.
    """

    trigger: Any
    levels: np.ndarray
    rows: np.ndarray

    @property
    def cover_share(self) -> float:
        """Cover rows for each poisoned row, as the trigger has them."""
        return getattr(self.trigger, "cover_share", 0.0)

    def at(self, row: int, *, training: bool, cover: bool = False) -> Callable[[Any], Any]:
        """Returns the trigger of one row, as `PixelTrigger.at`."""
        trigger = trigger_at(self.trigger, row, training=training, cover=cover)
        place = int(np.searchsorted(self.rows, row))
        if not training or cover or place == len(self.rows) or self.rows[place] != row:
            return trigger
        return _Replaced(trigger, self.levels[place])

    def __call__(self, image: Any) -> Any:
        """Returns the image with the trigger alone."""
        return self.trigger(image)


@dataclass(frozen=True, eq=False)
class _Replaced:
    trigger: Any
    levels: np.ndarray

    def __call__(self, image: Image.Image) -> Any:
        levels = self.levels[..., 0] if self.levels.shape[2] == 1 else self.levels
        picture = Image.fromarray(levels)
        return self.trigger(picture if picture.mode == image.mode else picture.convert(image.mode))


def poison_with_network(
    dataset: datasets.Dataset,
    attack: str,
    model: nn.Module,
    *,
    rate: float,
    label_rule: str | LabelRule | BackdoorRule | None = None,
    trigger: PixelTrigger | None = None,
    norm: str = "linf",
    eps: float | str | None = None,
    processing_class: Any = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    num_classes: int | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    batch_size: int = 128,
    folder: str | Path | None = None,
    **settings: Any,
) -> datasets.Dataset:
    """Returns the data set with round(rate * N) rows perturbed by a trained network's gradients and then given the trigger.

    Columns, counts and the choice of rows are those of `poison` with the same rate, rule and seed; the test set is `trigger_all`
    with the same trigger, since at test time images are not perturbed.

    Args:
        dataset: images of one size and integer labels.
        attack: a name of `NETWORK_BACKDOORS`.
        model: an image classifier trained on such images, which stays as it is.
        rate: fraction of all samples in [0, 1).
        label_rule: as of `poison`; default the attack's own (label-consistent: clean-label, class 0).
        trigger: default the attack's own (label-consistent: checkerboards in four corners).
        norm: of the perturbation: linf, l2 or l1.
        eps: its radius in [0, 1] pixels, a number or a text such as "8/255"; default the attack's own.
        processing_class: the image processor, which tells the normalisation.
        image_mean: the normalisation where there is no processor, with ``image_std``.
        image_std: see ``image_mean``.
        image_column: default the one that holds images.
        label_column: default label or labels.
        num_classes: where the label feature does not tell.
        device: default the model's.
        seed: of the choice and of everything random.
        batch_size: images at a time.
        folder: keeps finished parts, so that a stopped call goes on.
        settings: of the crafting function.

    Raises:
        ValueError: in one line, for settings, models and columns that do not fit.
    """
    if attack not in NETWORK_BACKDOORS:
        raise ValueError(f"attack={attack!r} is unknown: choose one of {', '.join(NETWORK_BACKDOORS)}.")
    row = NETWORK_BACKDOORS[attack]
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={str(model):.60}, but attack={attack!r} needs a trained network: pass an image classifier.")
    ball = make_ball(norm, row.radius(norm, eps))
    columns.check_dataset(dataset)
    image_column = find_image_column(dataset, image_column)
    label_column = columns.label_column(dataset, label_column)
    labels, classes = columns.read_labels(dataset, label_column, num_classes)
    craft = row.craft()
    settings = {**row.settings, **settings}
    check_settings(row, craft, settings)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1: give for instance 128.")
    rule = row.label_rule if label_rule is None else label_rule
    limits = key_limits(labels, eligible_classes(backdoor_labels(rule, classes)), rate, seed)
    rows = np.flatnonzero(within_limits(limits, labels, seed))
    trigger = row.trigger() if trigger is None else trigger
    given: dict[str, Any] = {
        "rate": rate, "label_rule": rule, "seed": seed, "image_column": image_column, "label_column": label_column,
        "num_classes": num_classes,
    }  # fmt: skip
    if not len(rows):
        return poison(dataset, trigger=trigger, **given)
    network = pixel_model(model, processing_class, image_mean, image_std)
    first = next(iter(network.parameters()), None)
    device = torch.device(device if device is not None else first.device if first is not None else "cpu")
    levels = read_levels(dataset.select(rows), image_column)
    check_radius(ball, int(np.prod(levels.shape[1:])))
    task = Task(to_pixels(levels), torch.from_numpy(labels[rows]), classes, ball, frozen_copy(network, device), None, device,
                batch_size, seed)  # fmt: skip
    check_classes(task.model, task)
    if folder is not None:
        identity = {"attack": attack, "norm": norm, "eps": ball.eps, "seed": seed, "batch_size": batch_size, "settings": settings}
        identity |= {"data": fingerprint(levels, labels[rows]), "model": fingerprint(str(network), task.model)}
        task.work = Work(Path(folder), identity)
    delta = craft(task, **settings)
    if not bool(torch.isfinite(delta).all()):
        raise ValueError(f"attack={attack!r} became NaN or infinite, as the model's gradients: retrain the model.")
    return poison(dataset, trigger=PerturbedTrigger(trigger, to_levels(task.images + delta), rows), **given)
