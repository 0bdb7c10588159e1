"""FLARE: poisoned rows are alike in which hidden layers find them unlikely, so they form a dense group away from all others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from .detection import Detection, count_setting, settled_order, share_setting
from .evidence import Evidence

_STEP = 0.95  # from one cut of the cluster tree to the next
_NEAREST = 5
_DEPTH = 3  # splits of the largest cluster that are looked at, as in the paper


def flare(
    evidence: Evidence,
    rate: float | None,
    seed: int,
    *,
    smallest: float = 0.01,
    stability: float = 0.3,
    neighbours: int = 10,
    components: int = 5,
) -> Detection:  # fmt: skip
    """Returns suspicion by FLARE, which looks at all hidden layers and at no label.

    Of every layer a row has one number, the log-likelihood of its least likely activation (eq. 2, 3; `LayerWatch`). Here its
    distance to the layer's best row, as a logarithm and standardised, is the row's place. The rows are clustered by density
    (HDBSCAN). From the root of the cluster tree on, the largest cluster is followed; the first one that stays whole while the
    density grows by the factor ``e^stability`` is benign, and every other cluster at its birth is flagged; rows that are in no
    cluster then go with most of their five nearest that are (in the paper they are benign). Where there is no such split, the
    last layer is left out, and then the one before, down to half of them (adaptive subspace selection, Algorithm 1; with few layers
    there are groups by chance).

    The paper embeds the rows in two dimensions by UMAP and counts stability in UMAP's unit, 0.02; here they are projected on their
    first principal components, and stability is a ratio of distances, which no unit changes. Here a split only counts where the
    largest cluster holds more than half of the rows: the others would be no minority.

    The score is the share of rows whose layers are less unlikely on average, halved, and 0.5 more for flagged rows: in [0, 1).
    Guarantee: the order of the rows has no effect.

    Args:
        evidence: with layers.
        rate: without effect.
        seed: without effect.
        smallest: a cluster has at least this share of the rows, and ten of them, in (0, 1]; the paper's 100 rows of 50,000 are
            fewer, of small data sets too few.
        stability: > 0, of a natural logarithm.
        neighbours: of HDBSCAN's density, >= 1.
        components: principal components, >= 1.

    Returns:
        The detection; in ``details`` ``layers``, how many were used, ``cut``, the distance, and ``clusters``, their sizes; None and
        () where no split is stable.

    References:
        Hou et al. 2024, "FLARE: towards universal dataset purification against backdoor attacks", Algorithm 1.
    """
    share = share_setting("smallest", smallest)
    count_setting("neighbours", neighbours)
    count_setting("components", components)
    if isinstance(stability, bool) or not isinstance(stability, int | float) or not 0 < stability < float("inf"):
        raise ValueError(f"stability={stability!r}: expected a number above 0.")
    assert evidence.layers is not None
    places = placed(evidence.layers)
    least = max(int(np.ceil(share * len(places))), 10)
    flagged, used, cut, sizes = np.zeros(len(places), dtype=bool), None, None, ()
    if len(places) >= 2 * least and len(places) > neighbours:
        order = settled_order(places)
        for layers in range(places.shape[1], places.shape[1] // 2, -1):
            rows = places[order][:, :layers]
            if layers > components:
                rows = PCA(components, svd_solver="full").fit_transform(rows)
            found = stable_split(rows, least, neighbours, stability)
            if found is not None:
                cut, groups = found
                sizes = tuple(np.bincount(groups[groups >= 0]).tolist())
                flagged[order], used = _with_the_rest(rows, groups), layers
                break
    unlikely = places.mean(1)
    ranks = np.searchsorted(np.sort(unlikely), unlikely) / len(places)
    return Detection("flare", ranks / 2 + 0.5 * flagged, flagged, {"layers": used, "cut": cut, "clusters": sizes})


def placed(layers: np.ndarray) -> np.ndarray:
    """Returns log(1 + distance to the layer's best row), standardised by layer, (N, L) float64; layers that say nothing are 0.

    Args:
        layers: log-likelihoods (N, L).
    """
    away = np.log1p(layers.max(0, keepdims=True).astype(np.float64) - layers)
    spread = away.std(0)
    return (away - away.mean(0)) / np.where(spread > 1e-9, spread, np.inf)


def stable_split(rows: np.ndarray, least: int, neighbours: int, stability: float) -> tuple[float, np.ndarray] | None:
    """Returns the distance at which the first stable largest cluster is born, and each row's cluster then; None for no such split.

    Clusters are numbered from 0, the largest; -1 is in none.

    Args:
        rows: (N, D).
        least: rows of a cluster.
        neighbours: of the density.
        stability: log of the ratio of the distances between which a cluster is whole.
    """
    reach = float(np.linalg.norm(rows - rows.mean(0), axis=1).max())
    if reach < 1e-9:
        return None
    tree = HDBSCAN(min_cluster_size=least, min_samples=neighbours, copy=True).fit(rows)
    born: tuple[float, np.ndarray] | None = None
    splits, inside = 0, np.ones(len(rows), dtype=bool)
    for cut, labels in _cuts(tree, 2 * reach, least):
        here = np.bincount(labels[inside & (labels >= 0)], minlength=1)
        if born is not None and born[0] / cut >= np.exp(stability) and (here >= least).sum() == 1 and 2 * here.max() > len(rows):
            return born
        largest = int(here.argmax())
        if 2 * here[largest] <= len(rows):
            return None
        if (here >= least).sum() > 1:
            splits += 1
            if splits > _DEPTH:
                return None
            born = cut, _numbered(labels, largest)
        inside = labels == largest
    return None


def _cuts(tree: HDBSCAN, start: float, least: int) -> Iterator[tuple[float, np.ndarray]]:
    cut = start
    while cut > 1e-4 * start:
        yield cut, tree.dbscan_clustering(cut, min_cluster_size=least)
        cut *= _STEP


def _with_the_rest(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Who is in a cluster other than the first, or nearest to rows of one."""
    found, inside = groups > 0, groups >= 0
    if not inside.all():
        nearest = NearestNeighbors(n_neighbors=_NEAREST).fit(rows[inside]).kneighbors(rows[~inside], return_distance=False)
        found[~inside] = 2 * found[inside][nearest].sum(1) > _NEAREST
    return found


def _numbered(labels: np.ndarray, largest: int) -> np.ndarray:
    """The cluster given first, then the others by their order; in none: -1."""
    found = np.full(len(labels), -1)
    found[labels == largest] = 0
    for number, label in enumerate((k for k in np.unique(labels) if k >= 0 and k != largest), 1):
        found[labels == label] = number
    return found
