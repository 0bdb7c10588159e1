"""One perturbation per class that makes a trained model see that class in any image: UAP and UHP (Tao et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...attacks.base import Forward
from ...attacks.pgd import cross_entropy, input_gradient, look
from .parts import source_model
from .task import Task, fit


def craft_uap(task: Task, steps: int = 500, batch: int = 256, step_share: float = 1 / 5, save_every: int = 100) -> Tensor:
    """Returns UAP: delta (N, C, H, W) float32 in the ball; class y carries what targets (y + 1) mod C.

    All samples of a class get one delta, which is then shortened per sample where the pixel would leave [0, 1] (`task.fit`):
    class-wise up to that clip. See `universal_deltas` for the settings and errors.

    References:
        Tao et al. 2021; ERAT sec. IV.A item 5.
    """
    deltas = universal_deltas(task, "uap", steps, batch, step_share, save_every)
    return fit(deltas[(task.labels + 1) % task.classes], task.images, task.ball)


def craft_uhp(task: Task, steps: int = 500, batch: int = 256, step_share: float = 1 / 5, save_every: int = 100) -> Tensor:
    """Returns UHP: as `craft_uap`, but class y carries the delta that targets y itself.

    References:
        Tao et al. 2021; ERAT sec. IV.A item 6.
    """
    deltas = universal_deltas(task, "uhp", steps, batch, step_share, save_every)
    return fit(deltas[task.labels], task.images, task.ball)


def universal_deltas(
    task: Task, poison: str = "universal", steps: int = 500, batch: int = 256, step_share: float = 1 / 5, save_every: int = 100
) -> Tensor:
    """Returns one delta per class, (classes, C, H, W) float32 on the CPU, in the ball: it makes any image look like its class.

    delta_i lowers mean CE(f(clip(x + delta_i)), i). From zero, each step goes along the direction of the mean gradient over images
    drawn anew from all classes, then the projection. The images are clipped to [0, 1] where the gradient is taken, the deltas
    never. Work is kept as ``universal``.

    Args:
        task: the images, the ball and the trained model.
        poison: its name, for messages.
        steps: for each class, >= 1.
        batch: images drawn for a step, >= 1.
        step_share: the length of a step as a share of eps, > 0.
        save_every: steps between two states that are kept in ``task.work``, >= 1.

    Raises:
        ValueError: for no model and settings that are not positive.
    """
    for name, value in (("steps", steps), ("batch", batch), ("save_every", save_every)):
        if value < 1:
            raise ValueError(f"{poison}: {name}={value!r} must be at least 1: leave it out for the default.")
    if not step_share > 0:
        raise ValueError(f"{poison}: step_share={step_share!r} must be above 0, a share of eps: leave it out for the default.")
    total, shape = steps * task.classes, task.images.shape[1:]
    state = task.work.load("universal") or {"deltas": torch.zeros(task.classes, *shape), "done": torch.tensor(0)}
    deltas, done = state["deltas"], int(state["done"])
    with source_model(task, poison) as model:
        for turn in task.work.progress(range(total), f"crafting {poison}", total):
            if turn < done:
                continue
            target, step = divmod(turn, steps)
            rows = torch.randperm(len(task.images), generator=task.generator(target, step))[:batch]
            images = task.images[rows].to(task.device)
            delta = deltas[target : target + 1].to(task.device)
            targets = torch.full((len(rows),), target, device=task.device)
            leaf, _, losses = look(_added(model, images), delta, cross_entropy, targets, targets)
            deltas[target] = task.ball.ascend(delta, input_gradient(losses, leaf), task.ball.eps * step_share)[0].cpu()
            if (turn + 1) % save_every == 0 or turn + 1 == total:
                task.work.save("universal", {"deltas": deltas, "done": torch.tensor(turn + 1)})
    return deltas


def _added(model: nn.Module, images: Tensor) -> Forward:
    return lambda delta: model((images + delta).clamp(0.0, 1.0))
