"""The papers' backdoor protocol: train on poisoned images, report clean and poison accuracy per rate, method and seed.

Backdoor sec. 5, "Defending backdoor data poisoning attacks using noisy label defense algorithm" (tables 2 to 6; the same figures
are in Dissertation ch. 5, "Robust learning of deep neural networks under data corruption"): the labels of a share `rate` of the
training images are moved to the next class (multi-target) and these images get the trigger; a model is trained from scratch with
AdamW; after every epoch its accuracy on the clean test images, and on all of them triggered (against the true labels), is taken;
the figure is the mean over the last epochs. A method is told the true rate unless --noise_rate or --set says otherwise.

    python benchmarks/backdoor.py --config benchmarks/configs/digits.yaml
    python benchmarks/backdoor.py --config benchmarks/configs/mnist10k.yaml --data <folder with train.parquet and test.parquet>
    python benchmarks/backdoor.py --report --out runs/backdoor.jsonl
    python benchmarks/backdoor.py --config benchmarks/configs/digits_simclr.yaml      (Dissertation table 5.3: few labels)

With --labelled_share a part of the poisoned training images keeps its labels, for every method; methods ending in -simclr or
-simclr-sn first train their backbone by SimCLR on all images, and those of --unlabelled, without labels (`semi_supervised.py`).

One JSON line per finished run, appended to --out; runs found there are skipped, so a stopped command can be given again. Each run
is fixed by its seed: model, order, and the choice of the poisoned images. The blend picture is the same in every run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
import yaml
from backdoor_report import report
from common import add_result, changed, defaults_from_yaml, key_of, machine, read_results
from semi_supervised import SEMI, Backbones, labelled_part
from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.corruptions import BlendTrigger, PatchTrigger, poison, trigger_all
from robust_trainer.data.load import label_names, load_data
from robust_trainer.evaluation.accuracy import attack_success_rate, clean_accuracy, poison_accuracy
from robust_trainer.models.zoo import build_model

TRIGGERS = {"patch": PatchTrigger(), "blend": BlendTrigger()}
#: The papers' ablation (Backdoor tables 4 and 5): the method in one of the two steps only.
ABLATIONS = {"-inner": {"outer_filter": False}, "-outer": {"inner_filter": False}}


# ---- data -------------------------------------------------------------------------------------------------------------


@dataclass
class Images:
    """Pixels (N, C, H, W) in the model's units, labels (N,), and for the poisoned ones what was done to them."""

    pixels: Tensor
    labels: Tensor
    corrupted: Tensor | None = None
    attack_targets: np.ndarray | None = None


class Examples(torch.utils.data.Dataset):
    """A torch data set of dicts over tensors in memory; ``augment``: none, flip, or crop-flip (4 pixels of padding)."""

    def __init__(self, images: Images, augment: str = "none", fill: float = 0.0):
        self.images, self.augment, self.fill = images, augment, fill

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        x = self.images.pixels[i]
        if self.augment == "crop-flip":
            height, width = x.shape[1:]
            padded = nn.functional.pad(x, (4, 4, 4, 4), value=self.fill)
            top, left = torch.randint(0, 9, (2,)).tolist()
            x = padded[:, top : top + height, left : left + width]
        if self.augment != "none" and bool(torch.rand(()) < 0.5):
            x = x.flip(-1)
        return {"pixel_values": x, "labels": self.images.labels[i]}


def to_images(data: datasets.Dataset, mean: float, std: float) -> Images:
    levels = np.stack([np.asarray(picture) for picture in data["image"]])
    pixels = torch.from_numpy(levels if levels.ndim == 4 else levels[..., None]).permute(0, 3, 1, 2).float() / 255
    column = {name: np.asarray(data[name][:]) for name in data.column_names if name != "image"}
    return Images(
        pixels=((pixels - mean) / std).contiguous(),
        labels=torch.from_numpy(column["label"].astype(np.int64)),
        corrupted=torch.from_numpy(column["is_corrupted"].astype(bool)) if "is_corrupted" in column else None,
        attack_targets=column.get("attack_target"),
    )


# ---- one run ----------------------------------------------------------------------------------------------------------


def split_method(name: str) -> tuple[str, dict[str, Any]]:
    """A method and the switches of an ablation: prl-at-inner is prl-at with outer_filter=False."""
    for suffix, switches in ABLATIONS.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), dict(switches)
    return name, {}


def method_settings(name: str, rate: float, noise_rate: float | None, changes: list[str]) -> dict[str, Any]:
    """All settings of the run's method; raises ``SystemExit`` for an unknown one."""
    method, given = split_method(name)
    takes = METHODS[method].settings
    if "noise_rate" in takes:
        given["noise_rate"] = rate if noise_rate is None else noise_rate
    for change in changes:
        key, equals, text = change.partition("=")
        for_method, dot, setting = key.rpartition(".")
        if not equals or (dot and split_method(for_method)[0] not in METHODS):
            raise SystemExit(f"--set {change}: write setting=value or method.setting=value.")
        if dot and for_method != name:
            continue
        if setting not in takes:
            if dot or not any(setting in row.settings for row in METHODS.values()):
                raise SystemExit(f"--set {change}: {method} takes {', '.join(takes) or 'no settings'}.")
            continue
        given[setting] = yaml.safe_load(text)
    return dict(METHODS[method](**given).settings)


class EachEpoch(TrainerCallback):
    """Takes the three figures on the test images after an epoch; gives the ledger the truth before the first."""

    def __init__(self, trainer: Any, clean: Images, triggered: Images, truth: Tensor | None, every: int, last: int):
        self.trainer, self.clean, self.triggered, self.truth = trainer, clean, triggered, truth
        self.every, self.last = every, last
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ledger is not None and self.truth is not None:
            self.trainer.ledger.truth = self.truth.to(args.device)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = round(state.epoch)
        if epoch % self.every and epoch <= state.num_train_epochs - self.last:
            return
        start = time.perf_counter()
        labels = self.clean.labels.numpy()
        clean, triggered = self.predict(self.clean.pixels), self.predict(self.triggered.pixels)
        self.rows.append(
            {
                "epoch": epoch,
                "clean": clean_accuracy(clean, labels),
                "poison": poison_accuracy(triggered, labels),
                "asr": attack_success_rate(triggered, labels, self.triggered.attack_targets),
            }
        )
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> np.ndarray:
        model, device = self.trainer.model, self.trainer.args.device
        training = model.training
        model.eval()
        found = []
        for chunk in pixels.split(1000):
            outputs = model(pixel_values=chunk.to(device))
            found.append((outputs if isinstance(outputs, Tensor) else outputs.logits).argmax(-1).cpu())
        model.train(training)
        return torch.cat(found).numpy()


def run(
    args: argparse.Namespace,
    method: str,
    given: dict[str, Any],
    seed: int,
    names: list[str],
    train: Images,
    clean: Images,
    triggered: Images,
    backbone: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Trains once and returns the figures; backbone: weights to start from."""
    set_seed(seed)
    channels, side = train.pixels.shape[1:3]
    model, _ = build_model(args.model, names, channels=channels, image_size=side, from_scratch=True)
    if backbone is not None:
        model.load_state_dict(backbone)
    with tempfile.TemporaryDirectory() as folder:
        config = RobustConfig(
            output_dir=folder, method=method, method_settings=changed(method, given),
            image_mean=[args.image_mean], image_std=[args.image_std],
            num_train_epochs=args.epochs, per_device_train_batch_size=args.batch_size,
            learning_rate=args.head_lr if backbone is not None else args.lr,
            weight_decay=args.weight_decay, lr_scheduler_type=args.lr_scheduler_type, optim="adamw_torch", seed=seed,
            logging_strategy="epoch", save_strategy="no", eval_strategy="no", report_to=[], disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(), dataloader_num_workers=args.workers, bf16=args.bf16,
        )  # fmt: skip
        fill = -args.image_mean / args.image_std
        trainer = RobustTrainer(model=model, args=config, train_dataset=Examples(train, args.augment, fill))
        trainer.remove_callback(transformers.PrinterCallback)
        each = EachEpoch(trainer, clean, triggered, train.corrupted, args.eval_every, args.last_k)
        trainer.add_callback(each)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    last = each.rows[-args.last_k :]
    keys = ("kept_fraction", "kept_clean", "kept_corrupted")
    kept = [{k: round(row[k], 5) for k in keys if k in row} for row in trainer.state.log_history if "kept_fraction" in row]
    filters = "noise_rate" in given
    detection = trainer.ledger.detection() if trainer.ledger is not None else {}
    if not filters:  # the ledger of a method that drops nothing has an order, but no decision
        detection = {k: v for k, v in detection.items() if k == "auroc"}
    return {
        **{k: statistics.fmean(row[k] for row in last) for k in ("clean", "poison", "asr")},
        "detection": detection,
        "kept_last": kept[-1] if kept else {},
        "epochs": each.rows,
        "kept": kept,
        "train_seconds": round(seconds - each.seconds, 2),
        "eval_seconds": round(each.seconds, 2),
    }


# ---- all runs ---------------------------------------------------------------------------------------------------------

#: What makes a run that run; a change of any of these is another run.
PROTOCOL = (
    "data_name", "model", "train_size", "test_size", "epochs", "batch_size", "lr", "weight_decay", "lr_scheduler_type", "augment",
    "image_mean", "image_std", "last_k", "bf16",
)  # fmt: skip


def run_settings(args: argparse.Namespace, attack: str, rate: float, name: str, seed: int) -> dict[str, Any]:
    semi = {k: getattr(args, k) for k in SEMI} if args.labelled_share < 1 or args.semi else {}
    return {
        "protocol": {**{k: getattr(args, k) for k in PROTOCOL}, **semi},
        "attack": attack,
        "trigger": repr(TRIGGERS[attack]),
        "label_rule": "multi-target",
        "rate": rate,
        "method": name,
        "settings": method_settings(name, rate, args.noise_rate, args.set),
        "seed": seed,
    }


def run_all(args: argparse.Namespace) -> None:
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["key"] for row in read_results(out)}
    todo = [
        (attack, rate, seed, name)
        for attack in args.attack for seed in args.seeds for rate in args.rates for name in args.methods
        if key_of(run_settings(args, attack, rate, name, seed)) not in done
    ]  # fmt: skip
    total = len(args.attack) * len(args.rates) * len(args.seeds) * len(args.methods)
    print(f"{len(todo)} runs to do, {total - len(todo)} of {total} found in {out}", flush=True)
    if not todo:
        return
    found = load_data(args.data, max_train_samples=args.train_size, max_test_samples=args.test_size)
    train, test = found["train"], found["test"]
    scale = (args.image_mean, args.image_std)
    clean = to_images(test, *scale)
    triggered = {
        attack: to_images(trigger_all(test, TRIGGERS[attack], label_rule="multi-target", keep_in_memory=True), *scale)
        for attack in args.attack
    }
    built: tuple[Any, Images | None] = (None, None)
    whole, backbones = None, Backbones(args, label_names(train))
    for number, (attack, rate, seed, name) in enumerate(todo, 1):
        if built[0] != (attack, rate, seed):
            rows = poison(train, trigger=TRIGGERS[attack], rate=rate, seed=seed, keep_in_memory=True)
            whole = to_images(rows, *scale)
            built = ((attack, rate, seed), labelled_part(whole, args.labelled_share, seed))
        poisoned = built[1]
        assert poisoned is not None and whole is not None
        backbone = backbones.weights(whole.pixels, attack, rate, seed) if name.endswith(("-simclr", "-simclr-sn")) else None
        settings = run_settings(args, attack, rate, name, seed)
        method = split_method(name)[0]
        figures = run(args, method, settings["settings"], seed, label_names(train), poisoned, clean, triggered[attack], backbone)
        counts = {"n_train": len(poisoned.labels), "n_test": len(test)}
        line = {"key": key_of(settings), **settings, **figures, **counts, "machine": machine()}
        add_result(out, line)
        told = ", ".join(f"{k} {v:.3f}" for k, v in figures["detection"].items())
        print(
            f"[{number}/{len(todo)}] {attack} {rate} {name} seed {seed}: "
            f"clean {figures['clean']:.2%}, poison {figures['poison']:.2%}, ASR {figures['asr']:.2%}; {told}; "
            f"{figures['train_seconds']:.0f} s",
            flush=True,
        )


# ---- arguments --------------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", help="YAML file with these arguments by name; the command line wins")
    p.add_argument("--data", help="folder with train.parquet and test.parquet, a hub name, or 'digits' (offline)")
    p.add_argument("--dataset", help="its name in the results and the papers' tables (cifar10, cifar100, mnist); default: --data's")
    p.add_argument("--model", default="resnet32", help="small-cnn, resnet32, or a transformers architecture by name or folder")
    p.add_argument("--attack", nargs="+", choices=list(TRIGGERS), default=["patch", "blend"])
    p.add_argument("--rates", nargs="+", type=float, default=[0.15, 0.25, 0.35, 0.45])
    p.add_argument("--methods", nargs="+", default=["standard", "prl", "prl-at"], help="also with -inner and -outer: the ablation")
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="setting=value or method.setting=value")
    p.add_argument("--noise_rate", type=float, help="the rate that methods are told, in [0, 1); default: the true one")
    p.add_argument("--epochs", type=int, default=100)
    p.add_argument("--batch_size", type=int, default=128)
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--weight_decay", type=float, default=0.01)
    p.add_argument("--lr_scheduler_type", default="constant")
    p.add_argument("--augment", choices=["none", "flip", "crop-flip"], default="none")
    p.add_argument("--image_mean", type=float, default=0.5, help="of the input normalisation, in [0, 1] pixels")
    p.add_argument("--image_std", type=float, default=0.5)
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--train_size", type=int, help="a fixed random part of this size; default: all")
    p.add_argument("--test_size", type=int, help="likewise")
    p.add_argument("--last_k", type=int, default=10, help="epochs to average")
    p.add_argument("--eval_every", type=int, default=1, help="epochs between evaluations before the last k")
    p.add_argument("--workers", type=int, default=0, help="data loader processes")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--threads", type=int, help="CPU threads")
    p.add_argument("--labelled_share", type=float, default=1.0, help="share of the poisoned training images whose labels are used")
    p.add_argument("--unlabelled", help="more images for SimCLR: as --data")
    p.add_argument("--contrastive_epochs", type=int, default=100)
    p.add_argument("--contrastive_batch_size", type=int, default=256)
    p.add_argument("--contrastive_lr", type=float, default=2e-3)
    p.add_argument("--contrastive_temperature", type=float, default=0.5)
    p.add_argument("--contrastive_views", default="simclr")
    p.add_argument("--head_lr", type=float, default=2e-2, help="learning rate of the head on a SimCLR backbone")
    p.add_argument("--out", default="runs/backdoor.jsonl")
    p.add_argument("--report", action="store_true", help="print the tables of --out and stop")
    known, _ = p.parse_known_args(argv)
    if known.config:
        defaults_from_yaml(p, known.config)
    args = p.parse_args(argv)
    args.semi = any(name.endswith(("-simclr", "-simclr-sn")) for name in args.methods)
    if not 0 < args.labelled_share <= 1:
        raise SystemExit(f"--labelled_share {args.labelled_share}: must be in (0, 1].")
    for name in args.methods:
        if split_method(name)[0] not in METHODS:
            raise SystemExit(f"--methods {name}: choose from {', '.join(METHODS)}, with -inner or -outer for the ablations.")
        if args.noise_rate is not None and not 0 <= args.noise_rate < 1:
            raise SystemExit(f"--noise_rate {args.noise_rate}: must be in [0, 1).")
    if not 1 <= args.last_k <= args.epochs:
        raise SystemExit(f"--last_k {args.last_k}: must be from 1 to --epochs {args.epochs}.")
    args.data_name = args.dataset or (Path(args.data).name if args.data else None)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.report:
        print(report(read_results(Path(args.out))) or f"no results in {args.out}")
        return
    if not args.data:
        raise SystemExit("--data is missing: a folder with train.parquet and test.parquet, a hub name, or 'digits'.")
    if args.threads:
        torch.set_num_threads(args.threads)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    run_all(args)


if __name__ == "__main__":
    main()
