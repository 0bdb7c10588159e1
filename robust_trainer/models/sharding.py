"""Models whose weights FSDP2 shards over the processes: what is whole, what is this process's part, and gradients of a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate


def is_sharded(model: nn.Module) -> bool:
    """Returns whether ``torch.distributed.fsdp.fully_shard`` was applied to the model or to a part of it.

    Args:
        model: unwrapped.
    """
    # asked in every step: without a process group nothing is sharded, and the modules need not be gone through
    return torch.distributed.is_initialized() and any(isinstance(module, FSDPModule) for module in model.modules())


def reshard(model: nn.Module) -> None:
    """Has the model's parameters be the sharded ones, which the optimizer steps; of a model that is not sharded: nothing.

    After a forward without a backward some modules still hold whole copies. What is read from these, or written to them, is lost;
    and a forward after a change of the sharded parameters would run on the copies.

    Args:
        model: unwrapped.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(value: Tensor) -> Tensor:
    """Returns the tensor in full on every process, detached where it was sharded. All processes must ask.

    Args:
        value: sharded or not.
    """
    return value.full_tensor().detach() if isinstance(value, DTensor) else value


def own_part(value: Tensor) -> Tensor:
    """Returns the part that this process holds, detached and without a copy: all of a tensor that is not sharded.

    Args:
        value: sharded or not.
    """
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def stepped_apart(parameter: nn.Parameter) -> bool:
    """Returns whether DeepSpeed's optimizer steps a float32 copy of a parameter that is itself whole (ZeRO 1 and 2).

    Args:
        parameter: of the model, unwrapped.
    """
    return hasattr(parameter, "_hp_mapping") and not hasattr(parameter, "ds_id")


def scale_stepped_copy(parameter: nn.Parameter, factor: Tensor) -> None:
    """Multiplies what `stepped_apart` tells of, of which each process holds a part. All processes must ask.

    Args:
        parameter: of the model, unwrapped.
        factor: a scalar.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param  # only under DeepSpeed

    safe_set_full_fp32_param(parameter, safe_get_full_fp32_param(parameter) * factor)


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the 2-norm of each tensor as a whole, float32 scalars; one exchange for all that are sharded alike.

    Args:
        tensors: sharded or not.
    """
    found: dict[int, Tensor] = {}
    alike: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if isinstance(tensor, DTensor):
            alike.setdefault((tensor.device_mesh, tensor.placements), []).append(i)
        else:
            found[i] = tensor.detach().float().norm()
    for (mesh, placements), places in alike.items():
        squares = torch.stack([own_part(tensors[i]).float().square().sum() for i in places])
        parts = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
        sums = DTensor.from_local(squares, mesh, parts, run_check=False).full_tensor()
        found.update(zip(places, sums.sqrt().unbind()))
    return [found[i] for i in range(len(tensors))]


def mean_over_processes(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Returns the mean of the processes' gradients as FSDP2 leaves it in ``parameter.grad``: this process has its part of it.

    Args:
        gradient: this process's, of the whole parameter.
        parameter: sharded; of one that is not, the gradient is returned as it is.
    """
    if not isinstance(parameter, DTensor):
        return gradient
    mesh = parameter.device_mesh
    parts = DTensor.from_local(gradient / mesh.size(), mesh, [Partial()] * mesh.ndim, run_check=False)
    return parts.redistribute(mesh, parameter.placements)


@contextmanager
def gradients_alone(model: nn.Module, deferred: bool) -> Iterator[None]:
    """Within it a backward pass leaves its gradients alone in ``grad``, averaged over the processes; then all is as it was before.

    ``torch.autograd.grad`` with respect to a sharded parameter finds nothing: the forward runs on whole copies.

    Args:
        model: sharded, the root that is called.
        deferred: whether the backward passes around it leave the exchange to a later one (``accelerator.no_sync``).
    """
    reshard(model)
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    if deferred and isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(True)
    try:
        yield
    finally:
        if deferred and isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(False)
        for parameter, gradient in before:
            parameter.grad = gradient


def all_agree(flag: bool, device: torch.device) -> bool:
    """Returns whether all processes say so: where one alone ran the model again, the others would not answer its exchanges.

    Args:
        flag: this process's.
        device: of the training.
    """
    votes = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MIN)
    return bool(votes)


@contextmanager
def shardable(model: Any, wrapped: Sequence[str] | None = None) -> Iterator[None]:
    """Within it Accelerate can shard any model, of several networks each by itself.

    Accelerate 1.15 shards the word embeddings once more where they lie in a layer that it has sharded (BERT, ViT), which fails, and
    fails for a model that raises where it is asked for them: these then are parts of what they lie in.

    Args:
        model: as the Trainer has it.
        wrapped: the classes of the layers that are sharded, by name; None: those that the model names.
    """
    peers = [*model.peers] if isinstance(getattr(model, "peers", None), nn.ModuleList) else []
    layers = {*(getattr(model, "_no_split_modules", None) or ()), *(type(peer).__name__ for peer in peers)}
    shadows: dict[str, Any] = {"_no_split_modules": layers} if peers else {}
    if not _apart(model, layers if wrapped is None else set(wrapped)):
        shadows["get_input_embeddings"] = lambda: None
    before = {name: model.__dict__[name] for name in shadows if name in model.__dict__}
    model.__dict__.update(shadows)
    try:
        yield
    finally:
        for name in shadows:
            del model.__dict__[name]
        model.__dict__.update(before)


def _apart(model: Any, layers: set[str]) -> bool:
    """Whether the model has word embeddings as one module, and that outside of the layers of these classes."""
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return False
    inside = [m for layer in model.modules() if type(layer).__name__ in layers for m in layer.modules()]
    return isinstance(embeddings, nn.Module) and not any(m is embeddings for m in inside)
