"""Backdoor removal (D-BR): tell poisoned rows by how far their features move with the image, unlearn them, relearn clean ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainingArguments

from ...models.features import watched
from ..detection import each_class, share_setting, top, whole
from ..evidence import collect_evidence
from .repaired import Repaired, number_setting
from .tuning import Unlearned, stage_of, tune


def backdoor_removal(
    model: nn.Module,
    data: Any,
    args: TrainingArguments,
    clean: Any,
    rate: float | None,
    collate: Callable[[list[Any]], Any] | None,
    seed: int,
    *,
    poison_share: float = 0.05,
    clean_share: float = 0.2,
    spreading: float = 0.1,
    removal: float = 0.2,
    learning_rate: float = 0.1,
    ceiling: float | None = None,
) -> Repaired:
    """Returns a copy of a backdoored model from which the backdoor was removed, without clean data; the original is left as it is.

    1. Another copy is trained for ``spreading`` of the training by the loss that moves the classes' mean features apart (`apart`).
    2. Its features' consistency towards transformations (detector ``fct``) splits the rows: the ``poison_share`` that move most
       are taken for poisoned, the ``clean_share`` of each class that move least for clean. (The paper takes these of all classes
       together; then digits that look alike upside down were relearned, and others forgotten.)
    3. For ``removal`` of the training, at ``learning_rate`` times its rate, poisoned rows are unlearned and clean ones relearned:
       ``E_clean[l] - E_poisoned[l]``. The paper goes through the ones and the others in turn; here a step holds both. A poisoned
       row whose loss has reached ``ceiling`` is left alone; the paper's ascent has no end but that of its epochs.

    The paper's step 1 begins with a network of two epochs without augmentation, here with the trained one.

    Args:
        model: an image classifier, trained on ``data``.
        data: the training rows, poisoned ones among them, not augmented.
        args: of the training; its epochs are what the shares are of.
        clean: without effect.
        rate: without effect: few rows that are surely poisoned do more than many that may be.
        collate: as the Trainer's ``data_collator``.
        seed: of the turns and shifts.
        poison_share: of the rows, in (0, 1]; the paper's 5 % of data with 10 % of poison.
        clean_share: of the rows, in (0, 1]; the paper's 20 %.
        spreading: share of the training, in (0, 1]; the paper's 10 of 200 epochs.
        removal: share of the training, in (0, 1]; the paper's 20 of 200 epochs.
        learning_rate: > 0.
        ceiling: in nats, > 0; None: twice the loss of a guess, ``2 log C``.

    Returns:
        The repaired model; ``flagged`` the rows taken for poisoned; in ``details`` ``consistency`` and ``relearned``, (N,).

    Raises:
        ValueError: for a model that takes no images.

    References:
        Chen, Wu and Wang 2022, "Effective backdoor defense by exploiting sensitivity of poisoned samples", eq. 1 to 3.
    """
    shares = {"poison_share": poison_share, "clean_share": clean_share, "spreading": spreading, "removal": removal}
    poison_share, clean_share, spreading, removal = (share_setting(name, value) for name, value in shares.items())
    if poison_share + clean_share > 1:
        raise ValueError(f"poison_share={poison_share:g} and clean_share={clean_share:g}: expected a sum of at most 1.")
    number_setting("learning_rate", learning_rate)
    if ceiling is not None:
        number_setting("ceiling", ceiling)
    judge = copy.deepcopy(model)
    with watched(judge) as layers:

        def spread(logits: Tensor, labels: Tensor) -> Tensor:
            features = layers.linear[logits.shape[1]][1]
            return apart(features.flatten(1).float(), labels).expand(len(labels))

        tune(judge, stage_of(args, spreading), data, collate, spread)
    evidence = collect_evidence(
        judge, data, needs=("consistency",), collate=collate, batch_size=args.per_device_eval_batch_size, seed=seed
    )
    if evidence.consistency is None:
        raise ValueError(f"{type(model).__name__} takes no images: repair 'd-br' turns and shifts them, choose another.")
    scores = evidence.consistency.astype(np.float64)
    flagged, relearned = top(scores, whole(poison_share * len(scores))), np.zeros(len(scores), dtype=bool)
    for _, rows in each_class(evidence):
        relearned[rows] = top(-scores[rows], whole(clean_share * len(rows)))
    relearned &= ~flagged
    repaired = copy.deepcopy(model)
    assert evidence.probs is not None
    classes = evidence.probs.shape[1]
    kept, away = np.flatnonzero(relearned), np.flatnonzero(flagged)
    entries = Unlearned(data, kept, away, classes)
    stage = stage_of(args, removal, learning_rate)
    stage.num_train_epochs *= len(data) / len(entries)  # as many steps as the share of a training on all rows
    tune(repaired, stage, entries, collate, entries.ascent(2 * math.log(classes) if ceiling is None else ceiling))
    repaired.train(model.training)
    return Repaired("d-br", repaired, flagged, {"consistency": evidence.consistency, "relearned": relearned})


def apart(features: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cosine between the mean features of different classes of a batch, the diagonal counting as 0.

    Args:
        features: (B, D).
        labels: (B,).

    References:
        Chen, Wu and Wang 2022, the intra-class loss of their sample distinguishment, as in their code.
    """
    present, place = labels.unique(return_inverse=True)
    sums = features.new_zeros(len(present), features.shape[1]).index_add(0, place, features)
    centres = F.normalize(sums / torch.bincount(place).unsqueeze(1), dim=1)
    likeness = centres @ centres.T
    return (likeness - torch.diag(likeness.diagonal())).mean()
