"""What a corrupted data set really holds: rates overall and per class, and the transition matrix."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from ..data import columns
from ..data.mapping import CLEAN_LABEL, IS_CORRUPTED


def realised_rates(
    dataset: datasets.Dataset, nominal: float | Sequence[float] | np.ndarray | None = None, *, label_column: str | None = None
) -> dict[str, Any]:
    """Returns what a corrupted data set really holds: nominal, nominal_per_class, overall, per_class, corrupted, mislabelled, n.

    overall: share of ``is_corrupted`` rows; per_class: the same per clean class (by name where the label is a ClassLabel; classes
    without a row are left out); mislabelled: share of rows whose label differs from ``clean_label``; corrupted, n: counts of
    rows. Rates are fractions in [0, 1]. For regression (a ``clean_label`` of floats, or another ``clean_...`` column) per_class is
    empty.

    Args:
        dataset: one split that was corrupted.
        nominal: the rate asked for, or one per class (C,) as `nominal_rates` gives them; these come back as nominal_per_class and,
            weighed with the classes' sizes, as nominal.
        label_column: default label or labels.

    Raises:
        ValueError: when the columns are missing.
    """
    columns.check_dataset(dataset)
    targets = [c for c in dataset.column_names if c.startswith("clean_")]
    missing = [c for c in (IS_CORRUPTED, CLEAN_LABEL) if c not in dataset.column_names and not (c == CLEAN_LABEL and targets)]
    if missing:
        raise ValueError(
            f"columns {missing} are not among {dataset.column_names}: make the data set with poison, trigger_all or corrupt_labels."
        )
    corrupted = columns.read_column(dataset, IS_CORRUPTED).astype(bool)
    rates: dict[str, Any] = {
        "nominal": nominal, "nominal_per_class": {}, "overall": float(corrupted.mean()), "per_class": {},
        "corrupted": int(corrupted.sum()), "mislabelled": None, "n": len(dataset),
    }  # fmt: skip
    if CLEAN_LABEL not in targets or not _is_class(dataset.features[CLEAN_LABEL]):
        return rates
    clean = columns.read_column(dataset, CLEAN_LABEL).astype(np.int64)
    feature = dataset.features[CLEAN_LABEL]
    names = {int(c): feature.int2str(int(c)) if isinstance(feature, datasets.ClassLabel) else str(c) for c in np.unique(clean)}
    rates["per_class"] = {name: float(corrupted[clean == c].mean()) for c, name in names.items()}
    if nominal is not None and np.ndim(nominal) == 1:
        asked = np.asarray(nominal, dtype=np.float64)
        if clean.max() >= len(asked):
            raise ValueError(f"nominal has {len(asked)} rates but there are {clean.max() + 1} classes: give one rate per class.")
        rates |= {"nominal": float(asked[clean].mean()), "nominal_per_class": {n: float(asked[c]) for c, n in names.items()}}
    label = label_column or next((c for c in columns.LABEL_NAMES if c in dataset.column_names), None)
    if label is not None:
        rates["mislabelled"] = float((columns.read_column(dataset, columns.label_column(dataset, label)) != clean).mean())
    return rates


def realised_transition(
    dataset: datasets.Dataset, *, label_column: str | None = None, num_classes: int | None = None
) -> np.ndarray:
    """Returns the transition matrix (C, C) that a data set with ``clean_label`` holds: T[i, j] = #{clean i, given j} / #{clean i}.

    Rows sum to 1; the row of a class without samples is 0.

    Args:
        dataset: one split that was corrupted.
        label_column: default label or labels.
        num_classes: C; default what the column says.

    Raises:
        ValueError: where ``clean_label`` or the label is missing or no integer class.
    """
    columns.check_dataset(dataset)
    if CLEAN_LABEL not in dataset.column_names:
        raise ValueError(f"column '{CLEAN_LABEL}' is not among {dataset.column_names}: make the data set with corrupt_labels.")
    labels, classes = columns.read_labels(dataset, columns.label_column(dataset, label_column), num_classes)
    clean, known = columns.read_labels(dataset, CLEAN_LABEL, num_classes)
    counts = np.zeros((max(classes, known),) * 2)
    np.add.at(counts, (clean, labels), 1)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def log_rates(
    logger: logging.Logger, what: str, dataset: datasets.Dataset, nominal: Any, label_column: str | None = None
) -> dict[str, Any]:
    """Logs nominal and realised rates, overall and per clean class, and returns `realised_rates`.

    Args:
        logger: where to.
        what: how the corruption is called.
        dataset: one split that was corrupted.
        nominal: of `realised_rates`.
        label_column: default label or labels.
    """
    rates = realised_rates(dataset, nominal, label_column=label_column)
    asked = rates["nominal_per_class"]
    each = [f"{name} {value:.4f}" + (f" of {asked[name]:.4f}" if asked else "") for name, value in rates["per_class"].items()]
    overall = "unknown" if rates["nominal"] is None else f"{rates['nominal']:.4f}"
    logger.info(
        "%s: nominal rate %s, realised %.4f (%d of %d samples)%s",
        what, overall, rates["overall"], rates["corrupted"], rates["n"],
        "; per clean class: " + ", ".join(each) if each else "",
    )  # fmt: skip
    return rates


def _is_class(feature: Any) -> bool:
    return isinstance(feature, datasets.ClassLabel) or str(getattr(feature, "dtype", "")).startswith(("int", "uint"))
