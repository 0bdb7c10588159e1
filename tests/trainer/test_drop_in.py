"""With no method named RobustTrainer is Trainer, bit for bit; with one, the Trainer's other features work or are refused."""

import inspect
import random

import numpy as np
import pytest
import torch
from helpers.toy import CLASSES, NORMALISATION, curve, images, logits_module, resnet, robust, settings, vit
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from robust_trainer import METHODS, RobustConfig, RobustTrainer


def lora():
    return get_peft_model(vit(), LoraConfig(target_modules=["q_proj", "v_proj"], r=2, modules_to_save=["classifier"]))


def own_loss(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits * 1.5, labels)


def accuracy(prediction):
    return {"accuracy": float((np.asarray(prediction.predictions).argmax(-1) == prediction.label_ids).mean())}


PLAIN = {
    "bare": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "resnet": {"model": resnet, "gradient_accumulation_steps": 4},
    "dropout": {"model": lambda: vit(dropout=0.1)},
    "checkpointing": {"activation_checkpointing": True},
    "bf16": {"bf16": True},
    "smoothing": {"label_smoothing_factor": 0.1},
    "loss func": {"trainer": {"compute_loss_func": own_loss}},
    "peft": {"model": lora},
    "compile": {"torch_compile": True, "torch_compile_backend": "eager"},
}


@pytest.mark.parametrize("case,args_class", [("bare", RobustConfig), *((case, TrainingArguments) for case in PLAIN)])
def test_no_method_is_the_plain_trainer(tmp_path, case, args_class):
    changes = dict(PLAIN[case])
    model, extra = changes.pop("model", vit), changes.pop("trainer", {})
    runs = []
    for cls, args in ((Trainer, TrainingArguments), (RobustTrainer, args_class)):
        where = tmp_path / cls.__name__
        trainer = cls(
            model=model(), args=args(**settings(where, eval_strategy="epoch", save_strategy="epoch", **changes)),
            train_dataset=images(24), eval_dataset=images(10, seed=1), compute_metrics=accuracy, **extra,
        )  # fmt: skip
        trainer.train()
        predicted = trainer.predict(images(20, seed=1))
        log = [{k: v for k, v in r.items() if "runtime" not in k and "per_second" not in k} for r in trainer.state.log_history]
        state = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
        files = sorted(str(p.relative_to(where)) for p in where.rglob("*") if p.is_file())
        runs.append((log, trainer.model.state_dict(), predicted, state, files))
    (log, weights, predicted, state, files), other = runs[0], runs[1]
    assert log == other[0] and list(log[0]) == list(other[0][0])
    assert all(torch.equal(weights[k], other[1][k]) for k in weights) and weights.keys() == other[1].keys()
    assert np.array_equal(predicted.predictions, other[2].predictions)
    assert state[:2] == other[3][:2] and torch.equal(state[2], other[3][2])
    assert files == other[4]


def test_no_method_resumes_as_the_plain_trainer(tmp_path):
    ends = []
    for cls in (Trainer, RobustTrainer):
        where = tmp_path / cls.__name__
        args = settings(where, save_strategy="steps", save_steps=5)
        cls(vit(), TrainingArguments(**args), train_dataset=images()).train()
        again = cls(vit(), TrainingArguments(**args), train_dataset=images())
        again.train(resume_from_checkpoint=str(where / "checkpoint-5"))
        ends.append((curve(again), again.model.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(v, ends[1][1][k]) for k, v in ends[0][1].items())


def test_signatures_are_the_parents():
    """A tripwire: a Trainer that changes these hooks has to be looked at."""
    for name in ("training_step", "compute_loss", "get_batch_samples", "log", "_save", "_load_from_checkpoint",
                 "_load_optimizer_and_scheduler", "get_train_dataloader"):  # fmt: skip
        ours, theirs = (list(inspect.signature(getattr(c, name)).parameters) for c in (RobustTrainer, Trainer))
        assert ours == theirs, name
    assert list(inspect.signature(Trainer._inner_training_loop).parameters)[:3] == ["self", "batch_size", "args"]


FEATURES = {k: v for k, v in PLAIN.items() if k not in ("bare", "loss func")}


@pytest.mark.parametrize("case,method", [("smoothing", "bootstrap-at"), *((case, "prl-at-memory") for case in FEATURES)])
def test_the_trainers_features_work_with_a_method(tmp_path, case, method):
    changes = dict(FEATURES[case])
    model = changes.pop("model", vit)
    trainer = robust(
        tmp_path, model(), method=method, eval_strategy="epoch", **changes,
        trainer={"eval_dataset": images(20, seed=1), "compute_metrics": accuracy},
    )  # fmt: skip
    trainer.train()
    assert torch.isfinite(torch.tensor(curve(trainer))).all()
    assert int(trainer.ledger.seen.sum()) == 96 and int(trainer.ledger.seen.min()) == 2
    assert any("eval_accuracy" in row for row in trainer.state.log_history)


def test_label_smoothing_is_in_the_loss(tmp_path):
    rows = []
    for smoothing in (0.0, 0.3):
        ours = robust(tmp_path, vit(), method="standard", label_smoothing_factor=smoothing)
        plain = Trainer(vit(), TrainingArguments(**settings(tmp_path, label_smoothing_factor=smoothing)), train_dataset=images())
        ours.train(), plain.train()
        assert torch.allclose(torch.tensor(curve(ours)), torch.tensor(curve(plain)), atol=1e-5)
        rows.append(curve(ours))
    assert rows[0] != rows[1]


def test_own_loss_per_sample_is_honoured(tmp_path):
    def doubled(outputs, labels, num_items_in_batch=None):
        return 2 * torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="none")

    twice = robust(tmp_path, vit(), method="prl", max_steps=1, trainer={"compute_loss_func": doubled})
    once = robust(tmp_path, vit(), method="prl", max_steps=1)
    twice.train(), once.train()
    assert curve(twice)[0] == pytest.approx([2 * v for v in curve(once)[0]], rel=1e-5)


@pytest.mark.parametrize("method", ["prl", "bootstrap"])
def test_own_loss_that_cannot_be_weighed_is_refused(tmp_path, method):
    trainer = robust(tmp_path, vit(), method=method, trainer={"compute_loss_func": own_loss})
    with pytest.raises(ValueError, match="compute_loss_func"):
        trainer.train()


def test_evaluation_is_the_plain_one(tmp_path):
    """Neither filter nor attack in evaluation, also when the model is still in training mode."""
    trainer = robust(tmp_path, vit(), method="prl-at-memory", max_steps=2, trainer={"eval_dataset": images(20, seed=1)})
    trainer.train()
    plain = Trainer(trainer.model, TrainingArguments(**settings(tmp_path)), eval_dataset=images(20, seed=1))
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    trainer.model.train()
    seen = int(trainer.ledger.seen.sum())
    batch = {k: v for k, v in images(8)[:].items() if k in ("pixel_values", "labels")}
    ours = trainer.prediction_step(trainer.model, batch, False)
    assert torch.equal(ours[0], plain.prediction_step(plain.model, batch, False)[0])
    assert int(trainer.ledger.seen.sum()) == seen


def test_index_reaches_neither_model_nor_predictions(tmp_path):
    model, keys = vit(), set()
    inner = model.forward

    def spy(**inputs):
        keys.update(inputs)
        return inner(**inputs)

    model.forward = spy
    model.forward.__signature__ = inspect.signature(inner)
    trainer = robust(tmp_path, model, method="prl-at", max_steps=2)
    trainer.train()
    predicted = trainer.predict(images(20, seed=1))
    assert keys <= {"pixel_values", "labels", "num_items_in_batch"} and predicted.predictions.shape == (20, CLASSES)


def test_inputs_are_left_as_they_came(tmp_path):
    trainer = robust(tmp_path, vit(), method="prl-at", max_steps=1)
    trainer.train()
    batch = {k: v for k, v in images(8)[:].items() if k in ("pixel_values", "labels")}
    kept = {k: v.clone() for k, v in batch.items()}
    trainer.training_step(trainer.model, batch)  # called directly, as the Trainer's own tests do
    assert batch.keys() == kept.keys() and all(torch.equal(batch[k], kept[k]) for k in kept)


def test_bare_module_is_evaluated(tmp_path):
    evaluation = {"eval_dataset": images(20, seed=1), "compute_metrics": accuracy}
    trainer = robust(tmp_path, logits_module(), method="prl", trainer=evaluation)
    trainer.train()
    logs = trainer.evaluate()
    assert {"eval_loss", "eval_accuracy"} <= set(logs)
    with torch.no_grad():
        data = images(20, seed=1)[:]
        expected = torch.nn.functional.cross_entropy(trainer.model(data["pixel_values"]), data["labels"])
    assert logs["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_text_model_with_a_filter(tmp_path):
    import datasets

    tiny = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30)
    config = BertConfig(**tiny, num_labels=3)
    rows = {"input_ids": np.random.default_rng(0).integers(0, 30, (24, 6)), "labels": np.arange(24) % 3}
    data = datasets.Dataset.from_dict(rows)
    args = RobustConfig(**settings(tmp_path, method="prl", noise_rate=0.25, gradient_accumulation_steps=2))
    trainer = RobustTrainer(BertForSequenceClassification(config), args, train_dataset=data)
    trainer.train()
    assert int(trainer.ledger.seen.min()) == 2
    attacked = RobustConfig(**settings(tmp_path, method="prl-at", image_mean=[0.0], image_std=[1.0]))
    with pytest.raises(ValueError, match="scope='batch' of method 'prl-at'.*set scope='sample'"):
        RobustTrainer(BertForSequenceClassification(config), attacked, train_dataset=data).train()


def test_plain_torch_data_sets_and_streams(tmp_path):
    rows = [{"pixel_values": r["pixel_values"], "labels": r["labels"]} for r in images()]
    args = RobustConfig(**settings(tmp_path, method="prl-at-memory", drop_ramp_steps=316, **NORMALISATION))
    trainer = RobustTrainer(vit(), args, train_dataset=rows)
    trainer.train()
    reference = robust(tmp_path, vit(), method="prl-at-memory")
    reference.train()
    assert curve(trainer) == curve(reference)
    stream = images().to_iterable_dataset()
    with pytest.raises(ValueError, match="streaming"):
        memory = settings(tmp_path, method="prl-at-memory", max_steps=4, **NORMALISATION)
        RobustTrainer(vit(), RobustConfig(**memory), train_dataset=stream).train()
    streaming = settings(tmp_path, method="prl", max_steps=4, gradient_accumulation_steps=2)
    filtered = RobustTrainer(vit(), RobustConfig(**streaming), train_dataset=stream)
    filtered.train()
    assert filtered.ledger is None and "kept_fraction" in filtered.state.log_history[0]


def test_train_twice_and_model_init(tmp_path):
    args = RobustConfig(**settings(tmp_path, method="prl-at-memory", **NORMALISATION))
    trainer = RobustTrainer(model_init=lambda: vit(), args=args, train_dataset=images())
    trainer.train()
    first = curve(trainer)
    trainer.train()
    assert curve(trainer) == first and len(METHODS) >= 9
