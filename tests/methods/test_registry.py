"""Scores, rules, objectives and methods of one's own, by name."""

import sys
from dataclasses import dataclass

import pytest
import torch
from helpers.toy import CLASSES, config, images, logits_module, robust
from transformers import HfArgumentParser

from robust_trainer import (
    METHODS,
    Method,
    RobustConfig,
    register_batch_rule,
    register_epoch_rule,
    register_method,
    register_objective,
    register_score,
)
from robust_trainer.losses.standard import OBJECTIVES
from robust_trainer.methods.registry import load_plugins
from robust_trainer.selection.rules import RULES
from robust_trainer.selection.scores import SCORES


@pytest.fixture(autouse=True)
def tables_as_they_were():
    tables = (SCORES, OBJECTIVES, RULES, METHODS)
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before):
        table.clear()
        table.update(rows)


def by_label(output):
    """Class 0 is the most suspicious."""
    return -output.network_targets().float()


@dataclass(frozen=True)
class DropClassZero:
    """A `BatchRule` with a parameter of its own and one that is a setting."""

    noise_rate: float
    largest: float = 0.0

    def new_state(self, classes, peers, device):
        return {}

    def weights(self, scores, labels, progress, state):
        return (labels > self.largest).to(scores.dtype).expand_as(scores)

    def divisor(self, weights):
        return weights.sum(1).clamp_min(1)

    def filter_active(self, progress):
        return True


class FirstHalf:
    """An `EpochRule`."""

    memory = "scan"

    def decides(self, progress):
        return True

    def keep_mask(self, scores, seen, labels, classes, progress, kept=None):
        return torch.arange(len(scores), device=scores.device) < len(scores) // 2

    def filter_active(self, progress):
        return True


def kept_classes(trainer):
    """Which classes were trained on at all."""
    return {int(c) for c in trainer.ledger.label[trainer.ledger.kept > 0]}


def test_a_score_ranks_by_its_name(tmp_path):
    register_score("by-label", by_label)
    settings = dict(score="by-label", noise_rate=0.25, drop_schedule="constant")
    trainer = robust(
        tmp_path, logits_module(), images(48), method="prl", per_device_train_batch_size=48, num_train_epochs=1, **settings
    )
    trainer.train()
    ledger = trainer.ledger
    assert int((ledger.kept > 0).sum()) == 36 and ledger.label[ledger.kept == 0].max() <= ledger.label[ledger.kept > 0].min() + 1
    assert trainer.recipe().score is by_label and trainer.recipe().settings["score"] == "by-label"


@pytest.mark.parametrize("method", ["prl", "prl+at"])
def test_a_batch_rule_is_asked_in_place_of_the_rows_own(tmp_path, method):
    register_batch_rule("no-zeros", DropClassZero)
    trainer = robust(tmp_path, method=method, rule="no-zeros", noise_rate=0.1, num_train_epochs=1)
    assert trainer.recipe().selection == DropClassZero(0.1)
    assert "drop_schedule" not in trainer.recipe().settings and trainer.recipe().settings["noise_rate"] == 0.1
    trainer.train()
    assert kept_classes(trainer) == set(range(1, CLASSES))


def test_an_epoch_rule_is_asked_over_the_data_set(tmp_path):
    register_epoch_rule("first-half", FirstHalf)
    trainer = robust(tmp_path, method="spl", rule="first-half", num_train_epochs=1)
    trainer.train()
    assert trainer.ledger.kept.tolist() == [1] * 24 + [0] * 24


def test_an_objective_is_minimised(tmp_path):
    class Constant:
        def __call__(self, output, targets):
            return output.logits.sum(-1) * 0 + 7.0

    register_objective("seven", Constant)
    trainer = robust(tmp_path, method="standard", objective="seven", max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 7.0


def test_a_method_has_a_name_and_combines():
    register_method(Method("mine", "loud losses", "this test", "loss", ("ranking", "objective"), {"noise_rate": 0.4}))
    assert RobustConfig(output_dir="unused", method="mine").recipe().selection.noise_rate == 0.4
    assert RobustConfig(output_dir="unused", method="mine+trades").recipe().adversarial_loss is not None
    assert RobustConfig(output_dir="unused", method="mine-simclr").recipe().freeze_backbone
    with pytest.raises(ValueError, match="did you mean 'mine'"):
        RobustConfig(output_dir="unused", method="mien")


def test_they_come_by_plugin_and_from_the_command_line(tmp_path):
    plugin = tmp_path / "my_rules.py"
    lines = ["from robust_trainer import register_score", "register_score('zero', lambda o: o.logits[..., 0] * 0)"]
    plugin.write_text("\n".join(lines))
    load_plugins([str(plugin)])
    first = sys.modules["robust_trainer_plugin_my_rules"]
    load_plugins(str(plugin))
    assert first is sys.modules.pop("robust_trainer_plugin_my_rules")
    words = ["--output_dir", str(tmp_path), "--method", "prl", "--method_settings", '{"score": "zero"}']
    (args,) = HfArgumentParser(RobustConfig).parse_args_into_dataclasses(words)
    assert args.recipe().score is SCORES["zero"]


def test_what_is_registered_again_replaces_what_was():
    register_score("mine", by_label)
    register_score("mine", SCORES["loss"])
    assert SCORES["mine"] is SCORES["loss"]


class NoDivisor(DropClassZero):
    divisor = property()


REFUSED = {
    "score, built in": (lambda: register_score("loss", by_label), "register_score: 'loss' is built in"),
    "score, class": (lambda: register_score("a", FirstHalf), r"got the class FirstHalf: give an instance of it, FirstHalf\(\)"),
    "score, not callable": (lambda: register_score("a", 3), r"int has no __call__\(output\)"),
    "score, arguments": (lambda: register_score("a", lambda x, y: x), r"must be called as \(output\)"),
    "no name": (lambda: register_score("", by_label), "'' is no name"),
    "objective, arguments": (lambda: register_objective("a", lambda: by_label), r"must be called as \(output, targets\)"),
    "objective, parameter": (lambda: register_objective("a", lambda scale: by_label), "its parameter 'scale' is no setting"),
    "rule, other protocol": (
        lambda: register_batch_rule("a", FirstHalf),
        "FirstHalf has no new_state, weights, divisor: see robust_trainer.types.BatchRule",
    ),
    "rule, half": (lambda: register_epoch_rule("a", DropClassZero), "DropClassZero has no memory, decides, keep_mask"),
    "rule, method missing": (lambda: register_batch_rule("a", NoDivisor), "NoDivisor has no divisor"),
    "rule, instance": (lambda: register_batch_rule("a", DropClassZero(0.1)), "got a DropClassZero: give a class or a function"),
    "rule, parameter": (lambda: register_batch_rule("a", lambda size: FirstHalf()), "its parameter 'size' is no setting"),
    "method, kind": (lambda: register_method("prl"), "got a str"),
    "method, name": (lambda: register_method(Method("a+b", "", "", "loss")), "reads as a combination"),
    "method, built in": (lambda: register_method(METHODS["prl"]), "'prl' is built in"),
    "method, part": (lambda: Method("a", "", "", "loss", ("rank",)), "unknown part 'rank'"),
    "method, number": (lambda: Method("a", "", "", "loss", ("ranking",), {"eps": 1}), "none of its parts takes 'eps'"),
    "method, loss": (
        lambda: Method("a", "", "", "loss", adversarial_loss="kl"),
        "unknown adversarial_loss 'kl': choose one of trades",
    ),
    "method, forward": (
        lambda: register_method(Method("a", "", "", "loss", score_from="outer")),
        "score_from='outer' is unknown: choose one of training, clean, eval",
    ),
    "plugin, absent": (lambda: load_plugins("absent.py"), "plugin 'absent.py' does not exist"),
    "plugin, module": (lambda: load_plugins(["absent_module"]), r"'absent_module' could not be loaded \(ModuleNotFoundError"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fits_no_protocol_is_refused_in_one_line(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_settings_that_a_rule_does_not_read_are_refused(tmp_path):
    register_batch_rule("no-zeros", DropClassZero)
    with pytest.raises(ValueError, match="per_class=True has no effect with rule='no-zeros', which takes no per_class"):
        config(output_dir=str(tmp_path), method="prl", rule="no-zeros", per_class=True)
    with pytest.raises(ValueError, match="rule='no-zeroes' is unknown: did you mean 'no-zeros'"):
        config(output_dir=str(tmp_path), method="prl", rule="no-zeroes")
