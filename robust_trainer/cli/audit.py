"""The subcommand audit: which samples of a finished run to distrust, a report, a model card, and the data set without them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import DataCollatorWithPadding

from ..audit import Audit, load_ledger, make_audit, write_audit_report, write_cleaned, write_model_card
from ..audit.load import load_curves
from ..audit.result import ACTIONS
from ..audit.summary import summarise
from ..config import check_writable
from ..data.preprocess import make_transform
from ..detectors import DETECTORS, collect_evidence, detect
from ..evaluation.path_table import PathLengths, load_paths
from ..ledger.ledger import auroc
from ..models.zoo import load_model
from ..reporting.atomic_files import remove_unfinished, write_text
from ..reporting.console import command_line, say, show
from ..reporting.locks import hold
from ..reporting.parquet_files import write_parquet
from ..reporting.results import environment, percent
from ..reporting.safe_text import plain
from ..selection.allocation import CLASS_FLOOR
from .identity import check_same_run
from .options import CorruptionOptions, DataOptions, PreprocessOptions
from .parser import make_parser, parse_for_run
from .paths import LENGTHS, is_stale
from .stages import KnownClasses, RunState, prepare

#: The detectors that judge a finished run; loss isolation needs losses of a training of its own.
AFTERWARDS = tuple(name for name in DETECTORS if name != "loss-isolation")
#: What the audit leaves in its folder.
TABLE, REPORT, CARD, FIGURES, CLEANED, DETECTED = (
    "audit.parquet", "report.html", "MODEL_CARD.md", "audit.json", "cleaned", "detectors.parquet"
)  # fmt: skip


@dataclass
class AuditOptions:
    """What `audit` looks at, and what it writes."""

    _argument_group_name = "audit"

    run: str = field(default="robust_run", metadata={"help": "Folder of a training with a ledger: its output_dir."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder to write to. Default: audit in the run's folder."})
    threshold: float = field(default=0.5, metadata={"help": "Suspicion in (0, 1) from which a sample is flagged."})
    clean: str = field(default="drop", metadata={"help": "The cleaned data set: drop flagged samples, relabel sure ones, or none."})
    relabel_confidence: float = field(default=0.8, metadata={"help": "For clean=relabel: from this confidence on, (0, 1]."})
    class_floor: int = field(
        default=CLASS_FLOOR,
        metadata={
            "help": "Where classes differ in size: so many samples of each stay in the cleaned set at least; 0: classes may go."
        },
    )
    force: bool = field(
        default=False, metadata={"help": "Write the cleaned set although a caution says that the run knows too little for it."}
    )
    per_class: int = field(default=8, metadata={"help": "Samples shown per class in the report."})
    paths: str | None = field(
        default=None,
        metadata={"help": f"File of path lengths (robust-trainer paths). Default: the run's {LENGTHS}, if any; none: without."},
    )
    look: bool = field(default=True, metadata={"help": "Look at the images or texts, to tell triggers from wrong labels."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the Python code that the run's model brings; only where its author is trusted."}
    )
    detectors: list[str] | None = field(
        default=None, metadata={"help": f"Other detectors to run on the saved model, to compare: any of {', '.join(AFTERWARDS)}."}
    )
    detector_rate: float | None = field(
        default=None, metadata={"help": "Share of bad samples that the detectors are told, (0, 1). Default: what the audit flags."}
    )


def audit(argv: Sequence[str]) -> None:
    """robust-trainer audit: writes audit.parquet, report.html, MODEL_CARD.md, audit.json and the cleaned data set.

    Args:
        argv: The words after the command's name.
    """
    about = (
        "Audit a finished training: which samples it distrusted, and the data set without them. Data and corruption are those of "
        "the run, where its results.json tells, unless given here. Detectors: "
        + "; ".join(f"{name}: {DETECTORS[name].summary}" for name in AFTERWARDS) + "."
    )  # fmt: skip
    parser = make_parser("audit", [AuditOptions, DataOptions, CorruptionOptions, PreprocessOptions], about, first="run_folder")
    kinds = (DataOptions, CorruptionOptions, PreprocessOptions)
    content, data_known, (options, data, corruption, preprocess) = parse_for_run(parser, argv, kinds)
    if options.clean not in (*ACTIONS, "none"):
        raise ValueError(f"clean={options.clean!r} is unknown: choose one of {', '.join(ACTIONS)}, none.")
    for name in options.detectors or ():
        if name not in AFTERWARDS:
            raise ValueError(f"detector {name!r} is unknown here: choose one of {', '.join(AFTERWARDS)}.")
    if options.per_class < 1:
        raise ValueError(f"per_class={options.per_class} must be at least 1: give for instance 8.")
    if options.detector_rate is not None and not 0.0 < options.detector_rate < 1.0:
        raise ValueError(f"detector_rate={options.detector_rate} must be in (0, 1): give for instance 0.1.")
    rows, facts = load_ledger(options.run)
    check_same_run(options.run, content, facts.get("id"), "the ledger")
    paths = _paths(options, facts)
    folder = Path(options.output_dir or Path(options.run) / "audit")
    check_writable(str(folder))
    hold(folder)
    known = KnownClasses(facts.get("names") or None, f"the ledger of run={options.run!r}")
    prepared = prepare(data, corruption, preprocess, known) if data_known else None
    if prepared is None and options.detectors:
        raise ValueError(f"detectors need the data, which run={options.run!r} does not tell: give --dataset.")
    result = make_audit(rows, facts, prepared and prepared.train, threshold=options.threshold, look=options.look, paths=paths)
    refusal = ""
    if prepared is not None and options.clean != "none":
        done = result.plan(options.clean, options.relabel_confidence, options.class_floor)  # complains before anything is written
        refusal = result.refusal(done, options.class_floor, options.force)
    command = command_line("audit", argv)
    written = _write(result, prepared, folder, options, content, command, data.dataset or "", refusal)
    say(_told(result))
    if options.detectors and prepared is not None:
        say(_detect(result, prepared, folder, options, rows.get("mean_probs")))
        written.append(DETECTED)
    if refusal:
        say(f"no cleaned data set: {plain(refusal, 3000)}")
    if prepared is None:
        say("no data set known, so no pictures, groups or cleaned data: give --dataset, as the training had it")
    say(f"written to {folder}: {', '.join(written)}")


def _paths(options: AuditOptions, facts: Mapping[str, Any]) -> PathLengths | None:
    """The path lengths to show: of the file given, else of the run, unless its model is another by now."""
    if options.paths is not None:
        paths = None if options.paths.lower() == "none" else load_paths(options.paths)
        if paths is not None and paths.run is not None and paths.run != facts.get("id"):
            raise ValueError(
                f"paths={options.paths!r} is of run {paths.run}, the ledger of run={options.run!r} of run "
                f"{facts.get('id', 'unknown')}: give the path lengths of the same run, or --paths none."
            )
        return paths
    path = Path(options.run) / LENGTHS
    if not path.is_file():
        return None
    if is_stale(Path(options.run)):
        say(f"{path} is of another model than the run's and is left out: robust-trainer paths {options.run} makes it anew")
        return None
    return load_paths(path)


def _write(
    result: Audit, prepared: RunState | None, folder: Path, options: AuditOptions, content: Any, command: str, source: str,
    refusal: str,
) -> list[str]:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    remove_unfinished(folder / CLEANED)
    train = None if prepared is None else prepared.train
    written = [TABLE, REPORT, CARD, FIGURES]
    result.to_parquet(folder / TABLE)
    curves = load_curves(options.run) if content is None else None
    write_audit_report(
        folder / REPORT, result, data=train, content=content, curves=curves, command=command, per_class=options.per_class
    )
    tag = "text-classification" if prepared is not None and prepared.text else None
    write_model_card(folder / CARD, result, content=content, command=command, pipeline_tag=tag)
    write_text(folder / FIGURES, json.dumps(_figures(result, command), indent=2, default=str) + "\n")
    if train is not None and prepared is not None and options.clean != "none" and not refusal:
        write_cleaned(
            folder / CLEANED, result, train, options.clean, options.relabel_confidence, test=prepared.test,
            source=source.rstrip("/").rpartition("/")[2], command=command, class_floor=options.class_floor, force=options.force,
        )  # fmt: skip
        written.append(f"{CLEANED}/")
    else:
        _remove(folder / CLEANED, ("train.parquet", "test.parquet", "removed.csv", "README.md"))
    if not options.detectors:
        _remove(folder, (DETECTED,))
    return written


def _remove(folder: Path, names: Sequence[str]) -> None:
    """Removes what an earlier audit left and this one does not write, lest the two be taken for one."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if folder.name == CLEANED and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _figures(result: Audit, command: str) -> dict[str, Any]:
    summary = summarise(result)
    return {
        "command": command, "samples": summary.n, "flagged": summary.flagged, "threshold": result.threshold,
        "noise_rate": result.noise_rate, "groups": {name: n for name, n, _ in summary.groups}, "groups_told": result.groups_told,
        "cautions": list(result.cautions), "cautions_that_forbid_cleaning": list(result.blocked),
        "known_truth": dict(summary.known), "classes": list(result.names),
        "paths": None if result.paths is None else {"step_size": result.paths.step_size, "norm": result.paths.norm,
                                                   "max_steps": result.paths.max_steps},
        "transition": None if result.transition is None else np.round(result.transition, 5).tolist(),
        "run": dict(result.run), "environment": environment(),
    }  # fmt: skip


def _told(result: Audit) -> str:
    summary = summarise(result)
    rows = [[name, value] for name, value in (*summary.facts, *summary.known)]
    rows += [[name, f"{n} ({share} %)"] for name, n, share in summary.groups]
    return "\n".join([show(["figure", "value"], rows), result.groups_told, *(plain(caution, 2000) for caution in result.cautions)])


def _detect(audited: Audit, prepared: RunState, folder: Path, options: AuditOptions, probs: np.ndarray | None) -> str:
    """Runs the detectors on the saved model, writes their scores, and returns a table of how they agree with the audit."""
    model, processor = load_model(options.run, options.trust_remote_code)
    data = make_transform(model, processor).apply_to(prepared.train)
    evidence = collect_evidence(model, data, collate=DataCollatorWithPadding(processor) if prepared.text else None)
    evidence = evidence if probs is None else replace(evidence, probs=probs)
    flagged = audited.column("flagged").astype(bool)
    rate = options.detector_rate if options.detector_rate is not None else float(np.clip(flagged.mean(), 0.001, 0.999))
    truth = torch.from_numpy(audited.column("is_corrupted").astype(bool)) if "is_corrupted" in audited.table.column_names else None
    columns: dict[str, Any] = {"index": audited.column("index"), "suspicion": audited.column("suspicion"), "flagged": flagged}
    rows = [_line("audit", audited.column("suspicion"), flagged, flagged, truth)]
    for name in options.detectors or ():
        result = detect(name, evidence, rate=rate)
        columns |= {f"{name}_score": result.scores, f"{name}_flagged": result.flagged}
        rows.append(_line(name, result.scores, result.flagged, flagged, truth))
    write_parquet(datasets.Dataset.from_dict(columns), folder / DETECTED)
    heading = ["detector", "flagged", "of these by the audit %"]
    return show(heading + (["precision %", "recall %", "AUROC %"] if truth is not None else []), rows)


def _line(name: str, scores: np.ndarray, flagged: np.ndarray, ours: np.ndarray, truth: torch.Tensor | None) -> list[str]:
    row = [name, str(int(flagged.sum())), percent(float((flagged & ours).sum() / max(flagged.sum(), 1)))]
    if truth is None:
        return row
    hits = float((truth.numpy() & flagged).sum())
    area = auroc(torch.from_numpy(np.asarray(scores, dtype=np.float64)), truth)
    return [*row, percent(hits / max(flagged.sum(), 1)), percent(hits / max(int(truth.sum()), 1)), percent(area)]
