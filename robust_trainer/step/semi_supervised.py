"""A semi-supervised step (ERAT): the augmented and perturbed variants of its samples, and the loss on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.augmentation.augmentations import augment
from ..ledger.means import RunningMeans
from ..losses.semi_supervised import SemiSupervised
from ..perturbations.inputs import Forward, PixelAdapter
from ..types import ForwardOutput, Objective, Progress
from .records import InnerResult, MicroBatch, SampleWeights, SemiSupervisedInputs, StepWeights, places


@dataclass
class SemiSupervisedStep:
    """What the training forwards of a semi-supervised step take, and what they cost.

    Args:
        semi: the method's settings.
        objective: the loss on labels.
        adapter: the images.
        read: a model's outputs with a micro-batch's targets.
    """

    semi: SemiSupervised
    objective: Objective
    adapter: PixelAdapter
    read: Callable[[Any, MicroBatch], ForwardOutput]
    _checked: bool = False

    def inputs(
        self, bare: Forward, batches: Sequence[MicroBatch], inner: Sequence[InnerResult], progress: Progress, seed: int,
        dropping: bool,
    ) -> list[SemiSupervisedInputs]:  # fmt: skip
        """Returns for each micro-batch what its forwards take, and the pseudo-labels; all micro-batches are augmented together.

        Args:
            bare: the unwrapped model's forward, in evaluation mode.
            batches: all micro-batches of the step.
            inner: what the inner maximisation found for each, none without an attack.
            progress: where training stands.
            seed: of the step's augmentations.
            dropping: whether there may be unlabelled samples.
        """
        semi, adapter = self.semi, self.adapter
        x, space = adapter.join(batches, "linf")
        if not self._checked and not inner:  # with an attack the inner maximisation has looked
            space.check(x)
            self._checked = True
        formal, rows = semi.formal(progress), places(batches, "cpu")
        strong = adapter.split(augment(semi.strong, x, space, seed, "strong_augmentation", rows), batches)
        seconds: list[list[Tensor]] = [[] for _ in batches]
        kinds = len(inner[0].adversarial) // len(batches[0]) if inner else 0
        for kind in range(kinds):
            moved = torch.cat([result.adversarial.chunk(kinds)[kind] for result in inner])
            augmented = augment(semi.strong, moved, space, seed + 1 + kind, "strong_augmentation", rows)
            for second, plain, changed in zip(seconds, adapter.split(moved, batches), adapter.split(augmented, batches)):
                second += [plain, changed] if formal else [changed]
        pseudo: list[Tensor | None] = [None] * len(batches)
        if formal and dropping:
            weak = adapter.split(augment(semi.weak, x, space, seed - 1, "weak_augmentation", rows), batches)
            with torch.no_grad():
                pseudo = [
                    semi.pseudo_labels(self.read(adapter.forward(bare, batch.inputs, row), batch).logits)
                    for batch, row in zip(batches, weak)
                ]
        return [
            SemiSupervisedInputs(row, torch.cat(second) if second else None, q) for row, second, q in zip(strong, seconds, pseudo)
        ]

    def loss(
        self, outputs: list[ForwardOutput], pseudo: Tensor | None, sample: SampleWeights, step: StepWeights, progress: Progress,
        means: RunningMeans,
    ) -> Tensor:  # fmt: skip
        """Returns the mean loss of the labelled samples plus lambda times that of the unlabelled ones, scalar.

        Args:
            outputs: of all training forwards.
            pseudo: targets of the unlabelled samples (M, B, C), None where all are labelled.
            sample: the weights of the micro-batch: 1 labelled, 0 not.
            step: of the whole step, for what both parts are divided by.
            progress: where training stands.
            means: takes up both parts.
        """
        weights, formal, adversarial = sample.training, self.semi.formal(progress), len(outputs) - 1
        kinds = adversarial // 2 if formal else adversarial
        labelled, apart = self.semi.terms(outputs, kinds, outputs[0].network_targets(), pseudo, self.objective)
        kept = step.kept.clamp_min(1.0)
        loss = (torch.where(weights > 0, labelled * weights, torch.zeros_like(labelled)).sum(1) / kept).sum()
        means.add("loss_labelled", torch.where(weights > 0, labelled.detach() * weights, 0.0).sum(), weights.sum())
        if apart is None or step.dropped is None:
            return loss
        rest = sample.rest
        apart = torch.where(rest > 0, apart * rest, torch.zeros_like(apart))
        means.add("loss_unlabelled", apart.detach().sum(), rest.sum())
        return loss + self.semi.weight(progress) * (apart.sum(1) / step.dropped.clamp_min(1.0)).sum()
