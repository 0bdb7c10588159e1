"""The kinds of cases of `fuzz`: those of `fuzz_data`, and configurations, commands, damaged files and trainings."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuzz_data import NAMES, WILD, Refused, Unlike, called, command, differ, folders, labels, noise, number_of, pictures, tables
from PIL import Image

from robust_trainer import METHODS, RobustConfig, RobustTrainer
from robust_trainer.cli.main import main
from robust_trainer.cli.options import CorruptionOptions, DataOptions, ModelOptions
from robust_trainer.cli.parser import make_parser, parse
from robust_trainer.methods.settings import FIELDS, SETTINGS

__all__ = ["KINDS", "Refused", "Unlike", "finished_runs"]

# ---- configurations ----------------------------------------------------------------------------------------------------------

ODD = [
    None,
    True,
    False,
    0,
    1,
    -1,
    0.2,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "0.2",
    "8/255",
    "1/0",
    "auto",
    "none",
    "true",
    "x" * 2000,
    [],
    [0.2],
    {},
    {"a": 1},
    10**30,
    "1e-3",
    " 0.3 ",
    "nan",
    "٣",
    b"x",
    "-0.1",
    "0x10",
    "1_0",
    "½",
]


def settings(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    odd = draw.random() < 0.4
    method = draw.choice([*METHODS, None, "none", "prll", 3, "", "prl+trades", "co-prl+trades"] if odd else [*METHODS])
    own = dict(METHODS[method].settings) if method in METHODS else {}
    pool = [*own] if own and (not odd or draw.random() < 0.6) else [*SETTINGS, "lambda", "noise_rat", "output_dir"]
    given: dict[str, Any] = {}
    for name in draw.sample(pool or ["eps"], min(max(len(pool), 1), draw.choice([1, 1, 2]))):
        usual, choices = own.get(name), SETTINGS[name].choices if name in SETTINGS else None
        near = (
            [*choices(), "x"] if choices else [usual, not usual] if isinstance(usual, bool) else [0.1, "0.3", 1, 2, "4/255", usual]
        )
        given[name] = draw.choice(ODD if odd else near)
    direct = {n: v for n, v in given.items() if n in FIELDS or n not in SETTINGS}
    other = {n: v for n, v in given.items() if n not in direct}
    try:
        text = json.dumps(other)
    except TypeError:
        text = repr(other)
    if odd and draw.random() < 0.4:
        other = draw.choice(
            [
                text,
                text[:-1],
                "[1]",
                "{",
                "null",
                '{"a": 1}',
                "{'gce_q': 0.3}",
                text.replace("{", '{"gce_q": 0.3, "gce_q": 0.9, ', 1),
            ]
        )
    base = {"output_dir": "out", "use_cpu": True, "report_to": "none"}

    def read() -> tuple[Any, Any]:
        args = RobustConfig(**{**base, "method": method, "method_settings": other or None, **direct})
        return args, args.recipe()

    args, recipe = called(read)
    if recipe is None:
        return
    if isinstance(other, str) and other.count("gce_q") > 1:
        raise Unlike("a setting given twice in JSON is taken once, without a word")
    for name, value in given.items():
        if name in ("output_dir", "lambda", "noise_rat") or value is None or name not in recipe.settings or isinstance(other, str):
            continue
        found, said = recipe.settings[name], number_of(value)
        if said is not None and isinstance(found, int | float) and not isinstance(found, bool):
            differ(f"{name}={value!r}", float(found), said)
        elif isinstance(value, bool) and found is not value:
            raise Unlike(f"{name}={value!r} became {found!r}")


SCALARS = [
    "0.2",
    "8/255",
    "true",
    "on",
    "no",
    "null",
    "~",
    "010",
    "1:30",
    "0x1f",
    "1_000",
    "1e-3",
    "2024-01-01",
    ".5",
    "+3",
    "'0.3'",
    '"none"',
    "[1, 2]",
    "{a: 1}",
    "",
    "!!python/object/apply:os.system [echo]",
    "*missing",
    "5",
    "prl",
    "digits",
    "'a b'",
    "1e400",
    "-1",
]


def yamls(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    """A YAML or JSON file, read as `train` reads it, against its lines."""
    kinds = [DataOptions, CorruptionOptions, ModelOptions, RobustConfig]
    keys = [
        "dataset",
        "method",
        "noise_rate",
        "label_column",
        "test_split",
        "max_train_samples",
        "corrupt_rate",
        "class_map",
        "learning_rate",
        "num_train_epochs",
        "seed",
        "max_steps",
        "use_cpu",
        "from_scratch",
        "model",
        "split_seed",
        "patch_size",
        "noise_rat",
        "set",
        "eps",
        "method_settings",
        "bf16",
        "image_mean",
        "report_to",
        "warmup_steps",
        "lr_scheduler_kwargs",
    ]
    lines = [(draw.choice(keys), draw.choice(SCALARS)) for _ in range(draw.choice([1, 2, 3]))]
    if draw.random() < 0.1:
        lines.append(lines[0])
    text = "".join(f"{key}: {value}\n" for key, value in lines)
    damage = draw.choice(
        [None] * 10
        + ["- a\n", "\x00", "a: &a [*a]\n", "{" * 3000, "a: b: c\n", "\ttab: 1\n", "---\n---\n", "? [a]\n: 1\n", "1: 2\n"]
    )
    (folder / "c.yaml").write_text(text + (damage or ""))
    parser = make_parser("train", kinds, "")
    parser.set_defaults(output_dir="out", report_to="none")
    found = called(parse, parser, [str(folder / "c.yaml")])
    names = [key for key, _ in lines]
    if len(set(names)) < len(names):
        raise Unlike(f"a key given twice is taken once, without a word: {lines}")
    values = {f.name: getattr(part, f.name) for part in found for f in fields(part)}
    for key, value in lines:
        written = value.strip("'\"")
        if value in ("null", "~", "", "[1, 2]", "{a: 1}") or key in ("set", "method_settings", "image_mean"):
            continue
        have = values.get(key)
        said = number_of(written.lower() if isinstance(written, str) else written)
        if isinstance(have, bool):
            differ(f"{key}: {value}", have, written.lower() in ("true", "on", "yes", "y", "t", "1"))
        elif isinstance(have, str):
            differ(f"{key}: {value}", have, written)
        elif isinstance(have, int | float) and said is not None:
            differ(f"{key}: {value}", float(have), said)


def toy_data(draw: random.Random, place: Path, names: list[str], rows: int = 24) -> str:
    """A small data set on disk whose classes have these names."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    random_ = np.random.default_rng(draw.randrange(99))

    def part(n: int) -> datasets.Dataset:
        label = [i % len(names) for i in range(n)]
        images = [Image.fromarray((random_.integers(0, 120, (8, 8)) + 100 * (v % 2)).astype(np.uint8)) for v in label]
        return datasets.Dataset.from_dict({"image": images, "label": label}, features=features)

    datasets.DatasetDict(train=part(rows), test=part(12)).save_to_disk(str(place))
    return str(place)


OPTIONS = [
    f.name for f in fields(RobustConfig) if f.init and f.name not in ("output_dir", "hub_token", "push_to_hub", "run_name", "debug")
]
WORDS = [
    "0",
    "1",
    "-1",
    "2",
    "3.5",
    "true",
    "false",
    "none",
    "x",
    "",
    "nan",
    "1e9",
    "epoch",
    "steps",
    "no",
    "[1]",
    "{",
    '{"a": 1}',
    "auto",
    "best",
    "all",
    "/proc/nowhere",
    "linear",
    "adafactor",
    "wandb",
    "cpu",
    "cuda",
    "99999999999999999999",
]


def words(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    """`train` with options that nobody would give, two steps long where it takes them."""
    data = toy_data(draw, folder / "data", ["a", "b"])
    base = [
        "--dataset",
        data,
        "--output_dir",
        "out",
        "--use_cpu",
        "--disable_tqdm",
        "true",
        "--max_steps",
        "2",
        "--image_size",
        "8",
    ]
    base += ["--per_device_train_batch_size", "8", "--eval_strategy", "no"]
    given: list[str] = []
    for name in draw.sample(OPTIONS, draw.choice([1, 1, 2])):
        given += [f"--{name}", draw.choice(WORDS)]
    if draw.random() < 0.2:
        given += draw.choice(
            [
                ["--nonsense"],
                ["stray"],
                ["--method"],
                ["--set", "a"],
                ["-x"],
                ["--seed=1", "--seed=2"],
                ["--", "x"],
                ["--method=prl"],
            ]
        )
    taken = [w.partition("=")[0] for w in given if w.startswith("--")]
    keep = [
        i for i in range(0, len(base)) if not (base[i] in taken or (i and base[i - 1] in taken and not base[i].startswith("--")))
    ]
    command("train", *[base[i] for i in keep], *given)
    told = json.loads(Path("out/results.json").read_text())
    differ("training samples", told["train_samples"], 24)


def commands(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    """Whole commands on classes with any names: what they print and write can be shown in a terminal and in a page."""
    names = draw.sample([*WILD, *[n for n in NAMES if n]], draw.choice([2, 3]))
    data = toy_data(draw, folder / "data", names, rows=30)
    state["valid"] = True
    shown = ""
    if draw.random() < 0.4:
        words_ = draw.choice([["symmetric"], ["pairflip"], ["patch", "--patch_size", "2"], ["instance"]])
        shown = command("corrupt", "--dataset", data, "--corrupt", *words_, "--corrupt_rate", "0.3", "--output_dir", "made")
        saved = datasets.load_from_disk("made")
        differ("classes", saved["train"].features["label"].names, names)
        wrong = [a != b for a, b in zip(saved["train"]["label"], saved["train"]["clean_label"])]
        differ(
            "wrong labels", json.loads(Path("made/corruption.json").read_text())["corrupted"], sum(saved["train"]["is_corrupted"])
        )
        if "patch" not in words_:
            differ("is_corrupted", saved["train"]["is_corrupted"][:], wrong)
    else:
        method = draw.choice(["standard", "prl", "prl-at-memory", "co-prl", "trades", "none"])
        run = ["--max_steps", "4", "--method", method, "--use_cpu", "--disable_tqdm", "true", "--per_device_train_batch_size", "8"]
        shown = command("train", "--dataset", data, "--output_dir", "run", *run)
        shown += command("evaluate", "run")
        one, two = (json.loads(Path(f"run/{n}.json").read_text()) for n in ("results", "evaluation"))
        differ("accuracy", round(one["runs"][0]["final"]["clean_accuracy"], 6), round(two["clean_accuracy"], 6))
        if method != "none":
            shown += command("audit", "run", "--clean", "none")
            page = Path("run/report.html").read_text()
            if "<script>alert" in page or "<script>alert" in Path("run/audit/report.html").read_text():
                raise Unlike("a class name is a script in the report")
    bad = [
        c
        for c in shown
        if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) <= 0x9F or c in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068"
    ]
    if bad:
        raise Unlike(f"control characters are printed: {sorted(set(bad))!r}")


# ---- damaged files -----------------------------------------------------------------------------------------------------------

TRAINED = [
    "--max_train_samples",
    "40",
    "--max_test_samples",
    "12",
    "--use_cpu",
    "--disable_tqdm",
    "true",
    "--per_device_train_batch_size",
    "8",
    "--num_train_epochs",
    "2",
    "--seed",
    "1",
]


def finished_runs(place: Path) -> None:
    """The runs that the damage cases copy: one finished, one to go on from its first epoch, and one detector."""
    draw = random.Random(0)
    data = toy_data(draw, place / "data", [f"class {i}" for i in range(3)], rows=40)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for name, more in (("run", ["--method", "prl", "--noise_rate", "0.2"]), ("plain", ["--method", "none"])):
            words_ = ["train", "--dataset", data, "--output_dir", str(place / name), *TRAINED, *more, "--save_strategy", "epoch"]
            assert main(words_) == 0
        (place / "t.csv").write_text("a,b\n" + "".join(f"{i % 7},{i * i % 11}\n" for i in range(40)))
        assert main(["anomaly", str(place / "t.csv"), "--epochs", "1", "--output_dir", str(place / "anomaly")]) == 0
        assert main(["paths", str(place / "run"), "--max_steps", "3"]) == 0


def hurt(draw: random.Random, path: Path) -> str:
    """Damages a file, and says how."""
    how = draw.choice(["gone", "empty", "cut", "cut", "flip", "text", "folder", "tail", "head", "swap", "unreadable link"])
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "unreadable link":
        path.unlink()
        path.symlink_to("nowhere")
    else:
        middle = draw.randrange(max(len(content), 1))
        flipped = bytearray(content)
        if content:
            at = draw.choice([middle, min(middle, 60), len(content) - 1 - min(middle, 60)])
            flipped[at] ^= 1 << draw.randrange(8)
        path.write_bytes(
            {
                "empty": b"",
                "cut": content[:middle],
                "flip": bytes(flipped),
                "text": b"hello",
                "tail": content + b"\0" * 9,
                "head": b"\xff" + content,
                "swap": content[::-1],
            }[how]
        )
    return how


def tamper(draw: random.Random, path: Path) -> str:
    """Changes one value of a JSON file to something odd."""
    content = json.loads(path.read_text())
    node, where = content, []
    while isinstance(node, dict | list) and node and (not where or draw.random() < 0.8):
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        where.append(key)
        if not isinstance(node[key], dict | list) or not node[key] or draw.random() < 0.3:
            break
        node = node[key]
    odd = draw.choice([None, -1, 10**9, 1e308, "x", "../..", [], {}, True, [[]], "a\x1b[31m", 2**70, "nan"])
    parent = content
    for key in where[:-1]:
        parent = parent[key]
    parent[where[-1]] = odd
    path.write_text(json.dumps(content))
    return f"{'/'.join(map(str, where))} = {odd!r}"


def slow_ledger(path: Path) -> list[int] | None:
    try:
        return pq.read_table(path)["label"].to_pylist()
    except Exception:
        return None


def damage(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    name = draw.choice(["run", "run", "run", "plain", "anomaly"])
    place = Path(shutil.copytree(runs / name, folder / name))
    files = sorted(p for p in place.rglob("*") if p.is_file())
    going_on = name != "anomaly" and draw.random() < 0.45
    if going_on:
        for path in files:  # as killed after the first epoch
            if path.parent == place:
                path.unlink()
        last = sorted(place.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        for path in last[1:]:
            shutil.rmtree(path)
        files = sorted(p for p in place.rglob("*") if p.is_file())
    target = draw.choice(files)
    if target.suffix == ".json" and draw.random() < 0.6:
        how = tamper(draw, target)
    else:
        how = hurt(draw, target)
    what = f"{target.relative_to(place)} {how}"
    payload = target.suffix in (".safetensors", ".npz", ".pt", ".pth") and how in ("flip", "swap")
    if going_on:
        more = ["--method", "prl", "--noise_rate", "0.2"] if name == "run" else ["--method", "none"]
        words_ = ["train", "--dataset", runs / "data", "--output_dir", place, *TRAINED, *more, "--save_strategy", "epoch"]
        told = command(*words_, "--resume_from_checkpoint", last[0])
        one, two = ((p / "model.safetensors").read_bytes() for p in (runs / name, place))
        if one != two and not payload:
            raise Unlike(f"{what}: went on, to another end: {told[-200:]}")
        return
    if name == "anomaly":
        command("anomaly", runs / "t.csv", "--load", place / "detector", "--output_dir", "out")
        one, two = (pq.read_table(p / "scores.parquet")["score"].to_pylist() for p in (runs / name, Path("out")))
        if not payload and not np.allclose(one, two, rtol=1e-5):
            raise Unlike(f"{what}: other scores")
        return
    asked = draw.choice(["evaluate", "audit", "audit", "paths"])
    if asked == "evaluate":
        command("evaluate", place)
        before = json.loads((runs / name / "results.json").read_text())["runs"][0]["final"]["clean_accuracy"]
        after = json.loads((place / "evaluation.json").read_text())["clean_accuracy"]
        if abs(before - after) > 1e-6 and not payload and "preprocessor" not in what and "results.json options/" not in what:
            raise Unlike(f"{what}: accuracy {before} became {after}")
    elif asked == "audit":
        slow = slow_ledger(place / "ledger.parquet")
        command("audit", place, "--clean", "none", "--look", "false")
        found = pq.read_table(place / "audit/audit.parquet")["label"].to_pylist()
        if slow is not None and found != slow:
            raise Unlike(f"{what}: labels {found[:9]}, slow {slow[:9]}")
        true = pq.read_table(runs / name / "ledger.parquet")["label"].to_pylist() if name == "run" else found
        if found != true and not payload:
            raise Unlike(f"{what}: the audit's labels are not the data's")
    else:
        command("paths", place, "--max_steps", "3")


# ---- training ----------------------------------------------------------------------------------------------------------------


class Toy(torch.nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.layer = torch.nn.Linear(12, classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layer(pixel_values.flatten(1))


def training(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    rows, k = draw.choice([1, 7, 16, 33]), draw.choice([2, 3, 3, 5])
    make = np.random.default_rng(draw.randrange(99))
    x = make.uniform(-1, 1, (rows, 3, 2, 2)).astype(np.float32)
    given: list[Any] = [draw.randrange(k) for _ in range(rows)]
    odd = draw.choice(
        [None] * 6
        + [
            "above",
            "negative",
            "ignored",
            "float",
            "text",
            "None",
            "soft",
            "nan",
            "inf",
            "wide",
            "no labels",
            "bool",
            "extra",
            "shape",
            "empty",
            "int8",
            "one-hot",
        ]
    )
    if odd in ("above", "negative", "ignored"):
        given[-1] = {"above": k + 3, "negative": -1, "ignored": -100}[odd]
    labels_: Any = {
        "float": [float(v) for v in given],
        "text": [str(v) for v in given],
        "None": [*given[:-1], None],
        "soft": [[1.0 / k] * k] * rows,
        "one-hot": [[int(v == c) for c in range(k)] for v in given],
        "bool": [bool(v % 2) for v in given],
        "shape": [[v] for v in given],
    }.get(odd or "", given)
    if odd in ("nan", "inf"):
        x[-1, 0, 0, 0] = {"nan": np.nan, "inf": np.inf}[odd]
    if odd == "wide":
        x *= 200
    columns: dict[str, Any] = {"pixel_values": x, "labels": labels_}
    if odd == "no labels":
        del columns["labels"]
    if odd == "extra":
        columns["note"] = ["x"] * rows
    data = datasets.Dataset.from_dict(columns)
    if odd == "int8":
        data = data.cast_column("labels", datasets.Value("int8"))
    data = data.select([] if odd == "empty" else range(rows)).with_format("torch")
    method = draw.choice([m for m in METHODS if "simclr" not in m and m != "prl-g"])
    args = dict(
        output_dir="out",
        per_device_train_batch_size=draw.choice([4, 8]),
        num_train_epochs=2,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        dataloader_drop_last=draw.random() < 0.1,
        gradient_accumulation_steps=draw.choice([1, 1, 2]),
    )
    state["valid"] = odd is None and rows > 8 and method not in ("erat",)

    def train() -> Any:
        torch.manual_seed(0)
        trainer = RobustTrainer(model=Toy(k), args=RobustConfig(**args), train_dataset=data, method=method)
        trainer.train()
        return trainer

    trainer = called(train)
    weights = [p for p in trainer.model.parameters()]
    if odd != "inf" and not all(torch.isfinite(p).all() for p in weights):
        raise Unlike(f"{method}, {odd}: weights that are no numbers, without a word")
    if trainer.ledger is None:
        return
    seen = trainer.ledger.columns["seen"].tolist()
    found = [label for label, times in zip(trainer.ledger.columns["label"].tolist(), seen) if times]
    want = [int(v) for v, times in zip(given, seen) if times]
    if odd in (None, "extra", "int8", "wide") and found != want:
        raise Unlike(f"{method}, {odd}: the ledger has labels {found[:9]}, slow {want[:9]}")


def ledgers(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    """A ledger with odd values in odd rows, audited."""
    place = Path(shutil.copytree(runs / "run", folder / "run"))
    path = place / "ledger.parquet"
    table = pq.read_table(path)
    name = draw.choice(table.column_names)
    values, rows = table[name].to_pylist(), table.num_rows
    odd = draw.choice(
        [10**6, 2 * 10**9, -5, None, float("nan"), float("inf"), "drop column", "drop rows", "repeat", "text", "reverse"]
    )
    try:
        if odd == "drop column":
            table = table.drop_columns([name])
        elif odd == "drop rows":
            table = table.slice(0, rows - 3)
        elif odd == "repeat":
            table = table.take(list(range(rows)) + [0])
        elif odd == "reverse":
            table = table.take(list(range(rows))[::-1])
        else:
            if odd != "text":
                values[draw.randrange(rows)] = odd
            new = [str(v) for v in values] if odd == "text" else values
            table = table.set_column(table.column_names.index(name), name, pa.array(new))
    except Exception:
        return
    pq.write_table(table.replace_schema_metadata(pq.read_schema(path).metadata), path)
    command("audit", place, "--clean", "none", "--look", "false")
    found = pq.read_table(place / "audit/audit.parquet")["label"].to_pylist()
    true = pq.read_table(runs / "run/ledger.parquet")["label"].to_pylist()
    if found != true:
        raise Unlike(f"{name} {odd}: the audit's labels are not the data's")


KINDS: dict[str, tuple[int, Callable[..., None]]] = {
    "labels": (18, labels),
    "folders": (9, folders),
    "pictures": (14, pictures),
    "tables": (14, tables),
    "noise": (10, noise),
    "settings": (10, settings),
    "yamls": (9, yamls),
    "words": (9, words),
    "commands": (3, commands),
    "damage": (11, damage),
    "ledgers": (4, ledgers),
    "training": (9, training),
}
