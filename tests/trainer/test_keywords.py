"""A method and its settings as keywords of the trainer, beside plain TrainingArguments."""

import pytest
from helpers.toy import config, curve, images, robust, settings, vit
from transformers import TrainingArguments

from robust_trainer import METHODS, RobustTrainer


def trainer(tmp_path, args=None, **keywords):
    args = args or TrainingArguments(**settings(tmp_path))
    return RobustTrainer(model=vit(), args=args, **{"train_dataset": images(), **keywords})


def test_keywords_train_as_the_config_does(tmp_path):
    keywords = dict(noise_rate=0.25, drop_schedule="constant", rank_among="batch")
    named, given = robust(tmp_path, vit(), method="prl", **keywords), trainer(tmp_path, method="prl", **keywords)
    named.train(), given.train()
    assert curve(named) == curve(given) and given.recipe().settings["rank_among"] == "batch"


def test_keywords_and_the_config_are_one(tmp_path):
    args = config(**settings(tmp_path), method="prl", noise_rate=0.25)
    both = trainer(tmp_path, args, method="prl", noise_rate=0.25, rank_among="batch")
    assert both.recipe() == METHODS["prl"](noise_rate=0.25, rank_among="batch")
    assert trainer(tmp_path, args, drop_schedule="constant").recipe().settings["drop_schedule"] == "constant"
    assert trainer(tmp_path, recipe="spl").recipe() == METHODS["spl"]() and trainer(tmp_path).recipe() is None


@pytest.mark.parametrize(
    "keywords,message",
    [
        (dict(method="prl", train_datset=[]), "RobustTrainer takes no 'train_datset': did you mean 'train_dataset'"),
        (dict(method="prl", noise_rat=0.2), "RobustTrainer takes no 'noise_rat': did you mean 'noise_rate'"),
        (dict(methd="prl"), "RobustTrainer takes no 'methd': did you mean 'method'"),
        (dict(method="prl", zebra=1), "takes no 'zebra': all settings are in docs/reference/settings.md"),
        (dict(noise_rate=0.2), "noise_rate=0.2 has no effect without a method: set method"),
        (dict(freeze_backbone=True), r"no effect without a method: give RobustConfig\(freeze_backbone=True\)"),
        (dict(method="prl", recipe="spl"), "recipe='spl' and method='prl' name two methods"),
        (dict(method="prl", recipe=METHODS["spl"]()), "method='prl' and recipe='spl': give one of them"),
        (dict(recipe=METHODS["spl"](), noise_rate=0.2), "noise_rate=0.2 has no effect beside recipe='spl'"),
        (dict(method="spl", eps=0.1), "'spl' takes no 'eps'"),
        (dict(method="co-plr"), "did you mean 'co-prl'"),
        (dict(method="prl", noise_rate=2), r"noise_rate=2 must be in \[0, 1\)"),
    ],
)
def test_mistakes_are_one_line(tmp_path, keywords, message):
    with pytest.raises(ValueError, match=message) as caught:
        trainer(tmp_path, **keywords)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "keywords,message",
    [
        (dict(method="spl"), "method='prl' in the arguments and method='spl' in the trainer"),
        (dict(recipe=METHODS["spl"]()), "method='prl' in the arguments and recipe='spl'"),
        (dict(noise_rate=0.3), "noise_rate=0.25 in the arguments and noise_rate=0.3 in the trainer"),
    ],
)
def test_two_answers_are_refused(tmp_path, keywords, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, config(**settings(tmp_path), method="prl", noise_rate=0.25), **keywords)
