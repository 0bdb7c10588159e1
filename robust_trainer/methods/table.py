"""Every published method as one row: its source, the numbers of its paper, and the recipe they make.

``METHODS["prl-at"](noise_rate=0.25)`` is a `Recipe`. Papers: 000 "Defending backdoor data poisoning attacks using noisy label
defense algorithm"; 001 "Robust learning of deep neural networks under data corruption" (dissertation); 003 "Effective and robust
adversarial training against data and label corruptions" (ERAT); 004 "NRAT: towards adversarial training with inherent label noise".
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..images.augmentations import make_augmentation
from ..losses.adversarial import Mart, Nrat, PairObjective, Trades
from ..losses.semi_supervised import SemiSupervised
from ..losses.standard import HardBootstrap, make_objective
from ..models.spectral import cap_of
from ..perturbations.awp import WeightPerturbation
from ..perturbations.pgd import Perturbation
from ..selection.erat_split import Split
from ..selection.rules import ClipSamples, KeepByScore, KeepDisputed, KeepSmallest
from ..selection.scores import make_score
from ..types import SelectionRule
from .defaults import (
    ABLATION,
    APL,
    ATTACK,
    AWP,
    BOOTSTRAP,
    CAPPED,
    ERAT,
    EVERYWHERE,
    FILTER,
    FROZEN,
    KEEP,
    OBJECTIVE,
    PAIR,
    PEERS,
    PGD10,
    SPLIT,
)
from .recipe import Recipe
from .settings import check_settings

#: Losses of two forwards by the name that a row gives.
PAIRS: Mapping[str, Callable[[float], PairObjective]] = {"trades": Trades, "mart": Mart, "nrat": Nrat}


def keep_all(s: Mapping[str, Any]) -> SelectionRule | None:
    """No rule: every sample is trusted."""
    return None


def keep_by_score(s: Mapping[str, Any]) -> SelectionRule | None:
    """The rank rule, with the settings of `KEEP`; peers exchange what they trust."""
    return KeepByScore(**{k: s[k] for k in KEEP}, peer_exchange=s.get("peer_exchange"))


def keep_split(s: Mapping[str, Any]) -> SelectionRule | None:
    """ERAT's split, with the settings of `SPLIT`; none without ``sample_selection`` (paper 003 table VI "w/o SS")."""
    if not s.get("sample_selection", True):
        return None
    scale = "minmax" if s["split_score"] == "loss" else s["score_scale"]  # a loss has no upper end to take 1 - S from
    return Split(s["rebalance"], s["rebalance_eta"], scale, s["warmup_epochs"])


def _semi(s: Mapping[str, Any]) -> SemiSupervised | None:
    if "lambda_u" not in s:
        return None
    return SemiSupervised(
        make_augmentation(s["strong_augmentation"]), make_augmentation(s["weak_augmentation"]), s["lambda_u"],
        s["lambda_ramp_epochs"], s["warmup_epochs"], s["temperature"], s["consistency"], s["labelled_share"],
    )  # fmt: skip


def _perturbation(s: Mapping[str, Any]) -> Perturbation | None:
    if "eps" not in s or not s.get("adversarial_training", True):
        return None
    attack = {k: s[k] for k in ATTACK}
    if s["norm"] == "l2" and "lambda_u" in s:  # ERAT has a radius for each norm
        attack.update(eps=s["eps_l2"], step_size=s["step_size_l2"])
    return Perturbation(**attack)


@dataclass(frozen=True)
class Method:
    """One row of `METHODS`; calling it with the settings to change gives the `Recipe`."""

    name: str
    summary: str
    source: str
    score: str
    settings: Mapping[str, Any]
    rule: Callable[[Mapping[str, Any]], SelectionRule | None] = keep_all
    objective: str = "auto"
    score_from: str = "training"
    ledger_score: str | None = None
    adversarial_loss: str | None = None
    relabels: bool = False

    def __call__(self, **changes: Any) -> Recipe:
        """The recipe. Raises ``ValueError`` for a setting that the method does not take, or outside its range."""
        for key, value in changes.items():
            if key not in self.settings and key not in EVERYWHERE:
                takes = ", ".join(sorted(self.settings)) or "no settings"
                select = f"a selection takes it: 'prl+{self.name}'; " if key in KEEP and self.name in ATTACKING else ""
                raise ValueError(f"method '{self.name}' takes no '{key}' (got {value!r}); {select}it takes: {takes}.")
        s = {**self.settings, **changes}
        if "drop_ramp_epochs" in changes and "drop_ramp_steps" not in changes:
            s["drop_ramp_steps"] = None  # epochs asked for: they count
        objective = s.get("objective", self.objective)
        check_settings(s, changes, objective)
        delta = s["huber_delta"] if objective == "huber" else None
        return Recipe(
            name=self.name,
            score=make_score(s.get("split_score", self.score), delta),
            objective=make_objective(objective, s, None),
            selection=self.rule(s),
            relabel=HardBootstrap(s["bootstrap_beta"]) if self.relabels else None,
            perturbation=_perturbation(s),
            semi_supervised=_semi(s),
            inner_filter=s.get("inner_filter", "lambda_u" not in s),  # ERAT perturbs whom it does not trust, too
            outer_filter=s.get("outer_filter", True),
            score_from=self.score_from,
            num_networks=s.get("num_networks", 1),
            adversarial_loss=PAIRS[self.adversarial_loss](s["beta"]) if self.adversarial_loss is not None else None,
            weight_perturbation=WeightPerturbation(s["awp_gamma"], s["awp_warmup_epochs"]) if "awp_gamma" in s else None,
            collapse_check_steps=s.get("collapse_check_steps") or None,
            ledger_score=make_score(self.ledger_score, delta) if self.ledger_score is not None else None,
            gradients=self.score == "prl-g",
            clip_norm=s.get("clip_norm"),
            freeze_backbone=s.get("freeze_backbone", False),
            spectral=cap_of(s),
            settings=s,
        )


_WATCH = "empirical risk minimisation; the ledger watches"
_ROWS = (
    Method("standard", _WATCH, "-", "prl-l", OBJECTIVE),
    Method("at", "adversarial training alone", "paper 000 sec. 5 (AT), eq. 2", "prl-l", {**ATTACK, **OBJECTIVE}),
    # ---- robust losses: every sample is used
    Method("mae", "mean absolute error, 1 - p_y", "Ghosh et al. 2017; paper 004 sec. 2", "prl-l", {}, objective="mae"),
    Method("gce", "generalised cross-entropy", "Zhang and Sabuncu 2018; paper 004 sec. 2", "prl-l",
           {"gce_q": 0.7}, objective="gce"),
    Method("sce", "symmetric cross-entropy", "Wang et al. 2019; paper 004 sec. 2", "prl-l",
           {"sce_alpha": 0.1, "sce_beta": 1.0}, objective="sce"),
    Method("nce", "normalised cross-entropy", "paper 004 eq. 11", "prl-l", {}, objective="nce"),
    Method("rce", "reverse cross-entropy", "paper 004 eq. 12", "prl-l", {}, objective="rce"),
    Method("nce-rce", "active-passive loss NCE + RCE", "Ma et al. 2020; paper 004 eq. 11, 12", "prl-l",
           {"apl_alpha": None, "apl_beta": None}, objective="nce-rce"),
    Method("bootstrap", "mix the given label with the prediction", "paper 000 table 1", "prl-l", BOOTSTRAP,
           relabels=True),
    Method("bootstrap-soft", "mix the given label with the predicted distribution", "Reed et al. 2014", "prl-l",
           {"bootstrap_beta": 0.95}, objective="bootstrap-soft"),
    # ---- clipping
    Method("normclip", "clip the norm of the step's gradient", "paper 001 table 4.1", "prl-l", {"clip_norm": 1.0, **OBJECTIVE}),
    Method("ignormclip", "clip the norm of each sample's gradient", "paper 001 table 4.1", "prl-g",
           {"sample_clip_norm": 1.0, **OBJECTIVE}, rule=lambda s: ClipSamples(s["sample_clip_norm"])),
    # ---- selection, one network
    Method("spl", "self-paced learning: keep the small losses", "paper 000 table 1", "loss", FILTER, rule=keep_by_score),
    Method("prl", "PRL(L): keep the small loss-layer gradients", "paper 001 Algorithm 4; paper 000 table 1", "prl-l", FILTER,
           rule=keep_by_score),
    Method("prl-g", "PRL(G): keep the small gradients over all parameters", "paper 001 Algorithm 3", "prl-g", FILTER,
           rule=keep_by_score),
    Method("min-sgd", "update on the sample with the smallest loss", "Shah et al. 2020; paper 001 table 4.1", "loss",
           {"min_sgd_group": None, **OBJECTIVE}, rule=lambda s: KeepSmallest(s["min_sgd_group"])),
    Method("rebalanced", "ERAT's split of the data set alone: train on what it trusts", "paper 003 eq. 1 to 5", "brier",
           {**SPLIT, **OBJECTIVE}, rule=keep_split),
    # ---- selection, two networks
    Method("co-teaching", "two networks, each on the other's small losses", "Han et al. 2018; paper 001 table 4.2", "loss",
           {**FILTER, **PEERS}, rule=keep_by_score),
    Method("co-spl", "co-teaching, under the name of its selection rule", "paper 001 sec. 4.3.7", "loss",
           {**FILTER, **PEERS}, rule=keep_by_score),
    Method("co-prl", "Co-PRL(L): two networks, each on the other's small loss-layer gradients", "paper 001 Algorithm 5", "prl-l",
           {**FILTER, **PEERS}, rule=keep_by_score),
    Method("decouple", "two networks, updated where they disagree", "Malach and Shalev-Shwartz 2017; paper 001 table 4.2",
           "agreement", {"num_networks": 2, "warmup_epochs": 1.0, **OBJECTIVE}, rule=lambda s: KeepDisputed(s["warmup_epochs"]),
           ledger_score="prl-l"),
    # ---- data without labels; on classifiers they filter by the loss
    Method("rca", "networks in training mode, each on what another trusts in evaluation mode", "paper 001 Algorithm 1", "loss",
           {**FILTER, **PEERS, "peer_exchange": "shuffled", "drop_schedule": "decay"}, rule=keep_by_score, score_from="eval"),
    Method("trim", "drop the samples of lowest density, from the first twentieth of the epochs on", "paper 001 Algorithm 2", "loss",
           {**FILTER, "drop_schedule": "decay", "rate_decay_share": 0.05}, rule=keep_by_score),
    # ---- backdoors
    Method("spl-at", "SPL in both steps", "paper 000 Algorithm 1", "loss", {**FILTER, **ATTACK, **ABLATION}, rule=keep_by_score),
    Method("prl-at", "PRL(L) in both steps", "paper 000 Algorithm 1, eq. 5", "prl-l", {**FILTER, **ATTACK, **ABLATION},
           rule=keep_by_score),
    Method("bootstrap-at", "bootstrap in both steps", "paper 000 Algorithm 1", "prl-l", {**BOOTSTRAP, **ATTACK, **ABLATION},
           relabels=True),
    Method(
        "prl-at-memory",
        "recommended: PRL-AT ranked by what the ledger remembers, per class",
        "this project, docs/reference/methods.md",
        "prl-l",
        {
            **FILTER,
            **ATTACK,
            **ABLATION,
            "rate_multiplier": 1.5,
            "max_drop_rate": 0.6,
            "drop_schedule": "ramp",
            "drop_ramp_from": 0.25,
            "drop_ramp_steps": 316,  # four epochs of the runs it was found in: the window before a trigger is learned
            "per_class": True,
            "memory": "ema",
            "eps": 0.1,
            "scope": "sample",
        },
        rule=keep_by_score,
        score_from="clean",
    ),
)  # fmt: skip
#: Adversarial training (paper 004): the labels may be wrong, the inputs are clean.
_ADVERSARIAL = (
    Method("pgd-at", "PGD adversarial training", "Madry et al. 2017; paper 004 eq. 2", "prl-l", {**PGD10, **OBJECTIVE}),
    Method("pgd-at-apl", "PGD-AT with NCE + RCE", "paper 004 sec. 4.2", "prl-l", {**PGD10, **APL}),
    Method("trades", "TRADES: clean loss and KL to the adversarial prediction", "Zhang et al. 2019; paper 004 eq. 3", "prl-l",
           {**PAIR, "inner_loss": "kl", **OBJECTIVE}, adversarial_loss="trades"),
    Method("trades-apl", "TRADES with NCE + RCE", "paper 004 sec. 4.1", "prl-l", {**PAIR, "inner_loss": "kl", **APL},
           adversarial_loss="trades"),
    Method("mart", "MART: boosted cross-entropy and a KL weighed by doubt", "Wang et al. 2020; paper 004 eq. 4, 5", "prl-l",
           {**PAIR, "beta": 5.0, **OBJECTIVE, "objective": "boosted-ce"}, adversarial_loss="mart"),
    Method("mart-apl", "MART with NCE + RCE", "paper 004 sec. 4.1", "prl-l", {**PAIR, "beta": 5.0, **APL}, adversarial_loss="mart"),
    Method("nrat", "NRAT: NCE + RCE and a symmetric KL", "paper 004 Algorithm 1, eq. 16", "prl-l", {**PAIR, **APL},
           adversarial_loss="nrat"),
    Method("fast-at", "FGSM from a random start, probed for catastrophic overfitting", "Wong et al. 2020", "prl-l",
           {**PGD10, "step_size": 10 / 255, "steps": 1, "collapse_check_steps": 100, **OBJECTIVE}),
)  # fmt: skip
#: Poisoned inputs and wrong labels at once (paper 003).
_DUAL = (
    Method("erat", "ERAT: hybrid adversarial, semi-supervised training on class-rebalanced labels", "paper 003 Algorithm 1",
           "brier", ERAT, rule=keep_split),
)  # fmt: skip


def _with_awp(row: Method) -> Method:
    gamma = AWP["awp_gamma"] if row.adversarial_loss else 0.01
    return replace(
        row, name=f"{row.name}-awp", summary=f"{row.summary}; AWP", source=f"{row.source}; Wu et al. 2020, eq. 18",
        settings={**row.settings, **AWP, "awp_gamma": gamma},
    )  # fmt: skip


def _on_simclr(row: Method, capped: bool) -> Method:
    """Stage two of paper 001 Algorithm 7 with the row as its noisy label algorithm."""
    source = "paper 001 Algorithm 7" if capped else "paper 001 Algorithm 7, without spectral normalisation (table 5.3)"
    told = f"{row.summary}; the head alone, on a pre-trained backbone"
    return replace(
        row, name=f"{row.name}{_SIMCLR[capped]}", summary=f"{told}, its spectral norm capped" if capped else told,
        source=source if row.name == "prl" else f"{source}; {row.source}",
        settings={**row.settings, **(CAPPED if capped else FROZEN)},
    )  # fmt: skip


#: What follows the name of a row without an attack: on a frozen backbone, and with the head's spectral norm capped.
_SIMCLR = ("-simclr", "-simclr-sn")
_HEADS = tuple(_on_simclr(row, capped) for row in _ROWS if row.name == "prl" for capped in (False, True))

METHODS: Mapping[str, Method] = {row.name: row for row in (*_ROWS, *_ADVERSARIAL, *map(_with_awp, _ADVERSARIAL), *_DUAL, *_HEADS)}
#: The rows that select by a score: ``prl+trades`` is TRADES on the samples that PRL(L) trusts.
SELECTING = tuple(
    row.name
    for row in _ROWS
    if row.rule in (keep_by_score, keep_split)
    and "eps" not in row.settings
    and row.score != "prl-g"
    and row.score_from == "training"
)
ATTACKING = tuple(name for name, row in METHODS.items() if "eps" in row.settings and row.rule is keep_all and not row.relabels)


def _combined(name: str) -> Method:
    """The row of ``selection+attack``. Raises ``ValueError`` listing what combines."""
    first, second = (part.strip() for part in name.split("+", 1))
    if first not in SELECTING or second not in ATTACKING:
        wrong, choices = (first, SELECTING) if first not in SELECTING else (second, ATTACKING)
        near = difflib.get_close_matches(wrong, choices, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(
            f"method {name!r}: {wrong!r} does not combine: {hint}a selection ({', '.join(SELECTING)}) + "
            f"an adversarial training ({', '.join(ATTACKING)})."
        )
    choice, attack = METHODS[first], METHODS[second]
    only = {key: value for key, value in choice.settings.items() if key not in OBJECTIVE}
    return replace(
        attack, name=f"{first}+{second}", summary=f"{attack.summary}; {choice.summary}", source=f"{attack.source}; {choice.source}",
        score=choice.score, settings={**only, **attack.settings, **ABLATION}, rule=choice.rule,
    )  # fmt: skip


def _frozen(name: str, ending: str) -> Method:
    """The row of ``<row>-simclr`` or ``<row>-simclr-sn``. Raises ``ValueError`` for a row that attacks or is unknown."""
    first = name.removesuffix(ending)
    fitting = [key for key, row in METHODS.items() if "eps" not in row.settings and row not in _HEADS]
    if first in fitting:
        return _on_simclr(METHODS[first], ending == _SIMCLR[True])
    if first in METHODS or "+" in first:
        raise ValueError(f"method {name!r}: {first!r} does not combine with {ending}: choose one of {', '.join(fitting)}.")
    near = difflib.get_close_matches(first, fitting, 1)
    hint = f"did you mean '{near[0]}{ending}'? " if near else ""
    raise ValueError(f"unknown method {name!r}: {hint}give {ending} after one of {', '.join(fitting)}.")


def get_method(name: str) -> Method:
    """The row of that name, of two joined by ``+``, or of one before ``-simclr`` or ``-simclr-sn``.

    Raises ``ValueError`` listing the names.
    """
    ending = next((e for e in _SIMCLR if isinstance(name, str) and name.endswith(e)), None)
    if ending is not None and name not in METHODS:
        return _frozen(name, ending)
    if isinstance(name, str) and "+" in name:
        return _combined(name)
    if not isinstance(name, str) or name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"unknown method {name!r}: {hint}choose one of {', '.join(METHODS)}.")
    return METHODS[name]
