"""Which wrong labels hurt adversarial accuracy most: the experiments of Crafting ("Crafting label noise") on digits and MNIST.

A budget of labels is flipped by each strategy, a small convolutional network is trained until it fits every label, wrong ones
too, and attacked with PGD (no random start, as in the paper) on clean test images. Experiments, one run for each seed:

- strategies: all classes, label to the next one (sec. 4.1, 4.6.2, 4.6.3, 4.8); clean labels and random flips beside them
- extra: random flips to a class that the data does not have (sec. 4.9.1, figure 10)
- paths: buckets of rising path length (figures 11, 15; MNIST: class 9, attacked towards 0, figure 17)
- density: class 5, attacked towards 6; buckets of rising degree and of rising Gaussian density (sec. 4.6)
- single: one flipped label, several networks each (sec. 4.7, figure 9)

    python benchmarks/crafted_noise.py --data digits
    python benchmarks/crafted_noise.py --data mnist01 --path <folder with train.parquet and test.parquet of MNIST>
    python benchmarks/crafted_noise.py --data mnist --path <the same>
    python benchmarks/crafted_noise_report.py --out docs/figures

One JSON line per finished run, appended to --out; runs found there are skipped, so a stopped command can be given again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from common import add_result, key_of, machine, read_results
from torch import Tensor, nn

from robust_trainer.corruptions.crafted.craft_labels import craft_labels
from robust_trainer.data import columns
from robust_trainer.data.load import load_data
from robust_trainer.data.pixels import read_pixels
from robust_trainer.evaluation.boundary_paths import PathLengths, path_lengths
from robust_trainer.evaluation.per_class import class_robustness
from robust_trainer.models.pixel_model import PixelModel, pixel_model
from robust_trainer.models.small_networks import PlainCNN, PlainCNNConfig

MEAN, STD = [0.5], [0.5]
EXPERIMENTS = ("strategies", "extra", "paths", "density", "single")
GRAPHS = ("class-graph-greedy", "class-graph-dominating-set")


@dataclass(frozen=True)
class Protocol:
    """What a data set's runs have in common. eps in [0, 1] pixels; rate: of all rows; sources: classes whose labels are flipped."""

    data: str
    train_size: int
    test_size: int
    eps: float
    rate: float
    width: int
    path_source: int | None
    path_budget: int
    density_source: int | None
    density_budget: int
    batch_size: int = 64
    learning_rate: float = 2e-3
    most_epochs: int = 80
    attack_steps: int = 20
    buckets: int = 5


PROTOCOLS = {
    "digits": Protocol("digits", 1400, 397, 0.1, 0.02, 16, 9, 10, 5, 10),
    "mnist01": Protocol("mnist01", 2000, 1000, 0.1, 0.01, 8, None, 0, None, 0),
    "mnist": Protocol("mnist", 2000, 1000, 0.1, 0.02, 8, 9, 12, 5, 12),
}


def load(protocol: Protocol, path: str | None) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The training and the test images, a fixed random part of the data set."""
    if protocol.data == "mnist01":
        found = load_data(path or "")
        parts = []
        for name, size in (("train", protocol.train_size), ("test", protocol.test_size)):
            rows = np.flatnonzero(columns.read_column(found[name], "label") < 2)
            rows = np.sort(np.random.default_rng(0).permutation(rows)[:size])
            parts.append(found[name].select(rows).cast_column("label", datasets.ClassLabel(names=["0", "1"])))
        return parts[0], parts[1]
    found = load_data(path or protocol.data, max_train_samples=protocol.train_size, max_test_samples=protocol.test_size)
    return found["train"], found["test"]


def fit(images: Tensor, labels: Tensor, classes: int, seed: int, p: Protocol) -> tuple[PixelModel, int, float]:
    """A plain-cnn trained with Adam until it fits every label or the epochs are over; the epochs taken and the share fitted."""
    torch.manual_seed(seed)
    config = PlainCNNConfig(num_channels=1, image_size=images.shape[2], width=p.width, num_labels=classes)
    model = pixel_model(PlainCNN(config), None, MEAN, STD)
    optimizer = torch.optim.Adam(model.parameters(), p.learning_rate)
    fitted, epoch = 0.0, 0
    while fitted < 1 and epoch < p.most_epochs:
        right = 0
        for rows in torch.randperm(len(images)).split(p.batch_size):
            logits = model(images[rows])
            loss = nn.functional.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += int((logits.argmax(1) == labels[rows]).sum())
        epoch += 1
        if right >= 0.98 * len(images):
            fitted = share_right(model, images, labels)
    return model.eval(), epoch, share_right(model, images, labels)


@torch.no_grad()
def share_right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of the labels (N,) that the model predicts."""
    rows = torch.arange(len(images)).split(512)
    return sum(int((model(images[r]).argmax(1) == labels[r]).sum()) for r in rows) / len(images)


@dataclass
class Bench:
    """The data, and what a seed's clean network gives: made once a seed."""

    protocol: Protocol
    train: datasets.Dataset
    test: datasets.Dataset
    seed: int = -1
    clean: Any = None
    untargeted: PathLengths | None = None
    cyclic: PathLengths | None = None

    def __post_init__(self) -> None:
        self.images, self.labels = read_pixels(self.train)
        self.classes = self.train.features["label"].num_classes

    def ready(self, seed: int) -> None:
        """Trains the seed's clean network and measures its path lengths."""
        if self.seed == seed:
            return
        self.seed = seed
        self.clean, _, fitted = fit(self.images, self.labels, self.classes, 1000 + seed, self.protocol)
        told = {"image_mean": MEAN, "image_std": STD}
        self.cyclic = path_lengths(self.clean.model, self.train, target="cyclic", **told)
        self.untargeted = path_lengths(self.clean.model, self.train, **told)
        print(f"seed {seed}: clean network, {fitted:.2%} fitted, median path {np.median(self.cyclic.steps):.0f} steps", flush=True)

    def run(self, craft: dict[str, Any], extra: bool, seed: int, only: int | None) -> dict[str, Any]:
        """Flips, trains and attacks once; only: the class whose targeted accuracy is asked for."""
        start = time.perf_counter()
        noisy = self.train if craft["strategy"] == "clean" else self.flipped(craft, seed)
        labels = torch.from_numpy(columns.read_column(noisy, "label").astype(np.int64))
        wrong = labels != self.labels
        model, epochs, fitted = fit(self.images, labels, self.classes + extra, seed, self.protocol)
        trained = time.perf_counter()
        memorised = share_right(model, self.images[wrong], labels[wrong]) if wrong.any() else None
        test = self.test if only is None else self.test.filter(lambda row: row["label"] == only)
        p = self.protocol
        target = craft.get("target", "cyclic")
        found = class_robustness(
            model.model, test, p.eps, target="cyclic" if target == "extra" else target, steps=p.attack_steps, batch_size=1024,
            image_mean=MEAN, image_std=STD,
        )  # fmt: skip
        whole = class_robustness(model.model, self.test, p.eps, steps=1, image_mean=MEAN, image_std=STD, batch_size=1024)
        return {
            "flipped": int(wrong.sum()), "fitted": fitted, "memorised": memorised, "epochs": epochs,
            "clean": whole.overall("clean"), "untargeted": found.overall("untargeted"), "targeted": found.overall("targeted"),
            "per_class": {"untargeted": found.untargeted.tolist(), "targeted": found.targeted.tolist(), "n": found.n.tolist()},
            "train_seconds": round(trained - start, 1), "attack_seconds": round(time.perf_counter() - trained, 1),
        }  # fmt: skip

    def flipped(self, craft: dict[str, Any], seed: int) -> datasets.Dataset:
        """The data set with the labels flipped that the run asks for."""
        settings = {k: v for k, v in craft.items() if k not in ("strategy", "bucket")}
        if craft["strategy"] == "single":
            rows = np.flatnonzero(self.labels.numpy() == settings["source"])
            row = int(np.random.default_rng(craft["bucket"]).choice(rows))
            labels = self.labels.tolist()
            labels[row] = settings["target"]
            feature = self.train.features["label"]
            return self.train.remove_columns("label").add_column("label", labels).cast_column("label", feature)
        if settings.get("space") in ("features", "input-and-features"):
            settings |= {"model": self.clean, "processing_class": None}
        if craft["strategy"] == "adversarial-path":
            settings["paths"] = self.cyclic
        if "quantiles" in settings:
            settings["quantiles"] = tuple(settings["quantiles"])
        return craft_labels(self.train, craft["strategy"], seed=seed, **settings)


def wanted(p: Protocol, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The runs of a data set, each once for a seed: experiment and settings."""
    flips: dict[str, Any] = {"rate": p.rate}
    ranges = [[i / p.buckets, (i + 1) / p.buckets] for i in range(p.buckets)]
    if "strategies" in names:
        yield "strategies", {"strategy": "clean"}
        yield "strategies", {"strategy": "random", **flips}
        for name in GRAPHS:
            for space in ("input", "pca", "features", "input-and-features"):
                yield "strategies", {"strategy": name, "space": space, **flips}
        for space in ("input", "features"):
            yield "strategies", {"strategy": "gaussian-density", "space": space, **flips}
        yield "strategies", {"strategy": "adversarial-path", **flips}
    if "extra" in names:
        yield "extra", {"strategy": "random", "target": "extra", **flips}
    if "paths" in names:
        own, only = flips, {}
        if p.path_source is not None:
            only = {"source": p.path_source, "target": (p.path_source + 1) % 10}
            own = {"budget": p.path_budget, **only}
        yield "paths", {"strategy": "clean", **only}
        yield "paths", {"strategy": "random", **own}
        for number, bounds in enumerate(ranges):
            yield "paths", {"strategy": "adversarial-path", "bucket": number, "quantiles": bounds, **own}
    if p.density_source is not None:
        source, target = p.density_source, p.density_source + 1
        own = {"budget": p.density_budget, "source": source, "target": target}
        if "density" in names:
            yield "density", {"strategy": "clean", "source": source, "target": target}
            yield "density", {"strategy": "random", **own}
            yield "density", {"strategy": "min-colouring", **own}
            for name, space in (("class-graph-greedy", "input"), ("gaussian-density", "input"), ("gaussian-density", "features")):
                for number, bounds in enumerate(ranges):
                    yield "density", {"strategy": name, "space": space, "bucket": number, "quantiles": bounds, **own}
        if "single" in names:
            for number in range(3):
                yield "single", {"strategy": "single", "bucket": number, "source": source, "target": target}


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", choices=list(PROTOCOLS), default="digits")
    p.add_argument("--path", help="folder of MNIST's train.parquet and test.parquet, for mnist and mnist01")
    p.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="numbers of the protocol, as train_size=500")
    p.add_argument("--out", default="runs/crafted_noise.jsonl")
    args = p.parse_args(argv)
    if args.data != "digits" and not args.path:
        raise SystemExit(f"--data {args.data} needs --path, the folder of MNIST's parquet files.")
    torch.set_num_threads(args.threads)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    given = dict(change.split("=", 1) for change in args.set)
    unknown = set(given) - set(asdict(PROTOCOLS[args.data]))
    if unknown:
        raise SystemExit(f"--set: unknown {sorted(unknown)}; choose of {', '.join(asdict(PROTOCOLS[args.data]))}.")
    protocol = replace(PROTOCOLS[args.data], **{k: float(v) if "." in v else int(v) for k, v in given.items()})
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["key"] for row in read_results(out)}
    bench = Bench(protocol, *load(protocol, args.path))
    for seed in args.seeds:
        for experiment, craft in wanted(protocol, args.experiments):
            settings = {"protocol": asdict(protocol), "experiment": experiment, "craft": craft, "seed": seed}
            key = key_of(settings)
            if key in done:
                continue
            bench.ready(seed)
            found = bench.run(craft, craft.get("target") == "extra", seed, craft.get("source"))
            add_result(out, {"key": key, **settings, **found, "machine": machine()})
            done.add(key)
            told = " ".join(str(v) for k, v in craft.items() if k in ("strategy", "space", "bucket", "target"))
            print(
                f"{args.data} {experiment} seed {seed}: {told}: {found['flipped']} flipped, fitted {found['fitted']:.2%}, clean "
                f"{found['clean']:.2%}, untargeted {found['untargeted']:.2%}, targeted {found['targeted']:.2%}; "
                f"{found['train_seconds']:.0f} + {found['attack_seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
