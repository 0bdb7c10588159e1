"""How large every image trigger of the table is, and what it looks like: one table, one picture.

    python benchmarks/trigger_sizes.py --data <folder with train.parquet and test.parquet> --out docs/figures/triggers.png

Stamps the first images of the test set with each row of `TRIGGERS` and of `NETWORK_BACKDOORS` at its own settings, as a test image
and, where that differs, as a training row and as a cover. The attackers' networks and triggers are trained on the first images of
the training set. Prints, as markdown, means over the images of what 8-bit images hold: the largest change of a pixel
(l_inf, in levels), the Euclidean norm of the change (l_2, pixels in [0, 1]), the peak signal-to-noise ratio (PSNR, in dB, of the
mean squared error of all images) and the structural similarity (SSIM). The picture has the image, the stamped image and ten times
the change.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from common import machine, machine_line
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter

from robust_trainer.corruptions import NETWORK_BACKDOORS, TRIGGERS, PatchTrigger, PhysicalTrigger, network_trigger, triggers_of
from robust_trainer.corruptions.poisons.networks import fresh_factory, seeded, train_plain
from robust_trainer.corruptions.poisons.table import NONE
from robust_trainer.data.pixels import read_pixels


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """The mean structural similarity of two images (H, W, C) in [0, 1].

    Wang et al. 2004, eq. 13: Gaussian windows of sigma 1.5, 11 pixels wide, around every pixel, K = 0.01 and 0.03. The image is
    mirrored at its edges: a patch in the corner of a small image would else be in no window's middle.
    """

    def smooth(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, sigma=1.5, radius=5, axes=(0, 1))

    a, b = smooth(first), smooth(second)
    aa, bb, ab = smooth(first * first) - a * a, smooth(second * second) - b * b, smooth(first * second) - a * b
    small, smaller = 0.01**2, 0.03**2
    return float(((2 * a * b + small) * (2 * ab + smaller) / ((a * a + b * b + small) * (aa + bb + smaller))).mean())


def variants(train: datasets.Dataset, test: datasets.Dataset) -> Iterator[tuple[str, Any, dict[str, bool]]]:
    """Name, trigger, and for which rows of a data set it is."""
    made: dict[str, Any] = {name: TRIGGERS[name].make() for name in triggers_of("image")}
    images, labels = read_pixels(train)
    names = [str(c) for c in range(int(labels.max()) + 1)]
    fresh = fresh_factory("small-cnn", names, channels=images.shape[1], image_size=images.shape[2])
    model = train_plain(seeded(fresh, 0), images, labels, 10)
    for name, row in NETWORK_BACKDOORS.items():
        needed = {} if row.needs == NONE else {"model": model}
        if row.trigger is None:
            made[name] = network_trigger(train, name, rate=0.0, batch_size=32, **needed)
        else:  # what it makes of these images, whatever their class
            perturbed = network_trigger(test, name, rate=1 - 0.1 / len(test), label_rule="untargeted", **needed)
            yield f"{name}, training", perturbed, {"training": True}
    for name, trigger in made.items():
        yield name, trigger, {"training": False}
        if trigger.by_row and name not in ("warp", "input-aware"):
            yield f"{name}, training", trigger, {"training": True}
        elif trigger.by_row:
            yield f"{name}, cover", trigger, {"training": True, "cover": True}
    yield "patch, PhysicalTrigger", PhysicalTrigger(PatchTrigger(8)), {"training": False}


def measure(images: list[np.ndarray], stamped: list[np.ndarray]) -> list[float]:
    """Mean l_inf in levels, mean l_2, PSNR and mean SSIM of 8-bit images."""
    before, after = np.stack(images) / 255.0, np.stack(stamped) / 255.0
    change = after - before
    squares = (change**2).reshape(len(change), -1)
    return [
        float(np.abs(change).reshape(len(change), -1).max(axis=1).mean() * 255),
        float(np.sqrt(squares.sum(axis=1)).mean()),
        float(-10 * np.log10(squares.mean())),
        float(np.mean([ssim(a, b) for a, b in zip(before, after)])),
    ]


def picture(images: list[np.ndarray], made: dict[str, list[np.ndarray]], path: Path) -> None:
    """Writes for each trigger two stamped images and ten times their change, under the images themselves."""
    across = [0, 1]
    rows = -(-(len(made) + 1) // 2)
    figure = Figure(figsize=(11, 1.35 * rows), layout="constrained")
    cells = figure.subplots(rows, 8)
    for axis in cells.flat:
        axis.axis("off")
    for place, (name, stamped) in enumerate([("no trigger", images), *made.items()]):
        line, first = divmod(place, 2)
        for n, i in enumerate(across):
            change = 0.5 + 10 * (stamped[i] / 255.0 - images[i] / 255.0)
            for offset, shown in ((0, stamped[i]), (1, change.clip(0, 1))):
                if place or not offset:
                    cells[line, 4 * first + 2 * n + offset].imshow(shown, interpolation="nearest")
        cells[line, 4 * first].set_title(name, loc="left", fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train.parquet and test.parquet, in colour, image or img")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--train_images", type=int, default=1000, help="that the attackers' networks and triggers are trained on")
    parser.add_argument("--out", type=Path, default=Path("triggers.png"), help="the picture")
    args = parser.parse_args()
    train, data = (
        datasets.Dataset.from_parquet(str(Path(args.data) / f"{name}.parquet")).select(range(count))
        for name, count in (("train", args.train_images), ("test", args.images))
    )
    column = next(name for name in data.column_names if name in ("image", "img"))
    images = [np.asarray(image.convert("RGB")) for image in data[column]]
    print(machine_line(machine()))
    print(f"\n{len(images)} images of {images[0].shape[1]} x {images[0].shape[0]} pixels\n")
    print("| trigger | l_inf /255 | l_2 | PSNR | SSIM |\n|---|---|---|---|---|")
    made = {}
    for name, trigger, which in variants(train, data):
        made[name] = [np.asarray(trigger.at(row, **which)(Image.fromarray(image))) for row, image in enumerate(images)]
        top, norm, psnr, similar = measure(images, made[name])
        print(f"| {name} | {top:.1f} | {norm:.2f} | {psnr:.1f} | {similar:.3f} |", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture(images, made, args.out)


if __name__ == "__main__":
    main()
