import pickle
import sys
import warnings

import numpy as np
import pytest
import torch
from helpers.tables import every_row
from PIL import Image, ImageEnhance, ImageOps

from robust_trainer.data.augmentation import autoaugment
from robust_trainer.data.augmentation.augmentations import AUGMENTATIONS, Augmentation, augment, check, make_augmentation
from robust_trainer.data.images import InputSpace

PIXELS = InputSpace()
NAMES = list(AUGMENTATIONS)


def batch(n=64, channels=3, height=16, width=16, seed=0):
    """Positive pixels, so that black is never an image's own."""
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 0.9 + 0.1


def run(name, x, seed=0, space=PIXELS):
    return augment(make_augmentation(name), x, space, seed, "view")


@every_row("name", NAMES)
@every_row("channels", [1, 3])
@every_row("dtype", [torch.float32, torch.bfloat16])
def test_shape_range_and_dtype(name, channels, dtype):
    space = InputSpace((0.4,) * channels, (0.3,) * channels)
    x = space.from_pixels(batch(channels=channels, height=12, width=20)).to(dtype).requires_grad_()
    for seed in range(3):
        out = run(name, x, seed, space)
        assert out.shape == x.shape and out.dtype == dtype
        assert name == "none" or not out.requires_grad
        pixels = space.to_pixels(out.detach())
        assert pixels.isfinite().all() and pixels.min() > -0.01 and pixels.max() < 1.01
        assert torch.equal(out, x) == (name == "none")


def test_none_returns_the_very_input():
    x = batch() * 7 - 3
    assert run("none", x, space=InputSpace((0.1,), (0.2,))) is x


@every_row("name", [n for n in NAMES if n != "none"])
def test_each_sample_has_its_own_draw(name):
    x = batch(1).expand(96, -1, -1, -1)
    out = run(name, x)
    assert len(torch.unique(out.flatten(1), dim=0)) > (1 if name == "flip" else 20)


@every_row("name", NAMES)
def test_the_seed_alone_decides_and_generators_stay(name):
    x = batch()
    torch.manual_seed(5)
    first = run(name, x, 11)
    told = torch.rand(4)
    torch.manual_seed(5)
    assert torch.equal(told, torch.rand(4))  # nothing was drawn from outside's generator
    assert torch.equal(first, run(name, x, 11))
    assert name == "none" or not torch.equal(first, run(name, x, 12))


def test_a_users_random_augmentation_is_seeded_too():
    noisy = lambda x: (x + 0.1 * torch.rand_like(x)).clamp(0, 1)  # noqa: E731
    x = batch()
    assert torch.equal(augment(noisy, x, PIXELS, 3, "view"), augment(noisy, x, PIXELS, 3, "view"))
    assert not torch.equal(augment(noisy, x, PIXELS, 3, "view"), augment(noisy, x, PIXELS, 4, "view"))


def test_normalised_units_give_the_same_picture():
    space = InputSpace((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    x = batch()
    for name in ("flip", "erase-flip", "crop-flip"):
        there = space.to_pixels(run(name, space.from_pixels(x), 1, space))
        assert torch.allclose(there, run(name, x, 1), atol=1e-6)


def test_flip_gives_the_image_or_its_mirror():
    x = batch()
    out = run("flip", x)
    same, mirrored = (out == x).flatten(1).all(1), (out == x.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all()) and 20 < int(mirrored.sum()) < 44


def test_crop_is_a_shifted_window_with_black_outside():
    x, out = batch(height=16, width=24), run("crop-flip", batch(height=16, width=24))
    padded = torch.nn.functional.pad(x, (3, 3, 2, 2))
    found = []
    for i in range(len(x)):
        windows = {(top, left): padded[i, :, top : top + 16, left : left + 24] for top in range(5) for left in range(7)}
        shifts = [(*at, flip) for at, w in windows.items() for flip in (0, 1) if torch.equal(out[i], w.flip(2) if flip else w)]
        assert len(shifts) == 1
        found += shifts
    assert {s[0] for s in found} == set(range(5)) and {s[1] for s in found} == set(range(7)) and {s[2] for s in found} == {0, 1}


def test_erase_blackens_one_rectangle_in_half_of_the_images():
    x = batch(400, height=16, width=24)
    out = augment(Augmentation(erase=0.5), x, PIXELS, 0, "view")
    black = (out == 0).all(1)
    assert torch.equal(out, x.masked_fill(black.unsqueeze(1), 0.0))
    areas = []
    for mask in black[black.flatten(1).any(1)]:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert bool(inside.all()) and int(mask.sum()) == inside.numel()
        areas.append(inside.numel() / (16 * 24))
    assert 160 < len(areas) < 240
    assert min(areas) < 0.06 and 0.25 < max(areas) < 0.36 and 0.12 < sum(areas) / len(areas) < 0.22


def test_autoaugment_changes_most_samples_and_stays_in_range():
    x = batch(500)
    out = augment(Augmentation(policy=True), x, PIXELS, 0, "view")
    changed = (out != x).flatten(1).any(1).float().mean()
    none = np.mean([(1 - p1) * (1 - p2) for (_, p1, _), (_, p2, _) in autoaugment.CIFAR10])
    # translations of 0 do not occur; color at level 0 changes nothing, nor does stretching a stretched range
    assert abs(float(changed) - (1 - none)) < 0.1
    assert out.min() >= 0 and out.max() <= 1 and out.isfinite().all()


def test_the_policy_is_kornias():
    from kornia.augmentation.auto.autoaugment.autoaugment import cifar10_policy

    assert [[(n, p, m or 0) for n, p, m in pair] for pair in cifar10_policy] == [list(pair) for pair in autoaugment.CIFAR10]


def strength(level, n, sign=1):
    return torch.full((n,), sign * level / 9)


@every_row("sign", [1, -1])
@every_row("name", ["color", "contrast", "brightness", "sharpness", "solarize", "posterize", "equalize", "invert"])
def test_colour_operations_are_pils(name, sign):
    levels = np.random.default_rng(0).integers(10, 230, (6, 32, 32, 3)).astype(np.uint8)
    x = torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 255
    out = autoaugment._operations()[name](x, strength(5, 6, sign)).clamp(0, 1).mul(255).permute(0, 2, 3, 1).numpy()
    factor = 1 + sign * 0.5
    by_hand = {
        "color": lambda i: ImageEnhance.Color(i).enhance(factor),
        "contrast": lambda i: ImageEnhance.Contrast(i).enhance(factor),
        "brightness": lambda i: ImageEnhance.Brightness(i).enhance(factor),
        "sharpness": lambda i: ImageEnhance.Sharpness(i).enhance(factor),
        "solarize": lambda i: ImageOps.solarize(i, 256 * 4 / 9),
        "posterize": lambda i: ImageOps.posterize(i, 6),
        "equalize": ImageOps.equalize,
        "invert": ImageOps.invert,
    }[name]
    wanted = np.stack([np.asarray(by_hand(Image.fromarray(image))) for image in levels])
    assert np.abs(out - wanted).max() <= (0.01 if name in ("solarize", "posterize", "equalize", "invert") else 1.6)
    assert np.abs(wanted - levels.astype(float)).mean() > 1


def test_auto_contrast_stretches_each_channel_and_spares_constant_ones():
    x = batch(4)
    x[0, 1] = 0.3
    out = autoaugment._operations()["auto_contrast"](x, strength(0, 4))
    assert torch.equal(out[0, 1], x[0, 1])
    assert torch.all(out[1:].amin((2, 3)) == 0) and torch.all(out[1:].amax((2, 3)) == 1)


@every_row("name,matrix", [
    ("translate_x", lambda s, w, h: (1, 0, round(s * 150 / 331 * w), 0, 1, 0)),
    ("translate_y", lambda s, w, h: (1, 0, 0, 0, 1, round(s * 150 / 331 * h))),
    ("shear_y", lambda s, w, h: (1, 0, 0, 0.3 * s, 1, 0)),
])  # fmt: skip
@every_row("sign", [1, -1])
def test_shifts_and_shears_are_pils(name, matrix, sign):
    width, height = 20, 12
    levels = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)
    x = torch.from_numpy(levels).float().view(1, 1, height, width) / 255
    out = autoaugment._operations()[name](x, strength(6, 1, sign))[0, 0].mul(255).numpy()
    image = Image.fromarray(levels).transform(
        (width, height), Image.Transform.AFFINE, matrix(sign * 6 / 9, width, height), Image.Resampling.BILINEAR
    )
    # at the edge PIL repeats it for half a pixel, where this fades to black
    inside = autoaugment._operations()[name](torch.ones_like(x), strength(6, 1, sign))[0, 0].numpy() > 0.999
    assert np.abs(out - np.asarray(image))[inside].max() <= 1.5 and 0.5 < inside.mean() < 0.9
    assert out.min() == 0.0


@pytest.mark.parametrize("sign", [1, -1])
def test_rotation_is_pils(sign):
    levels = np.random.default_rng(0).integers(0, 256, (16, 24)).astype(np.uint8)
    x = torch.from_numpy(levels).float().view(1, 1, 16, 24) / 255
    out = autoaugment._operations()["rotate"](x, strength(6, 1, sign))[0, 0].mul(255).numpy()
    turned = [Image.fromarray(levels).rotate(by, Image.Resampling.BILINEAR) for by in (20, -20)]
    gaps = sorted(float(np.abs(out - np.asarray(image))[5:-5, 7:-7].max()) for image in turned)
    assert gaps[0] <= 1.5 and gaps[1] > 20


def test_grey_images_are_their_three_channel_twins():
    grey = batch(200, channels=1)
    out = augment(Augmentation(policy=True), grey, PIXELS, 2, "view")
    twin = augment(Augmentation(policy=True), grey.expand(-1, 3, -1, -1), PIXELS, 2, "view")
    # the weights of the three channels sum to 1 up to rounding, and 8-bit levels may fall on either side
    assert torch.allclose(twin.mean(1, keepdim=True), out, atol=2e-2) and float((twin[:, :1] - out).abs().mean()) < 1e-4


def test_autoaugment_refuses_other_channels():
    with pytest.raises(ValueError, match="autoaugment takes images of 1 or 3 channels, these have 4"):
        run("autoaugment", batch(channels=4))
    assert run("crop-flip", batch(channels=4)).shape[1] == 4


@every_row("spoil,told", [
    (lambda x: x[:, :, 1:], r"strong_augmentation returned shape \(8, 3, 15, 16\) for images of shape \(8, 3, 16, 16\)"),
    (lambda x: x.numpy(), "strong_augmentation returned ndarray"),
    (lambda x: x / 0.0, "strong_augmentation returned NaN or infinite pixels"),
    (lambda x: torch.where(x > 0.5, torch.nan, x), "strong_augmentation returned NaN or infinite pixels"),
    (lambda x: x * 2 - 1, r"strong_augmentation returned pixels in \[-0\.\d+, 0\.9\d+\], expected \[0, 1\]"),
    (lambda x: x + 0.002 + (1 - x.max()), r"expected \[0, 1\]"),
])  # fmt: skip
def test_a_users_augmentation_is_checked(spoil, told):
    with pytest.raises(ValueError, match=told) as caught:
        augment(spoil, batch(8), PIXELS, 0, "strong_augmentation")
    assert "\n" not in str(caught.value)


def test_tiny_overshoots_are_clamped():
    over = lambda x: x + (1 - x.max()) + 9e-4  # noqa: E731
    assert float(augment(over, batch(8), PIXELS, 0, "view").max()) == 1.0
    check(torch.full((1, 1, 2, 2), 1.0009), torch.zeros(1, 1, 2, 2), "view")


@every_row("name", NAMES)
def test_pickled_and_shown(name):
    made = make_augmentation(name)
    twin = pickle.loads(pickle.dumps(made))
    assert twin == made and torch.equal(augment(twin, batch(), PIXELS, 1, "v"), run(name, batch(), 1))
    assert f"policy={name == 'autoaugment'}" in repr(made) and "crop=" in repr(made)


def test_unknown_name():
    with pytest.raises(ValueError, match="augmentation 'cutout' is unknown: choose one of none, flip"):
        make_augmentation("cutout")


def test_without_kornia_only_autoaugment_is_refused(monkeypatch):
    for name in [n for n in sys.modules if n == "kornia" or n.startswith("kornia.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ValueError, match=r"autoaugment needs kornia .*pip install kornia") as caught:
        make_augmentation("autoaugment")
    assert "\n" not in str(caught.value)
    assert run("crop-flip", batch()).shape == (64, 3, 16, 16)


def test_no_warning_leaks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(5):
            run("autoaugment", batch(200), seed)
