"""An audit from the ledger's columns and the data they were written about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import datasets
import numpy as np

from ..data.columns import source_rows
from ..evaluation.path_table import PathLengths
from ..ledger.fingerprint import check_same_data, data_fingerprint
from .boundary import check_paths
from .given_labels import class_numbers, label_column
from .groups import TRIGGERED, Groups, make_groups
from .inputs import open_inputs
from .result import Audit, Caution
from .suspicion import has_verdict, judge, judge_numbers, transition_matrix, with_verdict
from .table import class_cautions, make_table

#: Fewer visits of a sample than this say little about it.
FEW_VISITS = 3
#: Of more classes the transition, which has their square of cells, is not made.
MOST_TRANSITIONS = 5_000
#: Where more than this share of the samples was never visited, nothing is cleaned.
UNSEEN_SHARE = 0.01
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
    rows = _with_labels(rows, data, run)
    names = _all_names(tuple(run.get("names") or ()), rows)
    classes = len(names)
    given = run.get("settings", {}).get("noise_rate")
    judged = judge(rows, classes) if classes else judge_numbers(rows, given if isinstance(given, float) else None)
    if classes and has_verdict(rows):
        share, low, high = run.get("label_rate", (1.0, 0.0, 1.0))
        # an interval that reaches down to 0 shows no wrong label to be there: no more than the share itself
        judged = with_verdict(judged, rows, float(high if low > 0 else share))
    suspicion, label = judged.suspicion, rows["label"].astype(np.int64)
    known = rows["seen"] > 0
    if classes and has_verdict(rows):
        known |= rows["suggested"] >= 0  # judged by its features, whether training reached it or not
    doubted, rival = suspicion >= threshold, rows["rival"].astype(np.int64)
    leaning = (rows["aum"] < 0) & (rows["seen"] > 0) if classes else doubted
    if classes and has_verdict(rows):
        told = (rows["label_wrong"] >= 0.5) & (rows["suggested"] >= 0)
        leaning, rival = leaning | told, np.where(told, rows["suggested"].astype(np.int64), rival)
    suggested, confidence = judged.suggested, judged.confidence
    inputs = open_inputs(data) if look else None
    groups = make_groups(inputs, label, rival, suggested, confidence, doubted, leaning, classes, seed, known)
    if classes and has_verdict(rows):
        groups = _with_carriers(groups, rows["carrier"].astype(bool))
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
    if (source := source_rows(data)) is not None:
        columns["source_row"] = source
    if paths is not None:
        columns |= {"path_length": paths.steps.astype(np.int64), "path_margin": paths.margin.astype(np.float32)}
    if "is_corrupted" in rows:
        columns["is_corrupted"] = rows["is_corrupted"]
    table = make_table(columns)
    cautions = (*_cautions(rows, classes, flagged), *class_cautions(label, flagged, names), *filter(None, [judged.note]))
    pattern = None
    if groups.pattern is not None and inputs is not None and inputs.kind == "images":
        pattern = groups.pattern.difference.reshape(inputs.shape)
    rate, interval = float(flagged[known].mean()) if classes and known.any() else None, None
    if classes and has_verdict(rows) and "label_rate" in run:
        rate, *ends = (round(float(end), 6) for end in run["label_rate"])
        interval = (ends[0], ends[1])
    return Audit(
        table=table, names=names, threshold=float(threshold), noise_rate=rate, noise_interval=interval,
        transition=transition_matrix(label[known], suggested[known], classes) if 0 < classes <= MOST_TRANSITIONS else None,
        meaning=judged.meaning, cautions=cautions, groups_told=groups.told, pattern=pattern, run=run,
        paths=paths,
    )  # fmt: skip


def _with_carriers(groups: Groups, carriers: np.ndarray) -> Groups:
    """The groups with the rows (N,) that the run found to carry a pattern when it judged the labels."""
    if not carriers.any():
        return groups
    told = f"{groups.told} {int(carriers.sum()):,} share a pattern by the run's own verdict on the labels (triggered)."
    group = np.where(carriers, TRIGGERED, groups.group)
    return replace(groups, group=group, carries=groups.carries | carriers, told=told)


def _with_labels(rows: Mapping[str, np.ndarray], data: Any, run: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    """The rows with their labels where the ledger has none because training never saw the sample.

    They are those of the data set's label column or, where that is unknown, of the column that agrees with all labels that are
    known. Of a sample that the run has judged the label is known where it would be trained as given.
    """
    label, unseen = rows["label"].astype(np.int64), (rows["seen"] == 0) & (rows["label"] < 0)
    if not unseen.any():
        return rows
    if has_verdict(rows) and "target" in rows:
        replaced = (rows["label_wrong"] >= 0.5) & (rows["target"] == rows["suggested"]) & ~rows["carrier"].astype(bool)
        label = np.where(unseen & (rows["target"] >= 0) & ~replaced, rows["target"], label)
    if (label >= 0).any() and isinstance(data, datasets.Dataset):
        names = tuple(run.get("names") or ())
        given = class_numbers(data, label_column(data, (run.get("label_column"),), label, names), names)
        label = label if given is None else np.where(unseen, given, label)
    return {**rows, "label": label.astype(rows["label"].dtype)}


def _cautions(rows: Mapping[str, np.ndarray], classes: int, flagged: np.ndarray | None = None) -> tuple[Caution, ...]:
    """What makes the run a poor witness, in words."""
    seen = rows["seen"]
    visited, out, judged = seen > 0, list[Caution](), has_verdict(rows)
    flagged = np.zeros(len(seen), dtype=bool) if flagged is None else flagged
    if not visited.all():
        known = "their features alone tell of their labels" if judged else "nothing is known of them"
        words = f"{int((~visited).sum()):,} of {len(seen):,} samples were never visited in training: {known}."
        out.append(Caution(words) if judged or (~visited).mean() <= UNSEEN_SHARE else Caution.blocking(words))
    if not visited.any():
        return tuple(out)
    if np.median(seen[visited]) < FEW_VISITS:
        words = f"Samples were visited {int(np.median(seen[visited]))} times (median): train for longer to know more of them."
        out.append(Caution(words))
    if (rows["kept"] == seen).all() and not judged:
        words = "This run trained on every sample; what it has learned by heart is not doubted. A run that filters tells more."
        out.append(Caution(words))
    trusted = visited & ~flagged
    if flagged[visited].mean() > 0.5:
        words = f"More than half of the samples, {int(flagged[visited].sum()):,}, are flagged: the run cannot be relied on."
        out.append(Caution.blocking(words))
    elif classes > 1 and float(np.mean(rows["aum"][trusted] > 0)) < 0.5:
        words = "Of the samples that are not flagged the model preferred the given label for fewer than half: it hardly learned."
        more = " What is flagged was judged by features before." if judged else ""
        out.append(Caution(words + more) if judged else Caution.blocking(words))
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
    if has_verdict(rows):
        most = max(most, int(rows["suggested"].max(initial=-1)))
    return names + tuple(str(i) for i in range(len(names), most + 1))
