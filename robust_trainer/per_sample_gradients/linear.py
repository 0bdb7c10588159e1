"""Per-sample gradients of single layers, from what went into a layer and the gradient of what came out of it.

Two forms (a: inputs, g: output gradients; T positions, P weights). Where the B x P per-sample gradients are no larger than (a, g),
they replace them and the weighted gradient is one matrix-vector product; elsewhere only the norms are computed and (a, g) kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_leaves, tree_unflatten

from ..models.sharding import whole

TRANSIENT_BYTES = 64 * 2**20

# (weights (B,), rows to keep (B,) or None) -> gradients, one per parameter
Weighted = Callable[[Tensor, Tensor | None], list[Tensor]]


class Buffers:
    """Memory that outlives a step: on a CPU, fresh pages cost as much as the products that are written to them."""

    def __init__(self) -> None:
        self._free: dict[Any, list[Tensor]] = {}

    def take(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Returns a tensor of that shape and of ``like``'s type, with anything in it."""
        free = self._free.get((shape, like.dtype))
        return free.pop() if free else like.new_empty(shape)

    def give(self, tensors: Sequence[Tensor]) -> None:
        """Takes tensors back that nobody reads any more."""
        for tensor in tensors:
            self._free.setdefault((tuple(tensor.shape), tensor.dtype), []).append(tensor)


@dataclass
class Call:
    """One call of a layer: what went in, the gradients of what came out, and how a unit's tensors were passed.

    The leading axis is the sample's, except for linear layers, where it runs over samples and positions.
    """

    inputs: list[Tensor]
    grads: list[Tensor]
    batch: int
    buffers: Buffers
    spec: Any = None
    amp: torch.dtype | None = None


@dataclass
class Ghost:
    """The squared norms (B,) of a layer's per-sample gradients, a function for their weighted sums, and buffers to give back."""

    squared: Tensor
    weighted: Weighted
    borrowed: list[Tensor] = field(default_factory=list)


def rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Returns ``x`` with zeros where mask (B,) is false; a product with weight 0 would keep NaN."""
    return x if mask is None else torch.where(mask.view(-1, *[1] * (x.dim() - 1)), x, 0)


def scaled(g: Tensor, weights: Tensor, mask: Tensor | None) -> Tensor:
    """Returns g (B, ...) times the weights (B,), with zeros where mask (B,) is false."""
    return rows(g * weights.to(g.dtype).view(-1, *[1] * (g.dim() - 1)), mask)


def wide(x: Tensor) -> Tensor:
    """Returns ``x`` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def squares(grads: Tensor) -> Tensor:
    """Returns the squared 2-norm (B,) of each sample's gradient (B, ...), in float32 at least."""
    return torch.linalg.vector_norm(wide(grads).flatten(1), dim=1).square()


def chunks(batch: int, elements: int) -> Iterator[slice]:
    """Returns slices of the batch so that each holds at most ``TRANSIENT_BYTES`` of ``elements`` numbers a sample."""
    step = max(1, TRANSIENT_BYTES // max(1, 4 * elements))
    return (slice(start, start + step) for start in range(0, batch, step))


def total(parts: Iterable[Tensor]) -> Tensor:
    """sum() without the copy that 0 + x is."""
    return reduce(torch.add, parts)


def kept(grads: Sequence[Tensor]) -> Ghost:
    """The Ghost of per-sample gradients at hand, each (B, *shape)."""
    each = [wide(g) for g in grads]
    squared = torch.stack([squares(g) for g in each]).sum(0)
    return Ghost(squared, lambda weights, mask: [torch.tensordot(weights.to(g.dtype), rows(g, mask), 1) for g in each])


def both(ghosts: Sequence[Ghost]) -> Ghost:
    """The Ghost of several parameters of a layer, in their order."""
    if len(ghosts) == 1:
        return ghosts[0]
    return Ghost(
        torch.stack([ghost.squared for ghost in ghosts]).sum(0),
        lambda weights, mask: [g for ghost in ghosts for g in ghost.weighted(weights, mask)],
        [buffer for ghost in ghosts for buffer in ghost.borrowed],
    )


def _gram_dot(a: Tensor, g: Tensor) -> Tensor:
    """sum_{t,s} (a_t . a_s) (g_t . g_s) of a (B, T, D) and g (B, T, E), that is ||g^T a||_F^2 without the D x E matrix."""
    if a.shape[1] == 1:
        return squares(a) * squares(g)
    parts = []
    for c in chunks(len(a), 2 * a.shape[1] ** 2):
        x, y = wide(a[c]), wide(g[c])
        parts.append(torch.linalg.vecdot((x @ x.mT).flatten(1), (y @ y.mT).flatten(1)))
    return torch.cat(parts).clamp_min(0)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)


def _linear_kept(a: Tensor, g: Tensor, buffers: Buffers) -> Ghost:
    if g.device.type != "cpu" or g.dtype.itemsize < 4:
        return kept([g.mT @ a])
    out = torch.bmm(g.mT, a, out=buffers.take(g, (len(g), g.shape[2], a.shape[2])))
    ghost = kept([out])
    ghost.borrowed.append(out)
    return ghost


def _linear_sum(a: Tensor, g: Tensor, weights: Tensor, mask: Tensor | None) -> list[Tensor]:
    return [scaled(g, weights, mask).flatten(0, 1).mT @ rows(a, mask).flatten(0, 1)]


def linear(module: nn.Linear, names: Sequence[str], calls: Sequence[Call]) -> Ghost:
    """The Ghost of a linear layer; several calls are more positions of one."""
    g = _joined([call.grads[0].reshape(call.batch, -1, module.out_features) for call in calls])
    ghosts = []
    for name in names:
        if name == "bias":
            ghosts.append(kept([wide(g).sum(1)]))
            continue
        a = _joined([call.inputs[0].reshape(call.batch, -1, module.in_features) for call in calls]).to(g.dtype)
        if a.shape[2] * g.shape[2] <= a.shape[1] * (a.shape[2] + g.shape[2]):
            ghosts.append(_linear_kept(a, g, calls[0].buffers))
        else:
            ghosts.append(Ghost(_gram_dot(a, g), partial(_linear_sum, a, g)))
    return both(ghosts)


def embedding(module: nn.Embedding, names: Sequence[str], calls: Sequence[Call]) -> Ghost:
    """The Ghost of an embedding: a sample's output gradients are summed per token it contains."""
    index = _joined([call.inputs[0].reshape(call.batch, -1) for call in calls])
    g = _joined([call.grads[0].reshape(call.batch, -1, module.embedding_dim) for call in calls])
    if module.padding_idx is not None:
        g = torch.where((index == module.padding_idx)[..., None], 0, g)
    batch, length = index.shape
    ordered, order = index.sort(1)
    new = F.pad((ordered[:, 1:] != ordered[:, :-1]).long(), (1, 0)).cumsum(1)
    segment = torch.empty_like(index).scatter_(1, order, new) + length * torch.arange(batch, device=index.device)[:, None]
    g = wide(g)
    sums = torch.zeros_like(g).flatten(0, 1).index_add_(0, segment.flatten(), g.flatten(0, 1))

    def deferred(weights: Tensor, mask: Tensor | None) -> list[Tensor]:
        table = g.new_zeros(module.weight.shape)
        return [table.index_add_(0, index.flatten(), scaled(g, weights, mask).flatten(0, 1))]

    return Ghost(squares(sums.view(batch, -1)), deferred)


def layer_norm(module: nn.LayerNorm, names: Sequence[str], calls: Sequence[Call]) -> Ghost:
    """The Ghost of a LayerNorm: d gamma = sum_t g_t * (a_t normalised), d beta = sum_t g_t."""
    shape = tuple(module.normalized_shape)
    grads = []
    for name in names:
        parts = []
        for call in calls:
            g = wide(call.grads[0])
            each = g if name == "bias" else F.layer_norm(wide(call.inputs[0]), shape, None, None, module.eps).mul_(g)
            parts.append(each.reshape(call.batch, -1, *shape).sum(1))
        grads.append(total(parts))
    return kept(grads)


def unit(module: nn.Module, names: Sequence[str], calls: Sequence[Call]) -> Ghost:
    """The Ghost of any other module: torch.func replays it sample by sample; what torch.func refuses is passed on."""
    parameters = {name: module.get_parameter(name).detach() for name in names}
    rest: dict[str, Tensor] = {}
    if getattr(module, "_is_fsdp_managed_module", False):  # the whole tensors are freed before the weighted sums are computed
        parameters = {name: whole(p).clone() for name, p in parameters.items()}
        rest = {name: whole(p.detach()).clone() for name, p in module.named_parameters() if name not in parameters}
    batch = calls[0].batch
    size = sum(p.numel() for p in parameters.values())

    def outputs(call: Call, given: dict[str, Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        args, kwargs = tree_unflatten(list(tensors), call.spec)
        with torch.autocast(call.grads[0].device.type, dtype=call.amp, enabled=call.amp is not None):
            result = functional_call(module, {**rest, **given}, args, kwargs)
        return [leaf for leaf in tree_leaves(result) if differentiable(leaf)]

    def one(call: Call, batched: list[bool], tensors: list[Tensor], grads: list[Tensor]) -> dict[str, Tensor]:
        whole = [x[None] if b else x for x, b in zip(tensors, batched)]
        pull = vjp(lambda given: outputs(call, given, whole), parameters)[1]
        return pull([g[None] for g in grads])[0]

    def per_sample(call: Call, c: slice) -> list[Tensor]:
        batched = [isinstance(x, Tensor) and x.dim() > 0 and len(x) == batch for x in call.inputs]
        given = [x[c] if b else x for x, b in zip(call.inputs, batched)]
        each = vmap(lambda x, g: one(call, batched, x, g), in_dims=([0 if b else None for b in batched], 0))
        result = each(given, [g[c] for g in call.grads])
        return [result[name] for name in names]

    def summed(c: slice) -> list[Tensor]:
        return [total(grads) for grads in zip(*[per_sample(call, c) for call in calls])]

    if size * batch <= sum(x.numel() for call in calls for x in (*call.inputs, *call.grads) if isinstance(x, Tensor)):
        return kept(summed(slice(None)))

    def deferred(weights: Tensor, mask: Tensor | None) -> list[Tensor]:
        sums = [torch.zeros_like(wide(p)) for p in parameters.values()]
        for call in calls:
            inputs = [rows(x, mask) if isinstance(x, Tensor) and differentiable(x) and len(x) == batch else x for x in call.inputs]
            pull = vjp(lambda given, call=call, inputs=inputs: outputs(call, given, inputs), parameters)[1]
            result = pull([scaled(g, weights, mask) for g in call.grads])[0]
            sums = [old + result[name] for old, name in zip(sums, names)]
        return sums

    squared = [torch.stack([squares(g) for g in summed(c)]).sum(0) for c in chunks(batch, size)]
    return Ghost(torch.cat(squared), deferred)


def differentiable(x: Any) -> bool:
    """True for a tensor of at least one axis that can carry a gradient."""
    return isinstance(x, Tensor) and x.dim() > 0 and x.is_floating_point()
