"""Backdoors for which the attacker needs a network: to perturb poisoned rows before they get a trigger, or to train the trigger.

A new one is its row in `NETWORK_BACKDOORS` and a function ``(task, **settings)`` like those of the availability poisons, which
returns delta, the perturbation of the poisoned rows, or a `TrainedTrigger`.
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
from ...data.label_rules import AllToOne, BackdoorRule, CleanLabel, LabelRule, backdoor_labels
from ...data.pixels import image_column as find_image_column
from ...data.pixels import read_levels, to_levels, to_pixels
from ...data.randomness import key_limits
from ...models.pixel_model import frozen_copy, pixel_model
from ...perturbations.norms import Ball
from ...reporting.resumable import Work
from ..poisons.parts import sample_wise, source_model
from ..poisons.poison_images import check_classes
from ..poisons.table import NONE, TRAINED, Poison, check_radius, check_settings, make_ball
from ..poisons.task import Task
from .patches import PatchesTrigger
from .pixel_trigger import PixelTrigger, trigger_at
from .poisoning import eligible_classes, poison, within_limits
from .saved_triggers import save_trigger
from .trained_trigger import TrainedTrigger


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
    """A row of `NETWORK_BACKDOORS`: a row of `POISONS`, and the label rule that its paper goes on with.

    Attributes:
        trigger: makes the trigger that the perturbed rows get; None: the function trains the trigger, and perturbs no row.
        label_rule: its paper's.
        keeps_labels: whether it is for clean-label alone.
        eps: the usual radius in the l_inf norm; None: it has no radius.
    """

    trigger: Callable[[], PixelTrigger] | None = None
    label_rule: str | LabelRule | BackdoorRule = CleanLabel()
    keeps_labels: bool = False
    eps: str | None = "16/255"

    def ball(self, norm: str, eps: float | str | None) -> Ball:
        """Returns the ball of a norm and a radius; None: the attack's own in the l_inf norm, the norm's usual one else.

        Args:
            norm: of the perturbation.
            eps: that was given.

        Raises:
            ValueError: for an attack without a radius that is given one, and for a norm or radius out of range.
        """
        if self.eps is None and (eps is not None or norm != "linf"):
            name, value = ("eps", eps) if eps is not None else ("norm", norm)
            raise ValueError(f"{name}={value!r} has no effect with {self.name!r}, whose mask bounds the trigger: leave it out.")
        return make_ball(norm, self.eps if eps is None and norm == "linf" else eps)

    def craft(self) -> Callable[..., Any]:
        """Returns the function that perturbs the rows, ``(task, **settings) -> delta`` (N, C, H, W), or trains the trigger."""
        return getattr(import_module(f".{self.module}", __package__), self.function)


#: Backdoors that need a network, by name.
NETWORK_BACKDOORS: dict[str, NetworkBackdoor] = {
    row.name: row
    for row in (
        NetworkBackdoor(
            "label-consistent", "images of the target class made hard to recognise, then four patches", "Turner et al. 2019",
            TRAINED, "with_network", "craft_label_consistent", trigger=PatchesTrigger, keeps_labels=True,
        ),
        NetworkBackdoor(
            "narcissus", "a pattern that looks like the target class, optimised on a trained network",
            "Zeng et al. 2022 (Narcissus)", TRAINED, "narcissus", "train_narcissus", keeps_labels=True,
        ),
        NetworkBackdoor(
            "input-aware", "a pattern and a mask that networks make for each image, with covers", "Nguyen and Tran 2020",
            TRAINED, "input_aware", "train_input_aware", label_rule=AllToOne(), eps=None,
        ),
        NetworkBackdoor(
            "ssba", "a string of bits that a trained encoder hides in each image", "Li et al. 2021 (SSBA)",
            NONE, "hidden_string", "train_ssba", label_rule=AllToOne(),
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

    def describe(self) -> str:
        """Returns the trigger's settings in words."""
        return self.trigger.describe()

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
    model: nn.Module | None = None,
    *,
    rate: float,
    label_rule: str | LabelRule | BackdoorRule | None = None,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    num_classes: int | None = None,
    cover_rate: float | None = None,
    **crafting: Any,
) -> datasets.Dataset:
    """Returns the data set with round(rate * N) rows given the trigger of an attack that needs a network.

    Columns, counts and the choice of rows are those of `poison` with the same rate, rule and seed. The test set is `trigger_all`
    with the same trigger: of `network_trigger`, which this calls, or, with a ``folder``, of `load_trigger` (label-consistent
    perturbs no test image: its test set has the plain trigger).

    Args:
        dataset: images of one size and integer labels.
        attack: a name of `NETWORK_BACKDOORS`.
        model: as of `network_trigger`.
        rate: fraction of all samples in [0, 1).
        label_rule: as of `poison`; default the attack's own.
        seed: of the choice and of everything random.
        image_column: default the one that holds images.
        label_column: default label or labels.
        num_classes: where the label feature does not tell.
        cover_rate: as of `poison`.
        crafting: further arguments of `network_trigger`.

    Raises:
        ValueError: in one line, for settings, models and columns that do not fit.
    """
    chosen: dict[str, Any] = {
        "rate": rate, "label_rule": find_backdoor(attack).label_rule if label_rule is None else label_rule, "seed": seed,
        "image_column": image_column, "label_column": label_column, "num_classes": num_classes,
    }  # fmt: skip
    trigger = network_trigger(dataset, attack, model, **chosen, **crafting)
    return poison(dataset, trigger=trigger, cover_rate=cover_rate, **chosen)


def find_backdoor(name: str) -> NetworkBackdoor:
    """Returns a row of `NETWORK_BACKDOORS`. Raises ``ValueError``, listing the names, for another name."""
    if name not in NETWORK_BACKDOORS:
        raise ValueError(f"attack={name!r} is unknown: choose one of {', '.join(NETWORK_BACKDOORS)}.")
    return NETWORK_BACKDOORS[name]


def network_trigger(
    dataset: datasets.Dataset,
    attack: str,
    model: nn.Module | None = None,
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
) -> Any:
    """Returns the trigger of an attack that needs a network, for `poison` and `trigger_all`.

    That is a `TrainedTrigger` or, of label-consistent, a `PerturbedTrigger`. `poison` must then have the same rate, rule and seed.

    Args:
        dataset: the training set, clean: images of one size and integer labels.
        attack: a name of `NETWORK_BACKDOORS`.
        model: an image classifier trained on such images, which stays as it is; None where the attack needs none (ssba).
        rate: fraction of all samples that are going to be poisoned, in [0, 1).
        label_rule: as of `poison`; default the attack's own: clean-label (label-consistent, narcissus) or all-to-one (input-aware,
            ssba), class 0.
        trigger: of label-consistent; default checkerboards in four corners.
        norm: of the perturbation: linf, l2 or l1.
        eps: its radius in [0, 1] pixels, a number or a text such as "8/255"; default 16/255 (linf). Input-aware has none.
        processing_class: the image processor, which tells the normalisation.
        image_mean: the normalisation where there is no processor, with ``image_std``.
        image_std: see ``image_mean``.
        image_column: default the one that holds images.
        label_column: default label or labels.
        num_classes: where the label feature does not tell.
        device: default the model's.
        seed: of the choice and of everything random.
        batch_size: images at a time.
        folder: keeps finished parts, so that a stopped call goes on, and at the end a trained trigger, for `load_trigger`.
        settings: of the crafting function.

    Raises:
        ValueError: in one line, for settings, models and columns that do not fit.
    """
    row = find_backdoor(attack)
    if row.needs != NONE and not isinstance(model, nn.Module):
        raise ValueError(f"model={str(model):.60}, but attack={attack!r} needs a trained network: pass an image classifier.")
    if row.needs == NONE and model is not None:
        raise ValueError(f"model={type(model).__name__}, but attack={attack!r} needs none: leave it out.")
    if row.trigger is None and trigger is not None:
        raise ValueError(f"trigger={str(trigger):.60}, but attack={attack!r} trains its own: leave it out.")
    ball = row.ball(norm, eps)
    columns.check_dataset(dataset)
    image_column = find_image_column(dataset, image_column)
    label_column = columns.label_column(dataset, label_column)
    labels, classes = columns.read_labels(dataset, label_column, num_classes)
    craft = row.craft()
    settings = {**row.settings, **settings}
    check_settings(row, craft, settings)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1: give for instance 128.")
    rule = backdoor_labels(row.label_rule if label_rule is None else label_rule, classes)
    limits = key_limits(labels, eligible_classes(rule), rate, seed)
    rows = np.arange(len(labels))
    if row.trigger is not None:
        trigger, rows = trigger or row.trigger(), np.flatnonzero(within_limits(limits, labels, seed))
        if not len(rows):
            return trigger
    network = None if model is None else pixel_model(model, processing_class, image_mean, image_std)
    first = next(iter(network.parameters()), None) if network is not None else None
    device = torch.device(device if device is not None else first.device if first is not None else "cpu")
    levels = read_levels(dataset.select(rows), image_column)
    check_radius(ball, int(np.prod(levels.shape[1:])))
    task = Task(to_pixels(levels), torch.from_numpy(labels[rows]), classes, ball,
                None if network is None else frozen_copy(network, device), None, device, batch_size, seed,
                targets=rule.wanted)  # fmt: skip
    check_classes(task.model, task)
    if folder is not None:
        identity = {"attack": attack, "norm": norm, "eps": ball.eps, "seed": seed, "batch_size": batch_size, "settings": settings}
        identity |= {"targets": rule.wanted, "data": fingerprint(levels, labels[rows])}
        task.work = Work(Path(folder), {**identity, "model": network and fingerprint(str(network), task.model)})
    made = craft(task, **settings)
    if isinstance(made, TrainedTrigger):
        if not all(bool(torch.isfinite(tensor).all()) for tensor in made.tensors().values()):
            raise ValueError(f"attack={attack!r} became NaN or infinite: give it smaller learning rates, or retrain the model.")
        if folder is not None:
            save_trigger(made, folder)
        return made
    if not bool(torch.isfinite(made).all()):
        raise ValueError(f"attack={attack!r} became NaN or infinite, as the model's gradients: retrain the model.")
    return PerturbedTrigger(trigger, to_levels(task.images + made), rows)
