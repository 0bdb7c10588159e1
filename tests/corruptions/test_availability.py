"""Availability poisons: the ball and the range, what each does to a loss, resuming, 8-bit storage, cards, errors."""

from __future__ import annotations

import io
import logging

import datasets
import numpy as np
import pytest
import torch
from helpers import toy
from helpers.tables import every_row
from PIL import Image
from torch import nn

from robust_trainer.corruptions import (
    IS_POISONED,
    POISONS,
    corrupt_labels,
    poison_images,
    poison_record,
    realised_norms,
    self_check,
    write_card,
)
from robust_trainer.corruptions.poisons.networks import accuracy, fresh_factory, seeded, train_plain
from robust_trainer.corruptions.poisons.task import Task
from robust_trainer.corruptions.poisons.universal_random import craft_urp
from robust_trainer.corruptions.poisons.unlearnable import craft_up
from robust_trainer.data.pixels import read_levels, read_pixels, to_levels, to_pixels, write_levels
from robust_trainer.models.pixel_model import pixel_model
from robust_trainer.perturbations.norms import Ball
from robust_trainer.reporting.resumable import Work

CLASSES, SIDE = toy.CLASSES, 8
BALLS = [Ball("linf", 8 / 255), Ball("l2", 0.5)]
HALF = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
FAST = {
    "up": {"max_rounds": 2, "steps": 2}, "up-class": {"max_rounds": 2}, "aa": {"steps": 2, "targets": 1}, "ap": {"steps": 2},
    "uap": {"steps": 2, "batch": 8}, "uhp": {"steps": 2, "batch": 8}, "tap": {"steps": 2, "restarts": 1},
    "l2c": {"rounds": 1, "epochs": 1, "width": 4},
}  # fmt: skip


def pictures(n: int = 24, seed: int = 0, grey: bool = False, **columns) -> datasets.Dataset:
    """Class-dependent 8x8 PNG images, black and white pixels among them."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    x = rng.integers(90, 160, (n, SIDE, SIDE, 1 if grey else 3))
    for i, c in enumerate(labels):
        x[i, :, 2 * c : 2 * c + 2] += 60
    x[:, 0, :4], x[:, 0, 4:] = 0, 255
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))}
    shown = [Image.fromarray(row.astype(np.uint8).squeeze()) for row in x]
    rows = {"image": shown, "label": labels.tolist(), "id": list(range(n)), **columns}
    return datasets.Dataset.from_dict(rows).cast(datasets.Features({**datasets.Dataset.from_dict(rows).features, **features}))


def fresh() -> nn.Module:
    return toy.Logits()


def model_for(name: str):
    return {"none": None, "trained": toy.logits_module(), "fresh": fresh}[POISONS[name].needs]


def make_task(n: int = 24, ball: Ball = BALLS[0], grey: bool = False, inside: bool = False, **kwargs) -> Task:
    """A task; with ``inside`` no image is near black or white."""
    x, y = read_pixels(pictures(n, grey=grey))
    make = lambda: pixel_model(toy.Logits(channels=x.shape[1]), image_mean=[0.5], image_std=[0.5])  # noqa: E731
    return Task(x.clamp(0.35, 0.65) if inside else x, y, CLASSES, ball, fresh=make, batch_size=10, **kwargs)


def test_the_table_names_nine_poisons_that_exist():
    assert list(POISONS) == ["l2c", "up", "up-class", "aa", "ap", "uap", "uhp", "urp", "tap"]
    assert all(callable(row.craft()) and row.needs in ("none", "trained", "fresh") for row in POISONS.values())
    assert POISONS["up-class"].settings == {"class_wise": True} and not POISONS["up"].settings


@pytest.mark.parametrize(
    "name,norm",
    [(name, ("linf", "l2")[i % 2]) for i, name in enumerate(POISONS)] + [(name, "l1") for name in ("l2c", "up", "ap", "urp")],
)
def test_every_poison_stays_in_its_ball_and_keeps_the_rest(name, norm):
    data = pictures()
    found = poison_images(data, name, norm=norm, model=model_for(name), batch_size=10, **HALF, **FAST.get(name, {}))
    before, after = read_levels(data, "image"), read_levels(found, "image")
    moved = np.abs(after.astype(int) - before).reshape(len(data), -1)
    sizes = np.sqrt(((moved / 255) ** 2).sum(1))
    norms = realised_norms(data, found)
    if norm == "linf":
        assert 1 <= moved.max() <= 8
    elif norm == "l1":
        total = (moved / 255).sum(1)
        assert 0.5 < total.max() <= 12 + 0.5 / 255 * moved.shape[1] and norms["l1_max"] == pytest.approx(total.max())
    else:
        assert 0.05 < sizes.max() <= 0.5 + 0.5 / 255 * np.sqrt(moved.shape[1])
    assert norms["linf_max"] == pytest.approx(moved.max() / 255) and norms["l2_mean"] == pytest.approx(sizes.mean())
    assert found["label"] == data["label"] and found["id"] == data["id"] and found[IS_POISONED] == [True] * len(data)
    assert found.features == {**data.features, IS_POISONED: datasets.Value("bool")}


@every_row("ball", BALLS)
@every_row("craft", [craft_urp, lambda task: craft_up(task, class_wise=True, max_rounds=3)])
def test_class_wise_noise_is_one_noise_per_class(craft, ball):
    task = make_task(ball=ball, inside=True)
    delta = craft(task)
    for c in range(CLASSES):
        rows = delta[task.labels == c]
        assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-6)
    assert not torch.allclose(delta[0], delta[1], atol=1e-3)


def test_random_noise_has_the_size_it_should():
    task = make_task(ball=BALLS[1], inside=True)
    assert torch.allclose(craft_urp(task).flatten(1).norm(dim=1), torch.tensor(0.5), atol=1e-4)
    cube = craft_urp(make_task(ball=BALLS[0], inside=True)).unique() * 255
    assert cube.abs().max() <= 8.001 and cube.min() < -7.5 and cube.max() > 7.5 and abs(float(cube.mean())) < 1
    assert torch.equal(craft_urp(make_task(seed=3)), craft_urp(make_task(seed=3)))
    assert not torch.equal(craft_urp(make_task(seed=3)), craft_urp(make_task(seed=4)))


@pytest.mark.parametrize("ball", BALLS, ids=["linf", "l2"])
@pytest.mark.parametrize("class_wise", [False, True])
def test_unlearnable_noise_lowers_the_loss_of_the_model_it_was_crafted_on(class_wise, ball):
    task, nets = make_task(ball=ball), []
    make = task.fresh
    task.fresh = lambda: nets.append(make()) or nets[-1]
    delta = craft_up(task, class_wise=class_wise, max_rounds=3, min_rounds=3)
    random = craft_urp(make_task(ball=ball, seed=5))
    net = nets[0].eval()
    with torch.no_grad():
        zero, noisy, up = (float(nn.functional.cross_entropy(net(task.images + d), task.labels)) for d in (0, random, delta))
    assert up < zero - 0.01 and up < noisy - 0.01


def test_unlearnable_search_is_descent_by_the_book():
    """One round, sample-wise, one batch: the noise of 3 steps, against a loop over single images."""
    task, nets = make_task(8, inside=True), []
    make = task.fresh
    task.fresh = lambda: nets.append(make()) or nets[-1]
    delta = craft_up(task, steps=3, max_rounds=1)
    net, step = nets[0].eval(), task.ball.eps / 10
    for x, y, found in zip(task.images, task.labels, delta):
        point = x.clone()
        for _ in range(3):
            point.requires_grad_(True)
            (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(point[None]), y[None]), point)
            point = (point.detach() - step * grad.sign()).clamp(x - task.ball.eps, x + task.ball.eps).clamp(0, 1)
        assert torch.allclose(found, point - x, atol=1e-6)
    assert delta.abs().max() == pytest.approx(3 * step, rel=1e-4)


def test_unlearnable_noise_stops_at_the_error_or_warns(caplog):
    logger = "robust_trainer.corruptions.poisons.unlearnable"
    with caplog.at_level(logging.INFO, logger):
        craft_up(make_task(), steps=1, stop_error=0.9, max_rounds=5)
    assert [r.levelname for r in caplog.records] == ["INFO"] and "round 1: train error" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger):
        craft_up(make_task(), steps=1, stop_error=0.0, max_rounds=2, learning_rate=1e-6)
    assert [r.levelname for r in caplog.records] == ["INFO", "INFO", "WARNING"]
    assert "after max_rounds=2 the train error is 0." in caplog.records[-1].getMessage()


class Dropping(nn.Module):
    """BatchNorm and dropout: state and randomness that a resumed crafting must have again."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(36, CLASSES)
        )

    def forward(self, x):
        return self.net(x)


class Stopped(Exception):
    pass


class StoppingWork(Work):
    """Stops after so many parts were saved."""

    def save(self, name, tensors):
        super().save(name, tensors)
        self.left = getattr(self, "left", 2) - 1
        if not self.left:
            raise Stopped


@pytest.mark.parametrize("ball", BALLS, ids=["linf", "l2"])
@pytest.mark.parametrize("class_wise", [False, True])
def test_unlearnable_noise_resumes_to_the_same(class_wise, ball, tmp_path):
    settings = dict(class_wise=class_wise, steps=2, max_rounds=4, min_rounds=4)

    def task(work: Work) -> Task:
        found = make_task(ball=ball, work=work)
        found.fresh = Dropping
        return found

    straight = craft_up(task(Work()), **settings)
    with pytest.raises(Stopped):
        craft_up(task(StoppingWork(tmp_path)), **settings)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert torch.equal(craft_up(task(Work(tmp_path)), **settings), straight)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(craft_up(task(Work(tmp_path)), **settings), straight)  # finished: nothing is left to do


def test_levels_are_the_nearest_ones_for_every_level_and_perturbation():
    levels = np.arange(256, dtype=np.uint8)
    base = to_pixels(levels[None, None, :, None])  # (1, 1, 1, 256)
    for eps in range(0, 17):
        for sign in (1, -1):
            found = to_levels(base + sign * eps / 255).ravel()
            assert np.array_equal(found, np.clip(levels.astype(int) + sign * eps, 0, 255))  # truncation would lose many
    deltas = torch.linspace(-9, 9, 721, dtype=torch.float64)
    wanted = torch.arange(256, dtype=torch.float64)[:, None] + deltas
    found = torch.from_numpy(to_levels((wanted / 255)[None, None])).reshape(256, -1).double()
    inside = (wanted >= 0) & (wanted <= 255)
    assert (found - wanted)[inside].abs().max() <= 0.5 + 1e-9
    assert torch.equal(found[wanted < 0].unique(), torch.zeros(1).double()) and found[wanted > 255].unique().tolist() == [255]


def test_images_are_stored_as_png_with_format_and_grey_kept():
    data = pictures(grey=True).with_format("numpy", columns=["label", "image"])
    found = poison_images(data, "urp", seed=1)
    assert found.format["type"] == "numpy" and found.format["columns"] == ["label", "image"]
    raw = found.with_format(None).cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert raw["bytes"].startswith(b"\x89PNG") and raw["path"] is None
    assert Image.open(io.BytesIO(raw["bytes"])).mode == "L"
    again = poison_images(data, "urp", seed=1)
    assert np.array_equal(read_levels(found, "image"), read_levels(again, "image"))
    assert not np.array_equal(read_levels(found, "image"), read_levels(poison_images(data, "urp", seed=2), "image"))


def test_the_poison_sees_the_true_labels_whatever_was_done_to_them():
    data = pictures()
    wrong = corrupt_labels(data, noise="symmetric", rate=0.5, seed=0)
    first, second = poison_images(data, "urp"), poison_images(wrong, "urp")
    assert np.array_equal(read_levels(first, "image"), read_levels(second, "image"))
    assert second["label"] == wrong["label"] != data["label"] and second["clean_label"] == data["label"]


def test_the_model_given_is_left_as_it_was(tmp_path):
    model = toy.resnet().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = poison_images(pictures(), "ap", model=model, steps=2, **HALF, folder=tmp_path)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    again = poison_images(pictures(), "ap", model=model, steps=2, **HALF, folder=tmp_path)
    assert np.array_equal(read_levels(kept, "image"), read_levels(again, "image"))
    with pytest.raises(ValueError, match="holds a poison begun with seed=0, now 1"):
        poison_images(pictures(), "ap", model=model, steps=2, **HALF, folder=tmp_path, seed=1)


def test_pixel_models_normalise_and_take_grey_images():
    model, x = toy.logits_module(), torch.rand(3, 3, SIDE, SIDE)
    shown = pixel_model(model, image_mean=[0.2, 0.3, 0.4], image_std=[0.5, 0.6, 0.7])
    mean, std = torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    assert torch.allclose(shown(x), model((x - mean) / std), atol=1e-6) and pixel_model(shown) is shown
    grey = pixel_model(toy.vit().eval(), **HALF)
    assert torch.allclose(grey(x[:, :1]), grey(x[:, :1].repeat(1, 3, 1, 1)), atol=1e-6)


def test_plain_training_learns_and_depends_on_its_seed_alone():
    x, y = read_pixels(pictures(64))
    make = fresh_factory("plain-cnn", list("abcd"), channels=3, image_size=SIDE)
    nets = []
    for number in (5, 6):
        torch.manual_seed(number)
        nets.append(train_plain(seeded(make, 0), x, y, 12, batch_size=16, flip=False))
    assert accuracy(nets[0], x, y) >= 0.9 > accuracy(seeded(make, 0), x, y)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values()))
    assert not nets[0].training


def test_self_check_tells_a_poison_that_works_from_none():
    """A poison that a human sees: a bright frame in the class's corner, which the clean test images lack."""
    data, test = pictures(64, grey=True), pictures(32, seed=9, grey=True)
    levels = read_levels(data, "image")
    marked = np.full_like(levels, 120)
    for i, c in enumerate(data["label"]):
        marked[i, 2 * (c // 2) : 2 * (c // 2) + 2, 6 * (c % 2) : 6 * (c % 2) + 2] = 255
    shown = write_levels(data, "image", marked)
    make = fresh_factory("plain-cnn", list("abcd"), channels=1, image_size=SIDE)
    found = self_check(data, shown, test, make, epochs=12)
    assert found["clean_trained"] > 0.9 > 0.6 > found["poison_trained"] and found["told"].endswith("the poison works.")
    same = self_check(data, data, test, make, epochs=2)
    assert same["clean_trained"] == same["poison_trained"] and "no effect" in same["told"] and same["chance"] == 0.25


def test_record_and_card(tmp_path):
    data = pictures()
    found = poison_images(data, "urp", norm="l2", eps=0.5)
    check = {"told": "a | plain training", "chance": 0.25, "epochs": 3, "seed": 0, "test_rows": 7}
    record = poison_record(data, found, "urp", norm="l2", eps=0.5, model="a net", model_accuracy=0.875, check=check)
    assert record["rows"] == 24 and record["eps"] == 0.5 and record["realised"]["l2_max"] <= 0.52
    text = write_card(tmp_path / "new", record, data="toys", labels="60.0 % wrong").read_text()
    front = text.split("---")[1]
    assert 'pretty_name: "toys, poisoned by urp"' in front and "- data-poisoning" in front
    wanted = ("Training on this data damages a model", "60.0 % wrong", "l2, 0.5 in [0, 1] pixels", "a net, 87.5 % accurate",
              f"max {record['realised']['l2_max']:.5f}", "load_from_disk", "A | plain training", "25.0 %")  # fmt: skip
    assert not [word for word in wanted if word not in text]
    assert "Not run." in write_card(tmp_path, {**record, "self_check": None}).read_text()


def mixed() -> datasets.Dataset:
    sizes = [(8, 8), (8, 8), (9, 8)]
    return datasets.Dataset.from_dict({"image": [Image.new("L", s) for s in sizes], "label": [0, 1, 0]}).cast_column(
        "image", datasets.Image()
    )


@every_row(
    "data, name, kwargs, told",
    [
        (pictures, "xyz", {}, "poison='xyz' is unknown: choose one of l2c, up, up-class, aa, ap, uap, uhp, urp, tap"),
        (pictures, "ap", {}, "model=None, but poison='ap' attacks a trained network: pass an image classifier"),
        (pictures, "up", {}, "model=None, but poison='up' trains its own network: pass a callable"),
        (pictures, "up", {"model": toy.logits_module()}, "model=Logits, but poison='up' trains its own network"),
        (pictures, "ap", {"model": fresh}, "attacks a trained network"),
        (pictures, "ap", {"model": toy.logits_module()}, "the normalisation of the images is unknown"),
        (pictures, "ap", {"model": toy.Logits(classes=2), **HALF}, "model knows 2 classes, the data set has 4"),
        (lambda: pictures(grey=True), "ap", {"model": toy.logits_module(), "image_mean": [0.5], "image_std": [0.5]},
         "model does not take images of shape (1, 8, 8)"),
        (pictures, "urp", {"norm": "l3"}, "norm='l3' is unknown: choose one of linf, l2, l1"),
        (pictures, "urp", {"eps": 0}, "eps=0 must be positive"),
        (pictures, "urp", {"eps": "-8/255"}, "eps=-8/255 must be positive"),
        (pictures, "urp", {"eps": 8}, "give 8/255 if you mean levels of 0 to 255"),
        (pictures, "urp", {"eps": 128, "norm": "l2"}, "divide it by 255"),
        (pictures, "urp", {"eps": "big"}, "eps='big' is no finite number"),
        (pictures, "urp", {"steps": 3}, "steps=3 is no setting of poison='urp': choose from none"),
        (pictures, "up", {"model": fresh, **HALF, "stops": 3}, "choose from class_wise, steps, step_size"),
        (pictures, "up", {"model": fresh, **HALF, "max_rounds": "many"}, "max_rounds='many' is of the wrong kind"),
        (pictures, "up", {"model": fresh, **HALF, "max_rounds": 0}, "max_rounds=0 must be at least 1"),
        (pictures, "up", {"model": fresh, **HALF, "stop_error": 2}, "give step_size > 0, stop_error in [0, 1)"),
        (pictures, "urp", {"batch_size": 0}, "batch_size=0 must be at least 1"),
        (mixed, "urp", {}, "'image' has mixed sizes, 8x8 and 9x8 (rows 0 and 2)"),
        (lambda: pictures().remove_columns("image"), "urp", {}, "image_column was not found"),
        (lambda: toy.images(8), "urp", {}, "expected Image"),
        (lambda: pictures().remove_columns("label"), "urp", {}, "label_column is not given"),
        (lambda: poison_images(pictures(), "urp"), "urp", {}, "poisoned already"),
        (lambda: {"train": pictures()}, "urp", {}, "pass one split"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(data, name, kwargs, told):
    with pytest.raises(ValueError) as error:
        poison_images(data(), name, **kwargs)
    assert told in str(error.value) and "\n" not in str(error.value)
