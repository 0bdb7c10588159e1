"""Every published default, written out: a changed number is a changed method.

The numbers are those of the papers (docs/references.md) and of the authors' code; where neither names one, the row's comment in
`robust_trainer.methods.table` says what was taken.
"""

import pytest

from robust_trainer import METHODS

#: Losses on labels: Huber 1964; Zhang and Sabuncu 2018; Wang et al. 2019 on CIFAR-10; None: by the number of classes.
OBJECTIVE = {"objective": "auto", "huber_delta": 1.0, "gce_q": 0.7, "sce_alpha": 0.1, "sce_beta": 1.0,
             "apl_alpha": None, "apl_beta": None}  # fmt: skip
#: Dissertation ch. 4: ranked by the score of the moment, the dropped share ramped up over 10 epochs.
RANKED = {
    "noise_rate": 0.25, "rate_multiplier": 1.0, "max_drop_rate": 0.99, "drop_schedule": "ramp", "drop_ramp_epochs": 10,
    "drop_ramp_steps": None, "drop_ramp_from": 0.0, "rate_decay_share": 0.5, "rank_among": "recent",
    "per_class": False, "memory": "none", "memory_after_epochs": 1, "rebalance": False, "rebalance_eta": 0.1,
    **OBJECTIVE,
}  # fmt: skip
PEERS = {"num_networks": 2, "peer_exchange": "next"}
#: Backdoor Algorithm 1, eq. 5: one l_inf step of size tau = 0.05 shared by the batch.
FGSM = {
    "eps": 0.05, "step_size": None, "steps": 1, "norm": "linf", "scope": "batch", "random_start": False, "start_std": "uniform",
    "attack_mode": "eval", "inner_loss": "objective", "eps_l2": 0.5, "step_size_l2": None,
}  # fmt: skip
#: Backdoor Algorithm 1: filter and relabel in both steps.
BOTH = {"inner_filter": True, "outer_filter": True}
#: NRAT sec. 4.1: PGD-10, l_inf, eps = 8/255, steps of 2/255, random start.
PGD = {**FGSM, "eps": 8 / 255, "step_size": 2 / 255, "steps": 10, "scope": "sample", "random_start": True, "inner_loss": "ce",
       **OBJECTIVE}  # fmt: skip
#: TRADES' code: a start of 0.001 N(0, 1), which MART's and NRAT's share; the weight 6 of TRADES and NRAT.
PAIR = {**PGD, "start_std": 0.001, "beta": 6.0}
APL = {"objective": "nce-rce"}
#: Wu et al. 2020: gamma 0.01 for PGD-AT, 0.005 for TRADES.
AWP = {"awp_gamma": 0.01, "awp_warmup_epochs": 0.0}
PAIR_AWP = {"awp_gamma": 0.005, "awp_warmup_epochs": 0.0}
#: Wong et al. 2020: one step of 10/255.
FAST = {**PGD, "step_size": 10 / 255, "steps": 1, "collapse_check_steps": 100}
#: ERAT eq. 1 to 5 and sec. IV.B.
SPLIT = {"score_scale": "none", "rebalance": True, "rebalance_eta": 0.1, "warmup_epochs": 10.0, **OBJECTIVE}

DEFAULTS = {
    "standard": OBJECTIVE,
    "auto": {**OBJECTIVE, "looks": 2, "relabel_from": 0.8, "find_patterns": True, "enlarge": True},
    "at": {**FGSM, **OBJECTIVE},
    "mae": {},
    "gce": {"gce_q": 0.7},
    "sce": {"sce_alpha": 0.1, "sce_beta": 1.0},
    "nce": {},
    "rce": {},
    "nce-rce": {"apl_alpha": None, "apl_beta": None},
    "bootstrap": {"bootstrap_beta": 0.8},
    "bootstrap-soft": {"bootstrap_beta": 0.95},
    "normclip": {"clip_norm": 1.0, **OBJECTIVE},
    "ignormclip": {"sample_clip_norm": 1.0, **OBJECTIVE},
    "spl": RANKED,
    "prl": RANKED,
    "prl-g": RANKED,
    "min-sgd": {"min_sgd_group": None, **OBJECTIVE},
    "rebalanced": SPLIT,
    "co-teaching": {**RANKED, **PEERS},
    "co-spl": {**RANKED, **PEERS},
    "co-prl": {**RANKED, **PEERS},
    "decouple": {"num_networks": 2, "warmup_epochs": 1.0, **OBJECTIVE},
    "rca": {**RANKED, **PEERS, "peer_exchange": "shuffled", "drop_schedule": "decay"},  # alpha = 0.5
    "trim": {**RANKED, "drop_schedule": "decay", "rate_decay_share": 0.05},  # the authors' code
    "spl-at": {**RANKED, **FGSM, **BOTH},
    "prl-at": {**RANKED, **FGSM, **BOTH},
    "bootstrap-at": {"bootstrap_beta": 0.8, **FGSM, **BOTH},
    "prl-at-memory": {
        **RANKED, **FGSM, **BOTH, "rate_multiplier": 1.5, "max_drop_rate": 0.6, "drop_ramp_from": 0.25, "drop_ramp_steps": 316,
        "per_class": True, "memory": "ema", "eps": 0.1, "scope": "sample",
    },
    "pgd-at": PGD,
    "pgd-at-apl": {**PGD, **APL},
    "trades": {**PAIR, "inner_loss": "kl"},
    "trades-apl": {**PAIR, "inner_loss": "kl", **APL},
    "mart": {**PAIR, "beta": 5.0, "objective": "boosted-ce"},
    "mart-apl": {**PAIR, "beta": 5.0, **APL},
    "nrat": {**PAIR, **APL},
    "fast-at": FAST,
    "pgd-at-awp": {**PGD, **AWP},
    "pgd-at-apl-awp": {**PGD, **APL, **AWP},
    "trades-awp": {**PAIR, "inner_loss": "kl", **PAIR_AWP},
    "trades-apl-awp": {**PAIR, "inner_loss": "kl", **APL, **PAIR_AWP},
    "mart-awp": {**PAIR, "beta": 5.0, "objective": "boosted-ce", **PAIR_AWP},
    "mart-apl-awp": {**PAIR, "beta": 5.0, **APL, **PAIR_AWP},
    "nrat-awp": {**PAIR, **APL, **PAIR_AWP},
    "fast-at-awp": {**FAST, **AWP},
    "erat": {
        **SPLIT, **FGSM, "norm": "hybrid", "eps": 8 / 255, "step_size": 8 / 255 / 5, "eps_l2": 0.5, "step_size_l2": 0.1, "steps": 7,
        "scope": "sample", "inner_loss": "ce+consistency", "strong_augmentation": "autoaugment", "weak_augmentation": "erase-flip",
        "lambda_u": 25.0, "lambda_ramp_epochs": 16.0, "temperature": 1.0, "consistency": "sum", "labelled_share": 0.5,
        "adversarial_training": True, "sample_selection": True,
    },
    "prl-simclr": {**RANKED, "freeze_backbone": True},
    "prl-simclr-sn": {**RANKED, "freeze_backbone": True, "spectral_cap": 1.0, "spectral_layers": "last"},
}  # fmt: skip


def test_every_row_is_pinned():
    assert set(DEFAULTS) == set(METHODS)


@pytest.mark.parametrize("method", DEFAULTS)
def test_the_published_defaults(method):
    assert dict(METHODS[method].settings) == DEFAULTS[method]
    assert dict(METHODS[method]().settings) == DEFAULTS[method]
