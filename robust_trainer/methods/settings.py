"""Every setting of every method, one row each: type, range, default, help.

`RobustConfig`'s fields, the checks, ``--help`` and ``docs/reference/settings.md`` are made from this table. A new setting is a row
here, and a field of that name in the object that reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ..data.augmentation.augmentations import AUGMENTATIONS
from ..losses.adversarial import INNER
from ..losses.semi_supervised import CONSISTENCIES
from ..losses.standard import OBJECTIVES
from ..models.spectral import LAYERS
from ..perturbations.pgd import NORM_CHOICES, SCOPES, UNIFORM
from ..reporting.suggest import did_you_mean
from ..selection.allocation import CLASS_FLOOR
from ..selection.erat_split import SCALES
from ..selection.rates import SCHEDULES
from ..selection.rules import ESTIMATED, EXCHANGES, MEMORIES, RANK_AMONG, RULES
from ..selection.scores import SCORES
from .schema import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_ABOVE_ZERO,
    SHARE_BELOW_ONE,
    SHARE_INSIDE,
    Setting,
    at_least,
)

#: The parts that methods are made of, as `Setting.parts` and `Method.parts` name them, in the order of the reference.
PARTS: Mapping[str, str] = {
    "ranking": "Which samples are kept: by the rank of their score",
    "split": "Which samples are kept: ERAT's split of the data set",
    "min-sgd": "Which samples are kept: the best of each group",
    "decoupling": "Which samples are kept: where two networks disagree",
    "evidence": "What is done about labels that features doubt",
    "peers": "Several networks",
    "objective": "What is minimised",
    "gce": "Generalised cross-entropy",
    "sce": "Symmetric cross-entropy",
    "nce-rce": "Active-passive loss",
    "bootstrap-soft": "Soft bootstrapping",
    "bootstrap": "Hard bootstrapping",
    "clipping": "Clipping of the step's gradient",
    "sample-clipping": "Clipping of each sample's gradient",
    "attack": "What is perturbed",
    "divergence": "Losses on two forwards",
    "weight-perturbation": "Adversarial weight perturbation",
    "collapse-check": "Catastrophic overfitting",
    "semi-supervised": "Semi-supervised training (ERAT)",
    "filtered-steps": "Where samples are left out or relabelled",
    "anywhere": "Any method, and training without one",
}

Idle = Callable[[Mapping[str, Any], Collection[str]], str | None]


def _without_eps(of_l2: bool, other: str) -> Idle:
    """Whether a radius or step belongs to a norm that is not in force."""

    def idle(s: Mapping[str, Any], parts: Collection[str]) -> str | None:
        two_radii, norm = "semi-supervised" in parts, s.get("norm")  # ERAT has a radius for each norm
        alone = norm == "l2" and two_radii
        unused = not (alone or norm in ("hybrid", "both")) if of_l2 else alone
        return f"with norm={norm!r}: give {other}, or set norm='hybrid'" if unused else None

    return idle


def _without_rebalancing(s: Mapping[str, Any], parts: Collection[str]) -> str | None:
    return None if s.get("rebalance") else "without rebalancing: set rebalance=True"


def _without_cap(s: Mapping[str, Any], parts: Collection[str]) -> str | None:
    return "without a cap: give spectral_cap, for instance 1.0" if s.get("spectral_cap") is None else None


_ROWS = (
    # ---- which samples are kept
    Setting("noise_rate", "expected share of corrupted samples; err high; not given: auto for class labels without an attack",
            0.25, ("ranking",), range=SHARE_BELOW_ONE, words=tuple(ESTIMATED), field=True),
    Setting("rate_multiplier", "factor on noise_rate", 1.0, ("ranking",), range=POSITIVE),
    Setting("max_drop_rate", "largest share of samples to drop", 0.99, ("ranking",), range=SHARE_INSIDE),
    Setting("drop_schedule", "how the dropped share moves: constant, ramp (0 up to the rate) or decay (RCA)",
            "ramp", ("ranking",), str, choices=lambda: SCHEDULES, field=True),
    Setting("drop_ramp_epochs", "epochs that ramp takes; not given: 2/5 of the run at most", 10, ("ranking",), range=POSITIVE,
            unit="epochs", field=True),
    Setting("drop_ramp_steps", "optimizer steps that ramp takes, in place of epochs; not given: shorter in a short run", None,
            ("ranking",), int, range=at_least(1), optional=True, field=True),
    Setting("drop_ramp_from", "where ramp starts, as a share of the final rate", 0.0, ("ranking",), range=SHARE),
    Setting("rank_among", "rank a sample in its batch, or recent: at least among the latest 128 samples", "recent", ("ranking",),
            str, choices=lambda: RANK_AMONG),
    Setting("rate_decay_share", "share of all epochs after which decay drops its full share", 0.5, ("ranking",),
            range=SHARE_ABOVE_ZERO),
    Setting("per_class", "rank within each given label", False, ("ranking",), bool, field=True),
    Setting("memory", "rank by none (the score of the moment), ema of the ledger, or scan (all samples scored as an epoch starts)",
            "none", ("ranking",), str, choices=lambda: MEMORIES, field=True),
    Setting("memory_after_epochs", "finished epochs after which the memory decides", 1, ("ranking",), int, range=at_least(1)),
    Setting("rebalance", "share out the kept samples over the given labels by ERAT's class scores", False, ("ranking", "split"),
            bool, field=True),
    Setting("rebalance_eta", "exponent of a class's rate; 0 keeps as many samples of each class", 0.1, ("ranking", "split"),
            range=SHARE, idle=_without_rebalancing),
    Setting("class_floor", "samples of each class that are always kept where a class is rare (below half the mean size); 0: none",
            CLASS_FLOOR, ("ranking", "split", "evidence"), int, range=at_least(0), implicit=True),
    Setting("score", "what samples are ranked by, a registered score; by default the method's own", None, ("ranking", "split"), str,
            choices=lambda: SCORES, optional=True, implicit=True),
    Setting("rule", "a registered rule in place of the method's own", None, ("ranking", "split"), str, choices=lambda: RULES,
            optional=True, implicit=True),
    Setting("score_scale", "how scores enter the class rates, as they are or stretched to [0, 1]", "none", ("split",), str,
            choices=lambda: SCALES),
    Setting("warmup_epochs", "epochs on all labels before samples are left out; not given: 2/5 of the run at most", 10.0,
            ("split", "decoupling"), range=NOT_NEGATIVE, unit="epochs", field=True),
    Setting("min_sgd_group", "samples of which the best is used; None: the whole step", None, ("min-sgd",), int, range=at_least(2),
            optional=True),
    Setting("num_networks", "networks trained side by side; for one use method prl or spl", 2, ("peers", "decoupling"), int,
            range=at_least(2), field=True),
    Setting("peer_exchange", "whose kept samples a network trains on: those of the next one, or shuffled, of any other", "next",
            ("peers",), str, choices=lambda: EXCHANGES),
    # ---- labels judged by features
    Setting("looks", "how often labels are judged: before training, and again within the first half of the run", 2, ("evidence",),
            int, range=at_least(1), field=True),
    Setting("relabel_from", "probability of the suggested class from which a doubted row is trained as it; 1: never", 0.8,
            ("evidence",), range=SHARE_ABOVE_ZERO, field=True),
    Setting("find_patterns", "whether a pattern that doubted rows share, such as a trigger, is looked for in the inputs", True,
            ("evidence",), bool, field=True),
    Setting("enlarge", "whether small images are judged at twice their size where the network then tells more of them", True,
            ("evidence",), bool),
    # ---- what is minimised
    Setting("objective", "loss on labels; auto is the problem's own", "auto", ("objective",), str,
            choices=lambda: ("auto", *OBJECTIVES), field=True),
    Setting("huber_delta", "residual where objective=huber turns linear", 1.0, ("objective",), range=POSITIVE,
            unit="in the unit of the targets"),
    Setting("gce_q", "exponent q of objective=gce: 1 is the mean absolute error, towards 0 the cross-entropy", 0.7,
            ("objective", "gce"), range=SHARE_ABOVE_ZERO),
    Setting("sce_alpha", "weight of the cross-entropy in objective=sce", 0.1, ("objective", "sce"), range=NOT_NEGATIVE),
    Setting("sce_beta", "weight of the reverse cross-entropy in objective=sce", 1.0, ("objective", "sce"), range=NOT_NEGATIVE),
    Setting("apl_alpha", "weight of NCE in objective=nce-rce; None: C/10 for C classes", None, ("objective", "nce-rce"),
            range=NOT_NEGATIVE, optional=True),
    Setting("apl_beta", "weight of RCE in objective=nce-rce; None: 10/C for C classes", None, ("objective", "nce-rce"),
            range=NOT_NEGATIVE, optional=True),
    Setting("bootstrap_beta", "weight of the given label", 0.8, ("bootstrap", "bootstrap-soft"), range=SHARE),
    Setting("clip_norm", "largest norm of a step's gradient, in place of max_grad_norm", 1.0, ("clipping",), range=POSITIVE),
    Setting("sample_clip_norm", "largest norm of one sample's gradient", 1.0, ("sample-clipping",), range=POSITIVE),
    # ---- what is perturbed
    Setting("eps", "radius of the perturbation; on text in word embeddings", 0.05, ("attack",), range=NOT_NEGATIVE,
            unit="in the [0, 1] pixel scale", pixels=True, field=True, idle=_without_eps(False, "eps_l2")),
    Setting("step_size", "attack step; None: eps for one step, else 2.5 eps / steps", None, ("attack",), range=POSITIVE,
            unit="in the [0, 1] pixel scale", pixels=True, optional=True, field=True, idle=_without_eps(False, "step_size_l2")),
    Setting("steps", "attack steps: 1 is FGSM, more is PGD", 1, ("attack",), int, range=at_least(1), field=True),
    Setting("norm", "ball of the perturbation; hybrid: each sample one of linf and l2, both (erat alone): two for each",
            "linf", ("attack",), str, choices=lambda: NORM_CHOICES, field=True),
    Setting("eps_l2", "radius of the l_2 perturbation with norm hybrid or both", 0.5, ("attack",), range=NOT_NEGATIVE,
            unit="in the [0, 1] pixel scale", pixels=True, idle=_without_eps(True, "eps")),
    Setting("step_size_l2", "l_2 attack step with norm hybrid or both", None, ("attack",), range=POSITIVE,
            unit="in the [0, 1] pixel scale", pixels=True, optional=True, idle=_without_eps(True, "step_size")),
    Setting("scope", "batch (one perturbation for the batch) or sample", "batch", ("attack",), str, choices=lambda: SCOPES,
            field=True),
    Setting("random_start", "start the attack at a random point", False, ("attack",), bool, field=True),
    Setting("start_std", "standard deviation of a Gaussian random start, or uniform in the ball", UNIFORM, ("attack",),
            range=POSITIVE, unit="in the [0, 1] pixel scale", words=(UNIFORM,), pixels=True),
    Setting("inner_loss", "what the attack raises: ce, objective (the method's loss on labels), kl, kl-sym, ce+consistency or "
            "consistency", "objective", ("attack",), str, choices=lambda: INNER),
    Setting("attack_mode", "mode of the model while an attack is made", "eval", ("attack",), str,
            choices=lambda: ("eval", "train")),
    Setting("beta", "weight of the divergence between clean and adversarial predictions (MART's lambda)", 6.0, ("divergence",),
            range=NOT_NEGATIVE, field=True),
    Setting("awp_gamma", "size of the weight perturbation relative to the weights", 0.01, ("weight-perturbation",),
            range=SHARE_BELOW_ONE),
    Setting("awp_warmup_epochs", "finished epochs before weights are perturbed", 0.0, ("weight-perturbation",), range=NOT_NEGATIVE,
            unit="epochs"),
    Setting("collapse_check_steps", "steps between two probes for catastrophic overfitting, 0 for none", 100, ("collapse-check",),
            int, range=at_least(0)),
    # ---- semi-supervised training
    Setting("strong_augmentation", "augmentation of the views that are trained on", "autoaugment", ("semi-supervised",), str,
            choices=lambda: AUGMENTATIONS),
    Setting("weak_augmentation", "augmentation of the views that pseudo-labels come from", "erase-flip", ("semi-supervised",), str,
            choices=lambda: AUGMENTATIONS),
    Setting("lambda_u", "weight of the unlabelled samples", 25.0, ("semi-supervised",), range=NOT_NEGATIVE),
    Setting("lambda_ramp_epochs", "epochs that lambda_u takes to rise after the warm-up; not given: 2/5 of the run at most",
            16.0, ("semi-supervised",), range=POSITIVE, unit="epochs"),
    Setting("temperature", "temperature of the pseudo-labels: 1 is none, below sharpens", 1.0, ("semi-supervised",),
            range=POSITIVE),
    Setting("consistency", "squared difference to the pseudo-label, sum or mean over classes", "sum", ("semi-supervised",), str,
            choices=lambda: CONSISTENCIES),
    Setting("labelled_share", "share of a step's samples that are labelled; 0: as in the data set", 0.5, ("semi-supervised",),
            range=SHARE_BELOW_ONE),
    Setting("adversarial_training", "false leaves the attack out", True, ("semi-supervised",), bool),
    Setting("sample_selection", "false trains on all labels as given", True, ("semi-supervised",), bool),
    # ---- where, and any method
    Setting("inner_filter", "leave out or relabel in the inner maximisation", True, ("filtered-steps",), bool),
    Setting("outer_filter", "leave out or relabel in the outer minimisation", True, ("filtered-steps",), bool),
    Setting("freeze_backbone", "train the classification head alone, the rest is frozen", False, ("anywhere",), bool, field=True,
            implicit=True),
    Setting("spectral_cap", "largest spectral norm of a layer's weights; None: no cap", None, ("anywhere",), range=POSITIVE,
            optional=True, field=True, implicit=True),
    Setting("spectral_layers", "layers that spectral_cap holds: last (the head) or all (linear, convolution)", "last",
            ("anywhere",), str, choices=lambda: LAYERS, implicit=True, idle=_without_cap),
)  # fmt: skip

#: Every setting by its name.
SETTINGS: Mapping[str, Setting] = {row.name: row for row in _ROWS}
#: Those that are fields of `RobustConfig`; the others go through ``method_settings``.
FIELDS: tuple[str, ...] = tuple(row.name for row in _ROWS if row.field)


def settings_of(part: str) -> tuple[str, ...]:
    """Returns the names of the settings that belong to a part.

    Args:
        part: a key of `PARTS`.
    """
    return tuple(row.name for row in _ROWS if part in row.parts)


def defaults(parts: Iterable[str], implicit: bool = False) -> dict[str, Any]:
    """Returns the settings of these parts at their defaults.

    Args:
        parts: keys of `PARTS`.
        implicit: the settings that a method's settings hold only where they are given, in place of the others.
    """
    chosen = set(parts)
    return {row.name: row.default for row in _ROWS if row.implicit == implicit and chosen & set(row.parts)}


def read_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings with the values that texts stand for, ``"8/255"`` or ``"true"``; ranges are not looked at.

    Args:
        settings: name -> value, from Python, YAML, JSON or the command line.

    Raises:
        ValueError: for a name that is no setting, with the one that was meant, and for text that is no size in pixels.
    """
    return {name: find_setting(name).read(value) for name, value in settings.items()}


def find_setting(name: str) -> Setting:
    """Returns the row of that name.

    Args:
        name: of a setting.

    Raises:
        ValueError: where there is none, with the name that was meant.
    """
    if name not in SETTINGS:
        raise ValueError(f"unknown setting {name!r}: {did_you_mean(name, SETTINGS)}all are in docs/reference/settings.md.")
    return SETTINGS[name]


def parse_json(text: str) -> Any:
    """Returns what JSON says.

    Args:
        text: JSON.

    Raises:
        ValueError: for what is no JSON, and for a name that an object gives twice, of which Python would take the last.
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise GivenTwice(f"{name!r} is given twice, {found[name]!r} and {value!r}: give it once.")
        found[name] = value
    return found


class GivenTwice(ValueError):
    """A name that stands twice where each has one value."""


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Returns the settings that texts of the form ``name=value`` give.

    Args:
        assignments: e.g. ``["rate_decay_share=0.3", "random_start=true", "eps=8/255"]``.

    Raises:
        ValueError: for a text without ``=``, an unknown name, and a name with two values.
    """
    settings: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise ValueError(f"{text!r} is no setting: write name=value, for instance rate_decay_share=0.3.")
        read = read_settings({name: value})[name]
        if name in settings and settings[name] != read:
            raise ValueError(f"{name} is given twice, {settings[name]!r} and {read!r}: give it once.")
        settings[name] = read
    return settings
