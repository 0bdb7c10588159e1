"""Tiny models and data: real code paths in milliseconds."""

from __future__ import annotations

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.methods.settings import FIELDS, SETTINGS
from robust_trainer.methods.table import get_method

CLASSES, CHANNELS, SIZE = 4, 3, 8


class Logits(nn.Module):
    """A torch module that returns logits and knows nothing of labels; no BatchNorm, no dropout."""

    def __init__(self, classes: int = CLASSES, channels: int = CHANNELS):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.head = nn.Linear(6 * 4, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = nn.functional.adaptive_avg_pool2d(self.conv(pixel_values).relu(), 2)
        return self.head(hidden.flatten(1))


def vit(dropout: float = 0.0, **kwargs) -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=SIZE, patch_size=4,
        num_channels=CHANNELS, num_labels=CLASSES, hidden_dropout_prob=dropout, **kwargs,
    )  # fmt: skip
    return ViTForImageClassification(config)


def resnet() -> ResNetForImageClassification:
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=CHANNELS, embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic",
        num_labels=CLASSES, downsample_in_first_stage=False,
    )  # fmt: skip
    return ResNetForImageClassification(config)


def logits_module() -> Logits:
    torch.manual_seed(0)
    return Logits()


def images(n: int = 48, seed: int = 0, noisy: float = 0.25, shuffled: bool = False) -> datasets.Dataset:
    """Class-dependent blobs with a share of wrong labels, or all at random; pixel values normalised with mean 0.5 and std 0.5."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, CLASSES, n)
    x = rng.uniform(0.3, 0.7, (n, CHANNELS, SIZE, SIZE)).astype(np.float32)
    for i, c in enumerate(clean):
        x[i, c % CHANNELS, (c // 2) * 4 : (c // 2) * 4 + 4] += 0.25
    flipped = rng.permutation(n) < round(noisy * n)
    labels = np.where(flipped, (clean + 1) % CLASSES, clean)
    if shuffled:
        labels = rng.integers(0, CLASSES, n)
    rows = {
        "pixel_values": ((x - 0.5) / 0.5),
        "labels": labels,
        "is_corrupted": flipped,
        "clean_label": clean,
    }
    data = datasets.Dataset.from_dict(rows)
    return data.with_format("torch")


def settings(tmp_path, **kwargs) -> dict:
    base = dict(
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_train_epochs=2, learning_rate=1e-2, logging_steps=1,
        report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True, logging_nan_inf_filter=False, seed=3,
        dataloader_pin_memory=False, lr_scheduler_type="constant",
    )  # fmt: skip
    return {**base, **kwargs}


NORMALISATION = dict(image_mean=[0.5] * CHANNELS, image_std=[0.5] * CHANNELS)


def _papers_numbers(given: dict) -> dict:
    """What a run would else fit to its length, and the rate that it would else estimate, as the method's row has them: named."""
    try:
        row = METHODS.get(given.get("method")) or get_method(given.get("method"))
    except ValueError:
        return {}
    if given.get("rule") is not None or "method_settings" in given:
        return {}
    ramp = "drop_ramp_epochs" if row.settings.get("drop_ramp_steps") is None else "drop_ramp_steps"
    ramps = () if {"drop_ramp_epochs", "drop_ramp_steps"} & given.keys() else (ramp,)
    names = ("noise_rate", "warmup_epochs", "lambda_ramp_epochs", *ramps)
    return {name: row.settings[name] for name in names if name in row.settings}


def config(**kwargs) -> RobustConfig:
    """A RobustConfig of fields and of the method's other settings, told apart."""
    kwargs = {**_papers_numbers(kwargs), **kwargs}
    other = {name: kwargs.pop(name) for name in [*kwargs] if name in SETTINGS and name not in FIELDS}
    return RobustConfig(**kwargs, method_settings=other or None)


def robust(tmp_path, model=None, data=None, trainer: dict | None = None, **kwargs) -> RobustTrainer:
    args = config(**{**settings(tmp_path), **NORMALISATION, **kwargs})
    return RobustTrainer(
        model=logits_module() if model is None else model, args=args, train_dataset=images() if data is None else data,
        **(trainer or {}),
    )  # fmt: skip


def curve(trainer) -> list[tuple[float, float]]:
    """(loss, gradient norm) of every logged step."""
    return [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]


def batches(trainer):
    """The batches that the trainer sees, in its order."""
    seen = []
    own = trainer.training_step

    def spy(model, inputs, *args, **kwargs):
        seen.append({k: v.clone() for k, v in inputs.items()})
        return own(model, inputs, *args, **kwargs)

    trainer.training_step = spy
    return seen
