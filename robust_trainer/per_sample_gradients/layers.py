"""Which modules of a model own the trainable parameters, and how the per-sample gradients of each are had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .convolutions import convolution
from .linear import Call, Ghost, embedding, layer_norm, linear, unit

GhostOf = Callable[[Any, Sequence[str], Sequence[Call]], Ghost]
_KNOWN: dict[type[nn.Module], GhostOf] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.Embedding: embedding,
    nn.LayerNorm: layer_norm,
}


@dataclass
class Layer:
    """One module with trainable parameters: a known layer, or a unit that torch.func replays with all that is in it."""

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    ghost_of: GhostOf
    calls: int = 0
    lead: tuple[int, ...] = ()
    received: list[Call] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Returns name and class of the module, for an error."""
        return title(self.name, self.module)

    @property
    def axes(self) -> int:
        """How many axes an input has at least, the sample's among them."""
        if isinstance(self.module, nn.LayerNorm):
            return 1 + len(self.module.normalized_shape)
        weight = self.module._parameters.get("weight")
        return 1 if weight is None or self.ghost_of in (embedding, unit) else weight.dim()


@dataclass
class Shadow:
    """One module whose trainable parameters get a batch axis for the forward: GroupNorm, or a parameter of shape (1, ..., ...)."""

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    calls: int = 0

    @property
    def title(self) -> str:
        """Returns name and class of the module, for an error."""
        return title(self.name, self.module)


def title(name: str, module: nn.Module) -> str:
    """The qualified name and class of a module, for an error."""
    return f"{name or 'the model itself'} ({type(module).__name__})"


def plan(model: nn.Module) -> list[Layer | Shadow]:
    """The modules that own model's trainable parameters, outermost first.

    Raises ValueError for what mixes samples, a parameter of two modules and embeddings that are sparse or scaled by frequency.
    """
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        _refuse(name, module)
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and owners.setdefault(id(parameter), f"{name}.{key}") != f"{name}.{key}":
                raise ValueError(
                    f"per-sample gradients: {name}.{key} is the same parameter as {owners[id(parameter)]}; untie or freeze it"
                )
    if not owners:
        raise ValueError("per-sample gradients: no parameter of the model has requires_grad; unfreeze what is to be trained")
    found: list[Layer | Shadow] = []
    _walk(model, "", found, set())
    return found


def _refuse(name: str, module: nn.Module) -> None:
    mixes = isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    if mixes or (isinstance(module, _InstanceNorm) and module.training and module.track_running_stats):
        raise ValueError(
            f"per-sample gradients: {title(name, module)} in training mode mixes samples: use GroupNorm or LayerNorm instead "
            "(for instance model resnet32-gn), or method prl, which needs no per-sample gradients"
        )
    if getattr(module, "gradient_checkpointing", False) is True and module.training:
        raise ValueError(
            f"per-sample gradients: {title(name, module)} has gradient_checkpointing, which runs layers twice; switch it off"
        )
    if isinstance(module, nn.Embedding) and module.weight.requires_grad and (module.scale_grad_by_freq or module.sparse):
        raise ValueError(
            f"per-sample gradients: {title(name, module)} has scale_grad_by_freq or sparse, which are unsupported; switch them off"
        )


def _walk(module: nn.Module, name: str, found: list[Layer | Shadow], seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    own = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
    leaf = next(module.children(), None) is None
    plain = leaf and set(own) <= {"weight", "bias"}
    known = next((ghost for kind, ghost in _KNOWN.items() if type(module).forward is kind.forward), None)
    if own and plain and known is not None:
        found.append(Layer(name, module, own, known))
    elif own and plain and type(module).forward is nn.GroupNorm.forward:
        found.append(Shadow(name, module, own))
    elif own and (known is not None or not all(p.dim() > 2 and len(p) == 1 for p in own.values())):
        whole = {key: p for key, p in module.named_parameters() if p.requires_grad}
        found.append(Layer(name, module, whole, unit))
        seen.update(map(id, module.modules()))
    else:
        if own:
            found.append(Shadow(name, module, own))
        for key, child in module.named_children():
            _walk(child, f"{name}.{key}" if name else key, found, seen)
