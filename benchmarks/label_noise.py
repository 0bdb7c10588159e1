"""Wrong labels and wrong targets: tables in the form of the dissertation's 4.1, 4.2, 4.4 and 4.6, with its figures beside ours.

Dissertation ch. 4, "Robust learning of deep neural networks under data corruption". A share of the training targets is corrupted,
the test targets are not; the figure is the mean test figure over the last 10 epochs, then mean ± standard deviation over seeds.

    4.1  regression, R-square: linadv, signflip, uninoise, pairflip, mixture at 10 to 40 %
    4.2  classification, accuracy: symmetric and pairflip
    4.4  as 4.2, a method told a rate that is up to 0.1 off
    4.6  seconds of an epoch: standard, PRL(G), PRL(L), epochs of the methods in turns in one run
    auto (4.2 with --noise_rate auto): the rate as estimated while training, beside the realised one

    python benchmarks/label_noise.py --config benchmarks/configs/label_noise_mnist.yaml --data_dir <folder with mnist/train.parquet>
    python benchmarks/label_noise.py --config benchmarks/configs/label_noise_regression.yaml
    python benchmarks/label_noise.py --table 4.4 --data cifar10 --noise pairflip:0.45 --methods co-prl --data_dir <folder>
    python benchmarks/label_noise.py --report --out runs/label_noise_mnist.jsonl

The data differ from the papers': theirs are CelebA landmarks predicted from 512 CNN features, and all of CIFAR-10 and CIFAR-100
with a 9-layer CNN; ours are what scikit-learn ships, and parts of CIFAR-10 and MNIST with smaller networks. Compare orders and
gaps, not values. One JSON line per finished run, appended to --out; runs found there are skipped, so a stopped command can be
given again. A run is fixed by its seed: model, order, and the corrupted samples.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
import yaml
from common import add_result, changed, defaults_from_yaml, key_of, machine, read_results
from label_noise_report import METHODS_OF, NOISE_OF, OFFSETS, report, split_noise
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.corruptions import corrupt_labels, corrupt_target_array
from robust_trainer.data.load import load_data
from robust_trainer.models.zoo import build_model

TABLES = ("4.1", "4.2", "4.4", "4.6")
#: Names of the papers that are a method with settings.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "huber": ("standard", {"objective": "huber"}),
    "co-spl": ("co-teaching", {}),
}


# ---- data -------------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """Inputs (N, ...) and targets: classes (N,) or standardised numbers (N, K)."""

    inputs: Tensor
    targets: Tensor
    corrupted: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass
class Task:
    """What is to be learned: two parts, the model for a seed, and the name under which it takes its inputs."""

    train: Part
    test: Part
    model: Callable[[], PreTrainedModel]
    input_name: str
    names: list[str] | None = None

    @property
    def regression(self) -> bool:
        return self.names is None


class Positions(torch.utils.data.Dataset):
    """0, 1, ..., N - 1: the collator below takes a whole batch from the tensors at once."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> int:
        return i


def gather(part: Part, input_name: str, rows: list[int]) -> dict[str, Tensor]:
    index = torch.tensor(rows)
    return {input_name: part.inputs[index], "labels": part.targets[index]}


def images(args: argparse.Namespace) -> Task:
    """The pictures of a data set, decoded once."""
    name = os.path.join(args.data_dir, args.data) if args.data_dir else args.data
    found = load_data(name, max_train_samples=args.max_train, max_test_samples=args.max_test)

    # a CPU's convolutions take two thirds of the time this way
    layout = torch.contiguous_format if torch.cuda.is_available() else torch.channels_last

    def part(rows: datasets.Dataset) -> Part:
        levels = np.stack([np.asarray(picture) for picture in rows["image"]])
        pixels = torch.from_numpy(levels if levels.ndim == 4 else levels[..., None]).permute(0, 3, 1, 2).float() / 255
        return Part(((pixels - 0.5) / 0.5).contiguous(memory_format=layout), torch.tensor(rows["label"][:]))

    train, test = part(found["train"]), part(found["test"])
    names = found["train"].features["label"].names
    channels, side = train.inputs.shape[1:3]

    def model() -> PreTrainedModel:
        return build_model(args.model, names, channels=channels, image_size=side, from_scratch=True)[0].to(memory_format=layout)

    return Task(train, test, model, "pixel_values", names)


class MLPConfig(PreTrainedConfig):
    """Settings of `MLP`: numbers in, width of its hidden layers; numbers out are ``num_labels``."""

    model_type = "benchmark-mlp"

    def __init__(self, inputs: int = 10, width: int = 256, **kwargs: Any):
        self.inputs, self.width = inputs, width
        super().__init__(**kwargs)


class MLP(PreTrainedModel):
    """Three linear layers with LeakyReLU between (Dissertation sec. 4.4: 256 hidden nodes): features (B, D) -> logits (B, K)."""

    config_class = MLPConfig
    main_input_name = "features"
    base_model_prefix = "layers"

    def __init__(self, config: MLPConfig):
        super().__init__(config)
        w, outs = config.width, int(config.num_labels or 1)
        self.layers = nn.Sequential(
            nn.Linear(config.inputs, w), nn.LeakyReLU(), nn.Linear(w, w), nn.LeakyReLU(), nn.Linear(w, outs)
        )
        self.post_init()

    def forward(self, features: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.layers(features)
        return SequenceClassifierOutput(loss=None if labels is None else nn.functional.mse_loss(logits, labels), logits=logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()


def numbers(args: argparse.Namespace) -> Task:
    """scikit-learn's own data as regression, 80 % of the samples for training, standardised by the clean training part.

    diabetes: 442 samples, 10 features, 1 output. digits: 1,797 samples; 10 pixels of the picture's middle from the 54 others.
    """
    from sklearn.datasets import load_diabetes, load_digits

    if args.data == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        y = y[:, None]
    elif args.data == "digits":
        pixels = load_digits().data
        hidden = [8 * row + column for row in range(1, 6) for column in ((2, 4) if row % 2 else (3, 5))]
        x, y = np.delete(pixels, hidden, axis=1), pixels[:, hidden]
    else:
        raise SystemExit(f"--data {args.data}: table 4.1 takes diabetes or digits.")
    order = np.random.default_rng(0).permutation(len(x))
    cut = round(0.8 * len(order))
    rows, rest = order[: min(cut, args.max_train or cut)], order[cut:][: args.max_test]

    def standardised(values: np.ndarray) -> list[Tensor]:
        mean, std = values[rows].mean(0), values[rows].std(0)
        std[std == 0] = 1.0  # the pixels at the edge
        return [torch.tensor((values[part] - mean) / std, dtype=torch.float32) for part in (rows, rest)]

    (x_train, x_test), (y_train, y_test) = standardised(x), standardised(y)

    def model() -> PreTrainedModel:
        return MLP(MLPConfig(inputs=x.shape[1], num_labels=y.shape[1], problem_type="regression"))

    return Task(Part(x_train, y_train), Part(x_test, y_test), model, "features")


def corrupted(task: Task, kind: str, rate: float, seed: int) -> Part:
    """The training part with a share of wrong targets, and which."""
    part = task.train
    if kind == "clean" or rate == 0:
        return Part(part.inputs, part.targets, torch.zeros(len(part), dtype=torch.bool))
    if task.regression:
        targets, wrong = corrupt_target_array(part.inputs.numpy(), part.targets.numpy(), kind, rate=rate, seed=seed)
        return Part(part.inputs, torch.from_numpy(targets), torch.from_numpy(wrong))
    features = datasets.Features({"label": datasets.ClassLabel(names=task.names)})
    rows = datasets.Dataset.from_dict({"label": part.targets.tolist()}, features=features)
    noisy = torch.tensor(corrupt_labels(rows, kind, rate=rate, seed=seed)["label"][:])
    return Part(part.inputs, noisy, noisy != part.targets)


# ---- one run ----------------------------------------------------------------------------------------------------------


def resolve(name: str) -> tuple[str, dict[str, Any]] | None:
    """The method and the settings that a name stands for; None where this version has no such method."""
    method, given = (name, {}) if name in METHODS else VARIANTS.get(name, (name, {}))
    if method not in METHODS or set(given) - set(METHODS[method].settings):
        return None
    return method, dict(given)


def method_settings(args: argparse.Namespace, name: str, told: float | str) -> dict[str, Any]:
    """All settings of a run's method. ``told``: the rate for methods that ask for one."""
    found = resolve(name)
    assert found is not None
    method, given = found
    takes = METHODS[method].settings
    if "noise_rate" in takes:
        given["noise_rate"] = told
    if "drop_ramp_epochs" in takes:
        given["drop_ramp_epochs"] = args.ramp_epochs
    for change in args.set:
        key, equals, text = change.partition("=")
        for_method, dot, setting = key.rpartition(".")
        if not equals or not any(setting in row.settings for row in METHODS.values()):
            raise SystemExit(f"--set {change}: write setting=value or method.setting=value, with a setting of a method.")
        if (dot and for_method != name) or setting not in takes:
            continue
        given[setting] = yaml.safe_load(text)
    return dict(METHODS[method](**given).settings)


def make_trainer(args: argparse.Namespace, task: Task, train: Part, name: str, settings: dict[str, Any], epochs: int) -> Any:
    """A trainer of a fresh model; ``name`` as in --methods."""
    found = resolve(name)
    assert found is not None
    config = RobustConfig(
        output_dir=args.folder, method=found[0], method_settings=changed(found[0], settings), num_train_epochs=epochs,
        per_device_train_batch_size=args.batch_size, learning_rate=args.lr, weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm, lr_scheduler_type=args.lr_scheduler_type, optim="adamw_torch", seed=args.seed,
        logging_strategy="epoch", save_strategy="no", eval_strategy="no", report_to=[], disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=torch.cuda.is_available(), bf16=args.bf16, label_names=["labels"],
    )  # fmt: skip
    trainer = RobustTrainer(
        model=task.model(), args=config, train_dataset=Positions(len(train)), data_collator=partial(gather, train, task.input_name)
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


class EachEpoch(TrainerCallback):
    """Takes the test figure after every epoch; gives the ledger the truth before the first."""

    def __init__(self, trainer: Any, task: Task, truth: Tensor | None):
        self.trainer, self.task, self.truth = trainer, task, truth
        self.figures: list[float] = []
        self.together: list[float] = []
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ledger is not None and self.truth is not None:
            self.trainer.ledger.truth = self.truth.to(args.device)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        peers = self.predict()
        self.figures.append(statistics.fmean(self.figure(logits) for logits in peers))
        if len(peers) > 1:
            self.together.append(self.figure(peers.mean(0)))
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def predict(self) -> Tensor:
        """The outputs on the test part, (M, N, K): one row per network."""
        model, device = self.trainer.model, self.trainer.args.device
        training = model.training
        model.eval()
        found = []
        for chunk in self.task.test.inputs.split(500):
            outputs = model(**{self.task.input_name: chunk.to(device)})
            peers = outputs.get("peer_logits")  # (B, M, K)
            found.append((outputs["logits"].unsqueeze(1) if peers is None else peers).transpose(0, 1).float().cpu())
        model.train(training)
        return torch.cat(found, 1)

    def figure(self, outputs: Tensor) -> float:
        """Accuracy in percent, or R-square averaged over the outputs."""
        targets = self.task.test.targets
        if not self.task.regression:
            return 100 * float((outputs.argmax(-1) == targets).double().mean())
        error = (outputs - targets).double().square().sum(0)
        spread = (targets - targets.mean(0)).double().square().sum(0)
        return float((1 - error / spread).mean())


def run(args: argparse.Namespace, task: Task, train: Part, name: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Trains once and returns the figures. For two networks ``epochs`` has the mean of theirs, ``together`` their mean's."""
    args.seed = seed
    set_seed(seed)
    with tempfile.TemporaryDirectory() as args.folder:
        trainer = make_trainer(args, task, train, name, settings, args.epochs)
        each = EachEpoch(trainer, task, train.corrupted)
        trainer.add_callback(each)
        start, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    detection = trainer.ledger.detection() if trainer.ledger is not None else {}
    if "noise_rate" not in settings:  # the ledger of a method that drops nothing has an order, but no decision
        detection = {k: v for k, v in detection.items() if k == "auroc"}
    return {
        "epochs": [round(v, 5) for v in each.figures],
        "together": [round(v, 5) for v in each.together],
        "detection": {k: round(v, 5) for k, v in detection.items()},
        "estimate": None if (found := trainer.estimated_noise_rate) is None else [found.rate, found.low, found.high],
        "train_seconds": round(seconds - each.seconds, 2),
        "eval_seconds": round(each.seconds, 2),
        "cpu_seconds": round(cpu, 2),
    }


# ---- time of an epoch (table 4.6) ---------------------------------------------------------------------------------------


class Clock(TrainerCallback):
    """Seconds of the epoch, from its start to its end."""

    def __init__(self) -> None:
        self.start = self.seconds = 0.0

    def now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = self.now()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = self.now() - self.start


def time_epochs(
    args: argparse.Namespace, task: Task, train: Part, settings: dict[str, dict[str, Any]], seed: int
) -> dict[str, list[float]]:
    """Seconds of an epoch per method and round: in every round one epoch of each method, after one that warms up."""
    args.seed = seed
    found: dict[str, list[float]] = {name: [] for name in settings}
    with tempfile.TemporaryDirectory() as args.folder:
        made = {}
        for name in settings:
            set_seed(seed)
            clock = Clock()
            trainer = make_trainer(args, task, train, name, settings[name], 1)
            trainer.add_callback(clock)
            made[name] = trainer, clock
        for number in range(args.rounds + 1):
            for name in list(made) if number % 2 else reversed(made):
                trainer, clock = made[name]
                trainer.train()
                if number:
                    found[name].append(round(clock.seconds, 4))
            told = ", ".join(f"{name} {seconds[-1]:.2f} s" for name, seconds in found.items() if seconds)
            print(f"round {number} of {args.rounds}: {told or 'warm-up'}", flush=True)
    return found


# ---- all runs ---------------------------------------------------------------------------------------------------------

#: What makes a run that run, beside noise, method and seed; a change of any of these is another run.
PROTOCOL = ("data", "model", "max_train", "max_test", "epochs", "batch_size", "lr", "weight_decay", "max_grad_norm",
            "lr_scheduler_type", "bf16")  # fmt: skip


def run_settings(args: argparse.Namespace, noise: str, offset: float, name: str, seed: int) -> dict[str, Any]:
    """All that fixes a run. Table 4.4's runs at offset 0 are those of table 4.2."""
    kind, rate = split_noise(noise)
    told = round(min(max(rate + offset, 0.0), 0.99), 4)
    return {
        "figure": {"4.1": "r2", "4.6": "seconds"}.get(args.table, "accuracy"),
        "protocol": {k: getattr(args, k) for k in PROTOCOL},
        "noise": kind,
        "rate": rate,
        "told": told,
        "method": name,
        "settings": method_settings(args, name, told if args.noise_rate is None else args.noise_rate),
        "seed": seed,
    }


def run_all(args: argparse.Namespace) -> None:
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["key"] for row in read_results(out)}
    methods = []
    for name in args.methods:
        if resolve(name) is None:
            print(f"{name}: skipped, robust_trainer.METHODS has no such method (or setting)", flush=True)
        else:
            methods.append(name)
    offsets = OFFSETS if args.table == "4.4" else (0.0,)
    if args.table == "4.4":
        methods = [name for name in methods if "noise_rate" in METHODS[resolve(name)[0]].settings]  # type: ignore[index]
    wanted = [
        (noise, seed, run_settings(args, noise, offset, name, seed))
        for seed in args.seeds for noise in args.noise for name in methods for offset in offsets
    ]  # fmt: skip
    todo = [(noise, seed, row) for noise, seed, row in wanted if key_of(row) not in done]
    print(f"{len(todo)} runs to do, {len(wanted) - len(todo)} of {len(wanted)} found in {out}", flush=True)
    if not todo:
        return
    task = numbers(args) if args.table == "4.1" else images(args)
    now, train = None, task.train
    for number, (noise, seed, row) in enumerate(todo, 1):
        if now != (noise, seed):
            now = (noise, seed)
            try:
                train = corrupted(task, *split_noise(noise), seed)
            except ValueError as error:
                train = task.train
                print(f"{noise}: skipped: {error}", flush=True)
        if train.corrupted is None:
            continue
        more = {
            "realised_rate": round(float(train.corrupted.double().mean()), 6), "n_train": len(train), "n_test": len(task.test),
            "table": args.table, "command": " ".join(sys.argv[1:]), "machine": machine(),
        }  # fmt: skip
        if args.table == "4.6":
            if key_of(row) in done:
                continue  # timed together with an earlier one
            group = {r["method"]: r for n, s, r in wanted if (n, s) == now}  # all anew: only one run's epochs compare
            seconds = time_epochs(args, task, train, {m: r["settings"] for m, r in group.items()}, seed)
            for method, r in group.items():
                add_result(out, {"key": key_of(r), **r, "epoch_seconds": seconds[method], **more})
            done |= {key_of(r) for r in group.values()}
            continue
        head = f"[{number}/{len(todo)}] {noise} {row['method']} told {row['settings'].get('noise_rate', 'nothing')} seed {seed}"
        try:
            figures = run(args, task, train, row["method"], row["settings"], seed)
        except ValueError as error:
            print(f"{head}: refused: {error}", flush=True)
            continue
        add_result(out, {"key": key_of(row), **row, **figures, **more})
        last = statistics.fmean(figures["epochs"][-args.last_k :])
        told = ", ".join(f"{k} {v:.3f}" for k, v in figures["detection"].items())
        if figures["estimate"] is not None:
            told += ", estimate {:.3f} ({:.3f} to {:.3f})".format(*figures["estimate"])
        print(f"{head}: {row['figure']} {last:.3f}; {told}; {figures['train_seconds'] + figures['eval_seconds']:.0f} s", flush=True)


# ---- arguments --------------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", help="YAML file with these arguments by name; the command line wins")
    p.add_argument("--table", choices=TABLES, default="4.2")
    p.add_argument("--data", help="mnist, cifar10, ...: see --data_dir; for table 4.1 diabetes or digits, which scikit-learn ships")
    p.add_argument("--data_dir", help="folder that holds <data>/train.parquet and test.parquet; without it: hub name or 'digits'")
    p.add_argument(
        "--model", default="plain-cnn", help="plain-cnn, small-cnn, resnet32, ... (robust_trainer.models.zoo); not for 4.1"
    )
    p.add_argument("--noise", nargs="+", help="kind:rate, or clean; default: the paper's")
    p.add_argument("--methods", nargs="+", help="names, also separated by commas; default: the paper's")
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="setting=value or method.setting=value")
    p.add_argument("--noise_rate", help="the rate that methods are told, or auto; default: the true one")
    p.add_argument("--ramp_epochs", type=float, default=10, help="epochs until the full rate is dropped")
    p.add_argument("--epochs", type=int, default=100)
    p.add_argument("--batch_size", type=int, default=128)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--weight_decay", type=float, default=0.0)
    p.add_argument("--max_grad_norm", type=float, default=0.0, help="clipping for every method; 0: none, as in the paper")
    p.add_argument("--lr_scheduler_type", default="constant")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--max_train", type=int, help="a fixed random part of this size; default: all")
    p.add_argument("--max_test", type=int, help="likewise")
    p.add_argument("--last_k", type=int, default=10, help="epochs to average")
    p.add_argument("--rounds", type=int, default=5, help="table 4.6: epochs of each method, after one that warms up")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--threads", type=int, help="CPU threads")
    p.add_argument("--out", default="runs/label_noise.jsonl")
    p.add_argument("--report", action="store_true", help="print the tables of --out and stop")
    known, _ = p.parse_known_args(argv)
    if known.config:
        defaults_from_yaml(p, known.config)
    args = p.parse_args(argv)
    args.table = str(args.table)  # a YAML file may hold a number
    args.model = "mlp" if args.table == "4.1" else args.model
    args.noise = args.noise or NOISE_OF[args.table]
    args.methods = [name for words in args.methods or [METHODS_OF[args.table]] for name in words.split(",") if name]
    if args.noise_rate is not None:
        args.noise_rate = yaml.safe_load(str(args.noise_rate))
    if not 1 <= args.last_k <= args.epochs and not args.report:
        raise SystemExit(f"--last_k {args.last_k}: must be from 1 to --epochs {args.epochs}.")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.report:
        print(report(read_results(Path(args.out)), args.last_k) or f"no results in {args.out}")
        return
    if not args.data:
        raise SystemExit("--data is missing: mnist, cifar10, ... with --data_dir, or for table 4.1 diabetes or digits.")
    if args.threads:
        torch.set_num_threads(args.threads)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    run_all(args)


if __name__ == "__main__":
    main()
