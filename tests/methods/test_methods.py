"""Every row of METHODS trains on every kind of model; a new row brings its own test."""

import dataclasses

import pytest
import torch
from helpers.toy import curve, images, logits_module, resnet, robust, settings, vit
from transformers import TrainingArguments

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.methods.settings import SETTINGS

MODELS = {"module": logits_module, "vit": vit, "resnet": resnet}


#: One row of each combination of parts: score, rule, objective, relabelling, attack, pair, weight perturbation, networks, head.
PARTS = (
    "standard", "gce", "bootstrap", "bootstrap-soft", "normclip", "ignormclip", "prl", "prl-g", "min-sgd", "rebalanced", "co-spl",
    "decouple", "rca", "trim", "spl-at", "bootstrap-at", "prl-at-memory", "pgd-at-apl", "trades", "mart", "nrat-awp", "fast-at-awp",
    "erat", "prl-simclr-sn",
)  # fmt: skip
#: On each kind of model; BatchNorm and a head of transformers matter to the last ones.
TRAINED = [
    *((name, "module") for name in PARTS),
    *((name, "resnet") for name in ("prl-g", "prl-at-memory", "nrat-awp", "erat")),
    *((name, "vit") for name in ("prl-g", "prl-at-memory", "nrat-awp", "erat")),
]


def test_every_part_of_every_row_is_trained():
    """A new row with a part that no row of `PARTS` has is to be trained, too."""

    def parts(name):
        recipe = METHODS[name]()
        return set(
            enumerate(
                (
                    type(recipe.score),
                    type(recipe.selection),
                    type(recipe.relabel),
                    type(recipe.perturbation),
                    type(recipe.adversarial_loss),
                    type(recipe.weight_perturbation),
                    type(recipe.semi_supervised),
                    recipe.num_networks > 1,
                    recipe.score_from,
                    recipe.gradients,
                    recipe.clip_norm is not None,
                    recipe.collapse_check_steps is not None,
                    recipe.freeze_backbone,
                    recipe.spectral is not None,
                )  # fmt: skip
            )
        )

    tried = set().union(*map(parts, PARTS))
    assert not {name: missing for name in METHODS if (missing := parts(name) - tried)}


@pytest.mark.parametrize("method,model", TRAINED)
def test_trains_two_steps(tmp_path, method, model):
    trainer = robust(tmp_path, MODELS[model](), method=method, max_steps=2)
    if trainer.recipe().gradients and model == "resnet":
        with pytest.raises(ValueError, match=r"\(BatchNorm2d\) in training mode mixes samples: use GroupNorm.*or method prl"):
            trainer.train()
        return
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    logs = trainer.state.log_history
    assert torch.isfinite(torch.tensor(curve(trainer))).all()
    assert any((a != b).any() for a, b in zip(before, trainer.model.parameters()))
    assert {"kept_fraction", "kept_clean", "kept_corrupted"} <= set(logs[0])
    assert int(trainer.ledger.seen.sum()) == 16
    assert not any(p.grad is not None and not torch.isfinite(p.grad).all() for p in trainer.model.parameters())


def test_every_setting_belongs_to_a_method():
    assert set(SETTINGS) == {name for row in METHODS.values() for name in SETTINGS if row.takes(name)}
    assert all(row().settings == row.settings for row in METHODS.values())


@pytest.mark.parametrize("method", ["prl", "spl-at", "prl-at-memory"])
def test_rate_zero_drops_nobody(tmp_path, method):
    """A law: at rate 0 the filter's methods are standard training (prl, spl) or AT alone (their reinforced forms)."""
    attack = {"eps": 0.03} if method.endswith("at") or "memory" in method else {}
    zero = robust(tmp_path, vit(), method=method, noise_rate=0.0, **attack)
    scope = {"scope": METHODS[method].settings["scope"]} if attack else {}
    base = robust(tmp_path, vit(), method="at" if attack else "standard", **attack, **scope)
    zero.train(), base.train()
    assert curve(zero) == curve(base)
    assert all(row["kept_fraction"] == 1.0 for row in zero.state.log_history if "loss" in row)


@pytest.mark.parametrize(
    "method,changes",
    [("at", {"eps": 0.0}), ("bootstrap", {"bootstrap_beta": 1.0}), ("bootstrap-soft", {"bootstrap_beta": 1.0}),
     ("ignormclip", {"sample_clip_norm": 1e9}), ("prl-g", {"noise_rate": 0.0}), ("sce", {"sce_alpha": 1.0, "sce_beta": 0.0}),
     ("normclip", {"clip_norm": 1.0})],
)  # fmt: skip
def test_no_strength_is_standard(tmp_path, method, changes):
    weak, base = robust(tmp_path, vit(), method=method, **changes), robust(tmp_path, vit(), method="standard")
    weak.train(), base.train()
    assert torch.allclose(torch.tensor(curve(weak)), torch.tensor(curve(base)), atol=1e-6)


def test_standard_is_the_plain_trainer_where_the_trainer_is_right(tmp_path):
    """ViT's own loss is the batch mean, as ours; the trajectories agree to rounding, accumulation included."""
    from transformers import Trainer

    robustly = robust(tmp_path, vit(), method="standard", gradient_accumulation_steps=2)
    plain = Trainer(vit(), TrainingArguments(**settings(tmp_path, gradient_accumulation_steps=2)), train_dataset=images())
    robustly.train(), plain.train()
    assert torch.allclose(torch.tensor(curve(robustly)), torch.tensor(curve(plain)), atol=1e-5)


def test_plain_training_arguments_with_a_recipe(tmp_path):
    named = robust(tmp_path, vit(), method="prl", noise_rate=0.25)
    recipe = METHODS["prl"](noise_rate=0.25, drop_ramp_epochs=10)
    given = RobustTrainer(vit(), TrainingArguments(**settings(tmp_path)), train_dataset=images(), recipe=recipe)
    named.train(), given.train()
    assert curve(named) == curve(given)


def test_ablations_change_what_they_name(tmp_path):
    base = dict(method="prl-at", noise_rate=0.5, drop_schedule="constant", eps=0.1)
    kept = {}
    for inner in (True, False):
        for outer in (True, False):
            trainer = robust(tmp_path, **base, inner_filter=inner, outer_filter=outer)
            trainer.train()
            kept[inner, outer] = curve(trainer)
    assert len({tuple(c) for c in kept.values()}) == 4
    alone = robust(tmp_path, method="at", eps=0.1)
    alone.train()
    assert kept[False, False] == curve(alone)


def test_a_recipe_is_plain_frozen_data():
    recipe = METHODS["prl-at"](noise_rate=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "other"
    assert "noise_rate=0.1" in repr(recipe.selection)


def test_config_travels(tmp_path):
    import json
    import pickle

    from transformers import HfArgumentParser

    config = RobustConfig(output_dir=str(tmp_path), method="prl-at", noise_rate=0.2, image_mean=[0.5], image_std=[0.5])
    again = pickle.loads(pickle.dumps(config))
    assert again.recipe() == config.recipe() and json.loads(config.to_json_string())["noise_rate"] == 0.2
    (parsed,) = HfArgumentParser(RobustConfig).parse_args_into_dataclasses(
        [
            "--output_dir",
            str(tmp_path),
            "--method",
            "prl-at",
            "--noise_rate",
            "0.2",
            "--eps",
            "0.1",
            "--method_settings",
            '{"inner_filter": "false"}',
        ]
    )
    assert parsed.recipe().settings["eps"] == 0.1 and parsed.recipe().inner_filter is False
