"""Path lengths and accuracy class by class: against one image at a time, closed forms and exact robust accuracy."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from helpers.tables import every_row
from PIL import Image as Pillow
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from robust_trainer.evaluation import boundary_paths as rooms
from robust_trainer.evaluation.boundary_paths import NO_PATH, load_paths, log_odds, path_lengths
from robust_trainer.evaluation.per_class import class_robustness

PIXELS = {"image_mean": [0.0], "image_std": [1.0]}


def pictures(n: int = 40, classes: int = 3, side: int = 4, seed: int = 0, low: int = 90) -> Dataset:
    """Grey pictures of random levels from low to 255 - low, with labels."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(low, 256 - low, (n, side, side)).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[f"c{i}" for i in range(classes)])})
    rows = {"image": [Pillow.fromarray(x) for x in levels], "label": (np.arange(n) % classes).tolist()}
    return Dataset.from_dict(rows, features=features)


def as_pixels(data: Dataset) -> torch.Tensor:
    return torch.stack([torch.tensor(np.asarray(x), dtype=torch.float32) for x in data["image"][:]]).unsqueeze(1) / 255


class Linear(nn.Module):
    def __init__(self, classes: int = 3, side: int = 4, scale: float = 1.0, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(side * side, classes)
        with torch.no_grad():
            self.head.weight.mul_(scale)
            self.head.bias.copy_(-self.head.weight.sum(1) / 2)  # grey is on every boundary

    def forward(self, pixel_values):
        return self.head(pixel_values.flatten(1))


class Curved(nn.Module):
    def __init__(self, classes: int = 3, side: int = 4):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 24), nn.Tanh(), nn.Linear(24, classes))

    def forward(self, pixel_values):
        return self.net((pixel_values - 0.5) * 6)


def one_by_one(model, x, y, target, size, norm, most, clip):
    """Crafting sec. 4.10.1 in words, in float64, with the cross-entropy itself."""
    model = model.double()
    out = []
    for i in range(len(x)):
        image, steps = x[i : i + 1].double(), 0
        while True:
            image = image.detach().requires_grad_(True)
            logits = model(image)
            there = int(logits.argmax()) != int(y[i]) if target is None else int(logits.argmax()) == int(target[i])
            if there or steps > most:
                break
            aim = y[i : i + 1] if target is None else target[i : i + 1]
            loss = nn.functional.cross_entropy(logits, aim) * (1 if target is None else -1)
            (grad,) = torch.autograd.grad(loss, image)
            image = image + size * (grad.sign() if norm == "linf" else grad / grad.norm())
            image = image.clamp(0, 1) if clip else image
            steps += 1
        out.append(steps)
    model.float()
    return np.minimum(out, most + 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("aim", [None, "cyclic", 2])
@pytest.mark.parametrize("clip", [True, False])
def test_one_image_at_a_time(norm, aim, clip):
    data, model = pictures(low=0), Curved()
    size = 0.013 if norm == "linf" else 0.05
    found = path_lengths(model, data, target=aim, norm=norm, step_size=size, max_steps=12, clip=clip, batch_size=7, **PIXELS)
    y = torch.tensor(data["label"][:])
    target = None if aim is None else (y + 1) % 3 if aim == "cyclic" else torch.full_like(y, 2)
    wanted = one_by_one(model, as_pixels(data), y, target, size, norm, 12, clip)
    if target is not None:
        wanted[(target == y).numpy()] = NO_PATH
    np.testing.assert_array_equal(found.steps, wanted)
    assert len(set(wanted.tolist())) > 4 and (wanted == 0).any()


def test_linear_model_of_two_classes_is_a_closed_form():
    """The first n with n * step * ||w||_1 > margin."""
    data, model = pictures(classes=2), Linear(classes=2)
    x, y = as_pixels(data).flatten(1).double(), torch.tensor(data["label"][:])
    w = (model.head.weight[1] - model.head.weight[0]).double()
    margin = (x @ w + (model.head.bias[1] - model.head.bias[0])) * (2 * y - 1)
    found = path_lengths(model, data, step_size=0.001, clip=False, max_steps=500, **PIXELS)
    wanted = torch.where(margin < 0, 0, (margin / (0.001 * w.abs().sum())).floor() + 1).long().numpy()
    np.testing.assert_array_equal(found.steps, wanted)
    np.testing.assert_allclose(found.margin, margin.detach().numpy(), atol=1e-5)
    assert found.reached.all()


def test_confident_models_do_not_lose_the_gradient():
    data = pictures(classes=2)
    plain, sure = (path_lengths(Linear(classes=2, scale=s), data, **PIXELS) for s in (1.0, 1e4))
    np.testing.assert_array_equal(plain.steps, sure.steps)
    assert sure.reached.all() and sure.steps.max() > 1


def test_log_odds_has_the_direction_of_the_cross_entropy():
    torch.manual_seed(0)
    logits = torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
    y, t = torch.randint(0, 5, (20,)), torch.randint(0, 5, (20,))
    for value, loss in (
        (log_odds(logits, y), nn.functional.cross_entropy(logits, y, reduction="none")),
        (log_odds(logits, y, t), -nn.functional.cross_entropy(logits, t, reduction="none")),
    ):
        a = torch.autograd.grad(value.sum(), logits, retain_graph=True)[0]
        b = torch.autograd.grad(loss.sum(), logits)[0]
        torch.testing.assert_close(a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True))


def test_a_model_is_left_as_it_was_and_its_mode_does_not_matter():
    data = pictures()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)).train()
    model[1].running_mean.fill_(0.3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    one = path_lengths(model, data, **PIXELS)
    assert model.training and all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    two = path_lengths(model.eval(), data, batch_size=3, **PIXELS)
    np.testing.assert_array_equal(one.steps, two.steps)


def test_a_processor_prepares_the_images():
    """A ViT of other size and normalisation: pixels are counted at its size."""
    data = pictures(12)
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
                       num_channels=3, num_labels=3)  # fmt: skip
    model = ViTForImageClassification(config)
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    found = path_lengths(model, data, processing_class=processor, max_steps=60, step_size=0.05)
    rows = processor(images=[p.convert("RGB") for p in data["image"][:]], return_tensors="pt")["pixel_values"]
    y = torch.tensor(data["label"][:])
    with torch.no_grad():
        logits = model.eval()(rows).logits
    mine = logits.gather(1, y[:, None])[:, 0]
    rest = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    np.testing.assert_allclose(found.margin, (mine - rest).numpy(), atol=1e-5)
    assert ((found.steps == 0) == (logits.argmax(1) != y).numpy()).all()


# ---- kept, resumed, written ---------------------------------------------------------------------------------------------


def test_a_stopped_measurement_goes_on(tmp_path, monkeypatch):
    data, model = pictures(), Curved()
    whole = path_lengths(model, data, batch_size=8, **PIXELS)
    real, calls = rooms.walk_out, []

    def stops(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(rooms, "walk_out", stops)
    with pytest.raises(KeyboardInterrupt):
        path_lengths(model, data, batch_size=8, folder=tmp_path, **PIXELS)
    calls.clear()
    monkeypatch.setattr(rooms, "walk_out", lambda *given: calls.append(1) or real(*given))
    again = path_lengths(model, data, batch_size=8, folder=tmp_path, **PIXELS)
    assert len(calls) == 3  # five batches, two were there
    for name in ("steps", "margin", "ended", "labels", "targets"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))
    for changed in ({"step_size": 0.02}, {"target": "cyclic"}, {"norm": "l2"}):
        with pytest.raises(ValueError, match="begun with") as error:
            path_lengths(model, data, **{"batch_size": 8, **PIXELS, **changed}, folder=tmp_path)
        assert "\n" not in str(error.value) and "path lengths" in str(error.value)
    with pytest.raises(ValueError, match="begun with"):
        path_lengths(model, pictures(seed=1), batch_size=8, folder=tmp_path, **PIXELS)
    with torch.no_grad():
        model.net[1].weight.add_(1e-3)
    with pytest.raises(ValueError, match="begun with"):
        path_lengths(model, data, batch_size=8, folder=tmp_path, **PIXELS)


def test_order_buckets_and_files(tmp_path):
    data, model = pictures(60), Curved()
    found = path_lengths(model, data, target=2, max_steps=20, **PIXELS)
    order = found.order
    assert sorted(order) == np.flatnonzero(np.asarray(data["label"][:]) != 2).tolist()
    pairs = list(zip(found.steps[order], found.margin[order]))
    assert pairs == sorted(pairs)
    np.testing.assert_array_equal(found.closest(3), order[:3])
    np.testing.assert_array_equal(found.farthest(3), order[::-1][:3])
    assert (found.labels[found.closest(5, 1)] == 1).all() and (found.labels[found.farthest(5, 1)] == 1).all()
    for by in ("samples", "steps"):
        parts = found.buckets(4, 1, by)
        np.testing.assert_array_equal(np.concatenate(parts), found.closest(60, 1))
        ends = [(found.steps[p].min(), found.steps[p].max()) for p in parts if len(p)]
        assert all(a[1] <= b[0] for a, b in zip(ends, ends[1:]))
    assert [len(p) for p in found.buckets(4, 1)] == [5, 5, 5, 5]
    wide = found.buckets(4, 1, "steps")
    step = found.steps[found.labels == 1]
    width = (step.max() + 1 - step.min()) / 4
    for i, rows in enumerate(wide):
        assert all(step.min() + i * width <= s < step.min() + (i + 1) * width for s in found.steps[rows])
    found.to_parquet(tmp_path / "paths.parquet")
    read = load_paths(tmp_path / "paths.parquet")
    for name in ("steps", "margin", "ended", "labels", "targets"):
        np.testing.assert_array_equal(getattr(found, name), getattr(read, name))
    assert (read.step_size, read.norm, read.max_steps, read.class_names) == (0.01, "linf", 20, ("c0", "c1", "c2"))
    found.plot(tmp_path / "paths.png")
    assert Pillow.open(tmp_path / "paths.png").size[0] > 500
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    for path in ("other.parquet", "none.parquet"):
        with pytest.raises(ValueError, match="is no file of path lengths") as error:
            load_paths(tmp_path / path)
        assert "\n" not in str(error.value)


@every_row(
    "settings, told",
    [
        ({"step_size": 0}, "step_size=0"), ({"max_steps": -1}, "max_steps=-1"), ({"batch_size": True}, "batch_size=True"),
        ({"step_size": float("inf")}, "step_size=inf"), ({"max_steps": 2.5}, "max_steps=2.5"), ({"batch_size": 0}, "batch_size=0"),
        ({"norm": "l3"}, "norm='l3'"), ({"target": "next"}, "target='next'"), ({"target": 3}, "target=3"),
        ({"target": "extra"}, "target='extra'"),
        ({"image_mean": None, "image_std": None}, "normalisation"),
        ({"model": Linear(4)}, "the model has 4 classes but the data set 3"),
        ({"model": "x"}, "expected a torch.nn.Module"), ({"label_column": "y"}, "label_column='y'"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(settings, told):
    with pytest.raises(ValueError, match=told) as error:
        path_lengths(**{"model": Linear(), "dataset": pictures(), **PIXELS, **settings})
    assert "\n" not in str(error.value)


# ---- class by class -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm, eps", [("linf", 0.02), ("l2", 0.08)])
def test_linear_model_has_an_exact_robust_accuracy(norm, eps):
    data, model = pictures(120, classes=2), Linear(classes=2)
    x, y = as_pixels(data).flatten(1), torch.tensor(data["label"][:])
    w = (model.head.weight[1] - model.head.weight[0]).detach()
    margin = ((x @ w + model.head.bias[1] - model.head.bias[0]) * (2 * y - 1)).detach()
    reach = eps * (w.abs().sum() if norm == "linf" else w.norm())
    found = class_robustness(model, data, eps, norm=norm, steps=30, batch_size=50, **PIXELS)
    for c in range(2):
        own = y == c
        assert found.n[c] == own.sum()
        assert found.clean[c] == pytest.approx((margin[own] > 0).float().mean().item())
        assert found.untargeted[c] == pytest.approx((margin[own] > reach).float().mean().item())
        assert found.targeted[c] == found.untargeted[c]  # of two classes the other one is the target
    assert 0.05 < found.overall() < found.overall("clean") < 1
    assert found.overall() == pytest.approx((margin > reach).float().mean().item())


def test_targeted_counts_the_target_alone():
    data, model = pictures(90), Linear()
    free = class_robustness(model, data, 0.03, target=1, **PIXELS)
    x, y = as_pixels(data).flatten(1), torch.tensor(data["label"][:])
    w, b = model.head.weight.detach(), model.head.bias.detach()
    assert np.isnan(free.targeted[1]) and (free.targeted[[0, 2]] >= free.untargeted[[0, 2]]).all()
    assert (free.targeted[[0, 2]] > free.untargeted[[0, 2]]).any()
    away = []  # the exact answer is a linear program: is z_1 > z_k for all k somewhere in the cube?
    from scipy.optimize import linprog

    for i in torch.nonzero(y != 1).flatten().tolist():
        others = [k for k in range(3) if k != 1]
        rows = np.stack([np.append((w[k] - w[1]).numpy(), 1.0) for k in others])
        ends = np.array([float(b[1] - b[k]) for k in others])
        box = [(max(0, v - 0.03), min(1, v + 0.03)) for v in x[i].tolist()] + [(None, None)]
        best = linprog(np.append(np.zeros(16), -1.0), rows, ends, bounds=box)
        away.append((int(y[i]), best.x[-1] <= 0))
    for c in (0, 2):
        exact = np.mean([robust for label, robust in away if label == c])
        assert abs(free.targeted[c] - exact) <= 1 / 30 + 1e-9
    heading, rows = free.rows()
    assert len(rows) == 4 and rows[1][-1] == "-" and rows[0][4] == "c1" and len(heading) == len(rows[0])


def test_stronger_attacks_leave_less():
    data, model = pictures(90), Curved()
    weak, strong = (class_robustness(model, data, eps, **PIXELS) for eps in ("2/255", "12/255"))
    assert (strong.untargeted <= weak.untargeted).all() and strong.overall() < weak.overall() <= weak.overall("clean")
    none = class_robustness(model, data, 1e-9, **PIXELS)
    np.testing.assert_array_equal(none.untargeted, none.clean)


def test_an_extra_class_needs_room():
    data = pictures(30)
    with pytest.raises(ValueError, match="the model has 3 classes but the data set 3 and one more for the extra class"):
        class_robustness(Linear(3), data, 0.1, target="extra", **PIXELS)
    found = class_robustness(Linear(4), data, 0.05, target="extra", **PIXELS)
    assert (found.target == 3).all() and found.overall("targeted") < 1
    with pytest.raises(ValueError, match="the model has 5 classes"):
        class_robustness(Linear(5), data, 0.1, **PIXELS)
    for settings, told in (({"eps": 8}, "eps"), ({"eps": 0.1, "steps": 0}, "steps=0"), ({"eps": 0.1, "norm": "l7"}, "norm='l7'")):
        with pytest.raises(ValueError, match=told) as error:
            class_robustness(Linear(), data, **{**PIXELS, **settings})
        assert "\n" not in str(error.value)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["n"] == found.n.tolist() and told["targeted"] == found.targeted.tolist()
    assert told["untargeted_overall"] == found.overall() and told["target"] == [3, 3, 3]
    none = class_robustness(Linear(3), data, 0.05, target=1, **PIXELS).to_dict()
    assert none["targeted"][1] is None
