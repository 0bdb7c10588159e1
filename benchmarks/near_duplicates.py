"""How many planted near-duplicates `find_duplicates` finds in pretrained features, and how many unaltered rows it groups.

    pip install 'robust-trainer[benchmarks]'
    python benchmarks/near_duplicates.py --data_dir ../shared/data

CIFAR-10 at 64 pixels in EfficientNet-Lite0, SST-2 and CLINC150 in MiniLM-L6. Of some rows an altered copy is added, one kind of
change at a time; a copy counts as found where it is in its original's group. For several ``closeness``.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import fine_tuning_networks as networks
import numpy as np
import torch
from common import machine, machine_line
from PIL import Image, ImageEnhance, ImageOps

from robust_trainer.evidence.duplicates import CLOSENESS, conflicting, find_copies, find_duplicates
from robust_trainer.evidence.neighbours import find_neighbours

NEAREST = 10
Encoder = Callable[[Sequence[Any]], np.ndarray]


# ---- images -----------------------------------------------------------------------------------------------------------


def _jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return Image.open(file).convert("RGB")


def _noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 5, (*image.size[::-1], 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _patched(image: Image.Image) -> Image.Image:
    levels = np.array(image)
    levels[-3:, -3:] = 255
    return Image.fromarray(levels)


IMAGE_CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "exact copy": lambda image: image,
    "a white 3 x 3 patch": _patched,
    "brightness 1.2": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "1 pixel cut off each side": lambda image: ImageOps.crop(image, 1),
    "mirrored": ImageOps.mirror,
    "noise of 5 levels": _noisy,
    "JPEG of quality 75": _jpeg,
}


def image_encoder(side: int = 64) -> Encoder:
    """Lite0's pooled features of images."""
    network = networks.Lite0.pretrained(["a", "b"]).eval()

    @torch.no_grad()
    def encode(images: Sequence[Image.Image]) -> np.ndarray:
        found = []
        for start in range(0, len(images), 50):
            levels = np.stack([np.asarray(i.resize((side, side), Image.Resampling.BICUBIC)) for i in images[start : start + 50]])
            pixels = (torch.from_numpy(levels).float() / 255 - networks.LITE_MEAN) / networks.LITE_STD
            found.append(network.network.extract_features(pixels.permute(0, 3, 1, 2).contiguous()).mean((2, 3)))
        return torch.cat(found).numpy()

    return encode


# ---- texts ------------------------------------------------------------------------------------------------------------


def _wrong_letter(text: str) -> str:
    rng = random.Random(text)
    i = rng.choice([i for i, letter in enumerate(text) if letter.isalpha()] or [0])
    return text[:i] + rng.choice([c for c in "abcdefghijklmnopqrstuvwxyz" if c != text[i]]) + text[i + 1 :]


def _without_a_word(text: str) -> str:
    words = text.split()
    i = random.Random(text).randrange(len(words))
    return " ".join(words[:i] + words[i + 1 :]) or text


def _other_word(text: str) -> str:
    rng, words = random.Random(text), text.split()
    words[rng.randrange(len(words))] = rng.choice(["green", "tomorrow", "maybe", "two", "house", "runs"])
    return " ".join(words)


TEXT_CHANGES: dict[str, Callable[[str], str]] = {
    "exact copy": lambda text: text,
    "other case and punctuation": lambda text: text.capitalize().rstrip(" .") + "!",
    "one word left out": _without_a_word,
    "one word changed at random": _other_word,
    "one letter wrong": _wrong_letter,
}


def text_encoder() -> Encoder:
    """MiniLM's mean-pooled features of texts."""
    network, tokens = networks.minilm(["a", "b"]).eval(), networks.minilm_tokenizer()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> np.ndarray:
        order = np.argsort([len(text) for text in texts], kind="stable")
        found = np.zeros((len(texts), network.config.hidden_size), dtype=np.float32)
        for part in np.array_split(order, -(-len(order) // 64)):
            batch = tokens([texts[i] for i in part], padding=True, truncation=True, max_length=64, return_tensors="pt")
            found[part] = network.features(**batch).numpy()
        return found

    return encode


# ---- both -------------------------------------------------------------------------------------------------------------


def measure(name: str, rows: Sequence[Any], labels: np.ndarray, other: Sequence[Any], changes: dict[str, Any], encode: Encoder,
            altered: int, closeness: Sequence[float]) -> None:  # fmt: skip
    """Prints the table of one data set."""
    features = encode(rows)
    picked = sorted(random.Random(0).sample(range(len(rows)), altered))
    own = find_neighbours(features, NEAREST)
    across = find_neighbours(features, NEAREST, queries=encode(other))
    nearest = torch.quantile(own.similarity[:, 0], torch.tensor([0.05, 0.5, 0.95])).tolist()
    quantiles = ", ".join(f"{q:.2f}" for q in nearest)
    print(f"\n{name}: {len(rows):,} rows; similarity to the nearest: {quantiles} (5, 50 and 95 % of the rows)\n")
    print("| % | " + " | ".join(f"closeness {c:g}" for c in closeness) + " |\n|---|" + "---|" * len(closeness))
    groups = [find_duplicates(own, closeness=c) for c in closeness]

    def line(what: str, figures: Sequence[float]) -> None:
        print(f"| {what} | " + " | ".join(f"{100 * figure:.1f}" for figure in figures) + " |", flush=True)

    line("unaltered rows in a group", [float((g >= 0).mean()) for g in groups])
    line("of them in a group of several labels", [float(conflicting(g, labels).sum() / max(1, (g >= 0).sum())) for g in groups])
    line(f"of {len(other):,} test rows with a copy", [float((find_copies(across, closeness=c) >= 0).mean()) for c in closeness])
    for change, alter in changes.items():
        near = find_neighbours(np.concatenate([features, encode([alter(rows[i]) for i in picked])]), NEAREST)
        found = []
        for c in closeness:
            group = find_duplicates(near, closeness=c)
            found.append(float(((group[len(rows) :] == group[picked]) & (group[picked] >= 0)).mean()))
        line(f"found: {change}", found)


def table(file: Path) -> datasets.Dataset:
    return datasets.load_dataset("parquet", data_files={"rows": str(file)})["rows"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="holds cifar10, text/sst2 and text/clinc150")
    parser.add_argument("--rows", type=int, default=5000, help="of each data set")
    parser.add_argument("--altered", type=int, default=400, help="rows of which an altered copy is added")
    parser.add_argument("--closeness", type=float, nargs="+", default=[0.3, 0.4, CLOSENESS, 0.6])
    parser.add_argument("--sets", nargs="+", default=["cifar10", "sst2", "clinc150"], choices=["cifar10", "sst2", "clinc150"])
    args = parser.parse_args()
    print(machine_line(machine()))
    for name in args.sets:
        images = name == "cifar10"
        folder = Path(args.data_dir) / ("" if images else "text") / name
        column, changes = ("image", IMAGE_CHANGES) if images else ("text", TEXT_CHANGES)
        train, test = (table(folder / f"{split}.parquet").shuffle(seed=0) for split in ("train", "test"))
        train, test = train.select(range(min(args.rows, len(train)))), test.select(range(min(args.rows // 5, len(test))))
        data, other = train[column][:], test[column][:]
        if images:
            data, other = ([i.convert("RGB") for i in part] for part in (data, other))
        encode = image_encoder() if images else text_encoder()
        measure(name, data, np.asarray(train["label"][:]), other, changes, encode, args.altered, args.closeness)


if __name__ == "__main__":
    main()
