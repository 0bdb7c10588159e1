"""The inner maximisation of a step: for every sample, or for the batch as a whole, the perturbation that raises the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.batch_rows import rows_of
from ..data.randomness import RowDraws
from ..ledger.means import RunningMeans
from ..losses.adversarial import INNER, needs_clean
from ..losses.standard import make_objective
from ..methods.recipe import Recipe
from ..perturbations.inputs import Forward, InputAdapter
from ..perturbations.norms import draw_in_l2
from ..perturbations.pgd import Perturbation
from ..problems import Problem
from ..types import ForwardOutput, Progress
from .records import FirstForward, InnerResult, MicroBatch, places

#: Of the probe for catastrophic overfitting: samples, steps, and the step as a share of eps (Rice et al. 2020 use PGD-10, eps / 4).
PROBE_SAMPLES, PROBE_STEPS, PROBE_SHARE = 64, 10, 0.25


@dataclass
class InnerMaximization:
    """Perturbs the micro-batches of a step, all of them at once: one perturbation for the batch does not depend on how it was cut.

    Guarantee: a sample of inner weight 0 stays as it came.

    Args:
        recipe: the method.
        attack: its perturbation.
        adapter: what is moved.
        problem: what kind of problem the samples pose.
        read: a model's outputs with a micro-batch's targets.
        first_forward: the samples' weights from the outputs of the first forward (`WeightDecider.of_first_forward`).
        total: sums a tensor over the processes.
        seed: of the run.
        gradient_scale: keeps half-precision gradients from underflow.
    """

    recipe: Recipe
    attack: Perturbation
    adapter: InputAdapter
    problem: Problem
    read: Callable[[Any, MicroBatch], ForwardOutput]
    first_forward: Callable[[list[ForwardOutput], list[MicroBatch], Progress], list[FirstForward]]
    total: Callable[[Tensor], Tensor]
    seed: int = 0
    gradient_scale: float = 1.0
    _checked: bool = False

    def perturb(
        self, bare: Forward, batches: list[MicroBatch], progress: Progress, labelled: list[Tensor] | None = None
    ) -> list[InnerResult]:
        """Returns for each micro-batch what raises the loss, and what its first forward told.

        Args:
            bare: the forward of the unwrapped model.
            batches: all micro-batches of the optimizer step.
            progress: where training stands.
            labelled: whose label counts, bool (M, B), for semi-supervised methods; the others' is the model's clean prediction.
        """
        first = None
        if needs_clean(self.attack.inner_loss) or labelled is not None:
            first = self.first_forward(self._outputs(bare, batches), batches, progress)
        clean = [result.logits for result in first] if first is not None else [None] * len(batches)
        moved: list[list[Tensor]] = [[] for _ in batches]
        for attack in self.attack.single():
            rows, first = self._craft(attack, bare, batches, progress, clean, labelled, first)
            for of_batch, row in zip(moved, rows):
                of_batch.append(row)
        joined = [rows[0] if len(rows) == 1 else torch.cat(rows) for rows in moved]
        return [InnerResult(x, result) for x, result in zip(joined, first or [])]

    def _craft(
        self, attack: Perturbation, bare: Forward, batches: list[MicroBatch], progress: Progress,
        clean: Sequence[Tensor | None], labelled: list[Tensor] | None, first: list[FirstForward] | None,
    ) -> tuple[list[Tensor], list[FirstForward]]:  # fmt: skip
        """The rows that one loop finds for each micro-batch, and its first forward where none was made before."""
        rows = places(batches, batches[0].targets.device)
        in_l2 = draw_in_l2(rows, self.seed, progress.global_step) if attack.norm == "hybrid" else None
        x, space = self.adapter.join(batches, attack.norm, in_l2)
        if not self._checked:
            space.check(x)
            self._checked = True
        ball = attack.ball(space, in_l2)
        # a shared perturbation has one start, whose row is 0 on every process
        starts = rows if attack.scope == "sample" else torch.zeros(1, dtype=torch.long, device=x.device)
        delta = attack.start(x, space, ball, RowDraws(starts, "random start", self.seed, progress.global_step))
        keep = None
        for number in range(attack.steps):
            moved = x if number == 0 and not attack.random_start else attack.apply(x, delta, space)
            gradients, outputs = [], []
            for place, (batch, row) in enumerate(zip(batches, self.adapter.split(moved, batches))):
                gradient, output = self._gradient(bare, batch, row, clean[place], None if labelled is None else labelled[place])
                gradients.append(gradient)
                outputs.append(output)
            if first is None:
                first = self.first_forward(outputs, batches, progress)
            if keep is None:
                keep = torch.cat([result.inner_weights.mean(0) for result in first])
            delta = attack.step(x, delta, _stack(gradients, x), keep, space, ball, self.total)
        return self.adapter.split(attack.apply(x, delta, space), batches), first or []

    @torch.no_grad()
    def probe(
        self, bare: Forward, batches: list[MicroBatch], inner: list[InnerResult], progress: Progress, means: RunningMeans,
        labelled: list[Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Adds to ``means`` the accuracy on the step's own examples and under PGD-10, on the step's first 64 samples.

        Beside them that of naming the commonest label, which no attack lowers. Of norm ``both`` the l_inf examples are looked at.
        Every micro-batch takes part, so that all processes do: one that has none of the 64 with a sample that does not count.

        Args:
            bare: the forward of the unwrapped model.
            batches: all micro-batches of the step.
            inner: what `perturb` made of each.
            progress: where training stands.
            means: what is logged.
            labelled: as `perturb` takes it.

        References:
            Wong, Rice and Kolter 2020, "Fast is better than free" (catastrophic overfitting: single-step examples are classified
            ever better, PGD's no more).
        """
        some = [_first(batch, min(max(PROBE_SAMPLES - batch.place, 0), batch.real)) for batch in batches]
        of_some = None if labelled is None else [weights[:, : len(batch)] for weights, batch in zip(labelled, some)]
        outputs = self._outputs(bare, some, [result.adversarial[: len(batch)] for result, batch in zip(inner, some)])
        _add_accuracy(means, "fgsm_accuracy", outputs, some)
        classes = outputs[0].logits.shape[-1]
        labels = torch.cat([batch.targets[: batch.real] for batch in some])
        counts = self.total(torch.nn.functional.one_hot(labels, classes).sum(0).float())
        means.add("majority_accuracy", counts.max(), counts.sum())
        attack = self.attack.single()[0]
        size, size_l2 = PROBE_SHARE * attack.eps, PROBE_SHARE * attack.eps_l2
        strong = replace(attack, steps=PROBE_STEPS, step_size=size, step_size_l2=size_l2)
        probing = replace(self, attack=strong, first_forward=_move_everybody, _checked=True)
        moved = [result.adversarial for result in probing.perturb(bare, some, progress, of_some)]
        _add_accuracy(means, "pgd_accuracy", self._outputs(bare, some, moved), some)

    def _outputs(self, bare: Forward, batches: list[MicroBatch], moved: list[Tensor] | None = None) -> list[ForwardOutput]:
        """Forwards without gradients, on the inputs as they came or where they were moved to."""
        with torch.no_grad():
            if moved is None:
                return [self.read(bare(batch.inputs), batch) for batch in batches]
            return [self.read(self.adapter.forward(bare, batch.inputs, x), batch) for batch, x in zip(batches, moved)]

    def _gradient(
        self, bare: Forward, batch: MicroBatch, x: Tensor, clean: Tensor | None, labelled: Tensor | None
    ) -> tuple[Tensor, ForwardOutput]:
        """The loss's gradient with respect to x alone (no weight gradients), and the forward it came from."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            output = self.read(self.adapter.forward(bare, batch.inputs, leaf), batch)
            relabel = self.recipe.relabel if self.recipe.inner_filter else None
            targets = relabel(output) if relabel is not None else output.network_targets()
            if labelled is not None and clean is not None:
                targets = _own_guess(targets, clean, labelled)
            own = make_objective("auto", {}, self.problem)
            losses = INNER[self.attack.inner_loss](output, targets, clean, self.recipe.objective, own)
            (grad,) = torch.autograd.grad(losses.sum() * self.gradient_scale, leaf)
        grad = grad.nan_to_num(0.0, 0.0, 0.0)  # one sample's NaN must not spoil a perturbation that the batch shares
        return grad, ForwardOutput(output.logits.detach(), output.targets, output.index, problem=output.problem)


def _move_everybody(outputs: list[ForwardOutput], batches: list[MicroBatch], progress: Progress) -> list[FirstForward]:
    ones = [b.without_repeats(torch.ones(o.logits.shape[:2], device=o.logits.device)) for o, b in zip(outputs, batches)]
    return [FirstForward(one, output.logits, one, None) for one, output in zip(ones, outputs)]


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
    last = (0, 0) * (like.dim() - 2)  # tokens have embeddings, samples of a sound nothing
    return torch.cat([torch.nn.functional.pad(grad, (*last, 0, like.shape[1] - grad.shape[1])) for grad in grads])


def _first(batch: MicroBatch, count: int) -> MicroBatch:
    """The micro-batch's first samples; for a count of 0 one that does not count."""
    size, left = len(batch), max(count, 1)
    inputs = rows_of(batch.inputs, slice(left), size)
    index = None if batch.index is None else batch.index[:left]
    return replace(batch, inputs=inputs, targets=batch.targets[:left], index=index, repeats=left - count)


def _add_accuracy(means: RunningMeans, name: str, outputs: list[ForwardOutput], batches: list[MicroBatch]) -> None:
    for output, batch in zip(outputs, batches):
        right = output.logits.mean(0).argmax(-1) == batch.targets
        means.add(name, right[: batch.real].sum(), batch.real)
