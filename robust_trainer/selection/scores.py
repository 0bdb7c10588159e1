"""Per-sample numbers that say how suspicious a sample is: (M, B), detached, higher = more suspicious.

Computed in the logits' type, float32 at least. A sample whose logits are NaN scores NaN, which every ranking puts last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..problems.base import full_precision
from ..types import ForwardOutput, Score


@dataclass(frozen=True)
class Loss:
    """The loss of the given target, in [0, inf) (self-paced learning; paper 001 ch. 4, paper 000 table 1).

    Class labels: cross-entropy, in nats. Multi-label: binary cross-entropy, mean over labels. Regression: squared error, mean over
    outputs, or Huber's loss where ``huber_delta`` is given (in the targets' unit; without effect on the other problems).
    Without labels: the score that the model itself returns (reconstruction error, negative log-likelihood).
    """

    huber_delta: float | None = None

    @torch.no_grad()
    def __call__(self, view: ForwardOutput) -> Tensor:
        return view.problem.loss_score(view.logits.detach(), view.network_targets(), self.huber_delta)


@dataclass(frozen=True)
class LossLayerGradientNorm:
    """The norm of the loss's gradient with respect to the outputs (PRL(L): paper 001 Algorithm 4, sec. 4.3.6; paper 000 sec. 3.1).

    Class labels: ``||softmax(z) - onehot(y)||_2``, in [0, sqrt 2]. Regression: ``||yhat - y||_2`` over the K outputs, in the
    targets' unit; with ``huber_delta`` ``||clip(yhat - y, -delta, delta)||_2``, at most delta sqrt K. Multi-label:
    ``||sigmoid(z) - y||_2``, in [0, sqrt K]. Constant factors (2 / K, 1 / K) are left out, as in the paper. The authors' code uses
    the square; the order of the samples is the same. Without labels: the model's own score, which for a squared reconstruction
    error has the order of its gradient's norm.
    """

    huber_delta: float | None = None

    @torch.no_grad()
    def __call__(self, view: ForwardOutput) -> Tensor:
        return view.problem.gradient_norm(view.logits, view.network_targets(), self.huber_delta)


loss = Loss()
loss_layer_gradient_norm = LossLayerGradientNorm()


@dataclass(frozen=True)
class Brier:
    """||p - y||_2^2 with p = softmax(z) and y the one-hot label, in [0, 2] (ERAT: paper 003 eq. 1; the Brier score).

    Raises ``ValueError`` for regression and multi-label.
    """

    @torch.no_grad()
    def __call__(self, view: ForwardOutput) -> Tensor:
        if not view.problem.one_class:
            raise ValueError(f"score 'brier' is for one class label per sample, but problem_type='{view.problem}': use 'prl-l'.")
        p = full_precision(view.logits.detach()).softmax(-1)
        own = p.gather(-1, view.network_targets().unsqueeze(-1)).squeeze(-1)
        # sum_k p_k^2 + 1 - 2 p_y, as a sum of squares lest it cancel near 0
        rest = p.scatter(-1, view.network_targets().unsqueeze(-1), 0.0)
        return rest.square().sum(-1) + (1.0 - own).square()


@dataclass(frozen=True)
class GradientNorm:
    """The norm of the sample's gradient over all parameters (PRL(G): paper 001 Algorithm 3), as found in ``view.gradient_norms``.

    Raises ``ValueError`` where the view has none.
    """

    @torch.no_grad()
    def __call__(self, view: ForwardOutput) -> Tensor:
        if view.gradient_norms is None:
            raise ValueError("score 'prl-g' needs view.gradient_norms, got None: set gradients=True in the recipe.")
        return full_precision(view.gradient_norms.detach())


@dataclass(frozen=True)
class Agreement:
    """1 where all peers predict the same, 0 where not, (M, B) (decoupling, Malach and Shalev-Shwartz 2017).

    Class labels: the class with the largest logit. Multi-label: all labels, each at logit > 0. ``ValueError`` for others.
    """

    @torch.no_grad()
    def __call__(self, view: ForwardOutput) -> Tensor:
        predicted = view.problem.predictions(view.logits)
        if predicted is None:
            raise ValueError(f"score 'agreement' compares predicted classes, not for '{view.problem}': choose another method.")
        return (predicted == predicted[:1]).all(-1).all(0).float().expand(view.logits.shape[:2])


#: Every score by its name, with the problem's own loss.
SCORES: dict[str, Score] = {
    "loss": loss,
    "prl-l": loss_layer_gradient_norm,
    "prl-g": GradientNorm(),
    "agreement": Agreement(),
    "brier": Brier(),
}


def make_score(name: str, huber_delta: float | None = None) -> Score:
    """The score of that name; ``huber_delta`` is for ``loss`` and ``prl-l`` on regression. ``ValueError`` for an unknown name."""
    if not isinstance(name, str) or name not in SCORES:
        raise ValueError(f"unknown score {name!r}: choose one of {', '.join(SCORES)}.")
    if huber_delta is not None and name in ("loss", "prl-l"):
        return Loss(huber_delta) if name == "loss" else LossLayerGradientNorm(huber_delta)
    return SCORES[name]
