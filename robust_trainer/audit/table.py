"""The table of an audit, and what the flags leave of each class."""

from __future__ import annotations

from collections.abc import Mapping

import datasets
import numpy as np
import pyarrow
import torch

from ..ledger.class_counts import count_classes
from ..selection.allocation import CLASS_FLOOR, class_floors
from .result import GROUPS, Caution

#: Without a training nothing is cleaned where features hardly tell this share of the classes from others.
LOST_SHARE = 0.1


def make_table(columns: Mapping[str, np.ndarray]) -> datasets.Dataset:
    """Returns the columns as a table in memory.

    Args:
        columns: Of one length; ``group`` holds numbers of `GROUPS`, in the table it is their word.
    """
    kinds = {name: datasets.Value(str(np.asarray(column).dtype)) for name, column in columns.items()}
    features = datasets.Features({**kinds, "group": datasets.Value("string")})
    columns = {**columns, "group": np.asarray(GROUPS, dtype=object)[columns["group"]]}
    # `Dataset.from_dict` with features goes through the values one by one
    arrow = pyarrow.table({name: np.asarray(column) for name, column in columns.items()}).cast(features.arrow_schema)
    return datasets.Dataset(datasets.table.InMemoryTable(arrow), info=datasets.DatasetInfo(features=features))


def class_cautions(label: np.ndarray, flagged: np.ndarray, names: tuple[str, ...], trained: bool = True) -> tuple[Caution, ...]:
    """Returns which classes the flags all but empty: rare ones, of which little is known, and others, which tell of a bad audit.

    Args:
        label: Given labels (N,).
        flagged: Whether the sample is flagged (N,).
        names: Of the classes.
        trained: Whether a training is the witness, for the words.
    """
    counts = count_classes(names, label, ~flagged)
    sizes = counts.samples
    if not sizes.any():
        return ()
    floors = class_floors(torch.from_numpy(sizes), CLASS_FLOOR).numpy()
    lost = counts.few & ((floors == 0) | (sizes >= sizes[sizes > 0].mean()))
    few, out = (counts.left < floors) & ~lost, []
    if lost.any():
        why = "the run did not learn them" if trained else "the features hardly tell them from others"
        words = f"Hardly any sample is left unflagged of class {counts.told(lost)}: {why}."
        some = not trained and lost.sum() < LOST_SHARE * (sizes > 0).sum()
        kept = f" A cleaned set keeps a quarter of each, {CLASS_FLOOR} at most (class_floor): look at them."
        out.append(Caution(words + kept) if some else Caution.blocking(words))
    if few.any():
        why = "rare classes are learned last" if trained else "a rare class has few neighbours of its own"
        out.append(
            Caution(
                f"Few samples are left unflagged of class {counts.told(few)}: {why}, so right labels look wrong. A cleaned set "
                f"keeps the least suspicious, {CLASS_FLOOR} of a class at most (class_floor)."
            )
        )
    return tuple(out)
