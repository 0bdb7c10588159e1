"""What a step consists of: its micro-batches, what was decided about them, and the running means of what is logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..perturbations.awp import PerturbedWeights


@dataclass
class Batch:
    """One micro-batch: the model's inputs without labels and index, the targets (B,) or (B, K), the positions (B,) or None.

    adversarial: what the inner maximisation found, as `fronts.InputAdapter.forward` takes it; None without one.
    clean_scores, first_logits: (M, B) and (M, B, C), of the inner maximisation's first forward.
    trusted: the rule's weights (M, B); weights: those that count, less the samples held out for the noise rate's estimate.
    labelled: whose label counts, bool (M, B), for semi-supervised methods; strong: what the first of their training forwards takes;
    second: what the second does, k views of each sample (k B, ...); pseudo: the targets of the unlabelled samples (M, B, C).
    """

    inputs: dict[str, Any]
    targets: Tensor
    index: Tensor | None
    adversarial: Tensor | None = None
    clean_scores: Tensor | None = None
    first_logits: Tensor | None = None
    inner_weights: Tensor | None = None
    trusted: Tensor | None = None
    weights: Tensor | None = None
    labelled: Tensor | None = None
    strong: Tensor | None = None
    second: Tensor | None = None
    pseudo: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        """The positions in the data set (B,), for methods that need them."""
        assert self.index is not None
        return self.index


@dataclass
class Step:
    """One optimizer step: its micro-batches, what was decided for all of them together, and the weights as AWP moves them.

    kept: what the losses on labels are divided by, over all processes; dropped: the same of the unlabelled samples'.
    """

    batches: list[Batch]
    kept: Tensor | float | None = None
    dropped: Tensor | None = None
    perturbed_weights: PerturbedWeights | None = None


@dataclass
class RunningMeans:
    """Named means over the steps since they were last taken, kept on the device until then."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, count: Tensor | int) -> None:
        """Adds a sum and the number of terms in it."""
        total = count.float() if isinstance(count, Tensor) else torch.full_like(value, float(count))
        pair = torch.stack([value.float(), total])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def take(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means since the last call, over all processes (one host sync)."""
        names = list(self.sums)
        if not names:
            return {}
        pairs = over_processes(torch.stack([self.sums[name] for name in names])).cpu()
        self.sums.clear()
        return {name: float(value / count) for name, (value, count) in zip(names, pairs) if count > 0}
