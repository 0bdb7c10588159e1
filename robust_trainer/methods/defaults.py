"""The settings of the methods in groups, with the papers' numbers: what the rows of `METHODS` are put together from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..perturbations.pgd import UNIFORM

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
    "rate_multiplier": 1.0,
    "max_drop_rate": 0.99,
    "drop_schedule": "ramp",
    "drop_ramp_epochs": 10,
    "drop_ramp_steps": None,
    "drop_ramp_from": 0.0,
    "rank_among": "recent",
    "relax_from": 0.6,
    "per_class": False,
    "memory": "none",
    "memory_decay": 0.5,
    "memory_after_epochs": 1,
    "rebalance": False,
    "rebalance_eta": 0.1,
    "rate_decay_share": 0.5,
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
    "start_std": UNIFORM,
    "attack_mode": "eval",
    "inner_loss": "objective",
    "eps_l2": 0.5,
    "step_size_l2": None,
}
#: The inner maximisation of paper 004 sec. 4.1: PGD-10 with a random start, l_inf, eps = 8/255, steps of 2/255.
PGD10: Mapping[str, Any] = {
    **ATTACK,
    "eps": 8 / 255,
    "step_size": 2 / 255,
    "steps": 10,
    "scope": "sample",
    "random_start": True,
    "inner_loss": "ce",
}
#: With TRADES' start, x + 0.001 N(0, 1), which MART's and NRAT's code share; beta is the weight of the divergence (MART's lambda).
PAIR: Mapping[str, Any] = {**PGD10, "start_std": 0.001, "beta": 6.0}
#: NCE + RCE for the loss on labels: the APL variants (paper 004 sec. 3.3).
APL: Mapping[str, Any] = {**OBJECTIVE, "objective": "nce-rce"}
#: AWP: gamma = 0.005 is the authors' for TRADES, 0.01 for PGD-AT.
AWP: Mapping[str, Any] = {"awp_gamma": 0.005, "awp_warmup_epochs": 0.0}
#: Networks trained side by side, each on what the one before it trusts.
PEERS: Mapping[str, Any] = {"num_networks": 2, "peer_exchange": "next"}
BOOTSTRAP: Mapping[str, Any] = {"bootstrap_beta": 0.8}
#: ERAT's split of the data set, decided from all samples' scores at each epoch's start (paper 003 eq. 1 to 5 and sec. IV.B).
SPLIT: Mapping[str, Any] = {
    "split_score": "brier",
    "score_scale": "none",
    "rebalance": True,
    "rebalance_eta": 0.1,
    "warmup_epochs": 10.0,
}
#: ERAT (paper 003 eq. 6 to 10, sec. IV.B): 7 steps of eps / 5 (the authors' code; the paper names no step size) from x itself.
ERAT: Mapping[str, Any] = {
    **SPLIT,
    **ATTACK,
    "norm": "hybrid",
    "eps": 8 / 255,
    "step_size": 8 / 255 / 5,
    "eps_l2": 0.5,
    "step_size_l2": 0.1,
    "steps": 7,
    "scope": "sample",
    "inner_loss": "ce+consistency",
    "strong_augmentation": "autoaugment",
    "weak_augmentation": "erase-flip",
    "lambda_u": 25.0,
    "lambda_ramp_epochs": 16.0,
    "temperature": 1.0,
    "consistency": "sum",
    "labelled_share": 0.5,
    "adversarial_training": True,
    "sample_selection": True,
    **OBJECTIVE,
}
#: Where the method's filter or relabelling acts: paper 000 Algorithm 1 has both; table 4 has one at a time.
ABLATION: Mapping[str, Any] = {"inner_filter": True, "outer_filter": True}
#: What every method takes although its row does not name it, and plain training too; at these values it is as if not there.
EVERYWHERE: Mapping[str, Any] = {"freeze_backbone": False, "spectral_cap": None, "spectral_layers": "last"}
#: Stage two of paper 001 Algorithm 7: the linear layer alone, on a representation learned without labels.
FROZEN: Mapping[str, Any] = {"freeze_backbone": True}
#: Its "spectral normalization to truncate the largest singular value of last linear layer". The paper names no k; 1 is that of
#: Miyato et al. 2018, whom it cites.
CAPPED: Mapping[str, Any] = {**FROZEN, "spectral_cap": 1.0, "spectral_layers": "last"}
