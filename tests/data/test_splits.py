"""Every split passes one gate: one numbering of the classes, by name; what is no class is refused, naming split and row."""

import re

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pictures

from robust_trainer.data.load import label_names, load_data, load_images
from robust_trainer.data.splits import align_labels, gate

NAMES = ["cat", "dog", "emu"]
KINDS = {str: Value("string"), bool: Value("bool"), float: Value("float64"), int: Value("int64")}


def split(labels, feature=None, **more):
    """Rows of grey 4x4 pictures, whose brightness is their number, with these labels; more columns as (values, feature)."""
    feature = feature or KINDS[type(next(x for x in labels if x is not None))]
    features = Features({"image": Image(), "label": feature, **{name: kind for name, (_, kind) in more.items()}})
    pictures = [Pictures.new("L", (4, 4), row) for row in range(len(labels))]
    columns = {"image": pictures, "label": labels, **{name: values for name, (values, _) in more.items()}}
    return Dataset.from_dict(columns, features=features)


@pytest.fixture
def load(monkeypatch):
    """Loads splits as `load_data` loads a folder of them; what is no split is an argument of it."""

    def loaded(**splits):
        given = {name: splits.pop(name) for name in [*splits] if not isinstance(splits[name], Dataset)}
        monkeypatch.setattr("robust_trainer.data.load._load", lambda name, config: DatasetDict(splits))
        return load_data("folder", **given)

    return loaded


@pytest.fixture
def said(monkeypatch):
    """What was said, one line each."""
    lines = []
    for module in ("splits", "load", "image_folder"):
        logger = __import__(f"robust_trainer.data.{module}", fromlist=["logger"]).logger
        monkeypatch.setattr(logger, "warning", lambda text, *args: lines.append(text % args if args else text))
    return lines


def by_name(data):
    """The names of a split's labels, row for row."""
    return data.features["label"].int2str(data["label"][:])


def test_names_in_another_order_are_matched_by_name(load, said):
    turned = ClassLabel(names=["dog", "emu", "cat"])
    data = load(train=split([0, 1, 2], ClassLabel(names=NAMES)), test=split([0, 1, 2, 0], turned))
    assert label_names(data["train"]) == label_names(data["test"]) == NAMES
    assert by_name(data["test"]) == ["dog", "emu", "cat", "dog"] and data["test"]["label"][:] == [1, 2, 0, 1]
    assert data["train"]["label"][:] == [0, 1, 2]
    assert [image.getpixel((0, 0)) for image in data["test"]["image"]] == [0, 1, 2, 3]
    assert len(said) == 1 and "split 'test'" in said[0] and "by name" in said[0]


def test_parquet_files_have_names_of_their_own(tmp_path):
    """Loaded together they all take the first one's names, whose numbers are other classes: seen before, without a word."""
    split([0, 1, 2], ClassLabel(names=NAMES)).to_parquet(str(tmp_path / "train.parquet"))
    split([0, 1, 2], ClassLabel(names=NAMES[::-1])).to_parquet(str(tmp_path / "test.parquet"))
    data = load_data(str(tmp_path))
    assert by_name(data["train"]) == NAMES and by_name(data["test"]) == NAMES[::-1]
    split([0, 1, 2], ClassLabel(names=NAMES[::-1])).to_parquet(str(tmp_path / "train-2.parquet"))
    with pytest.raises(ValueError, match="train-2.parquet and train.parquet number the classes of 'label' differently"):
        load_data(str(tmp_path))


def test_equal_splits_pass_as_they_are_and_nothing_is_said(load, said):
    labels = ClassLabel(names=NAMES)
    before = DatasetDict(train=split([0, 1, 2], labels), test=split([2, 0], labels))
    after = gate(before)
    assert all(after[name] is before[name] for name in before) and said == []


def test_other_columns_of_classes_are_renumbered_along(load):
    turned, plain = ClassLabel(names=["dog", "emu", "cat"]), ClassLabel(names=NAMES)
    data = load(
        train=split([0, 1, 2], plain, worse_label=([1, 1, 2], Value("int64"))),
        test=split([0, 1, 2], turned),
        test_triggered=split([0, 1, 2], turned, clean_label=([0, 1, 2], turned), attack_target=([1, 2, 0], Value("int64"))),
        others=["worse_label"],
    )
    triggered = data["test_triggered"]
    assert by_name(triggered) == ["dog", "emu", "cat"] and triggered["clean_label"][:] == triggered["label"][:]
    assert plain.int2str(triggered["attack_target"][:]) == ["emu", "cat", "dog"]
    assert data["train"]["worse_label"][:] == [1, 1, 2] and data["train"].features["worse_label"].names == NAMES


def test_other_columns_of_numbers_share_the_numbering_of_the_values_found(load):
    data = load(
        train=split([10, 200, 200], worse_label=([5000, 200, 10], Value("int32"))), test=split([10, 200]), others=["worse_label"]
    )
    assert label_names(data["train"]) == ["10", "200", "5000"]
    assert data["train"]["worse_label"][:] == [2, 1, 0] and data["train"]["label"][:] == [0, 1, 1]


@pytest.mark.parametrize(
    "train, test, names, numbers",
    [
        ([10, 200, 5000, 10], [5000, 10], ["10", "200", "5000"], [2, 0]),
        ([1, 2, 3, 2], [3, 1], ["1", "2", "3"], [2, 0]),  # from 1: not a class 0 that nobody has
        ([2084071, 2124075, 1503061], [2124075], ["1503061", "2084071", "2124075"], [2]),  # WordNet's numbers
        ([2**62, 3, 3], [2**62], ["3", str(2**62)], [1]),
        ([-1, 1, 1], [1, -1], ["-1", "1"], [1, 0]),
        ([-5, -1, 3], [-1], ["-5", "-1", "3"], [1]),
        (["10", "9", "2"], ["10", "2"], ["2", "9", "10"], [2, 0]),  # numbers as strings: by value
        ([3, 2**63 - 1], [3], ["3", str(2**63 - 1)], [0]),
        (["n02084071", "n01503061"], ["n02084071"], ["n01503061", "n02084071"], [1]),
        ([0.0, 1.0, 1.0], [1, 0], ["0", "1"], [1, 0]),
        ([True, False], [True], ["False", "True"], [1]),
        ([True, False], [1, 0], ["0", "1"], [1, 0]),
    ],
)
def test_values_are_numbered_in_their_order_and_kept_as_names(load, said, train, test, names, numbers):
    data = load(train=split(train), test=split(test))
    assert label_names(data["train"]) == label_names(data["test"]) == names
    assert data["test"]["label"][:] == numbers
    assert any("numbered" in line for line in said) == (type(train[0]) is int and names != [str(i) for i in range(len(names))])


def test_numbers_take_the_names_of_the_split_that_has_some(load, said):
    data = load(train=split([0, 2, 1]), test=split([1, 2], ClassLabel(names=NAMES)))
    assert by_name(data["train"]) == ["cat", "emu", "dog"] and len(said) == 1 and "without names" in said[0]
    data = load(train=split([0, 1], ClassLabel(names=NAMES)), test=split([1, 2]))
    assert by_name(data["test"]) == ["dog", "emu"]


def test_classes_that_only_one_split_has(load, said):
    data = load(train=split(["cat", "dog", "Dog"]), test=split(["emu", "emu", "cat"]))
    assert label_names(data["test"]) == ["Dog", "cat", "dog", "emu"] and by_name(data["test"]) == ["emu", "emu", "cat"]
    assert any("2 rows" in line and "'emu'" in line for line in said) and any("case" in line for line in said)


ABSENT = ClassLabel(names=["dog", "fox"])
NUMBERED = ClassLabel(names=["1", "2", "0"])


@pytest.mark.parametrize(
    "splits, pattern",
    [
        ({"train": split([0, 1], ClassLabel(names=NAMES)), "test": split([0, 1, 1], ABSENT)}, "'test'.*'fox' in row 1 .2 such"),
        ({"train": split(["cat", None, "dog"]), "test": split(["cat"])}, "'train'.*missing.*row 1 .1 of 3"),
        ({"train": split(["cat", "dog"]), "test": split(["cat", None])}, "'test'.*row 1"),
        ({"train": split(["cat", "  "]), "test": split(["cat"])}, "'train'.*row 1"),
        ({"train": split([0.0, float("nan"), 1.0]), "test": split([1.0])}, "'train'.*row 1"),
        ({"train": split([0.0, 0.5]), "test": split([1.0])}, "'train'.*0.5 in row 1"),
        ({"train": split([0.0, float("inf")]), "test": split([1.0])}, "'train'.*inf in row 1"),
        ({"train": split([0.0, 1e300]), "test": split([1.0])}, "'train'.*1e.300 in row 1"),
        ({"train": split([0, 1, -1], ClassLabel(names=NAMES)), "test": split([0], ClassLabel(names=NAMES))}, "'train'.*row 2"),
        ({"train": split([0, 1, 2, -1]), "test": split([0, 1])}, "'train'.*row 3.*strings"),
        ({"train": split([0, 1]), "test": split([0, 1, -1])}, "'test'.*row 2"),
        ({"train": split([0, 1]), "test": split(["cat", "dog"])}, "names.*numbers"),
        ({"train": split(["cat", "dog"]), "test": split([0, 1])}, "names.*numbers"),
        ({"train": split([0, 1], NUMBERED), "test": split([0, 1])}, "'test'.*cannot tell"),
        ({"train": split([[0], [1]], datasets.List(Value("int64"))), "test": split([0])}, "one class name or number"),
        ({"train": split(list(range(300))), "test": split([0])}, "another value in each of 300 rows"),
    ],
)
def test_what_is_no_class_is_refused_in_one_line(load, splits, pattern):
    with pytest.raises(ValueError, match=pattern) as refused:
        load(**splits)
    assert "\n" not in str(refused.value)


def test_labels_beyond_the_names_are_refused(load):
    broken = split([0, 1, 2], ClassLabel(names=NAMES))
    broken.info.features["label"] = ClassLabel(names=NAMES[:2])  # as a file whose metadata are damaged
    with pytest.raises(ValueError, match="'train'.* is 2 in row 2.*2 classes"):
        gate({"train": broken, "test": split([0], ClassLabel(names=NAMES[:2]))})


@pytest.mark.parametrize("unlabelled", [[-1, -1, -1], [None, None, None], "absent"])
def test_a_test_split_without_labels_is_passed_over_for_a_labelled_one(load, said, unlabelled):
    labels = ClassLabel(names=NAMES)
    bare = split([0, 0, 0], labels).remove_columns("label") if unlabelled == "absent" else split(unlabelled, labels)
    rows = split([0, 1, 2] * 10, labels)
    data = load(train=rows, validation=split([1, 2], labels), test=bare)
    assert data["test"]["label"][:] == [1, 2]
    assert len(said) == 1 and "split 'test'" in said[0] and "'validation'" in said[0]
    said.clear()
    data = load(train=rows, test=bare)
    assert len(data["test"]) == 6 and len(data["train"]) == 24 and len(said) == 1 and "6 of 30 rows" in said[0]
    with pytest.raises(ValueError, match="test_split='test'.*no labels.*'validation'"):
        load(train=rows, validation=split([1, 2], labels), test=bare, test_split="test")


def test_numbers_of_minus_one_alone_are_no_labels(load, said):
    data = load(train=split([0, 1, 2]), validation=split([1, 2]), test=split([-1, -1]))
    assert data["test"]["label"][:] == [1, 2] and len(said) == 1


def test_the_column_that_was_chosen_is_said(load, said):
    fine, coarse = (split([0, 1, 2], ClassLabel(names=NAMES)), split([0, 1, 0], ClassLabel(names=["pet", "bird"])))
    both = fine.rename_column("label", "fine_label").add_column("target", coarse["label"][:])
    data = load(train=both, test=both)
    assert label_names(data["test"]) == NAMES and len(said) == 1 and "'fine_label'" in said[0] and "'target'" in said[0]
    said.clear()
    data = load(train=both, test=both, label_column="target")
    assert data["test"]["label"][:] == [0, 1, 0] and said == []


def test_a_models_names_number_the_data(load, said):
    model = ["emu", "cat", "dog", "fox"]
    data = load(train=split([0, 1, 2], ClassLabel(names=NAMES)), test=split(["dog", "emu"]), names=model, source="the run")
    assert label_names(data["train"]) == label_names(data["test"]) == model
    assert by_name(data["train"]) == NAMES and by_name(data["test"]) == ["dog", "emu"]
    assert any("the run" in line for line in said)
    with pytest.raises(ValueError, match="'emu' in row 2.*the run"):
        load(train=split([0, 1, 2], ClassLabel(names=NAMES)), test=split([0]), names=["cat", "dog"], source="the run")


def test_a_models_numbers_as_names(load, said):
    data = load(train=split([5000, 10]), test=split([10]), names=["10", "200", "5000"])
    assert data["train"]["label"][:] == [2, 0] and data["test"]["label"][:] == [0]
    data = load(train=split([0, 2]), test=split([2]), names=NAMES)  # numbers without names: class numbers
    assert by_name(data["train"]) == ["cat", "emu"]
    said.clear()
    data = load(train=split([0, 2], ClassLabel(names=NAMES)), test=split([2], ClassLabel(names=NAMES)), names=["0", "1", "2"])
    assert by_name(data["train"]) == ["cat", "emu"] and len(said) == 1 and "no names" in said[0]


def test_names_that_need_not_be_met_count_where_the_data_set_has_the_same(load):
    labels = ClassLabel(names=NAMES)
    same = load(train=split([0, 1, 2], labels), test=split([0], labels), names=["emu", "dog", "cat"], names_required=False)
    assert label_names(same["train"]) == ["emu", "dog", "cat"] and by_name(same["train"]) == NAMES
    other = load(train=split([0, 1, 2], labels), test=split([0], labels), names=["emu", "dog"], names_required=False)
    assert label_names(other["train"]) == NAMES


def test_any_mixture_of_types_keeps_every_label(said):
    """Against a slow reading: the name of each label before and after are the same word."""
    rng = np.random.default_rng(0)
    for trial in range(8):
        words = [str(w) for w in rng.choice(["a", "b", "c", "d", "7", "x y", "ä"], size=rng.integers(2, 6), replace=False)]
        before, splits = {}, {}
        for name in ("train", "test", "test_triggered"):
            drawn = rng.choice(words, size=rng.integers(3, 9)).tolist()
            order = rng.permutation(words).tolist()
            feature = ClassLabel(names=order) if rng.random() < 0.6 else Value("large_string" if rng.random() < 0.3 else "string")
            rows = [order.index(w) for w in drawn] if isinstance(feature, ClassLabel) else drawn
            columns = {"label": rows, "clean_label": rows[::-1]} if rng.random() < 0.5 else {"label": rows}
            before[name] = drawn
            splits[name] = Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, feature)))
        after = gate(splits)
        assert len({tuple(label_names(data)) for data in after.values()}) == 1
        for name, data in after.items():
            assert by_name(data) == before[name], trial
            if "clean_label" in data.column_names:
                assert data.features["clean_label"].int2str(data["clean_label"][:]) == before[name][::-1]


def test_one_split_by_itself():
    rows = split([0, 1, 2], ClassLabel(names=["dog", "emu", "cat"]))
    assert align_labels(rows, NAMES)["label"][:] == [1, 2, 0]
    assert align_labels(rows, ["dog", "emu", "cat"]) is rows
    with pytest.raises(ValueError, match=re.escape("'label' is 'cat' in row 2")):
        align_labels(rows, ["dog", "emu"])


# ---- folders of images -------------------------------------------------------------------------------------------------------


def painted(place, *folders, names=("0.png", "1.png", "2.PNG", "3.png", "4.png", "5.png")):
    """Images in these folders, each as bright as its number; returns the folder of each number."""
    where = {}
    for folder in folders:
        (place / folder).mkdir(parents=True, exist_ok=True)
        for file in names:
            where[len(where)] = folder
            Pictures.new("L", (4, 4), len(where) - 1).save(place / folder / file)
    return where


def of_folder(place, *folders):
    """What is loaded of images in these folders; each is as bright as its number, and so is its test of being the right one."""
    where = painted(place, *folders)
    data = load_data(str(place))
    rows = {k: [(where[image.getpixel((0, 0))], name) for image, name in zip(v["image"], by_name(v))] for k, v in data.items()}
    assert all(folder.rpartition("/")[2] == name for part in rows.values() for folder, name in part)
    return {k: {folder for folder, _ in part} for k, part in rows.items()}, sum(map(len, rows.values()))


def test_a_class_named_as_a_split_leaks_nothing(tmp_path):
    """Seen before: the images of test/train were trained on."""
    found, count = of_folder(tmp_path, "train/cat", "train/train", "test/cat", "test/train")
    assert found == {"train": {"train/cat", "train/train"}, "test": {"test/cat", "test/train"}} and count == 24


def test_folders_of_splits_in_capitals_are_splits(tmp_path):
    """Seen before: all images in one heap, a fifth of which at random was the test set."""
    found, count = of_folder(tmp_path, "Train/a", "Train/b", "TEST/a", "TEST/b")
    assert found == {"train": {"Train/a", "Train/b"}, "test": {"TEST/a", "TEST/b"}} and count == 24


@pytest.mark.parametrize(
    "folders",
    [
        ("cat", "test"),
        ("train", "boat"),
        ("a", "val.d"),
        ("x/y/a", "x/y/b"),
        ("t-shirt [1]", "*"),
        ("a", "b", ".hidden/c"),
    ],
)
def test_classes_of_any_name(folders, tmp_path):
    """Seen before: "label_column=None was not found", where a class is named as a split."""
    found, _ = of_folder(tmp_path, *folders)
    assert set().union(*found.values()) == {folder for folder in folders if not folder.startswith(".")}


def test_longer_names_of_splits(tmp_path):
    found, _ = of_folder(tmp_path, "digits_training/a", "digits_training/b", "digits-testing/b")
    assert found == {"train": {"digits_training/a", "digits_training/b"}, "test": {"digits-testing/b"}}


@pytest.mark.parametrize(
    "folders, told",
    [
        (("a", "a/more", "b"), "'a/0.png' and 'a/more/0.png' lie at different depths"),
        (("train/a", "train/b", "extra"), "has 'extra/0.png' beside folders of splits"),
        (("train/a", "training/a"), "has the folders 'train' and 'training', both of split 'train'"),
        (("train", "train/a"), "'train/0.png' lies in no folder of a class"),
        ((".",), "'0.png' lies in no folder of a class"),
    ],
)
def test_folders_whose_classes_are_not_known(folders, told, tmp_path):
    with pytest.raises(ValueError) as error:
        of_folder(tmp_path / "images", *folders)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "folders, trained, tested, told",
    [
        (("seg_train/a", "seg_train/b", "seg_test/a", "seg_pred/seg_pred"), {"a", "b"}, {"a"}, "seg_pred/seg_pred/0.png"),
        (("train/a", "train/b", "test/b", "."), {"a", "b"}, {"b"}, "'0.png'"),
        (("train/a", "train/b", "val/a", "test"), {"a", "b"}, {"a"}, "test/0.png"),
        (("train/a", "train/b", "test"), {"a", "b"}, {"a", "b"}, "test/0.png"),
    ],
)
def test_images_without_a_class_beside_those_of_a_split_are_left_out(folders, trained, tested, told, tmp_path, said):
    """Seen before: all was refused for images to predict (test/, seg_pred/) and for a picture beside train/ and test/."""
    found, _ = of_folder(tmp_path, *folders)
    assert {name.split("/")[-1] for name in found["train"]} == trained
    assert {name.split("/")[-1] for name in found["test"]} <= tested
    assert sum(told in line and "not used" in line for line in said) == 1


def test_folders_of_one_name_in_each_class_are_no_class(tmp_path, said):
    """Seen before: train/CLASS/images/*.png became one class, images; a/front, b/front became a class front without a word."""
    with pytest.raises(ValueError, match=r"'images'.*'train/a', 'train/b'"):
        of_folder(tmp_path / "one", "train/a/images", "train/b/images")
    of_folder(tmp_path / "two", "a/front", "a/back", "b/front", "b/back")
    assert sum("'a/back', 'b/back'" in line for line in said) == 1


@pytest.mark.parametrize(
    "folders, count",
    [((".",), 6), (("a/more", "."), 12), (("train/a", "val/a", "test"), 6), (("a", "b", "train"), 18)],
)
def test_images_that_need_no_labels_lie_anywhere(folders, count, tmp_path):
    """Seen before: a folder of images as --unlabelled was refused for want of folders of classes."""
    painted(tmp_path, *folders)
    assert len(load_images(str(tmp_path))) == count
