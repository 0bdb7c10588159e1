"""Cases of `fuzz` that are data: label columns, folders, pictures, tables, corruptions; and the tools of all cases.

The slow readings use the standard library, Pillow and pyarrow alone. Every image of a labels or folders case has one grey level,
its row's number, so that a row is known again wherever it went.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from robust_trainer.anomaly import DETECTORS
from robust_trainer.anomaly.tables import read_table
from robust_trainer.cli.main import main
from robust_trainer.cli.options import CorruptionOptions, DataOptions
from robust_trainer.cli.stages import prepare
from robust_trainer.corruptions import CLASS_MAPS, NOISES, BlendTrigger, PatchTrigger, corrupt_labels, poison, trigger_all
from robust_trainer.data.load import label_names, load_data
from robust_trainer.data.preprocess import ImageTransform, image_shape
from robust_trainer.models.zoo import build_model


class Refused(Exception):
    """The package refused the input, in these words."""


class Unlike(Exception):
    """The package made something else of the input than the slow reading."""


def differ(what: str, found: Any, expected: Any) -> None:
    """Raises `Unlike` where the two are not equal."""
    if found != expected:
        raise Unlike(f"{what}: the package has {str(found)[:600]}, the slow reading {str(expected)[:600]}")


def called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function returns; its ValueError is a refusal."""
    try:
        return function(*args, **kwargs)
    except ValueError as error:
        raise Refused(str(error)) from error


def command(*words: Any) -> str:
    """What `robust-trainer` prints on the standard output; exit status 2 is a refusal in the one line that it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    told = [line for line in err.getvalue().splitlines() if line.startswith("robust-trainer: ")]
    if "Traceback (most recent" in err.getvalue():
        raise RuntimeError(f"a traceback was printed: {err.getvalue()[-2000:]}")
    if status == 2:
        raise Refused(told[0].removeprefix("robust-trainer: error: ") if len(told) == 1 else "\n".join(["several lines", *told]))
    if status:
        raise RuntimeError(f"exit status {status}: {err.getvalue()[-2000:]}")
    return out.getvalue()


def number_of(value: Any) -> float | None:
    """The number that a value says, by Python's own rules; fractions as 8/255."""
    try:
        if isinstance(value, str) and value.count("/") == 1:
            a, b = value.split("/")
            return float(a) / float(b)
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None


def grey(level: int, side: int = 8, mode: str = "L") -> Image.Image:
    return Image.new("L", (side, side), level).convert(mode)


def png(image: Image.Image, kind: str = "PNG", **kwargs: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def level(image: Any) -> int:
    """The row's number that a picture carries."""
    if isinstance(image, dict):
        image = Image.open(io.BytesIO(image["bytes"]) if image.get("bytes") else image["path"])
    return int(np.asarray(image.convert("L"))[0, 0])


# ---- label columns -----------------------------------------------------------------------------------------------------------

NAMES = [
    "cat",
    "dog",
    "Cat",
    "cat ",
    "猫",
    "ein Hund",
    "1",
    "01",
    "-1",
    "nan",
    "None",
    "true",
    "",
    "a/b",
    "x" * 300,
    "\u00e9",
    "e\u0301",
]
WILD = ["a\x1b[31mred", "b\u202eevil", "c\x1b]0;title\x07", "d\ttab", "e\nline", "<script>alert(1)</script>", "f\x9b1m"]


def values_of(draw: random.Random, rows: int) -> tuple[str, list[Any], Any]:
    """A kind of label column, its values, and its feature (None: as Arrow finds it)."""
    k = draw.choice([2, 2, 3, 5, 9])
    kind = draw.choice(
        ["names"] * 4
        + ["ints"] * 3
        + ["gaps"] * 3
        + ["named"] * 6
        + [
            "huge",
            "from one",
            "bools",
            "whole floats",
            "fractions",
            "negative",
            "none",
            "multi",
            "bytes",
            "one class",
            "nan",
            "uint",
            "many",
        ]
    )
    pick: list[Any] = {
        "names": draw.sample(NAMES, k),
        "ints": list(range(k)),
        "gaps": draw.sample(range(1000), k),
        "from one": [*range(1, k + 1)],
        "huge": draw.sample([10, 200, 5000, 10**6, 2 * 10**9, 2**40, 2**62, 0, 1], min(k, 9)),
        "bools": [False, True],
        "whole floats": [float(i) for i in range(k)],
        "fractions": [i + 0.5 for i in range(k)],
        "named": list(range(k)),
        "negative": [-1, *range(k)],
        "none": [None, *map(str, range(k))],
        "multi": [[0, 1], [1, 0], [1, 1]],
        "bytes": [b"a", b"b"],
        "one class": ["only"],
        "nan": [0.0, 1.0, float("nan")],
        "uint": list(range(k)),
        "many": list(range(min(rows, 40))),
    }[kind]
    values = [draw.choice(pick) for _ in range(rows)]
    feature = None
    if kind == "named":
        feature = datasets.ClassLabel(names=draw.sample([n for n in NAMES if n], k))
    if kind == "uint":
        feature = datasets.Value(draw.choice(["uint8", "int8", "uint64"]))
    if kind == "names" and draw.random() < 0.2:
        feature = datasets.Value("large_string")
    return kind, values, feature


def names_of(value: Any, feature: Any) -> set[str]:
    """The class names that a label may be given: itself, in words."""
    if isinstance(feature, datasets.ClassLabel):
        return {feature.names[value]} if value is not None and value >= 0 else set()
    if isinstance(value, bool):
        return {str(value), str(value).lower(), str(int(value))}
    if isinstance(value, float):
        return {str(value), str(int(value))} if math.isfinite(value) and value == int(value) else {str(value)}
    return set() if value is None else {str(value)}


def split_rows(draw: random.Random) -> dict[str, int]:
    sizes = {"train": draw.choice([12, 30, 60])}
    if draw.random() < 0.7:
        sizes[draw.choice(["test", "validation", "test"])] = draw.choice([4, 12])
    if draw.random() < 0.2:
        sizes["test"] = 6
        sizes["validation"] = 6
    return sizes


def check_rows(data: Any, truth: dict[int, set[str]], expected: set[int]) -> None:
    """Every row that was kept has the name that the slow reading gave it, and no training row is gone."""
    seen = set()
    for key, split in data.items():
        if key not in ("train", "test"):
            continue
        names = label_names(split)
        for row in split:
            number, name = level(row["image"]), names[row["label"]]
            seen.add(number)
            if name not in truth[number]:
                raise Unlike(f"row {number} of {key}: the package has {name!r}, the slow reading {truth[number]}")
    gone = expected - seen
    if gone:
        raise Unlike(f"rows {sorted(gone)[:5]} are gone")


def labels(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    sizes, truth, splits, start = split_rows(draw), {}, {}, 0
    kind, values, feature = values_of(draw, 100)
    column = draw.choice(["label", "labels", "fine_label", "target", "y", "class"])
    unlabelled = "test" in sizes and draw.random() < 0.15
    for name, rows in sizes.items():
        own, mine = feature, values[start : start + rows]
        if isinstance(feature, datasets.ClassLabel) and name != "train" and draw.random() < 0.4:
            own = datasets.ClassLabel(names=draw.sample(feature.names, len(feature.names)))
        if name == "test" and unlabelled and kind in ("named", "ints", "gaps", "from one"):
            mine = [-1] * rows
        images = [grey(start + i) for i in range(rows)]
        truth.update({start + i: names_of(v, own) for i, v in enumerate(mine)})
        features = datasets.Features({"image": datasets.Image(), column: own}) if own is not None else None
        made = {"image": [{"bytes": png(im), "path": None} for im in images], column: mine}
        split = datasets.Dataset.from_dict(made, features=features)
        splits[name] = split if own is not None else split.cast_column("image", datasets.Image())
        start += rows
    trained = {n for n in range(sizes["train"]) if truth[n]}
    data = datasets.DatasetDict(splits)
    if draw.random() < 0.5:
        data.save_to_disk(str(folder / "data"))
    else:
        (folder / "data").mkdir()
        for name, split in splits.items():
            split.to_parquet(str(folder / "data" / f"{name}.parquet"))
    whole = {v for v in values[: sizes["train"]]} if kind not in ("multi",) else set()
    same = all(s.features == data["train"].features for s in splits.values())
    state["valid"] = kind in ("names", "ints", "gaps", "from one", "uint", "bools", "named") and len(whole) > 1 and same
    state["valid"] &= not unlabelled and "" not in values
    found = called(load_data, str(folder / "data"))
    check_rows(found, truth, trained)


# ---- folders of images -------------------------------------------------------------------------------------------------------


FOLDERS = ["cat", "dog", "Zebra", "10", "9", "a b", "猫", "train", "Test", "n01440764", "val.d", "[x]", "*", "'q'"]
JUNK = ["store", "text", "empty class", "hidden", "hidden image", "link", "zero", "csv", "broken", "deep", "loose", "loop"]


def spoil(draw: random.Random, root: Path, some: Path, word: str) -> None:
    """Puts something beside the images."""
    if word in ("store", "text", "csv", "zero", "broken"):
        name = {"store": ".DS_Store", "text": "notes.txt", "csv": "labels.csv", "zero": "zero.png", "broken": "broken.png"}[word]
        (some / name).write_bytes({"zero": b"", "broken": png(grey(7))[:40]}.get(word, b"a,b\n1,2\n"))
    elif word == "empty class":
        (some.parent / "aaa-empty").mkdir(exist_ok=True)
    elif word == "link":
        os.symlink(next(p for p in some.iterdir() if p.is_file()), some / "link.png")
    elif word == "loop":
        os.symlink(root, some / "loop")
    else:
        where = {"hidden": root / ".git", "hidden image": some, "deep": some / "more", "loose": root}[word]
        where.mkdir(exist_ok=True)
        grey(250).save(where / ("._0.png" if word == "hidden image" else "x.png"))


def folders(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    root = folder / "pictures"
    classes = draw.sample(FOLDERS, draw.choice([1, 2, 3, 3, 3]))
    layout = draw.choice(["classes", "classes", "splits", "splits", "splits", "nested", "flat"])
    first, second = (
        draw.choice(["train", "Train", "training", "x_train"]),
        draw.choice(["test", "validation", "Test", "val", "my-test"]),
    )
    places = {"splits": [first, second], "nested": ["x/y"]}.get(layout, [""])
    number, test = 0, set()
    for place in places:
        for name in classes if layout != "flat" else ["."]:
            (root / place / name).mkdir(parents=True, exist_ok=True)
            for i in range(draw.choice([4, 6, 8])):
                ending = draw.choice([".png", ".png", ".PNG", ".bmp", ".tif", ".gif", ".ppm"])
                grey(number).save(root / place / name / f"{i}{ending}", {".tif": "TIFF"}.get(ending))
                test |= {number} if place == second else set()
                number += 1
    junk = draw.sample(JUNK, draw.choice([0, 0, 1, 2]))
    for word in junk:
        spoil(draw, root, root / places[0] / (classes[0] if layout != "flat" else "."), word)
    truth: dict[int, set[str]] = {}
    broken = False
    for where, _, files in os.walk(root):
        for file in files:
            path = Path(where) / file
            if path.suffix.lower() in (".png", ".bmp", ".tif", ".gif", ".ppm"):
                try:
                    truth.setdefault(level(Image.open(path)), set()).add(path.parent.name)
                except OSError:
                    broken = True
    state["valid"] = layout in ("classes", "splits", "nested") and not broken and not {"deep", "loose"} & set(junk)
    state["valid"] &= len(classes) > 1 and number >= 10
    found = called(load_data, str(root))
    if broken:
        raise Unlike("a broken image is taken")
    check_rows(found, truth, {n for n in truth if n < number})
    if layout == "splits" and (wrong := test & {level(image) for image in found["train"]["image"]}):
        raise Unlike(f"images {sorted(wrong)[:5]} of the folder {second!r} are trained on")


# ---- pictures ----------------------------------------------------------------------------------------------------------------

ORIENTED = {2: (1, 0, 3, 2), 3: (3, 2, 1, 0), 4: (2, 3, 0, 1), 5: (0, 2, 1, 3), 6: (2, 0, 3, 1), 7: (3, 1, 2, 0), 8: (1, 3, 0, 2)}


def picture(draw: random.Random) -> tuple[bytes, str, np.ndarray | None]:
    """A file, what it is, and its four quarters' levels (4, 3) in [0, 1]; None: it must be refused."""
    kind = draw.choice(
        [
            "L",
            "L",
            "RGB",
            "RGB",
            "1",
            "P",
            "P clear",
            "RGBA",
            "LA",
            "CMYK",
            "I;16",
            "EXIF",
            "JPEG",
            "WEBP",
            "GIF",
            "truncated",
            "bomb",
            "EPS",
            "text",
            "zero",
            "TIFF 32",
            "TIFF float",
            "interlaced",
        ]
    )
    side = 16
    quarters = [tuple(draw.choice([0, 60, 128, 200, 255]) for _ in range(3)) for _ in range(4)]
    rgb = Image.new("RGB", (side, side))
    for i, colour in enumerate(quarters):
        rgb.paste(colour, (i % 2 * 8, i // 2 * 8, i % 2 * 8 + 8, i // 2 * 8 + 8))
    colours = np.array(quarters) / 255
    grey_levels = np.repeat(
        (np.array([np.asarray(rgb.convert("L"))[(i // 2) * 8, (i % 2) * 8] for i in range(4)]) / 255)[:, None], 3, 1
    )
    if kind == "L":
        return png(rgb.convert("L")), kind, grey_levels
    if kind in ("RGB", "interlaced"):
        return png(rgb), kind, colours
    if kind == "1":
        return png(rgb.convert("L").point(lambda v: 255 * (v > 100), "1")), kind, (grey_levels > 100 / 255) * 1.0
    if kind == "P":
        return png(rgb.quantize(16)), kind, colours
    if kind == "P clear":
        image = Image.new("P", (side, side), 1)
        image.putpalette([0, 0, 0, 90, 90, 90])
        image.paste(0, (0, 0, 8, 16))
        return png(image, transparency=0), kind, np.array([[1.0] * 3, [90 / 255] * 3] * 2)
    if kind in ("RGBA", "LA"):
        image = rgb.convert("L").convert("RGB") if kind == "LA" else rgb
        alpha = Image.new("L", (side, side), 255)
        clear = draw.choice([0, 128])
        alpha.paste(clear, (0, 0, 8, 8))
        image = image.convert("RGBA")
        image.putalpha(alpha)
        levels = (grey_levels if kind == "LA" else colours).copy()
        levels[0] = levels[0] * clear / 255 + 1 - clear / 255
        return png(image.convert(kind)), kind, levels
    if kind == "CMYK":
        return png(rgb.convert("CMYK"), "JPEG", quality=100), kind, colours
    if kind == "I;16":
        deep = np.kron(grey_levels[:, 0].reshape(2, 2), np.ones((8, 8)))
        return png(Image.fromarray((deep * 65535).astype(np.uint16))), kind, grey_levels
    if kind == "EXIF":
        turn = draw.choice(list(ORIENTED))
        exif = Image.Exif()
        exif[0x0112] = turn
        return png(rgb, exif=exif), f"EXIF {turn}", colours[list(ORIENTED[turn])]
    if kind in ("JPEG", "WEBP"):
        return png(rgb, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True})), kind, colours
    if kind == "GIF":
        return png(rgb.quantize(16), "GIF", save_all=True, append_images=[rgb.quantize(16).rotate(90)]), kind, colours
    if kind == "truncated":
        noise = Image.fromarray(np.random.default_rng(draw.randrange(99)).integers(0, 255, (side, side, 3), dtype=np.uint8))
        file = png(noise, draw.choice(["PNG", "JPEG"]))
        return file[: len(file) * draw.choice([5, 7]) // 10], kind, None
    if kind == "bomb":
        head = png(rgb)
        return head[:16] + struct.pack(">II", 60000, 60000) + head[24:], kind, None
    if kind == "EPS":
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\nshowpage\n%%EOF\n", kind, None
    if kind == "TIFF 32":
        return png(Image.fromarray(np.full((side, side), 70000, np.int32)), "TIFF"), kind, None
    if kind == "TIFF float":
        return png(Image.fromarray(np.full((side, side), 0.25, np.float32)), "TIFF"), kind, np.full((4, 3), 0.25)
    return {"text": b"this is no picture", "zero": b""}[kind], kind, None


def pictures(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    plain = [(png(grey(40 + i, 16)), "L", np.full((4, 3), (40 + i) / 255)) for i in range(10)]
    odd = [picture(draw) for _ in range(draw.choice([1, 1, 2, 4]))]
    every = plain + odd
    draw.shuffle(every)
    made = [{"bytes": file, "path": None} for file, _, _ in every]
    if draw.random() < 0.08:
        made[3] = {"bytes": None, "path": str(folder / "missing.png")}
        every[3] = (b"", "missing", None)
    features = datasets.Features(
        {"image": datasets.Image(decode=draw.random() > 0.1), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    data = datasets.Dataset.from_dict({"image": made, "label": [i % 2 for i in range(len(made))]}, features=features)
    (folder / "data").mkdir()
    for split in ("train", "test"):  # by pyarrow: nothing is looked at, and no missing file is missed
        pq.write_table(data.data.table, folder / "data" / f"{split}.parquet")
    state["valid"] = all(levels is not None and kind != "TIFF float" for _, kind, levels in every)
    kinds = [kind for _, kind, _ in every if kind != "L"]

    def seen() -> Any:
        prepared = prepare(DataOptions(dataset=str(folder / "data")), CorruptionOptions())
        channels, _ = image_shape(prepared.train)
        _, processor = build_model("small-cnn", ["a", "b"], channels=channels, image_size=16)
        rows = prepared.train.with_transform(ImageTransform(processor, channels))
        return rows[list(range(len(rows)))]["pixel_values"] / 2 + 0.5

    pixels = called(seen)
    refused = next((kind for _, kind, levels in every if levels is None), None)
    if refused is not None:
        raise Unlike(f"an image that cannot be read ({refused}) is trained on")
    quarters = torch.nn.functional.adaptive_avg_pool2d(pixels.double(), 2).flatten(2).transpose(1, 2).numpy()
    for i, (_, kind, levels) in enumerate(every):
        assert levels is not None
        want = levels if quarters.shape[2] == 3 else (levels @ [[0.299], [0.587], [0.114]])
        if abs(quarters[i] - want).max() > 0.06:
            raise Unlike(f"image {i} ({kind} among {kinds}): {quarters[i].round(2).tolist()}, slow {want.round(2).tolist()}")


# ---- tables ------------------------------------------------------------------------------------------------------------------


def cell(draw: random.Random, kind: str, row: int) -> str:
    if kind == "number":
        return draw.choice([f"{draw.gauss(0, 1):.4f}", str(draw.randrange(-50, 50)), f"{draw.gauss(0, 1):.3e}"])
    if kind == "gaps":
        return draw.choice(["", "NA", "nan", "NULL", "None", "n/a", "1.5", "2", "-3"])
    return {
        "count": str(row),
        "constant": "7",
        "big": str(2**53 + row),
        "huge": draw.choice(["1e400", "-1e400", "inf", "3"]),
        "bool": draw.choice(["true", "false"]),
        "zero-one": draw.choice("01"),
        "text": draw.choice(["red", "blue"]),
        "decimal comma": f"{row},5",
        "thousands": f"1,{row:03d}",
        "percent": f"{row}%",
        "date": f"2024-01-{1 + row % 28:02d}",
        "hex": hex(row),
        "padded": f" {row} ",
        "plus": f"+{row}",
        "leading zero": f"0{row}",
        "tiny": f"1e-{300 + row}",
        "underscore": "1_000",
        "time": f"12:{row % 60:02d}",
        "mixed": str(row) if row else "x",
    }[kind]


CELLS = ["number"] * 6 + [
    "gaps",
    "count",
    "constant",
    "big",
    "huge",
    "bool",
    "zero-one",
    "text",
    "decimal comma",
    "thousands",
    "percent",
    "date",
    "hex",
    "padded",
    "plus",
    "leading zero",
    "tiny",
    "underscore",
    "time",
    "mixed",
]
GOOD = ["number"] * 6 + [
    "gaps",
    "count",
    "constant",
    "big",
    "bool",
    "zero-one",
    "padded",
    "plus",
    "leading zero",
    "tiny",
    "underscore",
]
EMPTY = ("", "na", "nan", "null", "none", "n/a", "#n/a", "-nan", "1.#ind", "1.#qnan", "-1.#ind", "-1.#qnan", "#n/a n/a", "<na>")


def slow_number(word: str) -> float:
    """A cell: a number, true, false, or hexadecimal as 0x1f."""
    return float(int(word, 16)) if word.startswith("0x") else float({"true": 1, "false": 0}.get(word, word))


def slow_table(path: Path, delimiter: str) -> tuple[list[str], list[list[float]]] | None:
    """Names and rows by the csv module; None where a cell is no number (true and false are 1 and 0)."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        names, *lines = list(csv.reader(file, delimiter=delimiter))
    columns = []
    for values in zip(*lines):
        words = [value.strip().lower() for value in values]
        try:
            columns.append([math.nan if w in EMPTY else slow_number(w) for w in words])
        except ValueError:
            return None
    return [name.strip() for name in names], [list(row) for row in zip(*columns)]


def tables(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    rows, width, delimiter = draw.choice([2, 20, 40]), draw.choice([1, 3, 5]), draw.choice([",", ",", ";", "\t"])
    pool = draw.choice([GOOD, GOOD, CELLS])
    kinds = [draw.choice(pool) for _ in range(width)]
    names = [draw.choice(["", "x", "höhe", "a b", "Unnamed: ", '"q"', "id"]) + str(i) for i in range(width)]
    if draw.random() < 0.1:
        names[-1] = draw.choice([names[0], "", "label", "y", "target"])
    path = folder / draw.choice(["t.csv", "t.csv", "t.tsv"])
    with path.open("w", encoding=draw.choice(["utf-8", "utf-8-sig"]), newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        writer.writerow(names)
        writer.writerows([cell(draw, kind, row) for kind in kinds] for row in range(rows))
    damage = draw.choice([None] * 20 + ["cut", "flip", "ragged", "binary", "empty", "nul"])
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "flip":
        whole = bytearray(path.read_bytes())
        whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(whole))
    elif damage == "ragged":
        path.write_text(path.read_text(encoding="utf-8-sig") + f"1{delimiter}2{delimiter}3{delimiter}4{delimiter}5{delimiter}6\n")
    elif damage in ("binary", "empty", "nul"):
        path.write_bytes({"binary": os.urandom(50), "empty": b"", "nul": b"a,b\n1,\0\n2,3\n"}[damage])
    try:
        slow = slow_table(path, delimiter)
    except (UnicodeDecodeError, csv.Error, ValueError):
        slow = None
    state["valid"] = (
        damage is None and slow is not None and len(set(slow[0])) == width and "" not in slow[0] and not {"huge"} & set(kinds)
    )
    state["valid"] &= not {"label", "y", "target"} & {n.lower() for n in names}
    found = called(read_table, path, label_column="none")
    if damage is None and slow is None:
        raise Unlike(f"cells that are no numbers ({kinds}) are read as {found.rows[:2].tolist()}")
    if slow is not None and damage in (None, "flip"):
        kept = [i for i, name in enumerate(slow[0]) if name]
        differ("names", found.names, [slow[0][i] for i in kept])
        want = np.array([[row[i] for i in kept] for row in slow[1]])
        if found.rows.shape != want.shape or not np.allclose(found.rows, want, rtol=1e-9, atol=0, equal_nan=True):
            raise Unlike(f"cells of {kinds}: {found.rows[:3].tolist()}, slow {want[:3].tolist()}")
    if draw.random() < 0.25 and rows > 2:
        words = ["--detector", draw.choice(list(DETECTORS)), "--epochs", "1", "--output_dir", "out", "--label_column", "none"]
        words += ["--contamination", draw.choice(["0.1", "0.5", "auto", "0.01"])]
        state["valid"] = False
        command("anomaly", path, *words)
        differ("rows scored", pq.read_table("out/scores.parquet")["row"].to_pylist(), list(range(len(found.rows))))
        differ("rows told", json.loads(Path("out/anomaly.json").read_text())["n"], len(found.rows))


# ---- corruption --------------------------------------------------------------------------------------------------------------


def noise(draw: random.Random, folder: Path, state: dict, runs: Path) -> None:
    k, rows = draw.choice([2, 3, 10]), draw.choice([5, 40, 120])
    given = [draw.randrange(k) for _ in range(rows)]
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)) for i in range(rows)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"c{i}" for i in range(k)])})
    data = datasets.Dataset.from_dict({"image": images, "label": given}, features=features)
    rate = draw.choice([0.0, 0.1, 0.25, 0.5, 0.9] * 5 + [1.0, -0.1, float("nan"), "0.2", None, True, 2])
    seed = draw.choice([0, 1, 2**31] * 5 + [-1, 2**32, 1.5, None])
    good = isinstance(rate, float) and 0 <= rate < 1 and isinstance(seed, int) and 0 <= seed < 2**32
    if draw.random() < 0.5:
        kind = draw.choice([*NOISES])
        more: dict[str, Any] = {"exact": draw.random() < 0.5}
        if kind == "asymmetric":
            more["class_map"] = draw.choice([{0: 1}, {"c0": "c1"}, {0: k}, "nrat", *CLASS_MAPS, {0: 0}, {}, {0.5: 1}, None, 3])
        if kind == "transition":
            matrix = np.random.default_rng(draw.randrange(9)).dirichlet(np.ones(k), k)
            more["transition_matrix"] = draw.choice(
                [matrix, matrix.tolist(), matrix * 2, matrix[:, :-1], np.eye(k), None, "x", matrix - 1]
            )
            rate = draw.choice([None, None, 0.1])
            good = False
        state["valid"] = good and kind in ("symmetric", "pairflip", "symmetric-redraw")
        made = called(corrupt_labels, data, kind, rate=rate, seed=seed, **more)
        wrong = [a != b for a, b in zip(made["label"], given)]
        differ("clean_label", made["clean_label"][:], given)
        differ("is_corrupted", made["is_corrupted"][:], wrong)
        if kind in ("symmetric", "pairflip") and more["exact"]:
            differ("wrong labels", sum(wrong), round(float(rate) * rows))
        if kind == "pairflip":
            differ("pairs", [a for a, w in zip(made["label"], wrong) if w], [(b + 1) % k for b, w in zip(given, wrong) if w])
    else:
        trigger = draw.choice([PatchTrigger(size=2), PatchTrigger(size=3, position="top-left"), BlendTrigger(alpha=0.3)])
        rule = draw.choice(["multi-target", "all-to-one", "nothing"])
        state["valid"] = good and rule == "multi-target"
        made = called(poison, data, trigger=trigger, rate=rate, seed=seed, label_rule=rule)
        touched = [not np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(made["image"], images)]
        marked = made["is_corrupted"][:]
        if [i for i in range(rows) if touched[i] and not marked[i]]:
            raise Unlike("an image that is not marked was changed")
        differ(
            "labels", made["label"][:], [(g + 1 if rule == "multi-target" else 0) % k if m else g for g, m in zip(given, marked)]
        )
        if rule == "multi-target":
            differ("poisoned", sum(marked), round(float(rate) * rows))
        every = called(trigger_all, data, trigger)
        differ("labels of the triggered", every["label"][:], given)
    differ("images", [len(made), made.features["label"].names], [rows, features["label"].names])
