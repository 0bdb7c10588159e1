"""What a training's steps are made of, from the Trainer: the run, the model as a step uses it, loaders that carry positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import Trainer

from ..data.indexing import IndexCollator, Indexed
from ..methods.recipe import Recipe
from ..methods.run_length import run_length
from ..models.modes import checkpointed_eval_mode, preserve_buffers
from ..models.sharding import gradients_alone, is_sharded, reshard
from ..perturbations.inputs import Forward
from ..problems import Problem
from .records import ModelAccess, Run


def make_run(trainer: Trainer, recipe: Recipe, problem: Problem, classes: int | None, size: int | None) -> Run:
    """Returns what all steps of one training share, still without a ledger.

    Args:
        trainer: whose accelerator and arguments count.
        recipe: the method.
        problem: what kind of problem the samples pose.
        classes: the model's classes (or outputs), None where its config names none.
        size: rows of the data set, None for a stream.
    """
    accelerator = trainer.accelerator
    several = accelerator.num_processes > 1
    return Run(
        recipe=recipe,
        length=run_length(trainer.args, size),
        device=trainer.args.device,
        problem=problem,
        classes=classes or 0,
        labels_checked=classes is not None and size is not None,
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
        seed=trainer.args.seed,
        gather=accelerator.gather if several else lambda t: t,
        total=partial(accelerator.reduce, reduction="sum") if several else lambda t: t,
        gradient_scale=2.0**8 if accelerator.mixed_precision == "fp16" else 1.0,
    )


def model_access(model: nn.Module, forward: Forward, recipe: Recipe, device: torch.device, deferred: bool = False) -> ModelAccess:
    """Returns the unwrapped model as a step uses it beside the training forward.

    Args:
        model: unwrapped.
        forward: its forward.
        recipe: says in which mode it is attacked, and which weights AWP moves.
        device: of the training.
        deferred: as `Run.deferred`.
    """

    def crafting() -> AbstractContextManager:
        training = recipe.perturbation is not None and recipe.perturbation.attack_mode == "train"
        return preserve_buffers(model) if training else checkpointed_eval_mode(model)

    @contextmanager
    def training_forward() -> Iterator[None]:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), preserve_buffers(model):
            yield

    sharded = is_sharded(model)
    fresh = partial(reshard, model) if sharded else lambda: None
    fresh()
    moved = recipe.weight_perturbation.weights(model) if recipe.weight_perturbation is not None else []

    def gradients(loss: Tensor) -> Sequence[Tensor | None]:
        if not sharded:
            return torch.autograd.grad(loss, moved, allow_unused=True)
        with gradients_alone(model, deferred):
            loss.backward()
            return [weight.grad for weight in moved]

    return ModelAccess(forward, crafting, training_forward, moved, gradients, fresh)


def epoch_ending(trainer: Any, run: Run) -> int | None:
    """Returns the samples of the epoch if the loader has just given its last batch of it, else None.

    One process, and ``dataloader_drop_last``, repeat no samples, so they are not asked.

    Args:
        trainer: whose loader gives the batches.
        run: of the training.
    """
    state = trainer.accelerator.gradient_state
    if run.processes == 1 or trainer.args.dataloader_drop_last or not state.in_dataloader or not state.end_of_dataloader:
        return None
    if run.ledger is not None:
        return run.epoch_samples
    return state.remainder if state.remainder > 0 else None  # of a stream the last step's samples, where process 0 reads for all


def indexed_loader(
    trainer: Any, run: Run, sampler: Callable[[Any], Any], batch_size: int | None, description: str, training: bool
) -> Any:
    """Returns a loader of the training set whose batches carry the positions of their samples.

    Args:
        trainer: whose training set, collator and loader settings count.
        run: of the training.
        sampler: from the rows, the order in which they come.
        batch_size: of one process; None: the larger one of training and evaluation, since what fits with gradients fits without.
        description: of the loader, for the Trainer's messages.
        training: whether ``dataloader_drop_last`` counts, and the Trainer's own training behaviour.
    """
    data, collator = trainer.train_dataset, trainer.data_collator
    if isinstance(data, datasets.Dataset):
        data, collate = trainer._remove_unused_columns(data, description="training"), collator
    else:
        collate = trainer._get_collator_with_removed_columns(collator, description="training")
    names = list(dict.fromkeys([*trainer.label_names, "labels", "label"]))
    main = getattr(trainer.accelerator.unwrap_model(trainer.model), "main_input_name", "pixel_values")
    drop_last = trainer.args.dataloader_drop_last

    def ordered(_: Any) -> Any:
        order = sampler(data)
        if training:
            run.epoch_samples = len(order) if hasattr(order, "__len__") else None
        return order

    trainer.data_collator = IndexCollator(collate, names, run.classes or None, main, run.problem)
    trainer.args.dataloader_drop_last = drop_last and training
    try:
        return trainer._get_dataloader(
            dataset=Indexed(data),
            description=description,
            batch_size=batch_size or max(trainer.args.eval_batch_size, trainer._train_batch_size),
            sampler_fn=ordered,
            is_training=training,
        )
    finally:
        trainer.data_collator, trainer.args.dataloader_drop_last = collator, drop_last
