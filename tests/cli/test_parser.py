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
