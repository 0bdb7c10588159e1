"""One training from options to figures: data prepared, model built, trained, evaluated, written down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
from transformers import PrinterCallback, ProgressCallback, set_seed

from ..config import RobustConfig
from ..corruptions import (
    ATTACK_TARGET,
    IS_CORRUPTED,
    corrupt_labels,
    nominal_rates,
    poison,
    realised_rates,
    trigger_all,
    use_noisy_labels,
)
from ..data.load import TEST, TRAIN, TRIGGERED, label_names, load_data
from ..data.preprocess import ImageTransform, image_shape, model_channels
from ..evaluation.accuracy import compute_accuracy, evaluate_backdoor
from ..images.squeezing import Squeeze, squeeze_images
from ..models.zoo import build_model
from ..reporting.results import curves, mean_last
from ..trainer import RobustTrainer
from .options import CorruptionOptions, DataOptions, ModelOptions, PreprocessOptions
from .progress import EpochBar

#: A first stage of training: (model, image processor, transform) -> what is recorded of it.
Before = Callable[[Any, Any, ImageTransform], dict[str, Any]]


@dataclass
class Prepared:
    """Data ready to train on: images and labels, the triggered test set of a trigger, what was corrupted and how squeezed."""

    train: datasets.Dataset
    test: datasets.Dataset
    triggered: datasets.Dataset | None
    corruption: dict[str, Any] | None
    squeeze: Squeeze | None = None

    def splits(self) -> datasets.DatasetDict:
        """The data as splits for ``save_to_disk``."""
        named = {TRAIN: self.train, TEST: self.test, **({TRIGGERED: self.triggered} if self.triggered is not None else {})}
        return datasets.DatasetDict(named)


def prepare(
    data: DataOptions,
    corruption: CorruptionOptions,
    preprocess: PreprocessOptions | None = None,
    poison_first: Callable[[datasets.DatasetDict], datasets.DatasetDict] | None = None,
) -> Prepared:
    """Returns the data set, poisoned as the options say; one that was saved poisoned comes with its own triggered test set.

    The training images, corrupted ones too, are squeezed at last where ``preprocess`` says so; the others are not. poison_first:
    what is done to the clean splits before all else.

    Wrong labels alone leave the test set as it is, and there is no triggered one. Raises ``ValueError`` for settings out of range,
    and for a second poison on a poisoned data set.
    """
    trigger, rule, noise = corruption.trigger(), corruption.rule(), corruption.noise()
    squeeze = preprocess.squeezer() if preprocess is not None else None
    found = load_data(
        data.dataset, config=data.dataset_config, image_column=data.image_column, label_column=data.label_column,
        test_split=data.test_split, max_train_samples=data.max_train_samples, max_test_samples=data.max_test_samples,
        seed=data.split_seed,
    )  # fmt: skip
    if poison_first is not None:
        found = poison_first(found)
    train, test, triggered = found[TRAIN], found[TEST], found.get(TRIGGERED)
    told = None
    if IS_CORRUPTED in train.column_names:
        if corruption.wanted:
            given = "noisy_label_column" if corruption.noisy_label_column is not None else "corrupt"
            raise ValueError(
                f"dataset={data.dataset!r} is corrupted already and {given}={getattr(corruption, given)!r} would do it twice: "
                f"drop {given}, or start from the clean data set."
            )
        told = {"corrupt": "as saved", **realised_rates(train)}
    elif trigger is not None:
        train = poison(train, trigger=trigger, rate=corruption.corrupt_rate, label_rule=rule, seed=corruption.corrupt_seed)
        triggered = trigger_all(test, trigger, label_rule=rule)
        told = {
            "corrupt": corruption.corrupt, "trigger": corruption.describe(), "seed": corruption.corrupt_seed,
            **realised_rates(train, nominal=corruption.corrupt_rate),
        }  # fmt: skip
    elif noise is not None:
        nominal = nominal_rates(train, **noise)
        train = corrupt_labels(train, **noise, seed=corruption.corrupt_seed, exact=corruption.noise_form == "exact")
        told = {
            "corrupt": corruption.corrupt, "noise": corruption.describe(), "seed": corruption.corrupt_seed,
            **realised_rates(train, nominal=nominal),
        }  # fmt: skip
    elif corruption.noisy_label_column is not None:
        others = [c for c in train.column_names if c not in ("image", "label")]
        if corruption.noisy_label_column not in others:
            raise ValueError(
                f"noisy_label_column={corruption.noisy_label_column!r} is not among the columns {others} beside image and label: "
                "name one of them."
            )
        train = use_noisy_labels(train, corruption.noisy_label_column)
        told = {"corrupt": "real", "noise": corruption.describe(), **realised_rates(train)}
    if squeeze is not None:
        train = squeeze_images(train, squeeze, image_column="image")
    return Prepared(train, test, triggered, told, squeeze)


def train_run(
    args: RobustConfig, data: Prepared, options: ModelOptions, *, lines: bool = True, before: Before | None = None
) -> tuple[RobustTrainer, dict[str, Any]]:
    """Trains once and returns the trainer and its record: settings, per-epoch curves, final figures, means, detection, seconds.

    The figures are fractions in [0, 1]. lines: one line per epoch on the standard output. before: trains the model in a first
    stage (model, image processor, transform) and returns what is recorded of it.
    """
    if options.last_k < 1:
        raise ValueError(f"last_k={options.last_k} must be at least 1: give for instance 10.")
    if args.remove_unused_columns:
        raise ValueError("remove_unused_columns=True would drop the images before they are preprocessed: leave it at False.")
    set_seed(args.seed)
    channels, side = image_shape(data.train)
    model, processor = build_model(
        options.model, label_names(data.train), channels=channels, image_size=options.image_size or min(side, 64),
        from_scratch=options.from_scratch,
    )  # fmt: skip
    transform = ImageTransform(processor, model_channels(model))
    first = before(model, processor, transform) if before is not None else None
    if first is not None:
        set_seed(args.seed)
    tests = {"clean": data.test, **({"poison": data.triggered} if data.triggered is not None else {})}
    trainer = RobustTrainer(
        model=model, args=args, train_dataset=data.train.with_transform(transform), processing_class=processor,
        eval_dataset={name: split.with_transform(transform) for name, split in tests.items()},
        compute_metrics=compute_accuracy,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    method = args.method or "none"
    trainer.add_callback(EpochBar(method, lines, bar=not args.disable_tqdm))
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - start
    record = {
        "method": method, "settings": dict(recipe.settings) if (recipe := trainer.recipe()) is not None else {},
        "model": options.model, "parameters": sum(p.numel() for p in model.parameters()), "seed": args.seed,
        "epochs": args.num_train_epochs, "batch_size": args.train_batch_size * args.world_size, "learning_rate": args.learning_rate,
        "train_samples": len(data.train), "seconds": round(seconds, 2), "curves": curves(trainer.state.log_history),
    }  # fmt: skip
    if first is not None:
        record["contrastive"] = first
    if data.squeeze is not None:
        record["squeeze"] = str(data.squeeze)
    record["final"] = _final(trainer, data)
    record["mean_last_k"] = mean_last(record["curves"], options.last_k)
    if (estimate := trainer.estimated_noise_rate) is not None:
        record["estimated_noise_rate"] = {"rate": estimate.rate, "low": estimate.low, "high": estimate.high}
    if trainer.ledger is not None:
        record["detection"] = trainer.ledger.detection()
        record["distrusted"] = int(trainer.ledger.distrusted().sum())
    return trainer, record


def _final(trainer: Any, data: Prepared) -> dict[str, float]:
    splits = trainer.eval_dataset
    if data.triggered is not None and ATTACK_TARGET in data.triggered.column_names:
        return evaluate_backdoor(trainer, splits["clean"], splits["poison"])
    found = {}
    for name, split in splits.items():
        found[f"{name}_accuracy"] = trainer.predict(split).metrics["test_accuracy"]
    return {**found, "n": len(data.test)}
