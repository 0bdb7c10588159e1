"""ERAT's step, streams and scan: slow references, laws, ablations that change what they name, bad input."""

import pytest
import torch
from helpers import erat_reference as slow
from helpers.tables import every_row
from helpers.toy import NORMALISATION, config, images, logits_module, resnet, robust, settings
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.data.streams import StreamSampler
from robust_trainer.losses.semi_supervised import SemiSupervised
from robust_trainer.step.records import MicroBatch
from robust_trainer.types import ForwardOutput, Progress

PLAIN = dict(strong_augmentation="none", weak_augmentation="none")
SHORT = dict(method="erat", warmup_epochs=1.0, lambda_ramp_epochs=1.0, steps=2)


def pgd(model, x, y, clean, labelled, steps, size, eps):
    """Eq. 6 and 10 for one sample in the l_inf ball, in pixels: x (3, 8, 8); the label is the prediction where it is dropped."""
    target = y if labelled else int(clean.argmax())
    pixels, delta = x * 0.5 + 0.5, torch.zeros_like(x)
    for _ in range(steps):
        leaf = (((pixels + delta) - 0.5) / 0.5).requires_grad_(True)
        logits = model(leaf.unsqueeze(0))[0]
        raised = -logits.log_softmax(-1)[target] + (logits.softmax(-1) - clean.softmax(-1)).square().sum()
        (grad,) = torch.autograd.grad(raised, leaf)
        delta = (pixels + (delta + size * grad.sign()).clamp(-eps, eps)).clamp(0, 1) - pixels
    return ((pixels + delta) - 0.5) / 0.5


def one_step(tmp_path, epoch, keep, **changes):
    """The loss that a step logs at this epoch with this split, and what the slow loops say of the same step."""
    data = images(12)
    given = {**SHORT, **PLAIN, "norm": "linf", "lambda_u": 7.0, "temperature": 0.5, "max_steps": 1}
    trainer = robust(tmp_path, data=data, **{**given, "per_device_train_batch_size": 12, **changes})
    trainer.train()  # makes the state of a run; its one step is not the one looked at
    model = logits_module()
    trainer.model.load_state_dict(model.state_dict())
    trainer.ledger.columns["keep"] = keep
    trainer._robust_step.run.states["keep"] = {"epoch": torch.tensor(int(epoch))}
    trainer.state.epoch, trainer.state.num_train_epochs = epoch, 9
    inputs = {"pixel_values": data["pixel_values"][:], "labels": data["labels"][:], "_robust_index": torch.arange(12)}
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, inputs)
    labelled, apart = [], []
    s = trainer.recipe().settings
    for i in range(12):
        x, y = inputs["pixel_values"][i], int(inputs["labels"][i])
        clean = model(x.unsqueeze(0))[0].detach()
        moved = pgd(model, x, y, clean, bool(keep[i]), s["steps"], s["step_size"], s["eps"])
        z, z_adv = clean.tolist(), model(moved.unsqueeze(0))[0].tolist()
        views = [z, z_adv, z_adv] if epoch >= 1 else [z, z_adv]
        if keep[i] or epoch < 1:
            labelled.append(sum(slow.cross_entropy(v, y) for v in views))
        else:
            q = slow.softmax(z, 0.5)
            apart.append(sum(slow.distance(v, q, s["consistency"] == "mean") for v in views))
    weight = 7.0 * min(max(epoch - 1.0, 0.0), 1.0)
    expected = sum(labelled) / len(labelled) + (weight * sum(apart) / len(apart) if apart else 0.0)
    return float(loss), expected, weight * sum(apart)


@pytest.mark.parametrize("epoch,consistency", [(0.5, "sum"), (1.0, "mean"), (1.25, "sum"), (4.0, "mean")])
def test_the_steps_loss_is_the_papers(tmp_path, epoch, consistency):
    keep = torch.arange(12) % 3 != 0 if epoch >= 1 else torch.ones(12, dtype=torch.bool)
    found, expected, unlabelled = one_step(tmp_path, epoch, keep, consistency=consistency)
    assert found == pytest.approx(expected, rel=2e-5)
    assert (unlabelled > 0.001) == (epoch > 1)


def test_terms_average_over_several_perturbations():
    semi = SemiSupervised(lambda x: x, lambda x: x)
    z = torch.randn(5, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    y, q = torch.tensor([[0, 1, 2, 0]]), torch.rand(1, 4, 3)
    views = [ForwardOutput(v, y[0]) for v in z]
    labelled, apart = semi.terms(views, 2, y, q, lambda view, targets: view.logits.square().sum(-1))
    squares = z.square().sum(-1)
    assert torch.allclose(labelled, squares[0] + squares[1:].sum(0) / 2)
    distances = (z.softmax(-1) - q).square().sum(-1)
    assert torch.allclose(apart, distances[0] + distances[1:].sum(0) / 2)


@every_row("epoch,told", [(0.0, 0), (10.0, 0), (14.0, 6.25), (26.0, 25), (90.0, 25)])
def test_lambda_rises_over_the_epochs_after_the_warm_up(epoch, told):
    semi = METHODS["erat"]().semi_supervised
    assert semi.weight(Progress(epoch, 100.0)) == pytest.approx(told)
    assert semi.formal(Progress(epoch, 100.0)) == (epoch >= 10)


# ---- streams


@every_row("share", [0.5, 0.2])
def test_streams_are_mixed_evenly_and_come_round(share):
    mask = torch.arange(100) < 30
    order = torch.tensor(list(StreamSampler(100, lambda: (3, mask), share, seed=1)))
    marks = mask[order]
    assert len(order) == 100 and int(marks.sum()) == 100 * share
    for start in range(0, 100, 10):
        assert int(marks[start : start + 10].sum()) == 10 * share
    for part, rows in ((order[marks], 30), (order[~marks], 70)):
        counts = part.bincount(minlength=100)[: 30 if rows == 30 else 100]
        counts = counts if rows == 30 else counts[30:]
        assert int(counts.max() - counts.min()) <= 1


def test_without_a_share_everybody_comes_once_and_the_order_is_the_epochs():
    mask = torch.arange(50) % 5 == 0
    orders = [list(StreamSampler(50, lambda e=e: (e, mask), 0.0, seed=1)) for e in (0, 0, 1)]
    assert sorted(orders[0]) == list(range(50)) and orders[0] == orders[1] != orders[2]
    assert sorted(StreamSampler(50, lambda: (0, None), 0.5, seed=1)) == list(range(50))
    for everybody in (torch.ones(50, dtype=torch.bool), torch.zeros(50, dtype=torch.bool)):
        assert sorted(StreamSampler(50, lambda m=everybody: (0, m), 0.5, seed=1)) == list(range(50))


class Watch(TrainerCallback):
    """The split at each epoch's first step, and what the model would score at its start."""

    def __init__(self):
        self.splits, self.seen, self.trainer = [], [], None

    def on_step_end(self, args, state, control, **kwargs):
        keep = self.trainer._robust_step.labelled()
        self.splits.append(None if keep is None else keep.clone())


def test_the_scan_scores_everybody_at_the_epochs_start_and_holds_for_it(tmp_path):
    data, watch = images(44), Watch()
    trainer = robust(tmp_path, resnet(), data, **SHORT, num_train_epochs=3, dataloader_drop_last=True)
    watch.trainer = trainer
    expected = []

    class Before(TrainerCallback):
        def on_epoch_begin(self, args, state, control, model, **kwargs):
            model.eval()
            with torch.no_grad():
                logits = model(pixel_values=data["pixel_values"][:]).logits
            model.train()
            expected.append([slow.brier(z, int(y)) for z, y in zip(logits.tolist(), data["labels"])])

    trainer.add_callback(Before())
    trainer.add_callback(watch)
    trainer.train()
    steps = 44 // 8
    assert watch.splits[:steps] == [None] * steps
    for epoch in (1, 2):
        own = watch.splits[epoch * steps : (epoch + 1) * steps]
        assert all(torch.equal(own[0], s) for s in own)
        before = [True] * 44 if epoch == 1 else watch.splits[steps].tolist()
        mask, _ = slow.split(expected[epoch], data["labels"][:].tolist(), before, 4, 0.1, "none")
        assert own[0].tolist() == mask
    assert trainer.ledger.last_score.tolist() == pytest.approx(expected[2], abs=1e-5)
    assert trainer.ledger.seen.unique().tolist() == [2, 3]  # dropped from a last batch of the warm-up, scanned all the same


def test_a_scan_leaves_the_random_state_alone(tmp_path):
    """Training on what a scan trusts, where it trusts everybody, is training without a scan."""
    curves = []
    for scanning in (True, False):
        trainer = robust(tmp_path, method="prl", noise_rate=0.0, memory="scan" if scanning else "none", num_train_epochs=3)
        trainer.train()
        curves.append([(r["loss"], r["grad_norm"]) for r in trainer.state.log_history if "loss" in r])
    assert curves[0] == curves[1]


def test_prl_with_a_scan_keeps_the_smallest_of_all(tmp_path):
    constant = dict(noise_rate=0.25, drop_schedule="constant", memory="scan")
    trainer = robust(tmp_path, data=images(60), method="prl", num_train_epochs=3, **constant)
    trainer.train()
    keep, scores = trainer.ledger.keep, trainer.ledger.last_score
    assert int(keep.sum()) == 45 and scores[keep].max() <= scores[~keep].min()


@pytest.mark.parametrize(
    "method,changes",
    [
        ("co-prl", dict(noise_rate=0.25, memory="scan", rebalance=True)),
        ("rebalanced+trades", dict(warmup_epochs=1.0, steps=1, norm="hybrid")),
        ("prl+pgd-at", dict(noise_rate=0.25, memory="scan", rebalance=True, steps=2, norm="hybrid")),
        ("rebalanced", dict(warmup_epochs=0.0, rebalance=False)),
    ],
)
def test_its_parts_work_inside_other_methods(tmp_path, method, changes):
    trainer = robust(tmp_path, data=images(64), method=method, num_train_epochs=3, **changes)
    trainer.train()
    kept = [r["kept_fraction"] for r in trainer.state.log_history if "kept_fraction" in r]
    assert 0 < sum(kept) / len(kept) < 1 and 0 < int(trainer.ledger.keep.sum()) < 64
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_a_class_that_selection_empties_is_told(tmp_path, caplog):
    """A model that predicts class 0 for all, without rebalancing: only class 0 is below the mean."""
    model = logits_module()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
    trainer = robust(tmp_path, model, **{**SHORT, "warmup_epochs": 0.0}, rebalance=False, num_train_epochs=1, learning_rate=0.0)
    with caplog.at_level("WARNING"):
        from transformers.utils import logging

        logging.enable_propagation()
        try:
            trainer.train()
        finally:
            logging.disable_propagation()
    assert "leaves nobody of class 1, 2, 3" in caplog.text
    assert trainer.state.global_step == 6


# ---- ablations


def forwards(tmp_path, **changes):
    """Sizes of the batches that the model sees in each mode during the last step of a formal epoch, and the trainer."""
    calls = []

    class Counting(type(logits_module())):
        def forward(self, pixel_values):
            calls.append((self.training, pixel_values.requires_grad, len(pixel_values)))
            return super().forward(pixel_values)

    trainer = robust(tmp_path, Counting(), **{**SHORT, "warmup_epochs": 0.0, "num_train_epochs": 1, **changes})
    trainer.train()
    return calls, trainer


def test_a_formal_step_is_two_attack_steps_two_predictions_and_three_views(tmp_path):
    calls, trainer = forwards(tmp_path)
    scan, step = calls[:6], calls[6:12]
    assert all(not training and not grad for training, grad, _ in scan) and sum(n for *_, n in scan) == 48
    crafting = [(False, False, 8), (False, True, 8), (False, True, 8), (False, False, 8)]  # clean, two steps, weak
    assert step == [*crafting, (True, False, 8), (True, False, 16)]
    assert not torch.equal(trainer._robust_step.labelled(), torch.ones(48, dtype=torch.bool))


@pytest.mark.parametrize(
    "changes,attack,views",
    [
        (dict(norm="both"), [(False, False, 8), *[(False, True, 8)] * 4], [8, 32]),
        (dict(adversarial_training=False), [], [8]),
        (dict(norm="linf"), [(False, False, 8), (False, True, 8), (False, True, 8)], [8, 16]),
    ],
)
def test_ablations_of_the_attack_change_the_forwards(tmp_path, changes, attack, views):
    calls, _ = forwards(tmp_path, **changes)
    step = calls[6 : 6 + len(attack) + 1 + len(views)]
    assert sorted(step[: len(attack) + 1]) == sorted([*attack, (False, False, 8)])
    assert [n for training, _, n in step if training] == views


def test_without_selection_nobody_is_dropped_or_scanned(tmp_path):
    calls, trainer = forwards(tmp_path, sample_selection=False)
    assert trainer._robust_step.labelled() is None and trainer.recipe().selection is None
    assert all(r["kept_fraction"] == 1.0 for r in trainer.state.log_history if "loss" in r)
    assert calls[0][1] is False and [n for training, _, n in calls[:5] if training] == [8, 16]  # three views, no pseudo-labels


def test_ablations_of_the_recipe():
    """Each switch of table VI changes what it names and nothing else."""
    full = METHODS["erat"]()
    assert full.perturbation.norm == "hybrid" and full.perturbation.eps_l2 == 0.5 and full.perturbation.step_size_l2 == 0.1
    assert full.perturbation.eps == 8 / 255 and full.perturbation.step_size == pytest.approx(8 / 255 / 5)
    alone = METHODS["erat"](norm="l2").perturbation
    assert (alone.norm, alone.eps, alone.step_size) == ("l2", 0.5, 0.1)
    assert METHODS["erat"](norm="linf").perturbation.eps == 8 / 255
    assert METHODS["erat"](rebalance=False).selection.rebalance is False
    ce = METHODS["erat"](score="loss")
    assert type(ce.score).__name__ == "Loss" and ce.selection.scale == "minmax"
    weak = METHODS["erat"](strong_augmentation="erase-flip").semi_supervised
    assert weak.strong == weak.weak == full.semi_supervised.weak != full.semi_supervised.strong
    assert METHODS["erat"](adversarial_training=False).perturbation is None
    assert METHODS["erat"](sample_selection=False).selection is None
    for changes in (dict(norm="linf"), dict(rebalance=False), dict(strong_augmentation="flip"), dict(sample_selection=False)):
        other = METHODS["erat"](**changes)
        same = [f for f in ("perturbation", "selection", "semi_supervised", "score") if getattr(other, f) == getattr(full, f)]
        assert len(same) == 3, (changes, same)


def test_the_two_radii_are_what_the_samples_are_moved_by(tmp_path):
    trainer = robust(tmp_path, data=images(64), **{**SHORT, **PLAIN, "per_device_train_batch_size": 64, "max_steps": 1, "steps": 7})
    trainer.train()
    data = images(64)
    rows = MicroBatch({"pixel_values": data["pixel_values"][:]}, data["labels"][:], torch.arange(64))
    inner = trainer._robust_step.inner  # the last step's batch is gone; perturb one more
    (result,) = inner.perturb(lambda inputs: trainer.model(**inputs), [rows], Progress(0.0, 2.0, 5))
    delta = (result.adversarial - rows.inputs["pixel_values"]) * 0.5
    high, size = delta.abs().flatten(1).amax(1), delta.flatten(1).norm(dim=1)
    second = high > 8 / 255 + 1e-6  # an l_2 step concentrates on few pixels of so small an image
    assert 10 < int(second.sum()) < 54
    assert size[second].max() <= 0.5 + 1e-5 and high[~second].max() <= max(8 / 255 + 1e-6, 0.5)
    assert bool((high[~second] >= 8 / 255 - 1e-6).any())


# ---- bad input


@every_row(
    "changes,told",
    [
        (dict(rebalance_eta=1.5), "rebalance_eta=1.5 must be in .0, 1."),
        (dict(rebalance_eta=0.5, rebalance=False), "no effect without rebalancing"),
        (dict(strong_augmentation="cutout"), "strong_augmentation='cutout' is unknown: choose one of"),
        (dict(lambda_u=-1.0), "lambda_u=-1.0 must be >= 0"),
        (dict(temperature=0.0), "temperature=0.0 must be > 0"),
        (dict(labelled_share=1.0), "labelled_share=1.0 must be in"),
        (dict(eps=8.0), "looks like the 0-255 scale"),
        (dict(norm="linf", eps_l2=0.5), "eps_l2=0.5 has no effect with norm='linf'"),
        (dict(norm="l2", eps=0.5), "eps=0.5 has no effect with norm='l2': give eps_l2"),
        (dict(norm="l3"), "norm='l3' is unknown"),
        (dict(scope="batch"), "set scope='sample'"),
        (dict(inner_loss="consistency"), "no gradient at the clean input"),
        (dict(score="los"), "score='los' is unknown: did you mean 'loss'"),
        (dict(adversarial_training="no"), "must be true or false"),
        (dict(warmup_epochs=-1.0), "warmup_epochs=-1.0 must be"),
    ],
)
def test_settings_out_of_range_are_told_in_one_line(tmp_path, changes, told):
    with pytest.raises(ValueError, match=told) as error:
        config(output_dir=str(tmp_path), method="erat", **changes)
    assert "\n" not in str(error.value)


def test_other_methods_refuse_what_only_erat_takes(tmp_path):
    for changes, told in (
        (dict(method="trades", norm="both"), "only method 'erat'"),
        (dict(method="trades", eps_l2=0.5), "no effect with norm='linf'"),
        (dict(method="at", norm="hybrid"), "scope='sample'"),
        (dict(method="prl", per_class=True, rebalance=True), "two ways"),
        (dict(method="prl", lambda_u=1.0), "takes no 'lambda_u'"),
    ):
        with pytest.raises(ValueError, match=told):
            config(output_dir=str(tmp_path), **changes)
    assert config(output_dir=str(tmp_path), method="trades", norm="hybrid", eps_l2="0.5").recipe().perturbation.eps_l2 == 0.5


def test_a_text_model_has_no_images_to_augment(tmp_path):
    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=2)
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 8, "labels": [0, 1] * 4}).with_format("torch")
    args = RobustConfig(**{**settings(tmp_path), **NORMALISATION, "method": "erat"})
    with pytest.raises(ValueError, match="augments images, the model reads texts"):
        RobustTrainer(model=BertForSequenceClassification(config), args=args, train_dataset=rows).train()


@every_row(
    "given,config,told",
    [
        (dict(trainer=dict(compute_loss_func=lambda outputs, labels, **_: outputs)), {}, "variants.*drop compute_loss_func"),
        ({}, dict(problem_type="multi_label_classification"), "compares predicted classes.*use pgd-at"),
    ],
)
def test_set_ups_that_do_not_fit_are_refused(tmp_path, given, config, told):
    with pytest.raises(ValueError, match=told):
        robust(tmp_path, **given, **SHORT, **config).train()


def test_a_streaming_data_set_has_no_split(tmp_path):
    with pytest.raises(ValueError, match="needs a data set with a length"):
        robust(tmp_path, data=images().to_iterable_dataset(), max_steps=2, **SHORT).train()


def test_unknown_normalisation_and_out_of_range_inputs(tmp_path):
    args = RobustConfig(**{**settings(tmp_path), "method": "erat"})
    with pytest.raises(ValueError, match="must know their normalisation"):
        RobustTrainer(model=logits_module(), args=args, train_dataset=images()).train()
    with pytest.raises(ValueError, match="expected .0, 1. pixels"):
        robust(tmp_path, image_mean=[0.0] * 3, image_std=[1.0] * 3, adversarial_training=False, **SHORT).train()


def test_an_own_augmentation_that_leaves_the_pixels_is_told(tmp_path):
    from dataclasses import replace

    recipe = METHODS["erat"](warmup_epochs=0.0, steps=1)
    own = replace(recipe, semi_supervised=replace(recipe.semi_supervised, strong=lambda x: x * 3.0))
    args = RobustConfig(**{**settings(tmp_path), **NORMALISATION})
    with pytest.raises(ValueError, match="strong_augmentation returned pixels in .*expected .0, 1."):
        RobustTrainer(model=logits_module(), args=args, train_dataset=images(), recipe=own).train()


def test_a_warm_up_longer_than_the_run_is_told(tmp_path, caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            robust(tmp_path, method="erat", steps=1, num_train_epochs=2).train()
    finally:
        logging.disable_propagation()
    assert "warmup_epochs=10 of method 'erat' is never over in this run of 2 epochs" in caplog.text
