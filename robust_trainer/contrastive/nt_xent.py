"""NT-Xent, the contrastive loss of SimCLR."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def nt_xent(a: Tensor, b: Tensor, temperature: float, gather: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Returns the normalised temperature-scaled cross-entropy of two views' embeddings: a scalar.

    The mean over the 2B anchors i of -log(exp(s_ij / t) / sum_{k != i} exp(s_ik / t)) with cosine similarities s and j the same
    image's other view. The k are all views but the anchor itself. In float32, or float64 where a is, also under autocast.

    Guarantee: with `gather_rows` the gradient averaged over P processes, as DDP does, is that of one batch of P B images.

    Args:
        a: embeddings of one view of each image (B, D).
        b: of the other (B, D).
        temperature: t > 0.
        gather: (2B, D) -> (P 2B, D), the rows of all P processes, this one's first; None: one process.

    Raises:
        ValueError: where a and b are not of one shape (B, D) with B >= 1, where there is only one image (no negatives), and for a
            temperature that is not > 0.

    References:
        Chen et al. 2020, "A simple framework for contrastive learning of visual representations", eq. 1.
    """
    if a.dim() != 2 or a.shape != b.shape or len(a) < 1:
        raise ValueError(f"a and b have shapes {tuple(a.shape)} and {tuple(b.shape)}: give the same (B, D) with B >= 1.")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature={temperature!r} must be > 0: SimCLR takes 0.1 to 1, 0.5 on CIFAR-10.")
    with torch.autocast(a.device.type, enabled=False):
        both = torch.cat([a, b])
        local = normalize(both if both.dtype == torch.float64 else both.float(), dim=1)
        every = local if gather is None else gather(local)
        if len(every) < 4:
            raise ValueError("the batch has 1 image over all processes, and no other to contrast it with: give at least 2.")
        logits = (local @ every.T / temperature).fill_diagonal_(-math.inf)
        other = torch.arange(len(local), device=a.device).roll(len(a))
        return cross_entropy(logits, other)


def gather_rows(x: Tensor) -> Tensor:
    """Returns the rows (P N, D) of all P processes of the default group, this one's first; differentiable.

    The gradient with respect to x is the sum over the processes of their gradients. All processes give the same shape, and all
    have to go backward together. Without processes it is x.

    Args:
        x: this process's rows (N, D).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rank, ctx.rows = dist.get_rank(), len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts).roll(-ctx.rank * ctx.rows, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # in the order of the ranks, which all processes share
        total = grad.roll(ctx.rank * ctx.rows, 0).contiguous()
        dist.all_reduce(total)
        return total[ctx.rank * ctx.rows :][: ctx.rows]
