"""Finished parts of a long computation, kept in a folder so that a stopped one goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor
from transformers.utils import logging

from .atomic_files import replacing, write_text
from .untrusted import load_tensors, read_json

_IDENTITY = "task.json"


@dataclass
class Work:
    """Finished parts of a poison in a folder, so that a stopped crafting goes on where it was; without a folder nothing is kept.

    Args:
        identity: What the poison depends on; a folder with another identity raises ``ValueError``, which calls it ``what``.
    """

    folder: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    what: str = "a poison"

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        identity, path = json.loads(json.dumps(self.identity)), self.folder / _IDENTITY
        if path.is_file() and (before := read_json(path, f"delete the folder {str(self.folder)!r}")) != identity:
            wrong = sorted(k for k in {*before, *identity} if before.get(k) != identity.get(k))[0]
            raise ValueError(
                f"{str(self.folder)!r} holds {self.what} begun with {wrong}={before.get(wrong)!r}, now {identity.get(wrong)!r}: "
                "give the same settings, or another folder."
            )
        write_text(path, json.dumps(identity))

    def load(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of a finished part, None where it is not finished.

        Args:
            name: Name of the part.

        Raises:
            ValueError: For a damaged file.
        """
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        return load_tensors(path, "delete it, and it is made anew") if path is not None and path.is_file() else None

    def save(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Keeps a part; whole or not at all.

        Args:
            name: Name of the part.
            tensors: Name -> tensor.
        """
        if self.folder is None:
            return
        with replacing(self.folder / f"{name}.safetensors") as new:
            safetensors.torch.save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, new)

    def progress(self, parts: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
        """The parts, under a progress bar (which `transformers.utils.logging.disable_progress_bar` hides).

        Args:
            parts: What to go through.
            description: What the bar says.
            total: How many parts there are, where they do not tell.
        """
        yield from logging.tqdm(parts, desc=description, total=total)
