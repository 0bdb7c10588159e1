"""A hyperparameter search over methods and their settings: each trial is a training of its own."""

import pytest
import torch
from helpers.toy import Logits, images, logits_module, settings
from transformers import TrainingArguments
from transformers import trainer as hf_trainer
from transformers.integrations import integration_utils
from transformers.trainer_utils import HPSearchBackend

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.methods.search import searching, start_trial
from robust_trainer.models.peers import PeerModel


class Net(Logits):
    """One that the plain Trainer can train, too."""

    def forward(self, pixel_values, labels=None):
        logits = super().forward(pixel_values)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


class Trial(dict):
    """A trial of any backend."""

    number = 0

    @property
    def params(self):
        return dict(self)


def search(trainer, trials, monkeypatch, backend=HPSearchBackend.OPTUNA):
    """The Trainer's own search over these trials; returns what each one trained, under which recipe."""
    seen = []

    class Backend:
        name = backend

        def ensure_available(self):
            pass

        def run(self, trainer, n_trials, direction):
            for trial in trials:
                trainer.train(trial=Trial(trial))
                seen.append((trainer.model, trainer.recipe(), trainer.ledger))
                trainer.model = trainer.model_wrapped = None  # as after a trial of optuna

    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: True)
    monkeypatch.setitem(hf_trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, backend, Backend)
    trainer.hyperparameter_search(hp_space=lambda trial: dict(trial.params), backend=backend, n_trials=len(trials))
    return seen


def searcher(tmp_path, model_init=lambda: Net(), **kwargs):
    args = RobustConfig(**settings(tmp_path, num_train_epochs=1, per_device_train_batch_size=16), **kwargs)
    return RobustTrainer(model_init=model_init, args=args, train_dataset=images(16))


def test_each_trial_trains_its_method_on_its_own_networks(tmp_path, monkeypatch):
    trials = [
        {"method": "co-prl"}, {"method": "prl", "freeze_backbone": True}, {"method": "prl"},
        {"method": "co-prl", "num_networks": 3}, {"method": None}, {"method": "decouple", "learning_rate": 0.02},
    ]  # fmt: skip
    seen = search(searcher(tmp_path, method="prl"), trials, monkeypatch)
    assert [len(model.peers) if isinstance(model, PeerModel) else 1 for model, *_ in seen] == [2, 1, 1, 3, 1, 2]
    assert [recipe and recipe.name for _, recipe, _ in seen] == ["co-prl", "prl", "prl", "co-prl", None, "decouple"]
    for trial, (model, *_) in zip(trials, seen):
        rate = trial.get("learning_rate", 1e-2)
        given = {name: value for name, value in trial.items() if name != "learning_rate"}
        alone = searcher(tmp_path, **given)
        alone.args.learning_rate = rate
        alone.train()
        theirs = alone.model.state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in model.state_dict().items()), trial


def test_a_trial_has_its_own_settings_and_those_from_before_the_search(tmp_path, monkeypatch):
    trainer = searcher(tmp_path, method="prl", noise_rate=0.1, method_settings={"rate_multiplier": 2.0, "max_drop_rate": 0.5})
    trials = [
        {"method": "prl", "noise_rate": 0.3, "rate_multiplier": 1.5},  # the latter is no field
        {"method": "spl", "rank_among": "batch", "drop_ramp_steps": 3},
        {"noise_rate": "auto", "max_drop_rate": "0.4"},
        {"method": "prl"},
    ]
    found = [recipe.settings for _, recipe, _ in search(trainer, trials, monkeypatch)]
    names = ("noise_rate", "rate_multiplier", "max_drop_rate", "rank_among", "drop_ramp_steps")
    assert [tuple(own[name] for name in names) for own in found] == [
        (0.3, 1.5, 0.5, "recent", None), (0.1, 2.0, 0.5, "batch", 3), ("auto", 2.0, 0.4, "recent", None),
        (0.1, 2.0, 0.5, "recent", None),
    ]  # fmt: skip
    assert trainer.recipe().settings["noise_rate"] == 0.1 and trainer.args.rank_among is None
    trainer.args.rate_multiplier = 1.2  # as the best trial's settings are put back, one by one
    with pytest.raises(ValueError, match="rate_multiplier=1.2 .*rate_multiplier=2.0"):
        trainer.recipe()
    trainer.args.method_settings = None
    assert trainer.recipe().settings["rate_multiplier"] == 1.2


def test_trials_of_every_backend_are_read(tmp_path):
    trainer = searcher(tmp_path, method="prl", noise_rate=0.1)
    for backend in (HPSearchBackend.RAY, HPSearchBackend.WANDB):
        trainer.hp_search_backend = backend
        with searching(trainer):
            start_trial(trainer, {"method": "co-prl", "num_networks": 3, "learning_rate": 0.1})
            assert (trainer.recipe().num_networks, trainer.recipe().settings["noise_rate"]) == (3, 0.1)
        assert trainer.args.method == "prl" and trainer.args.num_networks is None


def test_a_method_of_the_arguments_alone_can_be_searched(tmp_path, monkeypatch):
    args = TrainingArguments(**settings(tmp_path, num_train_epochs=1))
    trainer = RobustTrainer(model_init=lambda: Logits(), args=args, train_dataset=images(16), method="prl")
    with pytest.raises(ValueError, match=r"sets noise_rate=0.3, which TrainingArguments does not have: give .* a RobustConfig"):
        search(trainer, [{"noise_rate": 0.3}], monkeypatch)
    with pytest.raises(ValueError, match=r"noise_rate=2.0 must be in \[0, 1\)"):
        search(searcher(tmp_path, method="prl"), [{"noise_rate": 2.0}], monkeypatch)


def test_model_init_builds_each_network_anew(tmp_path, monkeypatch, caplog):
    one = logits_module()
    with pytest.raises(ValueError, match="model_init returned the same Logits twice: build a new model in each call"):
        searcher(tmp_path, lambda: one, method="co-prl")
    trainer = searcher(tmp_path, lambda: one, method="prl")
    trainer.train()  # called twice, trained once
    with pytest.raises(ValueError, match="model_init returned the Logits that was trained before: build a new model in each call"):
        trainer.train()
    with pytest.raises(ValueError, match="model_init returned the Logits that was trained before"):
        search(searcher(tmp_path, lambda: one, method="prl"), [{"noise_rate": 0.1}, {"noise_rate": 0.2}], monkeypatch)
    searcher(tmp_path, logits_module, method="co-prl")  # sets its seed
    assert "model_init builds networks of equal weights" in caplog.text
