"""An audit of a data set without any training: by features of its rows, or by probabilities of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import datasets
import numpy as np
import torch

from ..data.class_names import in_order, read_label_values
from ..data.columns import LABEL_NAMES, USUAL_LABELS, check_dataset, read_labels, source_rows
from ..data.columns import label_column as find_label_column
from ..data.mapping import IS_CORRUPTED
from ..data.splits import TRAIN, with_class_numbers
from ..evidence.judge import LabelEvidence, judge_labels
from ..evidence.label_model import EXACT, SEARCHED
from ..evidence.tied_tokens import TiedTokens, triggers_among
from ..ledger.fingerprint import content_columns, data_fingerprint
from ..reporting.safe_text import plain
from .given_labels import is_named
from .groups import CONFIDENT, MISLABELLED, TRIGGERED, UNCLEAR
from .inputs import Inputs, open_inputs
from .likeness import Likeness, find_likeness
from .result import Audit, Caution
from .sources import Network, Source, given_features, given_probs, input_column
from .table import class_cautions, make_table
from .without_words import without_tied_words

#: Rows that a model sees at a time.
BATCH_SIZE = 64
#: Of a class with fewer rows little can be said.
FEW_ROWS = 10
#: Half the width of the noise rate's interval beyond which the evidence counts as weak.
WIDE = 0.1
#: Where more than this share of another split are near-duplicates of audited rows, its figures flatter.
COPIED_SHARE = 0.01
#: Of more rows labels are no names of classes where each is another.
MOST_NAMES = 100
#: Of more classes the transition, which has their square of cells, is not kept.
MOST_TRANSITIONS = 5_000
_REST = (
    "combined with how often each class is given for each other one (the noise transition), which is estimated with them. A sample "
    "that carries a pattern which doubted samples share, such as a trigger, has suspicion 1."
)
MEANING = (
    "Suspicion is the probability that the given label is wrong. Two witnesses, neither of which has seen the sample's own label: "
    "a linear model (ridge regression) on the features, fitted to all labels but the sample's, and the labels of the nearest "
    f"neighbours in these features. Their probability of each class is {_REST}"
)
PROBS_MEANING = (
    "Suspicion is the probability that the given label is wrong. The witness is the probability of each class that was given "
    f"(pred_probs), which must come from a model that has not seen the sample's label: it is {_REST}"
)
NO_MEANING = "Suspicion is no probability here, at most an order of whom to look at first: too few of the labels are predicted."


def audit_dataset(
    data: datasets.Dataset | datasets.DatasetDict,
    model: Any = None,
    *,
    features: np.ndarray | Mapping[str, np.ndarray] | str | None = None,
    pred_probs: np.ndarray | str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    audio_column: str | None = None,
    processing_class: Any = None,
    threshold: float = 0.5,
    look: bool = True,
    max_length: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: Any = None,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> Audit:
    """Returns the `Audit` of a data set's labels, made without any training: one pass of a pretrained network, or none.

    The labels are judged by features of a network that has not been trained on them (`judge_labels`: neighbours, and a linear
    model whose predictions have not seen the row's label), or by given probabilities. The same features tell near-duplicates, in
    other splits too, and rows that lie apart.

    Args:
        data: One split with a column of class numbers or names, or a `DatasetDict`, whose split train is audited; its other
            splits are searched for near-duplicates.
        model: A pretrained encoder or classifier of images, texts or sounds: hub name, folder, or the network itself. Its
            pooled features are taken (`evidence.features.encode`).
        features: In the place of a model: numbers (N, D) by which rows are alike; one such array for each split; or the name of a
            column that holds them.
        pred_probs: Probabilities of each class (N, C), or the name of a column of them, of a model that has not seen the row's
            label, as in cross-validation. The labels are judged by these; features or a model beside them serve to find
            near-duplicates.
        label_column: Of the given labels. Default: label or labels, else fine_label, target, class or y.
        image_column: Default: the only one of images.
        text_column: Default: the only one of texts, where there are neither images nor sounds.
        audio_column: Default: the only one of sounds, where there are no images.
        processing_class: The image processor, tokenizer or feature extractor of a model that is given itself; None: the columns are
            its inputs.
        threshold: Suspicion in (0, 1) from which a sample is flagged.
        look: Look at the images, texts or sounds for a pattern that doubted samples share, such as a trigger.
        max_length: Tokens of a text that a named model reads. Default: as many as it takes, at most 512.
        batch_size: Rows that the model sees at a time.
        device: Where the model runs. Default: a named one on a GPU where there is one.
        trust_remote_code: Run Python code that the named model brings.
        seed: Of the samples that are compared, of many.

    Raises:
        ValueError: In one line, for settings out of range, labels that are no class numbers, features or probabilities that do not
            fit, and models or inputs that cannot be read.
    """
    if not isinstance(threshold, int | float) or not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold={threshold!r} must be in (0, 1): give for instance 0.5.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r} must be a whole number >= 0: give for instance 0.")
    if model is not None and features is not None:
        raise ValueError("model and features are both given: leave one of them out.")
    if model is None and features is None and pred_probs is None:
        raise ValueError("nothing to judge the labels by: give model, features or pred_probs.")
    if not isinstance(look, bool):
        raise ValueError(f"look={look!r} is neither True nor False: give one of them.")
    of_model = {
        "processing_class": (processing_class, None), "max_length": (max_length, None), "batch_size": (batch_size, BATCH_SIZE),
        "device": (device, None), "trust_remote_code": (trust_remote_code, False),
    }  # fmt: skip
    alone = [name for name, (value, usual) in of_model.items() if value is not usual and value != usual]
    if model is None and alone:
        raise ValueError(f"{alone[0]} is for a model, and none is given: leave it out, or give model.")
    network = None if model is None else Network(model, processing_class, max_length, batch_size, device, trust_remote_code)
    splits = _splits(data)
    drawn = source_rows(splits[TRAIN])
    splits, label = _numbered(splits, label_column)
    train = splits[TRAIN]
    labels, classes = read_labels(train, label)
    probs = None if pred_probs is None else given_probs(train, pred_probs, classes)
    source = Source("given probabilities") if features is None else given_features(splits, features)
    used = [name for name in (features, pred_probs) if isinstance(name, str)]
    kind, column = input_column(
        train.remove_columns(used), image_column, text_column, audio_column, label, needed=network is not None
    )
    inputs = open_inputs(train.select_columns(column) if column else train.remove_columns(used)) if look else None
    triggers: list[TiedTokens] = []
    if network is not None:
        reads = kind == "text" and (processing_class is not None or not isinstance(model, torch.nn.Module))
        without = without_tied_words(train, column, inputs, labels, classes) if reads else None
        source = network.encode(splits, kind, column, without)
        if without is not None and source.without is not None:
            triggers = triggers_among(without.groups, torch.from_numpy(source.without), labels, classes, seed)
    shape = inputs.shape if inputs is not None and inputs.kind == "images" else None
    read = None if inputs is None else inputs.read
    evidence = judge_labels(
        source.features.get(TRAIN), labels, classes, probs=probs, inputs=read, shape=shape, triggers=triggers, seed=seed
    )
    alike = None
    if source.features:
        numbers = {split: labels if split == TRAIN else _same_labels(part, train, label) for split, part in splits.items()}
        alike = find_likeness(source.features, numbers, TRAIN, evidence.neighbours)
    run = {
        "evidence": source.told if probs is None or not source.features else f"given probabilities; {source.told}",
        "names": _names(train, label, classes), "rows": len(train), "label_column": label, "columns": content_columns(train),
        "fingerprint": data_fingerprint(train, label),
    }  # fmt: skip
    return _audit(train, labels, evidence, inputs, alike, probs, float(threshold), run, drawn)


def _splits(data: Any) -> dict[str, datasets.Dataset]:
    """The splits by name, the one that is audited as train."""
    if isinstance(data, datasets.DatasetDict):
        if TRAIN not in data and len(data) != 1:
            raise ValueError(f"data has splits {list(data)} and no 'train': pass the split to audit.")
        first = data[TRAIN] if TRAIN in data else next(iter(data.values()))
        splits = {TRAIN: first, **{name: part for name, part in data.items() if part is not first and len(part)}}
    else:
        splits = {TRAIN: data}
    for part in splits.values():
        check_dataset(part)
    return splits


def _numbered(splits: dict[str, datasets.Dataset], name: str | None) -> tuple[dict[str, datasets.Dataset], str]:
    """The splits, labels that are strings numbered in the order of the training split's names; and the column of the labels."""
    train = splits[TRAIN]
    usual = next((n for n in USUAL_LABELS if n in train.column_names), None) if name is None else None
    label = find_label_column(train, name if usual is None or set(LABEL_NAMES) & set(train.column_names) else usual)
    if not is_named(train, label):
        return splits, label
    given = read_label_values(train, label)
    given.check_complete()
    names = in_order(map(str, given.values))
    if len(names) == len(train) > MOST_NAMES:
        raise ValueError(f"'{label}' has another string in each of {len(train)} rows, which is no class: set label_column.")
    feature = datasets.ClassLabel(names=names)
    out = dict(splits)
    for split, part in splits.items():
        if is_named(part, label):
            own = given if split == TRAIN else read_label_values(part, label)
            place = np.array([*(names.index(value) if value in names else -1 for value in own.values), -1], dtype=np.int64)
            out[split] = with_class_numbers(part, label, place[own.codes], feature)
    return out, label


def _same_labels(part: datasets.Dataset, train: datasets.Dataset, label: str) -> np.ndarray | None:
    """The labels of another split, None where it has none by the same numbers."""
    if label not in part.column_names or part.features[label] != train.features[label]:
        return None
    try:
        return read_labels(part, label)[0]
    except ValueError:  # unlabelled, as test splits may be
        return None


def _names(train: datasets.Dataset, column: str, classes: int) -> list[str]:
    feature = train.features[column]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else [str(i) for i in range(classes)]


def _audit(
    train: datasets.Dataset, labels: np.ndarray, evidence: LabelEvidence, inputs: Inputs | None, alike: Likeness | None,
    probs: np.ndarray | None, threshold: float, run: dict[str, Any], drawn: np.ndarray | None,
) -> Audit:  # fmt: skip
    names, n = tuple(run["names"]), len(labels)
    flagged = ((evidence.wrong >= threshold) & evidence.informative) | evidence.carriers
    sure = (evidence.suggested != labels) & (evidence.confidence >= CONFIDENT)
    group = np.where(flagged, np.where(sure, MISLABELLED, UNCLEAR), 0)
    group[evidence.carriers] = TRIGGERED
    columns: dict[str, np.ndarray] = {
        "index": np.arange(n), "label": labels, "suggested_label": evidence.suggested,
        "suggested_confidence": evidence.confidence, "suspicion": evidence.wrong, "flagged": flagged, "group": group,
        "predicted_label": evidence.predicted,
    }  # fmt: skip
    if probs is not None:
        columns["label_probability"] = probs[np.arange(n), labels]
    else:
        columns["neighbour_support"] = evidence.support
    if alike is not None:
        columns |= {
            "duplicate_group": alike.group, "duplicate_of": alike.first_of_group(), "copied": alike.copied, "outlier": alike.outlier
        }  # fmt: skip
    if drawn is not None:
        columns["source_row"] = drawn
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
        meaning=(MEANING if probs is None else PROBS_MEANING) if known else NO_MEANING,
        cautions=(*_cautions(labels, flagged, evidence, names), *_partly(alike), *_copied(alike)),
        groups_told=_groups_told(evidence, inputs), pattern=pattern, run=run, likeness=alike,
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


def _partly(alike: Likeness | None) -> list[Caution]:
    """That not all rows were compared with all, where that is so."""
    if alike is None or len(alike.group) <= EXACT or find_spec("faiss") is not None:
        return []
    words = f"Of more than {EXACT:,} samples near-duplicates were looked for among {SEARCHED:,}: install faiss "
    return [Caution(words + "(pip install 'robust-trainer[neighbours]') to look among all.")]


def _copied(alike: Likeness | None) -> list[Caution]:
    """Which other splits hold what is to be trained on, in words."""
    shares = {} if alike is None else {s: len(pairs) / alike.sizes[s] for s, (pairs, _) in alike.copies.items()}
    flatters = "are near-duplicates of audited samples: figures on it flatter"
    return [
        Caution(f"{100 * share:.1f} % of the split '{plain(split, 60)}' {flatters}.")
        for split, share in shares.items()
        if share > COPIED_SHARE
    ]


def _groups_told(evidence: LabelEvidence, inputs: Inputs | None) -> str:
    if inputs is None:
        return "No inputs at hand: triggers are not told from wrong labels."
    if not evidence.patterns and not (evidence.wrong > 0.5).any():
        return "No label is doubted, so no shared pattern is looked at."
    if not evidence.patterns:
        return f"The {inputs.kind} of doubted samples share no pattern."
    shared = f"{int(evidence.carriers.sum()):,} {inputs.kind} share a pattern (triggered)"
    return f"{shared}, which is far more frequent among doubted ones."
