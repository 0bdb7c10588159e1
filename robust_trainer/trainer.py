"""RobustTrainer: with `DataHooks`, `PeerHooks` and `EpochScan` (docs/background/how_it_works.md)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from . import audit as audits
from .config import recipe_from
from .data.indexing import INDEX
from .data.labels import check_label_column
from .data_hooks import DataHooks
from .ledger.fingerprint import new_ledger
from .ledger.ledger import SampleLedger
from .losses.evaluation import plain_loss
from .losses.standard import CrossEntropy, UserLoss, make_objective
from .methods import validation as checks
from .methods.recipe import Recipe
from .models.modes import untouched
from .models.problem import number_of_classes, problem_of, returns_losses
from .per_sample_gradients.norms import SampleGradients
from .perturbations.collapse import collapse
from .perturbations.inputs import InputAdapter
from .problems import SINGLE_LABEL, UNLABELLED, Problem
from .selection.noise_rate import RateEstimate
from .step import checkpoints
from .step.batch import Batch, Step
from .step.dataset_scores import EpochScan
from .step.plan import RobustStep
from .types import Progress, decides_epochs

logger = logging.get_logger(__name__)


class RobustTrainer(DataHooks):
    """`transformers.Trainer` that trains by a robust method; without one it is the plain Trainer, bit for bit.

    method, and its settings as keywords: for use with plain `TrainingArguments`; a `RobustConfig` names its method itself.
    recipe: a `Recipe` of one's own, in a method's place.
    After training, `ledger` holds what was learned about each sample and `distrusted_samples()` those it left out.
    """

    def __init__(self, *args: Any, recipe: Recipe | str | None = None, method: str | None = None, **kwargs: Any):
        keywords = inspect.signature(Trainer.__init__).parameters
        settings = {name: kwargs.pop(name) for name in [*kwargs] if name not in keywords}
        self._find_recipe = partial(
            recipe_from, recipe=recipe, method=method, settings=settings, keywords=[*keywords, "recipe", "method"][1:]
        )
        self._walk: RobustStep | None = None
        self._window: list[Any] = []
        self._step: Step | None = None
        self._micro: int | None = None
        self._bare: tuple[nn.Module, nn.Module] | None = None
        self._training = False
        self._problem: Problem = SINGLE_LABEL
        self._auroc_epoch = -1
        self._make_front: Callable[[Mapping[str, Any]], InputAdapter]
        super().__init__(*args, **kwargs)
        if self.recipe() is not None and returns_losses(self.model):
            self.label_names, self.can_return_loss = [], True  # evaluations have a loss without labels
            self._problem = UNLABELLED
        elif self.recipe() is not None and not self.label_names:
            self.label_names = ["labels"]  # a module that returns bare logits names none

    # ---- the method --------------------------------------------------------------------------------------------------

    def recipe(self) -> Recipe | None:
        """The method in force: the constructor's recipe, or the arguments'. Read anew at each training."""
        return self._find_recipe(getattr(self, "args", None))

    @property
    def ledger(self) -> SampleLedger | None:
        """What the last training learned about each sample; None before it, or for a streaming data set."""
        return self._walk.ledger if self._walk is not None else None

    @property
    def estimated_noise_rate(self) -> RateEstimate | None:
        """The share of wrong labels that ``noise_rate="auto"`` found in the last training, None before or without an estimate."""
        return self._walk.estimate if self._walk is not None else None

    def distrusted_samples(self) -> datasets.Dataset:
        """The samples left out in more than half of their visits since the filter was half-way up, highest mean score first."""
        if self.ledger is None:
            raise ValueError("no ledger: train with a method on a data set with a length first.")
        rows = self.ledger.to_dataset()
        flagged = np.flatnonzero(np.asarray(rows["distrusted"][:]))
        scores = np.asarray(rows["mean_score"][:])[flagged]
        return rows.select(flagged[np.argsort(-scores, kind="stable")])

    def audit(self, **settings: Any) -> audits.Audit:
        """What the last training says of each sample of ``train_dataset``: suspicion, suggested label, group (`audit.make_audit`).

        settings: of `make_audit` (threshold, look, seed). Raises ``ValueError`` without a ledger.
        """
        if self.ledger is None:
            raise ValueError("no ledger: train with a method on a data set with a length first.")
        return audits.make_audit(self.ledger.rows(), self.ledger.run, self.train_dataset, **settings)

    def _open(self) -> None:
        """Builds the walk for one training. Everything about the user's set-up is checked here, before the first step."""
        recipe = self.recipe()
        self._walk = None
        self._window, self._step, self._micro = [], None, None
        if recipe is None:
            self.loss_is_scaled_for_ga = type(self).loss_is_scaled_for_ga
            return
        self.loss_is_scaled_for_ga = True
        data = self.train_dataset
        size = None if data is None or isinstance(data, IterableDataset) or not hasattr(data, "__len__") else len(data)
        if size == 0:
            raise ValueError("train_dataset is empty (0 rows): nothing to train on.")
        if isinstance(data, dict):
            kind = type(data).__name__
            raise ValueError(f"train_dataset is a {kind} of {list(data)}: pass one split, train_dataset=data['train'].")
        bare = self.accelerator.unwrap_model(self.model)
        problem = self._problem = problem_of(bare, getattr(self.args, "problem_type", None))
        checks.refuse(self, recipe, size, problem, bare)
        classes = number_of_classes(bare)
        if isinstance(data, datasets.Dataset):
            check_label_column(data, self.label_names, classes, self.args.remove_unused_columns, problem)
        walk = RobustStep(
            recipe=self._with_objective(recipe, problem),
            classes=classes or 0,
            problem=problem,
            labels_checked=classes is not None and size is not None,
            device=self.args.device,
            processes=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            seed=self.args.seed,
            gather=self.accelerator.gather if self.accelerator.num_processes > 1 else lambda t: t,
            total=self._sum_over_processes,
            gradient_scale=2.0**8 if self.accelerator.mixed_precision == "fp16" else 1.0,
        )
        if recipe.gradients:
            walk.outer.recorder = SampleGradients(self._in_training_mode(bare))
        if recipe.perturbation is not None or recipe.semi_supervised is not None:
            self._make_front = checks.front_of(self, recipe, bare)
        if size is not None:
            walk.watch(new_ledger(self, walk.recipe, problem, classes, size, getattr(bare, "config", None)))
        self._walk = walk
        self._auroc_epoch = 0
        logger.info(f"robust method '{recipe.name}': {dict(recipe.settings)}")

    def _with_objective(self, recipe: Recipe, problem: Problem) -> Recipe:
        """The recipe with the problem's own loss where it names none, and the user's loss or label smoothing."""
        if self.compute_loss_func is not None:
            return replace(recipe, objective=UserLoss(self.compute_loss_func))
        name = recipe.settings.get("objective", "auto")
        if name == "auto" and not isinstance(recipe.objective, CrossEntropy):
            return recipe  # a row with a loss of its own, or the user's recipe; whether it fits was checked
        if self.args.label_smoothing_factor:
            return replace(recipe, objective=CrossEntropy(self.args.label_smoothing_factor))
        if name == "auto" and problem.one_class:
            return recipe
        return replace(recipe, objective=make_objective(name, recipe.settings, problem))

    def _sum_over_processes(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="sum") if self.accelerator.num_processes > 1 else value

    # ---- the step ------------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._window, self._step = (batches if self._walk is not None else []), None
        return batches, items

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if self._walk is None:
            return super().training_step(model, inputs, num_items_in_batch)
        self._micro = next((i for i, batch in enumerate(self._window) if batch is inputs), None)
        if self._micro is None:  # called directly, outside the loop: a step of its own
            self._window, self._step, self._micro = [inputs], None, 0
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            if self._step is not None and self._step.perturbed_weights is not None:
                self._step.perturbed_weights.restore()
        if self._micro is not None:
            raise ValueError(
                f"{type(self).__name__} overrides compute_loss without calling super().compute_loss: "
                f"method '{self._walk.recipe.name}' would do nothing; call it, or set method=None."
            )
        return loss

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if INDEX in inputs and self._walk is not None:
            inputs = {k: v for k, v in inputs.items() if k != INDEX}
        # model.training alone also holds in a prediction step right after a training step; of a frozen backbone it is False
        training = (model.training or self._alone is not None) and torch.is_grad_enabled()
        if self._walk is None or self._micro is None or not training:
            if self._walk is not None or self.recipe() is not None:
                base = super().compute_loss
                return plain_loss(self, base, model, inputs, return_outputs, num_items_in_batch, self._problem)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        micro, self._micro = self._micro, None
        progress = self._progress()
        if self._step is None:
            self._step = self._plan(model, progress)
        step = self._step
        batch = step.batches[micro]
        if step.perturbed_weights is not None:
            step.perturbed_weights.apply()  # until this micro-batch's backward is done: see training_step
        with self._walk.outer.recording(batch):
            outputs = self._walk.outer.first(lambda given: model(**given), batch)
        loss = self._walk.loss(outputs, self._forward, batch, step, progress)
        return (loss, outputs) if return_outputs else loss

    def _plan(self, model: nn.Module, progress: Progress) -> Step:
        walk = self._walk
        assert walk is not None
        batches = [self._batch(self._prepare_inputs(raw)) for raw in self._window]
        if self._training and walk.ledger is not None and batches[0].index is None:
            raise ValueError(
                f"{type(self).__name__} overrides get_train_dataloader and the batches carry no sample index: "
                "build on super().get_train_dataloader(), or set method=None."
            )
        bare = self._unwrapped(model)
        attack, shake = walk.recipe.perturbation, walk.recipe.weight_perturbation
        if (attack is not None or walk.recipe.semi_supervised is not None) and walk.outer.front is None:
            walk.set_front(self._make_front(batches[0].inputs))

        def crafting() -> AbstractContextManager:
            return untouched(bare, attack.attack_mode if attack is not None else "eval")

        @contextmanager
        def traceless() -> Iterator[None]:
            devices = [self.args.device] if self.args.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices), untouched(bare, "train"):
                yield

        weights = shake.weights(bare) if shake is not None else []
        return walk.plan(self._forward, crafting, traceless, batches, progress, weights)

    def _unwrapped(self, model: nn.Module) -> nn.Module:
        """The model inside its wrappers, which `_forward` calls from now on."""
        if self._bare is None or self._bare[0] is not model:
            self._bare = (model, self.accelerator.unwrap_model(model, keep_torch_compile=True))
        return self._bare[1]

    def _forward(self, inputs: dict[str, Any]) -> Any:
        """The unwrapped model's forward, under the same autocast as the wrapped one's."""
        assert self._bare is not None
        return self._bare[1](**inputs)

    def _batch(self, inputs: Mapping[str, Any]) -> Batch:
        names = self.label_names if self._problem.labelled else self.args.label_names or []
        rest, targets = self._problem.split({k: v for k, v in inputs.items() if k != INDEX}, names)
        return Batch(rest, targets, inputs.get(INDEX))

    def _progress(self) -> Progress:
        epochs = float(self.state.num_train_epochs or 1)
        return Progress(self.state.epoch or 0.0, epochs, self.state.global_step, seed=self.args.seed)

    # ---- life cycle: start, log, save, resume ----------------------------------------------------------------------------

    def _inner_training_loop(  # type: ignore[override]
        self, batch_size: int | None = None, args: TrainingArguments | None = None, **kwargs: Any
    ) -> Any:
        with self._switched():
            self._open()
            self._training = True
            rule = decides_epochs(self._walk.recipe.selection) if self._walk is not None else None
            scan = [EpochScan(self)] if rule is not None and rule.memory == "scan" else []
            for callback in scan:
                self.add_callback(callback)
            try:
                return super()._inner_training_loop(batch_size=batch_size, args=args, **kwargs)
            finally:
                for callback in scan:
                    self.remove_callback(callback)
                self._window, self._step, self._micro, self._bare, self._training = [], None, None, None, False

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._walk is not None and "loss" in logs:
            logs.update(self._walk.take_logs())
            self._warn_of_the_estimate()
            logs.update(collapse(self.state.log_history, logs))
            epoch = int(self.state.epoch or 0)
            if self._walk.ledger is not None and epoch > self._auroc_epoch:
                self._auroc_epoch = epoch
                logs.update({f"filter_{name}": value for name, value in self._walk.ledger.detection().items()})
        super().log(logs, start_time)

    def _warn_of_the_estimate(self) -> None:
        found = self._walk.estimator if self._walk is not None else None
        if found is not None and found.settled and not found.warned:
            found.warned = True
            if not found.started:
                logger.warning(
                    "noise_rate='auto' found nothing: the model predicts held-out samples hardly better than chance, so nobody is "
                    "dropped; give noise_rate a number, or train longer."
                )
            elif found.falling and found.best is not None and found.best.rate > 0.05:
                logger.warning(f"noise_rate='auto' found {found.best}, but it was still sinking: the true rate may be far lower.")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = output_dir or self.args.output_dir or "."
            checkpoints.save(folder, self._walk) if self._walk is not None else checkpoints.clear(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        recipe = self.recipe()
        checkpoints.check_method(resume_from_checkpoint, recipe)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if recipe is not None and model is None and isinstance(self.model, nn.Module):
            checkpoints.load_renamed_weights(resume_from_checkpoint, self.model)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = self.state.best_model_checkpoint
        if self._walk is not None and best is not None and isinstance(self.model, nn.Module):
            checkpoints.load_renamed_weights(best, self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._walk is not None:
            checkpoints.check_method(checkpoint, self._walk.recipe)
            checkpoints.load(checkpoint, self._walk)
            self._auroc_epoch = int(self.state.epoch or 0)
        super()._load_optimizer_and_scheduler(checkpoint)
