"""What anomaly detectors have in common: fit, scores, threshold, labels, probabilities; scikit-learn's and PyOD's conventions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.special import erf
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..ledger.ledger import SampleLedger
from ..models.peers import PeerModel
from ..selection.thresholds import of_share, of_spread
from .preparation import IMPUTATIONS, SCALINGS, Preparation
from .training import fit_model

logger = logging.get_logger(__name__)

#: The share that a training with contamination="auto" leaves out: too many cost little (Dissertation table 2.3).
AUTO_SHARE = 0.1
#: contamination="auto": a score is an anomaly's beyond so many deviations above the centre (Iglewicz and Hoaglin 1993).
AUTO_DEVIATIONS = 3.5


class AnomalyDetector(BaseEstimator):
    """Base class of the detectors: ``fit`` trains a network on rows without labels, some of which are abnormal.

    As in PyOD a higher score is more abnormal, and labels are 0 (normal) and 1 (abnormal). After ``fit``:

    - ``decision_scores_`` (n,): of the training rows; ``labels_`` (n,); ``threshold_``: beyond it a row is abnormal
    - ``contamination_``: the share of the training rows beyond it
    - ``model_``: the trained `transformers.PreTrainedModel`; ``ledger_``: what training learned of each row (`SampleLedger`)
    - ``n_features_in_``, ``feature_names_in_`` as in scikit-learn

    NaN is a missing value: it is filled by the column's mean or median (``imputation``), and columns are scaled (``scaling``), both
    by the training rows alone. Infinite values are refused. Results depend on ``random_state`` (None: one draw of numpy's global
    generator, as in scikit-learn); the global generators of a fit are its own.
    """

    #: Settings of the class that are True or False.
    _switches: ClassVar[tuple[str, ...]] = ()
    contamination: float | str
    epochs: int
    batch_size: int
    learning_rate: float
    hidden_size: int
    scaling: str
    imputation: str
    random_state: Any
    device: str | None
    verbose: bool

    # ---- what each kind of detector says ----------------------------------------------------------------------------------

    def _make_model(self, features: int) -> PreTrainedModel:
        """A network for that many columns, not yet trained."""
        raise NotImplementedError

    def _method(self, share: float) -> dict[str, Any]:
        """The method's name and its settings, for `RobustConfig`. share: of the rows to leave out."""
        raise NotImplementedError

    def _score(self, x: Tensor) -> Tensor:
        """Scores (n,) of prepared rows (n, d), by ``model_``."""
        raise NotImplementedError

    # ---- scikit-learn and PyOD ----------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains on rows X (n, d), n and d at least 2; y is ignored.

        Args:
            X: Rows (n, d): array or data frame of numbers, NaN for a missing cell.
            y: Ignored.

        Raises:
            ValueError: For bad rows or settings.
        """
        self._check()
        rows = self._rows(X, fitting=True)
        names = [str(n) for n in getattr(self, "feature_names_in_", range(rows.shape[1]))]
        prepared = Preparation.of(rows, self.scaling, self.imputation, names)
        self.preparation_ = prepared
        x = prepared(rows)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        share = AUTO_SHARE if isinstance(self.contamination, str) else float(self.contamination)
        trainer = fit_model(
            lambda: self._make_model(rows.shape[1]), x, seed, int(self.hidden_size), bool(self.verbose),
            num_train_epochs=int(self.epochs), per_device_train_batch_size=min(int(self.batch_size), len(x)),
            learning_rate=float(self.learning_rate), use_cpu=self.device == "cpu", **self._method(share),
        )  # fmt: skip
        self._adopt(trainer.accelerator.unwrap_model(trainer.model), seed)
        self.ledger_: SampleLedger | None = trainer.ledger
        if self.ledger_ is not None:
            self.ledger_.settle()
        self.decision_scores_ = self._scores(x)
        if not np.isfinite(self.decision_scores_).all():
            raise ValueError(f"training diverged, scores are not finite: give a learning_rate below {self.learning_rate!r}.")
        self.threshold_ = self._threshold(self.decision_scores_)
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        self.contamination_ = float(self.labels_.mean())
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (n,) of rows X (n, d), float64: higher is more abnormal. A row's score does not depend on the rows beside it.

        Args:
            X: Rows (n, d): array or data frame of numbers, NaN for a missing cell.
        """
        check_is_fitted(self, "threshold_")
        return self._scores(self.preparation_(self._rows(X, fitting=False)))

    def predict(self, X: Any) -> np.ndarray:
        """Labels (n,) of rows X (n, d): 1 where the score is beyond ``threshold_``, else 0.

        Args:
            X: Rows (n, d): array or data frame of numbers, NaN for a missing cell.
        """
        return (self.decision_function(X) > self.threshold_).astype(int)

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """`fit`, then ``labels_``.

        Args:
            X: Rows (n, d): array or data frame of numbers, NaN for a missing cell.
            y: Ignored.
        """
        return self.fit(X).labels_

    def predict_proba(self, X: Any, method: str = "linear") -> np.ndarray:
        """Probabilities (n, 2) of being normal and abnormal, a map of the score to [0, 1] (Kriegel et al. 2011), not calibrated.

        linear: from the smallest to the largest training score; unify: max(0, erf((score - mean) / (std sqrt 2))).

        Args:
            X: Rows (n, d): array or data frame of numbers, NaN for a missing cell.
            method: ``linear`` or ``unify``, the map of the score.
        """
        if method not in ("linear", "unify"):
            raise ValueError(f"method={method!r} is unknown: choose linear or unify.")
        scores, known = self.decision_function(X), self.decision_scores_
        with np.errstate(over="ignore"):  # where all training scores are one
            if method == "linear":
                p = (scores - known.min()) / max(float(np.ptp(known)), np.finfo(float).tiny)
            else:
                p = erf((scores - known.mean()) / max(float(known.std()) * math.sqrt(2.0), np.finfo(float).tiny))
        p = np.clip(p, 0.0, 1.0)
        return np.stack([1.0 - p, p], 1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # ---- inside ---------------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raises ``ValueError`` for the first setting that is out of range."""
        share = self.contamination
        if not (share == "auto" if isinstance(share, str) else _is(share, float) and 0 < share <= 0.5):
            raise ValueError(f"contamination={share!r} must be in (0, 0.5], the share of abnormal rows, or 'auto'.")
        ranges: Mapping[str, tuple[type, float]] = {"epochs": (int, 1), "batch_size": (int, 1), "hidden_size": (int, 1)}
        for name, (kind, least) in ranges.items():
            if not _is(value := getattr(self, name), kind) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number >= {least:g}.")
        if not _is(self.learning_rate, float) or not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate!r} must be a number > 0.")
        for name in ("verbose", *self._switches):
            if not isinstance(value := getattr(self, name), bool | np.bool_):
                raise ValueError(f"{name}={value!r} must be True or False.")
        for name, choices in (("scaling", SCALINGS), ("imputation", IMPUTATIONS), ("device", (None, "cpu"))):
            if getattr(self, name) not in choices:
                listed_choices = ", ".join(map(str, choices))
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: choose one of {listed_choices}.")

    def _rows(self, X: Any, fitting: bool) -> np.ndarray:
        """The rows (n, d) as float64, checked."""
        rows = validate_data(
            self, X, reset=fitting, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=2 if fitting else 1,
            ensure_min_features=2 if fitting else 1,
        )  # fmt: skip
        infinite = np.isinf(rows)
        if infinite.any():
            row, column = np.argwhere(infinite)[0]
            name = getattr(self, "feature_names_in_", np.arange(rows.shape[1]))[column]
            raise ValueError(
                f"X contains infinity in {int(infinite.any(1).sum())} rows (row {row}, column {str(name)!r}): write NaN where a "
                "value is missing, or a number."
            )
        return rows

    def _adopt(self, model: PreTrainedModel, seed: int) -> None:
        self.model_, self.seed_ = model.eval(), seed

    @property
    def networks_(self) -> list[Any]:
        """The trained networks: one, or the peers."""
        return list(self.model_.peers) if isinstance(self.model_, PeerModel) else [self.model_]

    @torch.no_grad()
    def _scores(self, x: Tensor) -> np.ndarray:
        return self._score(x.to(next(self.model_.parameters()).device)).double().cpu().numpy()

    def _threshold(self, scores: np.ndarray) -> float:
        """The score beyond which a row is abnormal: that of the asked share, or of ``auto`` the training scores' far tail.

        auto: c + 3.5 * 1.4826 h, with c the middle and h half the length of the shortest interval that holds half of the scores
        (Rousseeuw 1984), which the anomalies, far above it, do not move while they are less than half of the rows.
        """
        if not isinstance(self.contamination, str):
            found = of_share(scores, float(self.contamination))
        else:
            ordered = np.sort(scores)
            half = len(ordered) // 2
            lengths = ordered[half:] - ordered[: len(ordered) - half]
            low = int(lengths.argmin())
            middle = float((ordered[low] + ordered[low + half]) / 2)
            found = of_spread(scores, middle, float(lengths[low]) / 2, AUTO_DEVIATIONS)
        if found.note:
            beyond = int((scores > found.value).sum())
            logger.warning(f"contamination={self.contamination!r}: {found.note}; {beyond} of {len(scores)} rows count as abnormal.")
        return found.value


def _is(value: Any, kind: type) -> bool:
    """Whether the value is such a number, numpy's among them, and no truth value."""
    kinds = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
