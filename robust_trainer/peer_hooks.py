"""The Trainer's hooks that several networks, or a method's own clipping, ask for; with one network they are the Trainer's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.utils import find_labels

from .methods.recipe import Recipe
from .models.heads import head_of
from .models.peers import PeerModel, clip_each, each_reported, make_peers
from .step.plan import RobustStep


class PeerHooks(Trainer):
    """A Trainer whose model is a `PeerModel` where the method trains several networks; base class of `RobustTrainer`."""

    _find_recipe: Callable[..., Recipe | None]
    _walk: RobustStep | None

    def __init__(self, *args: Any, **kwargs: Any):
        if args or "model" in kwargs:
            model, rest = (args[0], args[1:]) if args else (kwargs.pop("model"), ())
            args = (self._with_peers(model, kwargs.get("args", rest[0] if rest else None)), *rest)
        super().__init__(*args, **kwargs)
        if isinstance(self.model, PeerModel) and self.args.label_names is None:
            self.label_names = find_labels(type(self.model.peers[0]))

    def recipe(self) -> Recipe | None:
        """The method in force."""
        raise NotImplementedError

    def _with_peers(self, model: Any, args: Any) -> Any:
        recipe = self._find_recipe(args)
        if recipe is None or recipe.num_networks == 1 or not isinstance(model, nn.Module) or isinstance(model, PeerModel):
            return model
        return make_peers(model, recipe.num_networks, getattr(args, "seed", 0), head_of if recipe.freeze_backbone else None)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        recipe = self.recipe()
        model = super().call_model_init(trial)
        if recipe is None or recipe.num_networks == 1 or isinstance(model, PeerModel):
            return model
        # called once per peer: the random state moves on, so that they start from other weights
        return PeerModel.of([model, *(super(PeerHooks, self).call_model_init(trial) for _ in range(1, recipe.num_networks))])

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None and isinstance(self.model, PeerModel):
            names = list(inspect.signature(self.model.peers[0].forward).parameters)
            self._signature_columns: Any = list(dict.fromkeys([*names, "label", "label_ids", *self.label_names]))
        super()._set_signature_columns_if_needed()

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        recipe, bare = self._walk.recipe if self._walk is not None else None, self.accelerator.unwrap_model(model)
        largest = recipe.clip_norm if recipe is not None and recipe.clip_norm is not None else self.args.max_grad_norm
        if isinstance(bare, PeerModel) and recipe is not None:
            return clip_each(bare, self.accelerator.clip_grad_norm_, largest)
        if recipe is not None and recipe.clip_norm is not None:
            return self.accelerator.clip_grad_norm_(model.parameters(), largest)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and self._walk is not None and self._walk.recipe.clip_norm is not None:
            grad_norm = self._clip_grad_norm(model)  # max_grad_norm=0 switches the Trainer's own clipping off, not the method's
        return super()._get_grad_norm(model, grad_norm)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        bare = self.accelerator.unwrap_model(self.model)
        peers = isinstance(bare, PeerModel) and not getattr(bare.peers[0], "sample_losses", False)
        if not peers or loss_only or self.compute_metrics is None or self.args.batch_eval_metrics:
            return super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        with each_reported(self):
            found = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys or [], metric_key_prefix)
        return found._replace(predictions=found.predictions[0])
