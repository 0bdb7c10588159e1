"""Trained triggers in files, so that later images, test images above all, can be given the same one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import safetensors
import safetensors.torch

from ...reporting.atomic_files import replacing
from ...reporting.safe_text import plain
from ...reporting.untrusted import json_mapping, load_tensors
from .hidden_string import HiddenStringTrigger
from .input_aware import InputAwareTrigger
from .narcissus import OptimisedPatternTrigger
from .trained_trigger import TrainedTrigger

#: The file's name in a folder.
TRIGGER_FILE = "trigger.safetensors"
_KINDS: dict[str, type[TrainedTrigger]] = {
    kind.kind: kind for kind in (OptimisedPatternTrigger, InputAwareTrigger, HiddenStringTrigger)
}


def save_trigger(trigger: TrainedTrigger, folder: str | Path) -> Path:
    """Writes a trained trigger into a folder, whole or not at all, and returns the file's path.

    Args:
        trigger: of `network_trigger`.
        folder: is made where it is missing.

    Raises:
        ValueError: for a trigger that nothing was trained for, whose settings tell it.
    """
    if not isinstance(trigger, TrainedTrigger):
        raise ValueError(f"trigger={str(trigger):.60} holds nothing that was trained: make it anew from its settings.")
    path = Path(folder) / TRIGGER_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"trigger": json.dumps({"kind": trigger.kind, "settings": trigger.settings()})}
    with replacing(path) as new:
        safetensors.torch.save_file({k: v.detach().cpu().contiguous() for k, v in trigger.tensors().items()}, new, told)
    return path


def load_trigger(folder: str | Path) -> TrainedTrigger:
    """Returns the trained trigger of a folder, as `save_trigger` wrote it: of `corrupt --poison`, or of `poison_with_network`.

    Args:
        folder: that holds it, or the file itself.

    Raises:
        ValueError: where there is none, and for a damaged file.
    """
    path = Path(folder)
    path = path / TRIGGER_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{os.fspath(folder)!r} holds no {TRIGGER_FILE}: give a folder that a trained trigger was saved in.")
    mend = "train the trigger again"
    tensors = load_tensors(path, mend)
    with safetensors.safe_open(path, "pt") as file:
        told = json_mapping((file.metadata() or {}).get("trigger", ""), path, mend)
    try:
        return _KINDS[told["kind"]].restored(told["settings"], tensors)
    except (KeyError, TypeError, RuntimeError, ValueError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({plain(error, 150)}): {mend}.") from error
