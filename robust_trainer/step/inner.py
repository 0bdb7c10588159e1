"""The inner maximisation of a step: for every sample, or for the batch as a whole, the perturbation that raises the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.randomness import keyed_generator
from ..losses.adversarial import INNER, needs_clean
from ..losses.standard import make_objective
from ..methods.recipe import Recipe
from ..perturbations.inputs import Forward, InputAdapter
from ..perturbations.norms import draw_in_l2
from ..perturbations.pgd import Perturbation
from ..problems import Problem
from ..types import ForwardOutput, Progress
from .batch import Batch, RunningMeans

#: Of the probe for catastrophic overfitting: samples, steps, and the step as a share of eps (Rice et al. 2020 use PGD-10, eps / 4).
PROBE_SAMPLES, PROBE_STEPS, PROBE_SHARE = 64, 10, 0.25


@dataclass
class InnerMaximization:
    """Perturbs the micro-batches of a step, all of them at once: one perturbation for the batch does not depend on how it was cut.

    view: reads a model's outputs with a batch's targets. trust: the samples' weights (B,) from the views of the first forward.
    total: sums a tensor over the processes. gradient_scale: keeps half-precision gradients from underflow.
    """

    recipe: Recipe
    attack: Perturbation
    front: InputAdapter
    problem: Problem
    view: Callable[[Any, Batch], ForwardOutput]
    trust: Callable[[list[ForwardOutput], list[Batch], Progress], Tensor]
    total: Callable[[Tensor], Tensor]
    seed: int = 0
    rank: int = 0
    gradient_scale: float = 1.0
    _checked: bool = False

    def perturb(self, bare: Forward, batches: list[Batch], progress: Progress) -> None:
        """Sets each batch's ``adversarial`` and its inner weights. bare: the forward of the unwrapped model.

        ``adversarial`` is (B, ...), for norm ``both`` (2B, ...): the l_inf rows, then the l_2 rows of the same samples.
        """
        clean: list[Tensor | None] = [None] * len(batches)
        keep = None
        if needs_clean(self.attack.inner_loss) or any(batch.labelled is not None for batch in batches):
            views = self._views(bare, batches)
            clean = [view.logits for view in views]
            keep = self.trust(views, batches, progress)
        found: list[list[Tensor]] = [[] for _ in batches]
        for attack in self.attack.single():
            rows, keep = self._craft(attack, bare, batches, progress, clean, keep)
            for own, row in zip(found, rows):
                own.append(row)
        for batch, own in zip(batches, found):
            batch.adversarial = own[0] if len(own) == 1 else torch.cat(own)

    def _craft(
        self, attack: Perturbation, bare: Forward, batches: list[Batch], progress: Progress, clean: list[Tensor | None],
        keep: Tensor | None,
    ) -> tuple[list[Tensor], Tensor]:  # fmt: skip
        """The rows that one loop finds for each batch, and the weights (B,): from its first forward where ``keep`` is None."""
        in_l2 = self._in_l2(batches, progress) if attack.norm == "hybrid" else None
        x, space = self.front.join(batches, attack.norm, in_l2)
        if not self._checked:
            space.check(x)
            self._checked = True
        ball = attack.ball(space, in_l2)
        delta = attack.start(x, space, ball, self._generator(x, progress))
        for number in range(attack.steps):
            moved = x if number == 0 and not attack.random_start else attack.apply(x, delta, space)
            rows = self.front.split(moved, batches)
            found = [self._gradient(bare, batch, row, logits) for batch, row, logits in zip(batches, rows, clean)]
            if keep is None:
                keep = self.trust([view for _, view in found], batches, progress)
            delta = attack.step(x, delta, _stack([grad for grad, _ in found], x), keep, space, ball, self.total)
        assert keep is not None
        return self.front.split(attack.apply(x, delta, space), batches), keep

    def _in_l2(self, batches: list[Batch], progress: Progress) -> Tensor:
        """The samples (B,) of the step that are perturbed in the l_2 ball; without an index a sample is its place in the step."""
        index = [batch.index for batch in batches if batch.index is not None]
        if len(index) < len(batches):
            count = sum(len(batch.targets) for batch in batches)
            index = [torch.arange(count, device=batches[0].targets.device) + self.rank * count]
        return draw_in_l2(torch.cat(index), self.seed, progress.global_step)

    @torch.no_grad()
    def probe(self, bare: Forward, batches: list[Batch], progress: Progress, means: RunningMeans) -> None:
        """Adds to ``means`` the accuracy on the step's own examples and under PGD-10, on its first 64 samples, and beside them that
        of naming the commonest label, which no attack lowers.

        Wong et al. 2020 tell catastrophic overfitting by this: single-step examples are classified ever better, PGD's no more.
        Of norm ``both`` the l_inf examples are looked at.
        """
        some = _first(batches[0], PROBE_SAMPLES)
        assert some.adversarial is not None
        right = self._views(bare, [some], [some.adversarial])[0].logits.mean(0).argmax(-1) == some.targets
        means.add("fgsm_accuracy", right.sum(), len(some.targets))
        means.add("majority_accuracy", some.targets.bincount().max(), len(some.targets))
        attack = self.attack.single()[0]
        size, size_l2 = PROBE_SHARE * attack.eps, PROBE_SHARE * attack.eps_l2
        strong = replace(attack, steps=PROBE_STEPS, step_size=size, step_size_l2=size_l2)
        ones = torch.ones(len(some.targets), device=some.targets.device)
        replace(self, attack=strong, trust=lambda views, batches, progress: ones, _checked=True).perturb(bare, [some], progress)
        right = self._views(bare, [some], [some.adversarial])[0].logits.mean(0).argmax(-1) == some.targets
        means.add("pgd_accuracy", right.sum(), len(some.targets))

    def _views(self, bare: Forward, batches: list[Batch], moved: list[Tensor] | None = None) -> list[ForwardOutput]:
        """Forwards without gradients, on the inputs as they came or where they were moved to."""
        with torch.no_grad():
            if moved is None:
                return [self.view(bare(batch.inputs), batch) for batch in batches]
            return [self.view(self.front.forward(bare, batch.inputs, x), batch) for batch, x in zip(batches, moved)]

    def _generator(self, x: Tensor, progress: Progress) -> torch.Generator:
        rank = 0 if self.attack.scope == "batch" else self.rank
        return keyed_generator("random start", self.seed, progress.global_step, rank, device=x.device)

    def _gradient(self, bare: Forward, batch: Batch, x: Tensor, clean: Tensor | None) -> tuple[Tensor, ForwardOutput]:
        """The loss's gradient with respect to x alone (no weight gradients), and the forward it came from."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            view = self.view(self.front.forward(bare, batch.inputs, leaf), batch)
            relabel = self.recipe.relabel if self.recipe.inner_filter else None
            targets = relabel(view) if relabel is not None else view.network_targets()
            if batch.labelled is not None and clean is not None:
                targets = _own_guess(targets, clean, batch.labelled)
            own = make_objective("auto", {}, self.problem)
            losses = INNER[self.attack.inner_loss](view, targets, clean, self.recipe.objective, own)
            (grad,) = torch.autograd.grad(losses.sum() * self.gradient_scale, leaf)
        return grad, ForwardOutput(view.logits.detach(), view.targets, view.index, problem=view.problem)


def _own_guess(targets: Tensor, clean: Tensor, labelled: Tensor) -> Tensor:
    """The targets (M, B) or (M, B, C), where not ``labelled`` (M, B) the class of the model's clean logits (M, B, C)."""
    guess = clean.argmax(-1)
    if targets.dim() == 3:
        one_hot = torch.nn.functional.one_hot(guess, clean.shape[-1]).to(targets.dtype)
        return torch.where(labelled.unsqueeze(-1), targets, one_hot)
    return torch.where(labelled, targets, guess)


def _stack(grads: list[Tensor], like: Tensor) -> Tensor:
    """The micro-batches' gradients as one tensor, shorter rows filled up with zeros."""
    if len(grads) == 1 and grads[0].shape == like.shape:
        return grads[0]
    if all(grad.shape[1:] == like.shape[1:] for grad in grads):
        return torch.cat(grads)
    return torch.cat([torch.nn.functional.pad(grad, (0, 0, 0, like.shape[1] - grad.shape[1])) for grad in grads])


def _first(batch: Batch, count: int) -> Batch:
    """The batch's first samples, with what the inner maximisation reads and (of norm ``both``) the first of two examples."""
    size = len(batch.targets)
    count = min(count, size)
    inputs = {k: v[:count] if isinstance(v, Tensor) and v.dim() and len(v) == size else v for k, v in batch.inputs.items()}
    assert batch.adversarial is not None
    index = None if batch.index is None else batch.index[:count]
    labelled = None if batch.labelled is None else batch.labelled[:, :count]
    return Batch(inputs, batch.targets[:count], index, adversarial=batch.adversarial[:count], labelled=labelled)
