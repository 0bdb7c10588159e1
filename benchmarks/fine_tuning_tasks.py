"""What the fine-tuning benchmarks train on: five tasks, pretrained networks or from scratch, and how their data are corrupted."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import fine_tuning_networks as networks
import numpy as np
import torch
from fine_tuning_report import CLEAN_ONLY, PLAIN
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel, default_data_collator

from robust_trainer.corruptions import BlendTrigger, PatchTrigger, PixelTrigger, corrupt_labels, poison, trigger_all
from robust_trainer.data.load import load_data

# ---- data -------------------------------------------------------------------------------------------------------------


@dataclass
class Part(Dataset):
    """Rows as the network takes them, with the labels that training sees and the truth, which it does not.

    ``inputs`` are levels (N, channels, H, W) in uint8, normalised when they are read, or a list of token ids.
    """

    inputs: Any
    labels: Tensor
    clean: Tensor = field(repr=False)
    corrupted: Tensor = field(repr=False)
    scale: tuple[float, float] = (0.5, 0.5)
    attack_targets: np.ndarray | None = None
    moved: bool = False  # images are mirrored and shifted by up to an eighth at random, each time anew

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        label = int(self.labels[i])
        if isinstance(self.inputs, Tensor):
            levels = _moved(self.inputs[i]) if self.moved else self.inputs[i]
            return {"pixel_values": (levels.float() / 255 - self.scale[0]) / self.scale[1], "labels": label}
        return {"input_ids": self.inputs[i], "attention_mask": [1] * len(self.inputs[i]), "labels": label}

    def select(self, rows: Tensor) -> Part:
        inputs = self.inputs[rows] if isinstance(self.inputs, Tensor) else [self.inputs[i] for i in rows.tolist()]
        targets = self.attack_targets[rows.numpy()] if self.attack_targets is not None else None
        return replace(
            self, inputs=inputs, labels=self.labels[rows], clean=self.clean[rows], corrupted=self.corrupted[rows],
            attack_targets=targets,
        )  # fmt: skip


def _moved(levels: Tensor) -> Tensor:
    """An image (channels, H, W), mirrored or not, and shifted; what comes in at an edge is the edge's pixel."""
    height, width = levels.shape[1:]
    mirror, down, right = torch.rand(3).tolist()
    rows, columns = ((torch.arange(n) + round((2 * s - 1) * n / 8)).clamp(0, n - 1) for n, s in ((height, down), (width, right)))
    return levels[:, rows][:, :, columns.flip(0) if mirror < 0.5 else columns]


def columns_of(rows: datasets.Dataset) -> dict[str, Any]:
    """The labels of a table and its truth, where a corruption has left one."""
    labels = torch.tensor(rows["label"][:])
    truth: dict[str, Any] = {"clean": labels, "corrupted": torch.zeros(len(labels), dtype=torch.bool), "attack_targets": None}
    if "is_corrupted" in rows.column_names:
        truth |= {"clean": torch.tensor(rows["clean_label"][:]), "corrupted": torch.tensor(rows["is_corrupted"][:])}
    if "attack_target" in rows.column_names:
        truth["attack_targets"] = np.asarray(rows["attack_target"][:])
    return {"labels": labels, **truth}


# ---- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A task of the matrix. ``test`` names the split to test on; ``side``: images are resized to it, 0: as they are."""

    name: str
    folder: str  # in --data_dir; digits need none
    kind: str  # image or text
    network: str
    train_rows: int
    test_rows: int
    epochs: int
    lr: float
    test: str = "test"
    side: int = 0
    classes: int | None = None  # the first so many
    scale: tuple[float, float] = (0.5, 0.5)
    batch_size: int = 32
    moved: bool = False
    weights: str | None = None  # a file in the folder, in the place of the package's


LITE = (networks.LITE_MEAN, networks.LITE_STD)
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("cifar10", "cifar10", "image", "efficientnet-lite0", 1500, 1000, 4, 1e-3, side=64, scale=LITE),
        Task("sst2", "text/sst2", "text", "minilm", 2000, 872, 4, 1e-4, test="validation"),
        Task("clinc150", "text/clinc150", "text", "minilm", 2000, 2310, 8, 3e-4, classes=77),
        Task("digits", "", "image", "small-cnn", 1400, 397, 20, 1e-3),
        Task("mnist", "mnist", "image", "small-cnn", 3000, 5000, 8, 1e-3),
        # for a GPU: what benchmarks/gpu_fine_tuning.sh packs
        Task("gpu-lite0", "", "image", "efficientnet-lite0", 20_000, 2000, 5, 1e-3, side=64, scale=LITE, batch_size=128, moved=True,
             weights="efficientnet-lite0.safetensors"),
        Task("gpu-resnet18", "", "image", "resnet18", 20_000, 2000, 15, 1e-3, batch_size=128, moved=True),
        Task("gpu-preact-resnet18", "", "image", "preact-resnet18", 20_000, 2000, 15, 1e-3, batch_size=128, moved=True),
        Task("gpu-vit", "", "image", "vit", 20_000, 2000, 30, 5e-4, batch_size=128, moved=True),
    )
}  # fmt: skip
#: The matrix; the others are for a GPU.
MATRIX = ("cifar10", "sst2", "clinc150", "digits", "mnist")


@dataclass
class Loaded:
    """A task's data before any corruption: ``train`` holds more rows than a run trains on; ``model`` makes the network.

    Images of ``test`` have the side that the network sees, those of ``train`` and ``test_as_given`` are as the data set has them.
    """

    task: Task
    train: datasets.Dataset
    test: datasets.Dataset
    names: list[str]
    model: Callable[[], PreTrainedModel]
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]]
    test_as_given: datasets.Dataset
    tokenizer: Any = None

    def part(self, rows: datasets.Dataset) -> Part:
        if self.task.kind == "text":
            return Part(self.tokenizer(rows["text"][:], truncation=True, max_length=64)["input_ids"], **columns_of(rows))
        levels = np.stack([np.asarray(picture) for picture in rows["image"]])
        levels = np.moveaxis(levels if levels.ndim == 4 else levels[..., None], -1, 1)
        return Part(torch.from_numpy(np.ascontiguousarray(levels)), scale=self.task.scale, **columns_of(rows))


def load(task: Task, data_dir: str | None, test_rows: int) -> Loaded:
    """Reads a task's data; raises ``SystemExit`` where they are not there."""
    if task.name != "digits" and not data_dir:
        raise SystemExit(f"--data_dir is missing: {task.name} needs one, with {task.folder or '.'}/train.parquet.")
    where = "digits" if task.name == "digits" else os.path.join(data_dir or "", task.folder)
    if task.kind == "text":
        return _load_text(task, where, test_rows)
    try:
        found = load_data(where)
    except ValueError as error:
        raise SystemExit(f"--data_dir {data_dir}: {error}") from None
    names = found["train"].features["label"].names
    train, test = found["train"], _drawn(found["test"], test_rows, 0)
    first = np.asarray(train[0]["image"])
    channels, side = (first.shape[2] if first.ndim == 3 else 1), task.side or first.shape[0]
    weights = Path(where) / task.weights if task.weights is not None else None
    builders: dict[str, Callable[[], Any]] = {
        "efficientnet-lite0": partial(networks.Lite0.pretrained, names, weights),
        "resnet18": partial(networks.resnet18, names),
        "preact-resnet18": partial(networks.preact_resnet18, names),
        "vit": partial(networks.vit, names, side),
        "small-cnn": partial(networks.small_cnn, names, channels, side),
    }
    model = builders[task.network]
    # a CPU's convolutions take half the time this way
    layout = torch.contiguous_format if torch.cuda.is_available() else torch.channels_last
    return Loaded(
        task, train, resized(test, task.side), names, lambda: model().to(memory_format=layout), default_data_collator, test
    )  # fmt: skip


def _load_text(task: Task, where: str, test_rows: int) -> Loaded:
    files = {part: os.path.join(where, f"{name}.parquet") for part, name in (("train", "train"), ("test", task.test))}
    for file in files.values():
        if not os.path.isfile(file):
            raise SystemExit(f"{file} does not exist: --data_dir must hold {task.folder}/train.parquet and {task.test}.parquet.")
    found = datasets.load_dataset("parquet", data_files=files, keep_in_memory=True)
    names = found["train"].features["label"].names[: task.classes]
    if task.classes is not None:
        kind = datasets.Features({**found["train"].features, "label": datasets.ClassLabel(names=names)})
        for part in files:
            kept = np.flatnonzero(np.asarray(found[part]["label"][:]) < task.classes)
            rows = found[part].select(kept).to_dict()
            found[part] = datasets.Dataset.from_dict(rows, features=kind)
    tokenizer, test = networks.minilm_tokenizer(), _drawn(found["test"], test_rows, 0)
    return Loaded(
        task, found["train"], test, names, partial(networks.minilm, names), DataCollatorWithPadding(tokenizer), test, tokenizer
    )  # fmt: skip


def _drawn(rows: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """So many rows, drawn by ``seed``, in the order that they had."""
    if count >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng(seed).permutation(len(rows))[:count]))


def resized(rows: datasets.Dataset, side: int) -> datasets.Dataset:
    """The images as the network sees them: resized once, bicubic; other columns as they are."""
    if not side:
        return rows
    pictures = [picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for picture in rows["image"]]
    columns = {name: rows[name][:] for name in rows.column_names if name != "image"}
    return datasets.Dataset.from_dict({"image": pictures, **columns}, features=rows.features)


# ---- corruptions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corruption:
    """``kind``: clean, tail, a label noise, or a trigger, whose ``rule`` says which label the marked rows get."""

    kind: str
    rate: float = 0.0
    rule: str | None = None


CORRUPTIONS: dict[str, Corruption] = {
    "clean": Corruption("clean"),
    "tail": Corruption("tail"),
    "symmetric20": Corruption("symmetric", 0.2),
    "symmetric40": Corruption("symmetric", 0.4),
    "pairflip30": Corruption("pairflip", 0.3),
    "instance30": Corruption("instance", 0.3),
    "patch5": Corruption("patch", 0.05, "all-to-one"),
    "patch10": Corruption("patch", 0.1, "all-to-one"),
    "patch25": Corruption("patch", 0.25, "multi-target"),
    "blend25": Corruption("blend", 0.25, "multi-target"),
}
#: The largest class has so many times the rows of the smallest in ``tail``.
TAIL = 50


def trigger_of(kind: str, side: int) -> PixelTrigger:
    """The package's default trigger of an image of 32 pixels, enlarged with it; smaller images have it as it is.

    That is a 3x3 checkerboard in the corner (at 64 pixels its fields are 2x2 pixels), or a tenth of a fixed noise picture.
    """
    times = max(1, side // 32)
    if kind == "patch":
        pattern = np.kron(PatchTrigger().values()[..., 0], np.ones((times, times)))
        return PatchTrigger() if times == 1 else PatchTrigger(pattern=pattern)
    return BlendTrigger() if times == 1 else BlendTrigger(picture=BlendTrigger().values(32, 32, 3))


def training_rows(loaded: Loaded, count: int, tail: bool, seed: int, as_given: bool = False) -> datasets.Dataset:
    """``count`` training rows drawn by the seed, as many of each class; with ``tail`` the class sizes then fall geometrically.

    In a tail the class of rank r (ranks drawn by the seed) of C keeps 1 / 50 ** (r / (C - 1)) of its rows, at least one.
    ``as_given``: images are not resized.
    """
    labels, rng = np.asarray(loaded.train["label"][:]), np.random.default_rng([seed, 7])
    classes = rng.permutation(len(loaded.names))
    chosen = []
    for rank, c in enumerate(classes):
        rows = rng.permutation(np.flatnonzero(labels == c))
        size = min(count // len(classes) + (rank < count % len(classes)), len(rows))
        if tail:
            size = max(1, round(size / TAIL ** (rank / (len(classes) - 1))))
        chosen.append(rows[:size])
    return resized(loaded.train.select(rng.permutation(np.concatenate(chosen))), 0 if as_given else loaded.task.side)


def corrupted(loaded: Loaded, name: str, count: int, seed: int) -> tuple[Part, Part | None]:
    """The training rows of a cell and, for a trigger, the test rows with it."""
    what = CORRUPTIONS[name]
    rows, triggered = corrupted_rows(loaded, name, count, seed), None
    if what.rule is not None:
        trigger = trigger_of(what.kind, rows[0]["image"].size[0])
        triggered = loaded.part(trigger_all(loaded.test, trigger, label_rule=what.rule, keep_in_memory=True))
    train = loaded.part(rows)
    train.moved = loaded.task.moved
    return train, triggered


def corrupted_rows(loaded: Loaded, name: str, count: int, seed: int) -> datasets.Dataset:
    """The training rows of a cell as a table, with the truth beside them."""
    what = CORRUPTIONS[name]
    rows = training_rows(loaded, count, what.kind == "tail", seed)
    if what.rule is not None:
        trigger = trigger_of(what.kind, rows[0]["image"].size[0])
        return poison(rows, trigger=trigger, rate=what.rate, label_rule=what.rule, seed=seed, keep_in_memory=True)
    if what.kind == "instance" and loaded.task.kind == "text":
        found = text_features(loaded, rows)
        rows = rows.add_column("features", found.tolist())
        return corrupt_labels(
            rows, "instance", rate=what.rate, seed=seed, feature_columns="features", keep_in_memory=True
        ).remove_columns("features")
    return corrupt_labels(rows, what.kind, rate=what.rate, seed=seed, keep_in_memory=True) if what.rate else rows


@cache
def _encoder() -> Any:
    return networks.minilm(["a", "b"]).eval()


@torch.no_grad()
def text_features(loaded: Loaded, rows: datasets.Dataset) -> np.ndarray:
    """The pretrained encoder's mean-pooled features (N, D), which noise of the kind ``instance`` depends on for texts."""
    part, found = loaded.part(rows), []
    for start in range(0, len(part), 64):
        batch = loaded.collate([part[i] for i in range(start, min(start + 64, len(part)))])
        found.append(_encoder().features(batch["input_ids"], batch["attention_mask"]))
    return torch.cat(found).numpy()


def skipped(task: Task, corruption: str, method: str) -> str | None:
    """Why a cell of the matrix is none; None where it is one."""
    if task.kind == "text" and CORRUPTIONS[corruption].rule is not None:
        return "triggers are for images"
    if task.kind == "text" and method == "prl-at-memory":
        return "its attack moves pixels, which texts have none of"
    if method == CLEAN_ONLY and not CORRUPTIONS[corruption].rate:
        return f"all rows are clean: see {PLAIN}"
    return None
