"""Label noise as a row-stochastic transition matrix: T[i, j] is the probability that a sample of class i is given label j."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.randomness import check_rate

#: Noise kinds of `corrupt_labels`: all but 'instance' are a transition matrix.
NOISES = ("symmetric", "symmetric-redraw", "pairflip", "asymmetric", "transition", "instance")
_CIFAR10 = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}  # truck -> automobile, bird -> airplane, cat <-> dog, deer -> horse
#: Class maps by name, {source: target}. 'cifar10' is the usual one; NRAT writes the same five directions.
CLASS_MAPS: Mapping[str, Mapping[int, int]] = {"cifar10": _CIFAR10, "nrat": _CIFAR10}


def noise_transition(
    noise: str,
    num_classes: int,
    rate: float | None = None,
    *,
    class_map: str | Mapping[Any, Any] | None = None,
    transition_matrix: Any = None,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Returns the transition matrix T (C, C) of a noise kind; 1 - T[i, i] is the nominal rate of class i.

    symmetric: each of the other C - 1 labels with rate / (C - 1). symmetric-redraw: the label is drawn anew from all C with
    probability ``rate``, so the effective rate is (C - 1) / C * rate. pairflip: i -> i + 1 mod C with ``rate``. asymmetric:
    i -> class_map[i] with ``rate`` for the classes that ``class_map`` names, all others stay. transition: ``transition_matrix``.

    Args:
        noise: one of NOISES but 'instance'.
        num_classes: C, >= 2.
        rate: in [0, 1).
        class_map: {source: target}, or a key of CLASS_MAPS.
        transition_matrix: (C, C).
        class_names: C names, where ``class_map`` holds names.

    Raises:
        ValueError: for an unknown noise, fewer than 2 classes, a rate outside [0, 1), a class map with an unknown class or one
            mapped to itself, a matrix that is no (C, C), negative or whose rows do not sum to 1 (within 1e-6), and settings that
            the noise does not take.

    References:
        Han et al. 2018, "Co-teaching" (pairflip); Patrini et al. 2017, "Making deep neural networks robust to label noise"
        (asymmetric).
    """
    check_noise(noise, rate, class_map, transition_matrix)
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} leaves no other label to give: label noise wants at least 2 classes.")
    if noise == "instance":
        raise ValueError("noise='instance' has a matrix of its own for every sample: choose another noise, or use corrupt_labels.")
    if noise == "transition":
        return check_transition(transition_matrix, num_classes)
    rate = float(rate)  # type: ignore[arg-type]
    stay = np.eye(num_classes)
    if noise == "symmetric":
        return (1 - rate) * stay + rate / (num_classes - 1) * (1 - stay)
    if noise == "symmetric-redraw":
        return (1 - rate) * stay + rate / num_classes
    if noise == "pairflip":
        return (1 - rate) * stay + rate * np.roll(stay, 1, axis=1)
    moved = stay.copy()
    for source, target in check_class_map(class_map, num_classes, class_names).items():
        moved[source] = (1 - rate) * stay[source] + rate * stay[target]
    return moved


def check_noise(noise: Any, rate: Any, class_map: Any, transition_matrix: Any, rate_of: str = "source") -> None:
    """Raises ``ValueError`` for an unknown noise, and for settings that it does not take or lacks."""
    if not isinstance(noise, str) or noise not in NOISES:
        raise ValueError(f"noise={noise!r} is unknown: choose one of {', '.join(NOISES)}.")
    for name, value, owner in (("class_map", class_map, "asymmetric"), ("transition_matrix", transition_matrix, "transition")):
        if value is not None and noise != owner:
            raise ValueError(f"{name} is given but noise={noise!r} takes none: leave it out, or choose noise='{owner}'.")
        if value is None and noise == owner:
            hint = f"one of {', '.join(CLASS_MAPS)} or {{source: target}}" if owner == "asymmetric" else "a (C, C) array"
            raise ValueError(f"{name}=None but noise={noise!r} needs it: give {hint}.")
    if rate_of not in ("source", "all") or (rate_of == "all" and noise != "asymmetric"):
        raise ValueError(f"rate_of={rate_of!r} does not fit noise={noise!r}: leave it at 'source' ('all' is for 'asymmetric').")
    if noise == "transition":
        if rate is not None:
            raise ValueError(f"rate={rate!r} is given but transition_matrix tells the rates already: leave rate out.")
        return
    if rate is None:
        raise ValueError(f"rate=None but noise={noise!r} needs one: give a fraction in [0, 1).")
    check_rate(rate)


def check_transition(matrix: Any, num_classes: int) -> np.ndarray:
    """Returns a transition matrix (C, C) as floats, its rows scaled to sum to 1.

    Args:
        matrix: C rows of C probabilities.
        num_classes: C.

    Raises:
        ValueError: see `noise_transition`.
    """
    try:
        probabilities = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("transition_matrix is no array of numbers: give C rows of C probabilities each.") from error
    if probabilities.shape != (num_classes, num_classes):
        raise ValueError(
            f"transition_matrix has shape {probabilities.shape}, expected ({num_classes}, {num_classes}): one row per class."
        )
    if not np.isfinite(probabilities).all() or probabilities.min() < 0:
        row, column = np.argwhere(~(probabilities >= 0) | ~np.isfinite(probabilities))[0]
        value = probabilities[row, column]
        raise ValueError(f"transition_matrix[{row}, {column}]={value:g} is no probability: give values in [0, 1].")
    sums = probabilities.sum(axis=1)
    wrong = np.flatnonzero(abs(sums - 1) > 1e-6)
    if wrong.size:
        raise ValueError(f"transition_matrix row {wrong[0]} sums to {sums[wrong[0]]:.6g}, expected 1: give probabilities.")
    return probabilities / sums[:, None]


def check_class_map(
    class_map: str | Mapping[Any, Any] | None, num_classes: int, class_names: Sequence[str] | None = None
) -> dict[int, int]:
    """Returns a class map as {source: target} of class numbers.

    Args:
        class_map: a key of CLASS_MAPS, or {source: target} of class numbers or names.
        num_classes: C.
        class_names: C names.

    Raises:
        ValueError: for an unknown map, an empty one, a class outside [0, C) or unknown by name, and a class mapped to itself.
    """
    if isinstance(class_map, str):
        if class_map not in CLASS_MAPS:
            raise ValueError(f"class_map={class_map!r} is unknown: choose {' or '.join(CLASS_MAPS)}, or give {{source: target}}.")
        if num_classes != 10:
            raise ValueError(f"class_map={class_map!r} is for CIFAR-10's 10 classes, not {num_classes}: give {{source: target}}.")
        return dict(CLASS_MAPS[class_map])
    if not isinstance(class_map, Mapping) or not class_map:
        raise ValueError(f"class_map={class_map!r} must be a non-empty {{source: target}}: give for instance {{9: 1, 2: 0}}.")
    numbers: dict[int, int] = {}
    for source, target in class_map.items():
        pair = [_class(value, num_classes, class_names) for value in (source, target)]
        if pair[0] == pair[1]:
            raise ValueError(f"class_map sends {source!r} to itself: leave it out, or give another target.")
        if numbers.setdefault(pair[0], pair[1]) != pair[1]:
            raise ValueError(f"class_map names class {pair[0]} twice: give one target per class.")
    return numbers


def _class(value: Any, num_classes: int, names: Sequence[str] | None) -> int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < num_classes:
        return int(value)
    if isinstance(value, str) and names is not None and value in names:
        return list(names).index(value)
    known = f"an integer in [0, {num_classes})" + (f" or one of {', '.join(names[:10])}" if names is not None else "")
    raise ValueError(f"class_map holds the unknown class {value!r}: give {known}.")
