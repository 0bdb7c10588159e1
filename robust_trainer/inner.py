"""The inner maximisation of a step: for every sample, or for the batch as a whole, the perturbation that raises the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .adversarial_losses import INNER, needs_clean
from .batch import Batch, RunningMeans
from .fronts import Forward, Front
from .objectives import make_objective
from .perturbations import Perturbation
from .recipe import Progress, Recipe, View

#: Of the probe for catastrophic overfitting: samples, steps, and the step as a share of eps (Rice et al. 2020 use PGD-10, eps / 4).
PROBE_SAMPLES, PROBE_STEPS, PROBE_SHARE = 64, 10, 0.25


@dataclass
class Inner:
    """Perturbs the micro-batches of a step, all of them at once: one perturbation for the batch does not depend on how it was cut.

    view: reads a model's outputs with a batch's targets. trust: the samples' weights (B,) from the views of the first forward.
    total: sums a tensor over the processes. gradient_scale: keeps half-precision gradients from underflow.
    """

    recipe: Recipe
    attack: Perturbation
    front: Front
    problem: str
    view: Callable[[Any, Batch], View]
    trust: Callable[[list[View], list[Batch], Progress], Tensor]
    total: Callable[[Tensor], Tensor]
    seed: int = 0
    rank: int = 0
    gradient_scale: float = 1.0
    _checked: bool = False

    def perturb(self, bare: Forward, batches: list[Batch], progress: Progress) -> None:
        """Sets each batch's ``adversarial`` and its inner weights. bare: the forward of the unwrapped model."""
        attack = self.attack
        x, space = self.front.join(batches, attack.norm)
        if not self._checked:
            space.check(x)
            self._checked = True
        clean: list[Tensor | None] = [None] * len(batches)
        keep = None
        if needs_clean(attack.inner_loss):
            views = self._views(bare, batches)
            clean = [view.logits for view in views]
            keep = self.trust(views, batches, progress)
        delta = attack.start(x, space, self._generator(x, progress))
        for number in range(attack.steps):
            moved = x if number == 0 and not attack.random_start else attack.apply(x, delta, space)
            rows = self.front.split(moved, batches)
            found = [self._gradient(bare, batch, row, logits) for batch, row, logits in zip(batches, rows, clean)]
            if keep is None:
                keep = self.trust([view for _, view in found], batches, progress)
            delta = attack.step(x, delta, _stack([grad for grad, _ in found], x), keep, space, self.total)
        for batch, row in zip(batches, self.front.split(attack.apply(x, delta, space), batches)):
            batch.adversarial = row

    @torch.no_grad()
    def probe(self, bare: Forward, batches: list[Batch], progress: Progress, means: RunningMeans) -> None:
        """Adds to ``means`` the accuracy on the step's own examples and under PGD-10, on its first 64 samples, and beside them that
        of naming the commonest label, which no attack lowers.

        Wong et al. 2020 tell catastrophic overfitting by this: single-step examples are classified ever better, PGD's no more.
        """
        some = _first(batches[0], PROBE_SAMPLES)
        assert some.adversarial is not None
        right = self._views(bare, [some], [some.adversarial])[0].logits.mean(0).argmax(-1) == some.targets
        means.add("fgsm_accuracy", right.sum(), len(some.targets))
        means.add("majority_accuracy", some.targets.bincount().max(), len(some.targets))
        self._probe_space(bare, some, progress)
        right = self._views(bare, [some], [some.adversarial])[0].logits.mean(0).argmax(-1) == some.targets
        means.add("pgd_accuracy", right.sum(), len(some.targets))

    def _probe_space(self, bare: Forward, some: Batch, progress: Progress) -> None:
        strong = replace(self.attack, steps=PROBE_STEPS, step_size=PROBE_SHARE * self.attack.eps)
        ones = torch.ones(len(some.targets), device=some.targets.device)
        replace(self, attack=strong, trust=lambda views, batches, progress: ones, _checked=True).perturb(bare, [some], progress)

    def _views(self, bare: Forward, batches: list[Batch], moved: list[Tensor] | None = None) -> list[View]:
        """Forwards without gradients, on the inputs as they came or where they were moved to."""
        with torch.no_grad():
            if moved is None:
                return [self.view(bare(batch.inputs), batch) for batch in batches]
            return [self.view(self.front.forward(bare, batch.inputs, x), batch) for batch, x in zip(batches, moved)]

    def _generator(self, x: Tensor, progress: Progress) -> torch.Generator:
        rank = 0 if self.attack.scope == "batch" else self.rank
        return torch.Generator(x.device).manual_seed(hash((self.seed, progress.global_step, rank)) % 2**63)

    def _gradient(self, bare: Forward, batch: Batch, x: Tensor, clean: Tensor | None) -> tuple[Tensor, View]:
        """The loss's gradient with respect to x alone (no weight gradients), and the forward it came from."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            view = self.view(self.front.forward(bare, batch.inputs, leaf), batch)
            relabel = self.recipe.relabel if self.recipe.inner_filter else None
            targets = relabel(view) if relabel is not None else view.given()
            own = make_objective("auto", {}, self.problem)
            losses = INNER[self.attack.inner_loss](view, targets, clean, self.recipe.objective, own)
            (grad,) = torch.autograd.grad(losses.sum() * self.gradient_scale, leaf)
        return grad, View(view.logits.detach(), view.targets, view.index, problem=view.problem)


def _stack(grads: list[Tensor], like: Tensor) -> Tensor:
    """The micro-batches' gradients as one tensor, shorter rows filled up with zeros."""
    if len(grads) == 1 and grads[0].shape == like.shape:
        return grads[0]
    if all(grad.shape[1:] == like.shape[1:] for grad in grads):
        return torch.cat(grads)
    return torch.cat([torch.nn.functional.pad(grad, (0, 0, 0, like.shape[1] - grad.shape[1])) for grad in grads])


def _first(batch: Batch, count: int) -> Batch:
    size = len(batch.targets)
    inputs = {k: v[:count] if isinstance(v, Tensor) and v.dim() and len(v) == size else v for k, v in batch.inputs.items()}
    assert batch.adversarial is not None
    return Batch(inputs, batch.targets[:count], None, adversarial=batch.adversarial[:count])
