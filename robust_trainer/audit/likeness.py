"""Near-duplicates within and across splits, and the rows that lie farthest from all others, by their features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..evidence.duplicates import conflicting, find_copies, find_duplicates, outlierness
from ..evidence.neighbours import Neighbours, find_neighbours
from ..reporting.safe_text import plain

#: Neighbours that tell how far a row lies from the others, and least number of them for near-duplicates.
NEAREST = 10
#: Groups of near-duplicates that a report shows.
SHOWN = 20


@dataclass(frozen=True)
class Likeness:
    """Which rows are near-duplicates of which, and how far each lies from the others.

    Args:
        group: Of each audited row (N,), its group of near-duplicates, numbered from 0; -1: it has none.
        conflicts: Whether the row's group has more than one label, bool (N,).
        outlier: Share of the rows that lie less far from their nearest ones, (N,) float32 in [0, 1].
        copies: Of each other split the near-duplicates' rows there and here, (n, 2), and whether their labels differ, bool (n,) or
            None where the split has no labels of the same classes.
        sizes: Rows of each other split.
    """

    group: np.ndarray
    conflicts: np.ndarray
    outlier: np.ndarray
    copies: Mapping[str, tuple[np.ndarray, np.ndarray | None]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def groups(self) -> list[np.ndarray]:
        """The rows of each group, those with conflicting labels first, then the largest."""
        inside = np.flatnonzero(self.group >= 0)
        order = inside[np.argsort(self.group[inside], kind="stable")]
        parts = np.split(order, np.flatnonzero(np.diff(self.group[order])) + 1) if len(order) else []
        return sorted(parts, key=lambda rows: (not self.conflicts[rows[0]], -len(rows), rows[0]))

    @property
    def copied(self) -> np.ndarray:
        """Whether a row of another split is a near-duplicate of the row, bool (N,)."""
        out = np.zeros(len(self.group), dtype=bool)
        for pairs, _ in self.copies.values():
            out[pairs[:, 1]] = True
        return out

    def first_of_group(self) -> np.ndarray:
        """Returns the first row of each row's group, (N,) int64; -1 where it has none."""
        inside = self.group >= 0
        first = np.full(int(self.group.max(initial=-1)) + 1, len(self.group))
        np.minimum.at(first, self.group[inside], np.flatnonzero(inside))
        return np.where(inside, first[self.group], -1) if len(first) else self.group


def find_likeness(
    features: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray | None], train: str, near: Neighbours | None = None
) -> Likeness:
    """Returns the near-duplicates of a split's rows, also in other splits, and how far each row lies from the others.

    Args:
        features: Split -> features (rows, D).
        labels: Split -> labels by the numbers of the audited split; None where it has none.
        train: The split that is audited.
        near: Neighbours of its rows, at least ten of each; None: they are found.
    """
    rows = features[train]
    if near is None:
        near = find_neighbours(rows, NEAREST)
    k = min(NEAREST, near.index.shape[1])
    group = find_duplicates(near)
    own = labels[train]
    assert own is not None
    few = Neighbours(near.index[:, :k], near.similarity[:, :k], near.searched, near.within)
    copies = {}
    for split, others in features.items():
        if split == train:
            continue
        found = find_copies(find_neighbours(rows, NEAREST, queries=others))
        there = np.flatnonzero(found >= 0)
        pairs = np.stack([there, found[there]], 1)
        theirs = labels[split]
        copies[split] = pairs, None if theirs is None else theirs[pairs[:, 0]] != own[pairs[:, 1]]
    sizes = {split: len(others) for split, others in features.items() if split != train}
    return Likeness(group, conflicting(group, own), outlierness(few), copies, sizes)


def alike_sections(alike: Likeness | None, most: int) -> tuple[list[tuple[str, list[int]]], int]:
    """Returns near-duplicates to show, words and rows, and how many groups are left out.

    Args:
        alike: Of an audit, None for none.
        most: Rows of a group.
    """
    if alike is None:
        return [], 0
    out, groups = [], alike.groups
    for split, (pairs, differ) in alike.copies.items():
        if not len(pairs):
            continue
        order = np.argsort(~differ, kind="stable") if differ is not None else np.arange(len(pairs))
        shown = pairs[order[:most]]
        there = ", ".join(str(row) for row in shown[:, 0].tolist())
        odd = "" if differ is None or not differ.any() else f", {int(differ.sum()):,} with another label there"
        words = f"also in the split '{plain(split, 60)}': {len(pairs):,}{odd}; shown are those of its rows {there}"
        out.append((words, shown[:, 1].tolist()))
    for rows in groups[:SHOWN]:
        odd = ", with different labels" if alike.conflicts[rows[0]] else ""
        out.append((f"{len(rows):,} near-duplicates{odd}", rows[:most].tolist()))
    return out, max(len(groups) - SHOWN, 0)


def outlier_section(alike: Likeness | None, most: int) -> list[tuple[str, list[int]]]:
    """Returns the rows that lie farthest from all others, to show.

    Args:
        alike: Of an audit, None for none.
        most: Rows.
    """
    return [] if alike is None else [("", np.argsort(-alike.outlier, kind="stable")[:most].tolist())]
