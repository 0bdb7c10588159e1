"""The stages that train: the network built, trained, evaluated, and what a run leaves in its folder."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, get_scheduler, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..config import RobustConfig
from ..corruptions import ATTACK_TARGET
from ..data.load import label_names
from ..data.preprocess import image_shape, make_transform, model_channels, tell_unseen
from ..data.texts import tell_cut
from ..evaluation.accuracy import compute_accuracy, evaluate_backdoor
from ..ledger.class_counts import trusted_by_class
from ..ledger.findings import label_findings
from ..models.saved_networks import read_record
from ..models.text_models import SMALL_TEXT, build_text_model, positions
from ..models.zoo import SMALL, build_audio_model, build_model
from ..reporting.atomic_files import replacing_files, write_json
from ..reporting.html import write_report
from ..reporting.results import curves, mean_last, results, suspects
from ..step.checkpoints import steps_done, to_resume_from
from ..trainer import RobustTrainer
from .identity import identity
from .options import ModelOptions
from .outputs import remove_earlier
from .progress import EpochBar
from .stages import RunState

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class BuildModel:
    """Builds the network with the run's seed, for the training images' channels and side or the training texts' words."""

    args: RobustConfig
    options: ModelOptions

    def __call__(self, state: RunState) -> None:
        """Sets ``state.model``, ``processor`` and ``transform``."""
        set_seed(self.args.seed)
        options, names = self.options, label_names(state.train)
        fresh: dict[str, Any] = {"from_scratch": options.from_scratch, "trust_remote_code": options.trust_remote_code}
        if state.kind == "audio":
            state.model, state.processor = build_audio_model(options.model, names, **fresh)
        elif state.kind == "text":
            texts = state.train["text"][:] if options.model in SMALL_TEXT else ()
            state.model, state.processor = build_text_model(options.model, names, texts, max_length=options.max_length, **fresh)
            longer = options.model in SMALL_TEXT or positions(state.model) > state.processor.model_max_length
            tell_cut(state.splits, state.processor, ": max_length sets it" if longer else ", all that the model takes")
        else:
            channels, side = image_shape(state.train)
            side = min(side, 64)
            state.model, state.processor = build_model(
                options.model, names, channels=channels, image_size=options.image_size or side, **fresh
            )
            chosen = side if options.image_size is None and options.model in SMALL else None
            tell_unseen(state.splits, model_channels(state.model), chosen)
        state.transform = make_transform(state.model, state.processor)


class RemoveEarlier(TrainerCallback):
    """Removes what an earlier training left in the output folder, once all is checked and the first step is to come."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Removes it."""
        if state.is_world_process_zero:
            remove_earlier(args.output_dir, going_on=bool(args.resume_from_checkpoint))


def _check_numbers(args: RobustConfig) -> None:
    """Raises ``ValueError`` for options of the Trainer by which it would fail after the data are prepared, or train on nothing."""
    counts = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "eval_accumulation_steps")
    for name in counts:
        if (value := getattr(args, name)) is not None and not 1 <= value < 2**31:
            raise ValueError(f"{name}={value} must be at least 1: give for instance {8 if 'batch' in name else 1}.")
    if not 0 <= args.dataloader_num_workers <= 1024:
        raise ValueError(f"dataloader_num_workers={args.dataloader_num_workers} must be in [0, 1024]: give for instance 2.")
    if args.dataloader_drop_last:
        raise ValueError("dataloader_drop_last=True would leave test samples out of the figures, too: leave it out.")
    if not 0 <= args.label_smoothing_factor <= 1:
        raise ValueError(f"label_smoothing_factor={args.label_smoothing_factor} must be in [0, 1]: give for instance 0.1.")
    kwargs: Any = args.lr_scheduler_kwargs
    if kwargs:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
        try:
            get_scheduler(args.lr_scheduler_type, optimizer, 0, 10, scheduler_specific_kwargs=kwargs)
        except TypeError as error:
            kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
            given = f"lr_scheduler_kwargs={args.lr_scheduler_kwargs!r}"
            raise ValueError(f"{given} does not fit lr_scheduler_type={kind} ({error}): mend it.") from error


@dataclass(frozen=True)
class Train:
    """Trains once: ``state.trainer``, and in ``state.record`` settings, per-epoch curves and seconds.

    Args:
        args: Method and training.
        options: Names the network.
        lines: One line per epoch on the standard output.
    """

    args: RobustConfig
    options: ModelOptions
    lines: bool = True

    def __post_init__(self) -> None:
        _check_numbers(self.args)
        half = next((name for name in ("bf16_full_eval", "fp16_full_eval") if getattr(self.args, name)), None)
        if half is not None and self.options.model in (*SMALL, *SMALL_TEXT):
            raise ValueError(
                f"{half}=True: model={self.options.model!r} takes numbers of 32 bits: leave it out, or give bf16=True."
            )
        if self.args.label_names is not None or self.args.prediction_loss_only or self.args.batch_eval_metrics:
            given = [name for name in ("label_names", "prediction_loss_only", "batch_eval_metrics") if getattr(self.args, name)]
            raise ValueError(f"{given[0]}={getattr(self.args, given[0])!r} leaves no accuracy to measure: leave it out.")
        if self.args.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the inputs before they are preprocessed: leave it at False.")

    def __call__(self, state: RunState) -> None:
        """Sets ``state.trainer`` and ``state.record``."""
        args = self.args
        if state.pretraining is not None:
            set_seed(args.seed)
        assert state.transform is not None, "built before"
        tests = {"clean": state.test, **({"poison": state.triggered} if state.triggered is not None else {})}
        trainer = state.trainer = RobustTrainer(
            model=state.model, args=args, train_dataset=state.transform.apply_to(state.train), processing_class=state.processor,
            eval_dataset={name: state.transform.apply_to(split) for name, split in tests.items()},
            compute_metrics=compute_accuracy,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        method = args.method or "none"
        trainer.add_callback(EpochBar(method, self.lines, bar=not args.disable_tqdm))
        trainer.add_callback(RemoveEarlier())
        start, going_on = time.perf_counter(), args.resume_from_checkpoint
        if going_on is True and state.pretraining is not None and get_last_checkpoint(str(args.output_dir)) is None:
            going_on = None  # stopped in the stage before
        begun = to_resume_from(trainer, going_on, trainer.recipe() is not None)
        behind = steps_done(begun) if begun else 0  # asked before the training, which may remove that checkpoint
        steps = trainer.train(resume_from_checkpoint=begun).global_step
        if begun and steps == behind:
            logger.warning(
                f"{str(begun)!r} has {steps} steps behind it, as many as this run takes or more: nothing was left to train; "
                "give a larger num_train_epochs to go on."
            )
        seconds = time.perf_counter() - start
        state.record = {
            "method": method, "settings": trainer.ledger.run["settings"] if trainer.ledger is not None else {},
            "model": self.options.model, "parameters": sum(p.numel() for p in state.model.parameters()), "seed": args.seed,
            "epochs": args.num_train_epochs, "batch_size": args.train_batch_size * args.world_size,
            "learning_rate": args.learning_rate, "train_samples": len(state.train), "seconds": round(seconds, 2),
            "curves": curves(trainer.state.log_history),
        }  # fmt: skip
        if state.pretraining is not None:
            state.record["contrastive"] = state.pretraining
        if state.squeeze is not None:
            state.record["squeeze"] = str(state.squeeze)


@dataclass(frozen=True)
class Evaluate:
    """Adds to the record the final figures, fractions in [0, 1], means over the last epochs, and what the ledger tells of labels.

    Args:
        last_k: Epochs that the means are over.
    """

    last_k: int

    def __post_init__(self) -> None:
        if self.last_k < 1:
            raise ValueError(f"last_k={self.last_k} must be at least 1: give for instance 10.")

    def __call__(self, state: RunState) -> None:
        """Adds to ``state.record``."""
        trainer, record = state.trainer, state.record
        assert trainer is not None, "trained before"
        record["final"] = self._final(trainer, state)
        record["mean_last_k"] = mean_last(record["curves"], self.last_k)
        if (estimate := trainer.estimated_noise_rate) is not None:
            record["estimated_noise_rate"] = {"rate": estimate.rate, "low": estimate.low, "high": estimate.high}
        if trainer.ledger is not None:
            record["detection"] = trainer.ledger.detection()
            record["distrusted"] = int(trainer.ledger.distrusted().sum())
            if (counts := trusted_by_class(trainer.ledger)) is not None:
                record["classes"] = counts.rows()
            if (findings := label_findings(trainer.ledger, estimate)) is not None:
                record["labels"] = findings.record()

    @staticmethod
    def _final(trainer: Any, state: RunState) -> dict[str, float]:
        splits = trainer.eval_dataset
        if state.triggered is not None and ATTACK_TARGET in state.triggered.column_names:
            return evaluate_backdoor(trainer, splits["clean"], splits["poison"])
        figures = {f"{name}_accuracy": trainer.predict(split).metrics["test_accuracy"] for name, split in splits.items()}
        return {**figures, "n": len(state.test)}


@dataclass(frozen=True)
class WriteRun:
    """Writes the model and its image processor or tokenizer, results.json, report.html and, with a ledger, ledger.parquet.

    Args:
        folder: Where to.
        command: As it was typed.
        options: Dataclasses whose values results.json holds, for later commands on the run.
    """

    folder: Path
    command: str
    options: tuple[Any, ...]

    def __call__(self, state: RunState) -> None:
        """Writes the files."""
        trainer = state.trainer
        assert trainer is not None, "trained before"
        with replacing_files(self.folder, "config.json") if trainer.is_world_process_zero() else nullcontext() as new:
            trainer.save_model(str(new if new is not None else self.folder))
        if not trainer.is_world_process_zero():
            return
        if (saved := read_record(self.folder)) is not None:
            state.record["export"] = saved
        content = results([state.record], self.command, state, *self.options) | {"run": identity(trainer, state)}
        if trainer.ledger is not None:
            trainer.ledger.to_parquet(self.folder / "ledger.parquet")
        write_json(self.folder / "results.json", content)
        method = state.record["method"]
        write_report(
            self.folder / "report.html", content, suspects=suspects(trainer, state), suspects_of=method, title=f"Run: {method}"
        )
