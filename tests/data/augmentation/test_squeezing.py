import json
import pickle
from io import BytesIO

import datasets
import numpy as np
import pytest
from helpers.tables import every_row
from PIL import Image, ImageOps

from robust_trainer.cli.main import main
from robust_trainer.cli.options import CorruptionOptions, DataOptions, PreprocessOptions
from robust_trainer.cli.stages import prepare
from robust_trainer.data.augmentation.squeezing import Squeeze, make_squeeze, squeeze_images


def picture(mode="RGB", side=16, seed=0):
    shape = (side, side) if mode == "L" else (side, side, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def smooth(side=32):
    u, v = np.meshgrid(np.linspace(0, np.pi, side), np.linspace(0, np.pi, side))
    return np.stack([128 + 80 * np.sin(u + phase) * np.cos(v) for phase in (0.0, 0.5, 1.0)], 2)


def jpeg(image, quality):
    file = BytesIO()
    image.save(file, format="JPEG", quality=quality)
    return Image.open(file)


def same(a, b):
    return a.mode == b.mode and np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_each_is_pils_by_hand(mode):
    image = picture(mode)
    assert same(Squeeze(bits=2)(image), ImageOps.posterize(image, 2))
    assert np.unique(np.asarray(Squeeze(bits=2)(image))).tolist() == [0, 64, 128, 192]
    assert same(Squeeze(jpeg_quality=10)(image), jpeg(image, 10))
    assert not same(Squeeze(jpeg_quality=10)(image), jpeg(image, 50))
    grey = Squeeze(grayscale=True)(image)
    assert same(grey, image.convert("L").convert(mode)) and grey.mode == mode
    assert same(Squeeze()(image), image)


def test_bits_then_grey_then_jpeg():
    image = Image.fromarray(smooth().astype(np.uint8))
    steps = [lambda i: ImageOps.posterize(i, 2), lambda i: i.convert("L").convert("RGB"), lambda i: jpeg(i, 10)]
    squeezed = make_squeeze("jpeg+grayscale+bits", jpeg_quality=10, bits=2)(image)
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 2, 1]):
        by_hand = image
        for i in order:
            by_hand = steps[i](by_hand)
        assert same(squeezed, by_hand) == (order == [0, 1, 2])


def test_names_come_in_any_order_and_take_their_settings():
    assert make_squeeze("jpeg") == Squeeze(jpeg_quality=10)
    assert make_squeeze("bits + jpeg", bits=3, jpeg_quality=20) == make_squeeze("jpeg+bits", bits=3, jpeg_quality=20)
    assert make_squeeze("bits+grayscale", bits=3) == Squeeze(bits=3, grayscale=True)
    squeeze = make_squeeze("jpeg+grayscale+bits")
    assert str(squeeze) == "2 bits, grayscale, JPEG quality 10" and pickle.loads(pickle.dumps(squeeze)) == squeeze


def test_other_modes():
    rgba, palette = picture().convert("RGBA"), picture().quantize(16)
    squeeze = make_squeeze("jpeg+grayscale+bits")
    assert same(squeeze(rgba), squeeze(picture())) and same(squeeze(palette), squeeze(palette.convert("RGB")))
    assert squeeze(picture("L").convert("LA")).mode == squeeze(picture("L").convert("1")).mode == "L"
    assert same(squeeze(picture().convert("CMYK")), squeeze(picture().convert("CMYK").convert("RGB")))
    with pytest.raises(ValueError, match="image has 65501 x 1 pixels, a JPEG at most 65500 a side"):
        squeeze(Image.new("L", (65_501, 1)))
    with pytest.raises(ValueError, match="image holds 32-bit integers of unknown range"):
        squeeze(picture("L").convert("I"))


@every_row("make,told", [
    (lambda: Squeeze(bits=0), r"bits=0 must be a whole number in \[1, 8\]"),
    (lambda: Squeeze(bits=9), r"bits=9 must be a whole number in \[1, 8\]"),
    (lambda: Squeeze(bits=2.0), r"bits=2\.0 must be a whole number"),
    (lambda: Squeeze(jpeg_quality=0), r"jpeg_quality=0 must be a whole number in \[1, 95\]"),
    (lambda: Squeeze(jpeg_quality=96), r"jpeg_quality=96 must be a whole number in \[1, 95\]"),
    (lambda: make_squeeze("jpg"), "'jpg' is unknown, choose among bits, grayscale, jpeg"),
    (lambda: make_squeeze("jpeg+"), "'' is unknown"),
    (lambda: make_squeeze("jpeg", bits=12), "bits=12"),
    (lambda: PreprocessOptions(squeeze_bits=9).squeezer(), r"squeeze_bits=9 must be in \[1, 8\]"),
    (lambda: PreprocessOptions(squeeze="jpeg", squeeze_jpeg_quality=0).squeezer(), r"squeeze_jpeg_quality=0 must be in \[1, 95\]"),
])  # fmt: skip
def test_bad_settings(make, told):
    with pytest.raises(ValueError, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)


def dataset(mode="RGB", n=6, kind=None):
    images = [picture(mode, seed=i) for i in range(n)]
    features = datasets.Features({"image": kind or datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(n)]}, features=features)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_data_set_is_squeezed_row_by_row_and_otherwise_kept(mode):
    data = dataset(mode).add_column("extra", list(range(6))).with_format("numpy", columns=["image", "label"])
    squeeze = make_squeeze("jpeg+bits", bits=3)
    done = squeeze_images(data, squeeze)
    assert done.features == data.features and done.format["type"] == "numpy" and done.format["columns"] == ["image", "label"]
    plain = done.with_format(None)
    assert plain["extra"][:] == list(range(6)) and plain["label"][:] == [0, 1] * 3
    for i, row in enumerate(plain):
        assert same(row["image"], squeeze(picture(mode, seed=i)))  # lossless: squeezed once
    stored = plain.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored["bytes"].startswith(b"\x89PNG")


def test_settings_enter_the_cache_and_a_jpeg_is_not_written_twice(tmp_path):
    picture(seed=9).save(tmp_path / "a.jpg", quality=90)
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.jpg")]}).cast_column("image", datasets.Image(mode="RGB"))
    wanted = Image.open(tmp_path / "a.jpg")
    for quality in (10, 20):
        assert same(squeeze_images(data, Squeeze(jpeg_quality=quality))[0]["image"], jpeg(wanted, quality))


@every_row("data,told", [
    (lambda: datasets.Dataset.from_dict({"text": ["a"], "label": [0]}), "image_column was not found"),
    (lambda: datasets.Dataset.from_dict({"pixel_values": [[[0.5, 0.5], [0.1, 0.2]]]}), "'pixel_values' holds numbers"),
    (lambda: dataset().select([]), "dataset has 0 rows"),
    (lambda: datasets.Dataset.from_dict({"image": [picture(), None]}, features=datasets.Features({"image": datasets.Image()})),
     "'image' in row 1: image is missing"),
])  # fmt: skip
def test_unusable_data(data, told):
    with pytest.raises(ValueError, match=told):
        squeeze_images(data(), Squeeze(bits=2))


@pytest.mark.parametrize("quality,kind,low,high", [
    (10, "checkerboard", 0.0, 0.4), (95, "checkerboard", 0.5, 1.1), (10, "shift", 0.9, 1.3),
])  # fmt: skip
def test_jpeg_of_low_quality_shrinks_a_high_frequency_perturbation(quality, kind, low, high):
    signs = np.kron(np.random.default_rng(0).choice([-1, 1], (4, 4, 3)), np.ones((8, 8, 1)))  # one per block and channel
    pattern = signs * np.where(np.indices((32, 32)).sum(0) % 2 == 0, 1, -1)[..., None] if kind == "checkerboard" else 1
    images = [np.rint(smooth() + eps * pattern).astype(np.uint8) for eps in (0, 8)]
    squeezed = [np.asarray(Squeeze(jpeg_quality=quality)(Image.fromarray(i))) for i in images]
    before, after = (np.linalg.norm(b.astype(float) - a) for a, b in (images, squeezed))
    assert low <= after / before < high


def test_only_the_training_split_is_squeezed_after_corruption():
    data = DataOptions(dataset="digits", max_train_samples=40, max_test_samples=20)
    corruption = CorruptionOptions(corrupt="patch", corrupt_rate=0.25)
    plain = prepare(data, corruption)
    squeezed = prepare(data, corruption, PreprocessOptions(squeeze="jpeg+bits", squeeze_jpeg_quality=15, squeeze_bits=3))
    assert plain.squeeze is None and squeezed.squeeze == Squeeze(bits=3, jpeg_quality=15)
    for before, after in zip(plain.train, squeezed.train):
        assert same(after["image"], squeezed.squeeze(before["image"])) and not same(after["image"], before["image"])
        assert after["is_corrupted"] == before["is_corrupted"] and after["label"] == before["label"]
    for name in ("test", "triggered"):
        assert all(same(a["image"], b["image"]) for a, b in zip(getattr(plain, name), getattr(squeezed, name)))


def test_train_writes_it_down(tmp_path, capsys):
    words = ["--dataset", "digits", "--max_train_samples", "32", "--max_test_samples", "16", "--num_train_epochs", "1", "--use_cpu"]
    out = tmp_path / "run"
    assert main(["train", "--output_dir", str(out), *words, "--squeeze", "jpeg+grayscale", "--squeeze_jpeg_quality", "20"]) == 0
    content = json.loads((out / "results.json").read_text())
    assert content["options"]["squeeze"] == "jpeg+grayscale" and content["options"]["squeeze_jpeg_quality"] == 20
    assert content["runs"][0]["squeeze"] == "grayscale, JPEG quality 20"
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 0
    assert main(["train", "--output_dir", str(tmp_path / "o"), *words, "--squeeze", "jpg"]) == 2
    assert "squeeze='jpg': 'jpg' is unknown" in capsys.readouterr().err and not (tmp_path / "o").exists()
