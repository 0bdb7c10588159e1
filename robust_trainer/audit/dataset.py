"""An audit of a data set without any training: from features of its rows, or from probabilities of the user's own."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np

from ..data.columns import check_dataset, read_labels, read_vectors
from ..data.columns import label_column as find_label_column
from ..data.mapping import IS_CORRUPTED
from ..data.splits import TRAIN
from ..evidence.judge import LabelEvidence, judge_labels
from ..ledger.fingerprint import content_columns, data_fingerprint
from .groups import CONFIDENT, MISLABELLED, TRIGGERED, UNCLEAR
from .inputs import Inputs, open_inputs
from .result import Audit, Caution
from .table import class_cautions, make_table

#: Of a class with fewer rows little can be said.
FEW_ROWS = 10
#: Half the width of the noise rate's interval beyond which the evidence counts as weak.
WIDE = 0.1
#: Of more classes the transition, which has their square of cells, is not kept.
MOST_TRANSITIONS = 5_000
MEANING = (
    "Suspicion is the probability that the given label is wrong. Two witnesses, neither of which has seen the sample's own label: "
    "a linear model (ridge regression) on the features, fitted to all labels but the sample's, and the labels of the nearest "
    "neighbours in these features. Their probability of each class is combined with how often each class is given for each other "
    "one (the noise transition), which is estimated with them. A sample that carries a pattern which doubted samples share, such "
    "as a trigger, has suspicion 1."
)


def audit_dataset(
    data: datasets.Dataset | datasets.DatasetDict,
    *,
    features: np.ndarray | str | None = None,
    label_column: str | None = None,
    threshold: float = 0.5,
    look: bool = True,
    seed: int = 0,
) -> Audit:
    """Returns the `Audit` of a data set's labels, made without any training.

    Args:
        data: One split with a column of class numbers, or a `DatasetDict` whose train split is audited.
        features: Numbers (N, D) by which rows are alike, of a network that has not been trained on these labels; or the name of a
            column that holds them.
        label_column: Of the given labels. Default: label or labels.
        threshold: Suspicion in (0, 1) from which a sample is flagged.
        look: Look at the images or texts for a pattern that doubted samples share, such as a trigger.
        seed: Of the samples that are compared, of many.

    Raises:
        ValueError: In one line, for settings out of range, labels that are no class numbers, and features that do not fit.
    """
    if not isinstance(threshold, int | float) or not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold={threshold!r} must be in (0, 1): give for instance 0.5.")
    train = _training_split(data)
    check_dataset(train)
    column = find_label_column(train, label_column)
    labels, classes = read_labels(train, column)
    rows, source = _given_features(train, features)
    inputs = open_inputs(train.remove_columns(features) if isinstance(features, str) else train) if look else None
    evidence = judge_labels(
        rows, labels, classes, inputs=None if inputs is None else inputs.read, shape=_image_shape(inputs), seed=seed
    )  # fmt: skip
    run = {
        "evidence": source, "names": _names(train, column, classes), "rows": len(train), "label_column": column,
        "columns": content_columns(train), "fingerprint": data_fingerprint(train, column),
    }  # fmt: skip
    return _audit(train, labels, evidence, inputs, float(threshold), run)


def _training_split(data: Any) -> Any:
    if isinstance(data, datasets.DatasetDict):
        if TRAIN not in data:
            raise ValueError(f"data has splits {list(data)} and no 'train': pass the split to audit.")
        return data[TRAIN]
    return data


def _given_features(train: datasets.Dataset, features: Any) -> tuple[np.ndarray, str]:
    """The features (N, D), and what they are in words."""
    if isinstance(features, str):
        return read_vectors(train, features), f"features of column {features!r}"
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype.kind not in "fiub":
        got = f"{features.shape} {features.dtype}" if isinstance(features, np.ndarray) else f"a {type(features).__name__}"
        raise ValueError(f"features is {got}, expected numbers (N, D) as a numpy array, or the name of a column of them.")
    if len(features) != len(train):
        raise ValueError(f"features has {len(features)} rows and the data set {len(train)}: give one row for each sample.")
    return features, f"features of {features.shape[1]} numbers"


def _names(train: datasets.Dataset, column: str, classes: int) -> list[str]:
    feature = train.features[column]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else [str(i) for i in range(classes)]


def _image_shape(inputs: Inputs | None) -> tuple[int, ...] | None:
    return inputs.shape if inputs is not None and inputs.kind == "images" else None


def _audit(
    train: datasets.Dataset, labels: np.ndarray, evidence: LabelEvidence, inputs: Inputs | None, threshold: float,
    run: dict[str, Any],
) -> Audit:  # fmt: skip
    names, n = tuple(run["names"]), len(labels)
    flagged = (evidence.wrong >= threshold) | evidence.carriers
    other = evidence.suggested != labels
    group = np.where(flagged, np.where(other & (evidence.confidence >= CONFIDENT), MISLABELLED, UNCLEAR), 0)
    group[evidence.carriers] = TRIGGERED
    columns: dict[str, np.ndarray] = {
        "index": np.arange(n), "label": labels, "suggested_label": evidence.suggested,
        "suggested_confidence": evidence.confidence, "suspicion": evidence.wrong, "flagged": flagged, "group": group,
        "predicted_label": evidence.predicted, "neighbour_support": evidence.support,
    }  # fmt: skip
    if IS_CORRUPTED in train.column_names:
        columns[IS_CORRUPTED] = np.asarray(train.with_format(None)[IS_CORRUPTED][:]).astype(bool)
    pattern = None
    if evidence.patterns and inputs is not None and inputs.kind == "images":
        pattern = evidence.patterns[0].difference.reshape(inputs.shape)
    known = evidence.informative
    return Audit(
        table=make_table(columns), names=names, threshold=threshold, noise_rate=evidence.rate.rate if known else None,
        noise_interval=(evidence.rate.low, evidence.rate.high) if known else None,
        transition=evidence.transition if known and 0 < len(evidence.transition) <= MOST_TRANSITIONS else None,
        meaning=MEANING, cautions=_cautions(labels, flagged, evidence, names), groups_told=_groups_told(evidence, inputs),
        pattern=pattern, run=run,
    )  # fmt: skip


def _cautions(labels: np.ndarray, flagged: np.ndarray, evidence: LabelEvidence, names: tuple[str, ...]) -> tuple[Caution, ...]:
    """What makes the evidence weak, in words."""
    if not evidence.informative:
        return (Caution.blocking(evidence.told),)
    out = []
    low, high = evidence.rate.low, evidence.rate.high
    if high - low > 2 * WIDE:
        words = f"The share of wrong labels is hard to tell: between {100 * low:.0f} and {100 * high:.0f} %. Look before you drop."
        out.append(Caution(words))
    if flagged.mean() > 0.5:
        words = f"More than half of the samples, {int(flagged.sum()):,}, are flagged: the features cannot be relied on."
        out.append(Caution.blocking(words))
    sizes = np.bincount(labels, minlength=len(names))
    if few := int(((sizes > 0) & (sizes < FEW_ROWS)).sum()):
        verb = "class has" if few == 1 else "classes have"
        out.append(Caution(f"{few:,} {verb} fewer than {FEW_ROWS} samples: little can be said of their labels."))
    return (*out, *class_cautions(labels, flagged, names, trained=False))


def _groups_told(evidence: LabelEvidence, inputs: Inputs | None) -> str:
    if inputs is None:
        return "No inputs at hand: triggers are not told from wrong labels."
    if not evidence.patterns:
        return f"The {inputs.kind} of doubted samples share no pattern."
    shared = f"{int(evidence.carriers.sum()):,} {inputs.kind} share a pattern (triggered)"
    return f"{shared}, which is far more frequent among doubted ones."
