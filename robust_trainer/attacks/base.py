"""What every evaluation attack is: pixels in, pixels out; and its random numbers, one stream per sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

#: Images (B, C, H, W), float32 in [0, 1] pixels -> logits (B, K), float32, differentiable with respect to the images.
Forward = Callable[[Tensor], Tensor]


class Draws:
    """Random numbers of B samples, each from a generator of its own keyed by (seed, index).

    Guarantee: an attack on a sample is the same in any batch, any order and any number of processes.

    Args:
        seed: of all samples.
        index: the samples' numbers (B,).
        device: where the numbers are wanted; they are drawn on the CPU, so that they are the same everywhere.
    """

    def __init__(self, seed: int, index: Sequence[int], device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.rows = [np.random.Generator(np.random.Philox(key=[seed % 2**63, int(i)])) for i in index]

    def __len__(self) -> int:
        return len(self.rows)

    def uniform(self, *shape: int) -> Tensor:
        """Returns (B, *shape) float32 in [0, 1); the next numbers of each sample's stream."""
        return self._stack([row.random(shape, dtype=np.float32) for row in self.rows], shape)

    def normal(self, *shape: int) -> Tensor:
        """Returns (B, *shape) standard normal float32; the next numbers of each sample's stream."""
        return self._stack([row.standard_normal(shape, dtype=np.float32) for row in self.rows], shape)

    def only(self, keep: Tensor) -> Draws:
        """Returns the streams of some of the samples, by positions (N,) or by a mask (B,); shared with this object."""
        positions: Any = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        chosen = Draws(0, [], self.device)
        chosen.rows = [self.rows[i] for i in positions.tolist()]
        return chosen

    def _stack(self, rows: list[np.ndarray], shape: tuple[int, ...]) -> Tensor:
        stacked = np.stack(rows) if rows else np.zeros((0, *shape), dtype=np.float32)
        return torch.from_numpy(np.ascontiguousarray(stacked)).to(self.device)


class Attack(Protocol):
    """A search for a wrong prediction within ``eps`` of each image, in [0, 1] pixels.

    Parameters' gradients are neither read nor written. An attack may have ``forwards``, the most forward passes over a batch; the
    progress bar shows it.
    """

    @property
    def name(self) -> str:
        """How the command line and the report call it."""
        ...

    @property
    def eps(self) -> float:
        """The radius, in [0, 1] pixels."""
        ...

    @property
    def norm(self) -> str:
        """A name of `perturbations.norms.NORMS`."""
        ...

    def __call__(self, forward: Forward, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Returns images like x within eps: misclassified where it found one, else the best it has.

        Args:
            forward: the model under attack.
            x: images (B, C, H, W), float32 in [0, 1].
            y: their labels (B,), int64.
            draws: B streams of random numbers.
        """
        ...
