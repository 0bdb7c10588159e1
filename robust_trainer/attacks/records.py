"""What was found so far, sample by sample: merged over processes, and kept in a file from which an evaluation resumes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..reporting.atomic_files import write_text

#: What a header is known by, and how a refusal calls its entries.
_KIND = "robust-trainer evaluation"
_REASONS = {"model": "for another model", "data": "for other data"}
#: Seconds after which what is known of an unfinished batch is written down too.
SAVE_EVERY = 10.0


class Records:
    """Finished batches: ``rows`` of ``{"index": [...], "clean": [...], "broken": {attack: [...]}, "seconds": {attack: s}}``.

    index: the samples' positions; clean: right without attack; broken: the number of the member that broke the sample, -1 for none.
    begun: a batch that was interrupted, by its positions: a row with ``next``, the numbers (attack, member) that come next.
    header: all that the numbers depend on. path: a file of JSON lines, the header first; processes other than the first write
    beside it (path.1, path.2, ...), and any number of them resumes from all of these. Raises a one-line ``ValueError`` where the
    file was written with another header or is no such record.
    """

    def __init__(self, header: Mapping[str, Any], path: str | os.PathLike[str] | None, rank: int = 0, world: int = 1):
        self.header = {"kind": _KIND, **header}
        self.world = world
        self.path = None if path is None else Path(path)
        self.own = None if path is None else Path(path) if rank == 0 else Path(f"{path}.{rank}")
        self.rows: list[dict[str, Any]] = []
        self.earlier: list[dict[str, Any]] = []
        self.begun: dict[tuple[int, ...], dict[str, Any]] = {}
        self._saved = time.monotonic()
        if self.path is not None and self.own is not None:
            mine: list[dict[str, Any]] = []
            for file in record_files(self.path):
                rows = self._read(file)
                self.earlier += [row for row in rows if "next" not in row]
                self.begun |= {tuple(row["index"]): row for row in rows if "next" in row}
                mine = rows if file == self.own else mine
            self.earlier = self.merged([*self.earlier])  # also: nobody writes before everybody has read
            write_text(self.own, "".join(json.dumps(line) + "\n" for line in [self.header, *mine]))

    @property
    def done(self) -> set[int]:
        """The samples that need no attack any more."""
        return {i for row in [*self.earlier, *self.rows] for i in row["index"]}

    def add(self, row: dict[str, Any]) -> None:
        """Takes one finished batch, and writes it down where there is a file."""
        self.rows.append(row)
        self._write(row)

    def keep(self, row: dict[str, Any]) -> None:
        """Writes an unfinished batch down, a row with ``next``, where there is a file and the last line is some seconds old."""
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        self._saved = time.monotonic()
        if self.own is not None:
            with self.own.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def merged(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of all processes, each once."""
        everybody: list[Any] = [list(rows)]
        if self.world > 1:
            everybody = [None] * self.world
            torch.distributed.all_gather_object(everybody, list(rows))
        return list({tuple(row["index"]): row for part in everybody for row in part}.values())

    def all(self) -> list[dict[str, Any]]:
        """The rows of the file and of all processes of this evaluation."""
        return self.merged([*self.earlier, *self.rows])

    def _read(self, file: Path) -> list[dict[str, Any]]:
        lines = []
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except (ValueError, RecursionError):
                break  # the process ended while it wrote this line
        if not lines or not isinstance(lines[0], dict) or lines[0].get("kind") != _KIND:
            raise ValueError(f"resume_from={str(self.path)!r} holds no records of an evaluation: give another path.")
        for key, now in self.header.items():
            before = lines[0].get(key)
            if before != json.loads(json.dumps(now)):
                reason = _REASONS.get(key, f"with {key}={_short(before)}, not {_short(now)}")
                raise ValueError(f"resume_from={str(self.path)!r} was written {reason}: give the same again, or another path.")
        wrong = next((i for i, row in enumerate(lines[1:], 2) if not _is_row(row)), None)
        if wrong is not None:
            place = f"line {wrong} of {file.name}"
            raise ValueError(f"resume_from={str(self.path)!r} is damaged ({place}): delete it, or give another path.")
        return lines[1:]


def record_files(path: Path) -> list[Path]:
    """The files of one evaluation that exist: path and path.1, path.2, ..."""
    others = [f for f in path.parent.glob(path.name + ".*") if f.name[len(path.name) + 1 :].isdecimal()]
    return sorted(f for f in [path, *others] if f.is_file())


def processes() -> tuple[int, int]:
    """This process's number and how many there are; several that a launcher started are connected, one alone is left as it is."""
    if not torch.distributed.is_available():
        return 0, 1
    if not torch.distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=not torch.accelerator.is_available())
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _is_row(row: Any) -> bool:
    """Whether a line of a record is one that `Records` writes: positions, and of each what was found."""

    def numbers(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(i, int) and abs(i) < 2**62 for i in value)

    if not isinstance(row, dict) or not numbers(row.get("index")) or not isinstance(row.get("broken"), dict):
        return False
    columns = [row.get("clean"), *row["broken"].values()]
    seconds, following = row.get("seconds", {}), row.get("next", [])
    return (
        all(numbers(column) and len(column) == len(row["index"]) for column in columns)
        and isinstance(seconds, dict) and all(isinstance(s, int | float) for s in seconds.values()) and isinstance(following, list)
    )  # fmt: skip


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
