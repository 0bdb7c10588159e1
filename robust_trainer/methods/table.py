"""Every published method as one row: its source, the parts it is made of, and its paper's numbers.

``METHODS["prl-at"](noise_rate=0.25)`` is a `Recipe`. The papers are named as in docs/references.md: Backdoor, Dissertation,
ERAT, NRAT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..reporting.suggest import did_you_mean
from .method import Method
from .settings import settings_of

#: A selection that ranks, on any loss.
_RANKED = ("ranking", "objective")
#: The same in both steps of adversarial training.
_RANKED_AT = ("ranking", "objective", "attack", "filtered-steps")
_PAIR_PARTS = ("attack", "divergence", "objective")
#: The inner maximisation of NRAT sec. 4.1: PGD-10 with a random start, l_inf, eps = 8/255, steps of 2/255. The defaults are
#: those of Backdoor Algorithm 1 and eq. 5: one l_inf step of size tau = 0.05 shared by the batch.
_PGD10: Mapping[str, Any] = {
    "eps": 8 / 255,
    "step_size": 2 / 255,
    "steps": 10,
    "scope": "sample",
    "random_start": True,
    "inner_loss": "ce",
}
#: With TRADES' start, x + 0.001 N(0, 1), which MART's and NRAT's code share.
_PAIR: Mapping[str, Any] = {**_PGD10, "start_std": 0.001}
#: NCE + RCE for the loss on labels: the APL variants (NRAT sec. 3.3).
_APL: Mapping[str, Any] = {"objective": "nce-rce"}
#: ERAT eq. 6 to 10, sec. IV.B: 7 steps of eps / 5 (the authors' code; the paper names no step size) from x itself.
_ERAT: Mapping[str, Any] = {
    "rebalance": True,
    "norm": "hybrid",
    "eps": 8 / 255,
    "step_size": 8 / 255 / 5,
    "step_size_l2": 0.1,
    "steps": 7,
    "scope": "sample",
    "inner_loss": "ce+consistency",
}
#: Stage two of Dissertation Algorithm 7: the linear layer alone, on a representation learned without labels.
_FROZEN: Mapping[str, Any] = {"freeze_backbone": True}
#: Its "spectral normalization to truncate the largest singular value of last linear layer". The paper names no k; 1 is that of
#: Miyato et al. 2018, whom it cites.
_CAPPED: Mapping[str, Any] = {**_FROZEN, "spectral_cap": 1.0, "spectral_layers": "last"}

_ROWS = (
    Method("standard", "empirical risk minimisation; the ledger only records", "-", "prl-l", ("objective",)),
    Method("at", "adversarial training alone", "Backdoor sec. 5 (AT), eq. 2", "prl-l", ("attack", "objective")),
    # ---- labels judged by features: nothing needs to be told
    Method("auto", "recommended: labels judged before training, wrong ones left out or mended, clean data trained on as it is",
           "this project, docs/background/auto.md", "prl-l", ("evidence", "objective")),
    # ---- robust losses: every sample is used
    Method("mae", "mean absolute error, 1 - p_y", "Ghosh et al. 2017; NRAT sec. 2", "prl-l", objective="mae"),
    Method("gce", "generalised cross-entropy", "Zhang and Sabuncu 2018; NRAT sec. 2", "prl-l", ("gce",), objective="gce"),
    Method("sce", "symmetric cross-entropy", "Wang et al. 2019; NRAT sec. 2", "prl-l", ("sce",), objective="sce"),
    Method("nce", "normalised cross-entropy", "NRAT eq. 11", "prl-l", objective="nce"),
    Method("rce", "reverse cross-entropy", "NRAT eq. 12", "prl-l", objective="rce"),
    Method("nce-rce", "active-passive loss NCE + RCE", "Ma et al. 2020; NRAT eq. 11, 12", "prl-l", ("nce-rce",),
           objective="nce-rce"),
    Method("bootstrap", "mix the given label with the prediction", "Backdoor table 1", "prl-l", ("bootstrap",)),
    Method("bootstrap-soft", "mix the given label with the predicted distribution", "Reed et al. 2014", "prl-l",
           ("bootstrap-soft",), {"bootstrap_beta": 0.95}, objective="bootstrap-soft"),
    # ---- clipping
    Method("normclip", "clip the norm of the step's gradient", "Dissertation table 4.1", "prl-l", ("clipping", "objective")),
    Method("ignormclip", "clip the norm of each sample's gradient", "Dissertation table 4.1", "prl-g",
           ("sample-clipping", "objective")),
    # ---- selection, one network
    Method("spl", "self-paced learning: keep the small losses", "Backdoor table 1", "loss", _RANKED),
    Method("prl", "PRL(L): keep the small loss-layer gradients", "Dissertation Algorithm 4; Backdoor table 1", "prl-l",
           _RANKED),
    Method("prl-g", "PRL(G): keep the small gradients over all parameters", "Dissertation Algorithm 3", "prl-g", _RANKED),
    Method("min-sgd", "update on the sample with the smallest loss", "Shah et al. 2020; Dissertation table 4.1", "loss",
           ("min-sgd", "objective")),
    Method("rebalanced", "ERAT's split of the data set alone: train on the samples it keeps", "ERAT eq. 1 to 5", "brier",
           ("split", "objective"), {"rebalance": True}),
    # ---- selection, two networks
    Method("co-teaching", "two networks, each on the other's small losses", "Han et al. 2018; Dissertation table 4.2", "loss",
           (*_RANKED, "peers")),
    Method("co-spl", "co-teaching, under the name of its selection rule", "Dissertation sec. 4.3.7", "loss", (*_RANKED, "peers")),
    Method("co-prl", "Co-PRL(L): two networks, each on the other's small loss-layer gradients", "Dissertation Algorithm 5",
           "prl-l", (*_RANKED, "peers")),
    Method("decouple", "two networks, updated where they disagree", "Malach and Shalev-Shwartz 2017; Dissertation table 4.2",
           "agreement", ("decoupling", "objective"), {"warmup_epochs": 1.0}, ledger_score="prl-l"),
    # ---- data without labels; on classifiers they filter by the loss
    Method("rca", "networks in training mode, each on the samples that another keeps in evaluation mode",
           "Dissertation Algorithm 1", "loss", (*_RANKED, "peers"), {"peer_exchange": "shuffled", "drop_schedule": "decay"},
           score_from="eval"),
    Method("trim", "drop the samples of lowest density, from the first twentieth of the epochs on", "Dissertation Algorithm 2",
           "loss", _RANKED, {"drop_schedule": "decay", "rate_decay_share": 0.05}),
    # ---- backdoors
    Method("spl-at", "SPL in both steps", "Backdoor Algorithm 1", "loss", _RANKED_AT),
    Method("prl-at", "PRL(L) in both steps", "Backdoor Algorithm 1, eq. 5", "prl-l", _RANKED_AT),
    Method("bootstrap-at", "bootstrap in both steps", "Backdoor Algorithm 1", "prl-l", ("bootstrap", "attack", "filtered-steps")),
    Method(
        "prl-at-memory",
        "PRL-AT ranked by what the ledger remembers, per class",
        "this project, docs/reference/methods.md",
        "prl-l",
        _RANKED_AT,
        {
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
        score_from="clean",
    ),
)  # fmt: skip
#: Adversarial training (NRAT): the labels may be wrong, the inputs are clean.
_ADVERSARIAL = (
    Method("pgd-at", "PGD adversarial training", "Madry et al. 2017; NRAT eq. 2", "prl-l", ("attack", "objective"), _PGD10),
    Method("pgd-at-apl", "PGD-AT with NCE + RCE", "NRAT sec. 4.2", "prl-l", ("attack", "objective"), {**_PGD10, **_APL}),
    Method("trades", "TRADES: clean loss and KL to the adversarial prediction", "Zhang et al. 2019; NRAT eq. 3", "prl-l",
           _PAIR_PARTS, {**_PAIR, "inner_loss": "kl"}, adversarial_loss="trades"),
    Method("trades-apl", "TRADES with NCE + RCE", "NRAT sec. 4.1", "prl-l", _PAIR_PARTS, {**_PAIR, "inner_loss": "kl", **_APL},
           adversarial_loss="trades"),
    Method("mart", "MART: boosted cross-entropy and a KL weighed by doubt", "Wang et al. 2020; NRAT eq. 4, 5", "prl-l",
           _PAIR_PARTS, {**_PAIR, "beta": 5.0, "objective": "boosted-ce"}, adversarial_loss="mart"),
    Method("mart-apl", "MART with NCE + RCE", "NRAT sec. 4.1", "prl-l", _PAIR_PARTS, {**_PAIR, "beta": 5.0, **_APL},
           adversarial_loss="mart"),
    Method("nrat", "NRAT: NCE + RCE and a symmetric KL", "NRAT Algorithm 1, eq. 16", "prl-l", _PAIR_PARTS, {**_PAIR, **_APL},
           adversarial_loss="nrat"),
    Method("fast-at", "FGSM from a random start, probed for catastrophic overfitting", "Wong et al. 2020", "prl-l",
           ("attack", "objective", "collapse-check"), {**_PGD10, "step_size": 10 / 255, "steps": 1}),
)  # fmt: skip
#: Poisoned inputs and wrong labels at once (ERAT).
_DUAL = (
    Method("erat", "ERAT: hybrid adversarial, semi-supervised training on class-rebalanced labels", "ERAT Algorithm 1", "brier",
           ("split", "attack", "semi-supervised", "objective"), _ERAT),
)  # fmt: skip


def _with_awp(row: Method) -> Method:
    """The row with AWP; gamma is the authors', 0.005 for TRADES and its like, 0.01 for PGD-AT."""
    return replace(
        row, name=f"{row.name}-awp", summary=f"{row.summary}; AWP", source=f"{row.source}; Wu et al. 2020, eq. 18",
        parts=(*row.parts, "weight-perturbation"),
        published={**row.published, "awp_gamma": 0.005 if row.adversarial_loss is not None else 0.01},
    )  # fmt: skip


def _on_simclr(row: Method, capped: bool) -> Method:
    """Stage two of Dissertation Algorithm 7 with the row as its noisy label algorithm."""
    source = "Dissertation Algorithm 7" + ("" if capped else ", without spectral normalisation (table 5.3)")
    summary = f"{row.summary}; the head alone, on a pre-trained backbone"
    return replace(
        row, name=f"{row.name}{_SIMCLR[capped]}", summary=f"{summary}, its spectral norm capped" if capped else summary,
        source=source if row.name == "prl" else f"{source}; {row.source}",
        published={**row.published, **(_CAPPED if capped else _FROZEN)},
    )  # fmt: skip


#: What follows the name of a row without an attack: on a frozen backbone, and with the head's spectral norm capped.
_SIMCLR = ("-simclr", "-simclr-sn")
_HEADS = tuple(_on_simclr(row, capped) for row in _ROWS if row.name == "prl" for capped in (False, True))

METHODS: dict[str, Method] = {row.name: row for row in (*_ROWS, *_ADVERSARIAL, *map(_with_awp, _ADVERSARIAL), *_DUAL, *_HEADS)}


def selecting() -> tuple[str, ...]:
    """Returns the rows that go before a ``+``: ``prl+trades`` is TRADES on the samples that PRL(L) keeps."""
    return tuple(
        name
        for name, row in METHODS.items()
        if {"ranking", "split"} & set(row.parts)
        and not {"attack"} & set(row.parts)
        and row.score != "prl-g"
        and row.score_from == "training"
        and not {"freeze_backbone"} & row.published.keys()
    )


def attacking() -> tuple[str, ...]:
    """Returns the rows that go after a ``+``: those that attack and neither leave out samples nor relabel."""
    return tuple(name for name, row in METHODS.items() if "attack" in row.parts and row.keeps_all and "bootstrap" not in row.parts)


def _combined(name: str) -> Method:
    """The row of ``selection+attack``. Raises ``ValueError`` listing what combines."""
    first, second = (part.strip() for part in name.split("+", 1))
    firsts, seconds = selecting(), attacking()
    if first not in firsts or second not in seconds:
        wrong, choices = (first, firsts) if first not in firsts else (second, seconds)
        raise ValueError(
            f"method {name!r}: {wrong!r} does not combine: {did_you_mean(wrong, choices)}a selection ({', '.join(firsts)}) + "
            f"an adversarial training ({', '.join(seconds)})."
        )
    choice, attack = METHODS[first], METHODS[second]
    only = {key: value for key, value in choice.published.items() if key not in settings_of("objective")}
    return replace(
        attack, name=f"{first}+{second}", summary=f"{attack.summary}; {choice.summary}", source=f"{attack.source}; {choice.source}",
        score=choice.score, published={**only, **attack.published},
        parts=tuple(dict.fromkeys([*(p for p in choice.parts if p != "objective"), *attack.parts, "filtered-steps"])),
    )  # fmt: skip


def _frozen(name: str, ending: str) -> Method:
    """The row of ``<row>-simclr`` or ``<row>-simclr-sn``. Raises ``ValueError`` for a row that attacks or is unknown."""
    first = name.removesuffix(ending)
    fitting = [key for key, row in METHODS.items() if "attack" not in row.parts and row not in _HEADS]
    if first in fitting:
        return _on_simclr(METHODS[first], ending == _SIMCLR[True])
    if first in METHODS or "+" in first:
        raise ValueError(f"method {name!r}: {first!r} does not combine with {ending}: choose one of {', '.join(fitting)}.")
    hint = did_you_mean(first, fitting, "'{}" + ending + "'")
    raise ValueError(f"unknown method {name!r}: {hint}give {ending} after one of {', '.join(fitting)}.")


def get_method(name: str) -> Method:
    """Returns the row of that name, of two joined by ``+``, or of one before ``-simclr`` or ``-simclr-sn``.

    Args:
        name: e.g. ``prl``, ``prl+trades``, ``spl-simclr-sn``.

    Raises:
        ValueError: for another name, with the one that was meant and all that there are.
    """
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    ending = next((e for e in reversed(_SIMCLR) if isinstance(name, str) and name.endswith(e)), None)
    if ending is not None:
        return _frozen(name, ending)
    if isinstance(name, str) and "+" in name:
        return _combined(name)
    raise ValueError(f"unknown method {name!r}: {did_you_mean(name, METHODS)}choose one of {', '.join(METHODS)}.")
