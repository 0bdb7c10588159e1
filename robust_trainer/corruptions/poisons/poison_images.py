"""Availability poisons: small perturbations of every training image that spoil what a network learns from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn

from ...data import columns
from ...data.fingerprint import fingerprint
from ...data.mapping import CLEAN_LABEL
from ...data.pixels import IS_POISONED, read_levels, read_pixels, to_levels, to_pixels, write_levels
from ...data.pixels import image_column as find_image_column
from ...models.pixel_model import PixelModel, frozen_copy, pixel_model
from ...perturbations.norms import NORMS
from ...reporting.resumable import Work
from .networks import accuracy, seeded, train_plain
from .table import FRESH, NONE, POISONS, Poison, check_radius, check_settings, find_poison, make_ball
from .task import Task

__all__ = ["POISONS", "Poison", "poison_images", "realised_norms", "self_check"]


def poison_images(
    dataset: datasets.Dataset,
    poison: str,
    *,
    norm: str = "linf",
    eps: float | str | None = None,
    model: nn.Module | Callable[[], nn.Module] | None = None,
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
    """Returns the data set with every image perturbed and ``is_poisoned`` (True); labels, other columns and format are kept.

    The images are stored as 8-bit PNG, rounded to the nearest level, which moves a pixel by at most 0.5/255: an linf ball of a
    whole number of 255ths is never left, another one by less than 0.5/255, other balls perhaps by a hair (`realised_norms`).
    Transparency is dropped.

    Args:
        dataset: images of one size and integer labels.
        poison: a name of `POISONS`.
        norm: linf, l2 or l1 (aa: linf or l2).
        eps: radius in [0, 1] pixels, a number or a text such as "8/255"; default 8/255 (linf), 0.5 (l2), 12 (l1).
        model: for poisons that need a trained one an image classifier, which stays as it is; for those that need a fresh one a
            callable that makes an untrained one.
        processing_class: the image processor, which tells the normalisation.
        image_mean: the normalisation where there is no processor, with ``image_std``.
        image_std: see ``image_mean``.
        image_column: default the one that holds images.
        label_column: the labels that the poison sees; default ``clean_label`` where there is one, else label or labels.
        num_classes: where the label feature does not tell.
        device: default the trained model's, else a GPU where there is one.
        seed: of everything random.
        batch_size: images at a time.
        folder: keeps finished parts, so that a stopped call goes on.
        settings: of the crafting function.

    Raises:
        ValueError: in one line, for settings, models and columns that do not fit.
    """
    row, ball = find_poison(poison), make_ball(norm, eps)
    columns.check_dataset(dataset)
    if IS_POISONED in dataset.column_names:
        raise ValueError(f"the data set is poisoned already (column {IS_POISONED!r}): start from the clean one.")
    image_column = find_image_column(dataset, image_column)
    label_column = label_column or (CLEAN_LABEL if CLEAN_LABEL in dataset.column_names else None)
    labels, classes = columns.read_labels(dataset, columns.label_column(dataset, label_column), num_classes)
    craft = row.craft()
    settings = {**row.settings, **settings}
    check_settings(row, craft, settings)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1: give for instance 128.")
    trained, fresh = _models(row, model, (processing_class, image_mean, image_std))
    levels = read_levels(dataset, image_column)
    check_radius(ball, int(np.prod(levels.shape[1:])))
    first = next(iter(trained.parameters()), None) if trained is not None else None
    where = first.device if first is not None else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(where if device is None else device)
    attacked = None if trained is None else frozen_copy(trained, device)
    task = Task(to_pixels(levels), torch.from_numpy(labels), classes, ball, attacked, fresh, device, batch_size, seed)
    probe = task.model if fresh is None else frozen_copy(seeded(fresh, seed), device)
    check_classes(probe, task)
    if folder is not None:
        identity = {"poison": poison, "norm": norm, "eps": ball.eps, "seed": seed, "batch_size": batch_size, "settings": settings}
        identity |= {"data": fingerprint(levels, labels), "model": _identity(probe, weights=fresh is None)}
        task.work = Work(Path(folder), identity)
    delta = craft(task, **settings)
    if not bool(torch.isfinite(delta).all()):
        raise ValueError(f"poison={poison!r} became NaN or infinite, as the model's gradients: retrain the model.")
    return write_levels(dataset, image_column, to_levels(task.images + delta))


def realised_norms(clean: datasets.Dataset, poisoned: datasets.Dataset, image_column: str | None = None) -> dict[str, float]:
    """Returns the perturbation as stored, in [0, 1] pixels: linf_max, linf_mean, l2_max ... over the images, for every norm."""
    name = find_image_column(clean, image_column)
    before, after = (read_levels(split, name).astype(np.int16) for split in (clean, poisoned))
    delta = torch.from_numpy(after - before).flatten(1).double() / 255.0
    sizes = {name: norm.size(delta).flatten() for name, norm in NORMS.items()}
    return {f"{norm}_{kind}": float(getattr(size, kind)()) for norm, size in sizes.items() for kind in ("max", "mean")}


def self_check(
    clean: datasets.Dataset,
    poisoned: datasets.Dataset,
    test: datasets.Dataset,
    fresh: Callable[[], nn.Module],
    epochs: int = 20,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Returns what the poison does to a plain training: clean_trained and poison_trained (accuracies on clean test images), told.

    The network is trained twice from the same initial weights, once on either training set, by `train_plain`. ``chance`` is the
    share of the largest class of the test set.

    Args:
        clean: the training set as it was.
        poisoned: the training set with the poison.
        test: clean test images.
        fresh: a callable that makes a `PixelModel` (see `pixel_model`).
        epochs: of each training.
        seed: of weights and order.
        device: default a GPU where there is one.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    x, y = read_pixels(test)
    result: dict[str, Any] = {}
    for name, split in (("clean_trained", clean), ("poison_trained", poisoned)):
        images, labels = read_pixels(split)
        net = train_plain(seeded(fresh, seed), images, labels, epochs, seed=seed, device=device, desc=f"self-check, {name}")
        result[name] = accuracy(net, x, y)
    result |= {"chance": int(torch.bincount(y).max()) / len(y), "epochs": epochs, "seed": seed, "test_rows": len(y)}
    return {**result, "told": _verdict(result)}


@torch.no_grad()
def check_classes(model: nn.Module | None, task: Task) -> None:
    """Raises ``ValueError`` where the model takes other images, or knows fewer classes than the task."""
    if model is None:
        return
    try:
        outputs = model(task.images[:1].to(task.device)).shape[1]
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(
            f"model does not take images of shape {tuple(task.images.shape[1:])}, channels first ({reason}): give one that does, "
            "or convert or resize the images."
        ) from error
    if outputs < task.classes:
        raise ValueError(f"model knows {outputs} classes, the data set has {task.classes}: give a model of the data set's classes.")


def _models(row: Poison, model: Any, space: tuple[Any, Any, Any]) -> tuple[PixelModel | None, Callable[[], PixelModel] | None]:
    """The trained model, or the callable that makes a fresh one, as the poison needs it; both None where it needs neither."""
    if row.needs == NONE:
        return None, None
    if row.needs == FRESH:
        if isinstance(model, nn.Module) or not callable(model):
            what = type(model).__name__ if isinstance(model, nn.Module) else str(model)
            raise ValueError(
                f"model={what:.60}, but poison={row.name!r} trains its own network: pass a callable that makes an untrained one, "
                "for instance lambda: Net()."
            )
        return None, lambda: pixel_model(model(), *space)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model={str(model):.60}, but poison={row.name!r} attacks a trained network: pass an image classifier trained on this "
            "data set (poison_model.train_plain trains one)."
        )
    return pixel_model(model, *space), None


def _verdict(result: Mapping[str, Any]) -> str:
    drop = result["clean_trained"] - result["poison_trained"]
    if drop >= 0.1:
        effect = "the poison works"
    elif drop >= 0.02:
        effect = "a weak effect here; more eps or more steps may help"
    else:
        effect = "no effect here: the network still learns the images; give more eps, or settings of the poison with more steps"
    return (
        "a plain training on the poisoned images should end with a lower accuracy on clean test images: "
        f"{100 * result['clean_trained']:.1f} % after clean training, {100 * result['poison_trained']:.1f} % after poisoned "
        f"({result['epochs']} epochs): {effect}."
    )


def _identity(model: nn.Module | None, weights: bool) -> str:
    """What tells the network from others: its structure, and with ``weights`` its state."""
    if model is None:
        return NONE
    return fingerprint(str(model), model if weights else None)
