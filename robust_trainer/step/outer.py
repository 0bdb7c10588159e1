"""The outer minimisation of a step: its training forwards, and their losses weighed into one scalar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..ledger.means import RunningMeans
from ..methods.recipe import Recipe
from ..models.outputs import logits_of
from ..per_sample_gradients.norms import SampleGradients
from ..perturbations.inputs import Forward
from ..types import ForwardOutput
from .nonfinite import finite_samples, without
from .records import MicroBatch, PlannedBatch


@dataclass
class OuterMinimization:
    """A micro-batch's training forwards and their losses.

    Args:
        recipe: the method.
        read: a model's outputs with a micro-batch's targets.
        recorder: of each sample's gradient, for methods that ask for it (``prl-g``).
    """

    recipe: Recipe
    read: Callable[[Any, MicroBatch], ForwardOutput]
    recorder: SampleGradients | None = None

    # ---- forwards ----------------------------------------------------------------------------------------------------------

    def first(self, forward: Forward, planned: PlannedBatch) -> Any:
        """Returns what the model returned in the training forward."""
        return forward(planned.batch.inputs) if planned.first is None else planned.first.forward(forward)

    def outputs(self, first: Any, bare: Forward, planned: PlannedBatch) -> list[ForwardOutput]:
        """Returns the outputs of all training forwards.

        Args:
            first: what `first` returned.
            bare: the unwrapped model's forward: a second forward of a distributed model would broadcast BatchNorm's buffers under
                the first's graph.
            planned: the micro-batch.
        """
        batch = planned.batch
        outputs = [self.read(first, batch)]
        if planned.second is None:
            return outputs
        second = planned.second.forward(bare)
        if len(planned.second.x) == len(batch):
            return [*outputs, self.read(second, batch)]
        logits = logits_of(second)
        rows = logits.split(len(batch)) if logits is not None else [second]
        return [*outputs, *(self.read(row, batch) for row in rows)]

    def recording(self, planned: PlannedBatch) -> AbstractContextManager:
        """Returns what a training forward runs in: the recording of each sample's gradient, where the method asks for it."""
        return self.recorder.record(len(planned.batch)) if self.recorder is not None else nullcontext()

    def with_gradient_norms(self, output: ForwardOutput) -> tuple[ForwardOutput, Tensor | None]:
        """Returns the output with each sample's gradient norm and the losses (M, B), or where none is asked for, as it is."""
        if self.recorder is None:
            return output, None
        losses = self.recipe.objective(output, output.network_targets())
        return replace(output, gradient_norms=self.recorder.norms(losses[0]).unsqueeze(0)), losses

    def scores(self, forward: Forward, planned: PlannedBatch) -> Tensor:
        """Returns the scores (M, B) of a training forward that keeps no gradient."""
        with torch.set_grad_enabled(self.recorder is not None):
            with self.recording(planned):
                first = self.first(forward, planned)
            output, _ = self.with_gradient_norms(self.read(first, planned.batch))
            return self.recipe.score(output)

    # ---- losses ------------------------------------------------------------------------------------------------------------

    def loss(
        self,
        outputs: list[ForwardOutput],
        weights: Tensor,
        divisor: Tensor,
        recorded: Tensor | None = None,
        means: RunningMeans | None = None,
    ) -> Tensor:
        """Returns the sum over the networks of sum(weight x loss) / divisor, scalar; its value is their mean, which is logged.

        Guarantee: the NaN or infinity of a sample of weight 0 reaches neither the loss nor, through its outputs, the gradient.

        Args:
            outputs: of `outputs`.
            weights: (M, B) or (1, B).
            divisor: (M,) or scalar.
            recorded: the losses of `with_gradient_norms`, whose gradients are recorded already.
            means: takes up the terms of a loss on two forwards, by name.
        """
        if self.recorder is not None and recorded is not None:
            return self.recorder.loss(recorded[0], weights[0] / divisor)
        relabel = self.recipe.relabel if self.recipe.outer_filter else None
        targets = relabel(outputs[0]) if relabel is not None else outputs[0].network_targets()
        # the NaN or infinity of a sample without weight must reach neither the loss nor, through 0 * NaN, the gradient
        used = weights > 0
        outputs = without(outputs, used)
        if targets.is_floating_point():
            targets = torch.where(used.unsqueeze(-1), targets, torch.zeros_like(targets))
        if self.recipe.adversarial_loss is None:
            losses = self.recipe.objective(outputs[0], targets)
        else:
            terms = self.recipe.adversarial_loss(outputs[0], outputs[1], targets, self.recipe.objective)
            losses = torch.stack(list(terms.values())).sum(0)
            if means is not None:
                for name, term in terms.items():
                    means.add(f"loss_{name}", torch.where(used, term.detach() * weights, 0.0).sum(), weights.sum())
        total = (torch.where(used & losses.isfinite(), losses * weights, torch.zeros_like(losses)).sum(1) / divisor).sum()
        return total if len(losses) == 1 else total - (total * (1.0 - 1.0 / len(losses))).detach()

    def add_gradients(
        self, outputs: list[ForwardOutput], weights: Tensor, gradients: Callable[[Tensor], Sequence[Tensor | None]],
        sums: list[Tensor],
    ) -> None:  # fmt: skip
        """Adds to ``sums`` the ``gradients`` of sum(weight x loss), of each of the parameters; their ``grad`` stays."""
        weights = torch.where(finite_samples(outputs), weights, torch.zeros_like(weights))
        loss = self.loss(outputs, weights, torch.ones((), device=weights.device))
        for total, gradient in zip(sums, gradients(loss)):
            if gradient is not None:
                total += gradient
