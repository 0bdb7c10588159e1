"""The detectors: RCA (Dissertation chapter 2) and RobustRealNVP (chapter 3), and their variants as rows of one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..reporting.suggest import did_you_mean
from .autoencoder import AutoencoderConfig, AutoencoderModel
from .ensemble import ensemble_scores, in_parts
from .estimator import AnomalyDetector, _is
from .realnvp import RealNVPConfig, RealNVPModel


class RCA(AnomalyDetector):
    """Robust collaborative autoencoders (Dissertation Algorithm 1): each trains on the rows that another one reconstructs best.

    Scores are the squared error in scaled units, a sum over the columns.

    Args:
        contamination: The share of abnormal rows, (0, 0.5], or ``auto``; training leaves out that share of each batch, the rows of
            largest error with dropout off, rising from 0 over the first half of the epochs.
        networks: K >= 1 autoencoders; with more than two who trains on whose rows is drawn at each step.
        select: False keeps every row (RCA-SS).
        ensemble: V >= 0 thinned copies of each network that a score is the mean of, 0: the networks as they are (RCA-E).
        variational: RCVA.
        kl_weight: Weight of its divergence, >= 0.
        dropout: Share of the units that a training pass leaves out, in [0, 1).
        hidden_size: Units of `AutoencoderModel`.
        latent_size: Units of `AutoencoderModel`.
        epochs: Of the training (Adam).
        batch_size: Of the training (Adam).
        learning_rate: Of the training (Adam).
        scaling: Minmax (the networks' output is in [0, 1]), standard or none.
        imputation: Mean or median.
        random_state: As in scikit-learn.
        device: ``cpu``, or None for what the Trainer finds.
        verbose: The Trainer's own progress.
    """

    _switches = ("select", "variational")

    def __init__(
        self, contamination: float | str = 0.1, *, networks: int = 2, select: bool = True, ensemble: int = 10,
        variational: bool = False, kl_weight: float = 1.0, dropout: float = 0.5,
        hidden_size: int = 128, latent_size: int = 10, epochs: int = 60,
        batch_size: int = 128, learning_rate: float = 2e-3, scaling: str = "minmax", imputation: str = "mean",
        random_state: Any = None, device: str | None = None, verbose: bool = False,
    ):  # fmt: skip
        self.contamination, self.networks, self.select, self.ensemble = contamination, networks, select, ensemble
        self.variational, self.kl_weight, self.dropout = variational, kl_weight, dropout
        self.hidden_size, self.latent_size = hidden_size, latent_size
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.scaling, self.imputation, self.random_state = scaling, imputation, random_state
        self.device, self.verbose = device, verbose

    def _check(self) -> None:
        super()._check()
        for name, least in (("networks", 1), ("ensemble", 0), ("latent_size", 1)):
            if not _is(value := getattr(self, name), int) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number >= {least}.")
        if not _is(self.dropout, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r} must be in [0, 1).")
        if not _is(self.kl_weight, float) or self.kl_weight < 0:
            raise ValueError(f"kl_weight={self.kl_weight!r} must be >= 0.")
        if self.select and self.networks == 1:
            raise ValueError("networks=1 has nobody to exchange rows with: give networks=2 or more, or select=False.")

    def _make_model(self, features: int) -> PreTrainedModel:
        return AutoencoderModel(AutoencoderConfig(
            features=features, hidden_size=int(self.hidden_size), latent_size=int(self.latent_size), dropout=float(self.dropout),
            variational=bool(self.variational), kl_weight=float(self.kl_weight),
        ))  # fmt: skip

    def _method(self, share: float) -> dict[str, Any]:
        if self.networks == 1:
            return {"method": "standard"}
        return {"method": "rca", "num_networks": int(self.networks), "noise_rate": share if self.select else 0.0}

    def _score(self, x: Tensor) -> Tensor:
        return ensemble_scores(self.networks_, x, int(self.ensemble), self.seed_)


class RobustRealNVP(AnomalyDetector):
    """A RealNVP flow fitted to the densest rows of each batch, with a Lipschitz cap (Dissertation Algorithm 2, sec. 3.4.3, 3.4.4).

    Scores are negative log-likelihoods, in nats, of the scaled rows; they can be negative.

    Args:
        contamination: The share of abnormal rows, (0, 0.5], or ``auto``; training leaves out that share of each batch, the rows of
            least density, rising from 0 over the first twentieth of the epochs.
        trim: False keeps every row.
        lipschitz: K > 0, the cap of the spectral norm of every linear layer of s and t, or None (TrimRealNVP; with trim=False
            RealNVP).
        couplings: Affine couplings, an even number.
        hidden_size: Units of the two hidden layers of s and t.
        scaling: Standard (the prior is N(0, I)), minmax or none. The other settings are those of `RCA`.
    """

    _switches = ("trim",)

    def __init__(
        self, contamination: float | str = 0.1, *, trim: bool = True, lipschitz: float | None = 1.5, couplings: int = 6,
        hidden_size: int = 256, epochs: int = 20, batch_size: int = 128, learning_rate: float = 3e-4, scaling: str = "standard",
        imputation: str = "mean", random_state: Any = None, device: str | None = None, verbose: bool = False,
    ):  # fmt: skip
        self.contamination, self.trim, self.lipschitz, self.couplings = contamination, trim, lipschitz, couplings
        self.hidden_size, self.epochs, self.batch_size, self.learning_rate = hidden_size, epochs, batch_size, learning_rate
        self.scaling, self.imputation, self.random_state = scaling, imputation, random_state
        self.device, self.verbose = device, verbose

    def _check(self) -> None:
        super()._check()
        if not _is(self.couplings, int) or self.couplings < 2 or self.couplings % 2:
            raise ValueError(f"couplings={self.couplings!r} must be an even whole number >= 2: they come in pairs.")
        if self.lipschitz is not None and not (_is(self.lipschitz, float) and self.lipschitz > 0):
            raise ValueError(f"lipschitz={self.lipschitz!r} must be > 0, or None for no cap.")

    def _make_model(self, features: int) -> PreTrainedModel:
        lipschitz = None if self.lipschitz is None else float(self.lipschitz)
        return RealNVPModel(RealNVPConfig(features, int(self.couplings), int(self.hidden_size), lipschitz))

    def _method(self, share: float) -> dict[str, Any]:
        return {"method": "trim", "noise_rate": share} if self.trim else {"method": "standard"}

    def _score(self, x: Tensor) -> Tensor:
        flow = self.model_
        assert isinstance(flow, RealNVPModel)
        layers = flow.capped_layers()
        return in_parts(lambda part: flow.negative_log_likelihood(part, layers), x)


@dataclass(frozen=True)
class Variant:
    """One row of `DETECTORS`: a class, what it has otherwise than its defaults, and one line on what it is."""

    kind: type[AnomalyDetector]
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)


_ALONE = {"networks": 1, "select": False, "ensemble": 0}
DETECTORS: Mapping[str, Variant] = {
    "rca": Variant(RCA, "two autoencoders, each on the rows that the other reconstructs best; dropout ensemble"),
    "rca-e": Variant(RCA, "RCA without the ensemble", {"ensemble": 0}),
    "rca-ss": Variant(RCA, "RCA without selection", {"select": False}),
    "rcva": Variant(RCA, "RCA of variational autoencoders", {"variational": True}),
    "ae": Variant(RCA, "an autoencoder on all rows", _ALONE),
    "vae": Variant(RCA, "a variational autoencoder on all rows", {**_ALONE, "variational": True}),
    "robust-realnvp": Variant(RobustRealNVP, "a flow on the densest rows, with a Lipschitz cap"),
    "trim-realnvp": Variant(RobustRealNVP, "a flow on the densest rows", {"lipschitz": None}),
    "realnvp": Variant(RobustRealNVP, "a flow on all rows", {"trim": False, "lipschitz": None}),
}


def make_detector(name: str, **settings: Any) -> AnomalyDetector:
    """The detector of that name with these settings changed.

    Args:
        name: A key of `DETECTORS`.
        **settings: Of that detector.

    Raises:
        ValueError: For an unknown name or setting.
    """
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}: {did_you_mean(name, DETECTORS)}choose one of {', '.join(DETECTORS)}.")
    row = DETECTORS[name]
    known = row.kind._get_param_names()
    for key, value in settings.items():
        if key not in known:
            raise ValueError(f"detector '{name}' takes no '{key}' (got {value!r}); it takes: {', '.join(known)}.")
    return row.kind(**{**row.settings, **settings})
