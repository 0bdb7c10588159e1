"""Settings of a method on the command line and in a file, and plugins that define methods."""

import pytest

from robust_trainer import RobustConfig
from robust_trainer.cli.options import DataOptions
from robust_trainer.cli.parser import make_parser, parse
from robust_trainer.methods.table import METHODS

PLUGIN = """
from dataclasses import replace
from robust_trainer.methods.registry import register_method
from robust_trainer.methods.table import METHODS

register_method(replace(METHODS["prl"], name="my-prl", summary="of a plugin"))
"""


def read(*words):
    parser = make_parser("train", [DataOptions, RobustConfig], "")
    return parse(parser, [*words, "--output_dir", "out", "--use_cpu", "true", "--report_to", "none"])


def test_set_goes_over_the_file_and_into_the_method(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("method: prl\nnoise_rate: 0.2\nmethod_settings:\n  drop_ramp_from: 0.3\n  rank_among: batch\n")
    data, args = read(str(file), "--set", "drop_ramp_from=0.1")
    assert isinstance(data, DataOptions) and args.method_settings == {"drop_ramp_from": 0.1, "rank_among": "batch"}
    assert args.recipe().settings["drop_ramp_from"] == 0.1
    _, args = read("--method", "prl", "--set", "drop_ramp_from=0.4", "--set", "rank_among=batch", "--noise_rate", "0.2")
    assert args.method_settings == {"drop_ramp_from": 0.4, "rank_among": "batch"}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--set", "rank_amnog=batch"], "did you mean 'rank_among'?"),
        (["--set", "rank_among"], "write name=value"),
        (["--rank_among", "batch"], "give --set rank_among=..."),
        (["--plugins", "nowhere.py"], "does not exist"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?").replace(".", r"\.")):
        read("--method", "prl", "--noise_rate", "0.2", *words)


def test_a_plugin_s_method_is_known_by_name(tmp_path, monkeypatch):
    monkeypatch.delitem(METHODS, "my-prl", raising=False)
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "c.yaml").write_text(f"plugins: [{tmp_path / 'mine.py'}]\nmethod: my-prl\nnoise_rate: 0.2\n")
    try:
        _, args = read(str(tmp_path / "c.yaml"))
        assert args.recipe().name == "my-prl"
    finally:
        METHODS.pop("my-prl", None)


def in_file(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    return read(str(tmp_path / "c.yaml"))


def test_a_file_means_what_is_written_there(tmp_path):
    """Seen before: label_column no -> 'False', output folder 010 -> '8', class 1:30 -> 90, a setting 1e-3 -> a text."""
    data, args = in_file(tmp_path, "dataset: 010\nlabel_column: no\ntest_split: 1:30\nimage_column: 2024-01-01\nseed: 007\n")
    assert (data.dataset, data.label_column, data.test_split, data.image_column, args.seed) == (
        "010",
        "no",
        "1:30",
        "2024-01-01",
        7,
    )
    text = (
        'method: prl\nnoise_rate: "0.2"\nbf16: off\nuse_cpu: on\nimage_mean: [0.5, -1]\nmethod_settings: {drop_ramp_from: 1e-1}\n'
    )
    _, args = in_file(tmp_path, text.replace("use_cpu: on\n", ""))
    assert (
        args.noise_rate == 0.2
        and not args.bf16
        and args.image_mean == [0.5, -1]
        and args.method_settings == {"drop_ramp_from": 0.1}
    )
    _, args = in_file(tmp_path, '{"method": "trades", "eps": "8/255", "max_steps": null}')
    assert args.eps == 8 / 255 and args.max_steps == -1


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed: 1\nseed: 2\n", "'seed' is given twice, in lines 1 and 2"),
        ('{"seed": 1, "method": "prl", "seed": 1}', "'seed' is given twice"),
        (
            "method: prl\nmethod_settings:\n  rank_among: batch\n  rank_among: recent\n",
            "'rank_among' is given twice, in lines 3 and 4",
        ),
        ("noise_rte: 0.3\n", "c.yaml: unknown option 'noise_rte': did you mean 'noise_rate'?"),
        ("epochs: 3\n", "unknown option 'epochs': did you mean 'num_train_epochs'?"),
        ("batch_size: 8\n", "unknown option 'batch_size': did you mean 'per_device_train_batch_size'?"),
        ("num_train_epochs: true\n", "--num_train_epochs 'true' is no number"),
        ("seed: 3.5\n", "--seed '3.5' is no whole number"),
        ("seed: [1, 2]\n", "seed holds a list of 2, expected one value"),
        ("output_dir: {a: 1}\n", "output_dir holds a mapping of names, expected one value"),
        ("image_mean: []\n", "image_mean holds a list of 0, expected at least one value"),
        ("plugins: [--seed]\n", "plugins holds '--seed', which would be read as an option"),
        ("method: !!python/name:os.system prl\n", "has the tag 'tag:yaml.org,2002:python/name:os.system', which is not read"),
        ("? [a]\n: 1\n", "line 1 has a key that is no word"),
        ("method_settings: &a {rank_among: *a}\n", "nested deeper"),
        ("{" * 1000, "is nested too deep"),
        ("seed: 1\n---\nseed: 2\n", "is no YAML"),
        ("use_cpu: maybe\n", "--use_cpu 'maybe' is neither true nor false"),
    ],
)
def test_a_file_that_is_wrong(text, message, tmp_path):
    with pytest.raises(ValueError) as error:
        in_file(tmp_path, text)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--seed", "1", "--seed", "2"], "--seed is given twice, '--seed 1' and '--seed 2'"),
        (["--max_train_samples=3", "--max-train-samples", "4"], "--max_train_samples is given twice"),
        (["--bf16", "--bf16", "false"], "--bf16 is given twice"),
        (["--method", "prl", "--method_settings", '{"score": "loss", "score": "brier"}'], "'score' is given twice"),
        (["--method", "prl", "--method_settings", "[1]"], "must be a dict of settings"),
        (["--optim", "adamw_torc"], "--optim 'adamw_torc' is unknown: did you mean 'adamw_torch'?"),
        (["--seed"], "--seed has no value"),
    ],
)
def test_an_option_has_one_value(words, message):
    with pytest.raises(ValueError) as error:
        read(*words)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert read("--seed", "3", "--seed", "3")[1].seed == 3  # twice the same is no other meaning


def test_null_takes_the_default_in_place_of_the_file_s_value(tmp_path):
    """Seen before: the text 'null', as a comment in an example says to type it."""
    (tmp_path / "c.yaml").write_text("dataset: digits\nmethod: prl\nnoise_rate: 0.4\nmax_train_samples: 7\nimage_mean: [0.5, 1]\n")
    words = ["--noise_rate", "null", "--max_train_samples=null", "--method", "standard", "--image_mean", "null"]
    data, args = read(str(tmp_path / "c.yaml"), *words)
    assert (data.dataset, data.max_train_samples, args.method, args.noise_rate, args.image_mean) == (
        "digits",
        None,
        "standard",
        None,
        None,
    )
