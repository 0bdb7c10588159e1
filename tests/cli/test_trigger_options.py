"""Triggers and label rules from the command line: whatever the tables hold."""

import json

import datasets
import numpy as np
import pytest
from helpers.tables import every_row

from robust_trainer.cli.main import main
from robust_trainer.cli.options import CorruptionOptions
from robust_trainer.corruptions import (
    LABEL_RULES,
    TRIGGERS,
    AdaptiveBlendTrigger,
    BlendTrigger,
    CleanLabel,
    PatchesTrigger,
    PatchTrigger,
    PhysicalTrigger,
    SinusoidTrigger,
    SourceSpecific,
    WordTrigger,
)

TINY = ["--dataset", "digits", "--max_train_samples", "100", "--max_test_samples", "40"]


def test_options_and_settings_make_the_trigger():
    patch = CorruptionOptions(corrupt="patch", patch_size=2, trigger_settings="position=center")
    assert patch.trigger() == PatchTrigger(size=2, position="center")
    assert patch.describe() == "patch (2 pixels, center; multi-target)"
    blend = CorruptionOptions(corrupt="blend", alpha=0.2, corrupt_seed=3, trigger_settings='{"mean": 0.25}')
    assert blend.trigger() == BlendTrigger(alpha=0.2, seed=3, mean=0.25)
    assert blend.describe() == "blend (alpha 0.2 of noise of mean 0.25 and std 0.25, seed 3; multi-target)"
    assert CorruptionOptions(corrupt="blend").trigger() == BlendTrigger(alpha=0.1)
    image = np.full((4, 4), 0.5)
    assert (patch.trigger()(image) != image).sum() == 4


@every_row(
    "options, trigger",
    [
        ({"corrupt": "patches", "patch_size": 2, "trigger_settings": "grid=4"}, PatchesTrigger(2, grid=4)),
        ({"corrupt": "sig", "trigger_settings": "delta=40/255,frequency=4"}, SinusoidTrigger("40/255", 4)),
        ({"corrupt": "adaptive-blend", "corrupt_seed": 2}, AdaptiveBlendTrigger(seed=2)),
        ({"corrupt": "adaptive-blend", "alpha": 0.3}, AdaptiveBlendTrigger(alpha=0.3)),
        ({"corrupt": "adaptive-blend", "trigger_settings": "alpha=0.3"}, AdaptiveBlendTrigger(alpha=0.3)),
        ({"corrupt": "word", "trigger_settings": "word=cf+mn,position=end"}, WordTrigger("cf+mn", "end")),
        (
            {"corrupt": "patch", "patch_size": 4, "physical": "rotation=30,scale=0", "corrupt_seed": 2},
            PhysicalTrigger(PatchTrigger(4), rotation=30, scale=0, seed=2),
        ),
    ],
)
def test_every_setting_of_a_trigger_can_be_given(options, trigger):
    assert CorruptionOptions(**options).trigger() == trigger


@every_row("name", list(TRIGGERS))
@every_row("rule", list(LABEL_RULES))
def test_every_row_of_the_tables_is_an_option(name, rule):
    options = CorruptionOptions(corrupt=name, label_rule=rule)
    assert isinstance(options.trigger(), type(TRIGGERS[name].make())) and type(options.rule()) is type(LABEL_RULES[rule])
    assert options.describe().startswith(f"{name} (") and rule in options.describe()


def test_label_rules_take_their_classes():
    rule = CorruptionOptions(corrupt="patch", label_rule="source-specific", source_label="1,2", target_label=4, cover_rate=0.05)
    assert rule.rule() == SourceSpecific((1, 2), 4)
    assert rule.describe() == "patch (3 pixels, bottom-right; source-specific, class 1,2 to 4; covers 5 %)"
    assert CorruptionOptions(corrupt="sig", label_rule="clean-label", target_label=2).rule() == CleanLabel(2)


@every_row(
    "options, message",
    [
        ({"corrupt": "patch", "trigger_settings": "sise=2"}, "trigger 'patch' has no setting 'sise': it takes size, position"),
        ({"corrupt": "symmetric", "trigger_settings": "size=2"}, "has no effect without a trigger: give --corrupt patch, blend"),
        ({"corrupt": "blend", "blend_picture": "nowhere.png"}, "'nowhere.png' does not exist"),
        ({"corrupt": "adaptive-blend", "blend_picture": "nowhere.png"}, "'nowhere.png' does not exist"),
        ({"corrupt": "warp", "trigger_settings": "strength=no"}, "strength=False must be a number"),
        ({"corrupt": "sig", "trigger_settings": "delta=20"}, "delta=20.0 must be a number in (0, 1]"),
        ({"corrupt": "quantise", "trigger_settings": "bits=0"}, "bits=0 must be a whole number from 1 to 7"),
        ({"corrupt": "patches", "patch_size": 0}, "size=0 must be a positive integer"),
        ({"corrupt": "word", "trigger_settings": "position=top"}, "position='top' is unknown: choose one of start, end, anywhere"),
        ({"corrupt": "symmetric", "cover_rate": 0.1}, "cover_rate=0.1 has no effect without a trigger"),
        ({"corrupt": "warp", "cover_rate": 1.5}, "cover_rate=1.5 must be in [0, 1)"),
        ({"corrupt": "patch", "source_label": "1"}, "source_label='1' has no effect with label_rule='multi-target'"),
        ({"corrupt": "patch", "label_rule": "source-specific", "source_label": "cat"}, "source_label='cat' are no class numbers"),
        ({"corrupt": "wapr"}, "did you mean 'warp'?"),
        ({"corrupt": "warp", "patch_size": 5}, "patch_size=5 has no effect with corrupt='warp'"),
        ({"corrupt": "sig", "alpha": 0.3}, "alpha=0.3 has no effect with corrupt='sig'"),
        ({"corrupt": "patch", "patch_size": 2, "trigger_settings": "size=4"}, "patch_size=2 and trigger_settings='size=4'"),
        ({"corrupt": "patch", "label_rule": "untargeted", "target_label": 2}, "target_label=2 has no effect with label_rule='unt"),
        ({"corrupt": "symmetric", "patch_size": 5}, "patch_size=5 has no effect with corrupt='symmetric'"),
        ({"corrupt": "symmetric", "target_label": 2}, "target_label=2 has no effect with corrupt='symmetric'"),
        ({"corrupt": "pairflip", "label_rule": "all-to-one"}, "label_rule='all-to-one' has no effect with corrupt='pairflip'"),
        ({"noisy_label_column": "w", "target_label": 2}, "target_label=2 has no effect with noisy_label_column='w'"),
        ({"blend_std": 0.5}, "blend_std=0.5 has no effect with corrupt='none'"),
        ({"corrupt": "patch", "noise_form": "probability"}, "noise_form='probability' has no effect with corrupt='patch'"),
        ({"corrupt": "symmetric", "physical": "shift=0.1"}, "physical='shift=0.1' has no effect without a trigger"),
        ({"corrupt": "warp", "physical": "shift=0.1"}, "WarpTrigger does not lie over the image"),
        ({"corrupt": "patch", "physical": "turn=1"}, "has no setting 'turn': it takes shift, scale, rotation, brightness"),
        ({"corrupt": "patch", "physical": "shift=2"}, "shift=2 must be a number"),
        ({"corrupt": "word", "physical": "shift=0.1"}, "is for triggers of images"),
        ({"corrupt": "patch", "target_label": 2}, "target_label=2 has no effect with label_rule='multi-target'"),
    ],
)
def test_mistakes_in_one_line(options, message):
    with pytest.raises(ValueError) as raised:
        given = CorruptionOptions(**options)
        given.trigger(), given.rule()
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_covers_and_untargeted_labels_are_saved_and_read_again(tmp_path, capsys):
    out = tmp_path / "data"
    words = ["--corrupt", "warp", "--corrupt_rate", "0.2", "--cover_rate", "0.1", "--label_rule", "untargeted"]
    assert main(["corrupt", *TINY, *words, "--output_dir", str(out)]) == 0
    assert "realised 20.0 % (20 of 100 samples), and 10 covers that keep their label" in capsys.readouterr().out
    told, data = json.loads((out / "corruption.json").read_text()), datasets.load_from_disk(str(out))
    assert told["corrupted"] == 20 and told["covers"] == 10 == sum(data["train"]["is_cover"])
    assert set(data["test_triggered"]["attack_target"]) == {-1}
    run = ["--num_train_epochs", "1", "--disable_tqdm", "true", "--use_cpu", "--output_dir", str(tmp_path / "run")]
    assert main(["train", "--dataset", str(out), "--method", "standard", "--model", "plain-cnn", *run]) == 0
    final = json.loads((tmp_path / "run/results.json").read_text())["runs"][0]["final"]
    assert final["attack_success_rate"] == pytest.approx(1 - final["poison_accuracy"])  # any wrong class is a success


def test_texts_are_poisoned_from_the_command_line(tmp_path, capsys):
    rows = {"text": [f"text number {i} says {'yes' if i % 2 else 'no'}" for i in range(80)], "label": [i % 2 for i in range(80)]}
    datasets.Dataset.from_dict(rows).to_csv(str(tmp_path / "t.csv"))
    words = [
        "corrupt",
        "--dataset",
        str(tmp_path / "t.csv"),
        "--corrupt_rate",
        "0.25",
        "--label_rule",
        "all-to-one",
        "--target_label",
        "1",
    ]
    settings = ["--trigger_settings", "position=end"]
    assert main([*words, "--corrupt", "word", *settings, "--output_dir", str(tmp_path / "out")]) == 0
    assert "word ('cf', end; all-to-one, class 1)" in capsys.readouterr().out
    data = datasets.load_from_disk(str(tmp_path / "out"))
    for row in data["train"]:
        assert row["text"].endswith(" cf") == row["is_corrupted"] and (row["label"] == 1 or not row["is_corrupted"])
    assert all(text.endswith(" cf") for text in data["test_triggered"]["text"]) and set(
        data["test_triggered"]["attack_target"]
    ) == {1}
    assert main([*words, "--corrupt", "warp", "--output_dir", str(tmp_path / "no")]) == 2
    assert "corrupt='warp' is for images, the data are texts" in capsys.readouterr().err
    assert main(["corrupt", *TINY, "--corrupt", "syntax", "--output_dir", str(tmp_path / "no")]) == 2
    assert "corrupt='syntax' is for texts, the data are images: give symmetric" in capsys.readouterr().err
