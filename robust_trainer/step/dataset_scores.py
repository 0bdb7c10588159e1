"""The scan at an epoch's start: every training sample scored, in evaluation mode (ERAT's split, ``memory="scan"``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from transformers.utils import logging

from ..ledger.ledger import SampleLedger
from ..ledger.margins import trace
from ..models.modes import _same_random_state, untouched
from .decision import DatasetScores

if TYPE_CHECKING:
    from ..trainer import RobustTrainer

logger = logging.get_logger(__name__)


class EpochScan(TrainerCallback):
    """Scores the training set where the method asks for it, before the epoch's first batch is drawn."""

    def __init__(self, trainer: RobustTrainer):
        self.trainer = trainer
        self.loader: Any = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        walk = trainer._walk
        if walk is None or not walk.scan_due(progress := trainer._progress()):
            return
        if self.loader is None:
            self.loader = trainer._train_loader(SequentialSampler, args.eval_batch_size, "Scoring", training=False)
        with _same_random_state(args.device):
            found = scan(trainer, self.loader, walk.ledger)
        emptied = walk.scanned(found, progress)
        if emptied:
            logger.warning(
                f"epoch {int(progress.epoch)}: the selection leaves nobody of class {', '.join(map(str, emptied[:10]))}: "
                "set rebalance=True or lower rebalance_eta, or warm up for longer."
            )


@torch.no_grad()
def scan(trainer: RobustTrainer, loader: Any, ledger: SampleLedger | None) -> DatasetScores:
    """What the model says of every sample, equal on all processes."""
    walk = trainer._walk
    assert walk is not None and ledger is not None
    bare: nn.Module = trainer._unwrapped(trainer.model_wrapped)
    rows, probs, indices = [], [], []
    with untouched(bare, "eval"):
        for inputs in loader:
            batch = trainer._batch(trainer._prepare_inputs(inputs))
            view = walk.view(trainer._forward(batch.inputs), batch)
            score = walk.recipe.score(view).mean(0)
            predicted = view.logits.mean(0).argmax(-1)
            labels = walk.problem.classes_of(batch.targets)
            told = trace(view.logits, labels, ledger.rival[batch.positions])
            rows.append(torch.cat([torch.stack([score, labels.to(score.dtype), predicted.to(score.dtype)], 1), told], 1))
            if ledger.mean_probs is not None:
                probs.append(view.logits.float().softmax(-1).mean(0))
            indices.append(batch.positions)
    index = walk.gather(torch.cat(indices))
    whole = _in_order(walk.gather(torch.cat(rows)), index, len(ledger))
    means = _in_order(walk.gather(torch.cat(probs)), index, len(ledger)) if probs else None
    return DatasetScores(whole[:, 0], whole[:, 1].long(), whole[:, 2].long(), whole[:, 3:], means)


def _in_order(found: Tensor, index: Tensor, size: int) -> Tensor:
    whole = torch.zeros(size, found.shape[1], dtype=found.dtype, device=found.device)
    whole[index] = found
    return whole
