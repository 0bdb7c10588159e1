"""What a training of several networks does otherwise than one of one: clipping, evaluation, saving and going on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction
from transformers.utils import can_return_loss, find_labels

from .peers import PeerModel
from .saved_networks import FOLDER, Export, clear_networks, holds_one_network, network_folders
from .sharding import whole


def inspect_network(trainer: Any) -> None:
    """Has a trainer of several networks know the labels, and whether a loss is returned without them, as of one.

    Args:
        trainer: whose model is looked at.
    """
    if isinstance(trainer.model, PeerModel):
        kind = type(trainer.model.one_network())
        trainer.can_return_loss = can_return_loss(kind)
        trainer.label_names = find_labels(kind) if trainer.args.label_names is None else trainer.args.label_names


def clip_each(model: PeerModel, clip: Callable[[Any, float], Any], largest: float) -> Tensor:
    """Clips each network's gradient by itself, since a common norm would let one shorten the other's step.

    Args:
        model: the networks.
        clip: ``accelerator.clip_grad_norm_``.
        largest: the norm that each gradient is clipped to.

    Returns:
        The norm of all gradients before it.
    """
    norms = [whole(torch.as_tensor(clip(peer.parameters(), largest))) for peer in model.peers]
    return torch.stack(norms).norm()


def folders_of(folder: str, model: Any) -> list[tuple[str, Any]]:
    """Returns which folder to load which network from: the folder and the model as they are where it holds one model.

    Args:
        folder: of a checkpoint.
        model: that is trained, unwrapped.

    Raises:
        ValueError: where the checkpoint has another number of networks, one alone, or a folder is missing.
    """
    if not isinstance(model, PeerModel):
        return [(folder, model)]
    folders = network_folders(folder)
    if folders is None:
        if holds_one_network(folder):
            raise ValueError(
                f"checkpoint {folder!r} holds one network, the model has {len(model.peers)}: copy its folder {FOLDER!r} with it."
            )
        return [(folder, model)]
    if len(folders) != len(model.peers):
        raise ValueError(
            f"checkpoint {folder!r} holds {len(folders)} networks, the model has {len(model.peers)}: resume with as many."
        )
    return list(zip(folders, model.peers))


@contextmanager
def exported(model: nn.Module, export: Export) -> Iterator[None]:
    """Within it ``save_pretrained`` of several networks writes one that opens anywhere, and the others beside it.

    Args:
        model: unwrapped; one network is saved as it is.
        export: which one.
    """
    if not isinstance(model, PeerModel):
        yield
        return
    model.export = export
    try:
        yield
    finally:
        model.export = None


@contextmanager
def exporting(trainer: Any, folder: str) -> Iterator[None]:
    """Within it the Trainer saves of several networks what ``export`` asks for; which is the best its ledger tells.

    Args:
        trainer: whose model is saved.
        folder: that it saves to.
    """
    bare = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(bare, PeerModel) and trainer.args.should_save:
        clear_networks(folder)
    losses = trainer.ledger.network_losses() if trainer.ledger is not None else None
    with exported(bare, Export(getattr(trainer.args, "export", "best"), losses)):
        yield


@contextmanager
def each_reported(trainer: Any, loss_only: bool | None) -> Iterator[bool]:
    """Within it an evaluation sees (mean, each network's) logits; metrics come for the mean and, as ``peer<i>_...``, for each.

    Of one network, and where no metrics are computed, everything is as it was.

    Args:
        trainer: whose ``compute_metrics`` and ``preprocess_logits_for_metrics`` are wrapped.
        loss_only: whether the loss alone is computed; None: as in the arguments.

    Yields:
        Whether it sees both.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    metrics, hook = trainer.compute_metrics, trainer.preprocess_logits_for_metrics
    several = isinstance(model, PeerModel) and not getattr(model.peers[0], "sample_losses", False)
    loss_only = trainer.args.prediction_loss_only if loss_only is None else loss_only
    if not several or loss_only or metrics is None or trainer.args.batch_eval_metrics:
        yield False
        return

    def both(predictions: Any) -> dict[str, Any]:
        mean, each = predictions.predictions
        more = {k: getattr(predictions, k) for k in ("inputs", "losses") if getattr(predictions, k, None) is not None}

        def one(own: np.ndarray) -> dict[str, Any]:
            return metrics(EvalPrediction(predictions=own, label_ids=predictions.label_ids, **more))

        report = dict(one(mean))
        for number in range(each.shape[1]):
            report.update({f"peer{number}_{key}": value for key, value in one(each[:, number]).items()})
        return report

    def hooked(logits: Any, labels: Any) -> Any:
        mean, each = logits
        return hook(mean, labels), torch.stack([hook(own, labels) for own in each.unbind(1)], 1)

    ignored = model.config.keys_to_ignore_at_inference
    model.config.keys_to_ignore_at_inference = []
    trainer.compute_metrics = both
    trainer.preprocess_logits_for_metrics = hooked if hook is not None else None
    try:
        yield True
    finally:
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics = metrics, hook
        model.config.keys_to_ignore_at_inference = ignored
