"""A poison from AutoAttack's parameter-free PGD (Croce and Hein 2020): every sample pushed as far from its label as it goes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...attacks.apgd import APGD, MIN_CLASSES, targeted_dlr
from ...attacks.base import Draws, Forward
from ...attacks.pgd import likely_targets
from .parts import sample_wise, source_model
from .task import Task


def craft_aa(task: Task, steps: int = 100, restarts: int = 1, targets: int = 9) -> Tensor:
    """Returns AA: delta (N, C, H, W) float32 in the ball, in [0, 1] pixels.

    APGD of ``steps`` steps: ``restarts`` runs on the cross-entropy and, with 4 classes or more, ``restarts`` runs on the targeted
    DLR towards each of the likeliest wrong classes. A sample keeps the point of the highest cross-entropy to its label. An attack
    stops at the first image that fools and leaves alone what is misclassified already; as poisons those would be weak or nothing,
    so here all runs go to their end on all samples. FAB and Square are left out: they seek the smallest perturbation, and the
    first fooling one.

    Guarantee: a sample's random numbers depend on the seed and its position alone.

    Args:
        task: the images, their labels, the ball (linf or l2) and the trained model.
        steps: of a run, >= 1.
        restarts: runs of each kind, >= 1.
        targets: wrong classes, at most C - 1; 0: none.

    Raises:
        ValueError: for no model, another norm and settings out of range.

    References:
        Croce and Hein 2020, "Reliable evaluation of adversarial robustness ..."; ERAT sec. IV.A item 3.
    """
    for name, value, least in (("steps", steps, 1), ("restarts", restarts, 1), ("targets", targets, 0)):
        if value < least:
            raise ValueError(f"aa: {name}={value!r} must be at least {least}: leave it out for the default.")
    attack = APGD(task.ball.eps, task.ball.norm, steps, restarts)
    with source_model(task, "aa") as model:

        def craft(x: Tensor, y: Tensor, positions: Tensor) -> Tensor:
            draws = Draws(task.seed, positions.tolist(), task.device)
            with torch.no_grad():
                logits = model(x)
            wrong = likely_targets(logits, y, targets) if logits.shape[1] >= MIN_CLASSES["dlr-targeted"] else y[:, None][:, :0]
            best, best_loss = x, torch.full_like(x[:, 0, 0, 0], -math.inf)
            for target in [None, *wrong.unbind(1)]:
                image = attack(_endless(model, y, target), x, torch.zeros_like(y), draws)
                with torch.no_grad():
                    loss = _odds(model(image), y)
                better = loss > best_loss
                best = torch.where(better.view(-1, 1, 1, 1), image, best)
                best_loss = torch.where(better, loss, best_loss)
            return best

        return sample_wise(task, "aa", craft)


def _odds(logits: Tensor, y: Tensor) -> Tensor:
    """log((1 - p_y) / p_y), (B,): rises with the cross-entropy, and never drowns in its rounding where the model is sure."""
    index = y.unsqueeze(1)
    return logits.scatter(1, index, -math.inf).logsumexp(1) - logits.gather(1, index).squeeze(1)


def _endless(model: Forward, y: Tensor, target: Tensor | None) -> Forward:
    """A game of two classes that an attack on class 0 never wins: it climbs the model's loss on all rows to the last step.

    With the loss t, the log-odds or the targeted DLR, the result's cross-entropy to class 0 is
    v = log 2 (1 + t / (1 + |t|)) / 2 < log 2, which rises with t. APGD asks for signs or directions of gradients and compares
    losses, so a rising function of a loss is as good as the loss.
    """

    def forward(images: Tensor) -> Tensor:
        logits = model(images)
        t = _odds(logits, y) if target is None else targeted_dlr(logits, y, target)
        v = math.log(2) / 2 * (1 + t / (1 + t.abs()))
        return torch.stack([torch.zeros_like(v), v.expm1().log()], dim=1)

    return forward
