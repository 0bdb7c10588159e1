"""The spectral norm of weights, and its cap at k (Dissertation sec. 3.4.3, after Miyato et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Which layers `SpectralCap` holds: the one that the classes come from, or every linear and convolution layer.
LAYERS = ("last", "all")
_TINY = 1e-12


@dataclass(frozen=True)
class Cap:
    """What a method caps: the largest spectral norm k > 0, and of which ``LAYERS``."""

    k: float
    layers: str = "last"


def cap_of(settings: Mapping[str, Any]) -> Cap | None:
    """The cap that ``spectral_cap`` and ``spectral_layers`` tell, None without one.

    Args:
        settings: Of a recipe.
    """
    k = settings.get("spectral_cap")
    return None if k is None else Cap(k, settings.get("spectral_layers", "last"))


@torch.no_grad()
def power_iteration(weight: Tensor, direction: Tensor, steps: int = 1) -> None:
    """Turns ``direction`` (..., out) towards the first right singular vector of each matrix of ``weight`` (..., in, out).

    Args:
        weight: (..., in, out).
        direction: (..., out), of length 1.
        steps: Iterations.
    """
    for _ in range(steps):
        image = _unit(weight @ direction.unsqueeze(-1))
        direction.copy_(_unit(weight.mT @ image).squeeze(-1))


def spectral_norm(weight: Tensor, direction: Tensor) -> Tensor:
    """The norm (...) of each matrix of ``weight`` (..., in, out) along ``direction`` (..., out): a lower bound of its largest.

    Once `power_iteration` has converged it is the largest singular value. Differentiable in the weight.

    Args:
        weight: (..., in, out).
        direction: (..., out), of length 1.
    """
    return (weight @ direction.unsqueeze(-1)).squeeze(-1).norm(dim=-1)


def cap_factor(weight: Tensor, direction: Tensor, k: float) -> Tensor:
    """The factor (...), 1 / max(sigma / k, 1), that brings each matrix of ``weight`` (..., in, out) to a norm of at most k > 0.

    Dissertation sec. 3.4.3 divides by sigma / k always, which also stretches small weights; the authors' code caps, as here. To
    multiply a layer's output by it, before the bias, costs less than to multiply its weights.

    Args:
        weight: (..., in, out).
        direction: (..., out), of length 1.
        k: The cap, > 0.
    """
    return (spectral_norm(weight, direction) / k).clamp_min(1.0).reciprocal()


@torch.no_grad()
def largest_singular_value(weight: Tensor) -> Tensor:
    """The largest singular value (...) of each matrix of ``weight`` (..., rows, columns), from below, to a thousandth at worst.

    About 2000 power iterations, most of them at once: the Gram matrix of the shorter side n is squared 7 times (14 n^3 operations).
    A second singular value that overtakes the first, which a few iterations from an earlier direction miss, is found. No state is
    kept, nothing is drawn, and the host does not wait for the device.

    Args:
        weight: (..., in, out).
    """
    matrix = weight if weight.shape[-1] <= weight.shape[-2] else weight.mT
    largest = matrix.abs().amax((-2, -1), keepdim=True).clamp_min(_TINY)  # so that no square is out of range
    scaled = matrix / largest
    power = scaled.mT @ scaled
    for _ in range(7):
        power = power @ power
        power = power / power.norm(dim=(-2, -1), keepdim=True).clamp_min(_TINY)
    # the column of the largest diagonal entry has a share of at least 1 / n in what is left
    column = power.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*power.shape[:-1], 1)
    vector = power.gather(-1, column)
    for _ in range(4):
        vector = _unit(power @ (power @ (power @ (power @ vector))))
    return (scaled @ vector).norm(dim=-2).squeeze(-1) * largest.flatten(-2).squeeze(-1)


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm(dim=-2, keepdim=True).clamp_min(_TINY)
