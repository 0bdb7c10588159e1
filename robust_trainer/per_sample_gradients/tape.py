"""One recorded forward: taps on the outputs of its layers, and what they gather when the losses are propagated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ..models.sharding import gradients_alone, is_sharded, mean_over_processes, norms, reshard
from .layers import Layer, Shadow, plan
from .linear import Buffers, Call, Ghost, differentiable, kept, linear, unit

Trial = tuple[Tensor, list[tuple[str, Tensor]], list[tuple[nn.Parameter, Tensor | None]]]
_OFF, _CHECK, _GHOST = range(3)


class Tape:
    """One recorded forward: taps on the outputs of its layers, then what they gathered."""

    def __init__(self, model: nn.Module, batch: int, buffers: Buffers) -> None:
        self.model, self.batch, self.buffers = model, batch, buffers
        self.sharded = is_sharded(model)
        reshard(model)  # the sites' parameters are those of the optimizer
        self.sites = plan(model)
        self.root = torch.zeros((), device=next(model.parameters()).device, requires_grad=True)
        self.mode, self.done = _OFF, False
        self.sizes: list[tuple[str, Tensor]] | None = None
        self.squared = self.root
        self.batched: list[bool] = []
        self.expanded: list[tuple[nn.Parameter, Tensor]] = []
        self.ghosts: list[tuple[Ghost, list[nn.Parameter]]] = []
        self._undo: list[Any] = []

    def attach(self) -> None:
        """Taps the layers, until `detach`."""
        for site in self.sites:
            if isinstance(site, Layer):
                before = site.module.register_forward_pre_hook(partial(self._before, site), with_kwargs=True)
                after = site.module.register_forward_hook(partial(self._after, site), with_kwargs=True)
                self._undo += [before.remove, after.remove]
                continue
            wide: dict[str, Tensor] = {}
            if isinstance(site.module, nn.GroupNorm):
                self._shadow(site.module, "forward", partial(self._group_norm, site, wide))
            if self.sharded:  # whole only while the module runs
                hook = site.module.register_forward_pre_hook(partial(self._expand, site, wide))
                self._undo.append(hook.remove)
            else:
                self._expand(site, wide)

    def detach(self) -> None:
        """Puts every layer back as it was."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _expand(self, site: Shadow, wide: dict[str, Tensor], *called: Any) -> None:
        """Gives the module's parameters their batch axis, once a forward."""
        if wide:
            return
        groups = isinstance(site.module, nn.GroupNorm)
        for name, parameter in site.parameters.items():
            now = site.module.get_parameter(name)
            wide[name] = now.expand(self.batch, *now.shape[not groups :])
            self.expanded.append((parameter, wide[name]))
        if not groups:
            site.calls = 1
            for name, value in wide.items():
                self._shadow(site.module, name, value)

    def _shadow(self, module: nn.Module, name: str, value: Any) -> None:
        missing = object()
        old = module.__dict__.get(name, missing)
        module.__dict__[name] = value
        self._undo.append(partial(module.__dict__.pop, name) if old is missing else partial(module.__dict__.__setitem__, name, old))

    def reached(self) -> None:
        """Raises ValueError for a layer that the forward did not call."""
        for site in self.sites:
            if not site.calls:
                name = next(iter(site.parameters))
                raise ValueError(
                    f"per-sample gradients: the forward never called {site.title}, whose {name} has requires_grad; freeze it, "
                    "or call the module rather than use its parameters"
                )

    def _lead(self, site: Layer | Shadow, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise ValueError(f"per-sample gradients: {site.title} ran without gradients; switch off checkpointing and no_grad")
        axes = site.axes if isinstance(site, Layer) else 2
        if x.dim() >= axes and len(x) == 1 != self.batch:
            return x.expand(self.batch, *x.shape[1:])
        if x.dim() < axes or len(x) != self.batch:
            raise ValueError(
                f"per-sample gradients: {site.title} got an input of shape {tuple(x.shape)}, expected {self.batch} samples along "
                "its first axis; use batch-first inputs, or freeze the layer"
            )
        return x

    def _before(self, site: Layer, module: nn.Module, args: Any, kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if site.ghost_of is unit and any(leaves[i].dim() and len(leaves[i]) == self.batch for i in tensors):
            self._lead(site, leaves[next(i for i in tensors if leaves[i].dim() and len(leaves[i]) == self.batch)])
        elif tensors:
            x = self._lead(site, leaves[tensors[0]])
            if site.ghost_of is linear:  # one matrix, whose product is no view and need not be copied by the tap
                site.lead, x = x.shape[:-1], x.flatten(0, -2)
            leaves[tensors[0]] = x
        return tree_unflatten(leaves, spec)

    def _after(self, site: Layer, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        kind = self.root.device.type
        amp = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if site.ghost_of is not unit:
            leaves = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(output) if differentiable(leaf)]
        stray = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
        for leaf in [*outputs, *stray] if site.ghost_of is unit else []:
            if leaf.dim() == 0 or len(leaf) != self.batch:
                raise ValueError(
                    f"per-sample gradients: {site.title} gave an output of shape {tuple(leaf.shape)}, expected {self.batch} "
                    "samples along its first axis; move its parameters into layers of their own, or freeze them"
                )
        site.calls += 1
        if site.ghost_of is unit:
            self.batched += [isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == self.batch for leaf in leaves]
        saved = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        result = _Tap.apply(self, site, (self.batch, self.buffers, spec, amp), saved, *outputs, self.root)
        tapped = iter(result if isinstance(result, tuple) else (result,))
        if site.ghost_of is linear:
            flat = next(tapped)
            if len(site.lead) == 1:
                return flat
            # FSDP2 hooks what its modules return, which must be no view that is changed later
            return flat.view(*site.lead, -1).clone() if self.sharded else flat.view(*site.lead, -1)
        return tree_map(lambda leaf: next(tapped) if differentiable(leaf) else leaf, output)

    def _group_norm(self, site: Shadow, wide: dict[str, Tensor], input: Tensor) -> Tensor:
        """GroupNorm with the batch as groups of one sample: the gradients of weight and bias are then those of the samples."""
        x, module, site.calls = self._lead(site, input), site.module, site.calls + 1
        weight, bias = (
            wide[name].reshape(-1) if name in wide else getattr(module, name).expand(self.batch, -1).reshape(-1)
            for name in ("weight", "bias")
        )
        groups = self.batch * module.num_groups  # type: ignore[operator]
        return torch.group_norm(x.reshape(1, -1, *x.shape[2:]), groups, weight, bias, module.eps).view(x.shape)  # type: ignore[arg-type]

    def arrived(self, site: Layer, call: Call) -> None:
        """Takes the gradients of one call; computes the ghost of a layer with its last one."""
        if self.mode == _CHECK or self.sizes is not None:
            self._measure(site.title, call.grads)
        if self.mode != _GHOST:
            return
        site.received.append(call)
        if len(site.received) == site.calls:
            self._finish(site)

    def _measure(self, name: str, grads: Sequence[Tensor | None]) -> None:
        self.sizes += [(name, g.reshape(self.batch, -1).norm(dim=1)) for g in grads if g is not None]  # type: ignore[operator]

    def _finish(self, site: Layer) -> None:
        names, calls = list(site.parameters), site.received
        site.received = []
        try:
            ghost = site.ghost_of(site.module, names, calls)
        except (RuntimeError, NotImplementedError) as error:
            if site.ghost_of is not unit:
                raise
            raise ValueError(
                f"per-sample gradients: {site.title} cannot be replayed sample by sample ({str(error).splitlines()[0]}); set its "
                "dropout to 0, build it from linear, convolution, embedding and norm layers, or freeze it"
            ) from error
        self.ghosts.append((ghost, list(site.parameters.values())))

    def run(self, losses: Tensor) -> None:
        """Propagates the losses to all taps, once, and frees the graph."""
        self.mode = _GHOST
        wide = [w for _, w in self.expanded]
        _, *grads = torch.autograd.grad(losses.sum(), [self.root, *wide], allow_unused=True)
        for site in self.sites:
            if isinstance(site, Layer) and site.received:
                self._finish(site)
        if self.sizes is not None:
            self._measure("an expanded parameter", grads)
        for (parameter, _), grad in zip(self.expanded, grads):
            if grad is not None:
                self.ghosts.append((kept([grad.view(self.batch, *parameter.shape)]), [parameter]))
        if not self.ghosts:
            raise ValueError("per-sample gradients: the losses do not come from the recorded forward; record the one they are of")
        squared = [ghost.squared for ghost, _ in self.ghosts]
        self.squared = torch.stack([s.to(squared[0].dtype) for s in squared]).sum(0)
        self.expanded, self.mode, self.done = [], _OFF, True

    def trial(self, losses: Tensor, deferred: bool) -> Trial:
        """What plain autograd makes of losses of different weights, and how large the gradients at the taps then are."""
        weights = torch.linspace(0.5, 1.5, self.batch, device=losses.device, dtype=losses.dtype)
        parameters = [p for site in self.sites for p in site.parameters.values()]
        wide = [w for _, w in self.expanded]
        self.mode, self.sizes = _CHECK, []
        if self.sharded:
            for w in wide:
                w.retain_grad()
            with gradients_alone(self.model, deferred):
                (losses * weights).sum().backward(retain_graph=True)
                found = [p.grad for p in parameters]
            of_wide = [w.grad for w in wide]
            self.root.grad = None
        else:
            grads = torch.autograd.grad((losses * weights).sum(), [self.root, *wide, *parameters], None, True, allow_unused=True)
            of_wide, found = list(grads[1 : 1 + len(wide)]), list(grads[1 + len(wide) :])
        self._measure("an expanded parameter", of_wide)
        sizes, self.sizes = self.sizes, []
        return weights, sizes, list(zip(parameters, found))

    def compare(self, weights: Tensor, sizes: list[tuple[str, Tensor]], plain: list[tuple[nn.Parameter, Tensor | None]]) -> None:
        """Raises ValueError where weighting the losses does not weight each sample's gradients, or their sum is not autograd's."""
        low = any(size.dtype.itemsize < 4 for _, size in sizes)
        tolerance = 0.05 if low else 1e-3 if weights.device.type == "cpu" else 1e-2
        for (name, weighted), (_, size) in zip(sizes, self.sizes or []):
            if not torch.allclose(weighted.float(), (weights * size).float(), tolerance, tolerance * size.max().item()):
                raise ValueError(
                    f"per-sample gradients: the samples of the batch influence each other behind {name}, so a sample has no "
                    "gradient of its own; leave out what mixes them (batch statistics, losses between samples)"
                )
        total: dict[int, Tensor] = {}
        for ghost, parameters in self.ghosts:
            for parameter, each in zip(parameters, ghost.weighted(weights, None)):
                total[id(parameter)] = total.get(id(parameter), 0) + each
        gaps, expected = [], []
        for parameter, grad in plain:
            expected.append(torch.zeros_like(parameter) if grad is None else grad)
            own = total.get(id(parameter))
            gaps.append((0.0 if own is None else mean_over_processes(own, parameter)) - expected[-1])
        sizes_now = norms([*gaps, *expected])
        whole = torch.stack(sizes_now[len(plain) :]).sum()
        for (parameter, _), gap, size in zip(plain, sizes_now, sizes_now[len(plain) :]):
            if gap > tolerance * (size + 0.1 * whole):
                name = next(name for name, p in self.model.named_parameters() if p is parameter)
                raise ValueError(
                    f"per-sample gradients: the gradient of {name} is not the sum of what its layer recorded; it is used outside "
                    "of its module's forward: call the module instead, or freeze it"
                )


class _Tap(torch.autograd.Function):
    """The identity; hands the passing gradient to the tape. The last input, the tape's root, makes autograd come by."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, site: Layer, how: tuple[Any, ...], leaves: list[Any], *outputs: Tensor) -> Any:
        ctx.tape, ctx.site, ctx.how = tape, site, how
        ctx.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.save_for_backward(*[leaves[i] for i in ctx.tensors])
        # a copy where marking costs more (views) or where the last operation may need its result unmarked (units)
        if site.ghost_of is unit or outputs[0]._is_view():
            return tuple(output.clone() for output in outputs[:-1])
        ctx.mark_dirty(outputs[0])
        return outputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        leaves = list(ctx.leaves)
        for i, tensor in zip(ctx.tensors, ctx.saved_tensors):
            leaves[i] = tensor
        with torch.no_grad():
            ctx.tape.arrived(ctx.site, Call(leaves, list(grads), *ctx.how))
        return None, None, None, None, *grads, None
