"""RobustTrainerMixin makes any subclass of Trainer robust, and RobustTrainer has the Trainer's signature."""

import inspect

import pytest
import torch
from helpers.toy import curve, images, logits_module, settings
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from robust_trainer import RobustTrainer, RobustTrainerMixin


class Mine(RobustTrainerMixin, Seq2SeqTrainer):
    """Another Trainer, robust."""


class Named(Trainer):
    """A Trainer with an argument of its own."""

    def __init__(self, *args, nickname="", **kwargs):
        self.nickname = nickname
        super().__init__(*args, **kwargs)


class RobustNamed(RobustTrainerMixin, Named):
    pass


def test_a_seq2seq_trainer_trains_as_the_robust_trainer_does(tmp_path):
    data = images(32)
    given = dict(method="prl", noise_rate=0.25, drop_schedule="constant")
    mine = Mine(model=logits_module(), args=Seq2SeqTrainingArguments(**settings(tmp_path)), train_dataset=data, **given)
    ours = RobustTrainer(logits_module(), TrainingArguments(**settings(tmp_path)), train_dataset=data, **given)
    for trainer in (mine, ours):
        trainer.train()
    assert curve(mine) == curve(ours) and int((~(mine.ledger.kept == mine.ledger.seen)).sum()) > 0
    assert isinstance(mine, Seq2SeqTrainer) and torch.equal(mine.ledger.kept, ours.ledger.kept)


def test_a_subclasss_own_arguments_are_its_own(tmp_path):
    args = TrainingArguments(**settings(tmp_path))
    trainer = RobustNamed(logits_module(), args, train_dataset=images(8), nickname="x", method="prl", noise_rate=0.1)
    assert trainer.nickname == "x" and trainer.recipe().selection.noise_rate == 0.1
    with pytest.raises(ValueError, match="nicknam"):
        RobustNamed(logits_module(), args, train_dataset=images(8), nicknam="x", method="prl")


def test_the_signature_is_the_trainers(tmp_path):
    theirs, ours = (list(inspect.signature(cls.__init__).parameters) for cls in (Trainer, RobustTrainer))
    assert ours == [*theirs, "recipe", "method", "method_settings"]
    assert RobustTrainer.__mro__[1:3] == (RobustTrainerMixin, Trainer)
    assert set(vars(RobustTrainer)) <= {"__module__", "__doc__", "__init__", "__qualname__", "__firstlineno__"}


def test_a_refused_training_leaves_nothing_in_force(tmp_path):
    args = TrainingArguments(**settings(tmp_path))
    keywords = dict(method="prl", noise_rate=0.25, freeze_backbone=True, spectral_cap=2.0)
    trainer = RobustTrainer(logits_module(), args, train_dataset=images(8), **keywords)
    trainer.train()
    callbacks = len(trainer.callback_handler.callbacks)
    trainer.train_dataset = []
    with pytest.raises(ValueError, match="train_dataset is empty"):
        trainer.train()
    assert trainer.ledger is None and trainer._linear_probe is None
    assert len(trainer.callback_handler.callbacks) == callbacks
    assert all(p.requires_grad for p in trainer.model.parameters())
