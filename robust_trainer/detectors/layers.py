"""How likely a sample's activations are in every hidden layer: of each layer the least likely one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..models.peers import PeerModel

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CHANNELS_SECOND = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass
class LayerWatch:
    """Collects ``min over channels and places of log N(a; mean, variance of the channel)`` of each layer and sample.

    With batch normalisation: the inputs of these layers, by their running mean and variance. Without it: the outputs of the
    normalisations (LayerNorm and its kin), else those of the convolutions and linear layers but the head; mean and variance are
    then the data set's own, from a first pass in which ``counting`` is on. Padding tokens do not count where ``mask`` fits.

    Attributes:
        layers: the modules that are watched, by name, in the order of their definition.
        counting: sums for mean and variance are collected, and no likelihoods.
        mask: (B, T), which tokens of the batch count; None: all.
    """

    layers: dict[str, nn.Module]
    own_statistics: bool
    counting: bool = False
    mask: Tensor | None = None
    _lowest: dict[str, Tensor] = field(default_factory=dict)
    _sums: dict[str, list[Any]] = field(default_factory=dict)

    def take(self) -> Tensor:
        """Returns (B, L) of the forward that just ran, in the order in which the layers ran, and forgets it."""
        found = torch.stack([*self._lowest.values()], 1)
        self._lowest.clear()
        return found

    def see_input(self, name: str, module: Any, inputs: tuple[Any, ...]) -> None:
        """The hook of a batch normalisation."""
        a = inputs[0].detach().float()
        shape = [1, -1, *[1] * (a.dim() - 2)]
        self._keep(name, a, module.running_mean.float().view(shape), (module.running_var.float() + module.eps).view(shape))

    def see_output(self, name: str, module: Any, output: Any) -> None:
        """The hook of any other layer."""
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 2:
            return
        a = output.detach().float()
        if isinstance(module, _CHANNELS_SECOND):
            a = a.movedim(1, -1)
        counts = None
        if self.mask is not None and a.dim() == 3 and a.shape[:2] == self.mask.shape:
            counts = self.mask.bool().to(a.device)
        if self.counting:
            rows = a.reshape(-1, a.shape[-1]) if counts is None else a[counts]
            sums = self._sums.setdefault(name, [0, 0.0, 0.0])
            sums[0] += len(rows)
            sums[1], sums[2] = sums[1] + rows.double().sum(0), sums[2] + rows.double().square().sum(0)
            return
        count, total, squares = self._sums[name]
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0.0)
        floor = 1e-5 * max(float(variance.mean()), 1e-12)  # a channel that never moves says nothing
        self._keep(name, a, mean.float(), (variance + floor).float(), counts)

    def _keep(self, name: str, a: Tensor, mean: Tensor, variance: Tensor, counts: Tensor | None = None) -> None:
        likely = -0.5 * ((a - mean).square() / variance + variance.log() + math.log(2 * math.pi))
        if counts is not None:
            likely = likely.masked_fill(~counts.unsqueeze(-1), math.inf)
        lowest = likely.flatten(1).amin(1)
        self._lowest[name] = torch.minimum(self._lowest[name], lowest) if name in self._lowest else lowest


def watched_layers(model: nn.Module) -> LayerWatch:
    """Returns what is to be watched of a model (of a `PeerModel`: of its first network).

    Args:
        model: a classifier.

    Raises:
        ValueError: for a model without a hidden layer.
    """
    bare = model.peers[0] if isinstance(model, PeerModel) else model
    named = dict(bare.named_modules())
    norms: dict[str, nn.Module] = {k: m for k, m in named.items() if isinstance(m, _BATCH_NORMS) and m.running_mean is not None}
    if norms:
        return LayerWatch(norms, False)
    leaves = {k: m for k, m in named.items() if next(m.children(), None) is None}
    layers = {k: m for k, m in leaves.items() if type(m).__name__.endswith("Norm")}
    if not layers:
        layers = {k: m for k, m in leaves.items() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)}
        layers = dict([*layers.items()][:-1])
    if not layers:
        raise ValueError(f"{type(bare).__name__} has no hidden layer: needs={{'layers'}} is for deeper models, leave it out.")
    return LayerWatch(layers, True)


@contextmanager
def watching(watch: LayerWatch) -> Iterator[None]:
    """Within it a forward of the model fills the watch; its hooks are then removed.

    Args:
        watch: of `watched_layers`.
    """

    def before(name: str) -> Any:
        return lambda module, inputs: watch.see_input(name, module, inputs)

    def after(name: str) -> Any:
        return lambda module, inputs, output: watch.see_output(name, module, output)

    handles = []
    for name, module in watch.layers.items():
        if watch.own_statistics:
            handles.append(module.register_forward_hook(after(name)))
        else:
            handles.append(module.register_forward_pre_hook(before(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
