"""A linear model of labels whose predictions for each row have not seen that row's label."""

from __future__ import annotations

import torch
from torch import Tensor

#: The penalties to choose from, for rows of length 1.
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
#: The constant that stands for the intercept: small, so that it is hardly penalised less than the features.
_CONSTANT = 0.1
#: Wider features are projected to so many directions, drawn by a fixed seed.
WIDEST = 2048
_ROWS = 65_536


class LeaveOneOutRidge:
    """Ridge regression of N rows on targets of C columns, with exact leave-one-out predictions.

    One eigendecomposition of the D x D covariance; then any targets and any penalty cost a product: with H = X (X'X + pI)^-1 X' and
    h its diagonal, the prediction for row i of the model without it is ((H Y)_i - h_i Y_i) / (1 - h_i).

    Args:
        features: (N, D), of length 1 (`neighbours.normalise`).

    References:
        Allen 1974, "The relationship between variable selection and data augmentation and a method for prediction" (PRESS).
    """

    def __init__(self, features: Tensor):
        self._project = None
        if features.shape[1] > WIDEST:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randn(features.shape[1], WIDEST, generator=generator) / WIDEST**0.5
            self._project = drawn.to(features.device)
        width = min(features.shape[1], WIDEST) + 1
        covariance = torch.zeros(width, width, dtype=torch.float64, device=features.device)
        for block in features.split(_ROWS):
            x = self._widened(block).double()
            covariance += x.T @ x
        values, self._axes = torch.linalg.eigh(covariance)
        self._values = values.clamp_min(0.0)
        self._rows = torch.cat([(self._widened(block).double() @ self._axes).float() for block in features.split(_ROWS)])

    def _widened(self, rows: Tensor) -> Tensor:
        rows = rows if self._project is None else rows @ self._project
        return torch.cat([rows, rows.new_full((len(rows), 1), _CONSTANT)], 1)

    def left_out(self, targets: Tensor, penalty: float) -> Tensor:
        """Returns the leave-one-out predictions, (N, C) float32.

        Args:
            targets: (N, C), one-hot or shares of classes.
            penalty: above 0.
        """
        return self._left_out(targets, penalty, self._moments(targets))

    def _left_out(self, targets: Tensor, penalty: float, moments: Tensor) -> Tensor:
        shrunk = 1.0 / (self._values + penalty)
        fitted = (shrunk.unsqueeze(1) * moments).float()
        own = self._rows.square() @ shrunk.float().unsqueeze(1)
        return (self._rows @ fitted - own * targets) / (1.0 - own).clamp_min(1e-4)

    def best_penalty(self, targets: Tensor) -> float:
        """Returns the penalty with the smallest leave-one-out squared error.

        Args:
            targets: (N, C).
        """
        moments = self._moments(targets)

        def error(penalty: float) -> float:
            return float((self._left_out(targets, penalty, moments) - targets).square().sum(dtype=torch.float64))

        return min(PENALTIES, key=error)

    def predict(self, targets: Tensor, penalty: float, others: Tensor) -> Tensor:
        """Returns the predictions for rows that the model was not made of, (Q, C) float32.

        Args:
            targets: (N, C) of its own rows.
            penalty: above 0.
            others: features (Q, D).
        """
        weights = self._axes @ (self._moments(targets) / (self._values + penalty).unsqueeze(1))
        return torch.cat([self._widened(block) @ weights.float() for block in others.split(_ROWS)])

    def _moments(self, targets: Tensor) -> Tensor:
        return sum(
            (rows.T.double() @ block.double() for rows, block in zip(self._rows.split(_ROWS), targets.split(_ROWS))),
            torch.zeros((), dtype=torch.float64, device=self._rows.device),
        )
