"""L2C, "learning to confuse": a network that makes poison from images.

Feng, Cai and Zhou 2019, "Learning to confuse" (DeepConfuse); ERAT eq. 11.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from ...perturbations.norms import Ball
from .task import Task, fit
from .unet import UNet


class Generator(UNet):
    """g(x): images (B, C, H, W) in [0, 1] -> perturbations of their shape in the ball.

    tanh of the network's output times eps (linf), or its projection on the ball (l2). The output is first divided by its root mean
    square, per sample: without that tanh saturates within some dozens of steps and the generator stops learning.
    """

    def __init__(self, channels: int, ball: Ball, width: int = 16):
        super().__init__(channels, channels, width)
        self.ball = ball

    def forward(self, images: Tensor) -> Tensor:
        """Returns the perturbations of images (B, C, H, W) in [0, 1]."""
        out = super().forward(images * 2 - 1)
        out = (out / out.square().mean((1, 2, 3), keepdim=True).add(1e-12).sqrt()).tanh()
        return out * self.ball.eps if self.ball.norm == "linf" else self.ball.project(out)


def craft_l2c(
    task: Task,
    rounds: int = 50,
    epochs: int = 5,
    lr: float = 2e-3,
    classifier_lr: float = 0.05,
    momentum: float = 0.9,
    width: int = 16,
    save_every: int = 1,
) -> Tensor:
    """Returns L2C: delta (N, C, H, W) float32 in the ball, in [0, 1] pixels, sample-wise: g(x) of the trained `Generator`.

    In each round a fresh classifier, ``task.fresh()``, learns x + g(x) for ``epochs`` epochs of SGD; at each of its steps, from its
    weights theta before it, another copy of g takes an Adam step that raises L(f_theta'(x), y) on the clean batch, where
    theta' = theta - classifier_lr grad_theta L(f_theta(x + g(x)), y). The classifier sees that copy from the next round on.
    The classifier must get somewhere within a round: with too few or too small steps g learns nothing of use.

    Args:
        task: the images, their labels, the ball and the maker of classifiers.
        rounds: classifiers trained one after the other.
        epochs: of each of them.
        lr: of the generator's Adam.
        classifier_lr: of the classifiers' SGD, and of the step to theta'.
        momentum: of the classifiers' SGD.
        width: channels of the generator's first layer.
        save_every: rounds between two states that are kept in ``task.work``.

    Raises:
        ValueError: where the task has no ``fresh`` or a setting is not positive.

    References:
        Feng et al. 2019, who take Adam 1e-4, SGD 0.01, a VGG-11 and 1000 rounds of 20 epochs; a larger ``lr`` is for small
        data. ERAT eq. 11.
    """
    sizes = {"rounds": rounds, "epochs": epochs, "lr": lr, "classifier_lr": classifier_lr, "width": width, "save_every": save_every}
    for name, value in sizes.items():
        if not value > 0:
            raise ValueError(f"l2c: {name}={value!r} must be above 0: leave it out for the default.")
    if task.fresh is None:
        raise ValueError("poison 'l2c' trains classifiers of its own, fresh=None: give a function that makes an untrained one.")
    with torch.random.fork_rng([task.device] if task.device.type == "cuda" else []):
        torch.manual_seed(task.seed_of("l2c", 0))
        generator = Generator(task.images.shape[1], task.ball, width).to(task.device)
        optimizer = torch.optim.Adam(generator.parameters(), lr=lr, maximize=True)
        done = _restore(generator, optimizer, task.work.load("l2c"))
        for number in task.work.progress(range(rounds), "crafting l2c", rounds):
            if number < done:
                continue
            torch.manual_seed(task.seed_of("l2c", number + 1))
            _round(task, task.fresh().to(task.device), generator, optimizer, epochs, classifier_lr, momentum)
            if (number + 1) % save_every == 0 or number + 1 == rounds:
                task.work.save("l2c", {**_state(generator, optimizer), "done": torch.tensor(number + 1)})
    with torch.no_grad():
        delta = torch.cat([generator(task.images[rows].to(task.device)).cpu() for rows in task.batches()])
    return fit(delta, task.images, task.ball)


def _round(
    task: Task, model: nn.Module, generator: Generator, optimizer: torch.optim.Adam, epochs: int, lr: float, momentum: float
) -> None:
    """One classifier's training on what the generator made at the start, and the generator's own along its path."""
    model.train()
    with torch.no_grad():
        poisoned = torch.cat([_poisoned(task.images[rows].to(task.device), generator) for rows in task.batches()])
    descent = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    for _ in range(epochs):
        for rows in torch.randperm(len(task.images)).split(task.batch_size):
            x, y = task.images[rows].to(task.device), task.labels[rows].to(task.device)
            with sdpa_kernel(SDPBackend.MATH):  # the other kinds of attention have no second derivative
                raised = clean_loss_after_step(model, x, _poisoned(x, generator), y, lr)
                grads = torch.autograd.grad(raised, list(generator.parameters()))
            for parameter, grad in zip(generator.parameters(), grads, strict=True):
                parameter.grad = grad
            optimizer.step()
            loss = cross_entropy(model(poisoned[rows]), y)
            descent.zero_grad()
            loss.backward()
            descent.step()


def clean_loss_after_step(model: nn.Module, x: Tensor, poisoned: Tensor, y: Tensor, lr: float) -> Tensor:
    """Returns L(f_theta'(x), y), theta' = theta - lr grad_theta L(f_theta(poisoned), y), differentiable in ``poisoned``.

    Guarantee: the model's parameters and buffers stay as they are. A parameter that needs no gradient is not moved.
    """
    theta = {name: p.detach().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}

    def logits(weights: dict[str, Tensor], images: Tensor) -> Tensor:
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        return functional_call(model, {**fixed, **weights, **buffers}, (images,))

    loss = cross_entropy(logits(theta, poisoned), y)
    grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True, allow_unused=True)
    moved = {name: p if g is None else p - lr * g for (name, p), g in zip(theta.items(), grads, strict=True)}
    return cross_entropy(logits(moved, x), y)


def _poisoned(images: Tensor, generator: Generator) -> Tensor:
    return (images + generator(images)).clamp(0.0, 1.0)


def _state(generator: Generator, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {f"weight.{name}": p for name, p in generator.named_parameters()}
    for number, parameter in enumerate(generator.parameters()):
        out |= {f"adam.{number}.{name}": value for name, value in optimizer.state[parameter].items()}
    return out


def _restore(generator: Generator, optimizer: torch.optim.Adam, state: dict[str, Tensor] | None) -> int:
    """Puts a kept state back; how many rounds it had seen, 0 for none."""
    if state is None:
        return 0
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            parameter.copy_(state[f"weight.{name}"])
    for number, parameter in enumerate(generator.parameters()):
        prefix = f"adam.{number}."
        kept = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in kept.items()}
    return int(state["done"])
