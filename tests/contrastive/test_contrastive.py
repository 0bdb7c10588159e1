"""SimCLR pre-training: the loss and the views against slow loops, the trainer against a plain loop, and what it learns."""

import copy
import json
import os
import sys

import datasets
import numpy as np
import pytest
import torch
from helpers.processes import trained_together
from helpers.tables import every_row
from helpers.toy import NORMALISATION, images, logits_module, resnet, settings, vit
from torch import nn
from torch.utils.data import IterableDataset
from transformers import HfArgumentParser, TrainerCallback, TrainingArguments

from robust_trainer.contrastive.nt_xent import gather_rows, nt_xent
from robust_trainer.contrastive.trainer import ContrastiveConfig, ContrastiveModel, ContrastiveTrainer
from robust_trainer.contrastive.views import VIEWS, SimCLRViews, make_views, two_views
from robust_trainer.data.images import InputSpace
from robust_trainer.data.randomness import keyed_seed
from robust_trainer.models.peers import PeerModel
from robust_trainer.models.small_networks import ResNet32Config, SmallCNNConfig
from robust_trainer.models.zoo import SMALL, build_model, load_model

OFF = dict(crop_scale=None, flip=False, jitter=0.0, grey=0.0)


def loop(a, b, temperature, others=()):
    """NT-Xent of eq. 1, anchor by anchor; others: candidates of other processes."""
    rows = [*a, *b]
    every = [*rows, *others]
    cosine = lambda u, v: (u * v).sum() / (u.norm() * v.norm())  # noqa: E731
    total = 0.0
    for i, anchor in enumerate(rows):
        positive = rows[i + len(a)] if i < len(a) else rows[i - len(a)]
        below = sum((cosine(anchor, k) / temperature).exp() for j, k in enumerate(every) if j != i)
        total = total - ((cosine(anchor, positive) / temperature).exp() / below).log()
    return total / len(rows)


class Turns:
    """Deterministic views: the image, then a paler mirror image, in turns."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x if self.calls % 2 else x.flip(3) * 0.8


def trainer(tmp_path, model=None, data=None, kwargs=None, **given):
    args = ContrastiveConfig(**{**settings(tmp_path), **NORMALISATION, "projection_dim": 8, **given})
    return ContrastiveTrainer(
        model=logits_module() if model is None else model, args=args, train_dataset=images() if data is None else data,
        **(kwargs or {}),
    )  # fmt: skip


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def told(error):
    assert "\n" not in str(error.value), error.value
    return str(error.value)


# ---- the loss --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, temperature", [(2, 0.5), (5, 0.05), (7, 1.0)])
def test_loss_is_equation_1(batch, temperature):
    a, b = torch.randn(2, batch, 6, dtype=torch.float64) * torch.rand(2, batch, 1, dtype=torch.float64) * 9
    a.requires_grad_(), b.requires_grad_()
    ours, theirs = nt_xent(a, b, temperature), loop(a, b, temperature)
    assert abs(ours - theirs) < 1e-10
    for x, y in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(theirs, (a, b))):
        assert (x - y).abs().max() < 1e-10


def test_other_processes_give_candidates_and_no_anchors():
    a, b, c = torch.randn(3, 4, 6, dtype=torch.float64)
    assert abs(nt_xent(a, b, 0.3, lambda x: torch.cat([x, c / c.norm(dim=1, keepdim=True)])) - loop(a, b, 0.3, c)) < 1e-10
    one = nt_xent(a[:1], b[:1], 0.3, lambda x: torch.cat([x, c]))  # one image here, others elsewhere
    assert one > 0
    assert gather_rows(a) is a


def test_loss_is_stable_and_float32():
    a = torch.randn(64, 32) * 1e3
    for other in (a, -a, torch.zeros_like(a)):
        x, y = a.clone().requires_grad_(), other.clone().requires_grad_()
        nt_xent(x, y, 0.05).backward()
        assert torch.isfinite(x.grad).all() and torch.isfinite(y.grad).all()
    assert nt_xent(a, a, 0.05) < 0.01 < nt_xent(a, -a, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = nt_xent(a.bfloat16(), (a + 1).bfloat16(), 0.05)
    assert half.dtype == torch.float32
    assert half == nt_xent(a.bfloat16().float(), (a + 1).bfloat16().float(), 0.05)


@every_row(
    "a, b, temperature, message",
    [
        ((0, 3), (0, 3), 0.5, "B >= 1"),
        ((2, 3), (3, 3), 0.5, "(2, 3) and (3, 3)"),
        ((2, 3, 1), (2, 3, 1), 0.5, "(B, D)"),
        ((1, 3), (1, 3), 0.5, "1 image"),
        ((2, 3), (2, 3), 0.0, "temperature=0.0"),
        ((2, 3), (2, 3), float("nan"), "temperature=nan"),
    ],
)
def test_bad_embeddings(a, b, temperature, message):
    with pytest.raises(ValueError) as error:
        nt_xent(torch.ones(a), torch.ones(b), temperature)
    assert message in told(error)


# ---- the views -------------------------------------------------------------------------------------------------------------------


@every_row("channels", [1, 3, 4])
@every_row("views", [*map(make_views, VIEWS), SimCLRViews(blur=0.5, rotation=180)])
def test_views_keep_shape_and_range_and_differ_by_image(views, channels):
    x = torch.rand(1, channels, 9, 12).expand(24, -1, -1, -1).contiguous()
    kept = x.clone()
    first = views(x)
    assert first.shape == x.shape and first.dtype == torch.float32 and 0 <= first.min() and first.max() <= 1
    assert torch.equal(x, kept)
    differ = len({tuple(image.flatten().tolist()) for image in first})
    assert differ == (1 if views == make_views("none") else 24)
    torch.manual_seed(5)
    second = views(x)
    torch.manual_seed(5)
    assert torch.equal(second, views(x))
    assert torch.equal(second, first) == (views == make_views("none"))


def test_views_of_no_strength_are_the_image():
    x = torch.rand(6, 3, 8, 10)
    torch.manual_seed(1)
    for strength in (dict(), dict(jitter=1.0, strength=0.0), dict(blur=1e-30), dict(jitter=1e-30, strength=1.0), dict(grey=1e-30)):
        assert torch.equal(SimCLRViews(**{**OFF, **strength})(x), x), strength
    whole = SimCLRViews(**{**OFF, "crop_scale": (1.0, 1.0), "crop_ratio": (1.25, 1.25), "rotation": 1e-6})
    assert torch.allclose(whole(x), x, atol=1e-4)


def test_crops_are_of_the_asked_area_and_ratio():
    """Images that are ramps to the right and down: a crop's range of values is its share of the sides."""
    height, width = 30, 40
    x = torch.stack(
        [(torch.arange(width) / (width - 1)).expand(height, -1), (torch.arange(height) / (height - 1)).expand(width, -1).T]
    )
    crops = SimCLRViews(**{**OFF, "crop_scale": (0.2, 0.5)})(x.expand(500, -1, -1, -1).contiguous())
    right, down = (crops.amax((2, 3)) - crops.amin((2, 3))).T
    area, ratio = right * down, (right * width) / (down * height)
    assert 0.17 < area.min() < 0.22 and 0.44 < area.max() < 0.52
    assert 0.70 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.42 and abs(float(ratio.log().mean())) < 0.03
    assert crops.amin((0, 2, 3)).max() < 0.02 and crops.amax((0, 2, 3)).min() > 0.98  # all of the image is reached


def test_rotations_turn_about_the_middle_by_up_to_the_asked_angle():
    x = torch.zeros(200, 1, 21, 21)
    x[:, :, 10, 10:] = 1.0  # a hand that points to the right
    turned = SimCLRViews(**{**OFF, "rotation": 30.0})(x)
    rows, columns = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(21.0) - 10, indexing="ij")
    inner = turned[:, 0] * ((rows.square() + columns.square()) < 81)
    angle = torch.rad2deg(torch.atan2((inner * rows).sum((1, 2)), (inner * columns).sum((1, 2))))
    assert angle.abs().max() < 32 and angle.min() < -26 and angle.max() > 26 and turned[:, 0, 10, 10].min() > 0.8


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colour_jitter_changes_the_asked_share_by_the_asked_factors(channels):
    """Constant images: contrast leaves them, brightness multiplies, saturation and hue leave a grey as it is."""
    x = torch.full((600, channels, 4, 4), 0.5)
    jittered = SimCLRViews(**{**OFF, "jitter": 0.8, "strength": 0.5})(x)
    factor = jittered.mean((1, 2, 3)) / 0.5
    assert torch.allclose(jittered, (factor * 0.5).view(-1, 1, 1, 1).expand_as(x), atol=1e-4)
    assert 0.6 - 1e-4 < factor.min() < 0.63 and 1.37 < factor.max() < 1.4 + 1e-4
    assert abs(float((factor != 1).float().mean()) - 0.8) < 0.06
    if channels == 3:
        red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1).expand(300, -1, 4, 4).contiguous()
        colours = SimCLRViews(**{**OFF, "jitter": 1.0, "strength": 0.5})(red)
        turned = (colours.argmax(1) != 0).float().mean()  # by up to a tenth of the circle: red stays the largest
        assert turned < 0.02 and (colours[:, 1] != colours[:, 2]).any()


def test_shares_of_images():
    x = torch.rand(2000, 3, 3, 3)
    flipped = SimCLRViews(**{**OFF, "flip": True})(x)
    assert abs(float((flipped != x).flatten(1).any(1).float().mean()) - 0.5) < 0.05
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(flipped, x))
    grey = SimCLRViews(**{**OFF, "grey": 0.2})(x)
    lost = (grey != x).flatten(1).any(1)
    assert abs(float(lost.float().mean()) - 0.2) < 0.04
    luma = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    assert torch.allclose(grey[lost], luma[lost].expand(-1, 3, -1, -1), atol=1e-6)
    assert torch.equal(SimCLRViews(**{**OFF, "grey": 0.5})(x[:, :1]), x[:, :1])
    spot = torch.zeros(400, 1, 7, 7)
    spot[:, :, 3, 3] = 1.0
    blurred = SimCLRViews(**{**OFF, "blur": 0.5})(spot)
    changed = (blurred != spot).flatten(1).any(1)
    assert 0.35 < float(changed.float().mean()) < 0.6  # of the narrowest Gaussian nothing is seen
    assert torch.allclose(blurred.sum((1, 2, 3)), torch.ones(400), atol=1e-5) and not blurred[:, :, :2].any()  # 3 pixels wide


def test_without_kornia_only_the_image_as_it_is(monkeypatch):
    for name in [n for n in sys.modules if n == "kornia" or n.startswith("kornia.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ValueError, match="views='simclr' needs kornia .*pip install kornia") as error:
        make_views("simclr")
    assert "\n" not in str(error.value)
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(make_views("none")(x), x)


def test_two_views_depend_on_the_seed_alone():
    space = InputSpace((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    pixels = torch.rand(4, 3, 8, 8)
    x = space.from_pixels(pixels)
    before = torch.get_rng_state()
    a, b = two_views(make_views("simclr"), x, space, 7)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert all(torch.equal(u, v) for u, v in zip((a, b), two_views(make_views("simclr"), x, space, 7)))
    assert not torch.equal(a, b) and not torch.equal(a, two_views(make_views("simclr"), x, space, 8)[0])
    assert all(0 <= space.to_pixels(v).min() + 1e-6 and space.to_pixels(v).max() <= 1 + 1e-6 for v in (a, b))
    a, b = two_views(lambda p: p.mul_(0.5), x, space, 7)  # in place: each gets pixels of its own
    assert torch.allclose(space.to_pixels(a), pixels * 0.5, atol=1e-5) and torch.equal(a, b)
    assert two_views(Turns(), x.double(), space, 7)[0].dtype == torch.float64


@pytest.mark.parametrize(
    "views, message",
    [
        (lambda p: p[:, :, 1:], "shape"),
        (lambda p: p * 2 - 1, "expected [0, 1]"),
        (lambda p: p / 0, "NaN or infinite"),
    ],
)
def test_bad_views(views, message):
    with pytest.raises(ValueError) as error:
        two_views(views, torch.rand(2, 3, 4, 4), InputSpace(), 0)
    assert message in told(error)


@every_row(
    "setting, value",
    [("crop_scale", (0.0, 1.0)), ("crop_scale", (0.5, 0.2)), ("crop_ratio", (2.0, 1.0)), ("rotation", -1.0), ("jitter", 1.5),
     ("strength", 2.0), ("grey", -0.1), ("blur", 3.0)],
)  # fmt: skip
def test_bad_settings_of_views(setting, value):
    with pytest.raises(ValueError) as error:
        SimCLRViews(**{setting: value})
    assert setting in told(error)


# ---- the trainer -----------------------------------------------------------------------------------------------------------------


class Recorder(TrainerCallback):
    """What had a gradient that is not zero in some step, by name; what takes none has none to begin with."""

    def __init__(self):
        self.seen = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for name, p in model.named_parameters():
            assert p.requires_grad == (p.grad is not None)
            self.seen[name] = self.seen.get(name, False) or (p.grad is not None and bool(p.grad.abs().sum() > 0))


def batches_of(pretraining):
    """The images of every micro-batch, as they come to the loss."""
    seen, real = [], pretraining.compute_loss

    def compute_loss(model, inputs, **kwargs):
        seen.append(inputs["pixel_values"].clone())
        assert set(inputs) == {"pixel_values"}
        return real(model, inputs, **kwargs)

    pretraining.compute_loss = compute_loss
    return seen


@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_is_a_plain_loop(tmp_path, accumulated):
    """Micro-batch by micro-batch: both views in one forward, each micro-batch contrasts its own images, the mean gradient."""
    ours = trainer(
        tmp_path, optim="sgd", learning_rate=0.5, max_grad_norm=0.0, temperature=0.2, gradient_accumulation_steps=accumulated,
        num_train_epochs=1, kwargs=dict(views=Turns()),
    )  # fmt: skip
    net, seen = copy.deepcopy(ours.model), batches_of(ours)
    ours.train()
    assert [len(x) for x in seen] == [8] * 6 and ours.state.global_step == 6 // accumulated
    space, losses = InputSpace((0.5,), (0.5,)), []
    weights = [p for name, p in net.named_parameters() if "head" not in name]
    for step in range(6 // accumulated):
        total = 0.0
        for x in seen[step * accumulated :][:accumulated]:
            other = space.from_pixels(space.to_pixels(x).flip(3) * 0.8)
            h = [nn.functional.adaptive_avg_pool2d(net.classifier.conv(v).relu(), 2).flatten(1) for v in (x, other)]
            total = total + loop(net.projector(h[0]), net.projector(h[1]), 0.2) / accumulated
        losses.append(float(total.detach()))
        with torch.no_grad():
            for p, g in zip(weights, torch.autograd.grad(total, weights)):
                p -= 0.5 * g
    assert [row["loss"] for row in ours.state.log_history if "loss" in row] == pytest.approx(losses, rel=1e-4)
    for name, value in net.state_dict().items():
        assert torch.allclose(value, ours.model.state_dict()[name], atol=1e-5), name


def distributed(size, tmp_path):
    def work(out):
        ours = trainer(
            out, per_device_train_batch_size=size, per_device_eval_batch_size=size, optim="sgd", learning_rate=0.5,
            max_grad_norm=0.0, temperature=0.2, ddp_find_unused_parameters=False,
            kwargs=dict(views=Turns(), eval_dataset=images(16, seed=1)),
        )  # fmt: skip
        ours.train()
        weights = [round(float(v), 6) for p in ours.model.parameters() for v in p.detach().flatten()[:20]]
        return ours, [[row["loss"] for row in ours.state.log_history if "loss" in row], weights, ours.evaluate()["eval_loss"]]

    return trained_together(work, 1 if size == 16 else 2, tmp_path)


def test_two_processes_are_one(tmp_path):
    """gloo on the CPU, 2 x 8: the trajectory, and the evaluation, of one process with batches of 16."""
    one, two = distributed(16, tmp_path), distributed(8, tmp_path)
    assert len(one[0]) == 6 and one[0][-1] < one[0][0]
    for ours, theirs in zip(one, two):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def small(name="small-cnn", seed=0):
    torch.manual_seed(seed)
    shape = dict(num_channels=3, image_size=8, num_labels=4)
    config = SmallCNNConfig(width=4, **shape) if name == "small-cnn" else ResNet32Config(blocks=1, width=4, **shape)
    return SMALL[name][1](config)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("make", [vit, resnet, small, lambda: small("resnet32"), logits_module])
def test_the_backbone_is_trained_and_the_head_is_not(tmp_path, make, layers):
    model, watch = make(), Recorder()
    before = state_of(model)
    ours = trainer(tmp_path, model, max_steps=4, projection_layers=layers, max_grad_norm=0.0, kwargs=dict(callbacks=[watch]))
    head = ours.model.head_name
    first = state_of(ours.model.projector)
    assert sum(isinstance(m, nn.Linear) for m in ours.model.projector) == layers
    ours.train()
    assert ours.classifier is model and model.training
    for name, p in model.named_parameters():
        trained = not name.startswith(head)
        assert p.requires_grad
        assert watch.seen["classifier." + name] == trained, name
        assert torch.equal(before[name], p) != trained, name
    assert not any(torch.equal(first[name], p) for name, p in ours.model.projector.named_parameters())
    for name, b in model.named_buffers():
        assert "running" not in name or not torch.equal(before[name], b)
    x = torch.rand(2, 3, 8, 8)
    assert ours.model(x).shape == (2, 8)


def test_the_representation_is_the_heads_input():
    model = ContrastiveModel(small().eval(), 5)
    x = torch.rand(3, 3, 8, 8)
    hidden = model.classifier.hidden(model.classifier.features(x)).relu()
    assert torch.equal(model(x), model.projector(hidden))
    assert not model.head._forward_pre_hooks
    half = ContrastiveModel(small().eval().bfloat16(), 5)
    assert half(x.bfloat16()).dtype == torch.float32
    assert [p.requires_grad for p in model.head.parameters()] == [True, True]
    model.head.bias.requires_grad_(False)
    with pytest.raises(KeyError), model.head_frozen():
        assert not any(p.requires_grad for p in model.head.parameters())
        raise KeyError
    assert [p.requires_grad for p in model.head.parameters()] == [True, False]


def test_labels_are_never_looked_at(tmp_path):
    data = images()
    labels = data["labels"][:].tolist()
    other = data.remove_columns("labels").add_column("labels", labels[7:] + labels[:7])
    assert labels != other["labels"][:].tolist()
    bare = data.select_columns("pixel_values")
    found = []
    for rows, args in ((data, {}), (other, {}), (bare, {}), (data, dict(remove_unused_columns=True))):
        ours = trainer(tmp_path, vit(), rows, max_steps=3, **args)
        ours.train()
        found.append(state_of(ours.model))
    assert all(same(found[0], state) for state in found[1:])


def test_the_global_random_state_is_the_trainers_own(tmp_path):
    ours = trainer(tmp_path, small(), max_steps=1)
    projector, inputs = state_of(ours.model.projector), {"pixel_values": torch.rand(8, 3, 8, 8)}
    before = torch.get_rng_state()
    ours.training_step(ours.model, inputs)
    assert torch.equal(before, torch.get_rng_state())
    model = small()
    torch.rand(9)
    assert same(projector, state_of(trainer(tmp_path, model).model.projector))  # by the seed in the arguments alone


def test_views_of_a_step(tmp_path):
    """Drawn anew in every micro-batch and step, alike for the same seed and moment."""
    seen = []

    def views(pixels):
        seen.append(torch.rand(1).item())
        return pixels

    def draws(**given):
        seen.clear()
        ours = trainer(tmp_path, gradient_accumulation_steps=2, max_steps=2, kwargs=dict(views=views), **given)
        ours.train()
        return list(seen)

    first = draws()
    assert len(first) == len(set(first)) == 8
    assert draws() == first and not set(draws(seed=4)) & set(first)


@pytest.mark.parametrize("make", [small, lambda: vit(dropout=0.1)])
def test_resumed_is_a_straight_run(tmp_path, make):
    """From the middle of an epoch, bit for bit, with BatchNorm, or dropout; a folder without pickles of ours."""
    common = dict(num_train_epochs=2, gradient_accumulation_steps=2, save_strategy="steps", save_steps=2)
    straight = trainer(tmp_path / "a", make(), **common)
    straight.train()
    resumed = trainer(tmp_path / "a", make(), **common)
    torch.rand(5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert same(state_of(straight.model), state_of(resumed.model))
    assert straight.state.log_history[-2]["loss"] == resumed.state.log_history[-2]["loss"]
    files = set(os.listdir(tmp_path / "a" / "checkpoint-4"))
    assert "projector.safetensors" in files and {f for f in files if f.endswith((".bin", ".pt", ".pth", ".pkl"))} == {
        "optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin",
    }  # fmt: skip
    again = trainer(tmp_path / "a", make(), **common)
    again.train(resume_from_checkpoint=True)  # nothing is left to do
    assert same(state_of(straight.model), state_of(again.model))


def test_a_checkpoint_of_another_projector(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    folder = tmp_path / "checkpoint-2"
    for given in (dict(projection_dim=5), dict(projection_layers=3)):
        with pytest.raises(ValueError) as error:
            trainer(tmp_path, max_steps=4, **given).train(resume_from_checkpoint=str(folder))
        assert "projection_dim" in told(error)
    (folder / "projector.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError) as error:
        trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=str(folder))
    assert "damaged" in told(error)
    (folder / "projector.safetensors").unlink()
    with pytest.raises(ValueError) as error:
        trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=str(folder))
    assert "projector.safetensors" in told(error)


def test_the_best_checkpoint_is_loaded(tmp_path):
    ours = trainer(
        tmp_path, small(), max_steps=6, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, learning_rate=3.0,
        load_best_model_at_end=True, kwargs=dict(eval_dataset=images(20, seed=1)),
    )  # fmt: skip
    ours.train()
    losses = [row["eval_loss"] for row in ours.state.log_history if "eval_loss" in row]
    assert ours.state.best_global_step == int(np.argmin(losses)) + 1 < 6
    assert ours.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_the_classifier_is_saved(tmp_path):
    model, processor = build_model("small-cnn", ["a", "b", "c"], channels=3, image_size=8)
    before = state_of(model)
    args = ContrastiveConfig(**settings(tmp_path), projection_dim=8)
    ours = ContrastiveTrainer(model=model, args=args, train_dataset=images(), processing_class=processor)
    ours.train()
    ours.save_model()
    loaded, _ = load_model(str(tmp_path))
    assert type(loaded) is type(model) and same(state_of(loaded), state_of(model))
    assert torch.equal(loaded.head.weight, before["head.weight"]) and loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert ours.model.classifier is model
    ours = trainer(tmp_path / "vit", vit(), max_steps=1)
    ours.train()
    ours.save_model()
    assert same(state_of(type(ours.classifier).from_pretrained(tmp_path / "vit")), state_of(ours.classifier))


def test_evaluation_is_the_loss_of_the_same_views(tmp_path):
    data = images(20, seed=1)
    given = dict(per_device_eval_batch_size=8, kwargs=dict(eval_dataset=data))
    ours = trainer(tmp_path, small(), **given)
    ours.train()
    before = state_of(ours.model)
    first, second = ours.evaluate(), ours.evaluate()
    assert first["eval_loss"] == second["eval_loss"] and same(before, state_of(ours.model))
    ours.model.eval()
    losses = []
    for number in range(2):  # 4 images are left over
        x = data["pixel_values"][number * 8 : number * 8 + 8]
        seed = keyed_seed("views", 3, -1, number, 0)
        with torch.no_grad():
            a, b = ours.model(torch.cat(two_views(make_views("simclr"), x, ours.space, seed))).chunk(2)
        losses.append(float(loop(a, b, 0.5)))
    assert first["eval_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert ours.predict(data).predictions.shape == (16, 2, 8)
    ours.args.dataloader_drop_last = False
    assert ours.evaluate()["eval_loss"] == first["eval_loss"]
    with_evaluations = trainer(tmp_path, small(), eval_strategy="steps", eval_steps=2, **given)
    with_evaluations.train()
    assert same(before, state_of(with_evaluations.model))


@pytest.mark.parametrize("extra", [1, 2])
def test_extra_images_are_used(tmp_path, extra):
    """A transform's rows, a torch data set, and other label columns together; each image once an epoch."""
    mark = lambda n, first: [torch.full((3, 8, 8), (first + i) / 100) for i in range(n)]  # noqa: E731
    train = datasets.Dataset.from_dict({"number": list(range(20)), "label": [0] * 20}).with_transform(
        lambda rows: {"pixel_values": [torch.full((3, 8, 8), n / 100) for n in rows["number"]], "labels": rows["label"]}
    )
    more = [{"pixel_values": x, "fine_label": "cat"} for x in mark(12, 50)]
    also = datasets.Dataset.from_dict({"pixel_values": torch.stack(mark(8, 80)).numpy()})
    ours = trainer(
        tmp_path, data=train, num_train_epochs=1, image_mean=[0.0], image_std=[1.0], remove_unused_columns=bool(extra - 1),
        per_device_train_batch_size=4, kwargs=dict(extra_dataset=more if extra == 1 else [more, also]),
    )  # fmt: skip
    seen = batches_of(ours)
    ours.train()
    wanted = [*range(20), *range(50, 62), *(range(80, 88) if extra == 2 else ())]
    assert sorted(round(float(v) * 100) for x in seen for v in x[:, 0, 0, 0]) == wanted


def test_mixed_precision_and_checkpointing(tmp_path):
    found, fields = {}, ContrastiveConfig.__dataclass_fields__
    checkpointing = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in fields)
    for name, given in {"plain": {}, "half": dict(bf16=True), "checkpointed": {checkpointing: True}}.items():
        ours = trainer(tmp_path, vit(), max_steps=3, learning_rate=1e-3, **given)
        ours.train()
        found[name] = [row["loss"] for row in ours.state.log_history if "loss" in row], state_of(ours.model)
    assert found["plain"][0] == pytest.approx(found["half"][0], rel=2e-2) and found["plain"][0] != found["half"][0]
    assert same(found["plain"][1], found["checkpointed"][1])


def test_model_init_positional_arguments_and_plain_arguments(tmp_path):
    args = TrainingArguments(**settings(tmp_path, max_steps=2))
    processor = build_model("small-cnn", ["a", "b"], channels=3, image_size=8)[1]
    init = lambda: (small(), torch.manual_seed(args.seed))[0]  # noqa: E731
    first = ContrastiveTrainer(small(), args, None, images(), processing_class=processor)
    first.train()
    second = ContrastiveTrainer(args=args, train_dataset=images(), processing_class=processor, model_init=init)
    second.train()
    assert same(state_of(first.model), state_of(second.model)) and first.model.projector[-1].out_features == 128
    whole = ContrastiveModel(small(), 3)
    assert trainer(tmp_path, whole).model is whole


def test_the_arguments_are_a_dataclass(tmp_path):
    parser = HfArgumentParser(ContrastiveConfig)
    line = f"--output_dir {tmp_path} --temperature 0.2 --views simclr-digits --image_mean 0.5 --image_std 0.5"
    (args,) = parser.parse_args_into_dataclasses(line.split())
    assert (args.temperature, args.views, args.image_mean, args.dataloader_drop_last) == (0.2, "simclr-digits", [0.5], True)
    assert json.loads(args.to_json_string())["projection_dim"] == 128
    (args,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--no_dataloader_drop_last"])
    assert args.dataloader_drop_last is False


# ---- what is refused -------------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A head on every token."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, pixel_values):
        return self.head(pixel_values.flatten(2).mT).mean(1)


class Stream(IterableDataset):
    def __iter__(self):
        while True:
            yield {"pixel_values": torch.rand(3, 8, 8)}


def test_streams_train_for_a_number_of_steps(tmp_path):
    ours = trainer(tmp_path, data=Stream(), max_steps=2, accelerator_config=dict(dispatch_batches=False))
    ours.train()
    assert ours.state.global_step == 2


@every_row(
    "given",
    [dict(temperature=0), dict(temperature="1"), dict(projection_dim=0), dict(projection_layers=4), dict(views="moco"),
     dict(image_mean=[0.5], image_std=None), dict(image_mean=0.5, image_std=0.5)],
)  # fmt: skip
def test_bad_arguments(tmp_path, given):
    with pytest.raises(ValueError) as error:
        ContrastiveConfig(output_dir=str(tmp_path), **given)
    assert next(iter(given)) in told(error)


def rows(*columns, n=8, shape=(3, 8, 8)):
    return [{name: torch.rand(shape) for name in columns} for _ in range(n)]


@every_row(
    "model, data, given, kwargs, message",
    [
        (None, None, dict(image_mean=None, image_std=None), {}, "processing_class"),
        (None, rows("image"), {}, {}, "without 'pixel_values'"),
        (None, [(torch.rand(3, 8, 8), 1)] * 8, {}, {}, "a tuple"),
        (None, rows("pixel_values", n=4) + rows("pixel_values", n=4, shape=(3, 9, 8)), {}, {}, "one size"),
        (None, rows("pixel_values", shape=(3, 8)), {}, {}, "(B, C, H, W)"),
        (None, [{"pixel_values": torch.ones(3, 8, 8, dtype=torch.uint8)}] * 8, {}, {}, "uint8"),
        (None, [{"pixel_values": torch.full((3, 8, 8), torch.nan)}] * 8, {}, {}, "NaN"),
        (None, [{"pixel_values": torch.full((3, 8, 8), 200.0)}] * 8, {}, {}, "expected [0, 1] pixels"),
        (None, datasets.DatasetDict(train=images()), {}, {}, "of ['train']"),
        (None, rows("pixel_values", n=1), {}, {}, "1 images"),
        (None, rows("pixel_values", n=7), {}, {}, "less than one batch of 8"),
        (None, rows("pixel_values", n=9), dict(dataloader_drop_last=False), {}, "leaves 1"),
        (None, rows("pixel_values", n=9), dict(per_device_train_batch_size=1), {}, "raise the batch size"),
        (None, None, {}, dict(views="moco"), "views='moco'"),
        (None, None, {}, dict(extra_dataset=Stream()), "extra_dataset is a Stream"),
        (None, None, {}, dict(extra_dataset=[]), None),
        (None, None, {}, dict(extra_dataset=[[]]), "empty"),
        (None, None, {}, dict(compute_loss_func=len), "compute_loss_func"),
        (None, None, dict(label_smoothing_factor=0.1), {}, "label_smoothing_factor"),
        (Tokens(), None, {}, {}, "(16, 64, 3)"),
        (PeerModel.of([Tokens(), Tokens()]), None, {}, {}, "2 networks"),
        (nn.Conv2d(3, 2, 8), None, {}, {}, "linear"),
    ],
)
def test_bad_set_ups(tmp_path, model, data, given, kwargs, message):
    run = lambda: trainer(tmp_path, model, data, kwargs, **{**dict(max_steps=1), **given}).train()  # noqa: E731
    if message is None:
        run()
        return
    with pytest.raises(ValueError) as error:
        run()
    assert message in told(error)


def test_a_short_last_batch_and_evaluations_of_few_images(tmp_path):
    pixels = dict(image_mean=[0.0], image_std=[1.0])
    ours = trainer(tmp_path, data=rows("pixel_values", n=11), dataloader_drop_last=False, num_train_epochs=1, **pixels)
    seen = batches_of(ours)
    ours.train()
    assert [len(x) for x in seen] == [8, 3]
    assert ours.evaluate(rows("pixel_values", n=3))["eval_loss"] > 0
    with pytest.raises(ValueError) as error:
        ours.evaluate(rows("pixel_values", n=1))
    assert "Evaluation set has 1" in told(error)


# ---- what it is for --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pre_training_helps_where_labels_are_few(tmp_path):
    """Real digits, two labels of each class: a linear probe of the head's inputs before and after 14 epochs."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = torch.tensor(digits.images[order] / 16, dtype=torch.float32).unsqueeze(1) * 2 - 1
    y = digits.target[order]
    torch.manual_seed(0)
    model = SMALL["small-cnn"][1](SmallCNNConfig(num_channels=1, image_size=8, width=16, num_labels=10))

    def probe():
        model.eval()
        with torch.no_grad():
            h = model.hidden(model.features(x)).relu().numpy()
        h = (h - h[:1400].mean(0)) / (h[:1400].std(0) + 1e-6)
        found = []
        for draw in range(5):
            rng = np.random.default_rng(draw)
            few = np.concatenate([rng.permutation(np.flatnonzero(y[:1400] == c))[:2] for c in range(10)])
            found.append(LogisticRegression(max_iter=500).fit(h[few], y[few]).score(h[1400:], y[1400:]))
        return np.mean(found)

    before = probe()
    ours = trainer(
        tmp_path, model, [{"pixel_values": image} for image in x[:1400]], views="simclr-digits", projection_dim=128,
        per_device_train_batch_size=128, num_train_epochs=14, learning_rate=2e-3, image_mean=[0.5], image_std=[0.5],
    )  # fmt: skip
    ours.train()
    after = probe()
    print(before, after)
    assert after > before + 0.12 and after > 0.74
