"""FSDP2 on the CPU by Accelerate's own path: it shards, trains, saves and loads there as on GPUs, over gloo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


@contextmanager
def fsdp_on_cpu() -> Iterator[None]:
    """Within it ``TrainingArguments(fsdp=True)`` shards the model among the CPU's processes; accelerate 1.15 asks for GPUs first.

    Nothing else is changed: what a training does then is accelerate's and torch's own FSDP.
    """
    AcceleratorState._reset_state()  # what an earlier training of this process has set up
    create = AcceleratorState.__init__

    def with_plugin(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        create(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    with patch.object(AcceleratorState, "__init__", with_plugin):
        yield
    AcceleratorState._reset_state()
    if PartialState._shared_state.get("distributed_type") == DistributedType.FSDP:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
