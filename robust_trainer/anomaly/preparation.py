"""What is done to the rows before a network sees them: missing values filled, columns scaled, by what the training rows tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)
IMPUTATIONS = ("mean", "median")
SCALINGS = ("minmax", "standard", "none")
#: Scaled values are kept within +- this, so that no row's score overflows.
LIMIT = 1e6


@dataclass(frozen=True)
class Preparation:
    """(x - centre) / scale, with ``fill`` in the place of NaN; all three (d,), float64, of the training rows alone.

    Args:
        fill: The column's mean or median over the values that are there (Dissertation sec. 2.4: the mean).
        centre: What is taken off: with minmax the column's least value, with standard its mean.
        scale: What is divided by, so that the training rows span [0, 1] or have standard deviation 1; 1 for a constant column.
    """

    fill: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, scaling: str, imputation: str, names: list[str]) -> Preparation:
        """Fits it to rows (n, d).

        Args:
            rows: (n, d), NaN where a cell is missing.
            scaling: ``minmax``, ``standard`` or ``none``.
            imputation: ``mean`` or ``median``.
            names: Of the columns, for messages.

        Raises:
            ValueError: For a column without a value, and where no column varies.
        """
        missing = np.isnan(rows)
        empty = [names[i] for i in np.flatnonzero(missing.all(0))]
        if empty:
            raise ValueError(f"column {empty[0]!r} of X is all NaN{_others(empty)}: leave it out.")
        with np.errstate(over="ignore"):
            fill = (np.nanmean if imputation == "mean" else np.nanmedian)(rows, axis=0)
            low, high = np.nanmin(rows, 0), np.nanmax(rows, 0)
            filled = np.where(missing, fill, rows)
            centre, spread = (low, high - low) if scaling == "minmax" else (filled.mean(0), filled.std(0))
            if scaling == "none":
                centre, spread = np.zeros_like(low), np.ones_like(low)
        if not np.isfinite(np.stack([fill, centre, spread])).all():
            wide = names[int(np.flatnonzero(~np.isfinite(np.stack([fill, centre, spread])).all(0))[0])]
            raise ValueError(f"column {wide!r} of X holds numbers too large to scale: divide it, or take its logarithm.")
        constant = low == high
        if constant.all():
            raise ValueError(f"all {len(low)} columns of X are constant: there is nothing that a row could differ in.")
        if constant.any():
            constant_names = [names[i] for i in np.flatnonzero(constant)]
            logger.warning(
                f"column {constant_names[0]!r} of X is constant{_others(constant_names)}: kept as it is, "
                "a new row that differs stands out."
            )
        return cls(fill, centre, np.where(constant | (spread <= 0), 1.0, spread))

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Returns rows (n, d) filled and scaled, float32."""
        with np.errstate(over="ignore"):  # clipped below
            prepared = (np.where(np.isnan(rows), self.fill, rows) - self.centre) / self.scale
        return torch.from_numpy(prepared.clip(-LIMIT, LIMIT).astype(np.float32))


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more: {', '.join(map(repr, names[1:6]))})" if len(names) > 1 else ""
