"""The norm of every sample's gradient over all parameters, and the weighted sum of those gradients, for one back-propagation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from ..models.sharding import all_agree, mean_over_processes
from .layers import plan
from .linear import Buffers, Ghost, wide
from .tape import Tape


class SampleGradients:
    """The per-sample gradients of model, one training forward at a time.

    `record` around the forward, then `norms`, then `loss(...).backward()`. Activation gradients are propagated once, by
    whichever of norms and loss comes first; each layer's per-sample gradients or their norms are computed on the way (Goodfellow
    2015, arXiv:1510.01799; for convolutions and norms see `ghost_norms`). The samples of a batch must not influence each other;
    the first batch of every size is checked for that, and against plain autograd, at the cost of one more back-propagation.

    Raises ValueError, naming the layer, for what `plan` refuses; a module is judged in the mode, training or not, that it is in.
    """

    def __init__(self, model: nn.Module) -> None:
        plan(model)
        self.model = model
        self._tape: Tape | None = None
        self._checked: set[tuple[int, ...]] = set()
        self._buffers = Buffers()
        self.deferred = False  # whether backward passes now leave the exchange of gradients to a later one (`Run.deferred`)

    @contextmanager
    def record(self, batch_size: int) -> Iterator[None]:
        """A context for one forward of batch_size samples, of model or of a wrapper around it.

        Raises ValueError for a layer whose input's first axis is neither batch_size nor 1 and for a parameter the forward missed.
        """
        self._tape = None
        tape = Tape(self.model, batch_size, self._buffers)
        try:
            tape.attach()
            yield
        finally:
            tape.detach()
        tape.reached()
        self._tape = tape

    def norms(self, losses: Tensor) -> Tensor:
        """The norms || d losses[i] / d theta ||_2 over all parameters with requires_grad: (B,), detached, float32 or wider.

        losses: (B,), of the recorded forward. Raises ValueError without a recorded forward and for another shape.
        """
        return self._run(losses).squared.sqrt()

    def loss(self, losses: Tensor, weights: Tensor) -> Tensor:
        """The scalar sum_i weights[i] losses[i]; its backward() puts sum_i weights[i] d losses[i] / d theta into the parameters.

        losses, weights: (B,); no gradient flows to weights. A sample of weight 0 is left out whatever its loss is, NaN included.
        Once per recorded forward. Raises ValueError like `norms`.
        """
        tape = self._run(losses)
        self._tape = None
        if weights.shape != losses.shape:
            raise ValueError(f"per-sample gradients: got weights of shape {tuple(weights.shape)}, expected {tuple(losses.shape)}")
        weights = weights.detach().to(wide(losses))
        left = weights != 0
        mask = None if weights.device.type == "cpu" and bool((left | tape.squared.isfinite()).all()) else left
        value = torch.where(left, losses.detach() * weights, 0).sum()
        zeros = [_Weighted.apply(ghost, self._buffers, weights, mask, *parameters) for ghost, parameters in reversed(tape.ghosts)]
        return value + torch.stack(zeros).sum()

    def _run(self, losses: Tensor) -> Tape:
        tape = self._tape
        if tape is None:
            raise ValueError("per-sample gradients: no recorded forward; run it inside record(), and call loss() once per forward")
        if losses.shape != (tape.batch,):
            raise ValueError(f"per-sample gradients: got losses of shape {tuple(losses.shape)}, expected ({tape.batch},)")
        if not tape.done:
            with torch.autocast(losses.device.type, enabled=False):
                key = (tape.batch, *tape.batched)
                check = key not in self._checked and tape.batch > 1
                if check:
                    finite = bool(losses.isfinite().all())
                    check = all_agree(finite, losses.device) if tape.sharded else finite
                try:
                    trial = tape.trial(losses, self.deferred) if check else None
                    tape.run(losses)
                except CheckpointError as error:
                    raise ValueError("per-sample gradients: the forward used gradient checkpointing; switch it off") from error
                if trial is not None:
                    tape.compare(*trial)
                    self._checked.add(key)
        return tape


class _Weighted(torch.autograd.Function):
    """Zero, whose gradients are the weighted sums of a layer's per-sample gradients."""

    @staticmethod
    def forward(
        ctx: Any, ghost: Ghost, buffers: Buffers, weights: Tensor, mask: Tensor | None, *parameters: nn.Parameter
    ) -> Tensor:
        ctx.ghost, ctx.buffers = ghost, buffers
        ctx.weights, ctx.mask, ctx.parameters = weights, mask, parameters
        return weights.new_zeros(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        ghost, ctx.ghost = ctx.ghost, None
        if ghost is None:
            raise ValueError("per-sample gradients: backward() of this loss ran before; record a forward for each")
        with torch.autocast(grad.device.type, enabled=False):
            grads = ghost.weighted(ctx.weights * grad, ctx.mask)
        ctx.buffers.give(ghost.borrowed)
        means = [mean_over_processes(g.to(p.dtype), p) for g, p in zip(grads, ctx.parameters)]
        return None, None, None, None, *means
