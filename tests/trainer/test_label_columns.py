"""The labels of every data set that a Trainer is given are checked before the first step, if a method is named."""

import datasets
import numpy as np
import pytest
import torch
from helpers.toy import CLASSES, config, images, settings, vit

from robust_trainer import RobustTrainer

NAMES = ["ant", "bee", "cat", "dog"]


def labelled(values, names=None, n=16):
    """Images whose first labels are these."""
    data = images(n).with_format(None)
    column = [*values, *[0] * n][:n]
    data = data.remove_columns("labels").add_column("labels", column)
    return (data.cast_column("labels", datasets.ClassLabel(names=names)) if names is not None else data).with_format("torch")


def named(names=NAMES):
    return vit(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})


def trained(tmp_path, model, train, evaluated=None, **more):
    evaluating = {} if evaluated is None else {"eval_strategy": "epoch"}
    args = config(**{**settings(tmp_path), "method": "prl", "num_train_epochs": 1, **evaluating, **more})
    return RobustTrainer(model, args, train_dataset=train, eval_dataset=evaluated)


def refused(trainer, pattern):
    with pytest.raises(ValueError, match=pattern) as caught:
        trainer.train()
    assert "\n" not in str(caught.value) and trainer.state.global_step == 0


TURNED = ["bee", "cat", "dog", "ant"]
EVAL = {
    "too large": (labelled([0, 1, 4]), r"eval_dataset: 'labels' is 4 in row 2, expected \[0, 4\)"),
    "unlabelled": (labelled([-1] * 16), r"eval_dataset: 'labels' is -1 in row 0, expected"),
    "none": (labelled([0, 1, None, 1, None]).with_format(None), "eval_dataset: 'labels' is None in row 2: repair or remove"),
    "none in torch's format": (labelled([0, None]), "eval_dataset: 'labels' is None in row 1"),
    "strings": (labelled(["ant"] * 16), "eval_dataset: 'labels' holds strings.*class_encode_column"),
    "more classes": (labelled([0, 1, 4], [*NAMES, "eel"]), "eval_dataset: 'labels' has 5 classes but the model 4"),
    "another order": (labelled([0, 1], TURNED), "eval_dataset: 'labels' numbers class 'bee' as 0 .row 0.*align_labels_with"),
    "one of several": ({"clean": labelled([0]), "noisy": labelled([0, 9])}, r"eval_dataset\['noisy'\]: 'labels' is 9 in row 1"),
}


@pytest.mark.parametrize("case", EVAL)
def test_evaluation_sets_are_checked_before_the_first_step(tmp_path, case):
    evaluated, pattern = EVAL[case]
    refused(trained(tmp_path, named(), labelled([0, 1, 2, 3], NAMES), evaluated), pattern)


def test_what_is_not_evaluated_is_not_checked(tmp_path):
    trained(tmp_path, named(), labelled([0, 1, 2, 3]), labelled([-1] * 16), eval_strategy="no").train()


def test_sets_given_later_are_checked_too(tmp_path):
    trainer = trained(tmp_path, named(), labelled([0]))
    with pytest.raises(ValueError, match="the data set to evaluate: 'labels' is 7 in row 1"):
        trainer.evaluate(labelled([0, 7]))
    with pytest.raises(ValueError, match="the data set of 'test': 'labels' is 7 in row 1.*or remove the column"):
        trainer.predict(labelled([0, 7]))
    assert trainer.predict(labelled([0, 7]).remove_columns("labels")).predictions.shape == (16, CLASSES)


def test_the_training_columns_names_are_the_models(tmp_path):
    refused(trained(tmp_path, named(), labelled([2, 1], TURNED), labelled([0])), "'labels' numbers class 'dog' as 2 .row 0.*as 3")
    refused(trained(tmp_path, named(["Ant", "bee ", "the_cat", "dog"]), labelled([1, 0], ["bee", "ant", "a", "b"])), "'bee'|'ant'")
    # names that no row has, and other words, contradict nothing
    trained(tmp_path, named(), labelled([0, 1, 0], ["ant", "bee", "dog", "cat"])).train()
    trained(tmp_path, named(), labelled([0, 1, 2, 3], ["Ameise", "Biene", "Katze", "Hund"])).train()


def test_names_of_the_training_column_where_the_model_has_none(tmp_path):
    trainer = trained(tmp_path, vit(), labelled([0, 1, 2, 3], NAMES), labelled([0], TURNED))
    refused(trainer, "eval_dataset: 'labels' numbers class 'bee' as 0")


class Turn:
    """A transform that gives the images and each label's number among other names."""

    def __init__(self, table):
        self.table = table

    def __call__(self, rows):
        return {"pixel_values": torch.tensor(rows["pixel_values"]), "labels": torch.tensor([self.table[i] for i in rows["labels"]])}


def test_a_transform_is_believed_and_is_told_of(tmp_path):
    kept, one_less = Turn(range(10)), Turn([None, 0, 1, 2, 3])
    train = labelled([1, 2, 3, 4] * 4).with_format(None)
    common = {"remove_unused_columns": False}
    trained(tmp_path, named(), train.with_transform(one_less), train.with_transform(one_less), **common).train()
    refused(trained(tmp_path, named(), train.with_transform(kept), **common), "'labels' is 4 in training row 3")
    good = labelled([0, 1, 2, 3]).with_format(None)
    refused(
        trained(tmp_path, named(), good.with_transform(kept), {"a": train.with_transform(kept)}, **common),
        r"eval_dataset\['a'\]: 'labels' is 4 in row 3",
    )
    turned = labelled([0, 1, 2, 3], TURNED).with_format(None)
    trained(tmp_path, named(), turned.with_transform(Turn([1, 2, 3, 0])), **common).train()
    refused(trained(tmp_path, named(), turned.with_transform(kept), **common), "numbers class 'bee' as 0")


def test_the_row_that_is_looked_at_costs_no_random_number(tmp_path):
    def loss(first):
        def noisy(rows):
            x = torch.tensor(rows["pixel_values"])
            moved = x + 0.01 * torch.rand_like(x) + float(np.random.rand())
            return {"pixel_values": moved, "labels": [label - first for label in rows["labels"]]}

        data = labelled([first, first + 1, first + 2, first + 3] * 4).with_format(None).with_transform(noisy)
        np.random.seed(0)
        return trained(tmp_path, vit(), data, remove_unused_columns=False).train().training_loss

    assert loss(1) == loss(0)


@pytest.mark.parametrize("kind", ["list", "module"])
def test_other_data_sets_are_checked_batch_by_batch(tmp_path, kind):
    rows = [{"pixel_values": torch.zeros(3, 8, 8), "labels": 4 * (i == 5)} for i in range(8)]
    evaluated = rows if kind == "list" else torch.utils.data.Subset(rows, range(8))
    trainer = trained(tmp_path, named(), labelled([0]), evaluated)
    with pytest.raises(ValueError, match="an evaluation batch: 'labels' is 4 in row 5, expected .0, 4."):
        trainer.train()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_class_labels_of_any_integer_type(tmp_path, dtype):
    """They train, so they evaluate."""
    plain = labelled([0, 1] * 8).with_format(None)

    def cast(batch):
        return {"pixel_values": torch.tensor(batch["pixel_values"]), "labels": torch.tensor(batch["labels"], dtype=dtype)}

    typed = plain.with_transform(cast)
    trainer = trained(tmp_path, vit(), typed, typed, remove_unused_columns=False)
    trainer.data_collator = lambda rows: {key: torch.stack([row[key] for row in rows]) for key in ("pixel_values", "labels")}
    trainer.train()
    assert trainer.evaluate(typed)["eval_loss"] == trainer.evaluate(plain.with_format("torch"))["eval_loss"]


MULTI = {"problem_type": "multi_label_classification"}


@pytest.mark.parametrize("method", ["prl", "co-prl"])
def test_several_labels_as_integers_or_booleans_equal_floats(tmp_path, method):
    rng = np.random.default_rng(0)
    pixels, targets = images(8).with_format("numpy")["pixel_values"][:], rng.integers(0, 2, (8, CLASSES))
    found = {}
    for kind in (float, int, bool):
        data = datasets.Dataset.from_dict({"pixel_values": pixels, "labels": targets.astype(kind).tolist()}).with_format("torch")
        trainer = trained(tmp_path, vit(**MULTI), data, data, method=method, noise_rate=0.2, **MULTI)
        found[kind] = (trainer.train().training_loss, trainer.evaluate()["eval_loss"], trainer.predict(data).metrics["test_loss"])
    assert found[int] == found[bool] == found[float]


def test_several_labels_out_of_range_in_an_evaluation_set(tmp_path):
    pixels = images(16).with_format("numpy")["pixel_values"][:]
    targets = np.zeros((16, CLASSES), dtype=int)
    good = datasets.Dataset.from_dict({"pixel_values": pixels, "labels": targets.tolist()}).with_format("torch")
    targets[11, 2] = 3
    bad = datasets.Dataset.from_dict({"pixel_values": pixels, "labels": targets.tolist()}).with_format("torch")
    refused(trained(tmp_path, vit(**MULTI), good, bad, **MULTI), r"eval_dataset: 'labels' is outside \[0, 1\] in rows \[11\]")
    narrow = datasets.Dataset.from_dict({"pixel_values": pixels, "labels": [[0, 1]] * 16}).with_format("torch")
    refused(trained(tmp_path, vit(**MULTI), good, narrow, **MULTI), r"eval_dataset: 'labels' is .*expected numbers in \[0, 1\]")


def test_names_that_no_row_has_are_no_matter_in_evaluation(tmp_path):
    """Seen before: refused for a fifth name, as a filter leaves it."""
    trainer = trained(tmp_path, named(), labelled([0, 1, 2, 3], NAMES), labelled([0, 1, 2], [*NAMES, "emu"]))
    trainer.train()
    assert trainer.state.global_step and "eval_loss" in trainer.evaluate()


def test_a_column_that_a_map_renumbered_has_a_way_out(tmp_path):
    """As the GLUE script does it: the map leaves the column's old names, which alone cannot tell."""
    old = labelled([0, 1, 2, 3], NAMES).with_format(None)
    mapped = old.map(lambda row: {"labels": TURNED.index(NAMES[row["labels"]])}).with_format("torch")
    refused(trained(tmp_path, named(TURNED), mapped), r"renumbered the column.*cast_column it to Value\('int64'\)")
    trained(tmp_path, named(TURNED), mapped.cast_column("labels", datasets.Value("int64"))).train()
