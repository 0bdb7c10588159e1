"""RobustTrainer: the Trainer's signature; what it does is in `mixin.RobustTrainerMixin`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from transformers import DataCollator, EvalPrediction, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from .methods.recipe import Recipe
from .mixin import RobustTrainerMixin


class RobustTrainer(RobustTrainerMixin, Trainer):
    """`transformers.Trainer` that trains by a robust method; without one it is the plain Trainer, bit for bit.

    After training, `ledger` holds what was learned about each sample and `distrusted_samples()` those it left out.

    Args:
        model: as the Trainer's, and so all up to ``preprocess_logits_for_metrics``.
        args: `TrainingArguments`, or a `RobustConfig`, which names its method itself.
        data_collator: as the Trainer's.
        train_dataset: as the Trainer's.
        eval_dataset: as the Trainer's.
        processing_class: as the Trainer's; an attack reads the images' normalisation from it.
        model_init: as the Trainer's; for methods with several networks called once per network.
        compute_loss_func: as the Trainer's, but one loss for each sample, shape (B,).
        compute_metrics: as the Trainer's.
        callbacks: as the Trainer's.
        optimizers: as the Trainer's.
        optimizer_cls_and_kwargs: as the Trainer's.
        preprocess_logits_for_metrics: as the Trainer's.
        recipe: a `Recipe` of one's own, in a method's place.
        method: a name in `METHODS`, for use with plain `TrainingArguments`.
        **method_settings: settings of the method, e.g. ``noise_rate=0.2`` (docs/reference/settings.md).

    Raises:
        ValueError: for an unknown method or setting, for one outside its range, and for a method named twice.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | datasets.Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | datasets.Dataset | None = None,
        processing_class: Any = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        recipe: Recipe | str | None = None,
        method: str | None = None,
        **method_settings: Any,
    ):
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            recipe=recipe,
            method=method,
            **method_settings,
        )
