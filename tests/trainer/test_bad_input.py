"""Each mistake gets one line that names the field, the value and the mend."""

import tempfile

import datasets
import numpy as np
import pytest
import torch
from helpers.tables import every_row
from helpers.toy import CLASSES, config, images, logits_module, robust, settings, vit
from transformers import TrainingArguments

from robust_trainer import METHODS, RobustConfig, RobustTrainer

CONFIG = {
    "unknown method": (dict(method="prl_at"), "unknown method 'prl_at': did you mean 'prl-at'.*standard, at, auto, mae"),
    "foreign setting": (dict(method="spl", eps=0.1), "'spl' takes no 'eps'.*it takes: .*noise_rate"),
    "setting without method": (dict(noise_rate=0.1), "noise_rate=0.1 has no effect without a method"),
    "rate of one": (dict(method="prl", noise_rate=1.0), r"noise_rate=1.0 must be in \[0, 1\)"),
    "negative rate": (dict(method="prl", noise_rate=-0.1), r"noise_rate=-0.1 must be in \[0, 1\)"),
    "rate NaN": (dict(method="prl", noise_rate=float("nan")), "noise_rate=nan must be"),
    "negative eps": (dict(method="at", eps=-0.1), "eps=-0.1 must be >= 0"),
    "eps in 0-255": (dict(method="at", eps=8), r"eps=8 looks like the 0-255 scale.*0.03137"),
    "steps of zero": (dict(method="at", steps=0), "steps=0 must be a whole number >= 1"),
    "norm": (dict(method="at", norm="l3"), "norm='l3' is unknown: choose one of linf, l2, l1, hybrid"),
    "schedule": (dict(method="prl", drop_schedule="linear"), "drop_schedule='linear' is unknown: choose one of constant, ramp"),
    "everything dropped": (dict(method="prl", noise_rate=0.6, rate_multiplier=2.0), "would drop every sample"),
    "beta": (dict(method="bootstrap", bootstrap_beta=1.5), "bootstrap_beta=1.5 must be in"),
}


@every_row("case", CONFIG)
def test_settings(tmp_path, case):
    changes, told = CONFIG[case]
    with pytest.raises(ValueError, match=told) as caught:
        config(output_dir=str(tmp_path), **changes)
    assert "\n" not in str(caught.value)


def column(name, values):
    data = images(16).with_format(None)
    return data.remove_columns(name).add_column(name, values) if values is not None else data.remove_columns(name)


def ints(*values):
    return (list(values) + [0] * 16)[:16]


def nan_pixels():
    x = np.asarray(images(16).with_format("numpy")["pixel_values"][:]).copy()
    x[5, 0, 0, 0] = np.nan
    return column("pixel_values", x.tolist()).with_format("torch")


def mixed_sizes():
    rows = [{"pixel_values": torch.zeros(3, 8, 8 + 2 * (i == 3)), "labels": 0} for i in range(16)]
    return rows


DATA = {
    "labels missing": (lambda: column("labels", None).with_format("torch"), "no label column: expected one of"),
    "labels too large": (lambda: column("labels", ints(CLASSES)).with_format("torch"), rf"'labels' is {CLASSES} in training row 0"),
    "labels negative": (lambda: column("labels", ints(0, -1)).with_format("torch"), "'labels' is -1 in training row 1"),
    "labels float": (lambda: column("labels", [0.5] * 16).with_format("torch"), "expected integer class labels"),
    "labels strings": (lambda: column("labels", ["cat"] * 16), "'labels' holds strings.*class_encode_column"),
    "strings in a list": (lambda: [{"pixel_values": torch.zeros(3, 8, 8), "labels": "cat"}] * 16, "class_encode_column"),
    "NaN": (nan_pixels, r"'pixel_values' is NaN or infinite in training rows \[5\]"),
    "mixed sizes": (mixed_sizes, r"'pixel_values' has mixed sizes.*\(3, 8, 8\).*\(3, 8, 10\) \(row 3\)"),
    "empty": (lambda: images(16).select([]), "train_dataset is empty"),
    "more classes than outputs": (
        lambda: images(16).cast_column("labels", datasets.ClassLabel(num_classes=9)), "has 9 classes but the model 4",
    ),
    "not in [0, 1]": (
        lambda: [{"pixel_values": torch.full((3, 8, 8), 100.0), "labels": 0}] * 16,
        r"inputs span \[50.5, 50.5\].*expected \[0, 1\]",
    ),
}  # fmt: skip


@every_row("case", DATA)
def test_data(tmp_path, case):
    make, told = DATA[case]
    trainer = robust(tmp_path, vit(), make(), method="prl-at", per_device_train_batch_size=16)
    weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=told) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, weights[k]) for k, v in trainer.model.state_dict().items())


def test_bare_module_with_too_large_a_label(tmp_path):
    with pytest.raises(ValueError, match="label 9 in the batch, the model has 4 outputs"):
        robust(tmp_path, logits_module(), column("labels", ints(9)).with_format("torch"), method="prl").train()


def test_image_method_without_mean_and_std(tmp_path):
    args = RobustConfig(**settings(tmp_path, method="prl-at"))
    with pytest.raises(ValueError, match="processing_class=<the image processor>, or RobustConfig"):
        RobustTrainer(vit(), args, train_dataset=images()).train()
    for changes, told in (
        (dict(image_mean=[0.5] * 3), "image_mean=.*image_std=None belong together"),
        (dict(image_mean=[0.5] * 3, image_std=[0.5]), "image_mean has 3 values and image_std 1"),
        (dict(image_mean=[0.5] * 2, image_std=[0.5] * 2), "image_mean has 2 values but the inputs have shape"),
        (dict(image_mean=[0.5] * 3, image_std=[0.5, 0.0, 1.0]), "must be positive"),
    ):
        args = RobustConfig(**settings(tmp_path, method="prl-at", **changes))
        with pytest.raises(ValueError, match=told):
            RobustTrainer(vit(), args, train_dataset=images()).train()


def test_method_named_twice(tmp_path):
    with pytest.raises(ValueError, match="give one of them"):
        RobustTrainer(vit(), RobustConfig(**settings(tmp_path, method="prl")), train_dataset=images(), recipe=METHODS["spl"]())
    with pytest.raises(ValueError, match="unknown method"):
        RobustTrainer(vit(), TrainingArguments(**settings(tmp_path)), train_dataset=images(), recipe="nothing")


def test_output_folder_not_writable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output_dir=.*is not writable"):
        RobustConfig(output_dir=str(tmp_path / "file" / "run"), method="prl")

    def denied(**settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    with pytest.raises(ValueError, match="output_dir=.*is not writable"):
        RobustConfig(output_dir=str(tmp_path / "new"), method="prl")


def test_a_batch_of_which_nothing_is_kept_changes_no_weight(tmp_path):
    """Memory may distrust a whole batch: the step is then empty, not NaN."""
    trainer = robust(
        tmp_path, vit(), images(8), method="prl-at-memory", per_device_train_batch_size=1, num_train_epochs=3, optim="sgd",
        noise_rate=0.5, rate_multiplier=1.0, drop_schedule="constant", memory_after_epochs=1,
    )  # fmt: skip
    trainer.train()
    empty = [r for r in trainer.state.log_history if r.get("kept_fraction") == 0.0]
    assert empty and all(r["loss"] == 0.0 and r["grad_norm"] == 0.0 for r in empty)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
