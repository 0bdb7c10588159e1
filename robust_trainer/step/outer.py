"""The outer minimisation of a step: its training forwards, and their losses weighed into one scalar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..images.augmentations import augment
from ..methods.recipe import Recipe
from ..models.outputs import logits_of
from ..per_sample_gradients.norms import SampleGradients
from ..perturbations.inputs import Forward, InputAdapter, PixelAdapter
from ..types import ForwardOutput, Progress
from .batch import Batch, RunningMeans


@dataclass
class OuterMinimization:
    """A micro-batch's forwards and losses. read: a model's outputs as a view; recorder: of each sample's gradient, for prl-g."""

    recipe: Recipe
    read: Callable[[Any, Batch], ForwardOutput]
    recorder: SampleGradients | None = None
    front: InputAdapter | None = None
    _checked: bool = False

    def first(self, forward: Forward, batch: Batch) -> Any:
        """The outputs of the training forward: on the inputs as they came where a pair needs both, else on the perturbed ones."""
        if batch.strong is not None:
            assert self.front is not None
            return self.front.forward(forward, batch.inputs, batch.strong)
        if batch.adversarial is None or self.recipe.adversarial_loss is not None:
            return forward(batch.inputs)
        assert self.front is not None
        return self.front.forward(forward, batch.inputs, batch.adversarial)

    def views(self, outputs: Any, bare: Forward, batch: Batch) -> list[ForwardOutput]:
        """The views of the training forwards: that of `first`'s outputs and, for a pair, the perturbed one, of one more forward."""
        views = [self.read(outputs, batch)]
        if self.recipe.adversarial_loss is not None:
            assert batch.adversarial is not None and self.front is not None
            # the bare model: a second forward of a distributed one would broadcast BatchNorm's buffers under the first's graph
            views.append(self.read(self.front.forward(bare, batch.inputs, batch.adversarial), batch))
        if batch.second is not None:
            assert self.front is not None
            logits = logits_of(self.front.forward(bare, batch.inputs, batch.second))
            assert logits is not None
            views += [self.read(rows, batch) for rows in logits.split(len(batch.targets))]
        return views

    def prepare(self, bare: Forward, batches: list[Batch], progress: Progress, seed: int, dropping: bool) -> None:
        """What the training forwards of a semi-supervised step take, for all its micro-batches together, and the pseudo-labels.

        Runs in evaluation mode. dropping: whether there may be unlabelled samples.
        """
        semi, front = self.recipe.semi_supervised, self.front
        assert semi is not None and isinstance(front, PixelAdapter)
        x, space = front.join(batches, "linf")
        if not self._checked and self.recipe.perturbation is None:  # with one the inner maximisation has looked
            space.check(x)
            self._checked = True
        formal = semi.formal(progress)
        rows = front.split(augment(semi.strong, x, space, seed, "strong_augmentation"), batches)
        for batch, row in zip(batches, rows):
            batch.strong = row
        if all(batch.adversarial is not None for batch in batches):
            found = [batch.adversarial for batch in batches if batch.adversarial is not None]
            kinds = len(found[0]) // len(batches[0].targets)
            seconds: list[list[Tensor]] = [[] for _ in batches]
            for kind in range(kinds):
                moved = torch.cat([rows.chunk(kinds)[kind] for rows in found])
                strong = augment(semi.strong, moved, space, seed + 1 + kind, "strong_augmentation")
                for second, plain, augmented in zip(seconds, front.split(moved, batches), front.split(strong, batches)):
                    second += [plain, augmented] if formal else [augmented]
            for batch, second in zip(batches, seconds):
                batch.second = torch.cat(second)
        if formal and dropping:
            weak = front.split(augment(semi.weak, x, space, seed - 1, "weak_augmentation"), batches)
            with torch.no_grad():
                for batch, row in zip(batches, weak):
                    batch.pseudo = semi.pseudo_labels(self.read(front.forward(bare, batch.inputs, row), batch).logits)

    def semi_loss(
        self,
        views: list[ForwardOutput],
        batch: Batch,
        kept: Tensor,
        dropped: Tensor | None,
        progress: Progress,
        means: RunningMeans | None,
    ) -> Tensor:
        """The mean loss of the labelled samples plus lambda times that of the unlabelled ones, each over the whole step, scalar."""
        semi, weights = self.recipe.semi_supervised, batch.weights
        assert semi is not None and weights is not None
        formal, adversarial = semi.formal(progress), len(views) - 1
        kinds = adversarial // 2 if formal else adversarial
        labelled, apart = semi.terms(views, kinds, views[0].network_targets(), batch.pseudo, self.recipe.objective)
        loss = (torch.where(weights > 0, labelled * weights, torch.zeros_like(labelled)).sum(1) / kept).sum()
        if means is not None:
            means.add("loss_labelled", (labelled.detach() * weights).sum(), weights.sum())
        if apart is None or dropped is None:
            return loss
        rest = 1.0 - weights
        if means is not None:
            means.add("loss_unlabelled", (apart.detach() * rest).sum(), rest.sum())
        return loss + semi.weight(progress) * ((apart * rest).sum(1) / dropped.clamp_min(1.0)).sum()

    def recording(self, batch: Batch) -> AbstractContextManager:
        """What a training forward runs in: the recording of each sample's gradient, where the method asks for it."""
        return self.recorder.record(len(batch.targets)) if self.recorder is not None else nullcontext()

    def with_gradient_norms(self, view: ForwardOutput) -> tuple[ForwardOutput, Tensor | None]:
        """The output with each sample's gradient norm and the losses (M, B); where the method asks for none, as it is, and None."""
        if self.recorder is None:
            return view, None
        losses = self.recipe.objective(view, view.network_targets())
        return replace(view, gradient_norms=self.recorder.norms(losses[0]).unsqueeze(0)), losses

    def scores(self, forward: Forward, batch: Batch) -> Tensor:
        """The scores (M, B) of a training forward that keeps no gradient."""
        with torch.set_grad_enabled(self.recorder is not None):
            with self.recording(batch):
                outputs = self.first(forward, batch)
            view, _ = self.with_gradient_norms(self.read(outputs, batch))
            return self.recipe.score(view)

    def loss(
        self,
        views: list[ForwardOutput],
        weights: Tensor,
        divisor: Tensor,
        own: Tensor | None = None,
        means: RunningMeans | None = None,
    ) -> Tensor:
        """The sum over the peers of sum(weight x loss) / divisor, scalar; its value is their mean, so that one loss is logged.

        own: the losses of `with_gradient_norms`, whose gradients are recorded already. means: takes up a pair's terms by name.
        """
        if self.recorder is not None and own is not None:
            return self.recorder.loss(own[0], weights[0] / divisor)
        relabel = self.recipe.relabel if self.recipe.outer_filter else None
        targets = relabel(views[0]) if relabel is not None else views[0].network_targets()
        # a dropped sample's NaN or infinity must reach neither the loss nor, through 0 * NaN, the gradient
        if self.recipe.selection is not None:
            kept = (weights > 0).unsqueeze(-1)
            views = [replace(v, logits=torch.where(kept, v.logits, torch.zeros_like(v.logits))) for v in views]
        if self.recipe.adversarial_loss is None:
            losses = self.recipe.objective(views[0], targets)
        else:
            terms = self.recipe.adversarial_loss(views[0], views[1], targets, self.recipe.objective)
            losses = torch.stack(list(terms.values())).sum(0)
            if means is not None:
                for name, term in terms.items():
                    means.add(f"loss_{name}", (term.detach() * weights).sum(), weights.sum())
        total = (torch.where(weights > 0, losses * weights, torch.zeros_like(losses)).sum(1) / divisor).sum()
        return total if len(losses) == 1 else total - (total * (1.0 - 1.0 / len(losses))).detach()

    def add_gradients(
        self, views: list[ForwardOutput], weights: Tensor, parameters: Sequence[Parameter], sums: list[Tensor]
    ) -> None:
        """Adds to ``sums`` the gradient of sum(weight x loss) with respect to each of the parameters; their ``grad`` stays."""
        loss = self.loss(views, weights, torch.ones((), device=weights.device))
        for total, gradient in zip(sums, torch.autograd.grad(loss, parameters, allow_unused=True)):
            if gradient is not None:
                total += gradient
