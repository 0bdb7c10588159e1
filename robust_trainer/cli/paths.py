"""The subcommand paths: how far each training sample of a finished run is from the saved model's decision boundary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import check_writable
from ..data.class_names import names_of
from ..data.fingerprint import fingerprint
from ..data.labels import rows_by_class
from ..data.load import label_names
from ..data.preprocess import kind_of
from ..evaluation.boundary_paths import path_lengths
from ..evaluation.path_table import PathLengths
from ..models.pretrained import WORDS
from ..models.zoo import load_model
from ..perturbations.norms import NORMS
from ..reporting.atomic_files import write_text
from ..reporting.console import say, show
from ..reporting.locks import hold
from ..reporting.safe_text import plain
from .craft import PATH_FILES, write_paths
from .craft_options import class_number
from .identity import check_model, check_same_split, run_id
from .options import CorruptionOptions, DataOptions, PreprocessOptions
from .parser import make_parser, parse_for_run
from .stages import KnownClasses, prepare

#: What `paths` leaves in the run's folder: the table, and the folder of finished batches with what they are of.
LENGTHS, PARTS, OF = PATH_FILES[0], "paths", "of.json"
#: Rows told per class.
CLOSEST = 5


@dataclass
class PathsOptions:
    """Which paths, and how far they may go."""

    _argument_group_name = "paths"

    run: str = field(default="robust_run", metadata={"help": "Folder with a saved model: the output_dir of a training."})
    target: str | None = field(
        default=None,
        metadata={"help": "Step to the next class (cyclic), or to a class number or name. Default: to any other."},
    )
    step_size: float = field(default=0.01, metadata={"help": "Of each step, in [0, 1] pixels."})
    norm: str = field(default="linf", metadata={"help": f"One of {', '.join(NORMS)}."})
    max_steps: int = field(default=200, metadata={"help": "Give up after so many."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the Python code that the run's model brings; only where its author is trusted."}
    )
    batch_size: int = field(default=256, metadata={"help": "Images at a time."})


def paths(argv: Sequence[str]) -> None:
    """robust-trainer paths: writes paths.parquet and paths.png into the run's folder, and prints the lengths class by class.

    Args:
        argv: The words after the command's name.
    """
    about = (
        "Path lengths of a run's training data: the steps up the loss until the saved model predicts another class. The closest "
        "samples are the likeliest label errors; robust-trainer audit shows them. Data and corruption are those of the run, where "
        "its results.json tells, unless given here. Stopped, it goes on from the finished batches."
    )
    parser = make_parser("paths", [PathsOptions, DataOptions, CorruptionOptions, PreprocessOptions], about, first="run_folder")
    kinds = (DataOptions, CorruptionOptions, PreprocessOptions)
    content, data_known, (options, data, corruption, preprocess) = parse_for_run(parser, argv, kinds)
    model: Any
    model, processor = load_model(options.run, options.trust_remote_code)
    if (kind := kind_of(processor)) != "image":
        raise ValueError(f"run={options.run!r} takes {WORDS[kind]}, and path lengths count steps in pixels: the audit needs none.")
    if not data_known:
        raise ValueError(f"run={options.run!r} does not tell its data: give --dataset, as the training had it.")
    check_writable(options.run, "run")
    hold(options.run)
    check_model(options.run, content)
    known = KnownClasses(names_of(model.config), f"the model of run={options.run!r}")
    train = prepare(data, corruption, preprocess, known).train
    check_same_split(options.run, content, argv, train)
    names, target = label_names(train), options.target
    if target == "extra":
        raise ValueError("target='extra': no model has a boundary to a class without samples: choose cyclic or a class.")
    towards = target if target in (None, "cyclic") else class_number(target, names, "target")
    folder, parts = Path(options.run), Path(options.run) / PARTS
    _begin(folder, {"of": [asdict(o) for o in (options, data, corruption, preprocess)], "model": _weights(folder)})
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    lengths = path_lengths(
        model, train, target=towards, step_size=options.step_size, norm=options.norm, max_steps=options.max_steps,
        batch_size=options.batch_size, processing_class=processor, folder=parts,
    )  # fmt: skip
    written = write_paths(replace(lengths, run=run_id(content)), folder)
    say(show(*lengths_table(lengths)))
    say(f"steps of {lengths.step_size:g} ({lengths.norm}, [0, 1] pixels); closest: row numbers, the likeliest label errors first")
    say(f"written to {folder}: {', '.join(written)}; robust-trainer audit {folder} shows the closest samples")


def lengths_table(lengths: PathLengths) -> tuple[list[str], list[list[str]]]:
    """Returns heading and rows: per given class n, median, 10 % and 90 % quantiles, paths without end, the closest rows.

    Args:
        lengths: The path lengths.
    """
    order = lengths.order
    labels = lengths.labels[order]
    heading = ["class", "n", "median", "10 %", "90 %", "not reached", "closest"]
    rows = []
    for name, places in zip(lengths.class_names, rows_by_class(labels, len(lengths.class_names))):
        mine = order[places]
        if not len(mine):
            continue
        quantiles = [_told(value, lengths) for value in np.quantile(lengths.steps[mine], (0.5, 0.1, 0.9), method="lower").tolist()]
        missed, closest = int((~lengths.reached[mine]).sum()), " ".join(str(row) for row in mine[:CLOSEST])
        rows.append([plain(name, 40), str(len(mine)), *quantiles, str(missed), closest])
    return heading, rows


def _told(steps: int, lengths: PathLengths) -> str:
    return f">{lengths.max_steps}" if steps > lengths.max_steps else str(steps)


def _begin(run: Path, now: dict[str, Any]) -> None:
    """Makes the folder of finished batches; those of other settings, other data or another model are removed, and their table."""
    parts, now = run / PARTS, json.loads(json.dumps(now))
    before = _of(parts)
    if before is not None and before != now:
        say(f"{parts} holds batches of other settings, data or another model: begun anew")
        shutil.rmtree(parts)
        (run / LENGTHS).unlink(missing_ok=True)
    parts.mkdir(parents=True, exist_ok=True)
    write_text(parts / OF, json.dumps(now))


def is_stale(run: Path) -> bool:
    """Returns whether the run's path lengths are known to be of another model than the one that is saved there now.

    Args:
        run: Folder of a finished training.
    """
    before = _of(run / PARTS)
    return before is not None and before.get("model") != _weights(run)


def _of(parts: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((parts / OF).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _weights(run: Path) -> str:
    """What tells the saved model from another: of the bytes of its files."""
    files = sorted([*run.glob("model*.safetensors"), *run.glob("pytorch_model*.bin"), run / "config.json"])
    return fingerprint([path for path in files if path.is_file()])
