"""The kinds of cases of `fuzz` about judged labels: `train --method auto`, `audit --dataset` and `demo`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from fuzz_data import NAMES, WILD, Unlike, command, differ
from PIL import Image
from transformers import ResNetConfig, ResNetModel

from robust_trainer.models.zoo import PlainProcessor
from robust_trainer.reporting.parquet_files import RUN_KEY

SYLLABLES = ["ba", "do", "ki", "ru", "sa", "te", "mo", "li", "né", "ü", "日", "🙂", "<b>", "\t", "'", '"', "0", "-"]


def label_numbers(draw: random.Random, rows: int, classes: int) -> tuple[list[int], list[int]]:
    """The right classes of rows and the labels given: even or with a long tail, and a share of them wrong."""
    shares = [1.0 if draw.random() < 0.6 else 0.5**c for c in range(classes)]
    truth = [min(i, classes - 1) if i < 2 else draw.choices(range(classes), shares)[0] for i in range(rows)]
    rate = draw.choice([0.0, 0.0, 0.1, 0.3, 0.5])
    return truth, [draw.randrange(classes) if draw.random() < rate else c for c in truth]


def images_of(draw: random.Random, truth: list[int], classes: int) -> list[Image.Image]:
    """An image a row: of one brightness a class, of noise, or all the same; some with a bright corner."""
    make, side = np.random.default_rng(draw.randrange(9999)), draw.choice([4, 8, 13])
    shape = (len(truth), side, side) if draw.random() < 0.5 else (len(truth), side, side, 3)
    kind = draw.choice(["told"] * 4 + ["noise", "same"])
    pixels = make.integers(0, 60, shape) if kind != "same" else np.full(shape, 90)
    if kind == "told":
        pixels = pixels + (190 * np.asarray(truth) // max(classes - 1, 1)).reshape(-1, *[1] * (len(shape) - 1))
    if draw.random() < 0.3:
        pixels[make.random(len(truth)) < 0.2, -2:, -2:] = 255
    return [Image.fromarray(image.astype(np.uint8)) for image in pixels]


def texts_of(draw: random.Random, truth: list[int]) -> list[str]:
    """A text a row: words of its class among others, or the same everywhere, or hardly anything."""
    kind = draw.choice(["told"] * 4 + ["noise", "same", "short"])
    own = [["".join(draw.choices(SYLLABLES, k=3)) for _ in range(4)] for _ in range(max(truth) + 1)]
    common = ["".join(draw.choices(SYLLABLES, k=2)) for _ in range(20)]

    def one(c: int) -> str:
        if kind in ("same", "short"):
            return "all alike" if kind == "same" else draw.choice("abc.é")
        words = draw.choices(common, k=draw.choice([1, 5, 60])) + (draw.choices(own[c], k=3) if kind == "told" else [])
        return " ".join(draw.sample(words, len(words)))

    return [one(c) for c in truth]


def stored(draw: random.Random, folder: Path, rows: int, classes: int, **more: list[Any]) -> tuple[str, list[str]]:
    """A data set on disk with a test split, and the names of the labels given."""
    names = sorted(draw.sample([n for n in [*WILD, *NAMES] if n.strip()], classes)) if draw.random() < 0.3 else []
    names = names or [f"class {i:02}" for i in range(classes)]
    truth, given = label_numbers(draw, rows + 12, classes)
    text = bool(more) or draw.random() < 0.4
    inputs: dict[str, Any] = {"text": texts_of(draw, truth)} if text else {"image": images_of(draw, truth, classes)}
    if more:
        inputs |= {name: list(values) + list(values[:1]) * 12 for name, values in more.items()}
    features = {"text": datasets.Value("string")} if text else {"image": datasets.Image()}
    whole = datasets.Dataset.from_dict({**inputs, "label": given})
    whole = whole.cast_column("label", datasets.ClassLabel(names=names))
    if not text:
        whole = whole.cast_column("image", features["image"])
    datasets.DatasetDict(train=whole.select(range(rows)), test=whole.select(range(rows, rows + 12))).save_to_disk(
        str(folder / "data")
    )
    return str(folder / "data"), [names[c] for c in given[:rows]]


SANE = {
    "looks": ["1", "2", "3", "9"], "relabel_from": ["0.3", "0.8", "1"], "find_patterns": ["true", "false"],
    "class_floor": ["0", "1", "10", "100000"], "objective": ["auto", "gce"], "num_train_epochs": ["1", "2", "3", "4", "1.5"],
    "max_steps": ["1", "2", "7"], "gradient_accumulation_steps": ["2", "3"], "per_device_train_batch_size": ["1", "7", "64"],
    "dataloader_drop_last": ["true"], "save_strategy": ["steps", "no"], "seed": ["5"],
}  # fmt: skip
ODD_VALUES = ["0", "-1", "1.5", "nan", "inf", "x", "", "true", "1e9", "[1]", "null", "2.0", "½", "0.0", "1e-9"]
JUDGING = ["looks", "relabel_from", "find_patterns", "class_floor", "objective"]


def given_options(draw: random.Random, odd: bool) -> list[str]:
    """Options of `auto` and of the training; of a field or by ``--set``."""
    words: list[str] = []
    for name in draw.sample([*SANE], draw.choice([0, 1, 2, 3])):
        value = draw.choice(ODD_VALUES if odd and name in JUDGING else SANE[name])
        by_set = name == "class_floor" or (name in JUDGING and draw.random() < 0.3)
        words += ["--set", f"{name}={value}"] if by_set else [f"--{name}", value]
    return words


def autos(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    """`train --method auto`: what results.json tells of the labels is what the ledger holds, and the audit flags what it doubts."""
    rows, classes, odd = draw.choice([1, 5, 30, 49, 50, 70, 120]), draw.choice([1, 2, 2, 3, 5, 12]), draw.random() < 0.2
    data, given = stored(draw, folder, rows, min(classes, rows))
    options = given_options(draw, odd)
    base = ["--num_train_epochs", "2", "--per_device_train_batch_size", "16"]
    base = [word for i in (0, 2) if base[i] not in options for word in base[i : i + 2]]
    method = [] if draw.random() < 0.3 else ["--method", "auto"]
    text = "text" in datasets.load_from_disk(data)["train"].column_names
    model = ["--model", "small-bert"] if text else []
    state["valid"] = not odd and rows >= 30 and len(set(given)) > 1 and "--dataloader_drop_last" not in options
    words = ["--output_dir", "run", "--use_cpu", "--disable_tqdm", "true", *base, *method, *model, *options]
    command("train", "--dataset", data, *words)
    record = json.loads(Path("run/results.json").read_text())["runs"][0]
    table = pq.read_table("run/ledger.parquet")
    ledger = {name: table[name].to_numpy() for name in table.column_names}
    names = json.loads(pq.read_schema("run/ledger.parquet").metadata[RUN_KEY])["names"]
    label = np.asarray([names.index(name) for name in given])
    seen = ledger["seen"] > 0  # in a short run some rows are judged and never trained on
    differ("labels", ledger["label"][seen].tolist(), label[seen].tolist())
    found = record["labels"]
    weight, target = ledger["weight"], ledger["target"]
    if not ((weight >= 0) & (weight <= 1)).all() or not ((target == label) | (target == ledger["suggested"]) | (target < 0)).all():
        raise Unlike(f"weights from {weight.min()} to {weight.max()}, or a target that is neither given nor suggested")
    out, moved = float((weight == 0).mean()), float(((target >= 0) & (target != label) & (weight > 0)).mean())
    if abs(found["left_out"] - out) > 1e-6 or abs(found["relabelled"] - moved) > 1e-6:
        raise Unlike(f"left out {found['left_out']} and relabelled {found['relabelled']}, in the ledger {out} and {moved}")
    if not found["known"] and (out or moved):
        raise Unlike("nothing is known of the labels, and rows are left out")
    if rows < 50 and found["known"]:
        raise Unlike(f"{rows} rows are judged")
    command("audit", "run", "--clean", draw.choice(["none", "drop", "relabel"]), "--force", "true")
    flagged = pq.read_table("run/audit/audit.parquet")["flagged"].to_numpy()
    if found["known"] and not flagged[ledger["label_wrong"] > 0.5].all():
        raise Unlike("the audit does not flag all that the training doubted")


def numbers_of(draw: random.Random, rows: int, kind: str) -> np.ndarray:
    """Features of rows, (N, D), some of them odd."""
    make, width = np.random.default_rng(draw.randrange(9999)), draw.choice([1, 2, 8, 40, 200])
    values = make.normal(size=(rows, width)) + 4 * make.normal(size=(4, width))[make.integers(0, 4, rows)]
    if kind in ("nan", "inf", "huge"):
        values[draw.randrange(rows), draw.randrange(width)] = {"nan": np.nan, "inf": np.inf, "huge": 1e300}[kind]
    if kind == "zero rows":
        values[: rows // 3] = 0
    changed: dict[str, Callable[[], np.ndarray]] = {
        "constant": lambda: np.ones_like(values), "small": lambda: values * 1e-30, "large": lambda: values * 1e30,
        "half": lambda: values.astype(np.float16), "whole": lambda: values.astype(np.int64), "bool": lambda: values > 0,
        "fewer rows": lambda: values[:-1], "one axis": lambda: values[:, 0], "three axes": lambda: values[:, :, None],
        "no columns": lambda: values[:, :0], "text": lambda: values.astype(str), "complex": lambda: values + 1j,
        "reversed": lambda: values[::-1][::-1][:, ::-1], "columns first": lambda: np.asfortranarray(values),
    }  # fmt: skip
    return changed.get(kind, lambda: values)()


FINE = ["plain"] * 6 + ["small", "large", "half", "columns first", "reversed"]
STRANGE = [
    "nan", "inf", "huge", "zero rows", "constant", "whole", "bool", "fewer rows", "one axis", "three axes", "no columns", "text",
    "complex",
]  # fmt: skip


def judged(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    """`audit --dataset` by features, probabilities or a network: flagged rows, groups of duplicates and the cleaned set agree."""
    rows, classes = draw.choice([1, 4, 30, 60, 150, 400]), draw.choice([1, 2, 2, 3, 5, 12])
    by = draw.choice(["column", "column", "file", "file", "probs", "model"])
    kind = draw.choice(FINE if draw.random() < 0.6 else STRANGE)
    numbers = numbers_of(draw, rows, kind)
    copied = kind in FINE and kind not in ("half",) and rows >= 30 and by in ("column", "file")
    if copied:
        numbers[5], numbers[9] = numbers[3], numbers[3]
    more: dict[str, list[Any]] = {}
    classes = min(classes, rows)
    if by == "column":
        try:
            more = {"vector": numbers.tolist()}
            data, given = stored(draw, folder, rows, classes, **more)
        except Exception:  # what Arrow does not hold
            return
        words = ["--features", "vector"]
    elif by == "model":
        torch.manual_seed(0)
        network = ResNetConfig(embedding_size=8, hidden_sizes=[16], depths=[1], layer_type="basic", downsample_in_first_stage=False)
        ResNetModel(network).save_pretrained("network")
        PlainProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained("network")
        data, given = stored(draw, folder, rows, classes)
        words = ["--model", "network", "--batch_size", draw.choice(["1", "7", "64"])]
    else:
        data, given = stored(draw, folder, rows, classes)
        if by == "probs":
            numbers = np.random.default_rng(rows).dirichlet([0.4] * classes, rows)
            if kind in STRANGE:
                numbers = numbers * 2 if draw.random() < 0.5 else numbers[:, :-1]
        np.save("numbers.npy", numbers)
        words = ["--features" if by == "file" else "--pred_probs", "numbers.npy"]
    options = {
        "threshold": ["0.2", "0.9", "1", "nan"], "clean": ["none", "relabel", "drop", "burn"],
        "relabel_confidence": ["0.3", "1", "0"],
        "class_floor": ["0", "3", "100000", "-1"], "per_class": ["1", "50", "0"], "look": ["false", "maybe"], "force": ["true"],
        "seed": ["7", "-1"], "max_length": ["4"], "label_column": ["label", "text", "nothing"],
    }  # fmt: skip
    chosen = {name: draw.choice(options[name]) for name in draw.sample([*options], draw.choice([0, 1, 1, 2, 3]))}
    wrong = {"1", "nan", "burn", "0", "-1", "maybe", "text", "nothing", "4"} & set(chosen.values())
    image = "image" in datasets.load_from_disk(data)["train"].column_names
    state["valid"] = not wrong and kind in FINE and rows >= 30 and (by != "model" or image)
    command(
        "audit",
        "--dataset",
        data,
        *words,
        *[w for name, value in chosen.items() for w in (f"--{name}", value)],
        "--output_dir",
        "out",
    )
    table, told = pq.read_table("out/audit.parquet").to_pydict(), json.loads(Path("out/audit.json").read_text())
    differ("labels", [told["classes"][c] for c in table["label"]], given)
    threshold = float(chosen.get("threshold", 0.5))
    suspicion, flagged, group = (np.asarray(table[name]) for name in ("suspicion", "flagged", "group"))
    if not ((suspicion >= 0) & (suspicion <= 1)).all():
        raise Unlike(f"suspicion from {suspicion.min()} to {suspicion.max()}")
    triggered = np.asarray([value in ("triggered", 2) for value in group.tolist()])
    differ("flagged", flagged.tolist(), ((suspicion >= threshold) | triggered).tolist())
    differ("flagged, as told", told["flagged"], int(flagged.sum()))
    if copied and "duplicate_group" in table and len({table["duplicate_group"][row] for row in (3, 5, 9)} | {-1}) != 2:
        raise Unlike(f"equal rows are in groups {[table['duplicate_group'][row] for row in (3, 5, 9)]}")
    if Path("out/cleaned/train.parquet").is_file():
        left = pq.read_table("out/cleaned/train.parquet").num_rows
        if not int((~flagged).sum()) <= left <= rows:
            raise Unlike(f"{left} rows are left of {rows}, of which {int(flagged.sum())} are flagged")
    elif chosen.get("clean", "drop") != "none" and not told["cautions_that_forbid_cleaning"] and not chosen.get("force"):
        if flagged.mean() < 0.4:
            raise Unlike("no cleaned set, and no caution that forbids one")


def demos(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    """`demo` with options that nobody would give; now and then one that runs."""
    odd = [
        ["--method"], ["--method", "Auto"], ["--method", "auto", "nothing"], ["--epochs", "0"], ["--epochs", "1.5"],
        ["--epochs", ""],
        ["--seed", "x"], ["--output_dir", ""], ["--output_dir", "/proc/nowhere"], ["stray"],
        ["--looks", "2"], ["--seed=1", "--seed=2"],
        ["--method", "erat"], ["--epochs", "-1"], ["--overwrite", "maybe"],
    ]  # fmt: skip
    if draw.random() < 0.7:
        command("demo", "--epochs", "1", "--method", "standard", *draw.choice(odd)[:4])
        return
    seed = str(draw.randrange(99))
    command("demo", "--epochs", "1", "--method", draw.choice(["standard", "auto"]), "--seed", seed, "--output_dir", "out")
    told = json.loads(Path("out/results.json").read_text())["runs"]
    differ("runs", [run["data"] for run in told], ["poisoned", "mislabelled"])
    for run in told:
        command("audit", f"out/{run['folder']}", "--clean", "none", "--look", "false")


KINDS: dict[str, tuple[int, Callable[..., None]]] = {"autos": (45, autos), "judged": (50, judged), "demos": (5, demos)}
