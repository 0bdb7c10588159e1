"""Two and three processes against one: the same weights, losses and decisions, for every row of the table of methods.

    python benchmarks/process_equality.py --output equality.jsonl            # every row and variant; a stopped run goes on
    python benchmarks/process_equality.py --rows erat trades --processes 3 --lengths uneven --dtype float64

Each row trains a small convolutional network (no BatchNorm, whose statistics are a process's own, and no dropout) for 24 steps
of 12 samples: by one process with batches of 12, by two of 6, by three of 4, by four of 3; ``2x2`` are two processes that
accumulate two batches of 3; ``fsdp2`` are two among which FSDP2 shards the model. 96 samples are divided evenly; of 91 the last
step of an epoch has 7, and loaders repeat samples to give every process its share. Told: the largest relative difference of a
weight tensor (2-norms) and of a step's loss, and whether all that the ledger has decided and counted of each sample is equal.
Where signs of gradients hang on rounding (trades: its inner loss is flat around a sample), float64 is the witness. Processes
are forked, over gloo, on the CPU. --check exits with 1 where a difference is over 1e-5 or a decision differs.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from common import add_result, read_results
from deepspeed_on_cpu import deepspeed_config, deepspeed_on_cpu
from fsdp_on_cpu import fsdp_on_cpu
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.methods.settings import FIELDS, SETTINGS
from robust_trainer.models.sharding import whole

BAR, BATCH, EPOCHS, LENGTHS = 1e-5, 12, 3, {"even": 96, "uneven": 91}
#: Processes, accumulation, and how they share the model: whole ("ddp"), sharded by FSDP2, or DeepSpeed's ZeRO of a stage.
CUTS = {
    "1": (1, 1, "ddp"), "2": (2, 1, "ddp"), "3": (3, 1, "ddp"), "4": (4, 1, "ddp"), "2x2": (2, 2, "ddp"),
    "fsdp2": (2, 1, "fsdp"), "fsdp3": (3, 1, "fsdp"), "fsdp2x2": (2, 2, "fsdp"),
    **{f"zero{stage}": (2, 1, f"zero{stage}") for stage in (1, 2, 3)},
    **{f"zero{stage}x2": (2, 2, f"zero{stage}") for stage in (1, 2, 3)},
}  # fmt: skip
CLASSES, CHANNELS, SIZE, WORDS = 4, 3, 8, 40
#: Settings with which every part of a row is at work within the 24 steps; others are the row's own.
OWN: dict[str, dict[str, Any]] = {
    "normclip": dict(clip_norm=0.1),
    "ignormclip": dict(sample_clip_norm=0.5),
    "prl-at-memory": dict(drop_ramp_steps=5),
    "rebalanced": dict(warmup_epochs=1.0),
    "decouple": dict(warmup_epochs=1.0),
    "erat": dict(warmup_epochs=1.0, lambda_ramp_epochs=0.5, lambda_u=5.0),
}
#: Rows with other settings, as ``row/word``.
VARIANTS: dict[str, dict[str, Any]] = {
    "prl/scan": dict(memory="scan"),
    "prl/auto": dict(noise_rate="auto", learning_rate=0.5),
    "prl/batch": dict(rank_among="batch", per_class=True),
    "prl/drop-last": dict(dataloader_drop_last=True),
    "prl/split": dict(accelerator_config={"split_batches": True}),
    "prl/stream": dict(max_steps=24),
    "min-sgd/groups": dict(min_sgd_group=4),
    "at/start": dict(random_start=True),
    "trades/l1": dict(norm="l1", eps=2.0, step_size=0.5, start_std="uniform"),
    "trades/l2": dict(norm="l2", eps=0.5, step_size=0.2, start_std="uniform"),
    "trades/hybrid": dict(norm="hybrid", start_std="uniform"),
    "erat/both": dict(norm="both"),
    "pgd-at/stream": dict(max_steps=24),
    "pgd-at/text": dict(norm="l2", eps=0.3, step_size=0.1),
    "trades/text": dict(norm="linf", eps=0.3, step_size=0.1, start_std="uniform"),
    "co-prl/three": dict(num_networks=3, peer_exchange="shuffled"),
    "erat/start": dict(random_start=True),
    "erat/crop-flip": dict(strong_augmentation="crop-flip"),
    "erat/one-stream": dict(labelled_share=0.0),
    # DeepSpeed's engine would clip the gradient of all networks as one
    **{f"{row}/unclipped": dict(max_grad_norm=0.0) for row in ("co-teaching", "co-spl", "co-prl", "decouple", "rca")},
}
NAMES = (*METHODS, *VARIANTS)
#: Not the same steps: of accumulated batches the last one is dropped, not the step.
UNLIKE = {("prl/drop-last", "uneven", "2x2"), ("prl/drop-last", "uneven", "fsdp2x2")}


def settings_of(name: str) -> dict[str, Any]:
    """A row's settings: what its parts need, to be at work, and few attack steps."""
    row = name.split("/")[0]
    own, out = METHODS[row].settings, dict(OWN.get(row, {}))
    if "noise_rate" in own:
        out["noise_rate"] = 0.25
    if own.get("drop_schedule") == "ramp" and "drop_ramp_steps" not in out:
        out["drop_ramp_epochs"] = 1
    if own.get("steps", 1) > 1:
        out["steps"] = 3
    if "collapse_check_steps" in own:
        out["collapse_check_steps"] = 3
    return {**out, **VARIANTS.get(name, {})}


class Net(nn.Module):
    """A convolution and a linear layer, from pixels to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 6, 3, padding=1)
        self.head = nn.Linear(6 * 4, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = nn.functional.adaptive_avg_pool2d(self.conv(pixel_values).relu(), 2)
        return self.head(hidden.flatten(1))


def network(row: str, text: bool) -> nn.Module:
    """The row's network; a small ViT where a head is told from a backbone; a small BERT for text."""
    torch.manual_seed(0)
    if text:
        config = BertConfig(
            vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=CLASSES,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return BertForSequenceClassification(config)
    if not METHODS[row].settings.get("freeze_backbone"):
        return Net()
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=SIZE, patch_size=4,
        num_channels=CHANNELS, num_labels=CLASSES, hidden_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config)


def samples(count: int, dtype: torch.dtype) -> datasets.Dataset:
    """Images whose classes differ by a bright quarter, a quarter of the labels wrong."""
    random = np.random.default_rng(0)
    clean = random.integers(0, CLASSES, count)
    x = random.uniform(0.2, 0.7, (count, CHANNELS, SIZE, SIZE))
    for image, label in zip(x, clean):
        image[:, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 0.3
    wrong = random.permutation(count) < count // 4
    rows = {"pixel_values": 2 * x - 1, "labels": np.where(wrong, (clean + 1) % CLASSES, clean)}
    features = datasets.Features(
        pixel_values=datasets.Array3D((CHANNELS, SIZE, SIZE), str(dtype).removeprefix("torch.")), labels=datasets.Value("int64")
    )
    return (
        datasets.Dataset.from_dict(rows, features=features)
        .with_format("numpy")
        .with_transform(
            lambda batch: {
                "pixel_values": list(torch.tensor(np.asarray(batch["pixel_values"]), dtype=dtype)),
                "labels": [int(label) for label in batch["labels"]],
            }
        )
    )


def sentences(count: int) -> list[dict[str, Any]]:
    """Words of one class each, 3 to 12 of them."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, count).tolist()
    return [
        {"input_ids": (1 + label + CLASSES * random.integers(0, 8, random.integers(3, 13))).tolist(), "labels": label}
        for label in labels
    ]


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch as long as its own longest sentence, which other processes' are not."""
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (length - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([row["labels"] for row in rows])}


class Stream(torch.utils.data.IterableDataset):
    """The samples, one after the other."""

    def __init__(self, data: datasets.Dataset):
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


class Losses(TrainerCallback):
    """What is logged of every step."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.rows.append([logs["loss"], logs["grad_norm"], logs["kept_fraction"], logs.get("fgsm_accuracy", 0.0)])


def train(row: str, length: str, dtype: str, cut: str, folder: str, resume: str | None = None, **more: Any) -> dict[str, Any]:
    """Trains in this process, alone or with those that it shares a process group with; what is compared.

    Args:
        row: of `NAMES`.
        length: of `LENGTHS`.
        dtype: of weights and inputs.
        cut: of `CUTS`.
        folder: for checkpoints.
        resume: the checkpoint that it goes on from.
        more: settings of the arguments.
    """
    how = CUTS[cut][2]
    kind = getattr(torch, dtype)
    with fsdp_on_cpu() if how == "fsdp" else deepspeed_on_cpu(kind) if how.startswith("zero") else nullcontext():
        return _train(row, length, dtype, cut, folder, resume, more)


def _train(row: str, length: str, dtype: str, cut: str, folder: str, resume: str | None, more: dict[str, Any]) -> dict[str, Any]:
    processes, accumulation, how = CUTS[cut]
    losses, given, kind = Losses(), settings_of(row), getattr(torch, dtype)
    rest = {name: given.pop(name) for name in [*given] if name in SETTINGS and name not in FIELDS}
    batch = BATCH // accumulation // (1 if "accelerator_config" in given else processes)
    row, _, variant = row.partition("/")
    text = variant == "text"
    data: Any = sentences(LENGTHS[length]) if text else samples(LENGTHS[length], kind)
    data = Stream(data) if variant == "stream" else data
    common = dict(
        output_dir=folder, method=row, method_settings=rest or None, per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation, num_train_epochs=EPOCHS, learning_rate=0.05, optim="sgd",
        optim_args="momentum=0.9", lr_scheduler_type="constant", logging_steps=1, logging_nan_inf_filter=False, report_to=[],
        disable_tqdm=True, save_strategy="no", use_cpu=True, dataloader_pin_memory=False, seed=3, remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    if not text:
        common |= dict(image_mean=[0.5] * CHANNELS, image_std=[0.5] * CHANNELS)
    if how == "fsdp":
        common |= dict(fsdp=True, fsdp_config={})
    elif how.startswith("zero"):
        common |= dict(use_cpu=False, deepspeed=deepspeed_config(int(how[-1])))
    more = {name: dict(value) if isinstance(value, dict) else value for name, value in more.items()}  # the arguments change it
    args = RobustConfig(**{**common, **given, **more})
    collator = padded if text else None
    trainer = RobustTrainer(network(row, text).to(kind), args, collator, train_dataset=data, callbacks=[losses])
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    ledger = trainer.ledger.columns if trainer.ledger is not None else {}
    decided = ("seen", "kept", "predicted", "forgetting", "label")
    state = trainer.accelerator.get_state_dict(trainer.deepspeed) if how == "zero3" else trainer.model.state_dict()
    out = {
        "weights": {name: whole(value).double() for name, value in (state or {}).items()},  # ZeRO-3's are the first process's
        "losses": torch.tensor(losses.rows, dtype=torch.float64),
        "decided": {name: ledger[name].double() for name in decided if name in ledger},
    }
    trainer.accelerator.wait_for_everyone()
    return out


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two trainings' largest relative differences, and the decisions that differ."""
    # the bias of an attention's keys starts at 0 and has no gradient: what it becomes is rounding
    weights = max(float((other["weights"][k] - w).norm() / w.norm().clamp_min(1e-6)) for k, w in one["weights"].items())
    a, b = one["losses"], other["losses"]
    same = a.shape == b.shape
    loss = float(((a - b).abs() / a.abs().clamp_min(1e-3))[:, :2].max()) if same else float("inf")
    decided = sum(int((other["decided"][name] != column).sum()) for name, column in one["decided"].items())
    decided += int((a[:, 2:] - b[:, 2:]).abs().gt(1e-6).sum()) if same else 1
    return {"weights": weights, "loss": loss, "decisions": decided, "steps": len(a)}


def in_group(work: Any, rank: int, processes: int, meeting: str, limit: int) -> None:
    """``work(rank)`` in a process of a group; where it takes longer than the limit, the process ends and tells where it stands."""
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGALRM, file=2, chain=True)
    signal.alarm(limit)
    if processes > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes, timeout=timedelta(seconds=60)
        )
    work(rank)
    os._exit(0)


def together(work: Any, processes: int, limit: int = 300) -> bool:
    """Whether ``work(rank)`` ends well in each of so many forked processes that share a group; where one fails, all are ended.

    Args:
        work: a function.
        processes: how many.
        limit: seconds that it may take; work in parts starts the clock anew by ``signal.alarm``.
    """
    fork = multiprocessing.get_context("fork")  # of a process that has trained nothing
    gc.collect()
    gc.freeze()  # the Trainer collects garbage at its start: what is here already would be half of a short training's time
    with tempfile.TemporaryDirectory() as folder:
        meeting = os.path.join(folder, "meeting")
        children = [fork.Process(target=in_group, args=(work, rank, processes, meeting, limit)) for rank in range(processes)]
        for child in children:
            child.start()
        while (left := [child.sentinel for child in children if child.exitcode is None]) and not any(c.exitcode for c in children):
            multiprocessing.connection.wait(left)
        for child in children:
            child.kill()
            child.join()
    return not any(child.exitcode for child in children)


def run(row: str, length: str, dtype: str, cut: str) -> dict[str, Any]:
    """`train` in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "out.pt")

        def work(rank: int) -> None:
            out = train(row, length, dtype, cut, folder)
            if rank == 0:
                torch.save(out, file)

        if not together(work, CUTS[cut][0]):
            raise SystemExit(f"{row}, {length}, {cut} processes: a process failed, or hung for 300 s.")
        return torch.load(file, weights_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=NAMES, choices=NAMES, metavar="ROW")
    parser.add_argument("--processes", nargs="+", default=["2", "3", "2x2"], choices=[cut for cut in CUTS if cut != "1"])
    parser.add_argument("--lengths", nargs="+", default=list(LENGTHS), choices=list(LENGTHS))
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "float64"])
    parser.add_argument("--output", type=Path, default=Path("process_equality.jsonl"), help="finished rows, as JSON lines")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    names = ("row", "length", "dtype", "processes")
    done = {tuple(found[name] for name in names): found for found in read_results(args.output)}
    head = f"{'row':16} {'processes':>9} {'length':>7} {'dtype':>8} {'weights':>9} {'loss':>9} {'decisions':>9}"
    print(head, flush=True)
    bad = 0
    for row in args.rows:
        for length in args.lengths:
            for dtype in args.dtype:
                one = None
                for cut in args.processes:
                    if (row, length, cut) in UNLIKE:
                        continue
                    key = (row, length, dtype, cut)
                    if key not in done:
                        one = run(row, length, dtype, "1") if one is None else one
                        done[key] = {**dict(zip(names, key)), **differences(one, run(row, length, dtype, cut))}
                        add_result(args.output, done[key])
                    found = done[key]
                    wrong = not (found["weights"] <= BAR and found["loss"] <= BAR) or found["decisions"] > 0
                    bad += wrong
                    decided = "equal" if not found["decisions"] else f"{found['decisions']} differ"
                    print(
                        f"{row:16} {cut:>9} {length:>7} {dtype:>8} {found['weights']:9.1e} {found['loss']:9.1e} {decided:>9}"
                        + (" <" if wrong else ""),
                        flush=True,
                    )
    print(f"{bad} over {BAR:g} or with other decisions")
    sys.exit(1 if bad and args.check else 0)


if __name__ == "__main__":
    main()
