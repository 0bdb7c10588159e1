"""Losses on two forwards of one batch, clean and adversarial: divergences, the outer pair objectives, the inner losses by name.

p = softmax(z) of one sample, y its label; every loss is one number per sample, (M, B), in nats, computed in the logits' type,
float32 at least, and finite with finite gradients for logits of +-800. Nothing is detached unless stated.

References:
    ERAT eq. 6; NRAT sec. 2 and 3; Zhang et al. 2019 (TRADES); Wang et al. 2020 (MART).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from ..problems import SINGLE_LABEL, Problem
from ..problems.base import full_precision
from ..types import ForwardOutput, Objective
from .noisy_labels import other_mass


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Returns ``KL(p || q) = sum_k p_k (log p_k - log q_k)``, shape (...), in [0, inf).

    From log-softmaxes on both sides. Guarantee: a probability that underflows to 0 adds 0 and a finite gradient; torch's ``kl_div``
    with p as its target (TRADES' and NRAT's code) gives NaN gradients there. Both arguments get gradients.

    Args:
        p_logits: logits of p, (..., C).
        q_logits: logits of q, (..., C).
    """
    log_p, log_q = full_precision(p_logits).log_softmax(-1), full_precision(q_logits).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def symmetric_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Returns ``(KL(p || q) + KL(q || p)) / 2 = sum_k (p_k - q_k) (log p_k - log q_k) / 2``, shape (...).

    Args:
        p_logits: logits of p, (..., C).
        q_logits: logits of q, (..., C).

    References:
        NRAT eq. 15.
    """
    log_p, log_q = full_precision(p_logits).log_softmax(-1), full_precision(q_logits).log_softmax(-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1) / 2


class PairObjective(Protocol):
    """A loss of two forwards of one batch: terms whose sum is the loss of each sample.

    Attributes:
        problems: the kinds of problem that it fits.
    """

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The kinds of problem that it fits."""
        ...

    def __call__(
        self, clean: ForwardOutput, adversarial: ForwardOutput, targets: Tensor, objective: Objective
    ) -> dict[str, Tensor]:
        """Returns the terms ``{"label": (M, B), "robust": (M, B)}``, whose sum is the loss of a sample.

        Args:
            clean: the forward on the inputs as they came.
            adversarial: the forward on the perturbed inputs.
            targets: class labels (M, B), or mixtures of classes (M, B, C).
            objective: the loss on labels.
        """
        ...


def _check_beta(beta: float) -> None:
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta={beta!r} must be a number of at least 0: give for instance 6.0.")


@dataclass(frozen=True)
class Trades:
    """TRADES: ``objective(clean) + beta KL(p_clean || p_adv)``, each (M, B).

    With cross-entropy as the objective TRADES itself, with NCE + RCE TRADES-APL.

    Args:
        beta: weight of the divergence, >= 0.

    Raises:
        ValueError: for another beta.

    References:
        NRAT eq. 3 and 13; Zhang et al. 2019.
    """

    beta: float = 6.0
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def __call__(
        self, clean: ForwardOutput, adversarial: ForwardOutput, targets: Tensor, objective: Objective
    ) -> dict[str, Tensor]:
        """Returns the terms ``{"label": (M, B), "robust": (M, B)}``, whose sum is the loss of a sample.

        Args:
            clean: the forward on the inputs as they came.
            adversarial: the forward on the perturbed inputs.
            targets: class labels (M, B), or mixtures of classes (M, B, C).
            objective: the loss on labels.
        """
        return {"label": objective(clean, targets), "robust": self.beta * kl(clean.logits, adversarial.logits)}


@dataclass(frozen=True)
class Nrat:
    """NRAT: ``objective(clean) + beta (KL(p_clean || p_adv) + KL(p_adv || p_clean)) / 2``, each (M, B).

    The paper's objective is NCE + RCE.

    Args:
        beta: weight of the divergence, >= 0.

    Raises:
        ValueError: for another beta.

    References:
        NRAT eq. 16.
    """

    beta: float = 6.0
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def __call__(
        self, clean: ForwardOutput, adversarial: ForwardOutput, targets: Tensor, objective: Objective
    ) -> dict[str, Tensor]:
        """Returns the terms ``{"label": (M, B), "robust": (M, B)}``, whose sum is the loss of a sample.

        Args:
            clean: the forward on the inputs as they came.
            adversarial: the forward on the perturbed inputs.
            targets: class labels (M, B), or mixtures of classes (M, B, C).
            objective: the loss on labels.
        """
        return {"label": objective(clean, targets), "robust": self.beta * symmetric_kl(clean.logits, adversarial.logits)}


@dataclass(frozen=True)
class Mart:
    """MART: ``objective(adv) + beta KL(p_clean || p_adv) (1 - p_clean,y)``, each (M, B).

    The authors' objective is the boosted cross-entropy; with NCE + RCE, MART-APL. Deviation: the authors take log(p_adv + 1e-12)
    and 1.0000001 - p; here log-softmax and 1 - p as the sum of the others, both exact. The two differ by about 1e-7 KL,
    more where p_adv < 1e-10. Mixtures of classes as targets are a ``ValueError``.

    Args:
        beta: weight of the divergence, the paper's lambda, >= 0 (5 in the authors' scripts).

    Raises:
        ValueError: for another beta.

    References:
        NRAT eq. 4; Wang et al. 2020.
    """

    beta: float = 6.0
    problems: ClassVar[tuple[Problem, ...]] = (SINGLE_LABEL,)

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def __call__(
        self, clean: ForwardOutput, adversarial: ForwardOutput, targets: Tensor, objective: Objective
    ) -> dict[str, Tensor]:
        """Returns the terms ``{"label": (M, B), "robust": (M, B)}``, whose sum is the loss of a sample.

        Args:
            clean: the forward on the inputs as they came.
            adversarial: the forward on the perturbed inputs.
            targets: class labels (M, B).
            objective: the loss on labels.
        """
        if targets.dim() != 2:
            got = tuple(targets.shape)
            raise ValueError(f"mart weighs by p_y and takes class labels (M, B), got targets of shape {got}: choose 'trades'.")
        doubt = other_mass(clean, targets.unsqueeze(-1))
        return {"label": objective(adversarial, targets), "robust": self.beta * kl(clean.logits, adversarial.logits) * doubt}


#: ``(adversarial forward, targets, clean logits (M, B, C) or None, method's loss on labels, problem's own loss) -> (M, B)``.
InnerLoss = Callable[[ForwardOutput, Tensor, Tensor | None, Objective, Objective], Tensor]


def _problem_loss(
    adversarial: ForwardOutput, targets: Tensor, clean_logits: Tensor | None, objective: Objective, problem_loss: Objective
) -> Tensor:
    return problem_loss(adversarial, targets)


def _objective(
    adversarial: ForwardOutput, targets: Tensor, clean_logits: Tensor | None, objective: Objective, problem_loss: Objective
) -> Tensor:
    return objective(adversarial, targets)


def _constant(name: str, clean_logits: Tensor | None) -> Tensor:
    if clean_logits is None:
        raise ValueError(f"inner_loss='{name}' compares with the clean logits, got None: forward the clean inputs once.")
    return clean_logits.detach()


def _kl(
    adversarial: ForwardOutput, targets: Tensor, clean_logits: Tensor | None, objective: Objective, problem_loss: Objective
) -> Tensor:
    return kl(_constant("kl", clean_logits), adversarial.logits)


def _kl_sym(
    adversarial: ForwardOutput, targets: Tensor, clean_logits: Tensor | None, objective: Objective, problem_loss: Objective
) -> Tensor:
    return symmetric_kl(_constant("kl-sym", clean_logits), adversarial.logits)


def _squared_difference(name: str, adversarial: ForwardOutput, clean_logits: Tensor | None) -> Tensor:
    clean = full_precision(_constant(name, clean_logits)).softmax(-1)
    return (full_precision(adversarial.logits).softmax(-1) - clean).square().sum(-1)


def _consistency(
    adversarial: ForwardOutput, targets: Tensor, clean_logits: Tensor | None, objective: Objective, problem_loss: Objective
) -> Tensor:
    return _squared_difference("consistency", adversarial, clean_logits)


def _ce_consistency(
    adversarial: ForwardOutput, targets: Tensor, clean_logits: Tensor | None, objective: Objective, problem_loss: Objective
) -> Tensor:
    return problem_loss(adversarial, targets) + _squared_difference("ce+consistency", adversarial, clean_logits)


#: What the inner maximisation raises, by name. ce: the problem's own loss, the cross-entropy of class labels (NRAT
#: Algorithm 1); objective: the method's own loss on labels (NRAT appendix D); kl: KL(p_clean || p_adv) (TRADES' and NRAT's code);
#: kl-sym: its symmetric form (NRAT eq. 16); ce+consistency: the problem's own loss + ||p_adv - p_clean||_2^2 (ERAT eq. 6);
#: consistency: the squared difference alone, which ERAT's code amounts to (the labels have no effect there).
#: p_clean is constant in all of them; the divergences and the squared difference use no labels, and have no gradient at the
#: clean input.
INNER: Mapping[str, InnerLoss] = {
    "ce": _problem_loss,
    "objective": _objective,
    "kl": _kl,
    "kl-sym": _kl_sym,
    "ce+consistency": _ce_consistency,
    "consistency": _consistency,
}
_NEED_CLEAN = ("kl", "kl-sym", "ce+consistency", "consistency")


def needs_clean(name: str) -> bool:
    """Returns whether the inner loss of that name compares with the clean logits.

    Args:
        name: a key of `INNER`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in INNER:
        raise ValueError(f"unknown inner_loss {name!r}: choose one of {', '.join(INNER)}.")
    return name in _NEED_CLEAN
