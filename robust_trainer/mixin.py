"""RobustTrainerMixin: every hook of the Trainer that a robust method needs, in one file."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from . import audit as audits
from .callbacks.spectral_cap import SpectralCap
from .config import frozen_and_capped, keywords_after, recipe_from
from .data.indexing import INDEX
from .data.streams import StreamSampler
from .ledger.fingerprint import new_ledger
from .ledger.ledger import SampleLedger
from .losses.evaluation import plain_loss
from .methods.data_validation import number_of_rows, validate_datasets, validate_evaluation
from .methods.devices import engine_for
from .methods.input_adapter import find_adapter
from .methods.objective import with_objective
from .methods.recipe import Recipe
from .methods.run_length import fit_to_run, run_length
from .methods.search import searching, start_trial
from .methods.validation import validate_setup
from .models.heads import LinearProbe, head_of, training_mode
from .models.peer_training import clip_each, each_reported, exporting, folders_of, inspect_network
from .models.peers import PeerModel, build_networks, with_peers
from .models.problem import number_of_classes, problem_of, returns_losses
from .models.saved_networks import check_export
from .models.sharding import shardable, whole
from .per_sample_gradients.norms import SampleGradients
from .perturbations.inputs import Forward, InputAdapter
from .problems import SINGLE_LABEL, UNLABELLED, Problem
from .selection.noise_rate import RateEstimate
from .step import checkpoints
from .step.dataset_scores import EpochScan, Passes
from .step.first_batch import check_first_batch, unplanned
from .step.plan import RobustStep
from .step.process_files import state_kind
from .step.records import MicroBatch, StepPlan
from .step.set_up import epoch_ending, indexed_loader, make_run, model_access
from .types import Progress, decides_epochs

logger = logging.get_logger(__name__)


class RobustTrainerMixin(Trainer):
    """Makes a subclass of `transformers.Trainer` train by a robust method: ``class Mine(RobustTrainerMixin, Seq2SeqTrainer)``.

    Guarantee: without a method the subclass is what it would be without the mixin, bit for bit.
    After training, `ledger` holds what was learned about each sample and `distrusted_samples()` those it left out.

    Args:
        *args: of the subclass, as they are.
        recipe: a `Recipe` of one's own, in a method's place.
        method: a name in `METHODS`, for use with plain `TrainingArguments`; a `RobustConfig` names its method itself.
        **kwargs: of the subclass; what it does not know are settings of the method.
    """

    _robust_step: RobustStep | None = None
    _linear_probe: LinearProbe | None = None
    _trained: weakref.ref[nn.Module] | None = None
    _make_adapter: Callable[[Mapping[str, Any]], InputAdapter] | None = None

    def __init__(self, *args: Any, recipe: Recipe | str | None = None, method: str | None = None, **kwargs: Any):
        known = keywords_after(RobustTrainerMixin, type(self))
        settings = {name: kwargs.pop(name) for name in [*kwargs] if name not in known}
        self._find_recipe = partial(
            recipe_from, recipe=recipe, method=method, settings=settings, keywords=[*known, "recipe", "method"]
        )
        self._micro_inputs: list[Any] = []  # the optimizer step's micro-batches, as the loader made them
        self._step_plan: StepPlan | None = None
        self._place: int | None = None  # of the micro-batch that training_step has begun with
        self._bare: tuple[nn.Module, nn.Module] | None = None
        self._training = False
        self._problem: Problem = SINGLE_LABEL
        if args or "model" in kwargs:
            model, rest = (args[0], args[1:]) if args else (kwargs.pop("model"), ())
            given = kwargs.get("args", rest[0] if rest else None)
            args = (with_peers(model, self._find_recipe(given), getattr(given, "seed", 0), head_of), *rest)
        super().__init__(*args, **kwargs)
        inspect_network(self)
        if self.recipe() is not None and returns_losses(self.model):
            self.label_names, self.can_return_loss = [], True  # evaluations have a loss without labels
            self._problem = UNLABELLED
        elif self.recipe() is not None and not self.label_names:
            self.label_names = ["labels"]  # a module that returns bare logits names none

    # ---- the method, and what it learned -------------------------------------------------------------------------------------

    def recipe(self) -> Recipe | None:
        """Returns the method in force: the constructor's, or the arguments'; read anew at each training."""
        return self._find_recipe(getattr(self, "args", None))

    @property
    def ledger(self) -> SampleLedger | None:
        """What the last training learned about each sample; None before it, or for a streaming data set."""
        return self._robust_step.run.ledger if self._robust_step is not None else None

    @property
    def estimated_noise_rate(self) -> RateEstimate | None:
        """The share of wrong labels that ``noise_rate="auto"`` estimates in the last training, None before or without one."""
        return self._robust_step.weights.estimate if self._robust_step is not None else None

    def distrusted_samples(self) -> datasets.Dataset:
        """Returns the ledger's rows left out in over half of their visits since the filter was half-way up, worst first.

        Of ``auto`` the rows whose given label is not trusted, whether they are left out or trained as another class.

        Raises:
            ValueError: without a ledger.
        """
        return self._existing_ledger().distrusted_rows()

    def audit(self, **settings: Any) -> audits.Audit:
        """Returns what the last training says of each sample of ``train_dataset``: suspicion, suggested label, group.

        Args:
            **settings: of `audit.make_audit` (threshold, look, seed).

        Raises:
            ValueError: without a ledger.
        """
        ledger = self._existing_ledger()
        return audits.make_audit(ledger.rows(), ledger.run, self.train_dataset, **settings)

    def _existing_ledger(self) -> SampleLedger:
        if self.ledger is None:
            raise ValueError("no ledger: name a method ('standard' only watches), then train() on a data set with a length.")
        return self.ledger

    # ---- the model: several networks, a frozen backbone ----------------------------------------------------------------------

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Returns a new model, of several networks where the method in force trains several; called once for each of them."""
        start_trial(self, trial)
        recipe, build = self.recipe(), partial(super().call_model_init, trial)
        return build() if recipe is None else build_networks(build, recipe.num_networks, self._trained)

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the Trainer's result; method and settings are as before the search, in each trial but for what it sets."""
        with searching(self):
            return super().hyperparameter_search(*args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None and isinstance(self.model, PeerModel):
            self._signature_columns: Any = self.model.signature_columns(self.label_names)
        super()._set_signature_columns_if_needed()

    def compute_loss_context_manager(self) -> Any:
        """Returns the Trainer's context; a frozen backbone is put back into evaluation mode, which ``model.train()`` has left."""
        if self._linear_probe is not None:  # training_step has just called model.train()
            self._linear_probe.hold()
        return super().compute_loss_context_manager()

    # ---- one training: start and end -----------------------------------------------------------------------------------------

    def _inner_training_loop(  # type: ignore[override]
        self, batch_size: int | None = None, args: TrainingArguments | None = None, **kwargs: Any
    ) -> Any:
        with self._robust_training():
            return super()._inner_training_loop(batch_size=batch_size, args=args, **kwargs)

    @contextmanager
    def _robust_training(self) -> Iterator[None]:
        """One training: what is frozen and capped in it is as it was afterwards, but for the weights."""
        self._robust_step = None  # a training that is refused leaves no ledger of an earlier one
        freeze_backbone, cap = frozen_and_capped(self.args, self.recipe())
        callbacks: list[TrainerCallback] = []
        bare = self.accelerator.unwrap_model(self.model)
        check_export(getattr(self.args, "export", "best"), len(bare.peers) if isinstance(bare, PeerModel) else 1)
        with LinearProbe(bare) if freeze_backbone else nullcontext() as self._linear_probe:
            try:
                step = self._robust_step = self._set_up(bare)
                rule = decides_epochs(step.run.recipe.selection) if step is not None else None
                callbacks += [SpectralCap(cap.k, cap.layers)] if cap is not None else []
                if step is not None and ((rule is not None and rule.memory == "scan") or step.evidence is not None):
                    callbacks.append(self._epoch_scan(step))
                for callback in callbacks:
                    self.add_callback(callback)
                self._training = True
                yield
            finally:
                for callback in callbacks:
                    self.remove_callback(callback)
                self._micro_inputs, self._step_plan, self._place, self._bare = [], None, None, None
                self._training, self._linear_probe, self._trained = False, None, weakref.ref(bare)

    def _set_up(self, bare: nn.Module) -> RobustStep | None:
        """The state of one training, None without a method. All that the user gave is checked here, before the first step."""
        recipe = self.recipe()
        self._micro_inputs, self._step_plan, self._place = [], None, None
        if recipe is None:
            self.loss_is_scaled_for_ga = type(self).loss_is_scaled_for_ga
            return None
        self.loss_is_scaled_for_ga = True
        size = number_of_rows(self.train_dataset)
        problem = self._problem = problem_of(bare, getattr(self.args, "problem_type", None))
        validate_setup(self, recipe, size, problem, bare)
        recipe, said = fit_to_run(recipe, problem, run_length(self.args, size), size)
        classes = number_of_classes(bare)
        validate_datasets(self, problem, classes, bare)
        recipe = with_objective(recipe, problem, self.compute_loss_func, self.args.label_smoothing_factor)
        run = make_run(self, recipe, problem, classes, size)
        recorder = SampleGradients(training_mode(bare, self._linear_probe)) if recipe.gradients else None
        perturbs = recipe.perturbation is not None or recipe.semi_supervised is not None
        self._make_adapter = find_adapter(self, recipe, bare) if perturbs else None
        if size is not None:
            run.ledger = new_ledger(self, recipe, problem, classes, size, getattr(bare, "config", None))
        step = RobustStep(run)
        step.outer.recorder = recorder
        logger.info(f"robust method '{recipe.name}': {recipe.in_force}")
        for message in said:
            logger.warning(message)
        return step

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        recipe = self.recipe()
        if not self.is_fsdp_enabled or recipe is None:
            with engine_for(self, recipe, self._restore_weights):
                return super()._prepare_for_training(*args, **kwargs)
        wrapped = self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap
        with shardable(self.model, wrapped):
            return super()._prepare_for_training(*args, **kwargs)

    def _restore_weights(self) -> None:
        """Puts back what AWP has moved, if it has."""
        if self._step_plan is not None and self._step_plan.perturbed_weights is not None:
            self._step_plan.perturbed_weights.restore()

    # ---- data: the index travels with the batch, two streams are mixed -------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Returns the Trainer's loader, whose batches carry the positions of their samples while a method trains."""
        data, step = self.train_dataset, self._robust_step
        if not self._training or step is None or step.run.ledger is None or data is None:
            return super().get_train_dataloader()
        recipe = step.run.recipe

        def sampler(rows: Any) -> Any:
            semi = recipe.semi_supervised
            if semi is None or recipe.selection is None:
                return self._get_train_sampler(rows)
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return StreamSampler(len(rows), lambda: (int(self._progress().epoch), step.labelled()), semi.labelled_share, seed)

        return indexed_loader(self, step.run, sampler, self._train_batch_size, "Training", training=True)

    def _epoch_scan(self, step: RobustStep) -> EpochScan:
        """The callback that has the training set scored at an epoch's start."""

        def decide(loader: Any) -> str:
            bare = self._unwrapped(self.model_wrapped)
            batches = Passes(loader, lambda inputs: self._micro_batch(self._prepare_inputs(inputs)))
            return step.decide_epoch(bare, batches, self._progress())

        def loader() -> Any:
            return indexed_loader(self, step.run, SequentialSampler, None, "Scoring", training=False)

        return EpochScan(lambda: step.scan_due(self._progress()), loader, decide)

    # ---- the step ------------------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Returns the micro-batches of the next optimizer step, and keeps them: a step is planned as a whole."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_inputs, self._step_plan = (batches if self._robust_step is not None else []), None
        return batches, items

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Returns the loss of one micro-batch after its backward pass, detached; weights that AWP moved are restored."""
        if self._robust_step is None:
            return super().training_step(model, inputs, num_items_in_batch)
        self._place = next((i for i, batch in enumerate(self._micro_inputs) if batch is inputs), None)
        if self._place is None:  # called directly, outside the loop: a step of its own
            self._micro_inputs, self._step_plan, self._place = [inputs], None, 0
        if self._place is not None:
            every = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
            self._robust_step.defer(not every and self._place < len(self._micro_inputs) - 1)
        if INDEX in inputs:  # the step is planned from the batch as it came, whose positions are nobody else's business
            inputs = {k: v for k, v in inputs.items() if k != INDEX}
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._restore_weights()
        if self._place is not None:
            raise ValueError(
                f"{type(self).__name__} overrides compute_loss without calling super().compute_loss: "
                f"method '{self._robust_step.run.recipe.name}' would do nothing; call it, or set method=None."
            )
        return loss

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Returns the method's loss in a training step, and the Trainer's own in an evaluation; arguments as the Trainer's."""
        step, place = self._robust_step, self._place
        # model.training alone also holds in a prediction step right after a training step; of a frozen backbone it is False
        training = (model.training or self._linear_probe is not None) and torch.is_grad_enabled()
        if step is None or place is None or not training:
            if step is not None and training and self._training:
                raise ValueError(unplanned(self, step.run.recipe.name))
            base = super().compute_loss
            if step is not None or self.recipe() is not None:
                if step is None:  # nothing was trained yet
                    self._problem = problem_of(self._unwrapped(model), getattr(self.args, "problem_type", None))
                return plain_loss(self, base, model, inputs, return_outputs, num_items_in_batch, self._problem)
            return base(model, inputs, return_outputs, num_items_in_batch)
        self._place = None
        progress, bare = self._progress(), self._unwrapped(model)
        forward: Forward = lambda moved: bare(**moved)  # noqa: E731 - under the same autocast as the wrapped model's
        if self._step_plan is None:
            check_first_batch(self, step, bare, inputs, self._micro_inputs[place])
            self._step_plan = self._plan(step, bare, forward, progress)
        plan = self._step_plan
        if plan.perturbed_weights is not None:
            plan.perturbed_weights.apply()  # until this micro-batch's backward is done: see training_step
        with step.recording(plan.batches[place]):
            outputs = step.outer.first(lambda moved: model(**moved), plan.batches[place])
        loss = step.loss(outputs, forward, plan, place, progress)
        return (loss, outputs) if return_outputs else loss

    def _plan(self, step: RobustStep, bare: nn.Module, forward: Forward, progress: Progress) -> StepPlan:
        batches = [self._micro_batch(self._prepare_inputs(inputs)) for inputs in self._micro_inputs]
        if self._training and step.run.ledger is not None and batches[0].index is None:
            raise ValueError(
                f"{type(self).__name__} overrides get_train_dataloader and the batches carry no sample index: "
                "build on super().get_train_dataloader(), or set method=None."
            )
        recipe = step.run.recipe
        if self._make_adapter is not None and step.adapter is None:
            step.set_adapter(self._make_adapter(batches[0].inputs))
        access = model_access(bare, forward, recipe, self.args.device, step.run.deferred)
        return step.plan(access, batches, progress, epoch_ending(self, step.run))

    def _unwrapped(self, model: nn.Module) -> nn.Module:
        """The model inside its wrappers."""
        if self._bare is None or self._bare[0] is not model:
            self._bare = (model, self.accelerator.unwrap_model(model, keep_torch_compile=True))
        return self._bare[1]

    def _micro_batch(self, inputs: Mapping[str, Any]) -> MicroBatch:
        names = self.label_names if self._problem.labelled else self.args.label_names or []
        rest, targets = self._problem.split({k: v for k, v in inputs.items() if k != INDEX}, names)
        return MicroBatch(rest, targets, inputs.get(INDEX))

    def _progress(self) -> Progress:
        epoch, epochs, step = self.state.epoch or 0.0, float(self.state.num_train_epochs or 1), self.state.global_step
        if self._robust_step is not None and self._training:  # the Trainer rounds the epochs, and takes a stream for endless
            epoch, epochs = self._robust_step.run.epochs_at(epoch, step)
        return Progress(epoch, epochs, step, seed=self.args.seed)

    # ---- the gradient's norm, evaluation, logs -------------------------------------------------------------------------------

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        recipe = self._robust_step.run.recipe if self._robust_step is not None else None
        bare = self._unwrapped(model)
        bare = getattr(bare, "_orig_mod", bare)  # of a compiled model, which would not be taken for several networks
        largest = recipe.clip_norm if recipe is not None and recipe.clip_norm is not None else self.args.max_grad_norm
        if isinstance(bare, PeerModel) and recipe is not None:
            return clip_each(bare, self.accelerator.clip_grad_norm_, largest)
        if recipe is not None and recipe.clip_norm is not None:
            return self.accelerator.clip_grad_norm_(model.parameters(), largest)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and self._robust_step is not None and self._robust_step.run.recipe.clip_norm is not None:
            grad_norm = self._clip_grad_norm(model)  # max_grad_norm=0 switches the Trainer's own clipping off, not the method's
        norm = super()._get_grad_norm(model, grad_norm)
        norm = whole(norm) if isinstance(norm, Tensor) else norm
        scaled = self.is_deepspeed_enabled or self.accelerator.scaler is not None  # they skip by themselves
        if self._robust_step is not None and not scaled:
            self._robust_step.recorder.guard.skip(model.parameters(), norm, self.optimizer)
        return norm

    def evaluation_loop(
        self, dataloader: Any, description: str, prediction_loss_only: bool | None = None, ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:  # fmt: skip
        """Returns the Trainer's result; of several networks the metrics of their mean and, as ``peer<i>_...``, of each."""
        if self.recipe() is not None:
            validate_evaluation(self, dataloader, metric_key_prefix, self.accelerator.unwrap_model(self.model))
        with each_reported(self, prediction_loss_only) as several:
            output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        return output._replace(predictions=output.predictions[0]) if several else output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs what the Trainer logs and, with the training loss, the means of what the method did since the last time."""
        if self._robust_step is not None and {"loss", "train_loss"} & logs.keys():
            for message in self._robust_step.recorder.log(logs, self.state.log_history, int(self.state.epoch or 0)):
                logger.warning(message)
        super().log(logs, start_time)

    # ---- checkpoints ---------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Returns the Trainer's result. With a method only a whole checkpoint is resumed from; True takes the newest of these."""
        resume = resume_from_checkpoint if self.recipe() is None else checkpoints.to_resume_from(self, resume_from_checkpoint)
        return super().train(resume, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with checkpoints.saving(self, trial) if self._robust_step is not None else nullcontext():
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._robust_step is not None:
            checkpoints.mark(self, output_dir)  # only the Trainer's own state is still to come

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = output_dir or self.args.output_dir or "."
        with exporting(self, folder):
            super()._save(output_dir, state_dict)
        self._save_own(folder)

    def _save_own(self, folder: str) -> None:
        if self.args.should_save:
            checkpoints.save(folder, self._robust_step) if self._robust_step is not None else checkpoints.clear(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model as the Trainer does, and what a robust run keeps beside it. All processes must call it."""
        with self.ledger.gathered(self.args.should_save) if self.ledger is not None else nullcontext():
            super().save_model(output_dir, _internal_call)
            if state_kind(self) == "SHARDED_STATE_DICT":  # the Trainer's checkpoint then holds the processes' parts alone
                self._save_own(output_dir or self.args.output_dir or ".")
                if not _internal_call and self.recipe() is not None and self.args.should_save:
                    logger.warning(
                        "state_dict_type='SHARDED_STATE_DICT': the Trainer saves weights in its checkpoints alone; for a model "
                        "that opens anywhere call trainer.accelerator.state.fsdp_plugin.set_state_dict_type("
                        "'FULL_STATE_DICT') first."
                    )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        recipe, load = self.recipe(), super()._load_from_checkpoint
        checkpoints.check_method(resume_from_checkpoint, recipe)
        with checkpoints.reading(resume_from_checkpoint):
            if model is not None:
                return load(resume_from_checkpoint, model)
            for folder, network in folders_of(resume_from_checkpoint, self.model):
                load(folder, network)
                if recipe is not None and isinstance(network, nn.Module):
                    checkpoints.load_renamed_weights(folder, network)

    def _load_best_model(self) -> None:
        best, sharded = self.state.best_model_checkpoint, self.is_fsdp_enabled or self.is_deepspeed_enabled
        if best is not None and not sharded and len(folders_of(best, self.model)) > 1:
            return self._load_from_checkpoint(best)
        super()._load_best_model()
        if self._robust_step is not None and best is not None and not sharded and isinstance(self.model, nn.Module):
            checkpoints.load_renamed_weights(best, self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._robust_step is not None:
            checkpoints.load(checkpoint, self._robust_step)
            self._robust_step.recorder.detected_epoch = int(self.state.epoch or 0)
        with checkpoints.reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with checkpoints.reading(checkpoint):
            super()._load_rng_state(checkpoint)
