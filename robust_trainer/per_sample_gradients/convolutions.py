"""Per-sample gradients of convolutions; see `linear`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import Call, Ghost, both, chunks, kept, rows, scaled, squares, total, wide


@dataclass(frozen=True)
class _Geometry:
    """What of a convolution its weight gradient depends on."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def weight(self, a: Tensor, g: Tensor, groups: int) -> Tensor:
        shape = (g.shape[1], a.shape[1] // groups, *self.kernel)
        zeros = [0] * len(self.kernel)
        dummy = a.new_empty(1).expand(shape)
        return torch.ops.aten.convolution_backward(
            g, a, dummy, None, self.stride, self.padding, self.dilation, False, zeros, groups, (False, True, False)
        )[1]

    def per_sample(self, a: Tensor, g: Tensor) -> Tensor:
        """(B, O, C / groups, *kernel): the batch as groups of one convolution."""
        batch = len(a)
        one = self.weight(a.reshape(1, -1, *a.shape[2:]), g.reshape(1, -1, *g.shape[2:]), batch * self.groups)
        return one.view(batch, g.shape[1], *one.shape[1:])

    def gram_cost(self, a: Tensor, g: Tensor) -> int:
        padded = prod(n + 2 * p for n, p in zip(a.shape[2:], self.padding))
        return padded**2 * (a.shape[1] + 4 * self.groups * sum(self.kernel)) + prod(g.shape[2:]) ** 2 * g.shape[1]

    def gram_dot(self, a: Tensor, g: Tensor) -> Tensor:
        """_gram_dot of the unfolded a, whose Gram matrix is a sum over shifts of that of a itself, one axis at a time."""
        n, batch = len(self.kernel), len(a)
        a, g = (wide(x).reshape(batch * self.groups, -1, *x.shape[2:]) for x in (a, g))
        a = F.pad(a, [p for size in reversed(self.padding) for p in (size, size)])
        space, parts = a.shape[2:], []
        for c in chunks(len(a), 3 * prod(space) ** 2):
            x, y = a[c].flatten(2), g[c].flatten(2)
            gram = (x.mT @ x).view(-1, *space, *space)
            for axis, (size, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation)):
                windows = []
                for k in range(size):
                    window = [slice(None)] * gram.dim()
                    last = k * dilation + stride * (g.shape[2 + axis] - 1)
                    window[1 + axis] = window[1 + n + axis] = slice(k * dilation, last + 1, stride)
                    windows.append(gram[tuple(window)])
                gram = total(windows)
            parts.append(torch.linalg.vecdot(gram.flatten(1), (y.mT @ y).flatten(1)))
        return torch.cat(parts).view(batch, -1).sum(1).clamp_min(0)


def convolution(module: Any, names: Sequence[str], calls: Sequence[Call]) -> Ghost:
    """The Ghost of a Conv1d, Conv2d or Conv3d."""
    grads, inputs = [call.grads[0] for call in calls], [call.inputs[0].to(call.grads[0].dtype) for call in calls]
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = [F.pad(a, module._reversed_padding_repeated_twice, mode=mode) for a in inputs]
        padding = (0,) * len(module.kernel_size)
    form = _Geometry(module.kernel_size, module.stride, padding, module.dilation, module.groups)
    pairs = list(zip(inputs, grads))

    def deferred(weights: Tensor, mask: Tensor | None) -> list[Tensor]:
        return [total(form.weight(rows(a, mask), scaled(g, weights, mask), form.groups) for a, g in pairs)]

    ghosts = []
    for name in names:
        batch, size = len(inputs[0]), module.weight.numel()
        if name == "bias":
            ghosts.append(kept([total(wide(g).flatten(2).sum(2) for g in grads)]))
        elif size * batch <= sum(a.numel() + g.numel() for a, g in pairs):
            ghosts.append(kept([total(form.per_sample(a, g) for a, g in pairs)]))
        elif len(pairs) == 1 and form.gram_cost(*pairs[0]) < size * prod(grads[0].shape[2:]):
            ghosts.append(Ghost(form.gram_dot(*pairs[0]), deferred))
        else:
            squared = [squares(total(form.per_sample(a[c], g[c]) for a, g in pairs)) for c in chunks(batch, size)]
            ghosts.append(Ghost(torch.cat(squared), deferred))
    return both(ghosts)
