"""The order of an epoch whose steps mix a labelled and an unlabelled stream (ERAT Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from .randomness import keyed_generator


class StreamSampler(Sampler[int]):
    """As many positions as the data set has rows, ``share`` of any stretch of them labelled.

    Each stream is its part of the data set shuffled, again and again, until the epoch is full; with share 0 its part of the data
    set, so that everybody comes once. The order depends on seed, epoch and split alone: equal on all processes and on resume.

    Args:
        size: Rows.
        now: Asked when an epoch begins for its number and who is labelled, bool (N,), None for everybody.
    """

    def __init__(self, size: int, now: Callable[[], tuple[int, Tensor | None]], share: float, seed: int):
        self.size, self.now, self.share, self.seed = size, now, share, seed

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        epoch, split = self.now()
        generator = keyed_generator("epoch order", self.seed, epoch)
        everybody = torch.arange(self.size)
        mask = torch.ones(self.size, dtype=torch.bool) if split is None else split.cpu()
        known, unknown = everybody[mask], everybody[~mask]
        share = len(known) / self.size if not self.share or not len(known) or not len(unknown) else self.share
        # error diffusion: after t positions floor(t share) are labelled
        marks = ((torch.arange(self.size + 1, dtype=torch.float64) * share) + 1e-9).floor().diff() > 0
        order = torch.empty(self.size, dtype=torch.long)
        order[marks] = _stream(known, int(marks.sum()), generator)
        order[~marks] = _stream(unknown, int((~marks).sum()), generator)
        return iter(order.tolist())


def _stream(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    rounds = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-count // max(len(rows), 1)))]
    return torch.cat(rounds)[:count] if rounds else rows[:0]
