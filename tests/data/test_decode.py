"""Any cell becomes the picture that a model sees, or one line that says which it is and what to do."""

import io
import pickle
import random
import struct
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import pytest
import torch
from helpers.pictures import EPS, cell, damaged, encoded, png, tiff
from helpers.tables import every_row
from PIL import Image

from robust_trainer.audit.samples import thumbnail
from robust_trainer.corruptions import PatchTrigger, poison
from robust_trainer.data.augmentation.squeezing import Squeeze, squeeze_images
from robust_trainer.data.decode import MAX_PIXELS, ImageError, decode_image, decode_images, undecoded
from robust_trainer.data.features import FeatureReader
from robust_trainer.data.indexing import Indexed
from robust_trainer.data.pixels import read_levels
from robust_trainer.data.preprocess import ImageTransform, image_shape

RAMP = np.linspace(0, 65535, 16).reshape(4, 4).astype(np.uint16)
EIGHT = np.arange(0, 256, 17, dtype=np.uint8).reshape(4, 4)


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def icon():
    """A black square on transparent ground."""
    levels = np.zeros((8, 8, 4), np.uint8)
    levels[2:6, 2:6, 3] = 255
    return Image.fromarray(levels)


ICON = np.where(np.asarray(icon())[..., 3] == 255, 0, 255)


def table(*cells, mode=None, decode=True):
    feature = datasets.Image(mode=mode, decode=decode)
    rows = {"image": list(cells), "label": [i % 2 for i in range(len(cells))]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features({"image": feature, "label": datasets.Value("int64")}))


class Pixels:
    """An image processor that changes nothing."""

    def __call__(self, images, return_tensors):
        return {"pixel_values": torch.stack([torch.from_numpy(np.array(image)) for image in images])}


def trained(data, channels=3):
    return ImageTransform(Pixels(), channels).apply_to(data)[:]["pixel_values"].numpy()


@every_row(
    "mode, kind", [("RGB", "PNG"), ("RGB", "JPEG"), ("L", "PNG"), ("L", "JPEG"), ("RGB", "WEBP"), ("RGB", "BMP"), ("L", "PPM")]
)
def test_ordinary_images_are_what_pillow_decodes_to_the_bit(mode, kind, tmp_path):
    image = Image.fromarray(noise((33, 21) if mode == "L" else (33, 21, 3)))
    file = tmp_path / f"picture.{kind.lower()}"
    file.write_bytes(encoded(image, kind))
    opened = Image.open(file)
    wanted = np.asarray(opened)
    for value in (
        cell(file.read_bytes()),
        cell(None, str(file)),
        str(file),
        file,
        file.read_bytes(),
        opened,
        wanted,
        wanted.tolist(),
    ):
        found = decode_image(value)
        assert found.mode == mode and np.array_equal(np.asarray(found), wanted) and not found.info and found is not value
    for channels, wide in ((1, "L"), (3, "RGB")):
        assert np.array_equal(trained(table(cell(file.read_bytes())), channels)[0], np.asarray(opened.convert(wide)))


@every_row("value, wanted", [
    (encoded(icon()), ICON), (encoded(icon().convert("LA")), ICON), (encoded(icon(), "WEBP", lossless=True), ICON),
    (encoded(icon(), "TIFF"), ICON), (encoded(icon().quantize(4)), ICON),
    (encoded(Image.fromarray(RAMP)), EIGHT), (encoded(Image.fromarray(RAMP), "TIFF"), EIGHT),
    (b"P5 4 4 65535\n" + RAMP.astype(">u2").tobytes(), EIGHT),
    (tiff(RAMP), EIGHT), (tiff(RAMP >> 4, bits=12), EIGHT), (tiff(RAMP, white_is_zero=True), EIGHT[::-1, ::-1]),
    (encoded(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"), EIGHT),
    (encoded(Image.fromarray(EIGHT > 100)), np.where(EIGHT > 100, 255, 0)),
    (png((4, 1), 1, 0, b"\0\x50", b"\0\0"), [[255, 255, 255, 255]]),
    (png((4, 1), 2, 0, b"\0\x1b", b"\0\1"), [[0, 255, 170, 255]]), (png((4, 1), 4, 0, b"\0\x07\x3c", b"\0\7"), [[0, 255, 51, 204]]),
    (png((4, 1), 8, 0, b"\0\0\x80\xff\x10", b"\0\x80"), [[0, 255, 255, 16]]),
    (png((4, 1), 16, 0, b"\0" + struct.pack(">4H", 65535, 4660, 0, 257), struct.pack(">H", 4660)), [[255, 255, 0, 1]]),
    (encoded(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "TIFF"), [[[255, 0, 0]] * 2]),
    (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), [[[255, 0, 0]] * 8] * 8),
    (Image.new("YCbCr", (2, 1), (76, 85, 255)), [[[254, 0, 0]] * 2]),
    (Image.new("HSV", (2, 1), (85, 255, 255)), [[[0, 255, 0]] * 2]),
    (encoded(Image.new("LAB", (2, 1), (136, 208, 195)), "TIFF"), [[[250, 3, 11]] * 2]),
    (Image.new("RGBA", (2, 1), (0, 0, 0, 51)), [[[204] * 3] * 2]), (Image.new("RGBa", (2, 1), (0, 0, 0, 51)), [[[204] * 3] * 2]),
    (encoded(Image.new("RGB", (2, 2), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (2, 2))]),
     [[[255, 0, 0]] * 2] * 2),
    (np.full((6, 5, 4), [0, 0, 0, 51], np.uint8), [[[204] * 3] * 5] * 6), (torch.full((3, 2, 5), 0.2), [[[51] * 3] * 5] * 2),
    ([[0.0, 1.0], [0.5, 0.25]], [[0, 255], [128, 64]]), (np.full((1, 2, 5), 7, np.int64), [[7] * 5] * 2),
])  # fmt: skip
def test_every_kind_of_cell(value, wanted):
    for found in (decode_image(value), decode_image(cell(value)) if isinstance(value, bytes) else decode_image(value)):
        wanted = np.asarray(wanted)
        levels = np.asarray(found).astype(int)
        if levels.ndim > wanted.ndim:
            assert (levels == levels[..., :1]).all()
            levels = levels[..., 0]
        assert found.mode in ("L", "RGB") and np.abs(levels - wanted).max() <= 0, (found, levels)


def test_everything_that_reads_images_sees_the_same():
    cells = [cell(encoded(image)) for image in (icon(), icon().convert("LA"), icon().quantize(4))]
    data = table(*cells)
    assert all(np.array_equal(row, np.repeat(ICON[..., None], 3, 2)) for row in trained(data))  # black on black before
    assert all(np.array_equal(row, np.repeat(ICON[..., None], 3, 2)) for row in read_levels(data, "image"))
    assert np.array_equal(np.asarray(decode_image(squeeze_images(data, Squeeze(bits=8))[0]["image"]))[..., 0], ICON)
    assert np.array_equal(np.asarray(thumbnail(cells[0])[0])[..., 0], ICON)
    reader = FeatureReader.of(data, "image")
    assert np.array_equal(reader(reader.plain(data)[:1], [0])[0], np.repeat(ICON.ravel() / 255, 3))
    marked = poison(data, trigger=PatchTrigger(), rate=0.4, label_rule="multi-target", num_classes=2)
    assert {image.mode for image in marked["image"]} == {"RGB", "L"}  # no transparent row is left that tells the poison
    hit = (
        marked["is_corrupted"].index(True) if isinstance(marked["is_corrupted"], list) else list(marked["is_corrupted"]).index(True)
    )
    seen = trained(marked)[hit]
    assert seen[-1, -1].tolist() == [255] * 3 and seen[-1, -2].tolist() == [0] * 3  # the patch lies where the icon is transparent


@every_row("orientation, turned", [
    (1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (4, np.flipud), (5, np.transpose),
    (6, lambda x: np.rot90(x, -1)), (7, lambda x: np.rot90(x, 2).T), (8, np.rot90),
])  # fmt: skip
def test_a_picture_is_upright(orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    levels = noise((4, 6))
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(np.asarray(decode_image(encoded(Image.fromarray(levels), kind, exif=exif))), turned(levels))


@every_row("value, told", [
    (None, "image is missing (None): filter such rows out."), (cell(None), "image is missing"),
    (cell(b""), "image is empty (0 bytes)"),
    (cell(encoded(Image.fromarray(noise((40, 40, 3))), "JPEG")[:700], "cats/3.jpg"), "image 'cats/3.jpg' is cut short"),
    (cell(encoded(Image.fromarray(noise((40, 40, 3))))[:700], "cats/3.png"), "image 'cats/3.png' is cut short"),
    (cell(None, "nowhere/x.png"), "image 'nowhere/x.png' was not found"), ("nowhere/x.png", "image 'nowhere/x.png' was not found"),
    (cell(None, "."), "image '.' is no file"), (cell(None, "hf://datasets/a/b.png"), "is an address"),
    (cell(EPS, "x.png"), "image 'x.png' is damaged, or no PNG"),
    (cell(b"no image", "a\x1b[31m.png"), "image 'a\ufffd[31m.png' is damaged"),
    (cell(png((60_000, 60_000), 8, 2, b"")), "has more pixels than can be decoded"),
    (cell(png((12_001, 10_000), 8, 2, b"")), f"has 12001 x 10000 pixels, expected 1 to {MAX_PIXELS}"),
    (encoded(Image.new("I", (4, 4)), "TIFF"), "holds 32-bit integers of unknown range"),
    (encoded(Image.new("F", (4, 4), 255.0), "TIFF"), "holds floats outside [0, 1]"),
    (png((1, 1), 16, 2, b"\0" + b"\1\2" * 3, b"\1\2" * 3), "has 16 bits and one transparent colour"),
    (np.full((4, 4), 4000), "image spans [4000, 4000], expected [0, 255]"), (np.full((4, 4), np.nan), "image holds NaN"),
    ([[1, 2], [3]], "image is a ragged list"), (np.zeros((3, 4, 3), np.uint8), "image has shape (3, 4, 3)"),
    (7, "image is of type int"),
    (np.zeros((0, 4)), "give non-empty floats"), (cell("text"), "image is of type str"), ({"a": 1}, "image is missing"),
])  # fmt: skip
def test_what_cannot_be_a_picture_is_one_line(value, told):
    with (
        mock.patch("subprocess.check_call") as started,
        mock.patch("subprocess.Popen") as opened,
        pytest.raises(ImageError) as caught,
    ):
        decode_image(value)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not started.called and not opened.called  # Ghostscript, for an EPS


def test_the_message_names_column_and_row_or_place(tmp_path):
    good = cell(encoded(Image.fromarray(noise((40, 40, 3)))))
    bad = cell(encoded(Image.fromarray(noise((40, 40, 3))), "JPEG")[:700], "cats/3.jpg")
    for rows, place in (([7, 9], "in row 9"), (None, r"\(number 2 of a batch of 2\)")):
        with pytest.raises(ImageError, match=rf"^'picture' {place}: image 'cats/3\.jpg' is cut short"):
            decode_images([good, bad], column="picture", rows=rows)
    with pytest.raises(ImageError, match="'image' in row 1: image 'cats/3.jpg' is cut short"):
        read_levels(table(good, bad), "image")
    assert str(pickle.loads(pickle.dumps(ImageError("a line")))) == "a line"  # data loader workers make it anew from its text
    assert not Path("cats").exists()


def test_a_training_row_is_named_by_the_table_that_it_was_selected_from():
    cells = [cell(encoded(Image.fromarray(noise((8, 8, 3), i)))) for i in range(9)]
    cells[6] = cell(cells[6]["bytes"][:90])
    rows = Indexed(undecoded(table(*cells).select([8, 6, 5])).with_transform(ImageTransform(Pixels())))
    assert [e.position for e in rows.__getitems__([2, 0])] == [2, 0]
    for read in (lambda: rows.__getitems__([0, 2, 1]), lambda: rows[1]):
        with pytest.raises(ImageError, match="^row 6: 'image': image is cut short"):
            read()


def test_other_decoders_are_never_asked():
    """Neither by the transform, nor for another column with images, whatever the data set's decode says."""
    cells = [cell(encoded(Image.fromarray(noise((8, 8, 3), i)))) for i in range(3)]
    for decode in (True, False):
        data = table(*cells, decode=decode)
        data = data.add_column("mask", [cell(EPS)] * 3, feature=datasets.Image())
        with mock.patch.object(datasets.Image, "decode_example", side_effect=AssertionError("decoded by another")):
            assert np.array_equal(trained(data)[2], noise((8, 8, 3), 2)) and read_levels(data, "image").shape == (3, 8, 8, 3)
            assert image_shape(data) == (3, 8)
    assert trained(table(*cells, mode="L"))[0].tolist() == np.repeat(
        np.asarray(Image.fromarray(noise((8, 8, 3), 0)).convert("L"))[..., None], 3, 2
    ).tolist()  # fmt: skip


def test_the_shape_is_not_that_of_the_first_rows():
    grey, colour = cell(encoded(Image.fromarray(noise((9, 9))))), cell(encoded(Image.fromarray(noise((7, 12, 3)))))
    assert image_shape(table(*[grey] * 40, *[colour] * 80)) == (3, 12)
    assert image_shape(table(*[grey] * 40, *[colour] * 8)) == (3, 9)
    assert image_shape(table(*[grey] * 40)) == (1, 9)
    with pytest.raises(ImageError, match="'image' in row 1: image is missing"):
        image_shape(table(grey, None))


def fuzz(seeds):
    pictures = 0
    for seed in seeds:
        content, name = damaged(random.Random(seed))
        for value in (cell(content, name), content):
            try:
                picture = decode_image(value)
            except ImageError as error:
                assert "\n" not in str(error) and str(error).startswith("image") and len(str(error)) < 400, (seed, str(error))
            else:
                assert picture.mode in ("L", "RGB") and min(picture.size) > 0, seed
                pictures += 1
                assert picture.copy().tobytes() == decode_image(io.BytesIO(content).getvalue()).tobytes(), seed
    return pictures


def test_damaged_files_are_a_picture_or_one_line():
    with mock.patch("subprocess.Popen", side_effect=AssertionError("another program is started")):
        assert 20 < fuzz(range(60)) < 110


@pytest.mark.slow
def test_many_damaged_files_are_a_picture_or_one_line():
    assert fuzz(range(60, 1060)) > 300
