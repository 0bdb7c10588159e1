"""Stage one of the semi-supervised defence (Dissertation Algorithm 7): the backbone by SimCLR, before a method trains the head."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
from torch import nn
from transformers import PrinterCallback, ProgressCallback

from ..config import RobustConfig
from ..contrastive.trainer import ContrastiveConfig, ContrastiveTrainer
from ..contrastive.views import VIEWS
from ..data.load import TRAIN, kept_rows, load_data, load_images
from ..data.preprocess import ImageTransform
from ..ledger.fingerprint import data_fingerprint
from ..models.pretrained import WORDS
from ..models.text_models import SMALL_TEXT
from ..models.zoo import SMALL
from ..reporting.atomic_files import write_json
from ..reporting.untrusted import load_tensors, read_json
from ..step.checkpoints import folders, to_resume_from
from .options import DataOptions, ModelOptions
from .progress import EpochBar
from .stages import RunState

FOLDER, RECORD, BEGUN = "simclr", "contrastive.json", "begun.json"
#: Epochs for a network with fresh weights, where none are given; the paper takes 500.
DEFAULT_EPOCHS = 100
REST = "rest"


@dataclass
class ContrastiveOptions:
    """SimCLR before a method that trains the head alone (``prl-simclr``, ``prl-simclr-sn``, or any ``...-simclr``)."""

    _argument_group_name = "contrastive pre-training"

    contrastive_epochs: float | None = field(
        default=None,
        metadata={"help": f"Epochs of SimCLR; 0: the backbone as it is. Default: {DEFAULT_EPOCHS} with fresh weights, else 0."},
    )
    contrastive_batch_size: int = field(default=128, metadata={"help": "Images per batch and device."})
    contrastive_learning_rate: float = field(default=2e-3, metadata={"help": "Of AdamW, falling to 0 with a cosine."})
    contrastive_temperature: float = field(default=0.5, metadata={"help": "Of NT-Xent, > 0."})
    contrastive_views: str = field(default="simclr", metadata={"help": f"Random views: {', '.join(VIEWS)}."})
    unlabelled: str | None = field(
        default=None,
        metadata={"help": f"More images, labels unused: {REST} (those that max_train_samples leaves out), or a data set's name."},
    )

    def epochs(self, args: RobustConfig, options: ModelOptions) -> float:
        """Returns the epochs of SimCLR, 0 for none.

        Args:
            args: Method and training.
            options: The network.

        Raises:
            ValueError: Where a method is given some that trains all layers.
        """
        recipe = args.recipe()
        frozen = args.switches()[0] if recipe is None else recipe.freeze_backbone
        if not frozen:
            for name, value in (("contrastive_epochs", self.contrastive_epochs), ("unlabelled", self.unlabelled)):
                if value:
                    method = f"method '{args.method or 'none'}', which trains the backbone on the labels"
                    raise ValueError(f"{name}={value!r} has no effect with {method}: choose for instance prl-simclr-sn.")
            return 0
        if self.contrastive_epochs is None:
            if recipe is None or not recipe.name.endswith(("-simclr", "-simclr-sn")):
                return 0  # freeze_backbone of another method: the backbone as it is, unless epochs are asked for
            return DEFAULT_EPOCHS if options.model in (*SMALL, *SMALL_TEXT) or options.from_scratch else 0
        if self.contrastive_epochs < 0:
            raise ValueError(f"contrastive_epochs={self.contrastive_epochs} must be >= 0: give for instance {DEFAULT_EPOCHS}.")
        return self.contrastive_epochs


def unlabelled_images(options: ContrastiveOptions, data: DataOptions) -> datasets.Dataset | None:
    """Returns the extra images, None for none.

    Args:
        options: The pre-training.
        data: Which images the run trains on.

    Raises:
        ValueError: Where ``rest`` leaves nothing.
    """
    if options.unlabelled is None:
        return None
    if options.unlabelled != REST:
        return load_images(options.unlabelled, image_column=data.image_column)
    whole = load_data(
        data.source(), config=data.dataset_config, image_column=data.image_column, label_column=data.label_column,
        test_split=data.test_split, seed=data.split_seed,
    )[TRAIN]  # fmt: skip
    if data.max_train_samples is None or data.max_train_samples >= len(whole):
        raise ValueError(
            f"unlabelled={REST!r} but max_train_samples={data.max_train_samples} leaves none of {len(whole)} images out: give a "
            "smaller max_train_samples, or leave unlabelled out."
        )
    return whole.select(kept_rows(len(whole), data.max_train_samples, data.split_seed)[1])


def pretrain(
    model: nn.Module,
    processor: Any,
    train: datasets.Dataset,
    extra: datasets.Dataset | None,
    options: ContrastiveOptions,
    epochs: float,
    args: RobustConfig,
    transform: ImageTransform,
) -> dict[str, Any]:
    """Trains the model's backbone by SimCLR on the images of ``train`` and ``extra``; returns the record: losses, sizes, seconds.

    Written to ``output_dir``/simclr, as a model that can be loaded. With ``resume_from_checkpoint`` a finished pre-training is
    taken from there, and one that was stopped goes on where the run saves checkpoints.

    Args:
        model: The network, trained in place.
        processor: The model's image processor, None for none.
        train: The training split.
        extra: More images, None for none.
        options: The pre-training.
        epochs: Passes over the images.
        args: Method and training.
        transform: Rows to the model's inputs.
    """
    folder = Path(args.output_dir or ".") / FOLDER
    facts = {
        "epochs": epochs, "images": len(train), "unlabelled": 0 if extra is None else len(extra), "options": asdict(options),
        "seed": args.seed, "data": [data_fingerprint(images, None) for images in (train, extra) if images is not None],
    }  # fmt: skip
    if args.resume_from_checkpoint:
        before = _compared(folder, facts)
        if before is not None:
            model.load_state_dict(load_tensors(folder / "model.safetensors", f"delete the folder {str(folder)!r}"))
            return before
    elif args.process_index == 0:
        shutil.rmtree(folder, ignore_errors=True)  # an earlier run's, lest this one goes on from its checkpoints
    if args.process_index == 0:
        write_json(folder / BEGUN, facts)
    settings = ContrastiveConfig(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=options.contrastive_batch_size,
        learning_rate=options.contrastive_learning_rate, lr_scheduler_type="cosine", warmup_steps=0,
        temperature=options.contrastive_temperature, views=options.contrastive_views,
        seed=args.seed, bf16=args.bf16, fp16=args.fp16, use_cpu=args.use_cpu,
        dataloader_num_workers=args.dataloader_num_workers, dataloader_pin_memory=args.dataloader_pin_memory,
        save_strategy=args.save_strategy, save_steps=args.save_steps, save_total_limit=1, logging_strategy="epoch",
        report_to="none", disable_tqdm=args.disable_tqdm, image_mean=args.image_mean, image_std=args.image_std,
    )  # fmt: skip
    trainer = ContrastiveTrainer(
        model, settings, train_dataset=transform.apply_to(train),
        extra_dataset=None if extra is None else transform.apply_to(extra), processing_class=processor,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(EpochBar("simclr", lines=False, bar=not args.disable_tqdm))
    start = time.perf_counter()
    going_on = bool(args.resume_from_checkpoint) and bool(folders(folder))
    trainer.train(resume_from_checkpoint=to_resume_from(trainer, going_on, robust=False) if going_on else None)
    trainer.save_model(str(folder))
    losses = [{"epoch": row["epoch"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row]
    record = {**facts, "losses": losses, "seconds": round(time.perf_counter() - start, 2)}
    if trainer.is_world_process_zero():
        write_json(folder / RECORD, record)
    return record


def _compared(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished pre-training, None of one that was stopped; ``ValueError`` for other settings or data than then."""
    record = next((path for path in (folder / RECORD, folder / BEGUN) if path.is_file()), None)
    if record is None:
        return None
    before = read_json(record, f"delete the folder {str(folder)!r}")
    wrong = next((k for k in facts if k in before and before[k] != json.loads(json.dumps(facts[k]))), None)
    if wrong is not None:
        was = f"{str(folder)!r} was pre-trained with {wrong}={before[wrong]!r}"
        raise ValueError(f"{was}, now {facts[wrong]!r}: resume with the same settings and data.")
    return before if record.name == RECORD else None


@dataclass(frozen=True)
class LoadUnlabelled:
    """Loads the extra images of the pre-training, where some are asked for."""

    options: ContrastiveOptions
    data: DataOptions

    def __call__(self, state: RunState) -> None:
        """Sets ``state.unlabelled``."""
        if state.kind != "image":
            raise ValueError(
                f"the data are {WORDS[state.kind]}, and SimCLR, which trains the backbone before such a method trains the head, "
                "contrasts images: give a pretrained model, or another method."
            )
        state.unlabelled = unlabelled_images(self.options, self.data)


@dataclass(frozen=True)
class ContrastivePretraining:
    """Trains the network's backbone by SimCLR before the method trains its head; see `pretrain`."""

    options: ContrastiveOptions
    epochs: float
    args: RobustConfig

    def __call__(self, state: RunState) -> None:
        """Trains ``state.model`` and sets ``state.pretraining``."""
        assert isinstance(state.transform, ImageTransform), "built before, and for images alone"
        state.pretraining = pretrain(
            state.model, state.processor, state.train, state.unlabelled, self.options, self.epochs, self.args, state.transform
        )
