"""Do the distrusted samples share something that the trusted ones lack? A trigger shows as one direction in the inputs.

Each sample is compared with the mean of its class, a distrusted one with that of the class that is suggested for it: what is left
of mislabelled samples is as varied as of any others, what is left of triggered ones contains the trigger.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import uniform_filter
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from ..data.labels import rows_by_class

#: The two groups along the direction must be so many of their common standard deviations apart.
APART = 5.0
#: Distrusted samples must be so many times as frequent among the carriers as among the others.
ENRICHED = 3.0
#: How well the direction must tell distrusted from trusted samples it was not found on (area under the ROC curve).
SEPARATES = 0.6
#: No more than this share of the samples can carry it, and fewer distrusted ones than so many tell nothing.
MOST, FEWEST = 0.5, 10
#: A feature's standard deviation counts as at least so much, on the scale [0, 1].
FLOOR = 0.02
ROUNDS = 5
#: Smaller images have no details apart from themselves.
DETAIL = 6


@dataclass(frozen=True)
class Pattern:
    """What the carriers share: carries (n,) bool, the mean difference to the others (D,), apart and enriched as measured.

    shape: of an image, (H, W, channels), where all but the difference is of `details` of the images.
    """

    carries: np.ndarray
    difference: np.ndarray
    apart: float
    enriched: float
    means: np.ndarray
    direction: np.ndarray
    cut: float
    shape: tuple[int, ...] | None = None

    def carried_by(self, vectors: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Whether other samples carry it, bool (n,), from their vectors (n, D) and the classes (n,) that they should be.

        Args:
            vectors: (n, D) as they were given to find it; one that is not finite carries nothing.
            classes: The class (n,) that each sample should be, in [0, C).
        """
        vectors = _unit(vectors) if self.shape is None else details(_unit(vectors), self.shape)
        return (vectors - self.means[classes]) @ self.direction > self.cut


def shared_pattern(vectors: np.ndarray, labels: np.ndarray, distrusted: np.ndarray, classes: int, seed: int = 0) -> Pattern | None:
    """The `Pattern` that the distrusted samples share, None where none convinces.

    vectors (n, D) in [0, 1]; own (n,): the class that each sample should be, in [0, C); distrusted (n,) bool. The direction is the
    mean difference of the residuals, weighed by the inverse variances (a linear discriminant with a diagonal covariance), found on
    one half of the samples and measured on the other. A mixture of two normal distributions tells who carries it; the samples below
    its cut then take the place of the trusted ones, those above it of the distrusted ones, until nothing changes.

    Args:
        vectors: (n, D) float32 in [0, 1].
        labels: The class (n,) that each sample should be, in [0, C).
        distrusted: Whether training distrusted the sample (n,).
        classes: Number of classes C.
        seed: Seed of every draw.
    """
    if int(distrusted.sum()) < FEWEST or int((~distrusted).sum()) < FEWEST:
        return None
    vectors = vectors.astype(np.float32, copy=False)
    half = np.random.default_rng(seed).random(len(labels)) < 0.5
    projection = _project(vectors, labels, distrusted, half, classes)
    if projection is None or _auroc(projection.along, distrusted) < SEPARATES:
        return None
    carries = projection.along > _cut(projection.along)[0]
    for _ in range(ROUNDS):
        projection, before = _project(vectors, labels, carries, half, classes), carries
        if projection is None:
            return None
        cut, apart = _cut(projection.along)
        carries = projection.along > cut
        if np.array_equal(carries, before):
            break
    inside, outside = float(distrusted[carries].mean()), float(distrusted[~carries].mean())
    enriched = inside / max(outside, 1.0 / len(labels))
    if apart < APART or enriched < ENRICHED or float(carries.mean()) > MOST:
        return None
    return Pattern(carries, projection.difference, apart, enriched, projection.means, projection.direction, cut)


@dataclass(frozen=True)
class _Projection:
    """along: each sample's place (n,) on the direction that the other half tells, in standard deviations; the rest: of both."""

    along: np.ndarray
    difference: np.ndarray
    means: np.ndarray
    direction: np.ndarray


def find_pattern(
    vectors: np.ndarray,
    labels: np.ndarray,
    distrusted: np.ndarray,
    classes: int,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Pattern | None:
    """The `Pattern` that the distrusted samples share in the inputs' details or, where none convinces there, in the inputs.

    A small or faint trigger drowns in what natural images differ by at large, which `details` takes away.

    Args:
        vectors: (n, D) in [0, 1], float32, or levels of 0 to 255 as uint8.
        labels: The class (n,) that each sample should be, in [0, C).
        distrusted: Whether the sample is distrusted (n,).
        classes: Number of classes C.
        shape: Of an input, (H, W, channels), None where it is no image.
        seed: Seed of every draw.
    """
    if int(distrusted.sum()) < FEWEST or int((~distrusted).sum()) < FEWEST:
        return None
    vectors = _unit(vectors)
    fine = details(vectors, shape) if shape is not None and min(shape[:2]) >= DETAIL else None
    found = shared_pattern(fine, labels, distrusted, classes, seed) if fine is not None else None
    if found is None:
        return shared_pattern(vectors, labels, distrusted, classes, seed)
    rest = vectors - _class_means(vectors, labels, ~found.carries, classes)[labels]
    return replace(found, shape=shape, difference=rest[found.carries].mean(0) - rest[~found.carries].mean(0))


def details(vectors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Images less their local means over 3 x 3 pixels, (n, H W channels).

    Args:
        vectors: (n, H W channels).
        shape: (H, W, channels).
    """
    images = vectors.reshape(-1, *shape)
    return (images - uniform_filter(images, (0, 3, 3, 0))).reshape(len(images), -1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Levels as float32 in [0, 1]; others as they are."""
    return vectors.astype(np.float32) / 255 if vectors.dtype == np.uint8 else vectors


def _project(x: np.ndarray, labels: np.ndarray, chosen: np.ndarray, half: np.ndarray, classes: int) -> _Projection | None:
    means = _class_means(x, labels, ~chosen, classes)
    rest = x - means[labels]
    spread = np.maximum(rest[~chosen].std(0), FLOOR) ** 2
    along, total, mean_direction = np.zeros(len(x)), np.zeros(x.shape[1], np.float32), np.zeros(x.shape[1], np.float32)
    for side in (half, ~half):
        if (chosen & side).sum() < 2 or (~chosen & side).sum() < 2:
            return None
        difference = _class_means(rest, labels, chosen & side, classes, mean_of_classes=True) - rest[~chosen & side].mean(0)
        direction = difference / spread
        scale = float(np.sqrt((direction**2 * spread).sum()))
        if scale == 0.0:
            return None
        along[~side] = rest[~side] @ (direction / scale)
        total, mean_direction = total + difference / 2, mean_direction + direction / scale / 2
    return _Projection(along, total, means, mean_direction)


def _class_means(x: np.ndarray, labels: np.ndarray, chosen: np.ndarray, classes: int, mean_of_classes: bool = False) -> np.ndarray:
    """The means (C, D) of the chosen samples of each class, that of all where a class has none; or their mean over the classes."""
    own = np.flatnonzero(chosen)
    means = [x[own[rows]].mean(0) if len(rows) else None for rows in rows_by_class(labels[own], classes)]
    if mean_of_classes:
        return np.mean([f for f in means if f is not None], axis=0)
    everybody = x[chosen].mean(0) if chosen.any() else x.mean(0)
    return np.stack([everybody if f is None else f for f in means])


def _cut(values: np.ndarray) -> tuple[float, float]:
    """The cut between the two normal distributions of one variance that fit best, and how many of their deviations apart they are.

    They start from the cut that leaves the least variance within the two sides (Otsu 1979).
    """
    ordered = np.sort(values.astype(np.float64))
    n, sums = len(ordered), np.cumsum(ordered)
    k = np.arange(1, n)
    below, above = sums[:-1] / k, (sums[-1] - sums[:-1]) / (n - k)
    best = int((k * (n - k) * (above - below) ** 2).argmax())
    start = np.array([[below[best]], [above[best]]])
    shares = np.array([best + 1, n - best - 1]) / n
    mixture = GaussianMixture(2, covariance_type="tied", means_init=start, weights_init=shares, reg_covar=1e-9, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(ordered[:, None])
    (low, low_share), (high, high_share) = sorted(zip(mixture.means_[:, 0], mixture.weights_))
    deviation = float(np.sqrt(mixture.covariances_[0, 0]))
    gap = max(float(high - low), 1e-12)
    cut = (low + high) / 2 + deviation**2 / gap * np.log(max(low_share, 1e-12) / max(high_share, 1e-12))
    return float(min(max(cut, low), high)), gap / max(deviation, 1e-9)


def _auroc(values: np.ndarray, positive: np.ndarray) -> float:
    return float(roc_auc_score(positive, values))
