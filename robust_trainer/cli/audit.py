"""The command audit: which samples of a finished run to distrust, a report, a model card, and the data set without them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import DataCollatorWithPadding

from ..audit import Audit, load_ledger, make_audit, write_model_card
from ..audit.load import LEDGER_FILE, ledger_file, load_curves
from ..config import check_writable
from ..data.columns import source_rows
from ..data.load import holds_data
from ..data.preprocess import make_transform
from ..data.splits import TEST
from ..detectors import DETECTORS, collect_evidence, detect
from ..evaluation.path_table import PathLengths, load_paths
from ..ledger.ledger import auroc
from ..models.zoo import load_model
from ..reporting.console import command_line, say, show
from ..reporting.locks import hold
from ..reporting.parquet_files import write_parquet
from ..reporting.results import percent
from ..reporting.safe_text import plain
from .audit_dataset import EPILOG, audit_data, is_of_data
from .audit_files import CLEANED, FlagOptions, next_steps, remove, told, write_audit
from .identity import check_same_run
from .options import CorruptionOptions, DataOptions, PreprocessOptions
from .parser import make_parser, parse_for_run
from .paths import LENGTHS, is_stale
from .stages import KnownClasses, RunState, prepare

#: The detectors that judge a finished run by itself: no clean rows, and no losses of a training of its own as loss isolation has.
AFTERWARDS = tuple(name for name, row in DETECTORS.items() if row.clean_rows is None and "losses" not in row.needs)
#: These are of images alone.
OF_IMAGES = tuple(name for name in AFTERWARDS if "consistency" in DETECTORS[name].needs)
#: What the audit of a run leaves in its folder, beside what every audit does.
CARD, DETECTED = "MODEL_CARD.md", "detectors.parquet"


@dataclass
class AuditOptions(FlagOptions):
    """What `audit` looks at, and what it writes."""

    run: str = field(default="robust_run", metadata={"help": "Folder of a training with a ledger: its output_dir."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder to write to. Default: audit in the run's folder."})
    paths: str | None = field(
        default=None,
        metadata={"help": f"File of path lengths (robust-trainer paths). Default: the run's {LENGTHS}, if any; none: without."},
    )
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
    """robust-trainer audit: of a run, or with --model, --features or --pred_probs of a data set, without any training.

    Writes audit.parquet, report.html, audit.json and the cleaned data set; of a run MODEL_CARD.md too.

    Args:
        argv: The words after the command's name.
    """
    if is_of_data(argv):
        return audit_data(argv)
    about = (
        "Audit a finished training: which samples it distrusted, and the data set without them. Data and corruption are those of "
        "the run, where its results.json tells, unless given here. Detectors: "
        + "; ".join(f"{name}: {DETECTORS[name].summary}" for name in AFTERWARDS) + "."
    )  # fmt: skip
    parser = make_parser("audit", [AuditOptions, DataOptions, CorruptionOptions, PreprocessOptions], about, first="run_folder")
    kinds = (DataOptions, CorruptionOptions, PreprocessOptions)
    parser.epilog = EPILOG
    content, data_known, (options, data, corruption, preprocess) = parse_for_run(parser, argv, kinds)
    options.check()
    for name in options.detectors or ():
        if name not in AFTERWARDS:
            raise ValueError(f"detector {name!r} is unknown here: choose one of {', '.join(AFTERWARDS)}.")
    if options.detector_rate is not None and not 0.0 < options.detector_rate < 1.0:
        raise ValueError(f"detector_rate={options.detector_rate} must be in (0, 1): give for instance 0.1.")
    if data.dataset is not None and not Path(options.run).is_dir():
        raise ValueError(
            f"run={options.run!r} is no folder: give the output_dir of a training, or --model, --features or --pred_probs to audit "
            "the data set without one."
        )
    try:
        rows, facts = load_ledger(options.run)
    except ValueError:
        if Path(options.run).name != LEDGER_FILE and holds_data(options.run):
            words = shlex.join(["--dataset", options.run, "--model", "MODEL"])
            raise ValueError(
                f"run={options.run!r} is a data set, no training: give it by --dataset, and --model, --features or --pred_probs to "
                f"judge it by: robust-trainer audit {words}"
            ) from None
        raise
    check_same_run(options.run, content, facts.get("id"), "the ledger")
    paths = _paths(options, facts)
    folder = Path(options.output_dir or Path(options.run) / "audit")
    check_writable(str(folder))
    hold(folder)
    known = KnownClasses(facts.get("names") or None, f"the ledger of run={options.run!r}")
    prepared = prepare(data, corruption, preprocess, known) if data_known else None
    if prepared is None and options.detectors:
        raise ValueError(f"detectors need the data, which run={options.run!r} does not tell: give --dataset.")
    images = [name for name in options.detectors or () if name in OF_IMAGES]
    if prepared is not None and prepared.kind != "image" and images:
        raise ValueError(f"detector {images[0]!r} judges images, and these data are of the kind {prepared.kind}: leave it out.")
    result = make_audit(rows, facts, prepared and prepared.train, threshold=options.threshold, look=options.look, paths=paths)
    refusal = ""
    if prepared is not None and options.clean != "none":
        refusal = options.refusal(result)  # complains before anything is written
    command = command_line("audit", argv)
    written = _write(result, prepared, folder, options, content, command, data.dataset or "", refusal)
    say(told(result))
    if (place := ledger_file(options.run).parent) != Path(options.run):
        say(f"{options.run} holds no finished run, the ledger is that of its newest checkpoint, {place.name}")
    if options.detectors and prepared is not None:
        say(_detect(result, prepared, folder, options, rows.get("mean_probs")))
        written.append(DETECTED)
    if refusal:
        say(f"no cleaned data set: {plain(refusal, 3000)}")
    if prepared is None:
        say("no data set known, so no pictures, groups or cleaned data: give --dataset, as the training had it")
    model = dict((content or {}).get("options") or {}).get("model")
    say(next_steps(result, folder, written, model if isinstance(model, str) else None))
    if prepared is not None and f"{CLEANED}/" in written and (held_out := _held_out(prepared)):
        say(
            f"the {held_out} rows that were tested on were not judged and are in {folder / CLEANED} as they were: "
            f"robust-trainer audit {shlex.join(['--dataset', str(data.dataset), '--model', 'MODEL'])} judges all rows"
        )


def _held_out(prepared: RunState) -> int:
    """How many rows of the one table were drawn to test on; 0 where the test split is another table."""
    train, test = source_rows(prepared.train), source_rows(prepared.splits.get(TEST))
    if train is None or test is None or len(prepared.train.data) != len(prepared.test.data) or len(np.intersect1d(train, test)):
        return 0
    return len(test)


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
    train, test = (None, None) if prepared is None else (prepared.train, prepared.test)
    written = write_audit(
        result, folder, options, command, train=train, test=test,
        source=source, refusal=refusal, content=content, curves=load_curves(options.run) if content is None else None,
    )  # fmt: skip
    tags = {"text": "text-classification", "audio": "audio-classification"}
    tag = tags.get(prepared.kind) if prepared is not None else None
    write_model_card(folder / CARD, result, content=content, command=command, pipeline_tag=tag)
    if not options.detectors:
        remove(folder, (DETECTED,))
    return [*written[:2], CARD, *written[2:]]


def _detect(audited: Audit, prepared: RunState, folder: Path, options: AuditOptions, probs: np.ndarray | None) -> str:
    """Runs the detectors on the saved model, writes their scores, and returns a table of how they agree with the audit."""
    model, processor = load_model(options.run, options.trust_remote_code)
    data = make_transform(model, processor).apply_to(prepared.train)
    needs = {need for name in options.detectors or () for need in DETECTORS[name].needs}
    collate = DataCollatorWithPadding(processor) if prepared.kind != "image" else None
    evidence = collect_evidence(model, data, needs=needs, collate=collate)
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
