"""The spectral norm of weights, and its cap at k (paper 001 sec. 3.4.3, after Miyato et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12


@torch.no_grad()
def power_iteration(weight: Tensor, direction: Tensor, steps: int = 1) -> None:
    """Turns ``direction`` (..., out) towards the first right singular vector of each matrix of ``weight`` (..., in, out)."""
    for _ in range(steps):
        image = _unit(weight @ direction.unsqueeze(-1))
        direction.copy_(_unit(weight.mT @ image).squeeze(-1))


def spectral_norm(weight: Tensor, direction: Tensor) -> Tensor:
    """The norm (...) of each matrix of ``weight`` (..., in, out) along ``direction`` (..., out): a lower bound of its largest.

    Once `power_iteration` has converged it is the largest singular value. Differentiable in the weight.
    """
    return (weight @ direction.unsqueeze(-1)).squeeze(-1).norm(dim=-1)


def cap_factor(weight: Tensor, direction: Tensor, k: float) -> Tensor:
    """The factor (...), 1 / max(sigma / k, 1), that brings each matrix of ``weight`` (..., in, out) to a norm of at most k > 0.

    Paper 001 sec. 3.4.3 divides by sigma / k always, which also stretches small weights; the authors' code caps, as here. To
    multiply a layer's output by it, before the bias, costs less than to multiply its weights.
    """
    return (spectral_norm(weight, direction) / k).clamp_min(1.0).reciprocal()


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm(dim=-2, keepdim=True).clamp_min(_TINY)
