"""The command train: one robust training of a classifier of images, texts or sounds."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..attacks.apgd import AUTOATTACK_NORMS
from ..config import RobustConfig, read_method_settings
from ..data.preprocess import image_shape
from ..evaluation.robustness import show_eps
from ..methods.settings import FIELDS, parse_assignments
from ..methods.table import METHODS
from ..models.saved_networks import in_words
from ..models.text_models import SMALL_TEXT
from ..models.zoo import SMALL, known_classes, model_kinds
from ..problems import SINGLE_LABEL
from ..reporting.console import command_line, say, show
from ..reporting.results import table
from ..trainer import RobustTrainer
from .corrupt import tell_rates
from .kinds import CheckKind
from .options import CorruptionOptions, DataOptions, ModelOptions, PreprocessOptions
from .outputs import RUN, OverwriteOptions, check_output
from .parser import make_parser, parse
from .pretraining import FOLDER as SIMCLR
from .pretraining import ContrastiveOptions, ContrastivePretraining, LoadUnlabelled
from .stages import KnownClasses, RunState, Stage, data_stages, run_stages
from .training_stages import BuildModel, Evaluate, Train, WriteRun

#: What is trained by where no method is named; and where a sample has not one class, so that there is no label to judge: as
#: always, and a ledger that tells the odd samples afterwards.
DEFAULT_METHOD, DEFAULT_WITHOUT_CLASSES = "auto", "standard"
#: What that means, in a line.
DEFAULT_TOLD = {
    "auto": "labels are judged before training and again on the way; wrong ones are left out, count for less or are trained as "
    "the suggested class; --method NAME takes another, --method standard only watches, --method none is the plain Trainer",
    "standard": "no sample is left out, a ledger notes which ones are doubtful; for instance --method prl --noise_rate 0.2 leaves "
    "them out, and --method none keeps no ledger",
}  # fmt: skip
#: What `train` has otherwise than TrainingArguments: figures and a checkpoint every epoch, of which the last two are kept, and
#: columns left to the image transform.
TRAIN_DEFAULTS: dict[str, Any] = {
    "output_dir": "robust_run",
    "eval_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "report_to": "none",
    "remove_unused_columns": False,
}
#: Where the model is a small one, trained from scratch (TrainingArguments' defaults are for fine-tuning).
SMALL_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-3,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
}
SMALL_TEXT_DEFAULTS: dict[str, Any] = {**SMALL_DEFAULTS, "learning_rate": 5e-4, "num_train_epochs": 10}
DEFAULTS_BY_MODEL = {**dict.fromkeys(SMALL, SMALL_DEFAULTS), **dict.fromkeys(SMALL_TEXT, SMALL_TEXT_DEFAULTS)}


def train(argv: Sequence[str]) -> None:
    """robust-trainer train: writes the model, what prepares its inputs, results.json, ledger.parquet and report.html.

    Args:
        argv: The words after the command's name.
    """
    about = "Train a classifier of images, texts or sounds robustly. Methods: " + "; ".join(
        f"{m.name}: {m.summary}" for m in METHODS.values()
    )
    kinds = [DataOptions, CorruptionOptions, PreprocessOptions, ModelOptions, ContrastiveOptions, OverwriteOptions, RobustConfig]
    parser = make_parser("train", kinds, about)
    told = [", ".join(f"{k} {v}" for k, v in defaults.items()) for defaults in (SMALL_DEFAULTS, SMALL_TEXT_DEFAULTS)]
    parser.epilog = f"With small-cnn and resnet32: {told[0]}. With small-bert: {told[1]}."
    parser.options["method"].help = (
        f"Robust method, e.g. prl; none: exactly the plain Trainer. Default: {DEFAULT_METHOD}; {DEFAULT_WITHOUT_CLASSES} where "
        "problem_type says that a sample has not one class."
    )
    parser.set_defaults(**TRAIN_DEFAULTS, dataloader_pin_memory=torch.cuda.is_available())
    named: list[str | None] = []

    def defaults(words: Namespace) -> dict[str, Any]:
        named.append(words.method)
        return {**DEFAULTS_BY_MODEL.get(words.model, {}), **_default_for(words)}

    data, corruption, preprocess, model, contrastive, output, args = parse(parser, argv, defaults=defaults)
    args.resume_from_checkpoint = _resuming(args.resume_from_checkpoint)
    unnamed = named == [None]
    epochs = contrastive.epochs(args, model)
    folder = Path(args.output_dir)
    # fresh weights know no classes; a model that knows the data's has them in its own order
    names = None if model.from_scratch else known_classes(model.model, model.trust_remote_code)
    classes = KnownClasses(names, f"model={model.model!r}", required=False)
    given = f"model={model.model!r}" + (" (the default)" if model.model == ModelOptions.model else "")
    check = CheckKind((model, contrastive), given, model_kinds(model.model, model.trust_remote_code))
    preparing: list[Stage] = data_stages(data, corruption, preprocess, classes=classes, check=check)
    training: list[Stage] = [BuildModel(args, model)]
    if epochs:
        preparing.append(LoadUnlabelled(contrastive, data))
        training.append(ContrastivePretraining(contrastive, epochs, args))
    training += [Train(args, model), Evaluate(model.last_k)]
    training.append(WriteRun(folder, command_line("train", argv), (data, corruption, preprocess, model)))
    going_on = " or go on from its newest checkpoint by --resume_from_checkpoint true"
    check_output(args.output_dir, RUN, output.overwrite or args.resume_from_checkpoint is not None, f",{going_on}")
    if args.resume_from_checkpoint is True and not any(folder.glob(RUN[-1])) and not (folder / SIMCLR).is_dir():
        raise ValueError(
            f"resume_from_checkpoint=true but output_dir={args.output_dir!r} has no checkpoint: leave it out to begin."
        )
    if unnamed:
        say(f"method {args.method} (none is named): {DEFAULT_TOLD[str(args.method)]}")
    with args.main_process_first(desc="preparing the data"):
        state = run_stages(preparing)
    tell_rates(state.corruption, per_class=True)
    if state.kind == "image" and image_shape(state.train)[1] <= 16 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # on so few pixels a second thread costs more than it brings
    run_stages(training, state)
    assert state.trainer is not None
    if state.trainer.is_world_process_zero():
        _tell(state, state.trainer, args, folder)


def default_method(args: RobustConfig | Namespace) -> str:
    """Returns the method where none is named.

    Args:
        args: With the problem's type, where it is named.
    """
    return DEFAULT_METHOD if args.problem_type in (None, SINGLE_LABEL.name) else DEFAULT_WITHOUT_CLASSES


def _default_for(words: Namespace) -> dict[str, str]:
    """The default method where none is named, {} where it does not take the settings that are given, which is then refused."""
    given = {*(read_method_settings(words.method_settings) or {}), *parse_assignments(words.set or ())}
    given |= {name for name in FIELDS if getattr(words, name) is not None}
    method = default_method(words)
    takes = words.method is None and all(METHODS[method].takes(name) for name in given)
    return {"method": method} if takes else {}


def _resuming(word: str | None) -> str | bool | None:
    """A checkpoint's folder; True for the newest one in output_dir; None for a new run."""
    return {"true": True, "false": None, "": None}.get((word or "").lower(), word)


def _why(saved: dict[str, Any]) -> str:
    """Why it is that network."""
    losses = saved["trusted_loss"]
    if saved["export"] != "best" or losses is None:
        return ""
    return f" (loss on trusted samples {', '.join('nan' if loss is None else f'{loss:.3f}' for loss in losses)})"


def _tell(state: RunState, trainer: RobustTrainer, args: RobustConfig, folder: Path) -> None:
    """Prints the results, where they are, and which commands look at them further."""
    record = state.record
    if (first := state.pretraining) is not None:
        losses = [row["loss"] for row in first["losses"]] or [float("nan")]
        say(
            f"SimCLR: {first['images'] + first['unlabelled']} images, {first['epochs']:g} epochs, loss {losses[0]:.3f} to "
            f"{losses[-1]:.3f}; the backbone is in {folder / SIMCLR}"
        )
    written = ["model.safetensors", "results.json", "report.html", *(["ledger.parquet"] if trainer.ledger is not None else [])]
    say(show(*table([record])))
    if (labels := record.get("labels")) is not None:
        say(f"labels: {labels['found']} {labels['done']}")
    if isinstance(record["settings"].get("noise_rate"), str):
        say(f"noise rate, estimated while training: {trainer.estimated_noise_rate or 'none, nobody was dropped'}")
    if few := [f"{row['class']} ({row['kept']} of {row['samples']})" for row in record.get("classes", ()) if row["few"]]:
        more = f" and {len(few) - 20} more" if len(few) > 20 else ""
        say(f"hardly any sample is kept of class {', '.join(few[:20])}{more}: if their labels are right, give a lower noise_rate")
    say(f"written to {folder}: {', '.join(written)}")
    if (saved := record.get("export")) is not None:
        say(
            f"model.safetensors is {in_words(saved)} of {saved['networks']} networks{_why(saved)}; the figures are of the mean of "
            f"all, which robust-trainer evaluate {folder} opens"
        )
    if trainer.ledger is not None:
        say(f"which samples it distrusted: robust-trainer audit {folder}")
    recipe = trainer.recipe()
    attack = recipe.perturbation if recipe is not None else None
    if attack is not None and state.triggered is None and state.kind == "image":
        one = attack.single()[0]  # of two norms: the l_inf ball's
        norm, eps = "linf" if one.norm == "hybrid" else one.norm, show_eps(one.eps)
        attacks = "pgd-20 cw-20 autoattack" if norm in AUTOATTACK_NORMS else "pgd-20 cw-20"
        say(f"robust accuracy: robust-trainer evaluate {folder} --attacks {attacks} --norm {norm} --eps {eps}")
