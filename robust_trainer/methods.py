"""Every published method as one row: its source, the numbers of its paper, and the recipe they make.

``METHODS["prl-at"](noise_rate=0.25)`` is a `Recipe`. Papers: 000 "Defending backdoor data poisoning attacks using noisy label
defense algorithm"; 001 "Robust learning of deep neural networks under data corruption" (dissertation); 004 "NRAT: towards
adversarial training with inherent label noise".
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .objectives import HardBootstrap, make_objective
from .perturbations import Perturbation
from .recipe import Recipe, Selection
from .scores import make_score
from .selection import ClipSamples, KeepByScore, KeepDisputed, KeepSmallest
from .settings import check_settings

#: What is minimised: ``auto`` is the problem's own loss (cross-entropy, squared error, binary cross-entropy).
OBJECTIVE: Mapping[str, Any] = {
    "objective": "auto",
    "huber_delta": 1.0,
    "gce_q": 0.7,
    "sce_alpha": 0.1,
    "sce_beta": 1.0,
    "apl_alpha": None,
    "apl_beta": None,
}
#: Selection as the papers have it: ranked in the batch, dropped share ramped up over 10 epochs (paper 001 ch. 4).
KEEP: Mapping[str, Any] = {
    "noise_rate": 0.25,
    "over_trim": 1.0,
    "max_rate": 0.99,
    "rate_schedule": "ramp",
    "rate_ramp_epochs": 10,
    "rate_ramp_steps": None,
    "ramp_from": 0.0,
    "relax_from": 0.6,
    "per_class": False,
    "memory": "none",
    "memory_decay": 0.5,
    "memory_after_epochs": 1,
}
FILTER: Mapping[str, Any] = {**KEEP, **OBJECTIVE}
#: The inner maximisation of paper 000, Algorithm 1 and eq. 5: one l_inf step of size tau = 0.05 shared by the batch.
ATTACK: Mapping[str, Any] = {
    "eps": 0.05,
    "step_size": None,
    "steps": 1,
    "norm": "linf",
    "scope": "batch",
    "random_start": False,
    "attack_mode": "eval",
}
#: Networks trained side by side, each on what the one before it trusts.
PEERS: Mapping[str, Any] = {"peers": 2}
BOOTSTRAP: Mapping[str, Any] = {"bootstrap_beta": 0.8}
#: Where the method's filter or relabelling acts: paper 000 Algorithm 1 has both; table 4 has one at a time.
ABLATION: Mapping[str, Any] = {"inner_filter": True, "outer_filter": True}


def keep_all(s: Mapping[str, Any]) -> Selection | None:
    """No rule: every sample is trusted."""
    return None


def keep_by_score(s: Mapping[str, Any]) -> Selection | None:
    """The rank rule, with the settings of `KEEP`; peers exchange what they trust."""
    return KeepByScore(**{k: s[k] for k in KEEP}, exchange="peers" in s)


@dataclass(frozen=True)
class Method:
    """One row of `METHODS`; calling it with the settings to change gives the `Recipe`."""

    name: str
    summary: str
    source: str
    score: str
    settings: Mapping[str, Any]
    rule: Callable[[Mapping[str, Any]], Selection | None] = keep_all
    objective: str = "auto"
    trust: str = "outer"
    watch: str | None = None

    def __call__(self, **changes: Any) -> Recipe:
        """The recipe. Raises ``ValueError`` for a setting that the method does not take, or outside its range."""
        for key, value in changes.items():
            if key not in self.settings:
                takes = ", ".join(sorted(self.settings)) or "no settings"
                raise ValueError(f"method '{self.name}' takes no '{key}' (got {value!r}); it takes: {takes}.")
        s = {**self.settings, **changes}
        if "rate_ramp_epochs" in changes and "rate_ramp_steps" not in changes:
            s["rate_ramp_steps"] = None  # epochs asked for: they count
        objective = s.get("objective", self.objective)
        check_settings(s, changes, objective)
        delta = s["huber_delta"] if objective == "huber" else None
        return Recipe(
            name=self.name,
            score=make_score(self.score, delta),
            objective=make_objective(objective, s, None),
            selection=self.rule(s),
            relabel=HardBootstrap(s["bootstrap_beta"]) if self.name in _RELABEL else None,
            perturbation=Perturbation(**{k: s[k] for k in ATTACK}) if "eps" in s else None,
            inner_filter=s.get("inner_filter", True),
            outer_filter=s.get("outer_filter", True),
            trust=self.trust,
            peers=s.get("peers", 1),
            watch=make_score(self.watch, delta) if self.watch is not None else None,
            gradients=self.score == "prl-g",
            clip_norm=s.get("clip_norm"),
            settings=s,
        )


#: Methods that mix the given label with the prediction.
_RELABEL = ("bootstrap", "bootstrap-at")
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
    Method("bootstrap", "mix the given label with the prediction", "paper 000 table 1", "prl-l", BOOTSTRAP),
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
    # ---- selection, two networks
    Method("co-teaching", "two networks, each on the other's small losses", "Han et al. 2018; paper 001 table 4.2", "loss",
           {**FILTER, **PEERS}, rule=keep_by_score),
    Method("co-spl", "co-teaching, under the name of its selection rule", "paper 001 sec. 4.3.7", "loss",
           {**FILTER, **PEERS}, rule=keep_by_score),
    Method("co-prl", "Co-PRL(L): two networks, each on the other's small loss-layer gradients", "paper 001 Algorithm 5", "prl-l",
           {**FILTER, **PEERS}, rule=keep_by_score),
    Method("decouple", "two networks, updated where they disagree", "Malach and Shalev-Shwartz 2017; paper 001 table 4.2",
           "agreement", {**PEERS, "warmup_epochs": 1.0, **OBJECTIVE}, rule=lambda s: KeepDisputed(s["warmup_epochs"]),
           watch="prl-l"),
    # ---- backdoors
    Method("spl-at", "SPL in both steps", "paper 000 Algorithm 1", "loss", {**FILTER, **ATTACK, **ABLATION}, rule=keep_by_score),
    Method("prl-at", "PRL(L) in both steps", "paper 000 Algorithm 1, eq. 5", "prl-l", {**FILTER, **ATTACK, **ABLATION},
           rule=keep_by_score),
    Method("bootstrap-at", "bootstrap in both steps", "paper 000 Algorithm 1", "prl-l", {**BOOTSTRAP, **ATTACK, **ABLATION}),
    Method(
        "prl-at-memory",
        "recommended: PRL-AT ranked by what the ledger remembers, per class",
        "this project, docs/methods.md",
        "prl-l",
        {
            **FILTER,
            **ATTACK,
            **ABLATION,
            "over_trim": 1.5,
            "max_rate": 0.6,
            "rate_schedule": "ramp",
            "ramp_from": 0.25,
            "rate_ramp_steps": 316,  # four epochs of the runs it was found in: the window before a trigger is learned
            "per_class": True,
            "memory": "ema",
            "eps": 0.1,
            "scope": "sample",
        },
        rule=keep_by_score,
        trust="inner",
    ),
)  # fmt: skip
METHODS: Mapping[str, Method] = {row.name: row for row in _ROWS}


def get_method(name: str) -> Method:
    """The row of that name. Raises ``ValueError`` listing the names."""
    if not isinstance(name, str) or name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"unknown method {name!r}: {hint}choose one of {', '.join(METHODS)}.")
    return METHODS[name]
