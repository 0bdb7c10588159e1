"""Losses on class labels that wrong labels hurt less than cross-entropy: (ForwardOutput, labels (M, B)) -> (M, B), differentiable.

p = softmax(z) of one sample, y its given label, C the number of classes. Computed in the logits' type, float32 at least.

Guarantee: finite, with finite gradients, for logits of +-800 and for C from 2 up. Mixtures (M, B, C) as targets are a one-line
``ValueError``.

References:
    NRAT sec. 2.3 and 3.3; Ma et al. 2020 (APL), whose code is meant by "the authors' code".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..problems import SINGLE_LABEL, Problem
from ..problems.base import full_precision
from ..types import ForwardOutput

#: log 0 in the reverse cross-entropy, where a one-hot target is taken at 1e-4 (Wang et al. 2019; the authors' code).
A = math.log(1e-4)
#: Keeps the boosted cross-entropy's logarithm finite: log(1.0001 - p + 1e-12) of MART's code is log((1 - p) + this).
BOOST_FLOOR = 1e-4 + 1e-12


def one_label(name: str, targets: Tensor) -> Tensor:
    """Returns labels (M, B) as an index (M, B, 1).

    Args:
        name: the objective's, for the message.
        targets: class labels (M, B).

    Raises:
        ValueError: for mixtures of classes, which the objective cannot take.
    """
    if targets.dim() != 2:
        raise ValueError(f"objective='{name}' takes class labels (M, B), got targets of shape {tuple(targets.shape)}: choose 'ce'.")
    return targets.unsqueeze(-1)


def other_mass(output: ForwardOutput, index: Tensor) -> Tensor:
    """Returns ``1 - p_y``, (M, B), in [0, 1], as the sum of the other probabilities: exact where p_y rounds to 1.

    Args:
        output: a forward pass.
        index: the labels (M, B, 1).
    """
    return full_precision(output.logits).softmax(-1).scatter(-1, index, 0.0).sum(-1)


@dataclass(frozen=True)
class GeneralizedCrossEntropy:
    """Generalised cross-entropy ``(1 - p_y^q) / q``, (M, B), in [0, 1 / q].

    From log p_y, without the authors' clamp of p at 1e-7, below which their gradient is 0.

    Args:
        q: in (0, 1]: towards 0 it is the cross-entropy, at 1 the reduced mean absolute error.

    Raises:
        ValueError: for another q.

    References:
        Zhang and Sabuncu 2018, eq. 6.
    """

    q: float = 0.7
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)
    settings: ClassVar[Mapping[str, str]] = {"gce_q": "q"}

    def __post_init__(self) -> None:
        if not 0 < self.q <= 1:
            raise ValueError(f"gce_q={self.q!r}: expected a number in (0, 1].")

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B).
        """
        index = one_label("gce", targets)
        log_p = full_precision(output.logits).log_softmax(-1).gather(-1, index).squeeze(-1)
        return -(self.q * log_p).expm1() / self.q


@dataclass(frozen=True)
class NormalizedCrossEntropy:
    """Normalised cross-entropy ``log p_y / sum_k log p_k``, (M, B), in [0, 1].

    Summed over all labels it is 1, whatever the prediction (NRAT eq. 6).

    References:
        NRAT eq. 11; Ma et al. 2020.
    """

    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B).
        """
        index = one_label("nce", targets)
        log_p = full_precision(output.logits).log_softmax(-1)
        return log_p.gather(-1, index).squeeze(-1) / log_p.sum(-1)


@dataclass(frozen=True)
class ReverseCrossEntropy:
    """Reverse cross-entropy ``-sum_k p_k log q_k = -A (1 - p_y)``, (M, B), in [0, 9.22].

    q is the one-hot target with its zeros taken at 1e-4, A = log 1e-4 = -9.2103. The authors' code clamps p at 1e-7 as well, which
    adds up to 9.21e-7 for each class but y and cuts the gradient of classes below it; this does not.

    References:
        NRAT eq. 12; Wang et al. 2019.
    """

    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B).
        """
        return -A * other_mass(output, one_label("rce", targets))


@dataclass(frozen=True)
class SymmetricCrossEntropy:
    """Symmetric cross-entropy ``alpha CE + beta RCE``, (M, B), in [0, inf).

    Neither p is clamped (see `ReverseCrossEntropy`).

    Args:
        alpha: weight of the cross-entropy, >= 0; the authors use 0.1 on CIFAR-10 (the default), 6 on CIFAR-100, 0.01 on MNIST.
        beta: weight of the reverse cross-entropy, >= 0; the authors use 1 on CIFAR-10 (the default), 0.1 on CIFAR-100, 1 on MNIST.

    References:
        Wang et al. 2019, eq. 7.
    """

    alpha: float = 0.1
    beta: float = 1.0
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)
    settings: ClassVar[Mapping[str, str]] = {"sce_alpha": "alpha", "sce_beta": "beta"}

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B).
        """
        index = one_label("sce", targets)
        log_p = full_precision(output.logits).log_softmax(-1).gather(-1, index).squeeze(-1)
        return -self.alpha * log_p - self.beta * A * other_mass(output, index)


@dataclass(frozen=True)
class ActivePassive:
    """Active-passive loss ``alpha NCE + beta RCE``, (M, B), in [0, alpha + 9.22 beta].

    Args:
        alpha: weight of NCE, >= 0; None: C / 10 for C classes.
        beta: weight of RCE, >= 0; None: 10 / C. Both are a rule of this project that meets the authors' 1 and 1 on CIFAR-10
            (NRAT's too), 10 and 0.1 on CIFAR-100. It misses their 1 and 10 on MNIST (C = 10) and 50 and 0.1 on WebVision (C = 50):
            set them there.

    References:
        NRAT sec. 3.3; Ma et al. 2020.
    """

    alpha: float | None = None
    beta: float | None = None
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)
    settings: ClassVar[Mapping[str, str]] = {"apl_alpha": "alpha", "apl_beta": "beta"}

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B).
        """
        index = one_label("nce-rce", targets)
        classes = output.logits.shape[-1]
        alpha = classes / 10 if self.alpha is None else self.alpha
        beta = 10 / classes if self.beta is None else self.beta
        log_p = full_precision(output.logits).log_softmax(-1)
        return alpha * log_p.gather(-1, index).squeeze(-1) / log_p.sum(-1) - beta * A * other_mass(output, index)


@dataclass(frozen=True)
class SoftBootstrap:
    """Soft bootstrapping ``-sum_k (beta t_k + (1 - beta) p_k) log p_k``, t = onehot(y), (M, B), in [0, inf).

    The gradient passes through the prediction p, so that it equals beta CE + (1 - beta) H(p): minimum-entropy regularisation, as
    the source says.

    Args:
        beta: weight of the given label, in [0, 1]; 1 is the cross-entropy.

    References:
        Reed et al. 2014.
    """

    beta: float = 0.95
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)
    settings: ClassVar[Mapping[str, str]] = {"bootstrap_beta": "beta"}

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B).
        """
        index = one_label("bootstrap-soft", targets)
        log_p = full_precision(output.logits).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return -self.beta * log_p.gather(-1, index).squeeze(-1) + (1.0 - self.beta) * entropy


@dataclass(frozen=True)
class BoostedCrossEntropy:
    """Boosted cross-entropy ``-log p_y - log(1.0001 - max_{k != y} p_k + 1e-12)``, (M, B), in nats, in [-1e-4, inf).

    The authors' code has the two constants: the margin term is at most 9.21, with a finite gradient where a wrong class has
    probability 1. 1 - p is summed from the other classes, exact where p rounds to 1; the authors' float32 difference is off there
    by 1.7e-4. Of tied wrong classes one gets the gradient.

    References:
        NRAT eq. 5; Wang et al. 2020 (MART).
    """

    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)

    def __call__(self, output: ForwardOutput, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, (M, B).

        Args:
            output: a forward pass of M networks on B samples.
            targets: class labels (M, B).
        """
        index = one_label("boosted-ce", targets)
        logits = full_precision(output.logits)
        rival = logits.detach().scatter(-1, index, -math.inf).argmax(-1, keepdim=True)
        return -logits.log_softmax(-1).gather(-1, index).squeeze(-1) - (other_mass(output, rival) + BOOST_FLOOR).log()


#: The losses above by name, rows of `losses.standard.OBJECTIVES`.
NOISY_LABEL_OBJECTIVES: Mapping[str, type] = {
    "gce": GeneralizedCrossEntropy,
    "sce": SymmetricCrossEntropy,
    "nce": NormalizedCrossEntropy,
    "rce": ReverseCrossEntropy,
    "nce-rce": ActivePassive,
    "bootstrap-soft": SoftBootstrap,
    "boosted-ce": BoostedCrossEntropy,
}
