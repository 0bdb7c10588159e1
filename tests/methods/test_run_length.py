"""What nobody named fits into the run; what cannot fit, and a rate that nobody chose, is said before the first step."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from helpers.tables import every_row
from helpers.toy import NORMALISATION, images, logits_module, settings
from torch import nn
from transformers import TrainingArguments

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.methods.run_length import RunLength, fit_to_run, run_length
from robust_trainer.problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from robust_trainer.selection.noise_rate import RateEstimate
from robust_trainer.types import Progress

RATE = 0.4


@pytest.fixture
def said(monkeypatch):
    """The warnings of the trainer."""
    messages = []
    monkeypatch.setattr("robust_trainer.mixin.logger.warning", messages.append)
    return messages


def trained(tmp_path, data=None, model=None, config=None, **keywords):
    args = settings(tmp_path, **(config or {}))
    trainer = RobustTrainer(
        logits_module() if model is None else model, RobustConfig(**args, **NORMALISATION),
        train_dataset=images(96) if data is None else data, **keywords,
    )  # fmt: skip
    trainer.train()
    return trainer


def kept(trainer):
    return [r["kept_fraction"] for r in trainer.state.log_history if "kept_fraction" in r]


# ---- a ramp, and the run ----------------------------------------------------------------------------------------------------


def check_share(tmp_path, method, run):
    trainer = trained(tmp_path, config=run, method=method, noise_rate=RATE, rank_among="batch")
    half = kept(trainer)[len(kept(trainer)) // 2 :]
    assert 1.0 - np.mean(half) == pytest.approx(RATE, abs=0.1), kept(trainer)


@every_row("method, run", [("prl", dict(num_train_epochs=3)), ("trim", dict(num_train_epochs=1))])
def test_a_share_is_dropped_in_a_run_of_any_length(tmp_path, method, run):
    """Over the run's last half the asked share is dropped, where the papers' 10 epochs dropped 4 to 11 %."""
    check_share(tmp_path, method, run)


@pytest.mark.slow
@every_row("method", ["prl", "spl", "co-prl", "rca", "trim"])
@every_row("run", [dict(num_train_epochs=3), dict(num_train_epochs=1), dict(max_steps=10), dict(num_train_epochs=1.5)])
def test_it_is_dropped_by_every_schedule(tmp_path, method, run):
    check_share(tmp_path, method, run)


@every_row("method", ["prl", "rca"])
def test_a_stream_is_a_run_of_its_steps(tmp_path, said, method):
    """And of a stream that is shorter than the run, and comes round."""
    said.clear()
    for rows in (400, 60) if method == "prl" else (400,):
        trainer = trained(
            tmp_path, images(rows).to_iterable_dataset(), config=dict(max_steps=24), method=method, noise_rate=RATE,
            rank_among="batch",
        )  # fmt: skip
        half = kept(trainer)[12:]
        assert 1.0 - np.mean(half) == pytest.approx(RATE, abs=0.1), kept(trainer)
        assert kept(trainer)[0] > 0.8 and trainer.ledger is None
    assert sum("no ledger, no audit" in message for message in said) == 1 + (method == "prl") and all(
        "\n" not in message for message in said
    )


EPOCHS = [(3, 1.2), (10, 4.0), (20, 8.0), (25, 10), (200, 10)]


@every_row("epochs, ramp", EPOCHS)
def test_papers_lengths_have_the_papers_ramp(epochs, ramp):
    recipe, _ = fit_to_run(METHODS["prl"](noise_rate=0.2), SINGLE_LABEL, RunLength(epochs, 100 * epochs), 6400)
    assert recipe.in_force["drop_ramp_epochs"] == ramp == recipe.selection.drop_ramp_epochs
    assert recipe.settings["drop_ramp_epochs"] == 10  # what a checkpoint is compared by


def test_a_long_run_is_the_recipe_that_was_asked_for():
    for name in METHODS:
        recipe = METHODS[name](**({"noise_rate": 0.2} if METHODS[name].takes("noise_rate") else {}))
        fitted, said = fit_to_run(recipe, SINGLE_LABEL, RunLength(100.0, 10_000), 6400)
        assert fitted == recipe and not fitted.fitted and not said


@every_row("method, name, value, run", [
    ("rebalanced", "warmup_epochs", 1, 3.0), ("rebalanced", "warmup_epochs", 4, 12.0), ("erat", "warmup_epochs", 4, 12.0),
    ("erat", "lambda_ramp_epochs", 4.8, 12.0), ("decouple", "warmup_epochs", 0.4, 1.0),
    ("rebalanced+trades", "warmup_epochs", 2, 5.0),
])  # fmt: skip
def test_warm_ups_fit_too(method, name, value, run):
    """Whole epochs where the data set is split as an epoch starts; the split and the loss of ERAT agree."""
    from_name = RobustConfig(output_dir="unused", method=method).recipe()
    recipe, said = fit_to_run(from_name, SINGLE_LABEL, RunLength(run, 100), 64)
    assert recipe.in_force[name] == pytest.approx(value) and not [m for m in said if name in m]
    parts = [part for part in (recipe.selection, recipe.semi_supervised) if hasattr(part, name)]
    assert parts and all(getattr(part, name) == pytest.approx(value) for part in parts)


def test_steps_of_a_ramp_fit_too():
    recipe, _ = fit_to_run(METHODS["prl-at-memory"](noise_rate=0.2), SINGLE_LABEL, RunLength(5.0, 100), 640)
    assert recipe.selection.drop_ramp_steps == 40
    recipe, _ = fit_to_run(METHODS["prl-at-memory"](noise_rate=0.2), SINGLE_LABEL, RunLength(5.0, 460), 6400)
    assert recipe.selection.drop_ramp_steps == 316
    recipe, said = fit_to_run(METHODS["prl-at-memory"](noise_rate=0.2), SINGLE_LABEL, RunLength(2.0, 460), 6400)
    assert recipe.selection.drop_ramp_steps == 184 and not said  # memory decides over the second epoch
    named = METHODS["prl-at-memory"](noise_rate=0.2, drop_ramp_steps=316)
    recipe, said = fit_to_run(named, SINGLE_LABEL, RunLength(2.0, 460), 6400)
    assert recipe.selection.drop_ramp_steps == 316 and "decides from epoch 2 on, this run has 2" in said[0]


NAMED = {
    "ramp": (
        "prl",
        dict(drop_ramp_epochs=10),
        "drop_ramp_epochs=10 of method 'prl' never comes to its end in this run of 3 epochs",
    ),
    "steps": (
        "prl",
        dict(drop_ramp_steps=500),
        "drop_ramp_steps=500 of method 'prl' never comes to its end in this run of 300 steps",
    ),
    "warm-up": (
        "rebalanced",
        dict(warmup_epochs=3),
        "warmup_epochs=3 of method 'rebalanced' is never over in this run of 3 epochs",
    ),
    "decouple": ("decouple", dict(warmup_epochs=5), "warmup_epochs=5 of method 'decouple' is never over"),
    "memory": (
        "prl",
        dict(memory="ema", memory_after_epochs=4),
        "memory='ema' of method 'prl' decides from epoch 4 on, this run has 3",
    ),
    "lambda": ("erat", dict(lambda_ramp_epochs=16), "lambda_ramp_epochs=16 of method 'erat' never comes to its end"),
    "AWP": ("trades-awp", dict(awp_warmup_epochs=4), "awp_warmup_epochs=4 of method 'trades-awp' is never over"),
}


@every_row("case", NAMED)
def test_what_is_named_stays_and_is_told_where_it_cannot_be(case):
    method, changes, told = NAMED[case]
    rate = {"noise_rate": 0.2} if METHODS[method].takes("noise_rate") else {}
    recipe = METHODS[method](**changes, **rate)
    fitted, said = fit_to_run(recipe, SINGLE_LABEL, RunLength(3.0, 300), 6400)
    assert [message for message in said if message.startswith(told)] and all("\n" not in message for message in said)
    assert all(fitted.in_force[name] == value for name, value in changes.items())


def test_memory_in_a_run_of_one_epoch_is_told():
    _, said = fit_to_run(METHODS["prl"](noise_rate=0.2, memory="scan"), SINGLE_LABEL, RunLength(1.0, 100), 640)
    assert [message.split(":")[0] for message in said] == [
        "memory='scan' of method 'prl' decides from epoch 1 on, this run has 1, so it decides nothing"
    ]


def test_the_users_own_objects_stay_as_they_are():
    """A recipe that is built by hand has no settings, and says nothing of what was named."""
    own = replace(METHODS["prl"](), settings={})
    assert fit_to_run(own, SINGLE_LABEL, RunLength(3.0, 300), 6400)[0] is own


@every_row("rows, given, epochs, steps", [
    (100, dict(num_train_epochs=2.5), 2.5, 33), (100, dict(max_steps=39), 3.0, 39), (100, dict(max_steps=5), 5 / 13, 5),
    (100, dict(num_train_epochs=2, gradient_accumulation_steps=4), 2.0, 8),
    (100, dict(max_steps=6, dataloader_drop_last=True), 0.5, 6), (None, dict(max_steps=7), 1.0, 7),
])  # fmt: skip
def test_the_length_of_a_run(tmp_path, rows, given, epochs, steps):
    length = run_length(TrainingArguments(**settings(tmp_path, **given)), rows)
    assert (length.epochs, length.steps) == (pytest.approx(epochs), steps)


# ---- the rate ---------------------------------------------------------------------------------------------------------------


@every_row("method", ["prl", "co-prl"])
def test_where_none_is_given_the_rate_is_estimated(tmp_path, said, method):
    """With plain TrainingArguments, as a recipe's name or a keyword; the ledger and a report hold what was in force."""
    said.clear()
    args = TrainingArguments(**settings(tmp_path, num_train_epochs=2))
    trainer = RobustTrainer(logits_module(), args, train_dataset=images(48), recipe=method)
    trainer.train()
    assert trainer.estimated_noise_rate is not None or any("found nothing" in message for message in said)
    assert trainer.ledger.run["settings"]["noise_rate"] == "auto"
    assert (
        said[0].startswith(f"method '{method}': no noise_rate is given, so the share of wrong labels is estimated")
        and "\n" not in said[0]
    )


@pytest.mark.parametrize(
    "given,falling,used",
    [({}, True, 0.25), ({}, False, 0.62), ({"noise_rate": "auto"}, True, 0.62)],
)
def test_an_estimate_that_nobody_asked_for_and_still_sinks_is_not_dropped_whole(tmp_path, given, falling, used):
    """On 480 images, after one of three epochs, it was 0.62 where 0.2 is true: accuracy 0.63, the plain Trainer's 0.92."""
    args = RobustConfig(**settings(tmp_path, num_train_epochs=3), **NORMALISATION)
    trainer = RobustTrainer(logits_module(), args, train_dataset=images(8), method="prl", **given)
    trainer.train()
    step = trainer._robust_step
    estimator = step.weights.rate_estimator()
    estimator.best, estimator.started, estimator.settled, estimator.falling = RateEstimate(0.62, 0.5, 0.67, 48), True, True, falling
    estimator.warned = False
    assert step._with_rate(Progress(2.0, 3.0, 30)).noise_rate == used
    assert (f"{used:g} is used" in (step.weights.warning() or "")) == (used == 0.25)


def test_a_rate_that_is_given_is_the_rate(tmp_path, said):
    trainer = trained(tmp_path, config=dict(max_steps=1), method="prl", noise_rate=0.25)
    assert trainer.estimated_noise_rate is None and not said


FIXED = {
    "attack": (METHODS["prl-at"], SINGLE_LABEL, 10.0, 640),
    "regression": (METHODS["prl"], REGRESSION, 10.0, 640),
    "several labels": (METHODS["spl"], MULTI_LABEL, 10.0, 640),
    "stream": (METHODS["prl"], SINGLE_LABEL, 10.0, None),
    "one epoch": (METHODS["prl"], SINGLE_LABEL, 1.0, 640),
}


@every_row("case", FIXED)
def test_where_it_cannot_be_estimated_the_number_in_force_is_said(case):
    method, problem, epochs, rows = FIXED[case]
    recipe, said = fit_to_run(method(), problem, RunLength(epochs, 100), rows)
    assert recipe.selection.noise_rate == 0.25
    told = f"method '{method.name}': no noise_rate is given, so 0.25 of the samples are dropped whatever the data"
    assert [message for message in said if message.startswith(told)]
    over = METHODS["prl-at-memory"]()
    _, said = fit_to_run(over, SINGLE_LABEL, RunLength(10.0, 10_000), 640)
    assert "so 0.375 of the samples are dropped" in said[0]  # with its factor of 1.5


def test_an_estimate_that_cannot_come_is_told(tmp_path, said):
    trainer = trained(tmp_path, config=dict(num_train_epochs=1), method="prl", noise_rate="auto")
    assert kept(trainer) == [1.0] * 12
    assert said == [
        "noise_rate='auto' of method 'prl' is estimated from the second epoch on, this run has 1: nobody is dropped; give "
        "noise_rate a number, or train for longer."
    ]


def test_an_estimate_that_found_nothing_is_told_by_a_run_that_never_logs(tmp_path, said):
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, pixel_values):
            return self.bias.expand(len(pixel_values), 4) + 0.0 * pixel_values.mean()

    trained(tmp_path, images(64), Blind(), config=dict(num_train_epochs=2, logging_steps=10_000), method="prl")
    assert sum("noise_rate='auto' found nothing" in message for message in said) == 1


def test_a_checkpoint_of_another_rate_is_refused(tmp_path):
    """Given 0.25 and none given are two rates, though both rows say 0.25."""
    saving = dict(num_train_epochs=2, save_strategy="epoch")
    trained(tmp_path, images(32), config=saving, method="prl")
    args = RobustConfig(**settings(tmp_path, **saving), **NORMALISATION)
    trainer = RobustTrainer(logits_module(), args, train_dataset=images(32), method="prl", noise_rate=0.25)
    with pytest.raises(ValueError, match="made with noise_rate='auto', this run has 0.25") as told:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "\n" not in str(told.value)
    trainer = RobustTrainer(logits_module(), args, train_dataset=images(32), method="prl", noise_rate=0.3)
    with pytest.raises(ValueError, match="made with noise_rate='auto', this run has noise_rate=0.3"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_run_that_goes_on_for_longer_resumes(tmp_path):
    """The fitted ramp is no setting that was asked for."""
    trained(tmp_path, images(32), config=dict(num_train_epochs=2, save_strategy="epoch"), method="prl", noise_rate=0.2)
    args = RobustConfig(**settings(tmp_path, num_train_epochs=4), **NORMALISATION)
    trainer = RobustTrainer(logits_module(), args, train_dataset=images(32), method="prl", noise_rate=0.2)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert trainer.state.global_step == 16


def test_rows_that_no_class_can_have(tmp_path, said):
    """An estimate of two classes, with one row each in the data, ends."""
    data = datasets.concatenate_datasets([images(2), images(2)])
    trained(tmp_path, data, config=dict(num_train_epochs=2, per_device_train_batch_size=2), method="prl")
    assert said
