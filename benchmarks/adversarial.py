"""Adversarial training on wrong labels: tables in the form of NRAT's 1, 2, 3 and 5, with its figures beside ours.

NRAT, "NRAT: towards adversarial training with inherent label noise". A share of the training labels is wrong, the test
labels are not. Natural accuracy and accuracy under PGD-20, CW-20 and AutoAttack, of the best and of the last epoch; mean ±
standard deviation over seeds. Best is, as in the paper, the epoch of the highest robust accuracy ON THE TEST SET, an oracle's
choice: what one gets without an oracle is `RobustnessCallback`'s held-out choice. The gap between best and last measures double
overfitting.

    python benchmarks/adversarial.py --config benchmarks/configs/adversarial_mnist.yaml --data_dir <folder with mnist/train.parquet>
    python benchmarks/adversarial.py --config benchmarks/configs/adversarial_mnist.yaml --data_dir <folder> --final autoattack
    python benchmarks/adversarial.py --config benchmarks/configs/adversarial_mnist.yaml --report

The first command trains and attacks with --during and --final; the second attacks the weights that the first kept with more. One
JSON line per finished run or evaluation, appended to --out; what is found there is skipped, so a stopped command can be given anew.
Attacks act on [0, 1] pixels before the normalisation. The authors' code clamps normalised tensors to [0, 1]: its figures belong to
another threat model, and only orders and gaps can be compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
import yaml
from adversarial_report import report
from common import add_result, defaults_from_yaml, key_of, machine, read_results
from label_noise import Part, Positions, gather, images
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, TrainerCallback, set_seed

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.cli.options import read_class_map
from robust_trainer.corruptions import corrupt_labels
from robust_trainer.evaluation.robustness import evaluate_robustness
from robust_trainer.methods.table import get_method
from robust_trainer.methods.units import fraction
from robust_trainer.models.small_networks import SmallCNN, SmallCNNConfig


def resnet18(channels: int, classes: int) -> nn.Module:
    """ResNet-18 with CIFAR's stem: a 3x3 convolution of stride 1, no pooling."""
    config = ResNetConfig(
        num_channels=channels, embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic",
        num_labels=classes,
    )  # fmt: skip
    model = ResNetForImageClassification(config)
    model.resnet.embedder.embedder.convolution = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    model.resnet.embedder.pooler = nn.Identity()
    return model


def make_model(args: argparse.Namespace, train: Part, classes: int) -> nn.Module:
    channels, side = train.inputs.shape[1:3]
    if args.model == "resnet18":
        return resnet18(channels, classes)
    names = dict(enumerate(map(str, range(classes))))
    return SmallCNN(SmallCNNConfig(num_channels=channels, image_size=side, width=args.width, id2label=names))


def prepare(args: argparse.Namespace) -> tuple[Part, Part, int]:
    """Training and test part, averaged down by --pool, and the number of classes."""
    task = images(args)
    parts = []
    for part in (task.train, task.test):
        parts.append(Part(F.avg_pool2d(part.inputs, args.pool) if args.pool > 1 else part.inputs, part.targets))
    assert task.names is not None
    return parts[0], parts[1], len(task.names)


def with_noise(args: argparse.Namespace, part: Part, classes: int, noise: str, seed: int) -> Part:
    """The training part with wrong labels: clean, or kind:rate."""
    if noise == "clean":
        return part
    kind, rate = noise.split(":")
    features = datasets.Features({"label": datasets.ClassLabel(num_classes=classes)})
    rows = datasets.Dataset.from_dict({"label": part.targets.tolist()}, features=features)
    more = {"class_map": read_class_map(args.class_map)} if kind == "asymmetric" else {}
    noisy = torch.tensor(corrupt_labels(rows, kind, rate=float(rate), seed=seed, **more)["label"][:])
    return Part(part.inputs, noisy, noisy != part.targets)


def cropped(part: Part, name: str, padding: int, rows: list[int]) -> dict[str, Tensor]:
    """A batch with a random crop and a random flip for each image."""
    batch = gather(part, name, rows)
    x = batch[name]
    size = x.shape[-1]
    padded = F.pad(x, [padding] * 4, value=-1.0)  # black
    out = []
    for image in padded:
        top, left = torch.randint(0, 2 * padding + 1, (2,)).tolist()
        image = image[:, top : top + size, left : left + size]
        out.append(image.flip(-1) if torch.rand(()) < 0.5 else image)
    return {**batch, name: torch.stack(out)}


class Tracker(TrainerCallback):
    """Natural and robust accuracy on the test part at the interval; keeps the weights of the best and of the last epoch."""

    def __init__(self, args: argparse.Namespace, attack: Any, trainer: Any):
        self.args, self.attack, self.trainer = args, attack, trainer
        self.history: list[tuple[float, float, float]] = []
        self.best: dict[str, Tensor] = {}
        self.seconds = 0.0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = round(state.epoch)
        if epoch % self.args.every and epoch != self.args.epochs:
            return
        start = time.perf_counter()
        model = self.trainer.model
        found = self.attack(model, [self.args.during], self.args.max_test)
        robust = found.accuracies[self.args.during]
        if not self.history or robust > max(row[2] for row in self.history):
            self.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.history.append((epoch, found.clean_accuracy, robust))
        self.seconds += time.perf_counter() - start


def train(args: argparse.Namespace, settings: dict[str, Any], data: Part, test: Part, classes: int) -> dict[str, Any]:
    """Trains once; the history, and the weights of the best and of the last epoch as files."""
    set_seed(settings["seed"])
    model = make_model(args, data, classes)
    name = "pixel_values"
    steps = -(-len(data) // args.batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=args.weight_decay)
    if args.optim == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(share * args.epochs) * steps for share in args.milestones])
    collate = partial(cropped, data, name, 4) if args.augment else partial(gather, data, name)
    with tempfile.TemporaryDirectory() as folder:
        config = RobustConfig(
            output_dir=folder, method=settings["method"], method_settings=settings["given"], num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size, max_grad_norm=args.max_grad_norm, seed=settings["seed"],
            logging_strategy="epoch", save_strategy="no", eval_strategy="no", report_to=[], disable_tqdm=True,
            remove_unused_columns=False, label_names=["labels"], dataloader_pin_memory=torch.cuda.is_available(), bf16=args.bf16,
            image_mean=[0.5] * data.inputs.shape[1], image_std=[0.5] * data.inputs.shape[1],
        )  # fmt: skip
        trainer = RobustTrainer(
            model=model, args=config, train_dataset=Positions(len(data)), data_collator=collate, optimizers=(optimizer, schedule)
        )
        trainer.remove_callback(transformers.PrinterCallback)
        tracker = Tracker(args, partial(attack, args, test), trainer)
        trainer.add_callback(tracker)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start - tracker.seconds
    folder = Path(args.out).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    last = {key: value.detach().clone() for key, value in trainer.model.state_dict().items()}
    for which, weights in (("best", tracker.best), ("last", last)):
        safetensors.torch.save_file({k: v.cpu().contiguous() for k, v in weights.items()}, folder / f"{key_of(settings)}.{which}")
    return {"history": tracker.history, "train_seconds": round(seconds, 1), "eval_seconds": round(tracker.seconds, 1)}


def attack(args: argparse.Namespace, test: Part, model: nn.Module, names: list[str], samples: int | None) -> Any:
    """The accuracies of a model under attacks, on the first ``samples`` test images."""
    data = Positions(min(len(test), samples or len(test)))
    mean = [0.5] * test.inputs.shape[1]
    return evaluate_robustness(
        model, data, names, args.eps, image_mean=mean, image_std=mean, batch_size=args.eval_batch_size,
        data_collator=partial(gather, test, "pixel_values"), progress=False,
    )  # fmt: skip


def evaluate(args: argparse.Namespace, key: str, names: list[str], samples: int, parts: tuple[Part, Part, int]) -> dict[str, Any]:
    """Natural and robust accuracies of the kept weights."""
    found: dict[str, Any] = {"samples": samples}
    model = make_model(args, parts[0], parts[2])
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for which in ("best", "last"):
        model.load_state_dict(safetensors.torch.load_file(Path(args.out).with_suffix("") / f"{key}.{which}"))
        result = attack(args, parts[1], model, names, samples)
        found[which] = {"natural": result.clean_accuracy, **result.accuracies}
        found["seconds"] = {name: round(value, 1) for name, value in result.seconds.items()}
    return found


def given_settings(args: argparse.Namespace, name: str) -> tuple[str, dict[str, Any]]:
    """Method and settings of an entry of --methods: a name, or name:setting=value,setting=value."""
    method, _, rest = name.partition(":")
    own = get_method(method).settings
    given: dict[str, Any] = {"eps": args.eps, "step_size": args.step_size}
    if own["steps"] > 1:
        given["steps"] = args.steps
    else:
        given["step_size"] = 1.25 * args.eps
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        given[key] = yaml.safe_load(value)
    get_method(method)(**given)
    return method, given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", help="YAML file of these arguments; flags win")
    add("--data", default="mnist", help="mnist or cifar10")
    add("--data_dir", help="folder that holds the data set's folder")
    add("--max_train", type=int)
    add("--max_test", type=int)
    add("--pool", type=int, default=1, help="average so many pixels in each direction")
    add("--model", default="small-cnn", choices=("small-cnn", "resnet18"))
    add("--width", type=int, default=32, help="of small-cnn")
    add("--methods", nargs="+", default=["pgd-at", "mart", "mart-apl", "trades", "trades-apl", "nrat", "nrat-awp"])
    add("--noise", nargs="+", default=["clean", "symmetric:0.2", "symmetric:0.4", "asymmetric:0.2", "asymmetric:0.4"])
    add("--class_map", default="nrat", help="of asymmetric noise, as corruptions.corrupt_labels takes it")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--eps", default="8/255")
    add("--step_size", default="2/255")
    add("--steps", type=int, default=10)
    add("--epochs", type=int, default=200)
    add("--milestones", type=float, nargs="*", default=[0.5, 0.75], help="shares of training; the learning rate falls tenfold")
    add("--optim", default="sgd", choices=("sgd", "adamw"))
    add("--lr", type=float, default=0.05)
    add("--weight_decay", type=float, default=5e-4)
    add("--batch_size", type=int, default=128)
    add("--max_grad_norm", type=float, default=0.0)
    add("--augment", action="store_true", help="random crops and flips")
    add("--every", type=int, default=1, help="epochs between two evaluations")
    add("--during", default="pgd-20", help="attack of these evaluations")
    add("--final", nargs="*", default=["pgd-20", "cw-20"], help="attacks on the best and the last weights")
    add("--final_samples", type=int, help="test images for --final; default all")
    add("--eval_batch_size", type=int, default=500)
    add("--bf16", action="store_true")
    add("--threads", type=int)
    add("--out", default="runs/adversarial.jsonl")
    add("--report", action="store_true", help="only print the tables")
    known, _ = parser.parse_known_args()
    if known.config:
        defaults_from_yaml(parser, known.config)
    args = parser.parse_args()
    args.eps, args.step_size = fraction("eps", args.eps), fraction("step_size", args.step_size)
    out = Path(args.out)
    if args.report:
        print(report(read_results(out)))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    out.parent.mkdir(parents=True, exist_ok=True)
    train_part, test_part, classes = parts = prepare(args)
    protocol = {
        name: getattr(args, name)
        for name in ("data", "pool", "model", "width", "class_map", "epochs", "milestones", "optim", "lr", "weight_decay",
                     "batch_size", "max_grad_norm", "augment", "every", "during", "bf16")
    } | {"train": len(train_part), "test": len(test_part)}  # fmt: skip
    for seed in args.seeds:
        for noise in args.noise:
            for name in args.methods:
                method, given = given_settings(args, name)
                settings = {"method": method, "given": given, "noise": noise, "seed": seed, "protocol": protocol}
                key = key_of(settings)
                rows = [row for row in read_results(out) if row["key"] == key]
                if not any("history" in row for row in rows):
                    noisy = with_noise(args, train_part, classes, noise, seed)
                    run = train(args, settings, noisy, test_part, classes)
                    wrong = 0.0 if noisy.corrupted is None else float(noisy.corrupted.float().mean())
                    add_result(out, {"key": key, **settings, "realised": wrong, **run, "machine": machine()})
                    print(f"{name} {noise} seed {seed}: {run['history'][-1]} after {run['train_seconds']} s", flush=True)
                samples = min(args.final_samples or len(test_part), len(test_part))
                done = {a for row in rows if "best" in row and row["samples"] == samples for a in row["last"]}
                if todo := [attack_name for attack_name in args.final if attack_name not in done]:
                    found = evaluate(args, key, todo, samples, parts)
                    add_result(out, {"key": key, **found, "machine": machine()})
                    print(f"  best {found['best']}\n  last {found['last']}", flush=True)
    print(report(read_results(out)))


if __name__ == "__main__":
    main()
