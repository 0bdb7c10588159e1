"""A ledger of many rows in parts, one a process: who holds which row, and how all rows come together where one is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor

#: From so many rows on several processes hold a part each; below, each holds all rows, which any of them may read by itself.
PARTS_FROM = 4_000_000


@dataclass(frozen=True)
class Parts:
    """Which of N rows a process holds: a block of consecutive ones, and one row more that takes what belongs to others.

    Args:
        size: N.
        processes: how many share them.
        rank: this one's number.
        gather: concatenates a tensor over the processes. total: sums one over them.
    """

    size: int
    processes: int
    rank: int
    gather: Callable[[Tensor], Tensor]
    total: Callable[[Tensor], Tensor]

    @property
    def rows(self) -> int:
        """Rows of a part; the last parts may have fewer that count."""
        return -(-self.size // self.processes)

    def places(self, index: Tensor) -> Tensor:
        """Returns where in this part rows are (B,): `rows`, one past its end, for those that others hold. Without a host sync.

        Args:
            index: positions in the data set (B,).
        """
        place = index - self.rank * self.rows
        return torch.where((place >= 0) & (place < self.rows), place, torch.full_like(place, self.rows))

    def looked_up(self, column: Tensor, index: Tensor) -> Tensor:
        """Returns a column's values at rows that anybody may hold, (B,), without a host sync. All processes must ask, for B each.

        Args:
            column: this part of it, integers.
            index: positions in the data set (B,), each process's own.
        """
        everybody = self.gather(index)
        place = self.places(everybody)
        own = torch.where(place < self.rows, column[place], torch.zeros_like(column[:1])).int()
        return self.total(own)[self.rank * len(index) : (self.rank + 1) * len(index)].to(column.dtype)

    def whole(self, column: Tensor) -> Tensor:
        """Returns all N rows of a column. All processes must ask.

        Args:
            column: this part of it.
        """
        part = column[: self.rows].contiguous()
        return self.gather(part.view(torch.uint8)).view(column.dtype)[: self.size]  # NCCL knows no numbers of 16 bits

    def mine(self, column: Tensor) -> Tensor:
        """Returns of all N rows of a column those of this part.

        Args:
            column: all of it.
        """
        return column[self.rank * self.rows : (self.rank + 1) * self.rows]


class WholeColumns(MutableMapping[str, Tensor]):
    """The columns of a ledger in parts, each brought together when it is read, which all processes must do.

    Args:
        columns: this process's; of those that are not in parts, all rows.
        in_parts: names of those that are.
        parts: who holds what.
        gathered: those that are together now, empty for none.
    """

    def __init__(self, columns: dict[str, Tensor], in_parts: frozenset[str], parts: Parts, gathered: Mapping[str, Tensor]):
        self._columns, self._in_parts, self._parts, self._gathered = columns, in_parts, parts, gathered

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._in_parts:
            return self._columns[name]
        return self._gathered[name] if name in self._gathered else self._parts.whole(self._columns[name])

    def __setitem__(self, name: str, column: Tensor) -> None:
        if name in self._in_parts:
            raise ValueError(f"column {name!r} of the ledger is in parts, one a process: change _columns[{name!r}] on each.")
        self._columns[name] = column

    def __delitem__(self, name: str) -> None:
        raise ValueError(f"column {name!r} of the ledger cannot be removed: make a ledger without it.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, name: object) -> bool:  # without bringing it together
        return name in self._columns
