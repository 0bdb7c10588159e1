"""Scores: per-sample numbers (M, B), detached, higher = more suspicious.

Computed in the logits' type, float32 at least. Guarantee: a sample whose logits are NaN scores NaN, which every ranking puts last.
A new score is a class and its row in `SCORES`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..problems.base import full_precision
from ..types import ForwardOutput, Score


@dataclass(frozen=True)
class Loss:
    """The loss of the sample's target, in [0, inf) (self-paced learning).

    Class labels: cross-entropy, in nats. Multi-label: binary cross-entropy, mean over labels. Regression: squared error, mean over
    outputs, or Huber's loss. Without labels: the score that the model itself returns (reconstruction error, negative
    log-likelihood).

    Args:
        huber_delta: Huber's delta, > 0 in the targets' unit, for regression alone; None: squared error.

    References:
        Kumar et al. 2010, "Self-paced learning for latent variable models"; Dissertation ch. 4; Backdoor table 1.
    """

    huber_delta: float | None = None

    @torch.no_grad()
    def __call__(self, output: ForwardOutput) -> Tensor:
        """Returns the scores (M, B) of a forward pass."""
        return output.problem.loss_score(output.logits.detach(), output.network_targets(), self.huber_delta)


@dataclass(frozen=True)
class LossLayerGradientNorm:
    """The norm of the loss's gradient with respect to the outputs (PRL(L)).

    Class labels: ``||softmax(z) - onehot(y)||_2``, in [0, sqrt 2]. Regression: ``||yhat - y||_2`` over the K outputs, in the
    targets' unit; with ``huber_delta`` ``||clip(yhat - y, -delta, delta)||_2``, at most delta sqrt K. Multi-label:
    ``||sigmoid(z) - y||_2``, in [0, sqrt K]. Constant factors (2 / K, 1 / K) are left out, as in the paper. The authors' code uses
    the square; the order of the samples is the same. Without labels: the model's own score, which for a squared reconstruction
    error has the order of its gradient's norm.

    Args:
        huber_delta: Huber's delta, > 0 in the targets' unit, for regression alone; None: squared error.

    References:
        Dissertation Algorithm 4 and sec. 4.3.6; Backdoor sec. 3.1.
    """

    huber_delta: float | None = None

    @torch.no_grad()
    def __call__(self, output: ForwardOutput) -> Tensor:
        """Returns the scores (M, B) of a forward pass."""
        return output.problem.gradient_norm(output.logits, output.network_targets(), self.huber_delta)


loss = Loss()
loss_layer_gradient_norm = LossLayerGradientNorm()


@dataclass(frozen=True)
class Brier:
    """||p - y||_2^2 with p = softmax(z) and y the one-hot label, in [0, 2]: the Brier score.

    Raises:
        ValueError: when called, for other problems than one class label per sample.

    References:
        ERAT eq. 1.
    """

    @torch.no_grad()
    def __call__(self, output: ForwardOutput) -> Tensor:
        """Returns the scores (M, B) of a forward pass."""
        if not output.problem.one_class:
            raise ValueError(f"score 'brier' is for one class label per sample, but problem_type='{output.problem}': use 'prl-l'.")
        p = full_precision(output.logits.detach()).softmax(-1)
        labelled = p.gather(-1, output.network_targets().unsqueeze(-1)).squeeze(-1)
        # sum_k p_k^2 + 1 - 2 p_y, as a sum of squares lest it cancel near 0
        rest = p.scatter(-1, output.network_targets().unsqueeze(-1), 0.0)
        return rest.square().sum(-1) + (1.0 - labelled).square()


@dataclass(frozen=True)
class GradientNorm:
    """The norm of the sample's gradient over all parameters (PRL(G)), as it stands in ``output.gradient_norms``.

    Raises:
        ValueError: when called, where the output has none.

    References:
        Dissertation Algorithm 3.
    """

    @torch.no_grad()
    def __call__(self, output: ForwardOutput) -> Tensor:
        """Returns the scores (M, B) of a forward pass."""
        if output.gradient_norms is None:
            raise ValueError("score 'prl-g' needs output.gradient_norms, got None: set gradients=True in the recipe.")
        return full_precision(output.gradient_norms.detach())


@dataclass(frozen=True)
class Agreement:
    """1 where all networks predict the same, 0 where not.

    Class labels: the class with the largest logit. Multi-label: all labels, each at logit > 0.

    Raises:
        ValueError: when called, for other problems.

    References:
        Malach and Shalev-Shwartz 2017, "Decoupling 'when to update' from 'how to update'".
    """

    @torch.no_grad()
    def __call__(self, output: ForwardOutput) -> Tensor:
        """Returns the scores (M, B) of a forward pass."""
        predicted = output.problem.predictions(output.logits)
        if predicted is None:
            raise ValueError(f"score 'agreement' compares predicted classes, not for '{output.problem}': choose another method.")
        return (predicted == predicted[:1]).all(-1).all(0).float().expand(output.logits.shape[:2])


#: Every score by its name, with the problem's own loss.
SCORES: dict[str, Score] = {
    "loss": loss,
    "prl-l": loss_layer_gradient_norm,
    "prl-g": GradientNorm(),
    "agreement": Agreement(),
    "brier": Brier(),
}


def make_score(name: str, huber_delta: float | None = None) -> Score:
    """Returns the score of a name.

    Args:
        name: a key of `SCORES`.
        huber_delta: of ``loss`` and ``prl-l`` on regression; without effect on the other scores.

    Raises:
        ValueError: for an unknown name.
    """
    if not isinstance(name, str) or name not in SCORES:
        raise ValueError(f"unknown score {name!r}: choose one of {', '.join(SCORES)}.")
    if huber_delta is not None and name in ("loss", "prl-l"):
        return Loss(huber_delta) if name == "loss" else LossLayerGradientNorm(huber_delta)
    return SCORES[name]
