"""Every trigger of the table against a slow loop over the pixels of its paper's definition, or a law of it."""

import math
import pickle

import numpy as np
import pytest
from helpers.tables import every_row
from PIL import Image as Pillow

from robust_trainer.corruptions import (
    TRIGGERS,
    AdaptiveBlendTrigger,
    AdaptivePatchTrigger,
    BlendTrigger,
    LowFrequencyTrigger,
    PatchesTrigger,
    PatchTrigger,
    QuantisationTrigger,
    SinusoidTrigger,
    WarpTrigger,
    triggers_of,
)


def pixels(shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def levels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ---- patches


def test_several_patches_are_one_patch_after_the_other():
    image = levels((9, 11, 3))
    expected = image
    for place in ("top-left", "bottom-right", (3, 4)):
        expected = PatchTrigger(2, place)(expected)
    np.testing.assert_array_equal(PatchesTrigger(2, ("top-left", "bottom-right", [3, 4]))(image), expected)
    corners = PatchesTrigger(2, "top-left+bottom-right")(image)
    np.testing.assert_array_equal(corners, PatchTrigger(2, "bottom-right")(PatchTrigger(2, "top-left")(image)))


def test_a_grid_spans_the_image_and_opacity_mixes():
    image = pixels((10, 12, 1))
    grid = PatchesTrigger(2, grid=3, opacity=0.25)
    assert grid.places(10, 12) == [(r, c) for r in (0, 4, 8) for c in (0, 5, 10)]
    expected, board = image.copy(), [[1.0, 0.0], [0.0, 1.0]]
    for r, c in grid.places(10, 12):
        for i in range(2):
            for j in range(2):
                expected[r + i, c + j, 0] = 0.75 * image[r + i, c + j, 0] + 0.25 * board[i][j]
    np.testing.assert_allclose(grid(image), expected, atol=1e-12)
    overlapping = PatchesTrigger(3, [(0, 0), (1, 1)], opacity=0.5)(image)  # the later one covers the other; nothing is mixed twice
    np.testing.assert_allclose(overlapping[1, 1], 0.5 * image[1, 1] + 0.5)


def test_adaptive_patch_draws_one_of_its_patches_for_each_row():
    trigger, image = AdaptivePatchTrigger(size=2, seed=5), pixels((8, 8, 3))
    np.testing.assert_array_equal(trigger(image), PatchesTrigger(size=2)(image))  # at test time all of them, opaque
    np.testing.assert_array_equal(trigger.at(3, training=False)(image), trigger(image))
    found = {}
    for row in range(60):
        painted = trigger.at(row, training=True)(image)
        one = [
            place for place in trigger.positions if np.allclose(painted, PatchesTrigger(2, [place], opacity=0.5)(image), atol=1e-12)
        ]
        assert len(one) == 1
        np.testing.assert_array_equal(painted, trigger.at(row, training=True, cover=True)(image))  # covers are drawn alike
        found[row] = one[0]
    counts = [list(found.values()).count(place) for place in trigger.positions]
    assert min(counts) >= 6  # of 15 expected
    assert found != {
        row: place for row in range(60) for place in trigger.positions
        if np.allclose(
            AdaptivePatchTrigger(size=2, seed=6).at(row, training=True)(image), PatchesTrigger(2, [place], opacity=0.5)(image)
        )
    }  # fmt: skip


# ---- blends


def test_adaptive_blend_leaves_pieces_out_in_training():
    trigger, image = AdaptiveBlendTrigger(seed=2, pieces=4, masked=0.5), pixels((16, 12, 3))
    np.testing.assert_array_equal(trigger(image), BlendTrigger(alpha=0.2, seed=2)(image))
    noise, masks = trigger.values(16, 12, 3), set()
    for row in range(30):
        mask, painted = trigger.mask(16, 12, row), trigger.at(row, training=True)(image)
        masks.add(mask.tobytes())
        kept = 0
        for p in range(4):
            for q in range(4):
                piece = mask[4 * p : 4 * p + 4, 3 * q : 3 * q + 3]
                assert piece.all() or not piece.any()
                kept += int(piece[0, 0])
        assert kept == 8
        for i, j in np.ndindex(16, 12):
            share = 0.15 if mask[i, j] else 0.0
            np.testing.assert_allclose(painted[i, j], (1 - share) * image[i, j] + share * noise[i, j], atol=1e-12)
    assert len(masks) >= 29  # 12870 masks
    odd = trigger.mask(7, 9, 0)  # sizes that 4 does not divide: every pixel is of one piece
    assert odd.shape == (7, 9) and 0 < odd.sum() < 63


# ---- signals


@every_row("frequency, delta", [(6, 20 / 255), (1, 0.5), (2.5, 0.1)])
def test_sinusoid_is_barni_s_formula(frequency, delta):
    image = pixels((5, 16, 3))
    painted = SinusoidTrigger(delta, frequency)(image)
    for i in range(5):
        for j in range(16):  # the paper counts columns from 1
            wave = delta * math.sin(2 * math.pi * (j + 1) * frequency / 16)
            for c in range(3):
                assert painted[i, j, c] == pytest.approx(min(max(image[i, j, c] + wave, 0.0), 1.0), abs=1e-12)
    assert SinusoidTrigger("20/255") == SinusoidTrigger(20 / 255)


def test_low_frequency_pattern_has_the_lowest_frequencies_alone():
    trigger = LowFrequencyTrigger(eps=0.1, cutoff=3, seed=4)
    pattern = trigger.values(8, 6, 2)
    assert np.abs(pattern).max() == pytest.approx(0.1) and (pattern[..., 0] != pattern[..., 1]).all()
    for c in range(2):
        for u in range(8):
            for v in range(6):  # the DCT-II by its sum
                found = sum(
                    pattern[i, j, c] * math.cos(math.pi * (i + 0.5) * u / 8) * math.cos(math.pi * (j + 0.5) * v / 6)
                    for i in range(8)
                    for j in range(6)
                )
                inside = u < 3 and v < 3 and (u, v) != (0, 0)
                assert (abs(found) > 1e-9) == inside
    image = pixels((8, 6, 2))
    np.testing.assert_allclose(trigger(image), (image + pattern).clip(0, 1), atol=1e-12)
    assert (pattern != LowFrequencyTrigger(eps=0.1, cutoff=3, seed=5).values(8, 6, 2)).any()
    np.testing.assert_array_equal(pattern, pickle.loads(pickle.dumps(trigger)).values(8, 6, 2))


def slow_dithering(image, top):
    """Floyd and Steinberg, one pixel after the other."""
    out = image.copy()
    height, width, channels = image.shape
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                old = out[i, j, c]
                new = round(min(max(old, 0.0), 1.0) * top) / top
                out[i, j, c] = new
                for di, dj, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        out[i + di, j + dj, c] += (old - new) * share / 16
    return out


@every_row("shape", [(9, 7, 3), (4, 11, 1), (1, 5, 3), (6, 1, 2), (1, 1, 1), (5, 2, 3)])
@every_row("bits", [1, 3, 5])
def test_quantisation_is_the_slow_loop(shape, bits):
    image, top = pixels(shape), 2**bits - 1
    painted = QuantisationTrigger(bits, channel_axis=-1)(image)
    np.testing.assert_allclose(painted, slow_dithering(image, top), atol=1e-12)
    np.testing.assert_allclose(painted * top, np.rint(painted * top), atol=1e-9)  # few levels
    plain = QuantisationTrigger(bits, dithering=False, channel_axis=-1)(image)
    assert np.abs(plain - image).max() <= 0.5 / top + 1e-12


def test_dithering_keeps_the_mean_brightness():
    grey = np.full((32, 32, 1), 0.3)
    assert QuantisationTrigger(1)(grey).mean() == pytest.approx(0.3, abs=0.01)
    assert QuantisationTrigger(1, dithering=False)(grey).max() == 0.0


# ---- warp


def cubic(t):
    """The kernel of bicubic interpolation, a = -0.75."""
    t, a = abs(t), -0.75
    return (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def slow_field(points, height, width):
    k = len(points)
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y, x = i * (k - 1) / (height - 1), j * (k - 1) / (width - 1)
            for p in range(math.floor(y) - 1, math.floor(y) + 3):
                for q in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = points[min(max(p, 0), k - 1)][min(max(q, 0), k - 1)]
                    out[i, j] += cubic(y - p) * cubic(x - q) * value
    return out


def slow_warp(image, field):
    """x[p] <- x at p + field[p]; bilinear; the image spans [-1, 1] from its first pixel to its last."""
    height, width, channels = image.shape
    out = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            x = min(max(-1 + 2 * j / (width - 1) + field[i, j, 0], -1), 1) * (width - 1) / 2 + (width - 1) / 2
            y = min(max(-1 + 2 * i / (height - 1) + field[i, j, 1], -1), 1) * (height - 1) / 2 + (height - 1) / 2
            top, left = min(int(y), height - 2), min(int(x), width - 2)
            for di in (0, 1):
                for dj in (0, 1):
                    share = abs(1 - di - (y - top)) * abs(1 - dj - (x - left))
                    out[i, j] += share * image[top + di, left + dj]
    return out


def test_warp_is_the_slow_loop():
    trigger, image = WarpTrigger(grid=4, strength=2.0, seed=3), pixels((9, 12, 3))
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((3, 4))))
    points = random.uniform(-1, 1, (2, 4, 4))
    points /= np.abs(points).mean()
    field = trigger.field(9, 12)
    np.testing.assert_allclose(field[..., 0], 2.0 / 12 * slow_field(points[0], 9, 12), atol=1e-10)
    np.testing.assert_allclose(field[..., 1], 2.0 / 9 * slow_field(points[1], 9, 12), atol=1e-10)
    np.testing.assert_allclose(trigger(image), slow_warp(image, field), atol=1e-10)
    np.testing.assert_array_equal(trigger.at(7, training=True)(image), trigger(image))
    ramp = np.broadcast_to(np.linspace(0.2, 0.8, 40)[None, :, None], (40, 40, 1))  # a ramp moves by the field where that is inside
    moved = trigger(np.ascontiguousarray(ramp))[5:-5, 5:-5, 0] - ramp[5:-5, 5:-5, 0]
    np.testing.assert_allclose(moved, 0.3 * trigger.field(40, 40)[5:-5, 5:-5, 0], atol=1e-9)


def test_noise_mode_warps_covers_in_other_ways():
    trigger, image = WarpTrigger(seed=3, noise=1.5), pixels((10, 8, 3))
    seen = [trigger.at(row, training=True, cover=True)(image) for row in range(3)]
    for row, painted in enumerate(seen):
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((3, 10, 8, row))))
        extra = random.uniform(-1.5, 1.5, (10, 8, 2)) / (8, 10)
        np.testing.assert_allclose(painted, slow_warp(image, trigger.field(10, 8) + extra), atol=1e-10)
        np.testing.assert_array_equal(painted, trigger.at(row, training=True, cover=True)(image))
    assert (seen[0] != seen[1]).any() and (seen[0] != trigger(image)).any()


# ---- all of them


@every_row("name", triggers_of("image"))
def test_every_trigger_keeps_kind_shape_and_range_and_pickles(name):
    trigger = TRIGGERS[name].make()
    for trained in (trigger, trigger.at(3, training=True), trigger.at(3, training=True, cover=True)):
        again = pickle.loads(pickle.dumps(trained))
        for image in (levels((16, 20, 3)), levels((16, 20)), levels((3, 16, 20)), pixels((16, 20, 3)).astype(np.float32)):
            before = image.copy()
            painted = trained(image)
            assert painted.shape == image.shape and painted.dtype == image.dtype
            assert painted.min() >= 0 and painted.max() <= (255 if painted.dtype == np.uint8 else 1)
            assert (painted != image).any()
            np.testing.assert_array_equal(image, before)
            np.testing.assert_array_equal(painted, again(image))
        picture = trained(Pillow.fromarray(levels((16, 20, 3))))
        np.testing.assert_array_equal(np.asarray(picture), trained(levels((16, 20, 3))))
    row = TRIGGERS[name]
    assert row.source and row.needs and row.label_rules and "\n" not in trigger.describe() and hash(trigger) is not None
    assert trigger == TRIGGERS[name].make()


@every_row(
    "build, told",
    [
        (lambda: PatchesTrigger(positions="north"), "position='north'"),
        (lambda: PatchesTrigger(positions=[]), "positions=[]"),
        (lambda: PatchesTrigger(positions="center+center"), "a place twice"),
        (lambda: PatchesTrigger(grid=1), "grid=1"),
        (lambda: PatchesTrigger(grid=4)(levels((8, 8))), "grid=4 of patches of size=3 does not fit an image of 8x8"),
        (lambda: PatchesTrigger(opacity=0), "opacity=0"),
        (lambda: AdaptivePatchTrigger(training_opacity=2), "training_opacity=2"),
        (lambda: AdaptivePatchTrigger(seed=-1), "seed=-1"),
        (lambda: AdaptiveBlendTrigger(masked=1.0), "masked=1.0"),
        (lambda: AdaptiveBlendTrigger(masked=-0.1), "masked=-0.1"),
        (lambda: AdaptiveBlendTrigger(pieces=0), "pieces=0"),
        (lambda: AdaptiveBlendTrigger(pieces=9).at(0, training=True)(levels((8, 8))), "pieces=9"),
        (lambda: AdaptiveBlendTrigger(training_alpha=0), "training_alpha=0"),
        (lambda: SinusoidTrigger(delta=20), "delta=20.0"),
        (lambda: SinusoidTrigger(delta="many"), "delta='many'"),
        (lambda: SinusoidTrigger(frequency=0), "frequency=0"),
        (lambda: LowFrequencyTrigger(eps=0), "eps=0.0"),
        (lambda: LowFrequencyTrigger(cutoff=1), "cutoff=1"),
        (lambda: LowFrequencyTrigger(cutoff=9)(levels((8, 8))), "cutoff=9"),
        (lambda: QuantisationTrigger(bits=8), "bits=8"),
        (lambda: QuantisationTrigger(dithering="no"), "dithering='no'"),
        (lambda: WarpTrigger(grid=1), "grid=1"),
        (lambda: WarpTrigger(strength=-1), "strength=-1"),
        (lambda: WarpTrigger(noise=0), "noise=0"),
        (lambda: WarpTrigger(seed="a"), "seed='a'"),
        (lambda: WarpTrigger(channel_axis=1), "channel_axis=1"),
    ],
)
def test_mistakes_are_one_line_and_name_the_value(build, told):
    with pytest.raises(ValueError) as caught:
        build()
    assert told in str(caught.value) and "\n" not in str(caught.value)
