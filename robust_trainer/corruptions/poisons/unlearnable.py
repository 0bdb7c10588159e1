"""Unlearnable perturbations (UP): noise that lets a network fit the labels without looking at the image."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .networks import own_random
from .task import Task, fit

logger = logging.getLogger(__name__)

_PART = "unlearnable"


@dataclass(frozen=True)
class Search:
    """How noise and network alternate.

    Args:
        class_wise: one noise per class, else one per image.
        steps: of the noise search.
        step_size: of the noise search, in [0, 1] pixels.
        stop_error: share of misclassified poisoned samples at which it ends.
        model_batches: batches that the network learns between two searches.
        min_rounds: rounds before it may end.
        max_rounds: rounds after which it ends.
        learning_rate: of the network's SGD.
        clip: the largest 2-norm of the network's gradient.

    References:
        Huang et al. 2021, "Unlearnable examples", as their released code has it.
    """

    class_wise: bool
    steps: int
    step_size: float
    stop_error: float
    model_batches: int
    min_rounds: int
    max_rounds: int
    learning_rate: float
    clip: float


def craft_up(
    task: Task,
    class_wise: bool = False,
    steps: int | None = None,
    step_size: float | None = None,
    stop_error: float | None = None,
    model_batches: int = 10,
    min_rounds: int = 1,
    max_rounds: int = 100,
    learning_rate: float = 0.1,
    clip: float = 5.0,
) -> Tensor:
    """Returns error-minimising noise (N, C, H, W): min_delta E[min_theta l(f_theta(x + delta), y)].

    In turns, ``task.fresh()`` learns ``model_batches`` poisoned batches (SGD, momentum 0.9, weight decay 5e-4) and, frozen and in
    eval mode, guides one pass of the noise search over all images: ``steps`` descent steps of ``step_size`` from the noise so
    far, which begins at zero. It ends when the network misclassifies at most ``stop_error`` of the poisoned images, not before
    ``min_rounds``, or after ``max_rounds``, then with a warning where it does worse. On easy images it may be that good before
    the noise has grown: raise min_rounds, to 40 for instance. No augmentation. A class's noise is the mean of what its images ask
    for; any noise is shortened where x + delta would leave [0, 1].

    Guarantee: with ``task.work`` it resumes after the last finished round, to the same result.

    Args:
        task: the images, their labels, the ball and the maker of networks.
        class_wise: one noise per class, else one per image.
        steps: default 20, class-wise 1.
        step_size: in [0, 1] pixels; default eps / 10.
        stop_error: in [0, 1); default 0.01, class-wise 0.1.
        model_batches: batches that the network learns between two searches.
        min_rounds: rounds before it may end.
        max_rounds: rounds after which it ends.
        learning_rate: of the network's SGD.
        clip: the largest 2-norm of the network's gradient.

    Raises:
        ValueError: where ``task.fresh`` is missing or a setting is out of range.

    References:
        Huang et al. 2021; ERAT sec. IV.A item 2.
    """
    if task.fresh is None:
        raise ValueError("model=None, but this poison trains its own network: pass a callable that makes an untrained one.")
    search = Search(
        class_wise, (1 if class_wise else 20) if steps is None else steps, task.ball.eps / 10 if step_size is None else step_size,
        (0.1 if class_wise else 0.01) if stop_error is None else stop_error, model_batches, min_rounds, max_rounds,
        learning_rate, clip,
    )  # fmt: skip
    for name in ("steps", "model_batches", "max_rounds"):
        if getattr(search, name) < 1:
            raise ValueError(f"{name}={getattr(search, name)} must be at least 1: raise it.")
    if search.step_size <= 0 or not 0 <= search.stop_error < 1 or min_rounds > max_rounds:
        raise ValueError(
            f"step_size={search.step_size:g}, stop_error={search.stop_error:g}, min_rounds={min_rounds}, max_rounds={max_rounds}: "
            "give step_size > 0, stop_error in [0, 1) and min_rounds <= max_rounds."
        )
    with own_random(task.seed_of("unlearnable", 0)):  # initial weights and dropout
        noise = _alternate(task, search, task.fresh().to(task.device))
    return fit(noise[task.labels] if class_wise else noise, task.images, task.ball)


def _alternate(task: Task, search: Search, model: nn.Module) -> Tensor:
    """The noise, per image or per class, once the network fits it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=search.learning_rate, momentum=0.9, weight_decay=5e-4)
    shape = (task.classes, *task.images.shape[1:]) if search.class_wise else task.images.shape
    noise, done, error = torch.zeros(shape), 0, 1.0
    if (kept := task.work.load(_PART)) is not None:
        noise, done, error = kept["noise"], int(kept["round"]), float(kept["error"])
        _restore(model, optimizer, kept)
    for number in task.work.progress(range(done, search.max_rounds), "unlearnable noise, rounds"):
        if error <= search.stop_error and number >= search.min_rounds:
            break
        torch.manual_seed(task.seed_of("unlearnable", number + 1))
        _learn(task, search, model, optimizer, noise, number)
        model.eval().requires_grad_(False)
        noise, error = _search(task, search, model, noise)
        model.requires_grad_(True)
        done = number + 1
        logger.info("unlearnable noise, round %d: train error %.4f on the poisoned images.", done, error)
        state = {"noise": noise, "round": torch.tensor(done), "error": torch.tensor(error, dtype=torch.float64)}
        task.work.save(_PART, {**state, **_kept(model, optimizer)})
    if error > search.stop_error:
        logger.warning(
            "unlearnable noise: after max_rounds=%d the train error is %.4f, above stop_error=%g: raise max_rounds or eps.",
            search.max_rounds, error, search.stop_error,
        )  # fmt: skip
    return noise


def _learn(task: Task, search: Search, model: nn.Module, optimizer: torch.optim.Optimizer, noise: Tensor, number: int) -> None:
    """The network's batches of round ``number``: the next ones of an endless shuffled stream."""
    count = max(1, len(task.images) // task.batch_size)
    model.train()
    for step in range(number * search.model_batches, (number + 1) * search.model_batches):
        epoch, part = divmod(step, count)
        order = torch.randperm(len(task.images), generator=task.generator("epoch order", epoch))
        x, y, delta = _batch(task, search, noise, order[part * task.batch_size : (part + 1) * task.batch_size])
        loss = nn.functional.cross_entropy(model((x + delta).clamp(0.0, 1.0)), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), search.clip)
        optimizer.step()


def _search(task: Task, search: Search, model: nn.Module, noise: Tensor) -> tuple[Tensor, float]:
    """The noise after one pass over all images, and the share of these that the network misclassifies with it."""
    updated = torch.zeros_like(noise)
    for rows in task.batches():
        x, y, delta = _batch(task, search, noise, rows)
        for _ in range(search.steps):
            # the range's end is no wall for the gradient: noise that the clamp cut off may come back
            point = (x + delta).clamp(0.0, 1.0).requires_grad_(True)
            # summed: a sample's step does not depend on who else is in the batch
            (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(point), y, reduction="sum"), point)
            delta = task.ball.ascend(point.detach() - x, grad, -search.step_size)
        if search.class_wise:
            updated.index_add_(0, task.labels[rows], delta.cpu())
        else:
            updated[rows] = delta.cpu()
    if search.class_wise:
        sizes = torch.bincount(task.labels, minlength=task.classes).clamp_min(1)
        updated /= sizes.view(-1, 1, 1, 1)
    return updated, _error(task, search, model, updated)


@torch.no_grad()
def _error(task: Task, search: Search, model: nn.Module, noise: Tensor) -> float:
    wrong = torch.zeros((), dtype=torch.long, device=task.device)
    for rows in task.batches():
        x, y, delta = _batch(task, search, noise, rows)
        wrong += (model((x + delta).clamp(0.0, 1.0)).argmax(1) != y).sum()
    return int(wrong) / len(task.images)


def _batch(task: Task, search: Search, noise: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and noise of some rows, on the task's device."""
    picked = noise[task.labels[rows]] if search.class_wise else noise[rows]
    return task.images[rows].to(task.device), task.labels[rows].to(task.device), picked.to(task.device)


def _kept(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    momenta = [optimizer.state[p].get("momentum_buffer") for p in model.parameters()]
    out = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    return out | {f"momentum.{i}": value for i, value in enumerate(momenta) if value is not None}


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, kept: dict[str, Tensor]) -> None:
    prefix = "model."
    model.load_state_dict({name[len(prefix) :]: value for name, value in kept.items() if name.startswith(prefix)})
    for i, p in enumerate(model.parameters()):
        if (value := kept.get(f"momentum.{i}")) is not None:
            optimizer.state[p]["momentum_buffer"] = value.to(p.device)
