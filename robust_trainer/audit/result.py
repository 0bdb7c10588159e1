"""What an audit found: one row per sample, the share of wrong labels, and which class is given for which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..data.columns import check_dataset
from ..data.mapping import CLEAN_LABEL, IS_CORRUPTED
from ..evaluation.path_table import PathLengths
from ..reporting.parquet_files import write_parquet

#: The groups of the column ``group``, in the order of their numbers.
GROUPS = ("fine", "mislabelled", "triggered", "perturbed", "unclear")
ACTIONS = ("drop", "relabel")
#: What was done to a sample.
KEPT, DROPPED, RELABELLED = range(3)


@dataclass(frozen=True)
class Audit:
    """The result of `make_audit`.

    Args:
        table: One row per sample, in data-set order, with the columns of docs/guides/audit.md.
        names: Of the C classes, () where targets are numbers.
        threshold: The suspicion from which on a sample is flagged.
        noise_rate: Estimated share of wrong labels in [0, 1], None where targets are numbers.
        transition: (C, C), row i: how the samples whose label should be i are labelled, sums to 1.
        meaning: Of suspicion.
        cautions: Why this audit tells less than others.
        groups_told: What the groups rest on, in words.
        pattern: What triggered samples have more or less of than others, (H, W, channels) in [-1, 1] pixels, None without one.
        run: Method, settings, fingerprint of the data and other facts of the run.
        paths: The path lengths to the decision boundary, None where none were given; ``paths.closest(20)`` are the likeliest
            natural label errors.
    """

    table: datasets.Dataset
    names: tuple[str, ...]
    threshold: float
    noise_rate: float | None = None
    transition: np.ndarray | None = None
    meaning: str = ""
    cautions: tuple[str, ...] = ()
    groups_told: str = ""
    pattern: np.ndarray | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    paths: PathLengths | None = None

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> np.ndarray:
        """A column of the table as an array (N,).

        Args:
            name: Of the column.
        """
        return np.asarray(self.table.with_format("numpy")[name][:])

    @property
    def flagged(self) -> np.ndarray:
        """Positions of the samples to look at, most suspicious first."""
        rows = np.flatnonzero(self.column("flagged"))
        return rows[np.argsort(-self.column("suspicion")[rows], kind="stable")]

    def plan(self, action: str = "drop", confidence: float = 0.8) -> np.ndarray:
        """What becomes of each sample, (N,): KEPT, DROPPED or RELABELLED.

        Args:
            action: drop: the flagged ones go. relabel: those whose suggested label is another class of the data get it, where it is
                sure enough, and the other flagged ones go; triggered ones go in any case, since the trigger would stay.
            confidence: In (0, 1]: from this confidence on a suggestion is sure enough.

        Raises:
            ValueError: For an unknown action, a confidence out of range, and relabelling where targets are no classes.
        """
        if action not in ACTIONS:
            raise ValueError(f"clean={action!r} is unknown: choose one of {', '.join(ACTIONS)}.")
        if not isinstance(confidence, int | float) or not 0.0 < confidence <= 1.0:
            raise ValueError(f"relabel_confidence={confidence!r} must be in (0, 1]: give for instance 0.8.")
        flagged = self.column("flagged").astype(bool)
        out = np.where(flagged, DROPPED, KEPT)
        if action == "relabel":
            if not self.names:
                raise ValueError("clean='relabel' needs class labels, but the run's targets are numbers: use clean='drop'.")
            suggested, named = self.column("suggested_label"), len(self.run.get("names") or self.names)
            other = (suggested != self.column("label")) & (suggested >= 0) & (suggested < named)
            sure = self.column("suggested_confidence") >= confidence
            triggered = self.column("group") == GROUPS.index("triggered")
            out[flagged & other & sure & ~triggered] = RELABELLED
        return out

    def clean(self, data: datasets.Dataset, action: str = "drop", confidence: float = 0.8) -> datasets.Dataset:
        """Returns the data set that is left, in its order and with its columns; `plan` says what is done.

        Args:
            data: The run's, row i for row i of the audit.
            action: As of `plan`.
            confidence: As of `plan`.

        Raises:
            ValueError: As `plan`, for what is no data set, and where nothing is left.
        """
        done = self.plan(action, confidence)
        check_dataset(data)
        data = data.with_format(None)
        if len(data) != len(done):
            raise ValueError(f"data has {len(data)} rows, the audit {len(done)}: pass the data set that was audited, in its order.")
        if bool((done == DROPPED).all()):
            raise ValueError(f"threshold={self.threshold} flags all {len(done)} samples, so the cleaned set is empty: raise it.")
        if bool((done == RELABELLED).any()):
            name = self.run.get("label_column") or ("label" if "label" in data.column_names else "labels")
            if name not in data.column_names:
                raise ValueError(f"label column {name!r} is not among {data.column_names}: pass the data set that was audited.")
            old, feature = np.asarray(data.select_columns(name).with_format("numpy")[:][name]), data.features[name]
            labels = np.where(done == RELABELLED, self.column("suggested_label"), old)
            place = data.column_names
            data = data.remove_columns(name).add_column(name, labels.tolist()).cast_column(name, feature).select_columns(place)
            data = _known_anew(data, name, done == RELABELLED)
        return data.select(np.flatnonzero(done != DROPPED))

    def to_parquet(self, path: str | Path) -> Path:
        """Writes the table, whole or not at all, and returns its path.

        Args:
            path: File to write.
        """
        return write_parquet(self.table, path)


def _known_anew(data: datasets.Dataset, name: str, relabelled: np.ndarray) -> datasets.Dataset:
    """The column that tells which samples are corrupted, true again after relabelling; dropped where true labels are unknown."""
    if IS_CORRUPTED not in data.column_names:
        return data
    if CLEAN_LABEL not in data.column_names:
        return data.remove_columns(IS_CORRUPTED)
    part = data.select_columns([IS_CORRUPTED, name, CLEAN_LABEL]).with_format("numpy")[:]
    columns = {key: np.asarray(column) for key, column in part.items()}
    now = np.where(relabelled, columns[name] != columns[CLEAN_LABEL], columns[IS_CORRUPTED].astype(bool))
    place = data.column_names
    return data.remove_columns(IS_CORRUPTED).add_column(IS_CORRUPTED, now.tolist()).select_columns(place)
