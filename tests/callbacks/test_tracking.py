"""Double overfitting: tracked without a trace in the training, the best kept by held-out data, best and last told apart."""

import json
import random

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.tables import every_row
from helpers.toy import CHANNELS, NORMALISATION, images, logits_module, resnet, robust, settings, vit
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTForImageClassification

from robust_trainer.callbacks import robustness as tracking
from robust_trainer.callbacks.best_weights import RECORD, load_best
from robust_trainer.callbacks.robustness import RobustnessCallback, hold_out, plot_curves, summarise, table, tracked
from robust_trainer.callbacks.robustness_plot import best, plot_history
from robust_trainer.evaluation.robustness import Robustness, evaluate_robustness
from robust_trainer.models.modes import preserve_state, preserve_weights
from robust_trainer.models.peers import make_peers

EPS = 0.1


def columns(data):
    return data.select_columns(["pixel_values", "labels"])


TEST = columns(images(32, seed=5, noisy=0.0))
TRAIN, HELD = map(columns, hold_out(images(64, seed=1), 16))


def tracker(data=TEST, held_out=HELD, **kwargs):
    quick = dict(attacks_during="pgd-2", attacks_final=None, eps=EPS)
    return RobustnessCallback(data, held_out=held_out, **{**quick, **kwargs})


def train(tmp_path, callback=None, model=None, **kwargs):
    callbacks = [callback] if callback is not None else []
    model = resnet() if model is None else model
    trainer = robust(tmp_path, model, TRAIN, trainer=dict(callbacks=callbacks), **{"method": "prl", **kwargs})
    trainer.train(resume_from_checkpoint=kwargs.get("resume_from_checkpoint"))
    return trainer


def row(step, natural, robust_accuracy, held=None, epoch=None):
    told = {"natural_accuracy": natural, "robust_accuracy": robust_accuracy, "epoch": float(epoch or step), "step": step}
    return told if held is None else {**told, "held_out_natural_accuracy": held, "held_out_robust_accuracy": held}


def scripted(monkeypatch, test_robust, held_robust=None):
    """Stands in for the attacks: the scripted accuracies, one after the other, for the test set and the held-out data."""
    left = {id(TEST): iter(test_robust), id(HELD): iter(held_robust or [])}

    def evaluate(model, dataset, attacks, **kwargs):
        value = next(left[id(dataset)])
        return Robustness(value, {"pgd-2": value}, value, len(dataset), EPS, "linf", {}, {})

    monkeypatch.setattr(tracking, "evaluate_robustness", evaluate)


# ---- the training is the same, bit for bit ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "prl"])
def test_training_is_bit_identical_with_the_callback(tmp_path, method):
    kwargs = dict(method=method, gradient_accumulation_steps=2, logging_steps=2, num_train_epochs=2)
    without = train(tmp_path / "without", model=vit(dropout=0.3), **kwargs)
    callback = tracker(every_steps=1, attacks_final=("pgd-2", "fgsm"), oracle_final=True)
    trainer = robust(tmp_path / "with", vit(dropout=0.3), TRAIN, **kwargs)
    callback.log = trainer.log
    trainer.add_callback(callback)
    trainer.train()
    assert len(callback.history) == 6 and (tmp_path / "with" / "best").is_dir()
    before, after = without.model.state_dict(), trainer.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    ours = {"natural_accuracy", "robust_accuracy"}
    rows = [[{k: v for k, v in r.items() if "_runtime" not in k and "per_second" not in k} for r in t.state.log_history
             if not ours & set(r)] for t in (without, trainer)]  # fmt: skip
    assert rows[0] == rows[1] and len(rows[0]) == 4


def test_a_rude_evaluation_leaves_no_trace():
    model = resnet().train()
    model.classifier.eval()
    model(pixel_values=torch.rand(4, CHANNELS, 8, 8)).logits.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]

    def streams():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = streams()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with preserve_state(model):
        assert not any(m.training for m in model.modules())
        assert all(p.grad is None for p in model.parameters())
        model(pixel_values=torch.rand(4, CHANNELS, 8, 8)).logits.sum().backward()
        streams()
    assert streams() == expected
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters()))


# ---- when -----------------------------------------------------------------------------------------------------------------


@every_row(
    ("given", "steps"),
    [
        (dict(), [6, 12]),  # 48 samples in batches of 8: 6 steps an epoch
        (dict(every_epochs=0.25), [2, 3, 5, 6, 8, 9, 11, 12]),  # the first step at or after the quarter
        (dict(every_epochs=1.5), [9, 12]),  # and the last step
        (dict(every_epochs=0.01), list(range(1, 13))),
        (dict(every_steps=5), [5, 10, 12]),
    ],
)  # fmt: skip
def test_intervals(tmp_path, monkeypatch, given, steps):
    scripted(monkeypatch, [0.5] * 20)
    callback = tracker(held_out=None, keep_best=False, **given)
    trainer = train(tmp_path, callback)
    assert [r["step"] for r in callback.history] == steps
    assert [r["epoch"] for r in callback.history] == [pytest.approx(s / 6) for s in steps]
    assert tracked(trainer.state.log_history) == callback.history
    assert "held_out_robust_accuracy" not in callback.history[0]


def test_rounding_skips_no_interval():
    assert [tracking._intervals(step / 10, 0.1) for step in range(1, 11)] == list(range(1, 11))
    assert tracking._intervals(0.299, 0.1) == 2


def test_the_last_row_is_in_the_last_checkpoint(tmp_path, monkeypatch):
    scripted(monkeypatch, [0.25])
    callback = tracker(held_out=None, keep_best=False, every_epochs=7)
    train(tmp_path, callback, save_strategy="steps", save_steps=12)
    state = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    assert tracked(state["log_history"]) == callback.history == [row(12, 0.25, 0.25, epoch=2)]


def test_stopped_early_the_last_weights_are_measured(tmp_path, monkeypatch):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    scripted(monkeypatch, [0.5] * 3)
    callback = tracker(held_out=None, keep_best=False, every_epochs=0.5)
    robust(tmp_path, resnet(), TRAIN, trainer=dict(callbacks=[callback, Stop()])).train()
    assert [r["step"] for r in callback.history] == [3, 4]


# ---- figures --------------------------------------------------------------------------------------------------------------


def test_tracked_figures_are_those_of_evaluate_robustness(tmp_path):
    callback = tracker(max_samples=20, attacks_final=("fgsm", "pgd-2"), keep_best=False, every_epochs=2)
    trainer = train(tmp_path, callback, method="pgd-at")
    during = evaluate_robustness(trainer.model, TEST, "pgd-2", EPS, max_samples=20, progress=False, **NORMALISATION)
    held = evaluate_robustness(trainer.model, HELD, "pgd-2", EPS, max_samples=20, progress=False, **NORMALISATION)
    last = callback.history[-1]
    assert (last["natural_accuracy"], last["robust_accuracy"]) == (during.clean_accuracy, during.worst_case)
    assert (last["held_out_natural_accuracy"], last["held_out_robust_accuracy"]) == (held.clean_accuracy, held.worst_case)
    final = evaluate_robustness(trainer.model, TEST, ("fgsm", "pgd-2"), EPS, progress=False, **NORMALISATION)
    assert callback.summary()["last"]["final"] == {"natural": final.clean_accuracy, **final.accuracies}
    assert callback.summary()["best_on_test"]["final"] == callback.summary()["last"]["final"]  # one row: best is last
    assert callback.summary()["gap"]["best_on_test"]["final"] == {"natural": 0.0, "fgsm": 0.0, "pgd-2": 0.0}


def test_summary_of_a_hand_made_history():
    rows = [row(1, 0.5, 0.20, 0.10), row(2, 0.8, 0.40, 0.30), row(3, 0.9, 0.40, 0.35), row(4, 0.7, 0.25, 0.35)]
    found = summarise(rows)
    assert (found["best_on_test"]["step"], found["best_by_held_out"]["step"], found["last"]["step"]) == (2, 3, 4)  # ties: earlier
    assert found["highest_natural"] == {"epoch": 3.0, "step": 3, "natural": 0.9}
    gap = found["gap"]
    assert gap["best_on_test"] == {"natural": pytest.approx(0.1), "robust": pytest.approx(0.15)}
    assert gap["best_by_held_out"] == {"natural": pytest.approx(0.2), "robust": pytest.approx(0.15)}
    assert gap["highest_natural"] == pytest.approx(0.2)
    final = {"best_by_held_out": {"natural": 0.9, "aa": 0.3}, "last": {"natural": 0.7, "aa": 0.1}}
    found = summarise(rows, rows[1], final)
    assert found["best_by_held_out"]["step"] == 2 and "final" not in found["best_on_test"]
    assert found["gap"]["best_by_held_out"]["final"] == {"natural": pytest.approx(0.2), "aa": pytest.approx(0.2)}
    lines = table(found, ("pgd-10",), 100).splitlines()
    assert lines[1].split() == ["epoch", "natural", "pgd-10", "natural", "aa"]
    assert lines[2].split() == ["best", "on", "test", "(oracle)", "2", "80.00", "40.00", "-", "-"]
    assert lines[3].split() == ["best", "by", "held-out", "2", "80.00", "40.00", "90.00", "30.00"]
    assert lines[4].split() == ["last", "4", "70.00", "25.00", "70.00", "10.00"]
    assert lines[6].split()[-4:] == ["10.00", "15.00", "20.00", "20.00"]
    assert lines[7].endswith("highest at epoch 3: 90.00 %, 20.00 points above the last.")
    assert len({len(line) for line in lines[1:5]}) == 1
    assert summarise([row(1, 0.5, 0.2)])["best_by_held_out"] is None
    assert best([], "robust_accuracy") is None


# ---- the best checkpoint --------------------------------------------------------------------------------------------------


def test_best_is_kept_by_held_out_data_and_ties_keep_the_earlier(tmp_path, monkeypatch):
    scripted(monkeypatch, [0.1, 0.2, 0.9, 0.3, 0.3, 0.7, 0.8], [0.2, 0.6, 0.5, 0.6])
    weights = []

    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step % 3 == 0:
                weights.append({k: v.clone() for k, v in model.state_dict().items()})

    callback = tracker(every_steps=3, attacks_final=("pgd-2",), oracle_final=True)
    trainer = robust(tmp_path, resnet(), TRAIN, trainer=dict(callbacks=[Note(), callback]))
    trainer.train()
    assert callback.kept == callback.history[1] and callback.kept["step"] == 6
    saved = safetensors.torch.load_file(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(saved[k], weights[1][k]) for k in saved)
    assert json.loads((tmp_path / "best" / RECORD).read_text()) == callback.kept
    found = callback.summary()
    assert found["best_on_test"]["step"] == 9 and found["best_by_held_out"]["step"] == 6
    # the final evaluations in their order: last, best by held-out, oracle
    assert [found[k]["final"]["pgd-2"] for k in ("last", "best_by_held_out", "best_on_test")] == [0.3, 0.7, 0.8]
    assert all(torch.equal(v, weights[3][k]) for k, v in trainer.model.state_dict().items())  # the last weights are back


@pytest.mark.parametrize("make", [vit, logits_module])
def test_best_reloads_to_the_accuracy_recorded(tmp_path, make):
    callback = tracker(every_steps=2, attacks_final=("pgd-2",), max_samples=None)
    trainer = train(tmp_path, callback, make(), learning_rate=0.1)
    best_by_held_out = callback.summary()["best_by_held_out"]
    assert best_by_held_out["step"] < 12, "the toy run must not be best at its end, or this test shows nothing"
    if make is vit:
        loaded = ViTForImageClassification.from_pretrained(tmp_path / "best")
    else:
        loaded = make()
        load_best(loaded, tmp_path / "best")
    found = evaluate_robustness(loaded, HELD, "pgd-2", EPS, progress=False, **NORMALISATION)
    assert found.clean_accuracy == callback.kept["held_out_natural_accuracy"]
    assert found.worst_case == callback.kept["held_out_robust_accuracy"]
    found = evaluate_robustness(loaded, TEST, "pgd-2", EPS, progress=False, **NORMALISATION)
    assert best_by_held_out["final"] == {"natural": found.clean_accuracy, "pgd-2": found.worst_case}
    assert any(not torch.equal(a, b) for a, b in zip(loaded.parameters(), trainer.model.parameters()))


def test_the_best_of_several_networks_opens_anywhere(tmp_path):
    """The network that errs less on the held-out data is the model, and `load_best` fills both."""
    callback = tracker(every_steps=4)
    trainer = train(tmp_path, callback, vit(), method="co-prl", max_steps=4)
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "best")
    errors = []
    for peer in trainer.model.peers:
        found = evaluate_robustness(peer, HELD, "pgd-2", EPS, progress=False, max_samples=callback.max_samples, **NORMALISATION)
        errors.append(1 - found.worst_case)
    better = trainer.model.peers[errors.index(min(errors))].state_dict()
    assert all(torch.equal(v, better[k]) for k, v in loaded.state_dict().items())
    again = make_peers(vit(), 2, seed=5)
    load_best(again, tmp_path / "best")
    assert all(torch.equal(v, trainer.model.state_dict()[k]) for k, v in again.state_dict().items())


def test_borrowed_weights_come_back_after_an_error():
    model = resnet()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError), preserve_weights(model):
        nn.init.zeros_(model.classifier[1].weight)
        raise RuntimeError
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# ---- resume, and the plain Trainer ----------------------------------------------------------------------------------------


def test_resume_keeps_history_and_best(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "plot_history", lambda *args, **kwargs: None)
    test, held = [0.1, 0.4, 0.3, 0.2], [0.2, 0.6, 0.5, 0.55]
    saving = dict(save_strategy="steps", save_steps=6)
    scripted(monkeypatch, test, held)
    whole = tracker(every_steps=3)
    train(tmp_path, whole, **saving)
    assert whole.kept["step"] == 6
    scripted(monkeypatch, test[2:], held[2:])
    again = tracker(every_steps=3)
    train(tmp_path, again, resume_from_checkpoint=str(tmp_path / "checkpoint-6"), **saving)
    assert again.history == whole.history and again.summary() == whole.summary()
    # a best of the interrupted run's future counts; one of another run does not
    (tmp_path / "best" / RECORD).write_text(json.dumps(row(9, 0.9, 0.9, 0.7)))
    scripted(monkeypatch, test[2:], held[2:])
    again = tracker(every_steps=3)
    train(tmp_path, again, resume_from_checkpoint=str(tmp_path / "checkpoint-6"), **saving)
    assert again.kept["held_out_robust_accuracy"] == 0.7
    (tmp_path / "best" / RECORD).write_text(json.dumps(row(3, 0.9, 0.9, 0.7)))
    scripted(monkeypatch, test[2:], held[2:])
    again = tracker(every_steps=3)
    train(tmp_path, again, resume_from_checkpoint=str(tmp_path / "checkpoint-6"), **saving)
    assert again.kept["step"] == 12  # 0.55 after 0.5
    # a fresh training starts anew
    scripted(monkeypatch, test, [0.1] * 4)
    fresh = tracker(every_steps=3)
    train(tmp_path, fresh, **saving)
    assert len(fresh.history) == 4 and fresh.kept["held_out_robust_accuracy"] == 0.1


def test_plain_trainer(tmp_path):
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return len(HELD)

        def __getitem__(self, i):
            return {"pixel_values": HELD[i]["pixel_values"], "labels": HELD[i]["labels"]}

    callback = tracker(held_out=Pairs(), output_dir=tmp_path / "figures", attacks_final=("pgd-2",), **NORMALISATION)
    args = TrainingArguments(**settings(tmp_path / "run"))
    Trainer(model=vit(), args=args, train_dataset=TRAIN, callbacks=[callback]).train()
    assert [r["step"] for r in callback.history] == [6, 12]
    assert (tmp_path / "figures" / "best" / "config.json").is_file() and not (tmp_path / "run" / "best").exists()
    told = json.loads((tmp_path / "figures" / "robustness.json").read_text())
    assert told["summary"] == callback.summary() and told["history"] == callback.history
    assert (told["samples_final"], told["held_out_samples"], told["eps"]) == (32, 16, EPS)
    assert "best by held-out" in callback.table()


# ---- splitting off --------------------------------------------------------------------------------------------------------


def test_hold_out_takes_every_class_by_its_share():
    data = images(64, seed=1)
    counts = np.bincount(data.with_format(None)["labels"][:], minlength=4)
    rest, held = hold_out(data, 16, seed=3)
    taken = np.bincount(held.with_format(None)["labels"][:], minlength=4)
    assert taken.sum() == 16 and np.all(np.abs(taken - counts / 4) < 1)
    pixels = np.concatenate([np.asarray(part.with_format("numpy")["pixel_values"][:]) for part in (rest, held)])
    everything = np.asarray(data.with_format("numpy")["pixel_values"][:])
    assert sorted(map(bytes, pixels)) == sorted(map(bytes, everything))
    assert hold_out(data, 0.25, seed=3)[1][:]["labels"].tolist() == held[:]["labels"].tolist()
    other = hold_out(data, 16, seed=4)[1]
    assert not torch.equal(torch.as_tensor(other[:]["pixel_values"]), torch.as_tensor(held[:]["pixel_values"]))
    for size in (0, 64, 1.0, -1, True, 0.001):
        with pytest.raises(ValueError, match=f"size={size}.*one side empty"):
            hold_out(data, size)


# ---- pictures -------------------------------------------------------------------------------------------------------------


def test_pictures_are_drawn(tmp_path):
    from PIL import Image

    rows = [row(i, 0.5 + 0.05 * i - 0.004 * i * i, 0.3 + 0.04 * i - 0.004 * i * i, 0.2 + 0.01 * i) for i in range(1, 11)]
    one = Image.open(plot_history(rows, tmp_path / "new" / "one.png", kept=rows[6]))
    flat = Image.open(plot_history(rows[:1], tmp_path / "flat.png"))
    lines = {name: [(r["epoch"], r["natural_accuracy"] - d, r["robust_accuracy"] - d) for r in rows] for name, d in
             (("nrat", 0.0), ("trades", 0.1))}  # fmt: skip
    two = Image.open(plot_curves({**lines, "empty": []}, tmp_path / "two.png"))
    for picture in (one, flat, two):
        assert min(picture.size) > 400 and len(picture.convert("RGB").getcolors(2**20)) > 50
    with pytest.raises(ValueError, match="histories has no points"):
        plot_curves({"nrat": []}, tmp_path / "none.png")
    with pytest.raises(ValueError, match="history is empty"):
        RobustnessCallback(TEST, keep_best=False).table()


# ---- mistakes -------------------------------------------------------------------------------------------------------------


@every_row(
    ("given", "told"),
    [
        (dict(held_out=None), "held_out=None but keep_best=True.*hold_out.*train_test_split"),
        (dict(held_out=TEST), "held_out is the test set"),
        (dict(every_epochs=0), "every_epochs=0 must be above 0"),
        (dict(every_epochs=float("nan")), "every_epochs=nan must be above 0"),
        (dict(every_steps=0), "every_steps=0 must be an integer of at least 1"),
        (dict(max_samples=0), "max_samples=0 must be"),
        (dict(batch_size=None), "batch_size=None must be"),
        (dict(attacks_during="pdg-10"), "'pdg-10' is unknown"),
        (dict(attacks_during=()), "attacks_during is empty"),
        (dict(attacks_final=["pgd-20", "cw"]), "'cw' lacks its number of steps"),
        (dict(attacks_final=[]), "attacks_final is empty.*None"),
        (dict(eps="8"), "0-255"),
        (dict(norm="l3"), "norm='l3' is unknown"),
        (dict(held_out=HELD.select([])), "held_out is empty"),
        (dict(data=TEST.select([])), "dataset is empty"),
        (dict(data={"test": TEST}), "dataset is a dict of \\['test'\\]"),
        (dict(data=iter([1])), "without length"),
    ],
)  # fmt: skip
def test_mistakes_show_at_once(given, told):
    with pytest.raises(ValueError, match=told) as caught:
        tracker(**given)
    assert "\n" not in str(caught.value)


def test_mistakes_that_only_the_trainer_knows_show_before_the_first_step(tmp_path):
    saving = dict(load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")
    args = TrainingArguments(**settings(tmp_path, **saving))
    trainer = Trainer(model=vit(), args=args, train_dataset=TRAIN, eval_dataset=TEST, callbacks=[tracker(**NORMALISATION)])
    with pytest.raises(ValueError, match="load_best_model_at_end=True.*'last'"):
        trainer.train()
    trainer = Trainer(model=vit(), args=TrainingArguments(**settings(tmp_path)), train_dataset=TRAIN, callbacks=[tracker()])
    with pytest.raises(ValueError, match="image_mean is not known.*processing_class"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_test_set_with_wrong_labels_is_told(caplog):
    tracker(data=images(40, noisy=0.25))
    assert "10 rows marked is_corrupted" in caplog.text
