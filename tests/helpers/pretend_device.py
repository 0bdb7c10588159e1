"""A device that is none: tensors on it are computed by the CPU and say where the host would have waited for an accelerator.

Its tensors say ``device="meta"``, so code takes its accelerator's path. Whatever needs their values, or an output whose size hangs
on them, is noted in `PretendDevice.waits`, and so is every copy to or from it that waits.
"""

import os
import traceback
from collections import Counter
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE, HOST = torch.device("meta"), torch.device("cpu")
aten = torch.ops.aten
#: Their result, or its size, is known to the host only when the device has computed it.
DATA_DEPENDENT = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten.unique_dim_consecutive, aten.equal, aten.bincount, aten.repeat_interleave, aten.isin,
    aten.histc, aten.multinomial, aten.argwhere, aten.nonzero_static, aten._linalg_check_errors,
}  # fmt: skip
COPIES = {aten._to_copy, aten.copy_, aten.copy}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_}


class OnDevice(torch.Tensor):
    """A tensor of the pretended device; the CPU holds its numbers in ``held``."""

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self):
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on the pretended device outside of it")


def _known(kind):
    """A kind of device that autocast knows."""
    return HOST.type if kind == DEVICE.type else kind


class _Undispatched(TorchFunctionMode):
    """What knows no dispatch: ``torch.tensor`` of numbers, a copy that waits, and ``tolist``; ``one_hot`` looks on CPUs alone."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return func(*args, **{**kwargs, "device": HOST}).to(DEVICE)
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        if func is torch.nn.functional.one_hot:
            with self.device.unseen():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class PretendDevice(TorchDispatchMode):
    """Within it a Trainer's device is the pretended one, unless it is told to use the CPU.

    Attributes:
        waits: how often the host waited, by the operation and the function, ours or the Trainer's, that it came from.
    """

    def __init__(self):
        super().__init__()
        self.waits = Counter()
        self._looking = True
        self._others = []

    def __enter__(self):
        autocast, enabled, dtype = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
        self._others = [
            patch.dict(os.environ, {"ACCELERATE_TORCH_DEVICE": DEVICE.type}),
            patch.object(torch, "autocast", lambda kind, *args, **rest: autocast(_known(kind), *args, **rest)),
            patch.object(torch, "is_autocast_enabled", lambda kind: enabled(_known(kind))),
            patch.object(torch, "get_autocast_dtype", lambda kind: dtype(_known(kind))),
            _Undispatched(self),
        ]
        for other in self._others:
            other.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for other in reversed(self._others):
            other.__exit__(*exception)
        AcceleratorState._reset_state(reset_partial_state=True)

    def unseen(self):
        """A context in which nothing is noted."""
        return patch.object(self, "_looking", False)

    def take(self):
        """Returns `waits` since the last call."""
        waits, self.waits = self.waits, Counter()
        return waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        ours = [value for value in flat if isinstance(value, OnDevice)]
        target = kwargs.get("device")
        on_device = torch.device(target) == DEVICE if target is not None else bool(ours)
        if not ours and not on_device:
            return func(*args, **kwargs)
        if self._looking:
            self._note(func.overloadpacket, args, kwargs, flat, on_device)
        plain = dict(tree_map_only(OnDevice, lambda value: value.held, kwargs))
        if target is not None:
            plain["device"] = HOST
        out = func(*tree_map_only(OnDevice, lambda value: value.held, args), **plain)
        if not on_device or func.overloadpacket is aten._local_scalar_dense:
            return out
        if func.overloadpacket is aten.copy_ and not isinstance(args[0], OnDevice):
            return args[0]
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(torch.Tensor, OnDevice, out))

    def _wait(self, name):
        known = ("robust_trainer.", "transformers.trainer")
        frames = (f for f, _ in traceback.walk_stack(None) if f.f_globals.get("__name__", "").startswith(known))
        self.waits[name, next((f.f_code.co_qualname for f in frames), "")] += 1

    def _note(self, operation, args, kwargs, flat, on_device):
        others = [value for value in flat if not isinstance(value, OnDevice)]
        name = str(operation).removeprefix("aten.")
        if operation in DATA_DEPENDENT:
            self._wait(name)
        elif operation in COPIES:
            to_host = not on_device or (operation is not aten._to_copy and not isinstance(args[0], OnDevice))
            waits = not kwargs.get("non_blocking") and not (len(args) > 2 and args[2])
            if to_host or (others and waits):
                self._wait("copy to the host" if to_host else "copy to the device")
        elif operation in INDEXING:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            fills = operation is not aten.index and len(masks) == len(args[1]) == 1 and args[2].numel() == 1
            if masks and not fills:
                self._wait(f"{name} by a mask")
            if any(i is not None and not isinstance(i, OnDevice) for i in args[1]):
                self._wait("copy to the device")
        elif any(value.dim() for value in others) and any(isinstance(value, OnDevice) for value in flat):
            raise RuntimeError(f"{name}: tensors of the host and of the device in one operation")
