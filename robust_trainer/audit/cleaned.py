"""The cleaned data set: flagged samples dropped, or relabelled where the suggestion is sure; its card tells what was done."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.csv

from ..data.columns import source_rows
from ..data.splits import align_labels
from ..reporting.atomic_files import replacing, write_text
from ..reporting.parquet_files import write_parquet
from ..reporting.safe_text import plain
from ..selection.allocation import CLASS_FLOOR
from .model_card import escape
from .result import DROPPED, GROUPS, KEPT, RELABELLED, Audit


def write_cleaned(
    folder: str | Path, audit: Audit, data: datasets.Dataset, action: str = "drop", confidence: float = 0.8, *,
    test: datasets.Dataset | None = None, source: str = "", command: str = "", class_floor: int = CLASS_FLOOR, force: bool = False,
) -> Path:  # fmt: skip
    """Writes the cleaned data set as the Hub takes it, and returns the folder: parquet files, README.md (its card), removed.csv.

    train.parquet, and test.parquet where ``test`` is given, load with ``load_dataset(folder)``, and go to the Hub with
    ``HfApi().upload_folder``. Splits must have the same columns there: the test split gets those of the other, null where it has
    none, and loses its own. removed.csv: a row per sample that was dropped or relabelled, by its position among the audited rows
    (index) and by its row in the table that these were selected from (source_row).

    Args:
        folder: Where to; each file is written whole or not at all.
        audit: Which samples are flagged, and what is suggested.
        data: The run's data set, row i for row i of the audit.
        action: As of `Audit.plan`.
        confidence: As of `Audit.plan`.
        test: The test split, kept as it is.
        source: The data set's name.
        command: What made it, for the card.
        class_floor: As of `Audit.plan`.
        force: As of `Audit.clean`.

    Raises:
        ValueError: As `Audit.clean`.
    """
    folder = Path(folder)
    left = audit.clean(data, action, confidence, class_floor=class_floor, force=force)
    done = audit.plan(action, confidence, class_floor)
    write_parquet(left, folder / "train.parquet")
    if test is not None:
        write_parquet(_like(test, left), folder / "test.parquet")
    with replacing(folder / "removed.csv") as new:
        pyarrow.csv.write_csv(_changes(audit, done, source_rows(data)), new)
    write_text(folder / "README.md", dataset_card(audit, action, confidence, test is not None, source, command, class_floor))
    return folder


def _like(test: datasets.Dataset, left: datasets.Dataset) -> datasets.Dataset:
    """The test split with the columns of the other, null where it has none: splits that differ in columns cannot be loaded.

    Classes are numbered alike, by name.
    """
    for name, feature in left.features.items():
        if isinstance(feature, datasets.ClassLabel) and test.features.get(name, feature) != feature:
            test = align_labels(test, feature.names, "the training split", name, f"test: '{name}'")
    table = test.with_format("arrow")[:]
    for name in left.column_names:
        if name not in test.column_names:
            kind = left.features.arrow_schema.field(name).type
            table = table.append_column(name, pyarrow.nulls(len(test), kind))
    table = table.select(left.column_names).cast(left.features.arrow_schema)
    return datasets.Dataset(datasets.table.InMemoryTable(table), info=datasets.DatasetInfo(features=left.features))


def _changes(audit: Audit, done: np.ndarray, source: np.ndarray | None) -> pyarrow.Table:
    """A row per sample that was changed. source: rows of the table that the data set was drawn from, None where it is one."""
    rows = np.flatnonzero(done != KEPT)
    columns_shown = ("label", "suggested_label", "suggested_confidence", "suspicion")
    columns = {"index": rows, "action": np.where(done[rows] == DROPPED, "dropped", "relabelled")}
    columns |= {name: audit.column(name)[rows] for name in columns_shown}
    columns["group"] = np.asarray((*GROUPS, "unknown"))[audit.group_numbers[rows]]
    columns["source_row"] = rows if source is None else source[rows]
    return pyarrow.table(columns)


def dataset_card(
    audit: Audit, action: str = "drop", confidence: float = 0.8, test: bool = False, source: str = "", command: str = "",
    class_floor: int = CLASS_FLOOR,
) -> str:  # fmt: skip
    """Returns the card of a cleaned set, Markdown with front matter: what was removed, what was relabelled, and why.

    Args:
        audit: The audit.
        action: As of `Audit.plan`.
        confidence: As of `Audit.plan`.
        test: Whether there is a test split.
        source: The data set's name.
        command: What made it, as it was typed.
        class_floor: As of `Audit.plan`.
    """
    done = audit.plan(action, confidence, class_floor)
    spared = int((audit.column("flagged").astype(bool) & (done == KEPT)).sum())
    group, label, run = audit.group_numbers, audit.column("label").astype(np.int64), audit.run
    dropped, relabelled = int((done == DROPPED).sum()), int((done == RELABELLED).sum())
    rows = [["rows before", f"{len(done)}"], ["rows left", f"{len(done) - dropped}"], ["dropped", f"{dropped}"],
            ["relabelled", f"{relabelled}" + (f" (confidence {confidence:g} or more)" if action == "relabel" else "")],
            ["flagged and left in, lest a class lose all", f"{spared}"], ["flagged from a suspicion of", f"{audit.threshold:g}"],
            ["estimated share of wrong labels before", "none" if audit.noise_rate is None else f"{100 * audit.noise_rate:.1f} %"],
            ["source", source or "not told"], ["fingerprint of the source", run.get("fingerprint", "unknown")],
            _witness(audit),
            ["command", command or "not told"]]  # fmt: skip
    why = [[name, str(int(((group == i) & (done == DROPPED)).sum())), str(int(((group == i) & (done == RELABELLED)).sum()))]
           for i, name in enumerate(GROUPS) if i or int(((group == i) & (done != KEPT)).sum())]  # fmt: skip
    counts = [(i, name, np.bincount(done[label == i], minlength=3)) for i, name in enumerate(audit.names)]
    worst = sorted(counts, key=lambda c: -int(c[2][DROPPED] + c[2][RELABELLED]))[:50]
    classes = [[_told(name), str(int(n.sum())), str(int(n[DROPPED])), str(int(n[RELABELLED]))] for _, name, n in worst]
    files = [{"split": "train", "path": "train.parquet"}] + ([{"split": "test", "path": "test.parquet"}] if test else [])
    front = json.dumps([{"config_name": "default", "data_files": files}])
    by_class = f"## Given labels\n\n{_table(['class', 'rows before', 'dropped', 'relabelled'], classes)}\n" if classes else ""
    more = f"\nThe {len(worst)} classes with most changes, of {len(counts)}.\n" if len(worst) < len(counts) else ""
    by = "one training run" if audit.trained else "its labels, without any training,"
    unseen = "; unseen,\nneither visited in training nor judged before it, and left in" if audit.trained else ""
    cautions = "".join(f"{_told(caution)}\n\n" for caution in audit.cautions)
    return f"""---
configs: {front}
tags: ["robust-trainer", "cleaned"]
---

# Cleaned training data

An audit of {by} distrusted some of the samples of this data set; they were removed here, or relabelled. Nobody has
looked at them one by one: `removed.csv` lists each with its suspicion, so that a mistake can be undone. A test split is unchanged:
its labels were not judged.

{_table(["", ""], [[name, _told(text)] for name, text in rows])}

## Why

{audit.meaning} {_told(audit.groups_told)}

{cautions}{_table(["group", "dropped", "relabelled"], why)}

{by_class}{more}
Groups: mislabelled, another class is suggested with confidence 1/2 or more; triggered, the input carries a pattern that distrusted
samples share; perturbed, an image far noisier than the trusted ones; unclear, the rest{unseen}.
"""


def _witness(audit: Audit) -> list[str]:
    """What the audit rests on, name and value."""
    run = audit.run
    if not audit.trained:
        return ["what they were judged by", str(run.get("evidence", "unknown"))]
    return ["training that distrusted them", f"{run.get('method', 'unknown')} {json.dumps(run.get('settings', {}), default=str)}"]


def _told(text: str) -> str:
    return escape(plain(text, 1000))


def _table(heading: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [heading, ["---"] * len(heading), *rows])
