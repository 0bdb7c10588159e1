"""Poisons that push every sample to the next class of a trained model: AP (Tao et al. 2021) and TAP (Fowl et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...attacks.base import Draws, Forward
from ...attacks.pgd import cross_entropy, input_gradient, look
from ...perturbations.region import Region
from .parts import sample_wise, source_model
from .task import Task


def craft_ap(task: Task, steps: int = 100, step_share: float = 1 / 5) -> Tensor:
    """Returns AP: delta (N, C, H, W) float32 in the ball, in [0, 1] pixels.

    PGD from zero on CE(f(x + delta), (y + 1) mod C), to be minimised; each step is followed by the projection on the ball and
    then by the clip to [0, 1].

    Args:
        task: the images, their labels, the ball and the trained model.
        steps: gradient steps, >= 1.
        step_share: the length of a step as a share of eps, > 0.

    Raises:
        ValueError: for no model and settings out of range.

    References:
        Tao et al. 2021, "Better safe than sorry", P1; ERAT sec. IV.A item 4.
    """
    _check("ap", steps, step_share)
    with source_model(task, "ap") as model:

        def craft(x: Tensor, y: Tensor, positions: Tensor) -> Tensor:
            within, image, target = Region(task.ball.norm, task.ball.eps, x), x, (y + 1) % task.classes
            for _ in range(steps):
                image = within.step(image, _gradient(model, image, y, target), task.ball.eps * step_share)
            return image

        return sample_wise(task, "ap", craft)


def craft_tap(
    task: Task, steps: int = 250, restarts: int = 8, step_share: float = 1 / 20, augment: bool = True, padding: int | None = None
) -> Tensor:
    """Returns TAP: delta (N, C, H, W) float32 in the ball, in [0, 1] pixels.

    PGD on CE(f(A(x + delta)), (y + 1) mod C), to be minimised, with a new augmentation A per sample and step: a horizontal flip
    with probability 1/2 and a crop of the image padded with zeros. Each run starts from eps times standard normal noise,
    projected; a sample keeps the run of the smallest CE to its target without augmentation.

    Guarantee: a sample's random numbers depend on the seed and its position alone.

    Args:
        task: the images, their labels, the ball and the trained model.
        steps: gradient steps of a run, >= 1.
        restarts: runs, >= 1.
        step_share: the length of a step as a share of eps, > 0.
        augment: whether to augment.
        padding: zeros on every side before the crop; None: an eighth of the height, 4 for 32 pixels.

    Raises:
        ValueError: for no model and settings out of range.

    References:
        Fowl et al. 2021, "Adversarial examples make strong poisons", who move the crop by fractions of a pixel, here by whole ones,
        and keep their model's dropout on.
    """
    _check("tap", steps, step_share, restarts)
    room = task.images.shape[2] // 8 if padding is None else padding
    with source_model(task, "tap") as model:

        def craft(x: Tensor, y: Tensor, positions: Tensor) -> Tensor:
            within, target = Region(task.ball.norm, task.ball.eps, x), (y + 1) % task.classes
            draws = Draws(task.seed, positions.tolist(), task.device)
            best, best_loss = x, torch.full_like(x[:, 0, 0, 0], torch.inf)
            for _ in range(restarts):
                image = within.project_(x + draws.normal(*x.shape[1:]) * task.ball.eps)
                for views in draws.uniform(steps, 3).unbind(1):
                    forward = _augmented(model, views, room) if augment else model
                    image = within.step(image, _gradient(forward, image, y, target), task.ball.eps * step_share)
                with torch.no_grad():
                    loss = -cross_entropy(model(image), y, target)
                better = loss < best_loss
                best = torch.where(better.view(-1, 1, 1, 1), image, best)
                best_loss = torch.where(better, loss, best_loss)
            return best

        return sample_wise(task, "tap", craft)


def flip_and_crop(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Returns each image shifted by up to ``padding`` pixels, zeros moving in, and flipped or not; differentiable.

    Args:
        images: (B, C, H, W).
        draws: (B, 3) in [0, 1): the shift down, the shift to the right and, from 1/2 on, the flip of the shifted image.
        padding: the largest shift, in pixels.
    """
    b, c, h, w = images.shape
    shift = (draws[:, :2] * (2 * padding + 1)).long()
    rows = torch.arange(h, device=images.device) + shift[:, :1]
    columns = torch.arange(w, device=images.device) + shift[:, 1:]
    columns = torch.where(draws[:, 2:] >= 0.5, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    taken = padded.gather(2, rows.view(b, 1, h, 1).expand(b, c, h, padded.shape[3]))
    return taken.gather(3, columns.view(b, 1, 1, w).expand(b, c, h, w))


def _augmented(model: torch.nn.Module, draws: Tensor, padding: int) -> Forward:
    return lambda images: model(flip_and_crop(images, draws, padding))


def _gradient(forward: Forward, image: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The direction in which the CE to the target falls, like the images."""
    leaf, _, losses = look(forward, image, cross_entropy, y, target)
    return input_gradient(losses, leaf)


def _check(poison: str, steps: int, step_share: float, restarts: int = 1) -> None:
    for name, value in (("steps", steps), ("restarts", restarts)):
        if value < 1:
            raise ValueError(f"{poison}: {name}={value!r} must be at least 1: leave it out for the default.")
    if not step_share > 0:
        raise ValueError(f"{poison}: step_share={step_share!r} must be above 0, a share of eps: leave it out for the default.")
