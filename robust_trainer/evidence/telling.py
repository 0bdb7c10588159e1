"""How much of the labels the features predict, and so whether they can say which labels are wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .label_model import LabelModel

#: Features say something about labels where predictions agree with them more often than chance by so many standard errors.
INFORMED = 4.0
#: Features that predict less than this share of the rightly labelled rows, beyond chance (kappa), are wrong too often themselves to
#: say who is: of clean CIFAR-10 a network with random weights predicts a third, and held 11 to 45 % of the labels for wrong.
TELLING = 0.5
#: Predictions are alike in how sure they are where fewer than so many margins are those of so large a share of the rows.
FEWEST_MARGINS, NEARLY_ALL = 5, 0.99
#: What weak features say is told as an order alone: all doubts stand this much or more below the cut.
_BELOW = 1e-3


@dataclass(frozen=True)
class Telling:
    """How much of the labels is predicted.

    Attributes:
        agreement: the share of labels that are predicted.
        chance: the same by chance.
        beyond: whether the first is beyond the second.
        kappa: of the rightly labelled rows the share that is predicted, beyond chance: 0 by chance, 1 all.
        alike: whether all predictions are equally sure, as one-hot probabilities are; wrong labels are those that sure ones deny.
    """

    agreement: float
    chance: float
    beyond: bool
    kappa: float
    alike: bool

    @property
    def enough(self) -> bool:
        """Whether predictions say which labels are wrong."""
        return self.beyond and self.kappa >= TELLING and not self.alike

    def told(self, what: str) -> str:
        """Returns why nothing is doubted.

        Args:
            what: predicts, in a word: features, probabilities.
        """
        share, chance = f"{self.agreement:.0%} of the labels", f"chance {self.chance:.0%}"
        if not self.beyond:
            return (
                f"The {what} predict the labels hardly better than chance ({share}, {chance}): they say nothing about them, and "
                "nothing is doubted."
            )
        if self.kappa >= TELLING:
            return (
                f"The {what} are equally sure of every row, so wrong labels cannot be told from wrong predictions "
                f"({1.0 - self.agreement:.0%} disagree): nothing is doubted. Give probabilities that say how sure they are."
            )
        return (
            f"The {what} predict too few of the labels ({share}, {chance}) to tell wrong ones from what they cannot see: nothing "
            "is doubted."
        )


def how_telling(model: LabelModel, labels: np.ndarray, classes: int) -> Telling:
    """Returns how much of the labels the model predicts from the other rows; wrong labels agree with wrong predictions at random.

    Args:
        model: of the N rows.
        labels: given class numbers (N,).
        classes: C, >= 2.
    """
    predicted = model.first.argmax(1).cpu().numpy()
    agreement = float((predicted == labels).mean())
    shares = [np.bincount(x, minlength=classes) / max(len(labels), 1) for x in (labels, predicted)]
    chance = float(shares[0] @ shares[1])
    error = math.sqrt(max(chance * (1.0 - chance), 1e-9) / max(len(labels), 1))
    wrong = model.rate.rate
    right = (agreement - wrong / (classes - 1)) / max(1.0 - wrong * classes / (classes - 1), 1e-9)
    kappa = (min(right, 1.0) - chance) / max(1.0 - chance, 1e-9)
    return Telling(agreement, chance, agreement - chance > INFORMED * error, kappa, _alike(model.first))


def _alike(scores: Tensor) -> bool:
    """Whether the margins (N,) between the two largest scores of (N, C) are a few numbers."""
    best = scores.topk(2, 1).values
    margins = np.round((best[:, 0] - best[:, 1]).cpu().numpy(), 6)
    counts = np.sort(np.unique(margins, return_counts=True)[1])[::-1]
    return bool(counts[: FEWEST_MARGINS - 1].sum() >= NEARLY_ALL * len(margins))


def order_alone(model: LabelModel, given: Tensor, telling: Telling) -> np.ndarray:
    """Returns of features that say little who is doubted more than whom, (N,) float32 below 1/2; zeros where they say nothing.

    Args:
        model: of the N rows.
        given: the labels (N,).
        telling: of the model.
    """
    wrong = (1.0 - model.posterior.gather(1, given.unsqueeze(1)).squeeze(1)).clamp(0.0, 1.0).cpu().numpy().astype(np.float32)
    return np.minimum(wrong, 0.5 - _BELOW * (2.0 - wrong)) if telling.beyond else np.zeros_like(wrong)
