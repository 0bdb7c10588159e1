"""The linear layer that a model's classes come from, and training it alone on a network that stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.utils import logging

from .peers import PeerModel
from .problem import number_of_classes
from .sharding import reshard

logger = logging.get_logger(__name__)


def head_of(model: nn.Module) -> nn.Linear:
    """Returns the classification head: the last ``nn.Linear``, in module order, of as many outputs as the model has classes.

    The classes are the config's ``num_labels``. A config that does not name its labels may have another head than its default
    of 2 tells, and a bare module has no config: their last ``nn.Linear`` is taken where none of 2 outputs is found. Inside PEFT the
    copy that is trained (``modules_to_save``) is the head, and adapters are none.

    Args:
        model: one network, bare or wrapped.

    Raises:
        ValueError: where there is none, and for a `PeerModel`, whose heads `heads_of` gives.
    """
    if isinstance(model, PeerModel):
        raise ValueError(f"model is a PeerModel of {len(model.peers)} networks, each with a head: use heads_of(model).")
    inner: Any = model
    while getattr(inner, "config", None) is None and isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module  # wrapped for distributed training
    config: Any = getattr(inner, "config", None)
    named = number_of_classes(inner)
    classes = named if named is not None else getattr(config, "num_labels", None)
    linear = list(_linear(inner))
    fitting = [layer for layer in linear if layer.out_features == classes]
    if fitting:
        return fitting[-1]
    if linear and named is None:
        return linear[-1]
    widths = sorted({layer.out_features for layer in linear})
    outputs = f"of {classes} outputs" if classes is not None else "at all"
    raise ValueError(
        f"model has no linear layer {outputs}: {type(inner).__name__} has linear layers of {widths or 'no'} outputs; use a "
        "classifier whose last layer is an nn.Linear."
    )


def heads_of(model: nn.Module) -> list[nn.Linear]:
    """Returns the heads of a `PeerModel`'s networks, in order, or the one head of any other model.

    Args:
        model: one network or several.

    Raises:
        ValueError: as `head_of`.
    """
    return [head_of(peer) for peer in model.peers] if isinstance(model, PeerModel) else [head_of(model)]


def _linear(module: nn.Module) -> Iterator[nn.Linear]:
    """Linear layers in module order, without PEFT's adapters and without the originals of the copies that it trains."""
    if isinstance(module, nn.Linear):
        yield module
        return
    kept = getattr(module, "modules_to_save", None)
    if isinstance(kept, nn.ModuleDict) and isinstance(getattr(module, "original_module", None), nn.Module):
        active = [name for name in getattr(module, "active_adapters", []) if name in kept] or list(kept)
        yield from _linear(kept[active[-1]])
        return
    base = getattr(module, "base_layer", None)
    if isinstance(base, nn.Module):
        yield from _linear(base)
        return
    for child in module.children():
        yield from _linear(child)


class LinearProbe:
    """Within it only a model's head trains (of a `PeerModel`: each network's): ``requires_grad`` of all else is off.

    `hold` puts all but the head in evaluation mode, so that BatchNorm's statistics stay and dropout is off; whatever calls
    ``model.train()`` undoes it. Afterwards ``requires_grad`` is as it was, and the model in training mode where its head is.

    Args:
        model: unwrapped.

    Raises:
        ValueError: as `head_of`, and for a head that is frozen.
    """

    def __init__(self, model: nn.Module):
        heads = heads_of(model)
        own = {id(p) for head in heads for p in head.parameters()}
        if not any(p.requires_grad for head in heads for p in head.parameters()):
            raise ValueError(
                f"freeze_backbone=True but the head of {type(model).__name__} is frozen, nothing would be trained: unfreeze it "
                "(PEFT: name it in modules_to_save), or set freeze_backbone=False."
            )
        self.model, self.head = model, heads[0]
        self.frozen = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own]
        inside = {id(m) for head in heads for m in head.modules()}
        self.others = [m for m in model.modules() if id(m) not in inside]

    def hold(self) -> None:
        """All but the head in evaluation mode."""
        for module in self.others:
            module.training = False

    def _require_gradients(self, wanted: bool) -> None:
        """Of what is frozen, by name: FSDP2 puts other parameters in the place of those that were there."""
        reshard(self.model)
        for name in self.frozen:
            self.model.get_parameter(name).requires_grad = wanted

    def __enter__(self) -> LinearProbe:
        self._require_gradients(False)
        logger.info("freeze_backbone: the head is trained, the backbone is taken as it is.")
        return self

    def __exit__(self, *error: object) -> None:
        self._require_gradients(True)
        if self.head.training:
            self.model.train()


def training_mode(model: nn.Module, probe: LinearProbe | None) -> nn.Module:
    """Returns the model in the mode that it is trained in.

    Args:
        model: unwrapped.
        probe: where the head alone is trained, else None.
    """
    model.train()
    if probe is not None:
        probe.hold()
    return model
