"""Triggers, label rules and the map functions that apply them, against slow loops over pixels and samples."""

import functools
import logging
import pickle
from io import BytesIO

import numpy as np
import pytest
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets
from helpers.processes import alone
from helpers.tables import every_row
from PIL import Image as Pillow

from robust_trainer.corruptions import (
    AllToOne,
    BackdoorMap,
    BlendTrigger,
    MultiTarget,
    PatchTrigger,
    TriggerMap,
    poison,
    realised_rates,
    trigger_all,
)
from robust_trainer.data.decode import decode_image
from robust_trainer.data.label_rules import label_targets
from robust_trainer.data.randomness import key_limits, sample_keys

CHECKERBOARD = [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
MASK = 2**64 - 1
PINNED_NOISE = [0.4780100282229463, 0.7282974951645227, 0.8605238861120011, 0.38631311000513624]


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def toy(n=40, classes=4, size=8, channels=1, image_format="PNG"):
    """n images of n // classes rows a class, in a shuffled order of classes."""
    labels = np.random.default_rng(1).permutation(np.arange(n) % classes).tolist()
    images = []
    for i in range(n):
        buffer = BytesIO()
        Pillow.fromarray(pixels((size, size) if channels == 1 else (size, size, channels), i)).save(buffer, image_format)
        images.append({"bytes": buffer.getvalue(), "path": None})
    features = Features({"image": Image(), "label": ClassLabel(names=[f"class {c}" for c in range(classes)])})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def arrays(dataset, column="image"):
    return [np.asarray(image) for image in dataset[column]]


def encoded(dataset):
    return [row["bytes"] for row in dataset.cast_column("image", Image(decode=False))["image"]]


def slow_patch(image, row, column, pattern, top):
    """One pixel at a time; image (H, W, C) as nested lists."""
    out = [[list(pixel) for pixel in line] for line in image]
    for i, line in enumerate(pattern):
        for j, value in enumerate(line):
            for c in range(len(out[0][0])):
                out[row + i][column + j][c] = value * top
    return np.array(out)


# ---- triggers


@every_row("shape", [(8, 9, 1), (8, 9, 3), (28, 28, 2), (5, 4, 3)])
@every_row(
    "position, where",
    [
        ("bottom-right", lambda h, w: (h - 3, w - 3)),
        ("bottom-left", lambda h, w: (h - 3, 0)),
        ("top-right", lambda h, w: (0, w - 3)),
        ("top-left", lambda h, w: (0, 0)),
        ("center", lambda h, w: ((h - 3) // 2, (w - 3) // 2)),
        ((1, 0), lambda h, w: (1, 0)),
    ],
)
def test_patch_is_the_slow_loop_in_every_layout(shape, position, where):
    image, trigger = pixels(shape), PatchTrigger(position=position, channel_axis=-1)
    expected = slow_patch(image, *where(*shape[:2]), CHECKERBOARD, 255)
    before = image.copy()
    np.testing.assert_array_equal(trigger(image), expected)
    np.testing.assert_array_equal(image, before)  # the input stays
    first = PatchTrigger(position=position, channel_axis=0)(np.moveaxis(image, -1, 0))
    np.testing.assert_array_equal(np.moveaxis(first, 0, -1), expected)
    as_float = (image / 255).astype(np.float32)
    painted = trigger(as_float)
    assert painted.dtype == np.float32
    np.testing.assert_array_equal(painted, slow_patch(as_float, *where(*shape[:2]), CHECKERBOARD, 1).astype(np.float32))
    listed = trigger(image.tolist())
    assert isinstance(listed, list) and listed == expected.tolist() and isinstance(listed[0][0][0], int)


@every_row("shape, axis", [((8, 9, 3), -1), ((3, 8, 9), 0), ((1, 9, 8), 0), ((9, 8, 1), -1), ((2, 8, 8), 0)])
def test_the_channel_axis_is_the_shorter_of_first_and_last(shape, axis):
    for trigger in (PatchTrigger, BlendTrigger):
        np.testing.assert_array_equal(trigger()(pixels(shape)), trigger(channel_axis=axis)(pixels(shape)))
    grey = pixels((8, 9))
    np.testing.assert_array_equal(PatchTrigger()(grey), PatchTrigger()(grey[..., None])[..., 0])


@every_row("mode, kept", [("L", "L"), ("LA", "L"), ("RGB", "RGB"), ("RGBA", "RGB")])
def test_patch_on_pil_paints_the_picture_that_the_model_sees(mode, kept):
    array = pixels((8, 9) if mode == "L" else (8, 9, len(mode)))
    painted = PatchTrigger()(Pillow.fromarray(array))
    assert isinstance(painted, Pillow.Image) and painted.mode == kept and painted.size == (9, 8)
    seen = np.asarray(decode_image(array), dtype=float).reshape(8, 9, -1)  # the patch is seen where the image was transparent
    expected = slow_patch(seen, 5, 6, CHECKERBOARD, 255)
    np.testing.assert_array_equal(np.asarray(painted).reshape(8, 9, -1), expected)


@every_row("mode, becomes", [("1", "L"), ("P", "RGB")])
def test_bilevel_and_palette_images_become_plain(mode, becomes):
    image = Pillow.fromarray(pixels((8, 8))).convert(mode)
    plain = np.asarray(image.convert(becomes)).reshape(8, 8, -1)
    painted = BlendTrigger(alpha=0.1)(image)
    assert painted.mode == becomes
    noise = BlendTrigger().values(8, 8, plain.shape[2])
    np.testing.assert_array_equal(np.asarray(painted).reshape(plain.shape), np.rint(0.9 * plain + 25.5 * noise))


def test_patch_pattern_and_even_size():
    assert PatchTrigger(size=(2, 3)).values()[..., 0].tolist() == [[1, 0, 1], [0, 1, 0]]
    red = PatchTrigger(pattern=[[[1.0, 0.0, 0.2]]], position=(2, 1))
    painted = red(np.zeros((4, 5, 3), dtype=np.uint8))
    assert painted[2, 1].tolist() == [255, 0, 51] and painted.sum() == 306
    assert red == PatchTrigger(pattern=np.array([[[1.0, 0.0, 0.2]]]), position=[2, 1]) and hash(red) is not None
    assert "0.2" in repr(red)


@every_row("alpha", [0.1, 0.25, 1.0])
def test_blend_rounds_to_the_nearest_level(alpha):
    image, picture = pixels((6, 7, 3)), pixels((6, 7, 3), 9)
    trigger = BlendTrigger(alpha=alpha, picture=picture)
    painted = trigger(image)
    for index in np.ndindex(image.shape):
        exact = (1 - alpha) * float(image[index]) + alpha * float(picture[index])
        assert abs(float(painted[index]) - exact) <= 0.5 + 1e-9
    assert painted.mean() == pytest.approx(((1 - alpha) * image + alpha * picture).mean(), abs=0.1)  # truncation: 0.5 lower
    floats = trigger(image / 255)
    np.testing.assert_allclose(floats, ((1 - alpha) * image + alpha * picture) / 255, atol=1e-12)


def test_blend_noise_is_fixed_by_seed_and_size_and_has_the_stated_moments():
    noise = BlendTrigger(seed=3).values(64, 64, 3)
    assert noise.shape == (64, 64, 3) and 0 <= noise.min() and noise.max() <= 1
    np.testing.assert_array_equal(noise, pickle.loads(pickle.dumps(BlendTrigger(seed=3))).values(64, 64, 3))
    assert (noise != BlendTrigger(seed=4).values(64, 64, 3)).any()
    assert BlendTrigger(seed=3).values(28, 20, 1).shape == (28, 20, 1)
    inside = BlendTrigger(mean=0.4, std=0.05).values(64, 64, 3)  # hardly clipped
    assert inside.mean() == pytest.approx(0.4, abs=2e-3) and inside.std() == pytest.approx(0.05, abs=2e-3)
    # the stream itself, pinned: a number published with this seed must stay reproducible
    np.testing.assert_allclose(BlendTrigger().values(2, 2, 1).ravel(), PINNED_NOISE, atol=1e-6)


def test_blend_picture_from_array_image_and_path_agree(tmp_path):
    picture = Pillow.fromarray(pixels((12, 12, 3), 5))
    picture.save(tmp_path / "picture.png")
    made = [BlendTrigger(picture=p) for p in (picture, np.asarray(picture), np.asarray(picture) / 255, tmp_path / "picture.png")]
    assert len(set(made)) == 1 and made[0] != BlendTrigger() and made[0] != BlendTrigger(picture=pixels((12, 12, 3), 6))
    image = pixels((8, 8))
    grey = np.asarray(picture.convert("L").resize((8, 8), Pillow.Resampling.BILINEAR))
    for trigger in made:
        np.testing.assert_array_equal(trigger(image), np.rint(0.9 * image + 0.1 * grey))


@every_row(
    "build, told",
    [
        (lambda: PatchTrigger(size=9)(pixels((8, 8))), "size=(9, 9)"),
        (lambda: PatchTrigger(position=(6, 0))(pixels((8, 8))), "position=(6, 0)"),
        (lambda: PatchTrigger(size=0), "size=0"),
        (lambda: PatchTrigger(size=2, pattern=CHECKERBOARD), "size=2"),
        (lambda: PatchTrigger(position="south"), "position='south'"),
        (lambda: PatchTrigger(position=(-1, 0)), "position=(-1, 0)"),
        (lambda: PatchTrigger(pattern="stripes"), "pattern='stripes'"),
        (lambda: PatchTrigger(pattern=[[0, 255]]), "pattern"),
        (lambda: PatchTrigger(pattern=[[[1.0, 0.0, 0.0]]])(pixels((8, 8))), "pattern has 3 channels"),
        (lambda: PatchTrigger(channel_axis=2), "channel_axis=2"),
        (lambda: PatchTrigger()(pixels((8, 9, 8))), "channel_axis=0"),
        (lambda: PatchTrigger()(pixels((64,))), "shape (64,)"),
        (lambda: PatchTrigger()("image.png"), "image is str"),
        (lambda: PatchTrigger()([[1, 2], [3]]), "ragged"),
        (lambda: PatchTrigger()(np.full((8, 8), np.nan)), "NaN"),
        (lambda: PatchTrigger()(np.full((8, 8), 1.5)), "[0, 1]"),
        (lambda: PatchTrigger()(np.full((8, 8), -3)), "[0, 255]"),
        (lambda: PatchTrigger()(np.zeros((8, 8), bool)), "dtype bool"),
        (lambda: PatchTrigger()(Pillow.new("I", (8, 8))), "image holds 32-bit integers"),
        (lambda: BlendTrigger(alpha=0), "alpha=0"),
        (lambda: BlendTrigger(alpha=1.1), "alpha=1.1"),
        (lambda: BlendTrigger(std=-1), "std=-1"),
        (lambda: BlendTrigger(mean=float("nan")), "mean=nan"),
        (lambda: BlendTrigger(seed=-1), "seed=-1"),
        (lambda: BlendTrigger(channel_axis=1), "channel_axis=1"),
        (lambda: BlendTrigger(picture=np.zeros((2, 2, 2))), "picture has shape (2, 2, 2)"),
        (lambda: BlendTrigger(picture=pixels((4, 4)))(pixels((8, 8, 2))), "1 or 3 channels"),
        (lambda: MultiTarget(4)(np.arange(4), 4), "shift=4"),
        (lambda: AllToOne(4)(np.arange(4), 4), "target=4"),
        (lambda: poison(toy(), trigger=None, rate=1.0), "rate=1.0"),
        (lambda: poison(toy(), trigger=None, rate=-0.1), "rate=-0.1"),
        (lambda: poison(toy(), trigger=None, rate=float("nan")), "rate=nan"),
        (lambda: poison(toy(), trigger=None, rate=0.1, seed=1.5), "seed=1.5"),
        (lambda: poison(toy(), trigger=None, rate=0.9, label_rule="all-to-one"), "at most 0.75"),
        (lambda: poison(toy(), trigger=None, rate=0.1, label_rule="one-to-all"), "['multi-target', 'all-to-one', "),
        (lambda: poison(toy(), trigger=None, rate=0.1, label_rule=lambda y, c: y), "moves none"),
        (lambda: poison(toy(), trigger=None, rate=0.1, label_rule=lambda y, c: y + 1), "[1, 2, 3, 4]"),
        (lambda: poison(toy(), trigger=None, rate=0.1, label_column="y"), "['image', 'label']"),
        (lambda: poison(toy(), trigger=PatchTrigger(), rate=0.1, image_column="img"), "['image', 'label']"),
        (lambda: poison(toy(), trigger=PatchTrigger(), rate=0.1, image_column="label"), "expected Image"),
        (lambda: poison(toy().remove_columns("image"), trigger=PatchTrigger(), rate=0.1), "columns ['label']"),
        (lambda: poison(toy().add_column("image2", [None] * 40).cast_column("image2", Image()).rename_column("image", "image1"),
                        trigger=PatchTrigger(), rate=0.1), "['image1', 'image2']"),
        (lambda: poison(toy().remove_columns("label"), trigger=None, rate=0.1), "columns ['image']"),
        (lambda: poison(toy().select([]), trigger=None, rate=0.1), "0 rows"),
        (lambda: poison(DatasetDict(train=toy()), trigger=None, rate=0.1), "dataset['train']"),
        (lambda: poison(toy().to_iterable_dataset(), trigger=None, rate=0.1), "streaming=False"),
        (lambda: poison(Dataset.from_dict({"label": ["cat", "dog"]}), trigger=None, rate=0.1), "class_encode_column('label')"),
        (lambda: poison(Dataset.from_dict({"label": [0.0, 1.0]}), trigger=None, rate=0.1), "'label' is Value('float64')"),
        (lambda: poison(Dataset.from_dict({"label": [0, -1, 1]}), trigger=None, rate=0.1), "-1 in row 1"),
        (lambda: poison(Dataset.from_dict({"label": [0, 5, 1]}), trigger=None, rate=0.1, num_classes=3), "5 in row 1"),
        (lambda: poison(Dataset.from_dict({"label": [0, None, 1]}), trigger=None, rate=0.1), "None in row 1"),
        (lambda: realised_rates(toy()), "['is_corrupted', 'clean_label']"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_name_the_value(build, told):
    with pytest.raises(ValueError) as caught:
        build()
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_an_unusable_image_names_its_row():
    rows = np.zeros((6, 1, 5, 5))
    rows[4, 0, 2, 2] = np.nan
    floats = Dataset.from_dict({"pixels": rows.tolist(), "label": [0, 1] * 3})
    with pytest.raises(ValueError, match="'pixels' in row 4: image holds NaN"):
        poison(floats, trigger=PatchTrigger(), rate=0.0)  # also where it would not be poisoned
    with pytest.raises(ValueError, match=r"'image' in row 0: size=\(9, 9\)"):
        trigger_all(toy(), PatchTrigger(size=9))


# ---- label rules and choice


def test_label_rules_are_the_slow_loops():
    assert label_targets("multi-target", 5) == tuple((i + 1) % 5 for i in range(5))
    assert label_targets(MultiTarget(shift=3), 5) == (3, 4, 0, 1, 2)
    assert label_targets("all-to-one", 4) == (0, 0, 0, 0) and label_targets(AllToOne(2), 4) == (2, 2, 2, 2)


def test_sample_keys_are_splitmix64():
    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
        return z ^ (z >> 31)

    for seed in (0, 1, 2**63 + 5):
        expected = [mix((mix(seed) + i * 0x9E3779B97F4A7C15) & MASK) for i in (0, 7, 123456)]
        assert sample_keys(seed, [0, 7, 123456]).tolist() == expected
    assert len(set(sample_keys(0, np.arange(10**5)).tolist())) == 10**5


@every_row("n, rate", [(40, 0.0), (40, 0.45), (37, 0.1), (1001, 0.333), (7, 0.99)])
@every_row("stratified", [False, True])
def test_the_count_is_exact_and_the_choice_uniform(n, rate, stratified):
    labels = np.arange(n) % 4
    limits = key_limits(labels, (1, 2, 3, 0), rate, 5, stratified)
    keys = sample_keys(5, np.arange(n)).tolist()
    chosen = [limits[y] is not None and key <= limits[y] for y, key in zip(labels, keys)]
    assert sum(chosen) == round(rate * n)
    if not stratified:  # the smallest keys
        assert [i for i in range(n) if chosen[i]] == sorted(sorted(range(n), key=keys.__getitem__)[: round(rate * n)])
    else:
        for c in range(4):
            assert abs(sum(np.array(chosen)[labels == c]) - rate * (labels == c).sum()) < 1
    if n == 1001:
        other = key_limits(labels, (1, 2, 3, 0), rate, 6, stratified)
        assert other != limits
        assert 450 < np.flatnonzero(chosen).mean() < 550  # standard error 13


def test_rates_are_nested_for_one_seed():
    def rows(rate):
        return set(np.flatnonzero(poison(toy(100), trigger=None, rate=rate)["is_corrupted"]))

    assert rows(0.1) < rows(0.2) < rows(0.5) and rows(0.0) == set()


# ---- poison


@pytest.mark.parametrize("rule", ["multi-target", "all-to-one"])
def test_poison_flips_and_triggers_the_same_samples_and_nothing_else(rule):
    clean = toy()
    poisoned = poison(clean, trigger=PatchTrigger(), rate=0.25, label_rule=rule)
    assert sum(poisoned["is_corrupted"]) == 10 and poisoned["clean_label"][:] == clean["label"][:]
    assert poisoned.features == Features({**clean.features, "is_corrupted": Value("bool"), "clean_label": clean.features["label"]})
    rows = zip(arrays(clean), arrays(poisoned), encoded(clean), encoded(poisoned), clean["label"], poisoned["label"])
    for (before, after, old, new, label, given), hit in zip(rows, poisoned["is_corrupted"]):
        if hit:
            assert given == ((label + 1) % 4 if rule == "multi-target" else 0) and given != label
            np.testing.assert_array_equal(after, PatchTrigger()(before))
        else:
            assert given == label and new == old  # the very bytes of the file


def test_label_flips_without_a_trigger_leave_every_byte():
    poisoned = poison(toy(), trigger=None, rate=0.25)
    assert encoded(poisoned) == encoded(toy())
    assert [y != c for y, c in zip(poisoned["label"], poisoned["clean_label"])] == poisoned["is_corrupted"][:]
    labels_only = Dataset.from_dict({"labels": [0, 1, 2, 3]})
    assert sum(poison(labels_only, trigger=None, rate=0.5)["is_corrupted"]) == 2


def test_batch_size_processes_and_sharding_do_not_matter(tmp_path):
    clean = toy(30)
    make = functools.partial(poison, clean, trigger=BlendTrigger(), rate=0.4, seed=3)
    whole, other = make(), make(batch_size=7)
    assert other["label"][:] == whole["label"][:] and encoded(other) == encoded(whole)

    def by_two():
        return [[cell.hex() for cell in encoded(d)] for d in (make(num_proc=2), trigger_all(clean, PatchTrigger(), num_proc=2))]

    alike = [[cell.hex() for cell in encoded(d)] for d in (whole, trigger_all(clean, PatchTrigger()))]
    assert alone(by_two, tmp_path) == alike  # map forks
    targets = label_targets("multi-target", 4)
    limits = key_limits(np.asarray(clean["label"]), targets, 0.4, 3)
    function = pickle.loads(pickle.dumps(BackdoorMap(BlendTrigger(), targets, limits, 3, "image", "label")))
    order = np.random.default_rng(0).permutation(30)
    for shard in np.split(order, 3):
        made = function(clean.select(shard)[:], shard.tolist())
        assert made["label"] == [whole["label"][i] for i in shard]
        for i, image in zip(shard, made["image"]):
            np.testing.assert_array_equal(np.asarray(image), arrays(whole)[i])


def test_jpeg_images_are_not_compressed_twice(tmp_path):
    clean = toy(image_format="JPEG", channels=3, size=16)
    poisoned = poison(clean, trigger=PatchTrigger(), rate=0.5)
    for before, after, hit in zip(arrays(clean), arrays(poisoned), poisoned["is_corrupted"]):
        np.testing.assert_array_equal(after, PatchTrigger()(before) if hit else before)
    # images in files, and a trigger that paints in place and returns the image it was given
    paths = []
    for i, row in enumerate(clean.cast_column("image", Image(decode=False))["image"]):
        paths.append(str(tmp_path / f"{i}.jpg"))
        (tmp_path / f"{i}.jpg").write_bytes(row["bytes"])
    files = Dataset.from_dict({"image": paths, "label": clean["label"][:]}, features=clean.features)
    again = poison(files, trigger=in_place, rate=0.5)
    for before, after, hit in zip(arrays(clean), arrays(again), again["is_corrupted"]):
        np.testing.assert_array_equal(after[1:], before[1:])
        assert (after[0, 0].tolist() == [9, 8, 7]) == hit


def in_place(image):
    image.putpixel((0, 0), (9, 8, 7))
    return image


def test_image_mode_does_not_tell_the_poison():
    palette = [Pillow.fromarray(pixels((8, 8), i)).convert("P") for i in range(10)]
    features = Features({"image": Image(), "label": Value("int64")})
    clean = Dataset.from_dict({"image": palette, "label": [0, 1] * 5}, features=features)
    poisoned = poison(clean, trigger=PatchTrigger(), rate=0.5)
    assert {image.mode for image in poisoned["image"]} == {"RGB"}
    untouched = [i for i, hit in enumerate(poisoned["is_corrupted"]) if not hit]
    for i in untouched:
        np.testing.assert_array_equal(arrays(poisoned)[i], np.asarray(palette[i].convert("RGB")))


@pytest.mark.parametrize(
    "feature, dtype", [(Array3D((3, 6, 7), "float32"), np.float32), (List(List(List(Value("uint8")))), np.uint8)]
)
def test_pixel_columns_channels_first(feature, dtype):
    images = pixels((12, 3, 6, 7)) if dtype is np.uint8 else (pixels((12, 3, 6, 7)) / 255).astype(np.float32)
    features = Features({"pixel_values": feature, "labels": Value("int64")})
    clean = Dataset.from_dict({"pixel_values": list(images), "labels": [0, 1, 2] * 4}, features=features)
    poisoned = poison(clean, trigger=PatchTrigger(), rate=0.5)
    assert poisoned.features["pixel_values"] == feature
    for before, after, hit in zip(images, poisoned.with_format("numpy")["pixel_values"], poisoned["is_corrupted"]):
        after = np.asarray(after).astype(dtype)
        np.testing.assert_array_equal(after, PatchTrigger()(before) if hit else before)
        assert (after != before).any() == bool(hit)


def test_a_second_corruption_keeps_the_first_truth():
    clean = toy()
    first = poison(clean, trigger=PatchTrigger(), rate=0.25, seed=1)
    second = poison(first, trigger=None, rate=0.25, seed=2, label_rule=MultiTarget(2))
    expected, flags = list(clean["label"]), [False] * 40
    for flips, shift in ((first["is_corrupted"], 1), (None, 2)):
        if flips is None:
            limits = key_limits(np.asarray(first["label"]), label_targets(MultiTarget(2), 4), 0.25, 2)
            flips = [bool(k <= limits[y]) for k, y in zip(sample_keys(2, np.arange(40)).tolist(), first["label"])]
        expected = [(y + shift) % 4 if hit else y for y, hit in zip(expected, flips)]
        flags = [a or bool(b) for a, b in zip(flags, flips)]
    assert second["label"][:] == expected and second["is_corrupted"][:] == flags and 10 < sum(flags) <= 20
    assert second["clean_label"][:] == clean["label"][:] and second.features == first.features
    assert encoded(second) == encoded(first)


def test_format_is_kept():
    poisoned = poison(toy().with_format("numpy"), trigger=PatchTrigger(), rate=0.5)
    assert poisoned.format["type"] == "numpy" and isinstance(poisoned[0]["image"], np.ndarray)
    assert "is_corrupted" in poisoned[0]
    some = poison(toy().with_format("numpy", columns=["label"]), trigger=PatchTrigger(), rate=0.5)
    assert list(some[0]) == ["label"]
    lazy = poison(toy().with_transform(lambda batch: {"n": [len(batch)] * len(batch["label"])}), trigger=PatchTrigger(), rate=0.5)
    assert lazy[0] == {"n": 4}


def test_a_cached_file_is_reused(tmp_path):
    toy(12).to_parquet(tmp_path / "toy.parquet")
    load = lambda: Dataset.from_parquet(str(tmp_path / "toy.parquet"), cache_dir=str(tmp_path / "cache"))  # noqa: E731
    made = [poison(load(), trigger=PatchTrigger(), rate=0.5) for _ in range(2)]
    assert made[0].cache_files and made[0].cache_files == made[1].cache_files
    assert made[0]._fingerprint == made[1]._fingerprint != poison(load(), trigger=PatchTrigger(2), rate=0.5)._fingerprint


def test_trigger_all_stamps_every_image_and_keeps_labels():
    clean = toy()
    test = trigger_all(clean, PatchTrigger(), label_rule=AllToOne(2))
    assert test["label"][:] == clean["label"][:] == test["clean_label"][:]
    assert all(test["is_corrupted"]) and set(test["attack_target"]) == {2}
    assert test.features["attack_target"] == clean.features["label"]
    for before, after in zip(arrays(clean), arrays(test)):
        np.testing.assert_array_equal(after, PatchTrigger()(before))
    assert "attack_target" not in trigger_all(clean, PatchTrigger()).column_names
    on_noise = trigger_all(poison(clean, trigger=None, rate=0.5), PatchTrigger(), label_rule="multi-target")
    assert on_noise["attack_target"][:] == [(y + 1) % 4 for y in clean["label"]]  # from the clean label
    assert isinstance(TriggerMap(PatchTrigger(), None, "image", "label"), TriggerMap)


def test_realised_rates_are_counted_and_logged(caplog):
    with caplog.at_level(logging.INFO, logger="robust_trainer"):
        poisoned = poison(toy(), trigger=None, rate=0.26, label_rule="all-to-one")
    assert "nominal rate 0.2600, realised 0.2500 (10 of 40 samples)" in caplog.text
    rates = realised_rates(poisoned, nominal=0.26)
    count = {c: 0 for c in range(4)}
    for label, hit in zip(poisoned["clean_label"], poisoned["is_corrupted"]):
        count[label] += int(hit)
    assert rates["per_class"] == {f"class {c}": n / 10 for c, n in count.items()} and rates["per_class"]["class 0"] == 0
    assert (rates["nominal"], rates["overall"], rates["corrupted"], rates["mislabelled"], rates["n"]) == (0.26, 0.25, 10, 0.25, 40)


def test_shards_concatenate_with_one_schema():
    parts = [poison(toy(12), trigger=PatchTrigger(), rate=0.5, seed=s) for s in (0, 1)]
    assert sum(concatenate_datasets(parts)["is_corrupted"]) == 12
