"""The audit's report: one HTML file that needs no network and no other file, of at most 5 MB, safe on data that nobody vetted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..reporting.atomic_files import write_text
from ..reporting.figures import drawable
from ..reporting.html import figures, template
from ..reporting.results import environment as this_environment
from ..reporting.results import table
from ..reporting.safe_text import plain
from .boundary import closest_by_class, closest_tile, told
from .likeness import alike_sections, outlier_section
from .pictures import NAMED, cells, heat_map, histogram, path_histogram, pattern_picture
from .result import GROUPS, Audit, group_word, source_told
from .samples import Shown, show
from .summary import CLASSES, FILTER, NAME, VALUE, Summary, class_name, settings, summarise, versions

#: The most classes of which the transition is a table; of more it is a picture.
TABLE_CLASSES = 20
#: The most samples in the grid.
SAMPLES = 300
_COLUMNS = ("index", "suggested_label", "suggested_confidence", "suspicion", "group")
#: More of them, of an audit of a training and of one without.
_TRAINED = ("seen", "kept", "aum", "forgetting")
_JUDGED = ("predicted_label", "neighbour_support", "label_probability", "outlier")


def write_audit_report(
    path: str | Path, audit: Audit, *, data: datasets.Dataset | None = None, content: Mapping[str, Any] | None = None,
    curves: Sequence[Mapping[str, float]] | None = None, command: str = "", environment: Mapping[str, Any] | None = None,
    per_class: int = 8, title: str = "Audit of the training data",
) -> Path:  # fmt: skip
    """Writes an audit as one HTML file, whole or not at all, and returns its path.

    Args:
        path: File to write.
        audit: What to report.
        data: The raw data set, row i for row i of the table, for pictures and texts; None: the grid has numbers alone.
        content: The run's `results.results`.
        curves: Of `results.curves`, for runs without.
        command: What made it, as it was typed; default the content's.
        environment: Default the content's, else this one.
        per_class: Samples shown per given class, most suspicious first, SAMPLES in all. Names, texts and images may be hostile:
            they are escaped, cut and decoded with limits (`samples`).
        title: Heading of the page.

    Raises:
        ValueError: For per_class < 1 and for data of another length.
    """
    if per_class < 1:
        raise ValueError(f"per_class={per_class} must be at least 1: give for instance 8.")
    summary = summarise(audit)
    runs = [{**run, "method": drawable(plain(run["method"], NAME))} for run in _runs(audit, content, curves)]
    heading, rows = table(content["runs"]) if content is not None else ([], [])
    environment = environment or (content or {}).get("environment") or this_environment()
    truth = audit.column("is_corrupted").astype(bool) if summary.known else None
    parts, left_out = _grid(audit, summary, per_class)
    near, near_left = closest_by_class(audit, per_class)
    alike, alike_left = alike_sections(audit.likeness, per_class)
    apart = outlier_section(audit.likeness, per_class)
    rows_near, rows_alike, rows_apart, rows_grid = ([row for _, part in p for row in part] for p in (near, alike, apart, parts))
    shown = iter(show(data, [*rows_near, *rows_alike, *rows_apart, *rows_grid], len(audit)))
    closest = _sections(near, [closest_tile(audit, row, sample) for row, sample in zip(rows_near, shown)])
    alike_shown, apart_shown, grid = (
        _sections(part, _tiles(audit, rows, [next(shown) for _ in rows]))
        for part, rows in ((alike, rows_alike), (apart, rows_apart), (parts, rows_grid))
    )
    left_out["pictures"] = sum(
        tile["shown"].left_out for part in (*closest, *alike_shown, *apart_shown, *grid) for tile in part["tiles"]
    )
    page = template("audit.html").render(
        title=plain(title, 200), audit=audit, told=plain(audit.groups_told, 2 * VALUE), s=summary, groups=_groups(audit, summary),
        order={name: i for i, name in enumerate(GROUPS)},
        command=plain(command or (content or {}).get("command", ""), 4 * VALUE), settings=settings(audit, content),
        heading=heading, rows=[[plain(cell, NAME) for cell in row] for row in rows], figures=figures(runs),
        filter=FILTER if "distrusted" in heading else "", numbered=audit.transition is not None and len(audit.transition) > NAMED,
        histogram=histogram(audit.column("suspicion"), audit.threshold, truth), classes=summary.classes[:CLASSES],
        transition=_transition(audit), pattern=pattern_picture(audit.pattern), grid=grid, left_out=left_out, closest=closest,
        closest_left=near_left, closest_told=told(audit), closest_histogram=_path_histogram(audit, truth),
        environment=versions(environment), alike=alike_shown, alike_left=alike_left, apart=apart_shown,
    )  # fmt: skip
    return write_text(path, page)


def _runs(audit: Audit, content: Mapping[str, Any] | None, curves: Sequence[Mapping[str, float]] | None) -> list[dict[str, Any]]:
    if content is not None:
        return [dict(run) for run in content["runs"]]
    return [{"method": str(audit.run.get("method", "this run")), "curves": curves}] if curves else []


def _groups(audit: Audit, summary: Summary) -> tuple[str, ...]:
    """The groups that classes are counted by: without a training those alone that have samples."""
    return tuple(name for name, n, _ in summary.groups[1:] if n or audit.trained)


def _transition(audit: Audit) -> dict[str, Any] | None:
    """Names, and the cells of a table or a picture; None where there is no transition or nothing in it."""
    matrix = audit.transition
    if matrix is None or len(matrix) < 2:
        return None
    names = [class_name(audit, i) for i in range(len(matrix))]
    if len(matrix) > TABLE_CLASSES:
        return {"names": names, "uri": heat_map(matrix, names)}
    short = [plain(name, 14) for name in names]
    return {"names": names, "uri": "", "short": short, "upright": max(map(len, short)) <= 4, "rows": cells(matrix)}


def _path_histogram(audit: Audit, truth: np.ndarray | None) -> str:
    if audit.paths is None or not len(rows := audit.paths.order):
        return ""
    return path_histogram(audit.paths.steps[rows], audit.paths.max_steps, None if truth is None else truth[rows])


def _grid(audit: Audit, summary: Summary, per_class: int) -> tuple[list[tuple[str, list[int]]], dict[str, int]]:
    """The samples to show by given class, and how many classes are left out."""
    label, order = audit.column("label"), audit.flagged
    parts = []
    if len(order) == 0:
        top = np.argsort(-audit.column("suspicion"), kind="stable")[: min(per_class, SAMPLES)]
        parts = [("None is flagged; these are the highest", top)]
    elif not summary.classes:
        parts = [("", order[: min(3 * per_class, SAMPLES)])]
    else:
        classes_shown = [(c.number, f"given {c.name}: {c.flagged} of {c.n} flagged") for c in summary.classes if c.flagged]
        if (label[order] < 0).any():
            classes_shown.append((-1, "given no class"))
        labels = label[order]
        most = max(1, SAMPLES // per_class)
        parts = [(words, order[labels == c][: min(per_class, SAMPLES)]) for c, words in classes_shown[:most]]
    classes = sum(c.flagged > 0 for c in summary.classes)
    return [(words, [int(i) for i in part]) for words, part in parts], {"classes": max(classes - len(parts), 0)}


def _sections(parts: Sequence[tuple[str, list[int]]], tiles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tiles of each part, with its words."""
    out, start = [], 0
    for words, part in parts:
        out.append({"words": words, "tiles": tiles[start : start + len(part)]})
        start += len(part)
    return out


def _tiles(audit: Audit, positions: Sequence[int], shown: Sequence[Shown]) -> list[dict[str, Any]]:
    part = Audit(audit.table.select(positions), audit.names, audit.threshold)
    names = [*_COLUMNS, *(_TRAINED if audit.trained else (n for n in _JUDGED if n in part.table.column_names))]
    names += ["source_row"] if "source_row" in part.table.column_names else []
    columns = {name: part.column(name).tolist() for name in names}
    label = part.column("label").tolist()
    truth = part.column("is_corrupted").tolist() if "is_corrupted" in audit.table.column_names else [None] * len(label)
    out = []
    for i, sample in enumerate(shown):
        row = {name: values[i] for name, values in columns.items()}
        lines = [f"suggested {class_name(audit, row['suggested_label'])} ({row['suggested_confidence']:.2f})"]
        lines = lines if row["suggested_label"] >= 0 else []
        lines += [f"suspicion {row['suspicion']:.3f}", group_word(row["group"])]
        label_name = class_name(audit, label[i]) if label[i] >= 0 else sample.target
        out.append(
            {
                "shown": sample, "given": label_name, "lines": lines, "corrupted": None if truth[i] is None else bool(truth[i]),
                "quiet": f"#{row['index']}{source_told(row)}, "
                + (_trained(row, label[i] >= 0) if audit.trained else _judged(audit, row)),
            }
        )  # fmt: skip
    return out


def _trained(row: Mapping[str, Any], classed: bool) -> str:
    """What a training saw of a sample."""
    learned = ", never learned" if row["forgetting"] < 0 else f", forgotten {row['forgetting']}x"
    margin = "" if not np.isfinite(row["aum"]) else f", AUM {row['aum']:.2f}"
    return f"kept {row['kept']} of {row['seen']}{margin}{learned if classed else ''}"


def _judged(audit: Audit, row: Mapping[str, Any]) -> str:
    """What the witnesses of an audit without a training say of a sample."""
    predicted = class_name(audit, row["predicted_label"])
    if "label_probability" in row:
        return f"given probabilities: {predicted}, label {row['label_probability']:.2f}"
    support = row["neighbour_support"]
    near = f", {100 * support:.0f} % of its neighbours agree" if np.isfinite(support) else ""
    return f"linear model: {predicted}{near}"
