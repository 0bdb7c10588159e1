"""RobustConfig: TrainingArguments plus the name of a method and the numbers that papers report."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from .images.augmentations import AUGMENTATIONS
from .methods.defaults import EVERYWHERE
from .methods.recipe import Recipe
from .methods.settings import check_settings
from .methods.table import get_method
from .methods.units import fraction
from .models.spectral import LAYERS, Cap, cap_of
from .perturbations.pgd import UNIFORM
from .selection.rules import ESTIMATED
from .types import PROBLEMS

_FROM_METHOD = "Default: the method's own."


@dataclass
class RobustConfig(TrainingArguments):
    """`transformers.TrainingArguments` plus a method and its settings.

    Settings left at None take the method's own value (`robust_trainer.METHODS[method].settings`); a setting that the method
    does not take, or outside its range, raises ``ValueError`` here, before anything is loaded or written.
    """

    method: str | None = field(
        default=None, metadata={"help": "Robust method, e.g. prl-at-memory; none: exactly the plain Trainer."}
    )
    noise_rate: float | str | None = field(
        default=None,
        metadata={"help": f"Expected share of corrupted samples, [0, 1), err high; auto: estimated. {_FROM_METHOD}"},
    )
    rate_multiplier: float | None = field(default=None, metadata={"help": f"Factor on noise_rate, > 0. {_FROM_METHOD}"})
    max_drop_rate: float | None = field(
        default=None, metadata={"help": f"Largest share of samples to drop, (0, 1). {_FROM_METHOD}"}
    )
    drop_schedule: str | None = field(
        default=None, metadata={"help": f"constant, ramp (0 up to the rate) or relax (down to the rate). {_FROM_METHOD}"}
    )
    drop_ramp_epochs: float | None = field(default=None, metadata={"help": f"Epochs that ramp or relax take, > 0. {_FROM_METHOD}"})
    drop_ramp_steps: int | None = field(
        default=None, metadata={"help": f"Optimizer steps that ramp takes, >= 1, instead of epochs. {_FROM_METHOD}"}
    )
    drop_ramp_from: float | None = field(
        default=None, metadata={"help": f"Share of the final rate where ramp starts, [0, 1]. {_FROM_METHOD}"}
    )
    relax_from: float | None = field(default=None, metadata={"help": f"Share dropped where relax starts, (0, 1). {_FROM_METHOD}"})
    rate_decay_share: float | None = field(
        default=None, metadata={"help": f"Share of all epochs after which decay drops its full share, (0, 1]. {_FROM_METHOD}"}
    )
    rank_among: str | None = field(
        default=None,
        metadata={"help": f"Rank a sample in its batch, or recent: at least among the latest 128 samples. {_FROM_METHOD}"},
    )
    per_class: bool | None = field(default=None, metadata={"help": f"Rank within each given label. {_FROM_METHOD}"})
    rebalance: bool | None = field(
        default=None, metadata={"help": f"Share out the kept samples over the given labels by ERAT's class scores. {_FROM_METHOD}"}
    )
    rebalance_eta: float | None = field(
        default=None, metadata={"help": f"Exponent of a class's rate, [0, 1]; 0: all classes the same number. {_FROM_METHOD}"}
    )
    memory: str | None = field(
        default=None,
        metadata={
            "help": "Rank by: none (score of the moment), mean or ema of the ledger, or scan (all samples scored as an epoch "
            f"starts). {_FROM_METHOD}"
        },
    )
    memory_decay: float | None = field(default=None, metadata={"help": f"Weight of the past in memory=ema, [0, 1). {_FROM_METHOD}"})
    memory_after_epochs: int | None = field(
        default=None, metadata={"help": f"Finished epochs after which memory decides, >= 1. {_FROM_METHOD}"}
    )
    objective: str | None = field(
        default=None, metadata={"help": f"Loss: auto (the problem's own), ce, mae, gce, nce-rce, mse, huber ... {_FROM_METHOD}"}
    )
    huber_delta: float | None = field(
        default=None, metadata={"help": f"Residual where objective=huber turns linear, > 0. {_FROM_METHOD}"}
    )
    gce_q: float | None = field(default=None, metadata={"help": f"Exponent q of objective=gce, (0, 1]. {_FROM_METHOD}"})
    sce_alpha: float | None = field(default=None, metadata={"help": f"Weight of CE in objective=sce, >= 0. {_FROM_METHOD}"})
    sce_beta: float | None = field(default=None, metadata={"help": f"Weight of RCE in objective=sce, >= 0. {_FROM_METHOD}"})
    apl_alpha: float | None = field(
        default=None, metadata={"help": f"Weight of NCE in objective=nce-rce, >= 0; none: C/10 for C classes. {_FROM_METHOD}"}
    )
    apl_beta: float | None = field(
        default=None, metadata={"help": f"Weight of RCE in objective=nce-rce, >= 0; none: 10/C for C classes. {_FROM_METHOD}"}
    )
    clip_norm: float | None = field(
        default=None, metadata={"help": f"normclip: largest norm of a step's gradient, in place of max_grad_norm. {_FROM_METHOD}"}
    )
    sample_clip_norm: float | None = field(
        default=None, metadata={"help": f"ignormclip: largest norm of one sample's gradient. {_FROM_METHOD}"}
    )
    warmup_epochs: float | None = field(
        default=None, metadata={"help": f"decouple, erat: epochs on all labels before samples are left out, >= 0. {_FROM_METHOD}"}
    )
    min_sgd_group: int | None = field(
        default=None, metadata={"help": f"min-sgd: samples of which the best is used; none: the whole step. {_FROM_METHOD}"}
    )
    num_networks: int | None = field(default=None, metadata={"help": f"Networks trained side by side, >= 2. {_FROM_METHOD}"})
    peer_exchange: str | None = field(
        default=None,
        metadata={"help": f"Who trains on what a network trusts: next, or shuffled (any other, drawn each step). {_FROM_METHOD}"},
    )
    eps: float | str | None = field(
        default=None,
        metadata={"help": f"Radius of the perturbation in [0, 1] pixels, e.g. 8/255; text: in word embeddings. {_FROM_METHOD}"},
    )
    step_size: float | str | None = field(
        default=None, metadata={"help": f"Attack step in [0, 1] pixels, e.g. 2/255; text: in word embeddings. {_FROM_METHOD}"}
    )
    steps: int | None = field(default=None, metadata={"help": f"Attack steps: 1 is FGSM, more is PGD. {_FROM_METHOD}"})
    norm: str | None = field(
        default=None,
        metadata={"help": f"linf, l2, hybrid (each sample one of the two) or, for erat, both (two for each). {_FROM_METHOD}"},
    )
    eps_l2: float | str | None = field(
        default=None, metadata={"help": f"hybrid, both: radius of the l_2 perturbation in [0, 1] pixels. {_FROM_METHOD}"}
    )
    step_size_l2: float | str | None = field(
        default=None, metadata={"help": f"hybrid, both: l_2 attack step in [0, 1] pixels. {_FROM_METHOD}"}
    )
    scope: str | None = field(default=None, metadata={"help": f"batch (one perturbation for the batch) or sample. {_FROM_METHOD}"})
    random_start: bool | None = field(
        default=None, metadata={"help": f"Start the attack at a random point of the ball. {_FROM_METHOD}"}
    )
    start_std: float | str | None = field(
        default=None, metadata={"help": f"Std of a Gaussian random start, or uniform: in the ball. {_FROM_METHOD}"}
    )
    inner_loss: str | None = field(
        default=None,
        metadata={
            "help": "What the attack raises: ce, objective (the method's loss on labels), kl, kl-sym, ce+consistency or "
            f"consistency. {_FROM_METHOD}"
        },
    )
    beta: float | None = field(
        default=None, metadata={"help": f"Weight of the divergence in trades, mart (its lambda) and nrat, >= 0. {_FROM_METHOD}"}
    )
    awp_gamma: float | None = field(
        default=None, metadata={"help": f"...-awp: size of the weight perturbation relative to the weights, [0, 1). {_FROM_METHOD}"}
    )
    awp_warmup_epochs: float | None = field(
        default=None, metadata={"help": f"...-awp: finished epochs before weights are perturbed. {_FROM_METHOD}"}
    )
    collapse_check_steps: int | None = field(
        default=None, metadata={"help": f"fast-at: steps between two probes for catastrophic overfitting, 0: none. {_FROM_METHOD}"}
    )
    split_score: str | None = field(
        default=None, metadata={"help": f"erat: score of the split, brier (eq. 1) or loss. {_FROM_METHOD}"}
    )
    score_scale: str | None = field(
        default=None, metadata={"help": f"erat: none or minmax, how scores enter the class rates. {_FROM_METHOD}"}
    )
    strong_augmentation: str | None = field(default=None, metadata={"help": f"erat: {', '.join(AUGMENTATIONS)}. {_FROM_METHOD}"})
    weak_augmentation: str | None = field(default=None, metadata={"help": f"erat: as strong_augmentation. {_FROM_METHOD}"})
    lambda_u: float | None = field(default=None, metadata={"help": f"erat: weight of the unlabelled samples, >= 0. {_FROM_METHOD}"})
    lambda_ramp_epochs: float | None = field(
        default=None, metadata={"help": f"erat: epochs that lambda_u takes to rise after the warm-up, > 0. {_FROM_METHOD}"}
    )
    temperature: float | None = field(
        default=None, metadata={"help": f"erat: temperature of the pseudo-labels, 1 none, below sharpens. {_FROM_METHOD}"}
    )
    consistency: str | None = field(
        default=None, metadata={"help": f"erat: squared difference to the pseudo-label, sum or mean over classes. {_FROM_METHOD}"}
    )
    labelled_share: float | None = field(
        default=None, metadata={"help": f"erat: share of a step's samples that are labelled; 0: as in the data set. {_FROM_METHOD}"}
    )
    adversarial_training: bool | None = field(default=None, metadata={"help": f"erat: false leaves the attack out. {_FROM_METHOD}"})
    sample_selection: bool | None = field(
        default=None, metadata={"help": f"erat: false trains on all labels as given. {_FROM_METHOD}"}
    )
    attack_mode: str | None = field(default=None, metadata={"help": f"Model mode while crafting: eval or train. {_FROM_METHOD}"})
    inner_filter: bool | None = field(
        default=None, metadata={"help": f"Filter or relabel in the inner maximisation. {_FROM_METHOD}"}
    )
    outer_filter: bool | None = field(
        default=None, metadata={"help": f"Filter or relabel in the outer minimisation. {_FROM_METHOD}"}
    )
    bootstrap_beta: float | None = field(
        default=None, metadata={"help": f"Weight of the given label in bootstrap, [0, 1]. {_FROM_METHOD}"}
    )
    freeze_backbone: bool | None = field(
        default=None,
        metadata={"help": f"Any method, or none: train the classification head alone, the rest is frozen. {_FROM_METHOD}"},
    )
    spectral_cap: float | None = field(
        default=None,
        metadata={"help": f"Any method, or none: largest spectral norm of a layer's weights, > 0. {_FROM_METHOD}"},
    )
    spectral_layers: str | None = field(
        default=None,
        metadata={"help": f"Layers that spectral_cap holds: {' (the head) or '.join(LAYERS)} (linear, convolution). Default last."},
    )
    problem_type: str | None = field(
        default=None,
        metadata={"help": "single_label_classification, regression or multi_label_classification. Default: the model's config."},
    )
    ledger_predictions: bool = field(
        default=False,
        metadata={"help": "Keep each sample's mean predicted probabilities in the ledger, 4 bytes per class and sample."},
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Per-channel mean of the input normalisation; default: the image processor's."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Per-channel std of the input normalisation; default: the image processor's."}
    )

    def __post_init__(self) -> None:
        self.noise_rate = _number_or_auto(self.noise_rate)
        for name in ("eps", "step_size", "eps_l2", "step_size_l2", "start_std"):
            if isinstance(value := getattr(self, name), str) and not (name == "start_std" and value == UNIFORM):
                setattr(self, name, fraction(name, value))
        recipe = self.recipe()
        if self.problem_type is not None and self.problem_type not in PROBLEMS:
            raise ValueError(f"problem_type={self.problem_type!r} is unknown: choose one of {', '.join(PROBLEMS)}.")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value)):
                raise ValueError(f"{name}={value!r} must be a list of numbers, one per channel: for one channel [{value!r}].")
        if recipe is not None and self.output_dir is not None:
            check_writable(self.output_dir)
        super().__post_init__()

    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}

    def switches(self) -> tuple[bool, Cap | None]:
        """``freeze_backbone`` and the cap of spectral norms as given here, whatever the method."""
        given = self._given()
        return bool(given.get("freeze_backbone")), cap_of(given)

    def recipe(self) -> Recipe | None:
        """The named method with the settings given here; None without a method."""
        given = self._given()
        if self.method is None or self.method == "none":
            switches = {name: value for name, value in given.items() if name in EVERYWHERE}
            if switches:
                check_settings(switches, switches, "auto")
            if given.keys() > switches.keys():
                name, value = next((n, v) for n, v in given.items() if n not in switches)
                raise ValueError(f"{name}={value!r} has no effect without a method: set method=..., or drop {name}.")
            return None
        return get_method(self.method)(**given)


#: The fields that are a method's settings (the rest of RobustConfig belongs to the data or to the Trainer).
SETTINGS: tuple[str, ...] = tuple(
    f.name
    for f in fields(RobustConfig)
    if f.name not in {g.name for g in fields(TrainingArguments)}
    and f.name not in ("method", "problem_type", "image_mean", "image_std", "ledger_predictions")
)


def _number_or_auto(value: Any) -> Any:
    """A noise rate from the command line, where every value is text."""
    if not isinstance(value, str) or value in ESTIMATED:
        return value
    try:
        return float(value)
    except ValueError:
        told = " or ".join(map(repr, ESTIMATED))
        raise ValueError(f"noise_rate={value!r} must be a number in [0, 1), the share of corrupted samples, or {told}.") from None


def check_writable(folder: str) -> None:
    """Raises a one-line ``ValueError`` when ``folder`` cannot be created or written."""
    probe = os.path.abspath(folder)
    while not os.path.exists(probe):
        probe = os.path.dirname(probe)
    if not os.path.isdir(probe) or not os.access(probe, os.W_OK):
        raise ValueError(f"output_dir={folder!r} is not writable ({probe}): choose a folder that you may write to.")


def space_settings(args: Any) -> dict[str, Any]:
    """mean and std given in the arguments, whatever their class."""
    return {"mean": getattr(args, "image_mean", None), "std": getattr(args, "image_std", None)}
