"""What an audit found: one row per sample, the share of wrong labels, and which class is given for which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import datasets

    from ..evaluation.path_table import PathLengths

#: The groups of the column ``group``, in the order of their numbers.
GROUPS = ("fine", "mislabelled", "triggered", "perturbed", "unclear")


@dataclass(frozen=True)
class Audit:
    """The result of `make_audit`.

    table: one row per sample, in data-set order, with the columns of docs/guides/audit.md. names: of the C classes, () where
    targets are numbers. threshold: the suspicion from which on a sample is flagged. noise_rate: estimated share of wrong labels in
    [0, 1], None where targets are numbers. transition: (C, C), row i: how the samples whose label should be i are labelled, sums to
    1. meaning: of suspicion; cautions: why this audit tells less than others; groups_told: what the groups rest on, in words.
    pattern: what triggered samples have more or less of than others, (H, W, channels) in [-1, 1] pixels, None without one. run:
    method, settings, fingerprint of the data and other facts of the run. paths: the path lengths to the decision boundary, None
    where none were given; ``paths.closest(20)`` are the likeliest natural label errors.
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
        """A column of the table as an array (N,)."""
        return np.asarray(self.table.with_format("numpy")[name][:])

    @property
    def flagged(self) -> np.ndarray:
        """Positions of the samples to look at, most suspicious first."""
        rows = np.flatnonzero(self.column("flagged"))
        return rows[np.argsort(-self.column("suspicion")[rows], kind="stable")]

    def clean(self, data: datasets.Dataset, action: str = "drop", confidence: float = 0.8) -> datasets.Dataset:
        """The data set without the flagged samples, or with the sure ones relabelled: see `cleaned.clean`."""
        from .cleaned import clean

        return clean(self, data, action, confidence)

    def to_parquet(self, path: str | Path) -> Path:
        """Writes the table, whole or not at all, and returns its path."""
        from ..reporting.atomic_files import write_parquet

        return write_parquet(self.table, path)
