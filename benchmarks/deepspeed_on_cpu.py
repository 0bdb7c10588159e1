"""DeepSpeed on the CPU by Accelerate's own path: ZeRO among the CPU's processes, over gloo."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig


@contextmanager
def deepspeed_on_cpu(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Within it ``TrainingArguments(deepspeed=...)`` has the CPU's processes train together; accelerate 1.15 asks for GPUs first.

    Without a GPU it takes every process for the only one, and with ``use_cpu=True`` it trains by DDP. Nothing else is changed: what
    a training does then is accelerate's and DeepSpeed's own. ``DS_ACCELERATOR=cpu`` must be set before DeepSpeed is imported.

    Args:
        dtype: of the inputs, which the Trainer makes float32 of. The weights that DeepSpeed steps are float32 in any case.
    """

    def gloo(self: PartialState, *args: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_CPU

    AcceleratorState._reset_state(reset_partial_state=True)  # what an earlier training of this process has set up
    with (
        patch.object(PartialState, "_prepare_backend", gloo),
        patch.object(HfTrainerDeepSpeedConfig, "dtype", lambda self: dtype),
        patch.dict(os.environ, {"ACCELERATE_TORCH_DEVICE": "cpu"}),
    ):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


def deepspeed_config(stage: int) -> dict[str, Any]:
    """ZeRO of a stage, everything else as the Trainer's arguments say.

    Args:
        stage: 1 shards the optimizer's state, 2 gradients, too, 3 weights, too, however small they are.
    """
    names = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    weights = {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True} if stage == 3 else {}
    return {"zero_optimization": {"stage": stage, **weights}, **dict.fromkeys(names, "auto")}
