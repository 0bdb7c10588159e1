"""What measures a model on a data set by its labels refuses names that the model has at other numbers."""

import datasets
import pytest
from helpers.toy import NORMALISATION, images, vit
from PIL import Image
from transformers import Trainer, TrainingArguments

from robust_trainer.callbacks import RobustnessCallback
from robust_trainer.data.labels import check_label_column, check_model_names
from robust_trainer.detectors.evidence import collect_evidence
from robust_trainer.evaluation.accuracy import evaluate_backdoor
from robust_trainer.evaluation.boundary_paths import path_lengths
from robust_trainer.evaluation.per_class import class_robustness
from robust_trainer.evaluation.robustness import evaluate_robustness
from robust_trainer.problems import SINGLE_LABEL

NAMES, TURNED = ["ant", "bee", "cat", "dog"], ["bee", "cat", "dog", "ant"]


def named(names):
    data = images(8).with_format(None).remove_columns(["is_corrupted", "clean_label"])
    return data.cast_column("labels", datasets.ClassLabel(names=names)).with_format("torch")


def pictures(data):
    """The same labels on grey pictures."""
    features = datasets.Features({"image": datasets.Image(), "labels": data.features["labels"]})
    made = [Image.new("RGB", (8, 8), (99, 99, 99))] * len(data)
    return datasets.Dataset.from_dict({"image": made, "labels": data["labels"][:].tolist()}, features=features)


def model(names=NAMES):
    return vit(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}).eval()


def backdoor(network, data):
    trainer = Trainer(network, TrainingArguments("unused", use_cpu=True, report_to=[], disable_tqdm=True))
    evaluate_backdoor(trainer, data, data.add_column("attack_target", [0] * 8))


def callback(network, data):
    tracker = RobustnessCallback(data, keep_best=False, attacks_final=None, **NORMALISATION)
    tracker.on_train_begin(TrainingArguments("unused", use_cpu=True, report_to=[]), None, None, model=network)


COMMON = {"batch_size": 8, **NORMALISATION}
MEASURES = {
    "attacks": lambda m, d: evaluate_robustness(m, d, "pgd-1", 0.01, progress=False, **COMMON),
    "classes": lambda m, d: class_robustness(m, pictures(d), 0.01, steps=1, **COMMON),
    "paths": lambda m, d: path_lengths(m, pictures(d), max_steps=1, **COMMON),
    "evidence": collect_evidence,
    "backdoor": backdoor,
    "callback": callback,
}


@pytest.mark.parametrize("measure", MEASURES)
def test_names_at_other_numbers_are_refused(measure):
    with pytest.raises(ValueError, match="'labels' numbers class '.*' as . .row .., .*align_labels_with_mapping") as refused:
        MEASURES[measure](model(), named(TURNED))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("measure", ["attacks", "classes", "evidence"])
def test_equal_names_no_names_and_other_words_pass(measure):
    for network, data in ((model(), named(NAMES)), (vit().eval(), named(TURNED)), (model(), named(["Ameise", "Biene", "x", "y"]))):
        MEASURES[measure](network, data)


def test_classes_that_differ_in_case_alone_are_two():
    """Found by the fuzz run, case 1664: 'cat' was refused as standing at the place of 'Cat'."""
    words = ["cat", "Cat", "a b", "a_b"]
    check_model_names(named(words), model(words), ["labels"])
    with pytest.raises(ValueError, match="numbers class 'Cat' as 0"):
        check_model_names(named(["Cat", "cat", "a b", "a_b"]), model(words), ["labels"])


def test_a_transform_that_renumbers_is_believed():
    data = named(TURNED).with_format(None)
    data.set_transform(lambda rows: {"labels": [(label + 1) % 4 for label in rows["labels"]]})
    check_model_names(data, model(), ["labels"])
    data.set_transform(lambda rows: {"labels": rows["labels"]})
    with pytest.raises(ValueError, match="numbers class"):
        check_model_names(data, model(), ["labels"])


def test_a_label_out_of_range_is_told_before_the_attacks(tmp_path):
    """Whatever the batch that it stands in."""
    data = images(70).with_format(None)
    data = data.remove_columns("labels").add_column("labels", [0] * 69 + [4]).with_format("torch")
    visited, network = [], vit()
    network.classifier.bias.data[0] = 99  # right, so that an attack would visit them
    with pytest.raises(ValueError, match=r"'labels' is 4 in row 69, expected \[0, 4\)"):
        evaluate_robustness(network, data, [_Seen(visited)], 0.01, progress=False, **{**COMMON, "batch_size": 16})
    assert visited == []


class _Seen:
    """An attack that does nothing but being counted."""

    name, eps, norm = "seen", 0.01, "linf"

    def __init__(self, visited):
        self.visited = visited

    def __call__(self, forward, x, y, draws):
        self.visited.append(len(x))
        return x.clone()


@pytest.mark.parametrize(
    "columns,mend",
    [
        ({"target": ["a", "b"]}, r"dataset.class_encode_column('target'), then dataset.rename_column('target', 'label')."),
        ({"y": [0, 1], "target": [0, 1]}, r"['y', 'target']: dataset.rename_column('target', 'label')."),
        ({"mine": [0, 1]}, r"['mine']: name it one of these."),
    ],
)
def test_a_column_that_the_trainer_would_not_find_is_renamed(columns, mend):
    data = datasets.Dataset.from_dict(columns)
    with pytest.raises(
        ValueError, match=r"^train_dataset has no label column: expected one of \['labels', 'label'\], got [^\n]+$"
    ) as told:
        check_label_column(data, "train_dataset", ["labels"], 2, SINGLE_LABEL, lambda row: None, columns_removed=True)
    assert str(told.value).endswith(mend)
