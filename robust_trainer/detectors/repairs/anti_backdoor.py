"""Anti-backdoor learning (ABL): isolate the samples that are learned first, train on the rest, unlearn the isolated ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainingArguments

from ...types import ForwardOutput
from ..detection import choice_setting, share_setting, top, whole
from ..loss_isolation import LocalGradientAscent
from .repaired import Repaired, number_setting
from .tuning import Unlearned, chosen_rows, losses_of, stage_of, tune


def anti_backdoor_learning(
    model: nn.Module,
    data: Any,
    args: TrainingArguments,
    clean: Any,
    rate: float | None,
    collate: Callable[[list[Any]], Any] | None,
    seed: int,
    *,
    gamma: float = 0.5,
    isolated: float = 0.01,
    sign_of: str = "batch",
    isolation: float = 0.4,
    unlearning: float = 0.2,
    unlearning_lr: float = 1.0,
    ceiling: float | None = None,
) -> Repaired:
    """Returns a copy of an untrained model, trained by ABL in three stages; the original is left as it is.

    1. ``isolation`` of the training by local gradient ascent (eq. 3), ``sign(l - gamma) l``, which keeps the loss of what is
       learned slowly at gamma. The ``isolated`` share of the rows with the lowest losses is taken for poison. In the equation the
       sign is each sample's own; then poison, too, stays at gamma. In the authors' code, and here by default, it is that of the
       batch's mean loss, which lets poison fall.
    2. The cross-entropy of the other rows.
    3. ``unlearning`` of the training by global gradient ascent (eq. 4), ``E_kept[l] - E_isolated[l]``, at ``unlearning_lr`` times
       the learning rate. A step holds about four kept rows to one isolated one. Kept are here the rows whose loss after the first
       stage was at or above the median: the paper keeps all, and the poison among them teaches what is to be unlearned. An isolated
       row whose loss has reached ``ceiling`` is left alone: the ascent of the paper ends with its epochs. (The authors' code
       climbs on the isolated rows alone, at a rate of 5e-4 after one of 0.1.)

    Args:
        model: a classifier as training finds it: from scratch, or pretrained without having seen these data.
        data: the training rows, poisoned ones among them.
        args: of the whole training; the three stages share its epochs. Each begins its learning-rate schedule anew.
        clean: without effect.
        rate: without effect: the isolated few are enough, and the fewer, the fewer clean ones are among them.
        collate: as the Trainer's ``data_collator``.
        seed: without effect; ``args.seed`` orders the rows.
        gamma: in nats, >= 0.
        isolated: share of the rows, in (0, 1]; the paper's 1 %.
        sign_of: ``batch`` or ``sample``, see above.
        isolation: share of the training, in (0, 1). The paper's is 20 of 100 epochs of 50,000 rows; trainings here are shorter.
        unlearning: share of the training, in (0, 1); the paper's last 20 epochs.
        unlearning_lr: > 0.
        ceiling: in nats, > 0; None: twice the loss of a guess, ``2 log C``.

    Returns:
        The repaired model; ``flagged`` the isolated rows; in ``details`` ``losses`` after the first stage, (N,).

    References:
        Li, Lyu, Koren, Lyu, Li and Ma 2021, "Anti-backdoor learning: training clean models on poisoned data", eq. 3 and 4.
    """
    ascent = LocalGradientAscent(gamma)
    choice_setting("sign_of", sign_of, ("batch", "sample"))
    shares = {"isolated": isolated, "isolation": isolation, "unlearning": unlearning}
    isolated, isolation, unlearning = (share_setting(name, value) for name, value in shares.items())
    if isolation + unlearning >= 1:
        raise ValueError(f"isolation={isolation:g} and unlearning={unlearning:g}: their sum leaves no training, expected below 1.")
    number_setting("unlearning_lr", unlearning_lr)
    if ceiling is not None:
        number_setting("ceiling", ceiling)
    count = whole(isolated * len(data))
    if not 0 < count < len(data):
        raise ValueError(f"isolated={isolated:g} of {len(data)} rows are {count}: expected at least 1, and fewer than all.")

    def climbing(logits: Tensor, labels: Tensor) -> Tensor:
        if sign_of == "batch":
            losses = F.cross_entropy(logits, labels, reduction="none")
            return (losses.detach().mean() - gamma).sign() * losses
        view = ForwardOutput(logits.unsqueeze(0), labels)
        return ascent(view, view.network_targets())[0]

    repaired = copy.deepcopy(model)
    tune(repaired, stage_of(args, isolation), data, collate, climbing)
    losses, classes = losses_of(repaired, data, collate, args.per_device_eval_batch_size)
    flagged = top(-losses.astype(np.float64), count)
    kept = np.flatnonzero(~flagged)
    tune(repaired, stage_of(args, 1 - isolation - unlearning), chosen_rows(data, kept), collate)
    slow = np.flatnonzero(~flagged & (losses >= np.median(losses)))
    entries = Unlearned(data, slow, np.flatnonzero(flagged), classes)
    loss = entries.ascent(2 * math.log(classes) if ceiling is None else ceiling)
    last = stage_of(args, unlearning, unlearning_lr)
    last.num_train_epochs *= len(data) / len(entries)  # an epoch is that much longer, by the rows that come again
    tune(repaired, last, entries, collate, loss)
    repaired.train(model.training)
    return Repaired("abl", repaired, flagged, {"losses": losses})
