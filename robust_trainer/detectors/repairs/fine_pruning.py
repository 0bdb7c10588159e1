"""Fine-pruning: a repaired copy of a backdoored model, by pruning units that clean samples leave idle, then fine-tuning."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import TrainingArguments

from ...models.features import Layers, last_linear, watched
from ...models.modes import scoring_mode
from ...models.peers import PeerModel
from ..detection import choice_setting, share_setting
from ..passes import Pass
from .tuning import chosen_rows, tune

RULES = ("last-conv", "last-linear")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True, eq=False)
class FinePruned:
    """The repaired copy and how it came about.

    Attributes:
        model: the copy.
        pruned: unit numbers in the order in which they went, least active first.
        units: how many there were.
        accuracy_before: on the clean rows used, in [0, 1].
        accuracy_after_pruning: on the same rows, before fine-tuning.
        accuracies: after each step that was tried, also the one that was taken back.
        rows: the positions in ``clean`` that were used.
    """

    model: nn.Module
    pruned: tuple[int, ...]
    units: int
    accuracy_before: float
    accuracy_after_pruning: float
    accuracies: tuple[float, ...]
    rows: tuple[int, ...]


def fine_prune(
    model: nn.Module,
    clean: Any,
    args: TrainingArguments | None,
    *,
    rule: str = "last-conv",
    clean_fraction: float = 0.05,
    prune_share: float | None = None,
    max_drop: float = 0.1,
    collate: Callable[[list[Any]], Any] | None = None,
    seed: int = 0,
) -> FinePruned:
    """Returns a deep copy of the model, pruned and fine-tuned; the original is left as it is.

    Rule ``last-conv`` (paper): the output channels of the last convolution that runs, by their mean activation after the
    normalisation, activation and pooling modules that follow it; negative values count as 0, as after a ReLU that is no module.
    A pruned channel's weight and bias are zeroed, and those of a normalisation right after it, so that the channel is 0. Where a
    shortcut is added behind, what the shortcut carries stays. Rule ``last-linear`` (as BackdoorBench): the input columns of the
    last linear layer, by their mean absolute activation; it also fits transformers, whose only convolution cuts the patches.

    One unit is always left. Pruned weights stay zero in fine-tuning.

    Args:
        model: a classifier.
        clean: a map-style data set of clean samples.
        args: for the plain `Trainer`, which fine-tunes; None: no fine-tuning.
        rule: one of RULES, see above.
        clean_fraction: the share of ``clean``, at least 2 rows, that ranks the units, says when to stop and is fine-tuned on (the
            authors' script ranks on the test set), in (0, 1].
        prune_share: prunes that share of the units, rounded, in [0, 1]. None: prunes 1 % of the units (rounded up) at a time, until
            the accuracy on the clean rows has dropped by ``max_drop`` of what it was, then takes the last step back;
            BackdoorBench's code does not, and fine-tunes the over-pruned model.
        max_drop: in (0, 1].
        collate: as the Trainer's ``data_collator``.
        seed: which clean rows are drawn.

    Raises:
        ValueError: for a model without the layer, a `PeerModel`, and values out of range.

    References:
        Liu, Dolan-Gavitt and Garg 2018, "Fine-pruning: defending against backdooring attacks on deep neural networks"; the
        baseline of Backdoor table 7, with 5 % of clean training data.
    """
    choice_setting("rule", rule, RULES)
    share_setting("clean_fraction", clean_fraction)
    share_setting("max_drop", max_drop)
    if prune_share is not None:
        share_setting("prune_share", prune_share, zero=True)
    if isinstance(model, PeerModel):
        raise ValueError("model is a PeerModel of several networks: fine_prune takes one, such as model.peers[0].")
    rows = _rows(clean, clean_fraction, seed)
    chosen = chosen_rows(clean, rows)
    reading = Pass(chosen, collate, 256 if args is None else args.per_device_eval_batch_size)
    repaired = copy.deepcopy(model)
    units, activity, accuracy = _ranked(repaired, reading, rule)
    order = torch.argsort(activity, stable=True).tolist()
    if prune_share is None:
        if accuracy == 0:
            raise ValueError(f"accuracy on the {len(rows)} clean rows is 0: check their labels, or set prune_share.")
        count, after, trail = _stepwise(repaired, reading, units, order, accuracy, max_drop)
    else:
        count = min(math.floor(prune_share * len(order) + 0.5), len(order) - 1)
        with units.zeroed(order[:count]):
            after = _accuracy(repaired, reading)
        trail = [after] if count else []
    units.mask(order[:count])
    if args is not None:
        tune(repaired, args, chosen, collate)
    units.settle()
    repaired.train(model.training)
    return FinePruned(repaired, tuple(order[:count]), len(order), accuracy, after, tuple(trail), tuple(rows))


@dataclass(frozen=True)
class _Units:
    """Parameters by module and name, and the axis along which each has one entry, or slice, per unit."""

    places: tuple[tuple[nn.Module, str, int], ...]

    @contextmanager
    def zeroed(self, numbers: list[int]) -> Iterator[None]:
        """Within it these units are zero."""
        kept = [(module, name, getattr(module, name).detach().clone()) for module, name, _ in self.places]
        with torch.no_grad():
            for module, name, axis in self.places:
                weight = getattr(module, name)
                weight.index_fill_(axis, torch.tensor(numbers, dtype=torch.long, device=weight.device), 0.0)
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, before in kept:
                    getattr(module, name).copy_(before)

    def mask(self, numbers: list[int]) -> None:
        """These units are zero from now on, whatever an optimizer does, until `settle`."""
        for module, name, axis in self.places:
            weight = getattr(module, name)
            index = torch.tensor(numbers, dtype=torch.long, device=weight.device)
            prune.custom_from_mask(module, name, torch.ones_like(weight).index_fill_(axis, index, 0.0))

    def settle(self) -> None:
        """Makes the masks permanent: plain parameters again."""
        for module, name, _ in self.places:
            prune.remove(module, name)


def _rows(clean: Any, fraction: float, seed: int) -> list[int]:
    size = len(Pass(clean).dataset)
    if size < 2:
        raise ValueError(f"clean has {size} row: fine-pruning needs at least 2.")
    count = max(2, math.floor(fraction * size + 0.5))
    return sorted(np.random.default_rng(seed).permutation(size)[:count].tolist())


def _ranked(model: nn.Module, reading: Pass, rule: str) -> tuple[_Units, Tensor, float]:
    """The units, their mean activation (U,) and the accuracy, from one pass."""
    total, right, seen = None, 0, 0
    units: _Units | None = None
    with scoring_mode(model), watched(model) as layers:
        for outputs, logits, labels in reading.outputs(model):
            if rule == "last-conv":
                activation, units = _channels(layers)
            else:
                module, features = last_linear(layers, outputs, logits)
                activation, units = features.abs(), _Units(((module, "weight", 1),))
            batch = activation.double().sum(0).cpu()
            total = batch if total is None else total + batch
            right, seen = right + int((logits.argmax(1).cpu() == labels.cpu()).sum()), seen + len(labels)
    assert units is not None and total is not None
    if len(total) < 2:
        raise ValueError(f"rule={rule!r} finds a layer of {len(total)} unit, which cannot be pruned: choose the other rule.")
    return units, total / seen, right / seen


def _channels(layers: Layers) -> tuple[Tensor, _Units]:
    """Each sample's mean activation per channel of the last convolution, (B, U), and what makes a channel."""
    conv, channels = layers.conv, layers.channels
    if conv is None or channels is None:
        raise ValueError("rule='last-conv' but no convolution ran in the model: choose rule='last-linear'.")
    places = [(conv, name, 0) for name in ("weight", "bias") if getattr(conv, name) is not None]
    if layers.after and isinstance(layers.after[0], _NORMS) and getattr(layers.after[0], "weight", None) is not None:
        places += [(layers.after[0], name, 0) for name in ("weight", "bias") if getattr(layers.after[0], name) is not None]
    return channels.detach().float().clamp_min(0.0).flatten(2).mean(2), _Units(tuple(places))


def _accuracy(model: nn.Module, reading: Pass) -> float:
    with scoring_mode(model):
        right = [logits.argmax(1).cpu() == labels.cpu() for _, logits, labels in reading.outputs(model)]
    return float(torch.cat(right).double().mean())


def _stepwise(
    model: nn.Module, reading: Pass, units: _Units, order: list[int], before: float, max_drop: float
) -> tuple[int, float, list[float]]:
    """How many units to prune, the accuracy then, and the accuracy after each step that was tried."""
    step = math.ceil(0.01 * len(order))
    count, after, trail = 0, before, []
    while count < len(order) - 1:
        more = min(count + step, len(order) - 1)
        with units.zeroed(order[:more]):
            trail.append(_accuracy(model, reading))
        if (before - trail[-1]) / before >= max_drop - 1e-12:
            break
        count, after = more, trail[-1]
    return count, after, trail
