"""What an audit found: one row per sample, the share of wrong labels, and which class is given for which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..data.columns import arrow_column, check_dataset
from ..data.mapping import CLEAN_LABEL, IS_CORRUPTED, formatted_as, with_column
from ..evaluation.path_table import PathLengths
from ..ledger.fingerprint import check_same_data, content_columns, data_fingerprint
from ..reporting.parquet_files import write_parquet
from ..reporting.safe_text import plain
from ..selection.allocation import CLASS_FLOOR, class_floors
from ..selection.ranking import smallest
from .given_labels import class_numbers, is_named, label_column, with_labels
from .likeness import Likeness

#: The words of the column ``group``, in the order of their numbers.
GROUPS = ("fine", "mislabelled", "triggered", "perturbed", "unclear", "unseen")
ACTIONS = ("drop", "relabel")
#: What was done to a sample.
KEPT, DROPPED, RELABELLED = range(3)


def group_word(value: str | int) -> str:
    """Returns a sample's group as a word of `GROUPS`, '-' for none of them.

    Args:
        value: Of the column ``group``: the word, or its number, as earlier tables have it.
    """
    if isinstance(value, int):
        return GROUPS[value] if 0 <= value < len(GROUPS) else "-"
    return value if value in GROUPS else "-"


def source_told(row: Mapping[str, Any]) -> str:
    """Returns which row a sample is in the table that the audited rows were selected from, '' where there is no such table.

    Args:
        row: Of the audit's table.
    """
    return f" (row {row['source_row']} of the source)" if "source_row" in row else ""


class Caution(str):
    """Why an audit tells less than others, in words; one that ``blocks`` forbids a cleaned set, since what it drops is a guess."""

    blocks = False

    @classmethod
    def blocking(cls, words: str) -> Caution:
        """Returns a caution that forbids a cleaned set.

        Args:
            words: What is found, and what to do.
        """
        caution = cls(words)
        caution.blocks = True
        return caution


@dataclass(frozen=True, repr=False)
class Audit:
    """The result of `make_audit`, of a training, and of `audit_dataset`, without one.

    Args:
        table: One row per sample, in data-set order, with the columns of docs/guides/audit.md.
        names: Of the C classes, () where targets are numbers.
        threshold: The suspicion from which on a sample is flagged.
        noise_rate: Estimated share of wrong labels in [0, 1]: the share flagged; of a run of auto, and without a training, what was
            estimated from the features; None where targets are numbers.
        transition: (C, C), row i: how the samples whose label should be i are labelled, sums to 1.
        meaning: Of suspicion.
        cautions: Why this audit tells less than others; each a `Caution`, or a text, which forbids nothing.
        groups_told: What the groups rest on, in words.
        pattern: What triggered samples have more or less of than others, (H, W, channels) in [-1, 1] pixels, None without one.
        run: Method, settings, fingerprint of the data and other facts of the run.
        paths: The path lengths to the decision boundary, None where none were given; ``paths.closest(20)`` are the likeliest
            natural label errors.
        likeness: Near-duplicates and outliers, of an audit without a training that has features.
        noise_interval: Ends of the 95 % interval of noise_rate, None where it has none.
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
    noise_interval: tuple[float, float] | None = None
    likeness: Likeness | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        """What was found, in a line."""
        groups = np.bincount(self.group_numbers, minlength=len(GROUPS)).tolist()
        told = ", ".join(f"{n} {name}" for n, name in zip(groups, GROUPS) if n)
        flagged = int(self.column("flagged").sum())
        return f"Audit({len(self)} samples, {flagged} flagged; {told}; table: .table, flagged rows: .flagged)"

    def column(self, name: str) -> np.ndarray:
        """A column of the table as an array (N,).

        Args:
            name: Of the column.
        """
        return np.asarray(self.table.with_format("numpy")[name][:])

    @property
    def group_numbers(self) -> np.ndarray:
        """The column ``group`` as numbers of `GROUPS`, (N,) int64; of a table that was stored with numbers, these."""
        column = arrow_column(self.table, "group")
        if not pa.types.is_integer(column.type):
            column = pc.index_in(column, value_set=pa.array(GROUPS, column.type)).fill_null(len(GROUPS))
        return column.to_numpy(zero_copy_only=False).astype(np.int64)

    @property
    def trained(self) -> bool:
        """Whether a training is what the audit rests on: its table then tells how often a sample was seen."""
        return "seen" in self.table.column_names

    @property
    def flagged(self) -> np.ndarray:
        """Positions of the samples to look at, most suspicious first."""
        rows = np.flatnonzero(self.column("flagged"))
        return rows[np.argsort(-self.column("suspicion")[rows], kind="stable")]

    @property
    def blocked(self) -> tuple[str, ...]:
        """The cautions that forbid a cleaned set."""
        return tuple(caution for caution in self.cautions if getattr(caution, "blocks", False))

    def plan(self, action: str = "drop", confidence: float = 0.8, class_floor: int = CLASS_FLOOR) -> np.ndarray:
        """What becomes of each sample, (N,): KEPT, DROPPED or RELABELLED.

        Args:
            action: drop: the flagged ones go. relabel: those whose suggested label is another class of the data get it, where it is
                sure enough, and the other flagged ones go; triggered ones go in any case, since the trigger would stay.
            confidence: In (0, 1]: from this confidence on a suggestion is sure enough.
            class_floor: Where classes differ in size (`allocation.class_floors`), so many samples of each given class stay as they
                are, the least suspicious of the flagged ones where it needs these; triggered ones never do. Without a training a
                quarter of every class stays, so many at most. 0: none has to.

        Raises:
            ValueError: For an unknown action, a number out of range, and relabelling where targets are no classes.
        """
        if action not in ACTIONS:
            raise ValueError(f"clean={action!r} is unknown: choose one of {', '.join(ACTIONS)}.")
        if not isinstance(confidence, int | float) or not 0.0 < confidence <= 1.0:
            raise ValueError(f"relabel_confidence={confidence!r} must be in (0, 1]: give for instance 0.8.")
        if not isinstance(class_floor, int) or isinstance(class_floor, bool) or not 0 <= class_floor < 2**31:
            raise ValueError(f"class_floor={class_floor!r} must be a whole number >= 0: give for instance {CLASS_FLOOR}.")
        flagged = self.column("flagged").astype(bool)
        out = np.where(flagged, DROPPED, KEPT)
        if action == "relabel":
            if not self.names:
                raise ValueError("clean='relabel' needs class labels, but the run's targets are numbers: use clean='drop'.")
            suggested, named = self.column("suggested_label"), len(self.run.get("names") or self.names)
            other = (suggested != self.column("label")) & (suggested >= 0) & (suggested < named)
            sure = self.column("suggested_confidence") >= confidence
            triggered = self.group_numbers == GROUPS.index("triggered")
            out[flagged & other & sure & ~triggered] = RELABELLED
        out[self._spared(out, class_floor)] = KEPT
        return out

    def _spared(self, done: np.ndarray, class_floor: int) -> np.ndarray:
        """Positions of the samples that stay although they are flagged, lest too few of their class are left."""
        label = self.column("label").astype(np.int64)
        sizes = np.bincount(label[label >= 0])
        kept = np.bincount(label[(label >= 0) & (done == KEPT)], minlength=len(sizes))
        floors = class_floors(torch.from_numpy(sizes), class_floor)
        if (
            not self.trained and class_floor and kept.any()
        ):  # one of many classes may be what features tell nothing of: it is not emptied
            floors = torch.maximum(floors, torch.from_numpy(np.clip(sizes // 4, np.minimum(sizes, 1), class_floor)))
        missing = floors - torch.from_numpy(kept)
        rows = np.flatnonzero((label >= 0) & (done != KEPT) & (self.group_numbers != GROUPS.index("triggered")))
        suspicion = torch.from_numpy(self.column("suspicion")[rows].astype(np.float64))
        return rows[smallest(suspicion, torch.from_numpy(label[rows]), missing.clamp_min(0)).numpy()]

    def clean(
        self, data: datasets.Dataset, action: str = "drop", confidence: float = 0.8, *, class_floor: int = CLASS_FLOOR,
        force: bool = False,
    ) -> datasets.Dataset:  # fmt: skip
        """Returns the data set that is left, in its order and with its columns and format; `plan` says what is done.

        Guarantee: without ``force`` and with a ``class_floor`` above 0 no given class is lost.

        Args:
            data: The run's, row i for row i of the audit.
            action: As of `plan`.
            confidence: As of `plan`.
            class_floor: As of `plan`; 0 lets classes be lost.
            force: Cleans although a caution says that the run knows too little (`blocked`).

        Raises:
            ValueError: As `plan`; for what is no data set or not the one that was audited; where a caution forbids it; and where
                nothing, or nobody of a class, is left.
        """
        done = self.plan(action, confidence, class_floor)
        check_dataset(data)
        given, data = data, data.with_format(None)
        if len(data) != len(done):
            raise ValueError(f"data has {len(data)} rows, the audit {len(done)}: pass the data set that was audited, in its order.")
        self._check_same(data)
        if bool((done == DROPPED).all()):
            raise ValueError(f"threshold={self.threshold} flags all {len(done)} samples, so the cleaned set is empty: raise it.")
        if reason := self.refusal(done, class_floor, force):
            raise ValueError(f"no cleaned set: {reason}")
        if bool((done == RELABELLED).any()):
            name = self._label_column(data)
            if name is None:
                wanted = self.run.get("label_column") or "labels"
                raise ValueError(f"label column {wanted!r} is not among {data.column_names}: pass the data set that was audited.")
            data = with_labels(data, name, self.column("suggested_label"), done == RELABELLED, self.names)
            data = _known_anew(data, name, done == RELABELLED)
        return formatted_as(data.select(np.flatnonzero(done != DROPPED)), given)

    def refusal(self, done: np.ndarray, class_floor: int = CLASS_FLOOR, force: bool = False) -> str:
        """Returns why there is to be no cleaned set, and what to do; '' where nothing speaks against it, or nothing would be left.

        Args:
            done: Of `plan`.
            class_floor: As of `plan`.
            force: As of `clean`.
        """
        if bool((done == DROPPED).all()):
            return ""
        if self.blocked and not force:
            mend = "Train for longer" if self.trained else "Take more samples or features of another network"
            return f"{' '.join(self.blocked)} {mend}, or clean all the same with force=True (--force true)."
        if lost := self._lost(done) if class_floor else []:
            more = f" and {len(lost) - 10} more" if len(lost) > 10 else ""
            return f"nobody would be left of class {', '.join(lost[:10])}{more}; where that is meant give class_floor=0."
        return ""

    def _lost(self, done: np.ndarray) -> list[str]:
        """Names of the classes of which nobody is left, neither by its own label nor by a new one."""
        label, left = self.column("label").astype(np.int64), done != DROPPED
        new = np.where(done == RELABELLED, self.column("suggested_label"), label)
        gone = np.setdiff1d(label[label >= 0], new[left])
        return [plain(self.names[c], 60) if c < len(self.names) else str(c) for c in gone.tolist()]

    def _label_column(self, data: datasets.Dataset) -> str | None:
        return label_column(data, (self.run.get("label_column"), "label", "labels"), self.column("label"), self.names)

    def _check_same(self, data: datasets.Dataset) -> None:
        """Raises ``ValueError`` where rows are not the table's: by their labels, and by their content where that is known."""
        mend = "pass the data set that was audited, in its order."
        name = self._label_column(data)
        own, labels = self.column("label").astype(np.int64), class_numbers(data, name, self.names)
        if labels is not None and len(wrong := np.flatnonzero((own >= 0) & (labels != own))):
            row = int(wrong[0])
            raise ValueError(
                f"{len(wrong)} of {len(own)} labels disagree with the audit (row {row}: {labels[row]}, audited {own[row]}): {mend}"
            )
        if self.run.get("columns") == content_columns(data):  # else the run saw other columns of the same rows
            if labels is not None and name is not None and is_named(data, name):  # the run saw numbers
                data = with_column(data, name, labels, datasets.Value("int64"))
            check_same_data(self.run, len(data), data_fingerprint(data, self.run.get("label_column")))

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
    return with_column(data, IS_CORRUPTED, now, datasets.Value("bool"))
