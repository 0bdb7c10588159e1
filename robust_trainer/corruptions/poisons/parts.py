"""What poisons that attack a trained model share: the model as it stands, and a data set crafted in parts that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...models.modes import eval_mode
from .task import Task

#: A poison is kept in so many parts at most, each of whole batches.
PARTS = 64


@contextmanager
def source_model(task: Task, poison: str) -> Iterator[nn.Module]:
    """``task.model`` in eval mode; afterwards each of its modules is in the mode it was in.

    Raises a one-line ``ValueError`` where the task has no model.
    """
    if task.model is None:
        raise ValueError(f"poison {poison!r} attacks a trained model, model=None: give one trained on clean data.")
    with eval_mode(task.model):
        yield task.model


def sample_wise(task: Task, poison: str, craft: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Returns delta (N, C, H, W) float32 on the CPU of ``craft(images, labels, positions) -> perturbed images``, batch by batch.

    Guarantee: every part, called ``{poison}-000`` and so on, is kept in ``task.work``, and finished ones are read from there: bit
    for bit the same either way.

    Args:
        task: images, labels, batches and the work folder.
        poison: its name.
        craft: takes images (B, C, H, W) and labels (B,) on the task's device and positions (B,) on the CPU.
    """
    batches = task.batches()
    width = -(-len(batches) // PARTS)
    parts = [batches[i : i + width] for i in range(0, len(batches), width)]
    delta = torch.zeros_like(task.images)
    for number, part in enumerate(task.work.progress(parts, f"crafting {poison}", len(parts))):
        name, rows = f"{poison}-{number:03d}", torch.cat(part)
        done = task.work.load(name)
        if done is None:
            images = [craft(task.images[b].to(task.device), task.labels[b].to(task.device), b).cpu() for b in part]
            done = {"delta": torch.cat(images) - task.images[rows]}
            task.work.save(name, done)
        delta[rows] = done["delta"]
    return delta


def kept_epochs(
    task: Task, name: str, epochs: int, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> Iterator[int]:
    """Yields the numbers of the epochs of a training; its state after each is kept in ``task.work`` under ``name``.

    Guarantee: a stopped training goes on after the last whole epoch, bit for bit as if it had not been stopped, if whatever an
    epoch draws comes from torch's generator, which is seeded anew for each, or from one keyed by its number. The global random
    state is what it was once the loop has ended.

    Args:
        task: where the state is kept, and the seed.
        name: of the training.
        epochs: their number.
        modules: what is trained, by names of their own.
        optimizers: likewise.
    """
    done = _restore(task.work.load(name), modules, optimizers)
    with torch.random.fork_rng([task.device] if task.device.type == "cuda" else []):
        for epoch in task.work.progress(range(epochs), f"training {name}", epochs):
            if epoch < done:
                continue
            torch.manual_seed(task.seed_of(name, epoch))
            yield epoch
            state = {f"{key}.{n}": v for key, module in modules.items() for n, v in module.state_dict().items()}
            for key, optimizer in optimizers.items():
                for number, values in optimizer.state_dict()["state"].items():
                    state |= {f"{key}.{number}.{n}": v for n, v in values.items() if isinstance(v, Tensor)}
            task.work.save(name, {**state, "done": torch.tensor(epoch + 1)})


def _restore(
    state: dict[str, Tensor] | None, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> int:
    """Puts a kept state back; how many epochs it had seen, 0 for none."""
    if state is None:
        return 0
    for key, module in modules.items():
        module.load_state_dict({n: state[f"{key}.{n}"] for n in module.state_dict()})
    for key, optimizer in optimizers.items():
        kept: dict[int, dict[str, Tensor]] = {}
        for name in state:
            owner, _, rest = name.partition(".")
            if owner == key:
                number, _, value = rest.partition(".")
                kept.setdefault(int(number), {})[value] = state[name]
        optimizer.load_state_dict({**optimizer.state_dict(), "state": kept})
    return int(state["done"])
