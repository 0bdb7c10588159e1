"""Names made of a selection and an adversarial training, and the settings that adversarial rows brought."""

import pytest
import torch
from datasets import Value
from helpers.tables import every_row
from helpers.toy import Logits, config, curve, images, logits_module, resnet, robust

from robust_trainer import METHODS, RobustConfig
from robust_trainer.methods.settings import settings_of
from robust_trainer.methods.table import attacking, get_method, selecting
from robust_trainer.models.peers import PeerModel


@every_row("first", selecting())
@every_row("second", attacking())
def test_a_combination_has_both_rows_settings(first, second):
    told = {"noise_rate": 0.3} if "noise_rate" in METHODS[first].settings else {}
    row, recipe = get_method(f"{first}+{second}"), get_method(f"{first}+{second}")(**told)
    assert row.name == recipe.name == f"{first}+{second}"
    own, choice = METHODS[second].settings, METHODS[first].settings
    assert all(row.settings[key] == value for key, value in own.items())
    assert all(row.settings[key] == choice[key] for key in {*settings_of("ranking"), *settings_of("split")} & set(choice))
    assert recipe.num_networks == choice.get("num_networks", 1)
    assert recipe.selection is not None and recipe.perturbation is not None
    alone = METHODS[second]()
    assert recipe.adversarial_loss == alone.adversarial_loss and recipe.weight_perturbation == alone.weight_perturbation
    assert recipe.objective == alone.objective and type(recipe.score) is type(METHODS[first]().score)


@every_row(
    "name,told",
    [
        ("prl+trade", "did you mean 'trades'"),
        ("pr+trades", "did you mean 'prl'"),
        ("trades+prl", "'trades' does not combine"),
        ("prl-g+nrat", "'prl-g' does not combine"),
        ("prl+prl-at", "'prl-at' does not combine"),
        ("prl+", "'' does not combine"),
        ("prl+trades+nrat", "'trades.nrat' does not combine"),
    ],
)
def test_what_does_not_combine_is_told_in_one_line(tmp_path, name, told):
    with pytest.raises(ValueError, match=told) as error:
        RobustConfig(output_dir=str(tmp_path), method=name)
    assert "\n" not in str(error.value)


@every_row(
    "settings,told",
    [
        (dict(method="trades", noise_rate=0.3), "'prl.trades'"),
        (dict(method="trades", eps="8"), "looks like the 0-255 scale.*8/255"),
        (dict(method="trades", eps="8/x"), "eps='8/x' is no finite number"),
        (dict(method="trades", step_size="0/255"), "step_size=0.0 must be"),
        (dict(method="trades", random_start=False), "no gradient at the clean input"),
        (dict(method="nrat", inner_loss="kl-sym", random_start=False), "set random_start=True"),
        (dict(method="nrat", inner_loss="cw"), "inner_loss='cw' is unknown: choose one of ce, objective, kl, kl-sym"),
        (dict(method="nrat", beta=-1.0), "beta=-1.0 must be >= 0"),
        (dict(method="nrat-awp", awp_gamma=1.5), "awp_gamma=1.5 must be in"),
        (dict(method="nrat", awp_gamma=0.01), "takes no 'awp_gamma'"),
        (dict(method="nrat", start_std="wide"), "start_std='wide' is no finite number"),
        (dict(method="nrat", start_std=0.0), "start_std=0.0 must be"),
        (dict(method="fast-at", collapse_check_steps=-1), "collapse_check_steps=-1 must be"),
        (dict(method="prl+nrat", noise_rate="auto"), "noise_rate='auto' does not go with an attack"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, told):
    with pytest.raises(ValueError, match=told) as error:
        config(output_dir=str(tmp_path), **settings)
    assert "\n" not in str(error.value)


def test_fractions_and_the_uniform_start_arrive(tmp_path):
    recipe = config(output_dir=str(tmp_path), method="nrat", eps="8/255", step_size="2/255", start_std="uniform").recipe()
    assert (recipe.perturbation.eps, recipe.perturbation.size, recipe.perturbation.start_std) == (8 / 255, 2 / 255, "uniform")
    assert config(output_dir=str(tmp_path), method="nrat", start_std="1/1000").recipe().perturbation.start_std == 1e-3
    assert config(output_dir=str(tmp_path), method="fast-at", collapse_check_steps=0).recipe().collapse_check_steps is None


@pytest.mark.parametrize("method", ["trades", "mart", "nrat-awp", "pgd-at"])
def test_regression_is_told_what_fits(tmp_path, method):
    data = images(16)
    data = data.cast_column("labels", Value("float32"))
    trainer = robust(
        tmp_path, logits_module_of(1), data, method=method, problem_type="regression", num_train_epochs=1, trainer={},
        **(dict(steps=2) if method == "pgd-at" else {}),
    )  # fmt: skip
    if method == "pgd-at":
        trainer.train()
        assert all(torch.isfinite(torch.tensor(curve(trainer))).flatten())
    else:
        with pytest.raises(ValueError, match="problem_type='regression'"):
            trainer.train()


def logits_module_of(classes):
    torch.manual_seed(0)
    return Logits(classes)


def test_an_optimizer_that_misses_a_peer_is_refused(tmp_path):
    model = logits_module()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = robust(tmp_path, model, method="co-prl+trades", steps=2, trainer={"optimizers": (optimizer, None)})
    with pytest.raises(ValueError, match="the optimizer given does not hold all weights of the 2 peers"):
        trainer.train()
    both = PeerModel.of([logits_module(), logits_module()])
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
    robust(tmp_path, both, method="co-prl+trades", steps=2, max_steps=2, trainer={"optimizers": (optimizer, None)}).train()


def test_a_pair_keeps_by_the_clean_view(tmp_path):
    """The wrong labels are told apart by the view of the images as they came."""
    trainer = robust(
        tmp_path, resnet(), images(96), method="prl+nrat", noise_rate=0.25, drop_ramp_steps=1, eps=0.02, steps=2,
        num_train_epochs=12, per_device_train_batch_size=32, learning_rate=2e-2,
    )  # fmt: skip
    trainer.train()
    found = trainer.ledger.detection()
    assert found["auroc"] > 0.8, found


def test_bf16_autocast_trains(tmp_path):
    trainer = robust(tmp_path, resnet(), images(32), method="nrat-awp", steps=2, bf16=True, max_steps=4)
    trainer.train()
    assert len(curve(trainer)) == 4 and all(torch.isfinite(torch.tensor(curve(trainer))).flatten())
