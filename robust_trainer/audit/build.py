"""An audit from the ledger's columns and the data they were written about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow

from ..evaluation.path_table import PathLengths
from ..ledger.fingerprint import check_same_data, data_fingerprint
from .boundary import check_paths
from .groups import make_groups
from .inputs import open_inputs
from .result import GROUPS, Audit
from .suspicion import judge, judge_numbers, transition_matrix

#: Fewer visits of a sample than this say little about it.
FEW_VISITS = 3
#: Of more classes the transition, which has their square of cells, is not made.
MOST_TRANSITIONS = 5_000
#: What the table takes over from the ledger as it is.
LEDGER_COLUMNS = ("distrusted", "seen", "kept", "mean_score", "ema_score", "last_score", "aum", "forgetting")


def make_audit(
    rows: Mapping[str, np.ndarray],
    run: Mapping[str, Any] | None = None,
    data: Any = None,
    *,
    threshold: float = 0.5,
    look: bool = True,
    seed: int = 0,
    paths: PathLengths | None = None,
) -> Audit:
    """The `Audit` of a ledger's ``rows`` (`SampleLedger.rows`).

    Args:
        rows: Columns (N,) of `SampleLedger.rows`.
        run: The ledger's facts.
        data: The data set of the run, row i for row i, to tell groups apart by; ``look=False`` leaves its inputs alone.
        threshold: Suspicion in (0, 1) from which a sample is flagged. A sample that carries what distrusted samples share
            (`patterns`) is raised from suspicion s to (1 + s) / 2, so it is flagged whatever training thought of it.
        look: Look at the inputs, to tell groups apart.
        seed: Of the samples that are compared, of many.
        paths: Of `path_lengths` on the run's data, row i for row i; the table gets path_length and path_margin, and the report
            shows the samples closest to the decision boundary.

    Raises:
        ValueError: For a threshold out of range, and for data or paths that are not the run's.
    """
    if not isinstance(threshold, int | float) or not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold={threshold!r} must be in (0, 1): give for instance 0.5.")
    run = dict(run or {})
    size = len(rows["index"])
    if data is not None:
        check_data(data, size, run)
    if paths is not None:
        check_paths(paths, rows["label"])
    names = _all_names(tuple(run.get("names") or ()), rows)
    classes = len(names)
    rate = run.get("settings", {}).get("noise_rate")
    judged = judge(rows, classes) if classes else judge_numbers(rows, rate if isinstance(rate, float) else None)
    suspicion, label = judged.suspicion, rows["label"].astype(np.int64)
    doubted, rival = suspicion >= threshold, rows["rival"].astype(np.int64)
    leaning = (rows["aum"] < 0) & (rows["seen"] > 0) if classes else doubted
    suggested, confidence = judged.suggested, judged.confidence
    inputs = open_inputs(data) if look else None
    groups = make_groups(inputs, label, rival, suggested, confidence, doubted, leaning, classes, seed)
    suspicion = np.where(groups.carries, (1.0 + suspicion) / 2.0, suspicion)
    flagged = (suspicion >= threshold) | groups.carries
    if classes:
        raised = groups.carries & (suggested == label) & (rival >= 0)
        suggested = np.where(raised, rival, suggested)
        confidence = np.where(raised, rows["rival_confidence"], confidence)
    columns: dict[str, Any] = {
        "index": rows["index"].astype(np.int64), "label": label, "suggested_label": suggested,
        "suggested_confidence": confidence.astype(np.float32), "suspicion": suspicion.astype(np.float32), "flagged": flagged,
        **{name: rows[name] for name in LEDGER_COLUMNS}, "group": groups.group.astype(np.int64),
    }  # fmt: skip
    if paths is not None:
        columns |= {"path_length": paths.steps.astype(np.int64), "path_margin": paths.margin.astype(np.float32)}
    if "is_corrupted" in rows:
        columns["is_corrupted"] = rows["is_corrupted"]
    kinds = {name: datasets.Value(str(np.asarray(column).dtype)) for name, column in columns.items()}
    features = datasets.Features({**kinds, "group": datasets.ClassLabel(names=list(GROUPS))})
    # `Dataset.from_dict` with features goes through the values one by one
    arrow = pyarrow.table({name: np.asarray(column) for name, column in columns.items()}).cast(features.arrow_schema)
    table = datasets.Dataset(datasets.table.InMemoryTable(arrow), info=datasets.DatasetInfo(features=features))
    pattern = None
    if groups.pattern is not None and inputs is not None and inputs.kind == "images":
        pattern = groups.pattern.difference.reshape(inputs.shape)
    seen = rows["seen"] > 0
    return Audit(
        table=table, names=names, threshold=float(threshold),
        noise_rate=float(flagged[seen].mean()) if classes and seen.any() else None,
        transition=transition_matrix(label[seen], suggested[seen], classes) if 0 < classes <= MOST_TRANSITIONS else None,
        meaning=judged.meaning, cautions=_cautions(rows, classes), groups_told=groups.told, pattern=pattern, run=run,
        paths=paths,
    )  # fmt: skip


def _cautions(rows: Mapping[str, np.ndarray], classes: int) -> tuple[str, ...]:
    """What makes the run a poor witness, in words."""
    seen = rows["seen"]
    visited, out = seen > 0, []
    if not visited.all():
        out.append(f"{int((~visited).sum()):,} of {len(seen):,} samples were never visited in training; their suspicion is 0.")
    if not visited.any():
        return tuple(out)
    if np.median(seen[visited]) < FEW_VISITS:
        out.append(f"Samples were visited {int(np.median(seen[visited]))} times (median): train for longer to know more of them.")
    if (rows["kept"] == seen).all():
        out.append("This run trained on every sample; what it has learned by heart is not doubted. A run that filters tells more.")
    if classes > 1 and float(np.mean(rows["aum"][visited] > 0)) < 0.5:
        out.append("The model preferred the given label for fewer than half of the samples: it hardly learned.")
    return tuple(out)


def check_data(data: Any, size: int, run: Mapping[str, Any]) -> None:
    """Raises a one-line ``ValueError`` where the data set is not the one that the ledger was written about.

    Args:
        data: The data set of the run, row i for row i, to tell groups apart by.
        size: Number of rows.
        run: The ledger's facts.
    """
    rows = len(data)
    known = data_fingerprint(data, run.get("label_column")) if rows == size and run.get("fingerprint") else None
    check_same_data({**run, "rows": size}, rows, known)


def _all_names(names: tuple[str, ...], rows: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The names of the classes, by number where they have none: a model may have more outputs than the data set has classes."""
    most = max(int(rows["label"].max(initial=-1)), int(rows["rival"].max(initial=-1)))
    return names + tuple(str(i) for i in range(len(names), most + 1))
