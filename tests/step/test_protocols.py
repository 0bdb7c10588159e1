"""Own rules, scores and objectives in a `Recipe`: they are asked and obeyed, and what fits no protocol is refused."""

import pytest
import torch
from helpers.toy import images, logits_module, settings
from transformers import TrainingArguments

from robust_trainer import Recipe, RobustTrainer
from robust_trainer.losses.standard import CrossEntropy
from robust_trainer.selection.scores import make_score


def train(tmp_path, recipe, data=None, **kwargs):
    args = TrainingArguments(**settings(tmp_path, **kwargs))
    trainer = RobustTrainer(model=logits_module(), args=args, train_dataset=images(24) if data is None else data, recipe=recipe)
    trainer.train()
    return trainer


def recipe(selection=None, score=None, objective=None):
    return Recipe("own", score or make_score("loss"), objective or CrossEntropy(), selection=selection)


class FirstHalf:
    """Keeps the first half of the data set, whatever the scores; an `EpochRule` and no `BatchRule`."""

    def __init__(self, memory):
        self.memory, self.asked = memory, []

    def decides(self, progress):
        return progress.epoch >= 1

    def keep_mask(self, scores, seen, labels, classes, progress, kept=None):
        self.asked.append((int(progress.epoch), classes, bool(kept.all()), bool((scores > 0).all() and (seen > 0).all())))
        return torch.arange(len(scores), device=scores.device) < len(scores) // 2

    def filter_active(self, progress):
        return progress.epoch >= 1


@pytest.mark.parametrize("memory", ["ema", "scan"])
def test_an_own_epoch_rule_is_asked_and_obeyed(tmp_path, memory):
    rule = FirstHalf(memory)
    trainer = train(tmp_path, recipe(rule), num_train_epochs=3)
    assert rule.asked == [(1, 4, True, True), (2, 4, False, True)]
    assert trainer.ledger.kept.tolist() == [3] * 12 + [1] * 12  # everybody in the first epoch, then the first half
    assert sorted(trainer.distrusted_samples()["index"][:]) == list(range(12, 24))


class EverySecond:
    """Half the weight for every second sample of a step, nothing for the others; a `BatchRule` and no `EpochRule`."""

    def __init__(self):
        self.asked = []

    def new_state(self, classes, peers, device):
        return {"steps": torch.zeros((), dtype=torch.long, device=device)}

    def weights(self, scores, labels, progress, state):
        state["steps"] += 1
        self.asked.append((progress.global_step, int(state["steps"]), tuple(scores.shape), tuple(labels.shape)))
        return torch.where(torch.arange(scores.shape[1]) % 2 == 0, 0.5, 0.0).expand_as(scores)

    def divisor(self, weights):
        return weights.sum(1)

    def filter_active(self, progress):
        return True


def test_an_own_batch_rule_is_asked_and_obeyed(tmp_path):
    rule = EverySecond()
    trainer = train(tmp_path, recipe(rule), max_steps=3)
    assert rule.asked == [(step, step + 1, (1, 8), (8,)) for step in range(3)]
    assert int(trainer.ledger.kept.sum()) == 12 and trainer.state.log_history[0]["kept_fraction"] == 0.25


def test_an_own_score_and_an_own_objective_are_asked(tmp_path):
    calls = []

    def score(output):
        calls.append(("score", tuple(output.logits.shape)))
        return output.index.float().unsqueeze(0)

    def objective(output, targets):
        calls.append(("objective", tuple(targets.shape)))
        return 2.0 * CrossEntropy()(output, targets)

    trainer = train(tmp_path, recipe(score=score, objective=objective), max_steps=3, num_train_epochs=1)
    plain = train(tmp_path, recipe(), max_steps=3, num_train_epochs=1)
    assert calls.count(("score", (1, 8, 4))) == 3 and calls.count(("objective", (1, 8))) == 3
    assert trainer.ledger.last_score.tolist() == list(range(24))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(2 * plain.state.log_history[0]["loss"], rel=1e-6)


class Remembers:
    """As the old protocol invited one to write it: ranks by the ledger, but nothing says when it decides."""

    memory = "ema"

    def keep_mask(self, scores, seen, labels, classes, progress, kept=None):
        raise AssertionError

    new_state = weights = divisor = filter_active = lambda *args: None


class Incomplete:
    def weights(self, scores, labels, progress, state):
        raise AssertionError


@pytest.mark.parametrize(
    "rule,message",
    [
        (Remembers(), r"selection=Remembers of method 'own' is an incomplete EpochRule: it has no decides"),
        (Incomplete(), r"selection=Incomplete .* is an incomplete BatchRule: it has no new_state, divisor, filter_active"),
        (object(), r"is no BatchRule \(no new_state, weights, .*\) and no EpochRule \(no memory, decides, keep_mask"),
        (FirstHalf("emma"), r"has memory='emma': expected one of"),
        (FirstHalf("none"), r"is an EpochRule with memory='none', which decides over no epoch: set memory to ema or scan"),
    ],
)  # fmt: skip
def test_what_fits_no_protocol_is_refused(tmp_path, rule, message):
    with pytest.raises(ValueError, match=message) as error:
        train(tmp_path, recipe(rule))
    assert "\n" not in str(error.value)
