"""What a model sees of images is decided by rows spread over the data set, and said where it is not all of them."""

import datasets
import pytest
from PIL import Image

from robust_trainer.data import preprocess
from robust_trainer.data.preprocess import image_shape, tell_unseen

GREY, COLOUR, LARGE = Image.new("L", (8, 8), 9), Image.new("RGB", (8, 8), (200, 10, 10)), Image.new("L", (40, 30), 9)


def table(*pictures):
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": list(pictures)}, features=features)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(preprocess.logger, "warning", lines.append)
    return lines


def test_one_colour_image_of_many_counts():
    assert image_shape(table(*[GREY] * 1500, COLOUR, *[GREY] * 600)) == (3, 8)


def test_the_side_is_not_the_first_images():
    assert image_shape(table(*[GREY] * 3, *[LARGE] * 9)) == (1, 40)
    assert image_shape(table(LARGE, *[GREY] * 9)) == (1, 8)


def test_what_the_model_does_not_see_is_said(said):
    splits = {"train": table(GREY, GREY), "test": table(GREY, COLOUR), "test_triggered": table(COLOUR)}
    tell_unseen(splits, channels=3)
    tell_unseen({"train": table(GREY, LARGE)}, channels=1)
    assert said == []
    tell_unseen(splits, channels=1)
    assert [line.split(" has")[0] for line in said] == ["split 'test'", "split 'test_triggered'"]
    said.clear()
    tell_unseen({"train": table(GREY, LARGE), "test": table(GREY, LARGE)}, channels=1, side=24)
    assert len(said) == 1 and "8 to 40 pixels" in said[0] and "resized to 24" in said[0]


def test_grey_by_a_look_at_some_is_said(said, monkeypatch):
    monkeypatch.setattr(preprocess, "LOOKED_AT", 5)
    tell_unseen({"train": table(*[GREY] * 9)}, channels=1)
    assert len(said) == 1 and "5 of 9 images" in said[0]
