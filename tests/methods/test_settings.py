"""The settings' table: what it refuses, what it reads, and the fields, help and reference that are made from it."""

import dataclasses
from pathlib import Path

import pytest
from helpers.toy import config
from transformers import TrainingArguments

from robust_trainer import METHODS, RobustConfig
from robust_trainer.config import _with_fields
from robust_trainer.methods.help import settings_reference
from robust_trainer.methods.settings import FIELDS, PARTS, SETTINGS, parse_assignments


def test_the_fields_are_those_of_the_table():
    own = {f.name for f in dataclasses.fields(RobustConfig)} - {f.name for f in dataclasses.fields(TrainingArguments)}
    beside = {"method", "method_settings", "problem_type", "ledger_predictions", "export", "image_mean", "image_std"}
    assert own == {*FIELDS, *beside} and len(FIELDS) <= 22


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_says_what_it_is_its_range_and_its_default(name):
    about = next(f.metadata["help"] for f in dataclasses.fields(RobustConfig) if f.name == name)
    setting = SETTINGS[name]
    assert about.lower().startswith(setting.help.lower()) and "Default: " in about and "%" not in about
    text = " ".join((RobustConfig.__doc__ or "").split())
    assert f" {name}: {setting.help}; {setting.expected()}. Default: " in text


@pytest.mark.parametrize("name", SETTINGS)
def test_every_row_is_whole(name):
    setting = SETTINGS[name]
    assert set(setting.parts) <= set(PARTS) and setting.help[0] != " " and not setting.help.endswith(".")
    assert (setting.kind is bool) + (setting.choices is not None) + (setting.range is not None) == 1
    setting.check(setting.default)


def test_the_reference_is_made_from_the_table():
    """Write it anew with ``python -m robust_trainer.methods.help > docs/reference/settings.md``."""
    path = Path(__file__).parents[2] / "docs/reference/settings.md"
    assert path.read_text(encoding="utf-8") == settings_reference()


@pytest.mark.parametrize(
    "text,value",
    [
        ("rate_decay_share=0.3", 0.3),
        ("random_start=true", True),
        ("eps=8/255", 8 / 255),
        ("steps=3", 3),
        ("spectral_cap=none", None),
        ("memory=none", "none"),
        ("noise_rate=auto", "auto"),
        ("start_std = uniform", "uniform"),
        ("objective=nce-rce", "nce-rce"),
    ],
)
def test_assignments_are_read_by_the_table(text, value):
    assert parse_assignments([text]) == {text.partition("=")[0].strip(): value}


@pytest.mark.parametrize(
    "texts,message",
    [
        (["steps"], "'steps' is no setting: write name=value"),
        (["stpes=3"], "unknown setting 'stpes': did you mean 'steps'"),
        (["steps=3", "steps=4"], "steps is given twice, 3 and 4"),
        (["eps=wide"], "eps='wide' is no finite number"),
    ],
)
def test_assignments_that_are_none(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_assignments(texts)


@pytest.mark.parametrize(
    "given,message",
    [
        (dict(noise_rat=0.2), "RobustConfig takes no 'noise_rat': did you mean 'noise_rate'"),
        (
            dict(rate_multiplier=2.0),
            r"RobustConfig has no field 'rate_multiplier': give method_settings=\{'rate_multiplier': 2.0\}",
        ),
        (dict(method_settings={"noise_rat": 0.2}), "unknown setting 'noise_rat': did you mean 'noise_rate'"),
        (dict(method_settings="{"), "method_settings='{' is no JSON"),
        (dict(method_settings=[1]), r"method_settings=\[1\] must be a dict"),
        (
            dict(noise_rate=0.2, method_settings={"noise_rate": 0.3}),
            "noise_rate=0.2 as a field and noise_rate=0.3 in method_settings",
        ),
        (dict(method_settings={"eps": 0.1}), "'prl' takes no 'eps'"),
        (dict(method_settings={"memory_after_epochs": 1.0}), "memory_after_epochs=1.0 must be a whole number >= 1"),
        (dict(method_settings={"rate_decay_share": None}), r"rate_decay_share=None must be in \(0, 1\]"),
        (dict(per_class="often"), "per_class='often' must be true or false"),
        (dict(memory="emma"), "memory='emma' is unknown: did you mean 'ema'"),
        (dict(rebalance=True, per_class=True), "two ways to share out"),
        (dict(method_settings={"rule": "mine"}), "rule='mine' is unknown: register a rule first"),
        (dict(method_settings={"score": "agreement"}), "score='agreement' compares networks"),
        (dict(method="prl-at", method_settings={"score": "prl-g"}), "score='prl-g' needs one network's gradients"),
    ],
)
def test_mistakes_are_one_line(tmp_path, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        RobustConfig(output_dir=str(tmp_path), **{"method": "prl", **given})
    assert "\n" not in str(caught.value)


def test_method_settings_are_json_too(tmp_path):
    given = RobustConfig(output_dir=str(tmp_path), method="prl", method_settings='{"rate_decay_share": "1/4", "per_class": "true"}')
    assert given.method_settings == {"rate_decay_share": 0.25, "per_class": True}
    assert given.recipe() == config(output_dir=str(tmp_path), method="prl", rate_decay_share=0.25, per_class=True).recipe()
    again = dataclasses.replace(given, method_settings={"drop_ramp_steps": None})
    assert again.recipe().settings["drop_ramp_steps"] is None


def test_a_score_by_name_ranks_in_place_of_the_rows_own(tmp_path):
    changed = METHODS["prl"](score="loss")
    assert changed.score == METHODS["spl"]().score and changed.selection == METHODS["prl"]().selection
    assert METHODS["prl"](score="prl-g").gradients and METHODS["erat"](score="loss").selection.scale == "minmax"
    by_loss = dataclasses.replace(METHODS["rebalanced"], name="by-loss", score="loss")  # a row's own score has no upper end either
    assert by_loss().selection.scale == "minmax" and METHODS["rebalanced"]().selection.scale == "none"


def test_a_row_is_a_field_whether_or_not_it_is_written_out(monkeypatch):
    """The fields in the class body are what editors complete; their types are those of the table, too."""
    assert {name: RobustConfig.__annotations__[name] for name in FIELDS} == {name: SETTINGS[name].annotation() for name in FIELDS}

    monkeypatch.setattr("robust_trainer.config.FIELDS", ("eps", "steps"))
    made = dataclasses.make_dataclass("Made", [("eps", "int", 3)])
    fields = {f.name: f for f in dataclasses.fields(dataclasses.dataclass(_with_fields(made)))}
    assert fields["eps"].type == "int" and fields["steps"].type == "int | None" and fields["steps"].default is None
    assert fields["steps"].metadata["help"].startswith("Attack steps")
