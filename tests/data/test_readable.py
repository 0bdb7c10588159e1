"""Images that cannot be used are told before anything long begins: which row of the user's data, which file."""

import random

import datasets
import numpy as np
import pytest
from helpers.pictures import EPS, cell, encoded, png
from helpers.tables import every_row
from PIL import Image

from robust_trainer.data.preprocess import ImageTransform
from robust_trainer.data.readable import check_readable


def levels(seed, shape=(12, 12, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(seed, kind="PNG", **options):
    return cell(encoded(Image.fromarray(levels(seed)), kind, **options))


def table(cells):
    return datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))


def cut(seed, kind, share=0.6):
    content = picture(seed, kind)["bytes"]
    return cell(content[: int(len(content) * share)], f"a.{kind.lower()}")


def flipped(seed):
    content = bytearray(picture(seed)["bytes"])
    content[len(content) // 2] ^= 255
    return cell(bytes(content), "flipped.png")


@every_row("bad, told", [
    (cut(0, "JPEG"), "image 'a.jpeg' is cut short"), (cut(0, "JPEG", 0.97), "image 'a.jpeg' is cut short"),
    (cut(0, "PNG"), "image 'a.png' is cut short"), (cut(0, "WEBP"), "image 'a.webp' is damaged"),
    (cut(0, "BMP"), "image 'a.bmp' is cut short"), (cut(0, "TIFF", 0.3), "image 'a.tiff' is "),
    (cut(0, "GIF"), "image 'a.gif' is "),
    (flipped(0), "image 'flipped.png' is damaged"), (None, "image is missing"), (cell(b""), "is empty"),
    (cell(None, "gone.png"), "image 'gone.png' was not found"), (cell(EPS, "x.png"), "image 'x.png' is damaged, or no PNG"),
    (cell(png((60_000, 60_000), 8, 2, b"")), "has more pixels"), (cell(encoded(Image.new("I", (4, 4)), "TIFF")), "32-bit integers"),
    (cell(encoded(Image.new("F", (4, 4), 3.0), "TIFF")), "floats outside"),
])  # fmt: skip
def test_the_row_and_the_file_are_named(bad, told):
    cells = [picture(i) for i in range(9)]
    cells[5] = bad
    with pytest.raises(ValueError, match=r"^split 'test': 'image' in row 5: ") as caught:
        check_readable(table(cells), "image", "split 'test': ")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_rows_are_those_of_the_users_table_and_several_are_counted():
    cells = [picture(i, "JPEG") for i in range(20)]
    cells[3], cells[11], cells[12] = cut(3, "JPEG"), None, cell(b"")
    data = table(cells).select([0, 12, 11, 3, 19])
    with pytest.raises(ValueError, match=r"'image' in row 12: .*Of 5 rows 2 more cannot be used \(rows 11, 3\)\.$"):
        check_readable(data, "image")


def test_good_images_of_all_kinds_pass_without_a_word(caplog):
    ramp = np.linspace(0, 65535, 144).reshape(12, 12)
    cells = [picture(1, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]
    cells += [cell(encoded(Image.fromarray(ramp.astype(np.uint16)))), cell(encoded(Image.fromarray(levels(2, (12, 12, 4)))))]
    cells += [
        cell(encoded(Image.fromarray((ramp / 65535).astype(np.float32)), "TIFF")),
        cell(picture(1, "JPEG")["bytes"] + b"\0" * 9),
    ]
    cells += [cell(png((2, 1), 16, 0, b"\0\0\0\0\0"))]  # black
    check_readable(table(cells), "image")
    check_readable(table([cell(picture(1, "JPEG")["bytes"] + random.Random(0).randbytes(500))]), "image")  # more after the end
    assert not caplog.records


def several(kind):
    more = [Image.fromarray(levels(9))]
    return [cell(encoded(Image.fromarray(levels(i)), kind, save_all=True, append_images=more)) for i in range(2)]


@every_row("cells, told", [
    (several("GIF"), "holds 2 images of several frames or pages (the first in row 2): only their first frame is used."),
    (several("TIFF"), "holds 2 images of several frames or pages (the first in row 2)"),
    ([cell(encoded(Image.fromarray(np.dstack([np.full((12, 12, 3), 255, np.uint8), levels(i, (12, 12))])))) for i in range(3)],
     "has 3 transparent images, and of 3 of 3 nothing is seen on the white ground (the first in row 2)"),
])  # fmt: skip
def test_what_is_not_used_or_not_seen_is_said(cells, told, caplog):
    check_readable(table([picture(0), picture(1), *cells]), "image")
    assert [told in record.getMessage() for record in caplog.records] == [True]


def test_12_bits_stored_as_16_are_refused():
    dim = [cell(encoded(Image.fromarray((levels(i, (6, 6)) * np.uint16(15)).astype(np.uint16)))) for i in range(40)]
    with pytest.raises(ValueError, match="images of 16 bits, none of 14 looked at brighter than 3825 of 65535"):
        check_readable(table(dim), "image")
    dim[0] = cell(encoded(Image.fromarray(np.full((6, 6), 60_000, np.uint16))))
    check_readable(table(dim), "image")


def test_the_transform_looks_before_a_trainer_reads_and_a_data_set_is_looked_at_once(monkeypatch):
    good, bad = table([picture(i) for i in range(4)]), table([picture(0), cell(picture(1)["bytes"][:90], "b.png")])
    transform = ImageTransform(None)
    for _ in range(2):
        with pytest.raises(ValueError, match="^'image' in row 1: image 'b.png' is cut short"):
            transform.apply_to(bad)
    transform.apply_to(good)
    monkeypatch.setattr("robust_trainer.data.readable._Scan", None)
    transform.apply_to(good)
    check_readable(good, "image", "split 'train': ")
