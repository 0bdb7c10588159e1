"""The command audit with --model, --features or --pred_probs: a data set's labels judged without any training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.csv
from transformers.utils import logging

from ..audit import Audit, audit_dataset
from ..audit.load import LEDGER_FILE
from ..audit.summary import summarise
from ..config import check_writable
from ..corruptions import TRIGGERS
from ..data.splits import TEST, TRAIN
from ..reporting.atomic_files import replacing
from ..reporting.console import command_line, say, show
from ..reporting.locks import hold
from ..reporting.safe_text import plain
from .audit_files import REPORT, FlagOptions, next_steps, remove, told, write_audit
from .kinds import CheckKind
from .options import CorruptionOptions, DataOptions
from .parser import make_parser, parse
from .stages import CorruptData, LoadData, RunState, run_stages

#: The options that say what a data set is judged by.
WITNESSES = ("model", "features", "pred_probs")
DUPLICATES = "duplicates.csv"
#: Columns of inputs, by the names that `load_data` gives them, in the order that they count.
INPUTS = ("image", "audio", "text")
#: Classes that are printed.
CLASSES = 8
EPILOG = (
    "Without a training: robust-trainer audit --dataset D, with --model M (a pretrained network), --features C (a column of "
    "embeddings) or --pred_probs C (of out-of-sample probabilities); robust-trainer audit --dataset D --model M --help tells more."
)


@dataclass
class WitnessOptions:
    """What the labels are judged by: one of the first three."""

    _argument_group_name = "what the labels are judged by"

    model: str | None = field(
        default=None,
        metadata={"help": "Hub name or folder of a pretrained network for images, texts or sounds, as the data are; not trained."},
    )
    features: str | None = field(
        default=None, metadata={"help": "A column of embeddings, or a .npy file (rows, features), in the place of a model."}
    )
    pred_probs: str | None = field(
        default=None,
        metadata={"help": "A column, or a .npy file (rows, classes), of probabilities of a model that has not seen the labels."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens that the model reads of a text. Default: what it takes, at most 512."}
    )
    batch_size: int = field(default=64, metadata={"help": "Rows that the model sees at a time."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the Python code that the model brings; only where its author is trusted."}
    )


@dataclass
class DataAuditOptions(FlagOptions):
    """What is written."""

    output_dir: str = field(default="robust_audit", metadata={"help": "Folder to write to."})
    seed: int = field(default=0, metadata={"help": "Of the samples that are compared, of many."})


def is_of_data(argv: Sequence[str]) -> bool:
    """Returns whether the words after ``audit`` are about a data set, not about a run.

    Args:
        argv: The words.
    """
    named = {word.split("=")[0] for word in argv}
    first = argv[0] if argv and not argv[0].startswith("-") else ""
    config = first.lower().endswith((".yaml", ".yml", ".json")) and os.path.isfile(first)
    return config or bool(named & {f"--{name}" for name in WITNESSES})


def audit_data(argv: Sequence[str]) -> None:
    """robust-trainer audit --dataset D --model M: writes audit.parquet, report.html, audit.json and the cleaned data set.

    Args:
        argv: The words after the command's name.
    """
    about = (
        "Audit the labels of a data set without any training: by the features of a pretrained network, by embeddings or by "
        "probabilities of your own. Which labels are probably wrong and what they should be, triggers, near-duplicates, and the "
        "data set without them."
    )
    kinds = [WitnessOptions, DataOptions, CorruptionOptions, DataAuditOptions]
    parser = make_parser("audit --dataset D --model M", kinds, about)
    if "--help" in argv or "-h" in argv:
        argv = ["--help"]
    elif argv and os.path.isdir(argv[0]):
        given = next(name for name in WITNESSES if any(word.split("=")[0] == f"--{name}" for word in argv))
        raise ValueError(f"a run ({argv[0]!r}) and --{given} are both given: leave one out; a data set is given by --dataset.")
    witness, data, corruption, options = parse(parser, argv)
    options.check()
    if all(getattr(witness, name) is None for name in WITNESSES):
        raise ValueError("nothing to judge the labels by: give --model, --features or --pred_probs.")
    if witness.model is not None and witness.features is not None:
        raise ValueError(f"model={witness.model!r} and features={witness.features!r} are both given: leave one of them out.")
    numbers = {name: _numbers(name, getattr(witness, name)) for name in ("features", "pred_probs")}
    folder = Path(options.output_dir)
    load, corrupt = LoadData(data, corruption.given(), audited=True), CorruptData(corruption)
    check_writable(str(folder), "output_dir")
    hold(folder)
    state = run_stages([load, _CheckInputs(corruption, witness), corrupt])
    column = next((name for name in INPUTS if name in state.train.column_names), None)
    if witness.model is not None and (Path(witness.model) / LEDGER_FILE).is_file():
        say(
            f"model={witness.model!r} was trained by a run: if that was on these data, it agrees with wrong labels that it has "
            f"learned; give a network that has not seen them, or audit the run: robust-trainer audit {witness.model}"
        )
    logging.enable_progress_bar()
    splits = datasets.DatasetDict({name: part for name, part in state.splits.items() if name in (TRAIN, TEST)})
    result = audit_dataset(
        splits, witness.model, **numbers, label_column="label", threshold=options.threshold, look=options.look,
        **{f"{column}_column": column for column in [column] if column},
        max_length=witness.max_length, batch_size=witness.batch_size, trust_remote_code=witness.trust_remote_code,
        seed=options.seed,
    )  # fmt: skip
    refusal = options.refusal(result) if options.clean != "none" else ""
    test = splits.get(TEST)
    written = write_audit(
        result, folder, options, command_line("audit", argv), train=state.train, test=test, source=data.dataset or "",
        refusal=refusal,
    )  # fmt: skip
    written += _write_duplicates(folder, result, splits)
    say(told(result))
    if classes := _by_class(result):
        say(classes)
    if refusal:
        say(f"no cleaned data set: {plain(refusal, 3000)}")
    say(next_steps(result, folder, written, witness.model))


def _numbers(name: str, given: str | None) -> Any:
    """The numbers of a .npy file; the name of a column as it is."""
    if given is None or not given.lower().endswith(".npy"):
        return given
    try:
        return np.load(given, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{name}={given!r} could not be read ({reason}): give a .npy file of numbers, or a column.") from error


@dataclass(frozen=True)
class _CheckInputs:
    """A stage that refuses options for images where there are none, as `CheckKind`; rows may have neither image nor text.

    Args:
        options: What is done to the data.
        witness: What needs images or texts.
    """

    options: CorruptionOptions
    witness: WitnessOptions

    def __call__(self, state: RunState) -> None:
        """Raises ``ValueError`` in one line."""
        columns = state.train.column_names
        if any(name in columns for name in INPUTS):
            CheckKind((self.options, self.witness))(state)
        elif self.witness.model is not None:
            raise ValueError(f"no column of images, texts or sounds among {columns}: set image_, text_ or audio_column.")
        elif self.options.corrupt in TRIGGERS:
            raise ValueError(f"corrupt={self.options.corrupt!r} is for images, texts or sounds, the data have none: leave it out.")


def _by_class(result: Audit) -> str:
    """The classes with the most flagged samples, as a table; '' where none is flagged."""
    rows = [c for c in summarise(result).classes if c.flagged]
    if not rows:
        return ""
    more = f"\n... and {len(rows) - CLASSES} more classes, see {REPORT}" if len(rows) > CLASSES else ""
    lines = [[c.name, str(c.n), str(c.flagged), c.rate, c.suggestion] for c in rows[:CLASSES]]
    return show(["class", "samples", "flagged", "%", "most often suggested"], lines) + more


def _write_duplicates(folder: Path, result: Audit, splits: datasets.DatasetDict) -> list[str]:
    """Writes a row per near-duplicate: where it is, which audited row it is like, and both labels; returns the file's name."""
    if (alike := result.likeness) is None:
        remove(folder, (DUPLICATES,))
        return []
    first, label = alike.first_of_group(), result.column("label")
    rows = np.flatnonzero((first >= 0) & (first != np.arange(len(first))))
    parts = [(TRAIN, rows, label[rows], first[rows])]
    for split, (pairs, _) in alike.copies.items():
        theirs = np.asarray(splits[split].with_format("numpy")["label"][:])
        parts.append((split, pairs[:, 0], theirs[pairs[:, 0]], pairs[:, 1]))
    columns = {
        "split": np.concatenate([np.full(len(rows), split, dtype=object) for split, rows, _, _ in parts]),
        "row": np.concatenate([rows for _, rows, _, _ in parts]), "label": np.concatenate([own for _, _, own, _ in parts]),
        "like_row": np.concatenate([near for _, _, _, near in parts]),
    }  # fmt: skip
    columns["label_there"] = label[columns["like_row"]]
    with replacing(folder / DUPLICATES) as new:
        pyarrow.csv.write_csv(pyarrow.table(columns), new)
    return [DUPLICATES]
