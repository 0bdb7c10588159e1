"""Every command refuses images that it cannot use before its first step, and nothing but the one decoder opens any."""

import datasets
import numpy as np
import pytest
import torch
from helpers.pictures import EPS, encoded
from PIL import Image

from robust_trainer.cli.main import main, one_line
from robust_trainer.data.decode import ImageError, decode_images
from robust_trainer.data.load import load_data


def folder(place, kind="PNG"):
    """Thirty pictures of two classes, with a test split."""
    for split, n in (("train", 20), ("test", 10)):
        for i in range(n):
            into = place / split / "ab"[i % 2]
            into.mkdir(parents=True, exist_ok=True)
            levels = np.random.default_rng(i).integers(0, 256, (10, 10, 3), dtype=np.uint8)
            (into / f"{i:02}.{kind.lower()}").write_bytes(encoded(Image.fromarray(levels), kind))
    return place


def test_commands_name_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: (_ for _ in ()).throw(AssertionError("a program is started")))
    cut = folder(tmp_path / "cut", "JPEG")
    (cut / "test/b/03.jpeg").write_bytes((cut / "test/b/03.jpeg").read_bytes()[:400])
    eps = folder(tmp_path / "eps")
    (eps / "train/a/04.png").write_bytes(EPS)
    for place, file, why, words in (
        (cut, "test/b/03.jpeg", "is cut short", ["train"]),
        (eps, "train/a/04.png", "is damaged, or no PNG", ["corrupt", "--corrupt", "patch"]),
    ):
        assert main([*words, "--output_dir", str(tmp_path / "out"), "--dataset", str(place)]) == 2
        told = capsys.readouterr().err.strip()
        assert told.count("\n") == 0 and file in told and why in told and f"split '{file.split('/')[0]}': 'image' in row" in told


class Broken(torch.utils.data.Dataset):
    """One row, which cannot be read."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return decode_images([b"no image"])


def test_an_error_of_a_data_loaders_worker_is_one_line_too():
    with pytest.raises(ImageError) as caught:
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    assert one_line(caught.value) == (
        "'image': image is damaged, or no PNG, JPEG, WebP, GIF, BMP, TIFF or PPM: replace or convert it."
    )


def test_rows_held_out_for_testing_are_those_of_the_one_table(tmp_path):
    levels = [np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8) for i in range(20)]
    cells = [{"bytes": encoded(Image.fromarray(x)), "path": None} for x in levels]
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for row, limit in ((4, None), (13, 19)):
        damaged = [c if i != row else {"bytes": c["bytes"][:99], "path": None} for i, c in enumerate(cells)]
        table = datasets.Dataset.from_dict({"picture": damaged, "label": [i % 2 for i in range(20)]}, features=features)
        table.to_parquet(str(tmp_path / f"{row}.parquet"))
        with pytest.raises(ValueError, match=f"^'picture' in row {row}: image is cut short"):
            load_data(str(tmp_path / f"{row}.parquet"), max_train_samples=limit)
