"""A trigger as a camera sees it: what stays, how far it moves, and that rows, training and tests differ."""

import datasets
import numpy as np
import pytest
from helpers.tables import every_row
from PIL import Image

from robust_trainer.corruptions import (
    AdaptivePatchTrigger,
    BlendTrigger,
    LowFrequencyTrigger,
    PatchesTrigger,
    PatchTrigger,
    PhysicalTrigger,
    QuantisationTrigger,
    SinusoidTrigger,
    WarpTrigger,
    poison,
    trigger_all,
)

STILL = {"shift": 0, "scale": 0, "rotation": 0, "brightness": 0}
X = np.random.default_rng(0).random((32, 32, 3))


def at(trigger, row=3, image=X, **which):
    return trigger.at(row, **{"training": True, **which})(image)


@every_row("trigger", [PatchTrigger(5), PatchesTrigger(3), BlendTrigger(), AdaptivePatchTrigger(4)])
def test_without_motion_it_is_the_trigger_itself(trigger):
    still = PhysicalTrigger(trigger, **STILL)
    for which in ({"training": True}, {"training": False}, {"training": True, "cover": True}):
        assert np.allclose(at(still, **which), at(trigger, **which), atol=1e-9)
    assert np.allclose(PhysicalTrigger(trigger)(X), trigger(X))


def test_a_shifted_patch_is_whole_and_within_reach():
    patch = PatchTrigger(pattern=np.full((4, 6), 1.0), position=(10, 12))
    moving = PhysicalTrigger(patch, **{**STILL, "shift": 0.25}, seed=1)
    places = []
    for row in range(60):
        made = at(moving, row, np.zeros((32, 40, 1)))[..., 0]
        assert made.sum() == pytest.approx(24, abs=1e-9) and made.max() <= 1 + 1e-9
        y, x = np.indices(made.shape)
        places.append([(made * y).sum() / 24 - 11.5, (made * x).sum() / 24 - 14.5])
    places = np.abs(places)
    assert places[:, 0].max() <= 8 + 1e-6 and places[:, 1].max() <= 10 + 1e-6 and (places.max(axis=0) > (6, 8)).all()
    corner = PhysicalTrigger(PatchTrigger(pattern=np.full((4, 4), 1.0)), **{**STILL, "shift": 0.5})
    for row in range(30):
        assert at(corner, row, np.zeros((32, 32, 1))).sum() == pytest.approx(16, abs=1e-9)  # not over the edge


def test_size_angle_and_light():
    square = PatchTrigger(pattern=np.full((10, 10), 0.5), position="center")
    sizes = [at(PhysicalTrigger(square, **{**STILL, "scale": 0.4}), r, np.zeros((32, 32, 1))).sum() / 0.5 for r in range(40)]
    assert min(sizes) < 60 and max(sizes) > 160 and 30 < min(sizes) and max(sizes) < 1.4**2 * 100 + 20
    lights = [at(PhysicalTrigger(square, **{**STILL, "brightness": 0.5}), r, np.zeros((32, 32, 1))).max() for r in range(40)]
    assert 0.25 <= min(lights) < 0.3 and 0.7 < max(lights) <= 0.75
    bar = PatchTrigger(pattern=np.full((1, 15), 1.0), position="center")
    for row in range(20):
        turned = at(PhysicalTrigger(bar, **{**STILL, "rotation": 90}), row, np.zeros((33, 33, 1)))[..., 0]
        assert turned.sum() == pytest.approx(15, abs=2)  # a bar stays as long
        y, x = np.nonzero(turned > 0.3)
        assert np.hypot(np.ptp(y), np.ptp(x)) == pytest.approx(14, abs=2)


def test_draws_are_by_seed_row_and_use():
    moving = PhysicalTrigger(PatchTrigger(5))
    made = {
        "one": at(moving, 1), "two": at(moving, 2), "test": at(moving, 1, training=False), "cover": at(moving, 1, cover=True),
        "seed": at(PhysicalTrigger(PatchTrigger(5), seed=1), 1),
    }  # fmt: skip
    assert len({value.tobytes() for value in made.values()}) == 5 and np.array_equal(made["one"], at(moving, 1))
    assert ((made["one"] == X).all(axis=-1)).mean() > 0.9  # elsewhere the image stays


def test_it_poisons_a_data_set_with_the_trigger_s_covers():
    shown = [Image.fromarray((X[:16, :16] * 255).astype(np.uint8))] * 20
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"image": shown, "label": [0, 1] * 10}, features=features)
    made = poison(data, trigger=PhysicalTrigger(AdaptivePatchTrigger(4)), rate=0.2)
    assert sum(made["is_corrupted"]) == 4 == sum(made["is_cover"])
    stamped = trigger_all(data, PhysicalTrigger(PatchTrigger(4)))
    assert len({np.asarray(image).tobytes() for image in stamped["image"]}) == 20


@every_row("trigger", [WarpTrigger(), SinusoidTrigger(), LowFrequencyTrigger(), QuantisationTrigger()])
def test_triggers_that_do_not_lie_over_the_image_are_refused(trigger):
    with pytest.raises(ValueError, match="does not lie over the image"):
        PhysicalTrigger(trigger)


@every_row(
    "given, told",
    [
        ({"trigger": 3}, "trigger=3 is no trigger"), ({"rotation": 200}, "rotation=200"), ({"scale": 1}, "scale=1"),
        ({"brightness": -0.1}, "brightness=-0.1"), ({"seed": -1}, "seed=-1"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(given, told):
    with pytest.raises(ValueError) as raised:
        PhysicalTrigger(**{"trigger": PatchTrigger(), **given})
    assert told in str(raised.value) and "\n" not in str(raised.value)
