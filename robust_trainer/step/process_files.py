"""Which files a checkpoint needs for the processes that go on from it: random states, and the weights of a sharded model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

#: The checkpoint's files with their sizes, written when all but the Trainer's own state are there.
MARK = "checkpoint_files.json"
#: Folders in which each process writes its part of a sharded model, as Accelerate names them.
PARTS = re.compile(r"(pytorch_model_fsdp|optimizer)_\d+")
#: What FSDP2 goes on from, by ``state_dict_type``.
_SHARDED = {
    "SHARDED_STATE_DICT": ("pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"),
    "FULL_STATE_DICT": ("pytorch_model_fsdp.bin", "optimizer.bin"),
}


def saved_by(folder: Path, processes: int) -> int:
    """Returns how many processes wrote a checkpoint.

    Args:
        folder: of the checkpoint.
        processes: of this run, where the checkpoint does not tell.
    """
    try:
        count = json.loads((folder / MARK).read_text(encoding="utf-8"))["processes"]
        if isinstance(count, int) and not isinstance(count, bool) and 0 < count < 1 << 20:
            return count
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return len([*folder.glob("rng_state_*.pth")]) or (1 if (folder / "rng_state.pth").is_file() else processes)


def state_kind(trainer: Any) -> str | None:
    """Returns FSDP's ``state_dict_type``, None without FSDP.

    Args:
        trainer: whose accelerator counts.
    """
    if not trainer.is_fsdp_enabled:
        return None
    return str(getattr(trainer.accelerator.state.fsdp_plugin.state_dict_type, "name", "FULL_STATE_DICT"))


def needed_files(trainer: Any, folder: Path) -> list[str]:
    """Returns the files that this run goes on from, beside the weights that open anywhere and the Trainer's own state.

    Args:
        trainer: that is to resume.
        folder: of the checkpoint.
    """
    processes, kind = trainer.args.world_size, state_kind(trainer)
    before = saved_by(folder, processes)
    mine = trainer.args.save_on_each_node and before == processes
    ranks = [trainer.args.process_index] if mine else range(before)
    optimizer = [] if trainer.is_deepspeed_enabled else ["optimizer.pt"]
    random = [f"rng_state_{rank}.pth" for rank in ranks] if before > 1 else ["rng_state.pth"]
    return [*(optimizer if kind is None else _SHARDED.get(kind, ())), "scheduler.pt", *random]


def why_missing(name: str, folder: Path, kind: str | None) -> str:
    """Returns why a file that `needed_files` names is missing, where it is not that saving was interrupted; else ''.

    Args:
        name: of the file.
        folder: of the checkpoint.
        kind: of `state_kind`.
    """
    for other, names in _SHARDED.items():
        if other != kind and any(name in own for own in (("optimizer.pt",), *_SHARDED.values())) and (folder / names[1]).is_file():
            mend = f"resume under FSDP2 with state_dict_type={other!r}" if kind is None else f"set state_dict_type={other!r}"
            return f" (saved under FSDP2 with state_dict_type={other!r}: {mend})"
    if kind is not None and any(name in own for own in _SHARDED.values()) and (folder / "optimizer.pt").is_file():
        return " (saved without FSDP: resume without it, or start a new run from its weights)"
    return " (save_only_model=True leaves it out)" if name.startswith("optimizer") else ""
