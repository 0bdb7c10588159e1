"""Semi-supervised training on samples that are kept and others whose label is dropped (ERAT eq. 8 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.augmentation.augmentations import Augmentation
from ..types import ForwardOutput, Objective, Progress

CONSISTENCIES = ("sum", "mean")


@dataclass(frozen=True)
class SemiSupervised:
    """ERAT's outer minimisation of three views of a sample: T_s(x), x_adv and T_s(x_adv), T_s the strong augmentation.

    Labelled samples: the sum over the views of the loss on the label; unlabelled ones: lambda(t) times the sum over the views of
    ||p_view - q||_2^2, q the prediction on the weakly augmented sample, held constant (eq. 8). During the first ``warmup_epochs``
    all samples are labelled and x_adv itself is left out (eq. 9). Without an attack only T_s(x) is left (table VI "w/o AT").
    lambda(t) = ``lambda_u`` clip((t - warmup_epochs) / lambda_ramp_epochs, 0, 1) with t in epochs, as in the authors' code (the
    paper calls it the training step). Deviations from the code: q is taken in eval mode (there in train mode), and of several
    perturbations for each sample (``norm="both"``) the views' losses are averaged.

    Attributes:
        strong: T_s.
        weak: the augmentation of the samples that pseudo-labels come from.
        lambda_u: weight of the unlabelled samples, >= 0.
        lambda_ramp_epochs: epochs that lambda takes to rise after the warm-up, > 0.
        warmup_epochs: epochs on all labels, >= 0.
        temperature: of the softmax that makes q, > 0; 1 in the paper, 0.5 in the code.
        consistency: ``sum`` over the classes (the paper's squared norm) or ``mean`` (the code's: lambda_u is C times weaker).
        labelled_share: of a step's samples, in [0, 1), the smaller part of the data set coming round again: 0.5 is the paper's two
            mini-batches of one size; 0: as in the data set, each sample once an epoch.

    References:
        ERAT eq. 8 and 9, Algorithm 1.
    """

    strong: Augmentation
    weak: Augmentation
    lambda_u: float = 25.0
    lambda_ramp_epochs: float = 16.0
    warmup_epochs: float = 10.0
    temperature: float = 1.0
    consistency: str = "sum"
    labelled_share: float = 0.5

    def formal(self, progress: Progress) -> bool:
        """Returns whether the warm-up is over.

        Args:
            progress: where training stands.
        """
        return progress.epoch + 1e-9 >= self.warmup_epochs

    def weight(self, progress: Progress) -> float:
        """Returns lambda at this moment.

        Args:
            progress: where training stands.
        """
        return self.lambda_u * min(max((progress.epoch - self.warmup_epochs) / self.lambda_ramp_epochs, 0.0), 1.0)

    def pseudo_labels(self, logits: Tensor) -> Tensor:
        """Returns q, (M, B, C): softmax(logits / temperature), detached.

        Args:
            logits: of weakly augmented samples, (M, B, C).
        """
        return (logits.detach().float() / self.temperature).softmax(-1).nan_to_num(nan=0.0)

    def terms(
        self, views: Sequence[ForwardOutput], perturbations: int, targets: Tensor, pseudo: Tensor | None, objective: Objective
    ) -> tuple[Tensor, Tensor | None]:
        """Returns what a sample costs if labelled and, without lambda, if not: (M, B) each, the second None without pseudo.

        Args:
            views: forwards of T_s(x), then for each of the perturbations those of x_adv and T_s(x_adv), or of the latter alone.
            perturbations: how many there are of each sample.
            targets: the labels (M, B).
            pseudo: the pseudo-labels q, (M, B, C), None while all samples are labelled.
            objective: the loss on labels.
        """
        shares = [1.0, *[1.0 / max(perturbations, 1)] * (len(views) - 1)]
        labelled = torch.stack([objective(view, targets) * share for view, share in zip(views, shares)]).sum(0)
        if pseudo is None:
            return labelled, None
        apart = [self.distance(view.logits, pseudo) * share for view, share in zip(views, shares)]
        return labelled, torch.stack(apart).sum(0)

    def distance(self, logits: Tensor, pseudo: Tensor) -> Tensor:
        """Returns ||softmax(logits) - pseudo||_2^2, (M, B); its mean over the classes for ``consistency="mean"``.

        Args:
            logits: of one view, (M, B, C).
            pseudo: the pseudo-labels q, (M, B, C).
        """
        square = (logits.float().softmax(-1) - pseudo).square()
        return square.sum(-1) if self.consistency == "sum" else square.mean(-1)
