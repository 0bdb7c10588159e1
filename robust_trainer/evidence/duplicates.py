"""Near-duplicates and outliers, read from each row's nearest neighbours.

Distances are those of the normalised rows on the unit sphere, ``sqrt(2 - 2 similarity)``, in [0, 2].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from .neighbours import Neighbours

#: Share of the usual distance to the tenth neighbour up to which two rows count as near-duplicates.
CLOSENESS = 0.5
_TENTH = 10
_SAME = 2e-3  # distance that rounding leaves between equal rows (similarity 1 - 2e-6)


def find_duplicates(neighbours: Neighbours, *, closeness: float = CLOSENESS, similarity: float | None = None) -> np.ndarray:
    """Returns each row's group of near-duplicates, (N,) int64, numbered from 0 by first row; -1 where a row has none.

    Two rows are near-duplicates where their distance is at most ``closeness`` times the distance that is usual there: the geometric
    mean of both rows' distances to their tenth neighbour, or half the median row's where that is larger (many copies of one row).
    Rows joined by a chain of such pairs form a group. No fixed similarity can do this: how similar strangers are depends on the
    data and on the encoder.

    ``python benchmarks/near_duplicates.py`` plants altered copies among 5,000 rows. In EfficientNet-Lite0's features of CIFAR-10
    the default finds 99 % of those with a patch, 90 % brighter by a fifth, 69 % cut by a pixel on each side, 65 % mirrored, 15 %
    after JPEG; in MiniLM's of SST-2 92 % that lack a word and 72 % with a wrong letter. It groups 0.3 % of the unaltered rows of
    both, but 20 % of CLINC150, where people rephrased one another's questions.

    Args:
        neighbours: of the rows themselves; ten of each row or more, else the last one takes the tenth's place.
        closeness: > 0; smaller ones ask for more alike rows.
        similarity: where given, pairs of at least this cosine similarity, in (-1, 1], are near-duplicates instead.

    Raises:
        ValueError: for neighbours in another split, and thresholds out of range.

    References:
        Lowe 2004, sec. 7.1 (the distance to the nearest neighbour in units of that to farther ones).
    """
    if not neighbours.within:
        raise ValueError("these are neighbours among other rows (queries=...), expected the rows' own: see find_copies.")
    close = _close_pairs(neighbours, closeness, similarity)
    rows, places = np.nonzero(close)
    others = neighbours.index.numpy()[rows, places]
    graph = sparse.coo_array((np.ones(len(rows), dtype=bool), (rows, others)), shape=(len(neighbours), len(neighbours)))
    _, part = sparse.csgraph.connected_components(graph, directed=False)
    alone = np.bincount(part, minlength=1)[part] == 1
    group = np.full(len(neighbours), -1, dtype=np.int64)
    _, first, inverse = np.unique(part[~alone], return_index=True, return_inverse=True)
    group[~alone] = np.argsort(np.argsort(first, kind="stable"), kind="stable")[inverse]
    return group


def find_copies(neighbours: Neighbours, *, closeness: float = CLOSENESS, similarity: float | None = None) -> np.ndarray:
    """Returns for each query the row searched that is its near-duplicate, the most similar one, (Q,) int64; -1 where none is.

    For near-duplicates across splits: test rows as queries among training rows. The usual distance is that of the query to its
    tenth neighbour; otherwise as `find_duplicates`.

    Args:
        neighbours: of queries, such as the rows of a test split, among the rows of another.
        closeness: see `find_duplicates`.
        similarity: see `find_duplicates`.

    Raises:
        ValueError: for neighbours of the rows searched, and thresholds out of range.
    """
    if neighbours.within:
        raise ValueError("these are neighbours among the rows themselves, expected queries' (queries=...): see find_duplicates.")
    close = _close_pairs(neighbours, closeness, similarity)
    return np.where(close[:, 0], neighbours.index.numpy()[:, 0], -1)


def conflicting(group: np.ndarray, labels: Any) -> np.ndarray:
    """Returns which rows are in a group of near-duplicates with more than one label, (N,) bool.

    Args:
        group: of each row, -1 for none, as `find_duplicates` returns them.
        labels: of each row, (N,), of any type that can be compared.

    Raises:
        ValueError: for labels of another length.
    """
    labels = np.asarray(labels)
    if labels.shape != group.shape:
        raise ValueError(f"labels are of shape {labels.shape}, expected {group.shape}: one for each row.")
    found = np.zeros(len(group), dtype=bool)
    inside = np.flatnonzero(group >= 0)
    if len(inside):
        _, number = np.unique(labels[inside], return_inverse=True)
        low, high = np.full(group.max() + 1, len(number)), np.full(group.max() + 1, -1)
        np.minimum.at(low, group[inside], number)
        np.maximum.at(high, group[inside], number)
        found[inside] = (low != high)[group[inside]]
    return found


def outlierness(neighbours: Neighbours, *, reference: Neighbours | None = None) -> np.ndarray:
    """Returns how far each row lies from all others, (N,) float32 in [0, 1]: the share of rows that lie less far from theirs.

    How far: the distance to the last of the k neighbours. A tenth of the rows is above 0.9 whether they are strange or not, so
    these are rows to look at and not to drop unseen; against a ``reference`` a high share does say something. More than k strange
    rows that resemble each other are not seen.

    Args:
        neighbours: of the rows.
        reference: neighbours of the rows that are the measure: of the training rows themselves, where ``neighbours`` are those of
            another split's rows among them; None: the same rows.

    Raises:
        ValueError: where the two hold different numbers of neighbours.

    References:
        Ramaswamy, Rastogi and Shim 2000 (distance to the k-th neighbour).
    """
    measure = neighbours if reference is None else reference
    k = neighbours.index.shape[1]
    if measure.index.shape[1] != k:
        raise ValueError(f"reference holds {measure.index.shape[1]} neighbours of each row, expected {k}: search both with one k.")
    if not k or not len(measure):
        return np.zeros(len(neighbours), dtype=np.float32)
    far, usual = -neighbours.similarity[:, -1].numpy(), -measure.similarity[:, -1].numpy()
    return (np.searchsorted(np.sort(usual), far, side="left") / len(usual)).astype(np.float32)


def _close_pairs(neighbours: Neighbours, closeness: float, similarity: float | None) -> np.ndarray:
    """Returns which of the rows' neighbours are near-duplicates, (N, k) bool."""
    if similarity is not None:
        if not -1 < similarity <= 1:
            raise ValueError(f"similarity={similarity!r}, expected a cosine similarity in (-1, 1], 0.95 for instance.")
        return neighbours.similarity.numpy() >= similarity - 1e-6
    if not 0 < closeness < float("inf"):
        raise ValueError(f"closeness={closeness!r}, expected a number > 0: {CLOSENESS} is the default.")
    distance = _distance(neighbours)
    if not distance.size:
        return np.zeros(distance.shape, dtype=bool)
    tenth = distance[:, min(_TENTH, distance.shape[1]) - 1]
    usual = tenth[:, None] * np.ones_like(distance)
    if neighbours.within:
        usual = np.sqrt(usual * tenth[neighbours.index.numpy()])
    return distance <= np.maximum(closeness * np.maximum(usual, np.median(tenth) / 2), _SAME)


def _distance(neighbours: Neighbours) -> np.ndarray:
    """Returns the distances to the neighbours, (N, k) float64."""
    return np.sqrt(2 - 2 * neighbours.similarity.numpy().astype(np.float64))
