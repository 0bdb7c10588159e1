"""SimCLR pre-training of an image classifier's backbone, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from ..config import check_writable, space_settings
from ..data.images import InputSpace, input_space
from ..data.randomness import keyed_seed
from ..step.checkpoints import load_renamed_weights
from .data import ImageCollator, batch_size_for, joined
from .model import ContrastiveModel, load_projector, save_projector
from .nt_xent import gather_rows, nt_xent
from .views import VIEWS, make_views, two_views


@dataclass
class ContrastiveConfig(TrainingArguments):
    """`transformers.TrainingArguments` plus SimCLR's settings; out of range they raise a one-line ``ValueError`` here.

    Batches are always whole by default (``dataloader_drop_last``): the loss depends on how many images a batch contrasts.
    """

    temperature: float = field(default=0.5, metadata={"help": "Temperature of NT-Xent, > 0."})
    projection_dim: int = field(default=128, metadata={"help": "Size of the embeddings that are contrasted, >= 1."})
    projection_layers: int = field(default=2, metadata={"help": "Linear layers of the projector, 1, 2 or 3."})
    views: str = field(default="simclr", metadata={"help": f"Random views: {', '.join(VIEWS)}."})
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Per-channel mean of the input normalisation; default: the image processor's."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Per-channel std of the input normalisation; default: the image processor's."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "No effect: only the images reach the model."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave out an epoch's last, smaller batch."})

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, int | float) and math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature={self.temperature!r} must be > 0: SimCLR takes 0.1 to 1, 0.5 on CIFAR-10.")
        if not isinstance(self.projection_dim, int) or self.projection_dim < 1:
            raise ValueError(f"projection_dim={self.projection_dim!r} must be a whole number >= 1, 128 in SimCLR.")
        if self.projection_layers not in (1, 2, 3):
            raise ValueError(f"projection_layers={self.projection_layers!r} must be 1, 2 or 3: 2 in SimCLR.")
        make_views(self.views)
        input_space(None, self.image_mean, self.image_std)
        if self.output_dir is not None:
            check_writable(self.output_dir)
        super().__post_init__()


class ContrastiveTrainer(Trainer):
    """`transformers.Trainer` that pre-trains the backbone of ``model``, an image classifier, by SimCLR; labels are never looked at.

    Each step draws two views of every image, sends them through the
    model as one batch and minimises `nt_xent` over the images of all processes; with gradient accumulation each micro-batch
    contrasts its own images only, and BatchNorm sees one process's. The head stays as it is. An evaluation's ``eval_loss`` is that
    loss for views drawn alike each time, over whole batches, which are no larger than the data set. `save_model` writes the
    classifier, as its own ``save_pretrained`` does, and the projector beside it (``projector.safetensors``).

    Args:
        model: the classifier, or a `ContrastiveModel` of it.
        args: a `ContrastiveConfig`; with plain ``TrainingArguments`` its defaults hold.
        data_collator: of the Trainer, as the arguments that follow it.
        train_dataset: images, with or without labels.
        extra_dataset: a data set, or several, of more images, with or without labels.
        views: a name of `VIEWS` or a callable on (B, C, H, W) pixels in [0, 1], in place of the arguments'.

    Raises:
        ValueError: for images of unknown normalisation and for too few of them.

    References:
        Chen et al. 2020, "A simple framework for contrastive learning of visual representations"; Dissertation Algorithm 7, line 1.
    """

    def __init__(
        self, model: nn.Module | None = None, args: TrainingArguments | None = None, data_collator: Any = None,
        train_dataset: Any = None, *rest: Any, extra_dataset: Any = None, views: str | Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ):  # fmt: skip
        args = ContrastiveConfig(output_dir="tmp_trainer") if args is None else args
        self._settings: dict[str, Any] = {
            f.name: getattr(args, f.name) if isinstance(args, ContrastiveConfig) else f.default for f in fields(ContrastiveConfig)
        }
        if args.label_smoothing_factor or kwargs.get("compute_loss_func") is not None:
            raise ValueError("SimCLR has a loss of its own, without labels: drop compute_loss_func and label_smoothing_factor.")
        chosen: Any = self._settings["views"] if views is None else views
        self.views: Callable[[Tensor], Tensor] = make_views(chosen) if isinstance(chosen, str) else chosen
        self._step, self._micro, self._evaluated, self._checked = -1, 0, 0, False
        train_dataset = joined(train_dataset, extra_dataset)
        super().__init__(
            None if model is None else self._contrastive(model, args), args, data_collator, train_dataset, *rest, **kwargs
        )
        self._validate_setup()
        space = input_space(self.processing_class, **space_settings(args))
        if space is None:
            raise ValueError(
                "the images' normalisation is unknown: pass processing_class=<the image processor>, or "
                "ContrastiveConfig(image_mean=[...], image_std=[...]) (0 and 1 for inputs already in [0, 1])."
            )
        self.space: InputSpace = space
        self.data_collator = ImageCollator(self._contrasted.main_input_name, data_collator)
        self.label_names, self.can_return_loss = [], True
        self.loss_is_scaled_for_ga, self.current_gradient_accumulation_steps = False, 1  # the loss is a mean of the micro-batch

    @property
    def classifier(self) -> nn.Module:
        """Returns the user's classifier, its backbone pre-trained so far."""
        return self._contrasted.classifier

    @property
    def _contrasted(self) -> ContrastiveModel:
        assert isinstance(self.model, ContrastiveModel)
        return self.model

    def _contrastive(self, model: nn.Module, args: TrainingArguments) -> ContrastiveModel:
        """The model with a projector that depends on the seed alone."""
        if isinstance(model, ContrastiveModel):
            return model
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(args.seed)
            return ContrastiveModel(model, self._settings["projection_dim"], self._settings["projection_layers"])

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Returns a fresh model, a projector in place of its head."""
        return self._contrastive(super().call_model_init(trial), self.args)

    def _validate_setup(self) -> None:
        """Raises a one-line ``ValueError`` for what would have no effect, or a wrong one."""
        args: Any = self.args
        processes = self.accelerator.num_processes
        if getattr(args, "method", None) not in (None, "none"):
            raise ValueError(f"method={args.method!r} trains on labels, which SimCLR has none of: pass a ContrastiveConfig.")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or args.n_gpu > 1:
            raise ValueError("SimCLR needs the whole model in each process: use torchrun (DDP), not FSDP, DeepSpeed or n_gpu > 1.")
        if processes > 1 and getattr(self.accelerator, "even_batches", True) is False:
            raise ValueError("accelerator_config.even_batches=False: processes contrast batches of one size; set it to True.")

    # ---- data ----------------------------------------------------------------------------------------------------------

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        return dataset  # a transform may need them; the collator keeps the images

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        return data_collator

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *rest: Any, **kwargs: Any) -> Any:
        processes, dropping = self.accelerator.num_processes, self.args.dataloader_drop_last
        training = kwargs.get("is_training", False)
        if hasattr(dataset, "__len__"):
            batch_size = batch_size_for(dataset, description, batch_size, processes, training, dropping)
        try:
            self.args.dataloader_drop_last = dropping or not training
            return super()._get_dataloader(dataset, description, batch_size, *rest, **kwargs)
        finally:
            self.args.dataloader_drop_last = dropping

    # ---- the step ------------------------------------------------------------------------------------------------------

    def _inner_training_loop(  # type: ignore[override]
        self, batch_size: int | None = None, args: TrainingArguments | None = None, **kwargs: Any
    ) -> Any:
        self._step, self._micro, self._checked = -1, 0, False
        with self._contrasted.head_frozen():
            return super()._inner_training_loop(batch_size=batch_size, args=args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Returns the loss of a micro-batch, of whose number the views are a function."""
        step = self.state.global_step
        self._step, self._micro = step, self._micro + 1 if step == self._step else 0
        return super().training_step(model, inputs, num_items_in_batch)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the Trainer's output of an evaluation, whose views are drawn alike each time."""
        self._evaluated = 0
        return super().evaluation_loop(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Returns `nt_xent` of two views of the images, and their embeddings (B, 2, projection_dim) where asked."""
        x = inputs[self._contrasted.main_input_name]
        if not self._checked:
            self.space.check(x)
            self._checked = True
        if model.training and torch.is_grad_enabled():
            when = (self.state.global_step, self._micro)
        else:
            when, self._evaluated = (-1, self._evaluated), self._evaluated + 1
        # the views depend on where training stands alone, so that a resumed run draws what a straight one does
        seed = keyed_seed("views", self.args.seed, *when, self.accelerator.process_index)
        a, b = model(torch.cat(two_views(self.views, x, self.space, seed))).chunk(2)
        loss = nt_xent(a, b, self._settings["temperature"], gather_rows)
        return (loss, {"loss": loss, "embeddings": torch.stack([a, b], 1)}) if return_outputs else loss

    # ---- save and resume -------------------------------------------------------------------------------------------------

    @contextmanager
    def _as_classifier(self) -> Iterator[ContrastiveModel]:
        """Within it the Trainer saves and loads the classifier as if that was its model."""
        model = self._contrasted
        try:
            self.model = model.classifier
            yield model
        finally:
            self.model = model

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with self._as_classifier() as model:
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_projector(output_dir or self.args.output_dir or ".", model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self._as_classifier() as whole:
            super()._load_from_checkpoint(resume_from_checkpoint)
            load_renamed_weights(resume_from_checkpoint, whole.classifier)
        load_projector(resume_from_checkpoint, whole)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        with self._as_classifier() as whole:
            super()._load_best_model()
            load_renamed_weights(str(best), whole.classifier)
        load_projector(str(best), whole)
