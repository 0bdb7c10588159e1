"""Triggers that are trained: what their papers' formulas say, that a stopped training goes on, and that files give them back."""

import datasets
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from helpers.tables import every_row
from PIL import Image
from torch import nn

from robust_trainer.corruptions import (
    AllToOne,
    CleanLabel,
    InputAwareTrigger,
    MultiTarget,
    OptimisedPatternTrigger,
    PatchTrigger,
    load_trigger,
    network_trigger,
    poison_with_network,
    save_trigger,
    trigger_all,
)
from robust_trainer.corruptions.backdoors import hidden_string, input_aware
from robust_trainer.corruptions.backdoors.hidden_string import Decoder, train_ssba
from robust_trainer.corruptions.backdoors.input_aware import Painter, diversity, train_input_aware
from robust_trainer.corruptions.backdoors.narcissus import train_narcissus
from robust_trainer.corruptions.poisons.task import Task
from robust_trainer.perturbations.norms import Ball

SIXTEEN = Ball("linf", 16 / 255)
SPACE = {"image_mean": [0.0], "image_std": [1.0]}
QUICK = {
    "narcissus": {"rounds": 3},
    "input-aware": {"epochs": 2, "mask_epochs": 2, "width": 4},
    "ssba": {"epochs": 2, "width": 4},
}


class Linear(nn.Module):
    """Logits W x of [0, 1] pixels, a known gradient."""

    def __init__(self, classes=4, numbers=8 * 8 * 3, seed=0):
        super().__init__()
        self.layer = nn.Linear(numbers, classes, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(classes, numbers, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x):
        return self.layer(x.flatten(1))


def pictures(n=40, side=8, low=90, high=160):
    rng = np.random.default_rng(0)
    shown = [Image.fromarray(rng.integers(low, high, (side, side, 3), dtype=np.uint8)) for _ in range(n)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
    return datasets.Dataset.from_dict({"image": shown, "label": (np.arange(n) % 4).tolist()}, features=features)


def levels(data):
    return np.stack([np.asarray(image) for image in data["image"]]).astype(int)


def task_of(data, ball=SIXTEEN, targets=(0,) * 4, **more):
    images = torch.from_numpy(levels(data)).permute(0, 3, 1, 2).float() / 255
    return Task(images, torch.tensor(data["label"][:]), 4, ball, targets=targets, batch_size=16, **more)


def given(attack):
    model = {} if attack == "ssba" else {"model": Linear()}
    return {"attack": attack, **model, **(SPACE if model else {}), **QUICK[attack]}


def test_narcissus_finds_the_pattern_that_raises_the_target_the_most():
    # of two classes the loss falls along w_1 - w_0 in every image, so the best pattern of an l_inf ball is known
    model, data = Linear(2), pictures()
    data = data.map(lambda row: {"label": row["label"] % 2})
    with torch.no_grad():
        model.layer.weight.mul_(0.01)
    task = task_of(data, targets=(1, 1), model=model)
    found = train_narcissus(task, rounds=60)
    best = (model.layer.weight[1] - model.layer.weight[0]).detach().view(3, 8, 8).permute(1, 2, 0).sign().numpy() * 16 / 255
    assert np.allclose(found.pattern, best, atol=1e-6) and found.magnify == 3
    smaller = train_narcissus(task_of(data, Ball("l2", 0.5), (1, 1), model=model), rounds=20, lr=0.05)
    assert np.linalg.norm(smaller.pattern) == pytest.approx(0.5, abs=1e-4)


def test_narcissus_is_added_in_training_and_magnified_at_test_time():
    pattern = np.random.default_rng(1).uniform(-0.06, 0.06, (8, 8, 3)).astype(np.float32)
    trigger = OptimisedPatternTrigger(pattern, 2.0)
    x = np.random.default_rng(2).random((8, 8, 3))
    assert np.allclose(trigger.at(3, training=True)(x), np.clip(x + pattern, 0, 1), atol=1e-6)
    assert np.allclose(trigger.at(3, training=False)(x), np.clip(x + 2 * pattern, 0, 1), atol=1e-6)


def test_a_warmed_up_copy_learns_the_target_class_and_the_model_stays():
    data, model = pictures(), Linear()
    before = model.layer.weight.clone()
    plain, warm = (train_narcissus(task_of(data, model=model), rounds=3, warmup=w, warmup_lr=0.1) for w in (0, 3))
    assert torch.equal(model.layer.weight, before) and not np.array_equal(plain.pattern, warm.pattern)


def test_input_aware_paints_where_its_mask_is_and_covers_have_another_image_s_trigger():
    torch.manual_seed(0)
    painter = Painter(3, 4).eval()
    x, o = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        p, m = painter.pattern(o), painter.mask(o)
        assert torch.allclose(painter(x, o), x * (1 - m) + p * m, atol=1e-6)
        raw = painter.mask_net(o * 2 - 1).tanh() / 2 + 0.5
        assert m.shape == (2, 1, 8, 8) and torch.allclose(m, (20 * raw - 10).tanh() / 2 + 0.5)
        bank = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
        trigger = InputAwareTrigger(painter, bank, seed=5)
        image = x[0].permute(1, 2, 0).double().numpy()
        own = painter(x[:1], x[:1])[0].permute(1, 2, 0).numpy()
        assert np.allclose(trigger(image), own, atol=1e-5) and np.allclose(trigger.at(7, training=True)(image), own, atol=1e-5)
        others = [painter(x[:1], torch.from_numpy(b / 255.0).permute(2, 0, 1)[None].float()) for b in bank]
        covers = {r: trigger.at(r, training=True, cover=True)(image) for r in range(20)}
        for cover in covers.values():
            assert sum(np.allclose(cover, other[0].permute(1, 2, 0).numpy(), atol=1e-5) for other in others) == 1
        assert len({cover.tobytes() for cover in covers.values()}) == 3


def test_diversity_is_the_paper_s_quotient():
    x, o, a, b = (torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(s)) for s in range(4))
    by_hand = np.mean([
        float((((x[i] - o[i]) ** 2).mean()).sqrt() / ((((a[i] - b[i]) ** 2).mean()).sqrt() + 1e-7)) for i in range(5)
    ])  # fmt: skip
    assert float(diversity(x, o, a, b)) == pytest.approx(by_hand, rel=1e-4)


def test_input_aware_masks_are_small_and_differ():
    task = task_of(pictures(32), model=Linear(), targets=(1, 2, 3, 0))
    trigger = train_input_aware(task, epochs=1, mask_epochs=60, width=4, lr=0.01)
    with torch.no_grad():
        masks = trigger.painter.mask(task.images)
    assert masks.mean() < 0.15 and masks.max() > 0.5
    assert masks.std(0).max() > 0.2  # and another one for each image


def test_ssba_hides_a_string_that_can_be_read_within_the_ball(monkeypatch):
    decoders = []

    class Kept(Decoder):
        def __init__(self, *args):
            super().__init__(*args)
            decoders.append(self)

    monkeypatch.setattr(hidden_string, "Decoder", Kept)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(48, 3, 1, 1, generator=generator) * 0.4 + 0.3 + 0.1 * torch.rand(48, 3, 8, 8, generator=generator)
    task = Task(images, torch.zeros(48, dtype=torch.long), 4, Ball("linf", 32 / 255), batch_size=16)
    trigger = train_ssba(task, epochs=45, bits=4, image_weight=0.0, lr=0.005)
    stamped = torch.stack([torch.from_numpy(trigger(x.permute(1, 2, 0).numpy())).permute(2, 0, 1) for x in images])
    with torch.no_grad():
        read = (decoders[0](stamped.float()) > 0).float()
        strings = torch.randint(0, 2, (48, 4), generator=generator).float()
        others = (decoders[0](images + trigger.encoder(images, strings)) > 0).float()
    assert (read == trigger.string()).float().mean() > 0.95 and (others == strings).float().mean() > 0.95
    moved = stamped - task.images
    assert moved.abs().max() <= 32 / 255 + 1e-5 and (moved[0] - moved[1]).abs().max() > 1 / 255  # of each image its own


@every_row("attack", list(QUICK))
def test_a_trained_trigger_poisons_tests_and_comes_back_from_its_folder(attack, tmp_path):
    data = pictures()
    rule = CleanLabel(2) if attack == "narcissus" else AllToOne(2)
    made = poison_with_network(data, rate=0.2, label_rule=rule, seed=3, folder=tmp_path, **given(attack))
    hit = np.asarray(made["is_corrupted"][:])
    assert hit.sum() == 8 and set(np.asarray(made["label"][:])[hit]) == {2}
    assert ("is_cover" in made.column_names) == (attack == "input-aware")
    clear = ~hit & ~np.asarray(made["is_cover"][:]) if attack == "input-aware" else ~hit
    assert (levels(made)[clear] == levels(data)[clear]).all() and (levels(made)[hit] != levels(data)[hit]).any()
    trigger = load_trigger(tmp_path)
    again = network_trigger(data, rate=0.2, label_rule=rule, seed=3, **given(attack))
    shown = [trigger_all(data, t, label_rule=rule) for t in (trigger, again)]
    assert (levels(shown[0]) == levels(shown[1])).all() and set(shown[0]["attack_target"]) == {2}
    assert trigger.describe() == again.describe() and Hasher.hash(trigger) == Hasher.hash(load_trigger(tmp_path))
    for row, training, cover in ((0, True, False), (5, True, True), (5, False, False)):
        first, second = (t.at(row, training=training, cover=cover)(data[row]["image"]) for t in (trigger, again))
        assert np.array_equal(np.asarray(first), np.asarray(second))
    with pytest.raises(ValueError, match="has 1 channels, the trigger was trained on images of 3: convert it"):
        trigger(data[0]["image"].convert("L"))


@every_row("attack", list(QUICK))
def test_a_stopped_training_goes_on(attack, tmp_path, monkeypatch):
    settings = {**given(attack), "rate": 0.1, "seed": 1}
    whole = network_trigger(pictures(), **settings)
    from_work = input_aware.kept_epochs

    def stopped(task, name, epochs, *parts):
        for epoch in from_work(task, name, epochs, *parts):
            if epoch == 1 and not name.endswith("mask"):
                raise KeyboardInterrupt
            yield epoch

    with monkeypatch.context() as patch:
        for module in ("narcissus", "input_aware", "hidden_string"):
            patch.setattr(f"robust_trainer.corruptions.backdoors.{module}.kept_epochs", stopped)
        with pytest.raises(KeyboardInterrupt):
            network_trigger(pictures(), folder=tmp_path, **settings)
    again = network_trigger(pictures(), folder=tmp_path, **settings)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    with pytest.raises(ValueError, match="give the same settings, or another folder"):
        network_trigger(pictures(), folder=tmp_path, **{**settings, "seed": 2})


def test_damaged_and_missing_files_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="holds no trigger.safetensors"):
        load_trigger(tmp_path)
    with pytest.raises(ValueError, match="holds nothing that was trained"):
        save_trigger(PatchTrigger(), tmp_path)
    pattern = OptimisedPatternTrigger(np.zeros((4, 4, 1), dtype=np.float32))
    path = save_trigger(pattern, tmp_path)
    with pytest.raises(ValueError, match="has 5x4 pixels, the trigger was trained on images of 4x4"):
        load_trigger(path)(np.zeros((5, 4, 1)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is damaged"):
        load_trigger(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        load_trigger(path)


@every_row(
    "attack, more, told",
    [
        ("narcissus", {"label_rule": MultiTarget()}, "narcissus has one target class"),
        ("narcissus", {"rounds": 0}, "rounds=0 must be at least 1"),
        ("narcissus", {"magnify": 0.0}, "magnify=0.0 must be above 0"),
        ("narcissus", {"trigger": PatchTrigger()}, "trains its own: leave it out"),
        ("narcissus", {"model": None}, "needs a trained network"),
        ("input-aware", {"eps": "8/255"}, "eps='8/255' has no effect with 'input-aware'"),
        ("input-aware", {"norm": "l2"}, "norm='l2' has no effect with 'input-aware'"),
        ("input-aware", {"label_rule": "untargeted"}, "input-aware needs a label for each triggered image"),
        ("input-aware", {"share": 0.6}, "share=0.6 is out of range"),
        ("ssba", {"model": Linear()}, "needs none: leave it out"),
        ("ssba", {"bits": 0}, "bits=0 must be at least 1"),
        ("ssba", {"eps": 16}, "give 16/255"),
        ("ssba", {"lr": -1.0}, "lr=-1.0 must be above 0"),
    ],
)
def test_mistakes_are_one_line(attack, more, told):
    with pytest.raises(ValueError) as raised:
        network_trigger(pictures(), **{"rate": 0.1, **given(attack), **more})
    assert told in str(raised.value) and "\n" not in str(raised.value)
