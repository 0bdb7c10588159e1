"""Backdoors that need a trained network: which rows are perturbed, how far, towards what, and that a stopped call goes on."""

import datasets
import numpy as np
import pytest
import torch
from helpers import toy
from helpers.tables import every_row
from PIL import Image

from robust_trainer.corruptions import (
    NETWORK_BACKDOORS,
    AdaptivePatchTrigger,
    CleanLabel,
    PatchesTrigger,
    PatchTrigger,
    poison,
    poison_with_network,
    trigger_all,
)
from robust_trainer.corruptions.backdoors import with_network

HALF = {"image_mean": [0.5], "image_std": [0.5]}
FAST = {"rate": 0.15, "steps": 5, "eps": "32/255", **HALF}


def pictures(n=40):
    rng = np.random.default_rng(0)
    shown = [Image.fromarray(rng.integers(90, 160, (8, 8, 3), dtype=np.uint8)) for _ in range(n)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
    return datasets.Dataset.from_dict({"image": shown, "label": (np.arange(n) % 4).tolist()}, features=features)


def levels(data):
    return np.stack([np.asarray(image) for image in data["image"]]).astype(int)


def test_label_consistent_perturbs_rows_of_the_target_class_within_the_ball_and_stamps_them():
    model, clean = toy.logits_module(), pictures()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    made = poison_with_network(clean, "label-consistent", model, trigger=PatchesTrigger(2), seed=3, **FAST)
    plain = poison(clean, trigger=PatchesTrigger(2), rate=0.15, label_rule=CleanLabel(), seed=3)
    hit = np.asarray(made["is_corrupted"][:])
    assert made["is_corrupted"][:] == plain["is_corrupted"][:] and hit.sum() == 6 and made["label"][:] == clean["label"][:]
    assert set(np.asarray(clean["label"][:])[hit]) == {0} and made.column_names == plain.column_names
    moved = np.abs(levels(made) - levels(plain))
    assert (moved[~hit] == 0).all() and moved.max() == 32 and (moved[hit].reshape(6, -1).max(axis=1) > 16).all()
    corners = np.ones((8, 8), dtype=bool)
    corners[2:-2] = corners[:, 2:-2] = False
    assert (moved[:, corners] == 0).all()  # the patches lie over the perturbation
    pixels = [torch.from_numpy(levels(d)[hit]).permute(0, 3, 1, 2).float() / 127.5 - 1 for d in (clean, made)]
    labels = torch.zeros(6, dtype=torch.long)
    losses = [torch.nn.functional.cross_entropy(model(x), labels, reduction="none") for x in pixels]
    assert (losses[1] > losses[0]).float().mean() >= 0.8  # harder to recognise
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training == toy.logits_module().training
    test = trigger_all(clean, PatchesTrigger(2), label_rule=CleanLabel())
    assert (levels(test) == np.stack([np.asarray(PatchesTrigger(2)(i)) for i in clean["image"]])).all()


def test_a_stopped_call_goes_on_and_other_settings_are_refused(tmp_path, monkeypatch):
    given = {**FAST, "batch_size": 2, "folder": tmp_path}
    whole = poison_with_network(pictures(), "label-consistent", toy.logits_module(), **{**given, "folder": None})
    calls = []

    def stopped(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attack(self, *args)

    attack = with_network.PGD.__call__
    with monkeypatch.context() as patch:
        patch.setattr(with_network.PGD, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            poison_with_network(pictures(), "label-consistent", toy.logits_module(), **given)
        again = poison_with_network(pictures(), "label-consistent", toy.logits_module(), **given)
    assert len(calls) == 4  # three batches, the third one twice
    assert (levels(again) == levels(whole)).all()
    with pytest.raises(ValueError, match="begun with settings={'steps': 5}, now {'steps': 6}"):
        poison_with_network(pictures(), "label-consistent", toy.logits_module(), **{**given, "steps": 6})
    with pytest.raises(ValueError, match="give the same settings, or another folder"):
        poison_with_network(pictures(), "label-consistent", toy.logits_module(), seed=1, **given)


def test_covers_and_an_empty_choice():
    made = poison_with_network(
        pictures(), "label-consistent", toy.logits_module(), trigger=AdaptivePatchTrigger(2), label_rule="multi-target", **FAST
    )
    plain = poison(pictures(), trigger=AdaptivePatchTrigger(2), rate=0.15)
    hit, cover = np.asarray(made["is_corrupted"][:]), np.asarray(made["is_cover"][:])
    assert hit.sum() == cover.sum() == 6 and (levels(made)[cover] == levels(plain)[cover]).all()  # covers are not perturbed
    none = poison_with_network(pictures(), "label-consistent", toy.logits_module(), **{**FAST, "rate": 0.0})
    assert not any(none["is_corrupted"]) and (levels(none) == levels(pictures())).all()


@every_row(
    "attack, given, told",
    [
        ("narcisus", {}, "attack='narcisus' is unknown: choose one of label-consistent"),
        ("label-consistent", {"model": "resnet"}, "needs a trained network"),
        ("label-consistent", {"eps": 16}, "give 16/255"),
        ("label-consistent", {"norm": "l0"}, "norm='l0'"),
        ("label-consistent", {"stepz": 3}, "stepz=3 is no setting"),
        ("label-consistent", {"step_share": 0.0}, "step_share=0.0"),
        ("label-consistent", {"steps": 0}, "steps=0"),
        ("label-consistent", {"rate": 0.5}, "at most 0.25"),
        ("label-consistent", {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_mistakes_are_one_line(attack, given, told):
    given = {"model": toy.logits_module(), **FAST, **given}
    with pytest.raises(ValueError) as caught:
        poison_with_network(pictures(), attack, **given)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_rows_of_the_table_are_whole():
    for name, row in NETWORK_BACKDOORS.items():
        assert row.name == name and row.source and callable(row.craft()) and row.ball("linf", None).eps > 0
        assert row.trigger is None or isinstance(row.trigger(), PatchesTrigger | PatchTrigger)
