"""The subcommand anomaly: fits a detector to a table without labels, or loads one, and scores the rows."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from ..anomaly import DETECTORS, AnomalyDetector, load_detector, make_detector, save_detector
from ..anomaly.plots import measure, plot_scores
from ..anomaly.table_files import is_number
from ..anomaly.tables import LABELS, AnomalyTable, read_table
from ..reporting.atomic_files import remove_unfinished, replacing, write_text
from ..reporting.console import command_line, say, show
from ..reporting.parquet_files import RUN_KEY
from ..reporting.results import environment, percent
from ..reporting.safe_text import plain
from .outputs import OverwriteOptions, check_output
from .parser import make_parser, parse

#: What the command leaves in its folder.
SCORES, FITTED, FIGURES, CURVES = "scores.parquet", "detector", "anomaly.json", "curves.png"
#: Options that decide how a detector is fitted, and mean nothing for one that is loaded.
FITTING = ("detector", "contamination", "epochs", "seed", "test_data")
#: Rows that are printed.
SHOWN = 10


@dataclass
class AnomalyOptions:
    """What `anomaly` reads, which detector it fits, and where it writes."""

    _argument_group_name = "anomaly detection"

    data: str | None = field(
        default=None, metadata={"help": "Table of numbers: .csv, .tsv, .parquet, or .npz with X (n, d) and, where known, y."}
    )
    label_column: str = field(
        default="auto",
        metadata={"help": "Column of the truth, 0 normal and 1 abnormal, for comparison alone; none; or auto: a column of 0 and 1 "
                  f"named {', '.join(LABELS)}."},
    )  # fmt: skip
    exclude: list[str] | None = field(default=None, metadata={"help": "Columns to leave out."})
    id_column: str | None = field(default=None, metadata={"help": "Column copied to the scores; no detector sees it."})
    detector: str = field(default="rca", metadata={"help": f"One of {', '.join(DETECTORS)}."})
    contamination: str = field(
        default="0.1", metadata={"help": "Share of abnormal rows, (0, 0.5]: left out in training, beyond the threshold; or auto."}
    )
    epochs: int | None = field(default=None, metadata={"help": "Passes over the rows. Default: the detector's own."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, batches and ensemble."})
    test_data: str | None = field(default=None, metadata={"help": "Another table, to score instead; the detector is fit to DATA."})
    load: str | None = field(default=None, metadata={"help": "Folder of a saved detector to score DATA with, instead of fitting."})
    output_dir: str = field(default="robust_anomaly", metadata={"help": "Folder to write to."})


def anomaly(argv: Sequence[str]) -> None:
    """robust-trainer anomaly: writes scores.parquet, curves.png, anomaly.json and the fitted detector.

    Args:
        argv: The words after the command's name.
    """
    about = "Find abnormal rows in a table, by a detector that is fitted to the table itself. Detectors: "
    about += "; ".join(f"{name}: {variant.summary}" for name, variant in DETECTORS.items()) + "."
    parser = make_parser("anomaly", [AnomalyOptions, OverwriteOptions], about, first="DATA")
    argv, typed = list(argv), list(argv)
    if argv and not argv[0].startswith("-"):
        argv = [f"--data={argv[0]}", *argv[1:]]
    options, output = parse(parser, argv)
    if options.data is None:
        raise ValueError("data is missing: give a table, as in robust-trainer anomaly DATA.csv.")
    if options.load is not None:
        words = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
        for name in (n for n in FITTING if n in words):
            raise ValueError(f"{name}={getattr(options, name)!r} has no effect with load={options.load!r}: leave it out.")
        if Path(options.load).resolve().parent == Path(options.output_dir).resolve():
            raise ValueError(f"output_dir={options.output_dir!r} holds the run that load={options.load!r} is of: give another one.")
    check_output(options.output_dir, (FIGURES,), output.overwrite)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # on networks this small a second thread costs more than it brings
    started = time.perf_counter()
    detector, table = _loaded(options) if options.load is not None else _fitted(options)
    seconds = time.perf_counter() - started
    trained_on_these = options.load is None and options.test_data is None
    scores = detector.decision_scores_ if trained_on_these else detector.decision_function(table.features)
    columns = {
        "score": scores, "predicted": (scores > detector.threshold_).astype(np.int64),
        "probability": detector.predict_proba(table.features)[:, 1],
    }  # fmt: skip
    content = {
        "command": command_line("anomaly", typed),
        **_content(detector, table, columns, options),
        "seconds": round(seconds, 3),
    }
    written = _write(Path(options.output_dir), detector, table, columns, content)
    say(show(["figure", "value"], _figures(content)))
    say(_most(columns, table))
    say(f"written to {options.output_dir}: {', '.join(written)}")


# ---- the detector ----------------------------------------------------------------------------------------------------------


def _fitted(options: AnomalyOptions) -> tuple[AnomalyDetector, AnomalyTable]:
    """A detector fitted to the rows of data, and the table to score: the same one, or test_data."""
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"seed={options.seed} must be a whole number in [0, 2**32).")
    share = float(options.contamination) if is_number(options.contamination) else options.contamination  # the detector complains
    settings: dict[str, Any] = {"contamination": share, "random_state": options.seed}
    if options.epochs is not None:
        settings["epochs"] = options.epochs
    detector = make_detector(options.detector, **settings)
    table = _read(options, str(options.data))
    scored = table
    if options.test_data is not None:  # read before the training, so that its mistakes are told before it
        scored = _read(options, options.test_data, table.names if table.named else len(table.names))
    return detector.fit(table.features), scored


def _loaded(options: AnomalyOptions) -> tuple[AnomalyDetector, AnomalyTable]:
    """A saved detector, and the table to score."""
    detector = load_detector(str(options.load))
    return detector, _read(options, str(options.data), getattr(detector, "feature_names_in_", detector.n_features_in_))


def _read(options: AnomalyOptions, path: str, columns: Any = None) -> AnomalyTable:
    table = read_table(
        path, label_column=options.label_column, exclude=options.exclude or (), id_column=options.id_column, columns=columns
    )
    for note in table.notes:
        say(f"{path}: {note}")
    return table


# ---- what is told ----------------------------------------------------------------------------------------------------------


def _content(
    detector: AnomalyDetector, table: AnomalyTable, columns: Mapping[str, np.ndarray], options: AnomalyOptions
) -> dict[str, Any]:
    """What anomaly.json holds; shares are fractions."""
    missing = np.isnan(table.rows)
    data = {
        "file": options.test_data or options.data, "rows": len(table.rows), "columns": table.names,
        "cells_missing": int(missing.sum()), "rows_with_missing": int(missing.any(1).sum()), "label_column": table.label_column,
        "abnormal": None if table.truth is None else int(table.truth.sum()), "notes": list(table.notes),
    }  # fmt: skip
    unused = FITTING if options.load is not None else ()
    return {
        "options": {name: value for name, value in asdict(options).items() if name not in unused},
        "detector": options.detector if options.load is None else type(detector).__name__,
        "settings": {name: v.item() if isinstance(v, np.generic) else v for name, v in detector.get_params().items()},
        "data": data, "n": len(table.rows), "fitted_to": len(detector.decision_scores_), "contamination": detector.contamination_,
        "threshold": detector.threshold_, "flagged": int(columns["predicted"].sum()),
        "measured": measure(table.truth, columns["score"], columns["predicted"]), "environment": environment(),
    }  # fmt: skip


def _figures(content: Mapping[str, Any]) -> list[list[str]]:
    data, n = content["data"], content["n"]
    flagged = f"{content['flagged']} ({percent(content['flagged'] / n)} %)"
    rows = [
        ["rows", str(n)], ["columns", str(len(data["columns"]))], ["detector", content["detector"]],
        ["epochs", str(content["settings"]["epochs"])], ["threshold", f"{content['threshold']:.5g}"], ["abnormal", flagged],
    ]  # fmt: skip
    if data["abnormal"] is not None:
        rows.append([f"abnormal by {plain(data['label_column'], 30)!r}", f"{data['abnormal']} ({percent(data['abnormal'] / n)} %)"])
    names = {"auc": "AUC", "average_precision": "average precision", "precision": "precision", "recall": "recall"}
    return rows + [[f"{names[key]} %", percent(value)] for key, value in (content["measured"] or {}).items()]


def _most(columns: Mapping[str, np.ndarray], table: AnomalyTable) -> str:
    """The most abnormal rows as text, the first of equals first."""
    order = np.argsort(-columns["score"], kind="stable")[:SHOWN]
    heading = ["row", *(["id"] if table.ids is not None else []), "score", "probability", "predicted"]
    rows = []
    for row in order.tolist():
        ids = [] if table.ids is None else [plain(table.ids[row].as_py(), 40)]
        line = [
            str(row),
            *ids,
            f"{columns['score'][row]:.5g}",
            f"{columns['probability'][row]:.3f}",
            str(columns["predicted"][row]),
        ]
        rows.append(line if table.truth is None else [*line, str(table.truth[row])])
    return f"the {len(rows)} most abnormal rows\n" + show(heading + (["truth"] if table.truth is not None else []), rows)


def _write(
    folder: Path, detector: AnomalyDetector, table: AnomalyTable, scored: Mapping[str, np.ndarray], content: Mapping[str, Any]
) -> list[str]:
    """Writes what the command leaves, each file whole or not at all, and returns its names."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    (folder / FIGURES).unlink(missing_ok=True)  # an earlier command's figures are not of these scores
    columns = {"row": np.arange(len(table.rows)), "id": table.ids, **scored, "truth": table.truth}
    facts = {key: content[key] for key in ("command", "detector", "settings", "data", "threshold")}
    scores = pa.table({name: values for name, values in columns.items() if values is not None})
    plot_scores(
        scored["score"], detector.threshold_, folder / CURVES, truth=table.truth, name=content["detector"],
        title=plain(Path(content["data"]["file"]).name, 60),
    )  # fmt: skip
    with replacing(folder / SCORES) as new:
        pyarrow.parquet.write_table(scores.replace_schema_metadata({RUN_KEY: json.dumps(facts, default=str)}), new)
    fitted = content["options"]["load"] is None
    if fitted:
        save_detector(detector, folder / FITTED)
    else:
        shutil.rmtree(folder / FITTED, ignore_errors=True)  # an earlier command's
    write_text(folder / FIGURES, json.dumps(content, indent=2, default=str) + "\n")
    return [SCORES, CURVES, FIGURES, *([f"{FITTED}/"] if fitted else [])]
