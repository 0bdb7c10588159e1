"""The vocabulary every room speaks: B samples in a batch, C classes, M peers (1 for ordinary training)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from .perturbations import Perturbation
    from .selection import KeepByScore


@dataclass(frozen=True)
class Progress:
    """Where training stands: ``epoch`` counts finished epochs as a float (0.0 at the start), as the trainer's state does."""

    epoch: float
    max_epochs: float
    global_step: int = 0


@dataclass
class View:
    """One forward pass kept together: logits (M, B, C), the given labels (B,) and, where known, sample indices (B,)."""

    logits: Tensor
    targets: Tensor
    index: Tensor | None = None
    outputs: Any = None


class Score(Protocol):
    """``View -> (M, B)``, detached; HIGHER = MORE SUSPICIOUS, everywhere."""

    def __call__(self, view: View) -> Tensor: ...


#: ``View -> targets``: (M, B) labels or (M, B, C) mixtures that replace the given labels (bootstrap).
Relabel = Callable[[View], Tensor]
#: ``(View, targets) -> (M, B)`` differentiable losses, one per sample.
Objective = Callable[[View, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """A published method as data: what to perturb, whom to trust, what to minimise.

    ``inner_filter`` and ``outer_filter`` switch selection and relabelling on in the inner maximisation and in the outer
    minimisation (paper 000, Algorithm 1; table 4 is the ablation). ``trust`` names the forward whose scores decide in the
    outer step and are remembered: ``outer``, on the perturbed inputs (papers), or ``inner``, on the inputs as they came.
    ``settings`` are the numbers it was built from.
    """

    name: str
    score: Score
    objective: Objective
    selection: KeepByScore | None = None
    relabel: Relabel | None = None
    perturbation: Perturbation | None = None
    inner_filter: bool = True
    outer_filter: bool = True
    trust: str = "outer"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_index(self) -> bool:
        """Whether the method cannot work without each sample's position in the data set."""
        return self.selection is not None and self.selection.memory != "none"
