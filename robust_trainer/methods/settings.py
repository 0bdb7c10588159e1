"""The settings of the methods: which values they may take, told in one line each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..images.augmentations import AUGMENTATIONS
from ..losses.adversarial import INNER
from ..losses.semi_supervised import CONSISTENCIES
from ..losses.standard import OBJECTIVES, SETTINGS_OF
from ..models.spectral import LAYERS
from ..perturbations.pgd import NORMS, SCOPES, UNIFORM
from ..selection.erat_split import SCALES
from ..selection.rates import SCHEDULES
from ..selection.rules import ESTIMATED, EXCHANGES, MEMORIES, RANK_AMONG


def _whole(least: int) -> Any:
    return lambda v: isinstance(v, int) and v >= least


_RANGES: Mapping[str, tuple[str, Any]] = {
    "noise_rate": (f"in [0, 1), the share of corrupted samples, or {' or '.join(map(repr, ESTIMATED))}", lambda v: 0 <= v < 1),
    "rate_multiplier": ("> 0, a factor on noise_rate", lambda v: v > 0),
    "max_drop_rate": ("in (0, 1), the largest share to drop", lambda v: 0 < v < 1),
    "drop_ramp_epochs": ("> 0 epochs", lambda v: v > 0),
    "drop_ramp_steps": ("a whole number >= 1, or None", _whole(1)),
    "drop_ramp_from": ("in [0, 1], a share of the final rate", lambda v: 0 <= v <= 1),
    "relax_from": ("in (0, 1)", lambda v: 0 < v < 1),
    "rate_decay_share": ("in (0, 1], a share of all epochs", lambda v: 0 < v <= 1),
    "memory_decay": ("in [0, 1)", lambda v: 0 <= v < 1),
    "memory_after_epochs": ("a whole number >= 1", _whole(1)),
    "step_size": ("> 0 pixels", lambda v: v > 0),
    "steps": ("a whole number >= 1", _whole(1)),
    "bootstrap_beta": ("in [0, 1], the weight of the given label", lambda v: 0 <= v <= 1),
    "huber_delta": ("> 0, in the unit of the targets", lambda v: v > 0),
    "gce_q": ("in (0, 1]: 1 is the mean absolute error, towards 0 the cross-entropy", lambda v: 0 < v <= 1),
    "sce_alpha": (">= 0, the weight of the cross-entropy", lambda v: v >= 0),
    "sce_beta": (">= 0, the weight of the reverse cross-entropy", lambda v: v >= 0),
    "apl_alpha": (">= 0, the weight of NCE, or None: by the number of classes", lambda v: v >= 0),
    "apl_beta": (">= 0, the weight of RCE, or None: by the number of classes", lambda v: v >= 0),
    "clip_norm": ("> 0, the largest norm of a step's gradient", lambda v: v > 0),
    "sample_clip_norm": ("> 0, the largest norm of one sample's gradient", lambda v: v > 0),
    "warmup_epochs": (">= 0 epochs", lambda v: v >= 0),
    "rebalance_eta": ("in [0, 1]: 0 trusts as many samples of each class", lambda v: 0 <= v <= 1),
    "eps_l2": (">= 0, the l_2 radius in [0, 1] pixels", lambda v: v >= 0),
    "step_size_l2": ("> 0 pixels", lambda v: v > 0),
    "lambda_u": (">= 0, the weight of the unlabelled samples", lambda v: v >= 0),
    "lambda_ramp_epochs": ("> 0 epochs", lambda v: v > 0),
    "temperature": ("> 0, of the pseudo-labels' softmax", lambda v: v > 0),
    "labelled_share": ("in [0, 1), 0: as in the data set", lambda v: 0 <= v < 1),
    "min_sgd_group": ("a whole number >= 2, or None: the whole step", _whole(2)),
    "start_std": (f"> 0 pixels, the standard deviation of the random start, or {UNIFORM!r} in the ball", lambda v: v > 0),
    "beta": (">= 0, the weight of the divergence between clean and adversarial predictions", lambda v: v >= 0),
    "awp_gamma": ("in [0, 1), the size of the weight perturbation relative to the weights", lambda v: 0 <= v < 1),
    "awp_warmup_epochs": (">= 0 epochs", lambda v: v >= 0),
    "collapse_check_steps": ("a whole number >= 0 of steps between two probes, 0 for none", _whole(0)),
    "num_networks": (
        "a whole number >= 2: networks exchange what they trust; for one network use method 'prl' or 'spl'",
        _whole(2),
    ),
    "spectral_cap": ("> 0, the largest spectral norm of a layer's weights, or None: no cap", lambda v: v > 0),
}
_OPTIONAL = ("step_size", "drop_ramp_steps", "apl_alpha", "apl_beta", "min_sgd_group", "step_size_l2", "spectral_cap")
_SWITCHES = (
    "per_class", "random_start", "inner_filter", "outer_filter", "rebalance", "adversarial_training", "sample_selection",
    "freeze_backbone",
)  # fmt: skip
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "drop_schedule": SCHEDULES,
    "memory": MEMORIES,
    "rank_among": RANK_AMONG,
    "peer_exchange": EXCHANGES,
    "norm": NORMS,
    "scope": SCOPES,
    "attack_mode": ("eval", "train"),
    "inner_loss": tuple(INNER),
    "objective": ("auto", *OBJECTIVES),
    "split_score": ("brier", "loss"),
    "score_scale": SCALES,
    "consistency": CONSISTENCIES,
    "strong_augmentation": tuple(AUGMENTATIONS),
    "weak_augmentation": tuple(AUGMENTATIONS),
    "spectral_layers": LAYERS,
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_settings(settings: Mapping[str, Any], changes: Mapping[str, Any], objective: str) -> None:
    """Raises a one-line ``ValueError`` naming the first setting that is out of range, its value and the mend.

    settings: all of the method's; changes: those that the user gave; objective: the name of the loss.
    """
    for key, value in settings.items():
        if key in _SWITCHES and not isinstance(value, bool):
            raise ValueError(f"{key}={value!r} must be true or false.")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ValueError(f"{key}={value!r} is unknown: choose one of {', '.join(_CHOICES[key])}.")
        named = (key == "noise_rate" and isinstance(value, str) and value in ESTIMATED) or (key == "start_std" and value == UNIFORM)
        if key in _RANGES and not named and not (value is None and key in _OPTIONAL):
            told, fits = _RANGES[key]
            if not _is_number(value) or not fits(value):
                raise ValueError(f"{key}={value!r} must be {told}.")
    for name, own in SETTINGS_OF.items():
        wrong = next((key for key in own if key in changes and name != objective), None)
        if wrong is not None and "objective" in settings:
            raise ValueError(
                f"{wrong}={changes[wrong]!r} has no effect with objective={objective!r}: set objective='{name}', or drop {wrong}."
            )
    if "spectral_layers" in changes and settings.get("spectral_cap") is None:
        raise ValueError(
            f"spectral_layers={changes['spectral_layers']!r} has no effect without a cap: give spectral_cap, for instance 1.0."
        )
    eps = settings.get("eps")
    if "eps" in settings and (not _is_number(eps) or settings["eps"] < 0):
        raise ValueError(f"eps={eps!r} must be >= 0, in the [0, 1] pixel scale.")
    for key in ("eps", "step_size"):
        value = settings.get(key)
        if value is not None and settings.get("norm") in ("linf", "hybrid", "both") and value > 1:
            mend = f"give it in [0, 1] pixels, here {value / 255:.4g} ({value:g}/255)"
            raise ValueError(f"{key}={value!r} looks like the 0-255 scale: {mend}.")
    _check_norms(settings, changes)
    if str(settings.get("inner_loss")).startswith(("kl", "consistency")) and not settings.get("random_start"):
        raise ValueError(
            f"inner_loss={settings['inner_loss']!r} has no gradient at the clean input, where the predictions are the same: "
            "set random_start=True."
        )
    rate = settings.get("noise_rate")
    if isinstance(rate, str) and eps is not None:
        raise ValueError(
            f"noise_rate={rate!r} does not go with an attack: it cannot see a backdoor, whose trigger the model learns to obey "
            "(docs/guides/label_noise.md), and was not tried in adversarial training: give a number that errs high, as 0.45."
        )
    if _is_number(rate) and rate * settings["rate_multiplier"] >= 1 and settings["max_drop_rate"] >= 0.99:
        raise ValueError(
            f"noise_rate={rate!r} x rate_multiplier={settings['rate_multiplier']!r} would drop every sample: "
            "lower one of them, or set max_drop_rate below 0.99."
        )


def _check_norms(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for a radius of a norm that is not in force, and for settings without effect beside others."""
    norm, semi = settings.get("norm"), "lambda_u" in settings
    if norm == "both" and not semi:
        raise ValueError("norm='both' perturbs every sample twice, which only method 'erat' trains on: use norm='hybrid'.")
    if norm in ("hybrid", "both") and settings.get("scope") == "batch":
        raise ValueError(f"norm={norm!r} draws each sample's norm, scope='batch' has one perturbation: set scope='sample'.")
    idle_l2, idle_linf = norm == "linf" or (norm == "l2" and not semi), norm == "l2" and semi
    told = {
        "eps_l2": ("eps", idle_l2), "step_size_l2": ("step_size", idle_l2),
        "eps": ("eps_l2", idle_linf), "step_size": ("step_size_l2", idle_linf),
    }  # fmt: skip
    for key, (other, idle) in told.items():
        if key in changes and idle:
            raise ValueError(f"{key}={changes[key]!r} has no effect with norm={norm!r}: give {other}, or set norm='hybrid'.")
    if "rebalance_eta" in changes and not settings.get("rebalance"):
        raise ValueError(f"rebalance_eta={changes['rebalance_eta']!r} has no effect without rebalancing: set rebalance=True.")
    if settings.get("per_class") and settings.get("rebalance"):
        raise ValueError("per_class=True and rebalance=True are two ways to share out the kept samples: set one of them.")
