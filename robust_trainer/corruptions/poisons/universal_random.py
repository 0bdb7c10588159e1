"""Universal random perturbations (URP): the same random noise on every image of a class."""

from __future__ import annotations

import torch
from torch import Tensor

from ...perturbations.norms import GeneratorDraws
from .task import Task, fit


def class_noise(task: Task) -> Tensor:
    """Returns the noise of each class (classes, C, H, W): uniform in the cube (l_inf), else a random direction of size eps.

    The direction is that of the norm's random start: uniform. It depends on the task's seed and the images' shape alone.
    """
    like = torch.empty(task.classes, *task.images.shape[1:])
    noise = task.ball.random_start(like, GeneratorDraws(task.generator(0), task.classes, like.device))
    if task.ball.norm == "linf":
        return noise
    return noise * (task.ball.eps / task.ball.size(noise).clamp_min(torch.finfo(noise.dtype).tiny))


def craft_urp(task: Task) -> Tensor:
    """Returns URP (N, C, H, W): one random noise per class, no model.

    It is shortened where images + noise would leave [0, 1], so within a class it differs at pixels near black or white.

    References:
        Tao et al. 2021; ERAT sec. IV.A item 7.
    """
    return fit(class_noise(task)[task.labels], task.images, task.ball)
