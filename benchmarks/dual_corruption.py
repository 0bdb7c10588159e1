"""Poisoned images and wrong labels at once: tables in the form of ERAT's II, III and VI, with its figures beside ours.

ERAT, "Effective and robust adversarial training against data and label corruptions" (ERAT). Every training image carries an
availability poison and a share of the labels is wrong; the test set is clean. Test accuracy in percent, mean ± standard deviation
over seeds. Table II: clean data. Table III: poison x label noise. Table VI: ERAT without one of its parts.

    python benchmarks/dual_corruption.py --config benchmarks/configs/dual_corruption_cifar10.yaml --prepare
    python benchmarks/dual_corruption.py --config benchmarks/configs/dual_corruption_cifar10.yaml --part 1/2   (and 2/2 beside it)
    python benchmarks/dual_corruption.py --config benchmarks/configs/dual_corruption_cifar10.yaml --tables 6 --seeds 0
    python benchmarks/dual_corruption.py --config benchmarks/configs/dual_corruption_cifar10.yaml --report
    python benchmarks/dual_corruption.py --config benchmarks/configs/dual_corruption_cifar10_full.yaml --dry_run

CIFAR-10 is found as <data_dir>/cifar10/*.parquet; data_dir is by default the environment variable ROBUST_TRAINER_DATA. The first
command crafts the poisons, keeps them under --cache and tells what each does to a plain training; a poison that is missing later
is crafted then. One JSON line per finished run, appended to --out; runs found there are skipped, so a stopped command can be given
again, and --part lets several processes share the work.

Methods: ce, at (PGD-AT in the norm of the column's poison, which the paper's AT knows), iss (ce on squeezed images), erat and its
ablations. Poisons see the true labels and a network trained on the clean images. Wrong labels are drawn from the clean images.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import safetensors.torch
import torch
import transformers
import yaml
from common import add_result, defaults_from_yaml, key_of, machine, read_results
from dual_corruption_report import ABLATIONS, COLUMNS, METHODS, NORMS, report
from label_noise import Part, Positions, gather
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, TrainerCallback, set_seed

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.corruptions import corrupt_labels
from robust_trainer.corruptions.poisons.networks import accuracy, seeded, train_plain
from robust_trainer.corruptions.poisons.poison_images import FRESH, NONE, find_poison, poison_images, realised_norms
from robust_trainer.data.augmentation.augmentations import Augmentation, augment, make_augmentation
from robust_trainer.data.augmentation.squeezing import make_squeeze, squeeze_images
from robust_trainer.data.images import InputSpace
from robust_trainer.data.load import load_data
from robust_trainer.data.pixels import IS_POISONED, read_levels, read_pixels, write_levels
from robust_trainer.data.randomness import keyed_seed
from robust_trainer.methods.table import get_method
from robust_trainer.methods.units import fraction
from robust_trainer.models.pixel_model import PixelModel, pixel_model
from robust_trainer.models.zoo import SMALL

#: What is left of ERAT in table VI's rows.
VARIANTS: dict[str, dict[str, Any]] = {
    "erat": {},
    "erat-linf": {"norm": "linf"},
    "erat-l2": {"norm": "l2"},
    "ce-score": {"score": "loss"},
    "no-rb": {"rebalance": False},
    "no-uni": {"norm": "both"},
    "no-aug": {"strong_augmentation": "erase-flip"},
    "no-at": {"adversarial_training": False},
    "no-ss": {"sample_selection": False},
}
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
PIXELS = InputSpace((0.5,), (0.5,))
#: Seeds of the networks that poison and check, apart from those of the runs.
_SURROGATE, _CHECK = 10_000, 20_000


# ---- networks and data ------------------------------------------------------------------------------------------------


def network(args: argparse.Namespace, shape: torch.Size, classes: int) -> nn.Module:
    """A fresh network for images of ``shape`` (C, H, W). The ResNets have CIFAR's stem: 3x3, stride 1, no pooling."""
    names = dict(enumerate(map(str, range(classes))))
    if args.model in SMALL:
        settings, kind = SMALL[args.model]
        width = {} if args.width is None else {"width": args.width}
        return kind(settings(num_channels=shape[0], image_size=shape[1], id2label=names, **width))
    told: dict[str, Any] = {"depths": list(DEPTHS[args.model]), "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64}
    config = ResNetConfig(num_channels=shape[0], layer_type="basic", id2label=names, **told)
    model: Any = ResNetForImageClassification(config)
    model.resnet.embedder.embedder.convolution = nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False)
    model.resnet.embedder.pooler = nn.Identity()
    return model


def layout() -> torch.memory_format:
    """A CPU's convolutions take two thirds of the time with the channels last."""
    return torch.contiguous_format if torch.cuda.is_available() else torch.channels_last


@dataclass
class Data:
    """Clean training and test split, and the folder of what is made of them."""

    train: datasets.Dataset
    test: datasets.Dataset
    folder: Path

    @property
    def classes(self) -> int:
        return len(self.train.features["label"].names)

    def fresh(self, args: argparse.Namespace) -> Callable[[], PixelModel]:
        """A callable that makes an untrained network of [0, 1] pixels."""
        shape = read_pixels(self.train.select([0]))[0].shape[1:]
        return lambda: pixel_model(network(args, shape, self.classes), None, [0.5] * shape[0], [0.5] * shape[0])


def balanced(labels: list[int], size: int | None, seed: int = 0) -> np.ndarray:
    """Positions of about ``size`` samples, the same number of each class, in the order of the data set; None: of all."""
    if size is None or size >= len(labels):
        return np.arange(len(labels))
    given, rng = np.asarray(labels), np.random.default_rng(seed)
    found = np.unique(given)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(given == c))[: size // len(found)] for c in found]))


def averaged(levels: np.ndarray, side: int | None) -> np.ndarray:
    """Levels (N, H, W, C) averaged down to ``side`` pixels, rounded. Raises ``SystemExit`` where the side does not divide."""
    n, height, width, channels = levels.shape
    if side is None or side == height:
        return levels
    if height != width or height % side:
        raise SystemExit(f"--side {side}: images of {height}x{width} cannot be averaged down to it; give a divisor of {height}.")
    blocks = levels.reshape(n, side, height // side, side, width // side, channels).astype(np.float64)
    return np.rint(blocks.mean((2, 4))).astype(np.uint8)


def keep(split: datasets.Dataset | datasets.DatasetDict, folder: Path) -> Any:
    """Saves to ``folder``, whole or not at all, and reads it back; what another process has put there meanwhile stays."""
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    split.save_to_disk(str(draft))
    try:
        draft.rename(folder)
    except OSError:
        shutil.rmtree(draft)
    return datasets.load_from_disk(str(folder))


def clean_data(args: argparse.Namespace) -> Data:
    """The data set's balanced part at --side pixels, made once."""
    told = {"data": args.data, "train": args.train_size, "test": args.test_size, "side": args.side}
    folder = Path(args.cache) / f"{Path(args.data).name}-{key_of(told)}"
    if not (folder / "clean").is_dir():
        here = os.path.join(args.data_dir, args.data) if args.data_dir else ""
        found = load_data(here if os.path.isdir(here) else args.data)
        parts = {}
        for name, size in (("train", args.train_size), ("test", args.test_size)):
            split = found[name].select(balanced(found[name]["label"][:], size))
            levels = averaged(read_levels(split, "image"), args.side)
            parts[name] = write_levels(split, "image", levels, keep_in_memory=True).remove_columns(IS_POISONED)
        keep(datasets.DatasetDict(parts), folder / "clean")
    split = datasets.load_from_disk(str(folder / "clean"))
    return Data(split["train"], split["test"], folder)


# ---- poisons and labels -----------------------------------------------------------------------------------------------


def poison_told(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """What a poison depends on beside the data."""
    if name == "none":
        return {"poison": name}
    norm, settings = NORMS[name], {}
    for change in args.poison_set:
        key, equals, text = change.partition("=")
        of, dot, setting = key.partition(".")
        if not equals or not dot:
            raise SystemExit(f"--poison_set {change}: write poison.setting=value, for instance aa.steps=20.")
        if of == name:
            settings[setting] = yaml.safe_load(text)
    told = {"poison": name, "norm": norm, "eps": args.eps_linf if norm == "linf" else args.eps_l2, "settings": settings}
    if find_poison(name).needs != NONE:
        told |= {"model": args.model, "width": args.width, "epochs": args.surrogate_epochs}
    return told | {"seed": seed if args.poison_seed is None else args.poison_seed}


def surrogate(args: argparse.Namespace, data: Data, seed: int) -> PixelModel:
    """A network trained on the clean images with the true labels; trained once, kept."""
    told = {"model": args.model, "width": args.width, "epochs": args.surrogate_epochs, "seed": seed}
    path = data.folder / f"surrogate-{key_of(told)}.safetensors"
    model = seeded(data.fresh(args), _SURROGATE + seed)
    if path.is_file():
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()
    train_plain(model, *read_pixels(data.train), args.surrogate_epochs, seed=seed, device=device(), desc="surrogate")
    draft = path.with_suffix(f".{os.getpid()}")
    safetensors.torch.save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, draft)
    draft.replace(path)
    return model


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def poisoned(args: argparse.Namespace, data: Data, told: dict[str, Any]) -> datasets.Dataset:
    """The training split with a poison, crafted from the true labels; crafted once, kept."""
    if told["poison"] == "none":
        return data.train
    folder = data.folder / f"{told['poison']}-{key_of(told)}"
    if folder.is_dir():
        return datasets.load_from_disk(str(folder))
    needs, start = find_poison(told["poison"]).needs, time.perf_counter()
    model: Any = None if needs == NONE else data.fresh(args) if needs == FRESH else surrogate(args, data, told["seed"])
    work = folder.with_suffix(f".work{args.part.replace('/', 'of')}")
    channels = read_pixels(data.train.select([0]))[0].shape[1]
    found = poison_images(
        data.train, told["poison"], norm=told["norm"], eps=told["eps"], model=model, image_mean=[0.5] * channels,
        image_std=[0.5] * channels, device=device(), seed=told["seed"], folder=work, **told["settings"],
    )  # fmt: skip
    found = keep(found, folder)
    shutil.rmtree(work, ignore_errors=True)
    print(f"{told['poison']}: crafted in {time.perf_counter() - start:.0f} s", flush=True)
    return found


def check(args: argparse.Namespace, data: Data, name: str, seed: int, out: Path) -> None:
    """Crafts a poison and writes down the test accuracy of a network trained plainly on it, as a line of --out."""
    told = poison_told(args, name, seed)
    settings = {"check": told, "model": args.model, "width": args.width, "epochs": args.surrogate_epochs, "seed": seed}
    settings |= {"data": data.folder.name}
    start = time.perf_counter()
    split = poisoned(args, data, told)
    seconds = time.perf_counter() - start
    if any(row["key"] == key_of(settings) for row in read_results(out)):
        return
    net = seeded(data.fresh(args), _CHECK + seed)
    train_plain(net, *read_pixels(split), args.surrogate_epochs, seed=_CHECK + seed, device=device(), desc=f"check of {name}")
    row = {"accuracy": round(100 * accuracy(net, *read_pixels(data.test)), 2), "craft_seconds": round(seconds, 1)}
    row |= {} if name == "none" else {k: round(v, 4) for k, v in realised_norms(data.train, split).items()}
    add_result(out, {"key": key_of(settings), **settings, **row, "machine": machine()})
    print(f"{name}: {row['accuracy']:.1f} % after plain training ({args.surrogate_epochs} epochs), {row}", flush=True)


def noisy_labels(data: Data, noise: str, class_map: str, seed: int) -> tuple[Tensor, Tensor]:
    """Labels (N,) and which of them are wrong (N,), drawn from the clean images; noise: clean, or kind:rate."""
    if noise == "clean":
        labels = torch.tensor(data.train["label"][:])
        return labels, torch.zeros(len(labels), dtype=torch.bool)
    kind, _, rate = noise.partition(":")
    more: dict[str, Any] = {"class_map": class_map} if kind == "asymmetric" else {}
    found = corrupt_labels(data.train, kind, rate=float(rate), seed=seed, keep_in_memory=True, **more)
    return torch.tensor(found["label"][:]), torch.tensor(found["is_corrupted"][:])


def model_inputs(split: datasets.Dataset) -> Tensor:
    """The images as the network takes them, (N, C, H, W) in [-1, 1]."""
    return PIXELS.from_pixels(read_pixels(split)[0]).contiguous(memory_format=layout())


# ---- methods ----------------------------------------------------------------------------------------------------------


def method_of(args: argparse.Namespace, name: str, poison: str) -> tuple[str, dict[str, Any]]:
    """Method and its settings; beside them ``augment`` and ``squeeze``, which are the benchmark's own."""
    if name in VARIANTS:
        given = {
            "eps": args.eps_linf, "step_size": args.eps_linf * args.step_share, "eps_l2": args.eps_l2,
            "step_size_l2": args.eps_l2 * args.step_share, "steps": args.steps,
            "warmup_epochs": 0.1 * args.epochs if args.warmup_epochs is None else args.warmup_epochs,
            "lambda_ramp_epochs": 0.16 * args.epochs if args.lambda_ramp_epochs is None else args.lambda_ramp_epochs,
        }  # fmt: skip
        for change in args.erat_set:
            key, equals, text = change.partition("=")
            if not equals:
                raise SystemExit(f"--erat_set {change}: write setting=value, for instance consistency=mean.")
            given[key] = yaml.safe_load(text)
        given |= VARIANTS[name]
        idle = {"linf": ("eps_l2", "step_size_l2"), "l2": ("eps", "step_size")}.get(str(given.get("norm")), ())
        given = {key: value for key, value in given.items() if key not in idle}
        get_method("erat")(**given)
        return "erat", given
    if name == "at":
        norm = NORMS.get(poison, args.clean_norm)
        eps = args.eps_linf if norm == "linf" else args.eps_l2
        given = {"norm": norm, "eps": eps, "step_size": eps * args.step_share, "steps": args.steps}
        return "pgd-at", {**given, "augment": args.augment}
    if name == "iss":
        make_squeeze(args.iss, jpeg_quality=args.jpeg_quality, bits=args.bits)
        return "standard", {"augment": args.augment, "squeeze": [args.iss, args.jpeg_quality, args.bits]}
    if name != "ce":
        raise SystemExit(f"--methods {name}: choose among ce, at, iss, {', '.join(VARIANTS)}.")
    return "standard", {"augment": args.augment}


@dataclass
class Collate:
    """A batch from the tensors, weakly augmented; what is drawn depends on the seed and the number of the batch."""

    part: Part
    augmentation: Augmentation
    seed: int
    count: int = 0

    def __call__(self, rows: list[int]) -> dict[str, Tensor]:
        batch = gather(self.part, "pixel_values", rows)
        self.count += 1
        drawn = keyed_seed("augment", self.seed, self.count)
        x = augment(self.augmentation, batch["pixel_values"], PIXELS, drawn, "augment")
        return {**batch, "pixel_values": x.contiguous(memory_format=layout())}


class EachEpoch(TrainerCallback):
    """Test accuracy after every epoch; gives the ledger the truth before the first."""

    def __init__(self, trainer: Any, test: Part, truth: Tensor):
        self.trainer, self.test, self.truth = trainer, test, truth
        self.figures: list[float] = []
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if bool(self.truth.any()):
            self.trainer.ledger.truth = self.truth.to(args.device)

    @torch.no_grad()
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        model = self.trainer.model
        model.eval()
        found = [model(pixel_values=chunk.to(args.device)).logits.argmax(-1).cpu() for chunk in self.test.inputs.split(500)]
        model.train()
        self.figures.append(100 * float((torch.cat(found) == self.test.targets).double().mean()))
        self.seconds += time.perf_counter() - start


def train(
    args: argparse.Namespace,
    method: str,
    given: dict[str, Any],
    data: Part,
    test: Part,
    classes: int,
    seed: int,
    steps: int = -1,
) -> dict[str, Any]:
    """Trains once; accuracies of the epochs, what the selection found, seconds. steps: so many instead of whole epochs."""
    set_seed(seed)
    shape = data.inputs.shape[1:]
    model = network(args, shape, classes).to(memory_format=layout())  # type: ignore[call-overload]
    optimizer: torch.optim.Optimizer
    if args.optim == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=args.weight_decay)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    an_epoch = -(-len(data) // args.batch_size)
    schedule: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * an_epoch)
    if args.lr_schedule == "step":
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(m * args.epochs) * an_epoch for m in args.milestones])
    settings = {k: v for k, v in given.items() if k not in ("augment", "squeeze")}
    with tempfile.TemporaryDirectory() as folder:
        config = RobustConfig(
            output_dir=folder, method=method, method_settings=settings, num_train_epochs=args.epochs, max_steps=steps, seed=seed,
            per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=500, max_grad_norm=args.max_grad_norm,
            logging_strategy="epoch", save_strategy="no", eval_strategy="no", report_to=[], disable_tqdm=True,
            remove_unused_columns=False, label_names=["labels"], dataloader_pin_memory=torch.cuda.is_available(), bf16=args.bf16,
            image_mean=[0.5] * shape[0], image_std=[0.5] * shape[0],
        )  # fmt: skip
        trainer = RobustTrainer(
            model=model, args=config, train_dataset=Positions(len(data)), optimizers=(optimizer, schedule),
            data_collator=Collate(data, make_augmentation(given.get("augment", "none")), seed),
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        assert data.corrupted is not None
        each = EachEpoch(trainer, test, data.corrupted)
        trainer.add_callback(each)
        start, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu = time.perf_counter() - start - each.seconds, time.process_time() - cpu
    ledger, losses = trainer.ledger, [row["loss"] for row in trainer.state.log_history if "loss" in row]
    best = int(np.argmax(each.figures))
    row = {"last": each.figures[-1], "best": each.figures[best], "best_epoch": best + 1, "epochs": each.figures, "losses": losses}
    detection = ledger.detection() if ledger is not None else {}
    if method != "erat" or not given.get("sample_selection", True):  # an order, but no decision
        detection = {k: v for k, v in detection.items() if k == "auroc"}
    elif detection and ledger is not None:
        kept, right = ledger.keep.cpu(), ~each.truth
        detection["labelled"] = float(kept.float().mean())
        detection["labelled_clean"] = float((kept & right).sum() / kept.sum().clamp_min(1))
    row["detection"] = {k: round(v, 4) for k, v in detection.items()}
    return row | {"train_seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "eval_seconds": round(each.seconds, 2)}


# ---- the benchmark ----------------------------------------------------------------------------------------------------


def jobs(args: argparse.Namespace) -> Iterator[tuple[int, str, str, str]]:
    """Seed, noise, poison and method of this part's runs; each method's runs go round the parts, dear and cheap alike."""
    number, parts = part_of(args.part)
    every: dict[tuple[int, str, str, str], None] = {}
    for seed in args.seeds:
        if 2 in args.tables:
            every |= dict.fromkeys((seed, "clean", "none", m) for m in args.methods)
        for table, names in ((3, args.methods), (6, args.ablations)):
            if table in args.tables:
                every |= dict.fromkeys((seed, n, p, m) for n in args.noise for p in args.poisons for m in names)
    count: dict[str, int] = {}
    for job in every:
        count[job[3]] = count.get(job[3], -1) + 1
        if count[job[3]] % parts == number:
            yield job


def part_of(text: str) -> tuple[int, int]:
    """Number from 0, and how many parts, of i/n."""
    number, slash, parts = text.partition("/")
    if not slash or not number.isdigit() or not parts.isdigit() or not 1 <= int(number) <= int(parts):
        raise SystemExit(f"--part {text}: write i/n, from 1/n to n/n.")
    return int(number) - 1, int(parts)


def dry_run(args: argparse.Namespace) -> None:
    """One step of each method with the configured network on 16 random images."""
    generator = torch.Generator().manual_seed(0)
    side, classes = args.side or 32, 10
    x = torch.rand(16, 3, side, side, generator=generator).mul(2).sub(1).contiguous(memory_format=layout())
    data = Part(x, torch.arange(16) % classes, torch.arange(16) < 4)
    args.batch_size, args.epochs, args.warmup_epochs = 16, 1, 0.0
    for name in dict.fromkeys([*args.methods, *args.ablations]):
        method, given = method_of(args, name, "none")
        row = train(args, method, given, data, data, classes, 0, steps=1)
        print(f"{name}: a step in {row['train_seconds']:.1f} s, loss {row['losses'][-1]:.3f}", flush=True)


def run(args: argparse.Namespace, out: Path) -> None:
    data = clean_data(args)
    test = Part(model_inputs(data.test), torch.tensor(data.test["label"][:]))
    names = ("model", "width", "side", "epochs", "batch_size", "optim", "lr", "lr_schedule", "milestones", "weight_decay",
             "max_grad_norm", "bf16", "class_map")  # fmt: skip
    protocol = {name: getattr(args, name) for name in names}
    protocol |= {"data": Path(args.data).name, "train": len(data.train), "test": len(data.test)}
    for seed, noise, poison, name in jobs(args):
        method, given = method_of(args, name, poison)
        settings = {"name": name, "method": method, "given": given, "noise": noise, "seed": seed, "protocol": protocol}
        settings["poison"] = of = poison_told(args, poison, seed)
        key = key_of(settings)
        if any(row["key"] == key for row in read_results(out)):
            continue
        images = poisoned(args, data, of)
        if "squeeze" in given:
            kind, quality, bits = given["squeeze"]
            images = squeeze_images(images, make_squeeze(kind, jpeg_quality=quality, bits=bits), keep_in_memory=True)
        labels, wrong = noisy_labels(data, noise, args.class_map, seed)
        found = train(args, method, given, Part(model_inputs(images), labels, wrong), test, data.classes, seed)
        found |= {"realised": round(float(wrong.float().mean()), 4), "machine": machine(), "command": " ".join(sys.argv[1:])}
        add_result(out, {"key": key, **settings, **found})
        told = f"{found['last']:.1f} % (best {found['best']:.1f}) in {found['train_seconds']:.0f} s {found['detection']}"
        print(f"{name} {noise} {poison} seed {seed}: {told}", flush=True)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", help="YAML file of these arguments; flags win")
    add("--data", default="cifar10", help="folder in --data_dir, or what robust_trainer.data.load.load_data takes")
    add("--data_dir", default=os.environ.get("ROBUST_TRAINER_DATA"))
    add("--cache", default="runs/dual_corruption_data", help="folder of poisons and surrogates")
    add("--train_size", type=int, help="class-balanced part of the training set; default all")
    add("--test_size", type=int)
    add("--side", type=int, help="average the images down to so many pixels")
    add("--model", default="small-cnn", choices=(*SMALL, *DEPTHS))
    add("--width", type=int, help="of the first layer of the small networks; default their own")
    add("--tables", type=int, nargs="+", default=[2, 3], choices=(2, 3, 6))
    add("--methods", nargs="+", default=list(METHODS), help="of tables 2 and 3")
    add("--ablations", nargs="+", default=list(ABLATIONS), help="of table 6")
    add("--noise", nargs="+", default=["instance:0.6", "symmetric:0.6", "asymmetric:0.4"], help="kind:rate, or clean")
    add("--poisons", nargs="+", default=list(COLUMNS), choices=("none", *NORMS))
    add("--class_map", default="cifar10", help="of asymmetric noise")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--poison_seed", type=int, help="one poison for all seeds; default each seed its own")
    add("--surrogate_epochs", type=int, default=30, help="of the network that poisons attack, and of --prepare's check")
    add("--poison_set", nargs="*", default=[], metavar="poison.setting=value", help="settings of crafting")
    add("--eps_linf", default="8/255", help="of poisons and defences")
    add("--eps_l2", default="0.5")
    add("--step_share", type=float, default=0.2, help="attack step of AT and ERAT / eps")
    add("--steps", type=int, default=7, help="attack steps of AT and ERAT")
    add("--clean_norm", default="l2", choices=("linf", "l2"), help="of AT where there is no poison")
    add("--iss", default="jpeg", help="jpeg, grayscale, bits, or several joined by +")
    add("--jpeg_quality", type=int, default=10)
    add("--bits", type=int, default=2)
    add("--augment", default="crop-flip", choices=("none", "flip", "crop-flip", "erase-flip"), help="of ce, at, iss")
    add("--warmup_epochs", type=float, help="of ERAT; default a tenth of --epochs, as in the paper")
    add("--lambda_ramp_epochs", type=float, help="of ERAT; default 0.16 of --epochs, as in the paper")
    add("--erat_set", nargs="*", default=[], metavar="setting=value", help="further settings of ERAT and its ablations")
    add("--epochs", type=int, default=100)
    add("--batch_size", type=int, default=64)
    add("--lr", type=float, default=0.05)
    add("--optim", default="sgd", choices=("sgd", "adamw"), help="sgd with momentum 0.9")
    add("--lr_schedule", default="step", choices=("step", "cosine"))
    add("--milestones", type=float, nargs="*", default=[0.6], help="shares of training; the learning rate falls tenfold")
    add("--weight_decay", type=float, default=5e-4)
    add("--max_grad_norm", type=float, default=0.0)
    add("--bf16", action="store_true")
    add("--threads", type=int)
    add("--part", default="1/1", help="i/n: this process does every n-th run of each method, or of --prepare's poisons")
    add("--out", default="runs/dual_corruption.jsonl")
    add("--prepare", action="store_true", help="only craft the poisons, and check each by a plain training")
    add("--dry_run", action="store_true", help="only one step of each method and ablation on 16 random images")
    add("--report", action="store_true", help="only print the tables")
    add("--figure", default="last", choices=("last", "best"), help="of the report: of the last epoch, or an oracle's best")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = arguments()
    known, _ = parser.parse_known_args(argv)
    if known.config:
        defaults_from_yaml(parser, known.config)
    args = parser.parse_args(argv)
    args.eps_linf, args.eps_l2 = fraction("eps_linf", args.eps_linf), fraction("eps_l2", args.eps_l2)
    out = Path(args.out)
    if args.report:
        print(report(read_results(out), args.figure))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.dry_run:
        dry_run(args)
        return
    datasets.disable_progress_bars()
    out.parent.mkdir(parents=True, exist_ok=True)
    if not args.prepare:
        run(args, out)
        print(report(read_results(out), args.figure))
        return
    data, (number, parts) = clean_data(args), part_of(args.part)
    seeds = args.seeds if args.poison_seed is None else args.seeds[:1]
    todo = [(name, seed) for seed in seeds for name in dict.fromkeys(["none", *args.poisons])]
    for name, seed in todo[number::parts]:
        check(args, data, name, seed, out)
    print(report(read_results(out), args.figure))


if __name__ == "__main__":
    main()
