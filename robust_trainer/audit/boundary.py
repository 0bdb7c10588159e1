"""The samples closest to the decision boundary, by their path lengths: whether these fit the run, and what is shown of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..evaluation.path_table import NO_PATH, PathLengths
from ..perturbations.norms import NORMS
from .result import Audit, group_word, source_told
from .samples import Shown
from .summary import class_name

#: The most samples of the section.
CLOSE = 100


def check_paths(paths: Any, label: np.ndarray) -> None:
    """Raises a one-line ``ValueError`` where the path lengths are damaged, or not of the samples with these given labels (N,).

    Args:
        paths: The path lengths.
        label: Given labels (N,).
    """
    if not isinstance(paths, PathLengths):
        raise ValueError(f"paths is a {type(paths).__name__}: give the PathLengths of path_lengths or load_paths.")
    mend = "compute them on the data set of the run, with the same corruption, seeds and order (robust-trainer paths)."
    if len(paths) != len(label):
        raise ValueError(f"paths has {len(paths)} samples, the ledger {len(label)}: {mend}")
    columns = (paths.steps, paths.margin, paths.labels, paths.targets, paths.ended)
    kinds = [np.asarray(column).dtype.kind for column in columns]
    settings = isinstance(paths.step_size, int | float) and isinstance(paths.max_steps, int) and paths.norm in NORMS
    if kinds[1] != "f" or any(kind not in "iu" for kind in kinds[:1] + kinds[2:]) or not settings:
        raise ValueError(f"paths is damaged (kinds {''.join(kinds)}, norm {str(paths.norm)[:10]!r}): {mend}")
    if any(np.shape(column) != (len(label),) for column in columns):
        raise ValueError(f"paths is damaged (its columns differ in length): {mend}")
    wrong = np.flatnonzero(paths.labels != label)
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"paths has other labels than the ledger in {len(wrong)} of {len(label)} samples (row {first}: {paths.labels[first]} "
            f"instead of {label[first]}): {mend}"
        )


def closest_by_class(audit: Audit, per_class: int) -> tuple[list[tuple[str, list[int]]], int]:
    """Returns per given class its words and its ``per_class`` closest rows, classes with the closest first, `CLOSE` rows in all.

    Also how many classes are left out.

    Args:
        audit: The audit.
        per_class: Rows per class.
    """
    paths = audit.paths
    if paths is None:
        return [], 0
    order = paths.order
    labels = paths.labels[order]
    classes, first = np.unique(labels, return_index=True)
    classes = classes[np.argsort(first)]
    count = min(per_class, CLOSE)
    shown = classes[: max(1, CLOSE // count)].tolist()
    parts = [(f"given {class_name(audit, c)}", order[labels == c][:count].tolist()) for c in shown]
    return parts, len(classes) - len(shown)


def closest_tile(audit: Audit, row: int, shown: Shown) -> dict[str, Any]:
    """Returns what is shown of a row: given label, what the model predicts, path length, suspicion, and the truth where known.

    Args:
        audit: The audit.
        row: Position of a sample.
        shown: Picture and texts of the sample.
    """
    assert audit.paths is not None
    paths, table = audit.paths, audit.table[row]
    steps, label, target = int(paths.steps[row]), int(paths.labels[row]), int(paths.targets[row])
    predicted = int(paths.ended[row]) if steps == 0 else label if target < 0 else None
    lines = [] if predicted is None else [f"predicted {class_name(audit, predicted)}"]
    length = f"more than {paths.max_steps}" if steps > paths.max_steps else str(steps)
    lines.append(f"path {length}" + ("" if target < 0 else f" to {class_name(audit, target)}"))
    lines += [f"suspicion {table['suspicion']:.3f}", group_word(table["group"])]
    truth = table.get("is_corrupted")
    return {
        "shown": shown, "given": class_name(audit, label), "lines": lines, "corrupted": None if truth is None else bool(truth),
        "quiet": f"#{table['index']}{source_told(table)}, margin {float(paths.margin[row]):.2f}",
    }  # fmt: skip


def told(audit: Audit) -> str:
    """Returns what the path lengths are, in one sentence or two.

    Args:
        audit: The audit.
    """
    paths = audit.paths
    if paths is None:
        return ""
    end = "another class than the given label" if (paths.targets[paths.steps != NO_PATH] < 0).all() else "the target class"
    return (
        f"Path length: the steps of {paths.step_size:g} ({paths.norm}, [0, 1] pixels) up the loss until the trained model predicts "
        f"{end}; 0: it does so already. The samples with the shortest paths are the likeliest label errors and the most ambiguous "
        "ones."
    )
