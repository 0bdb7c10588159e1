"""Random numbers that are a function of a key alone, so that no order, batch, process or interpreter changes them.

Three schemes, for three uses:
- a stream of numbers for one purpose: `keyed_generator`, or `keyed_seed` for what takes a seed. A key is a word for the purpose and
  the numbers that it depends on, as in ``keyed_generator("epoch order", seed, epoch)``;
- many numbers for each sample of a training step, on its device, however the step is cut: `RowDraws`, vectorised;
- one number for each row of a data set, drawn for any rows in any order: `sample_keys` and `uniforms`, vectorised.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOP_KEY = np.uint64(2**64 - 1)


def keyed_seed(*key: int | str) -> int:
    """Returns a seed in [0, 2^63) for a key: the words and whole numbers that something random depends on.

    Guarantee: equal keys give equal seeds in every process, on every machine and with every version of Python and numpy; the seeds
    of different keys, of different lengths too, know nothing of each other (numpy's `SeedSequence`, whose mixing is fixed).

    Args:
        key: words of any length, and whole numbers in [-2^63, 2^64).
    """
    entropy = [len(key)]
    for part in key:
        if isinstance(part, str):
            part = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
        entropy += [int(part) & 0xFFFFFFFF, (int(part) >> 32) & 0xFFFFFFFF]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a new torch generator on a device, seeded by `keyed_seed`.

    Guarantee: no other generator moves, the global ones included. What it draws differs between kinds of device.
    """
    return torch.Generator(device).manual_seed(keyed_seed(*key))


class RowDraws:
    """Random numbers of B rows, float32 tensors (B, *shape), the next ones at every call.

    Guarantee: a row's numbers are a function of the key, the row's number, the shape and which call it is, alone. So whatever cuts
    the rows into batches or over processes draws the same, on every device up to the rounding of `normal`; no generator moves and
    no device is waited for. Entry e of a row, counted through the shape with the last axis fastest, does not depend on the first
    axis' size: a padded sequence starts like a shorter one.

    Args:
        rows: the rows' numbers (B,), in [0, 2^31), on the device where the numbers are wanted.
        *key: as `keyed_seed` takes it.
    """

    def __init__(self, rows: Tensor, *key: int | str):
        self.rows, self.key, self.calls = rows, key, 0

    def uniform(self, *shape: int) -> Tensor:
        """Returns (B, *shape) multiples of 2^-24 in [0, 1)."""
        return self._bits(shape).float().mul_(2.0**-24)

    def normal(self, *shape: int) -> Tensor:
        """Returns (B, *shape) standard normal numbers, none beyond 5.5."""
        return torch.erfinv(self._bits(shape).float().add_(0.5 - 2**23).mul_(2.0**-23)).mul_(2**0.5)

    def copy(self) -> RowDraws:
        """Returns draws whose next numbers are these draws' next numbers."""
        twin = RowDraws(self.rows, *self.key)
        twin.calls = self.calls
        return twin

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        """24 random bits for each number: the hash of the row's hash and the entry's, which the key has salted."""
        salt = keyed_seed(*self.key, self.calls)
        self.calls += 1
        rows = _hash32_(self.rows.int() ^ _signed32(salt))
        entries = _hash32_(torch.arange(math.prod(shape), dtype=torch.int32, device=rows.device) ^ _signed32(salt >> 31))
        bits = _hash32_(rows.unsqueeze(1) ^ entries)
        return (bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)).view(len(rows), *shape)


def _signed32(number: int) -> int:
    """The number's lowest 32 bits as an int32 has them."""
    return (number + 2**31) % 2**32 - 2**31


def _hash32_(bits: Tensor) -> Tensor:
    """A bijection of int32 numbers, in place, after which every bit depends on every bit; products wrap around."""
    for _ in range(2):
        bits ^= (bits >> 16) & 0xFFFF
        bits *= 0x45D9F3B
    bits ^= (bits >> 16) & 0xFFFF
    return bits


def sample_keys(seed: int, indices: Any) -> np.ndarray:
    """Returns one uint64 per index (N,), a fixed function of (seed, index), distinct for distinct indices.

    The SplitMix64 generator (Steele, Lea and Flood 2014) read at position ``index``; a bijection of the index for every seed. No
    state, so shard order, batch size and number of processes do not matter.

    Raises:
        ValueError: For a seed that is no integer in [0, 2^64).
    """
    check_seed(seed)
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed], dtype=np.uint64))
        return _mix(start + np.asarray(indices, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def check_seed(seed: Any) -> None:
    """Raises ``ValueError`` for a seed that is no integer in [0, 2^64)."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed!r} must be an integer in [0, 2**64): give one, for instance 0.")


def check_rate(rate: Any, name: str = "rate") -> None:
    """Raises ``ValueError`` for a rate that is no number in [0, 1), by its name."""
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not 0 <= rate < 1:
        raise ValueError(f"{name}={rate!r} must be a fraction in [0, 1): give for instance 0.1 for 10 percent.")


def stream_seed(seed: int, stream: int) -> int:
    """Returns the seed of another stream of keys, so that a row has several that know nothing of each other."""
    return int(sample_keys(seed, [2**64 - 1 - stream])[0])


def uniforms(seed: int, indices: Any) -> np.ndarray:
    """Returns one number in [0, 1) per index (N,): the upper 53 bits of `sample_keys`."""
    return (sample_keys(seed, indices) >> np.uint64(11)) * 2.0**-53


def key_quantile(rates: Any) -> np.ndarray:
    """Returns for probabilities p the key below which a key lies with probability p, floor(2^64 p); from 1 on the largest key."""
    rates = np.asarray(rates, dtype=np.float64)
    below = rates < 1 - 1e-12
    return np.where(below, (np.where(below, rates, 0.0).clip(0) * 2.0**64).astype(np.uint64), TOP_KEY)


def key_cuts(keys: np.ndarray, counts: Any) -> np.ndarray:
    """Returns ends (M,) of key ranges that hold exactly ``counts`` (M,) of the ``keys`` (sum(counts),), for `cut_index`."""
    ends, keys = np.cumsum(counts), np.append(np.sort(keys), TOP_KEY)
    return np.where(ends > 0, keys[np.minimum(ends, len(keys) - 1)], np.uint64(0))


def cut_index(keys: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Returns for keys (N,) the range they lie in (N,): the number of ends ``cuts`` (M,) or (N, M), not decreasing, passed."""
    passed = (keys[:, None] >= cuts).sum(axis=1)
    return np.minimum(passed, (np.broadcast_to(cuts, (len(keys), cuts.shape[-1])) == TOP_KEY).argmax(axis=1))


def shares(total: int, weights: Any, seed: int | None = None) -> np.ndarray:
    """Returns integers (M,) that sum to ``total`` in proportion to ``weights`` (M,) >= 0: the largest remainder method.

    Among equal remainders the first win, or with a ``seed`` those with the smallest key.
    """
    weights = np.asarray(weights, dtype=np.float64)
    exact = total * weights / max(weights.sum(), 1e-300)
    counts = np.floor(exact + 1e-9).astype(int)
    ties = np.arange(len(counts)) if seed is None else sample_keys(seed, np.arange(len(counts)))
    order = np.lexsort((ties, np.round(counts - exact, 9)))
    counts[order[: total - counts.sum()]] += 1
    return counts


def key_limits(
    labels: np.ndarray, targets: tuple[int, ...], rate: float, seed: int, stratified: bool = False
) -> tuple[int | None, ...]:
    """Returns per class the largest key that is still chosen (None: no sample of the class), C entries.

    A sample is chosen when its class is eligible (``targets[label] != label``) and its key is at most the limit. Exactly
    ``round(rate * N)`` samples are, N counting the ineligible ones too, so that the realised rate is the nominal one.
    ``stratified`` splits that number over the eligible classes in proportion to their sizes (largest remainder). With one seed the
    choice at a low rate is part of the choice at a higher one (exactly so when not stratified). labels (N,) integers in [0, C);
    rate a fraction in [0, 1).

    Raises:
        ValueError: For other rates, and where fewer samples are eligible than wanted.
    """
    check_rate(rate)
    keys = sample_keys(seed, np.arange(len(labels)))
    movable = [c for c, target in enumerate(targets) if target != c]
    eligible = np.isin(labels, movable)
    wanted, n_eligible = round(rate * len(labels)), int(eligible.sum())
    if wanted > n_eligible:
        raise ValueError(
            f"rate={rate} asks for {wanted} of {len(labels)} samples but the label rule leaves {n_eligible} eligible: "
            f"give a rate of at most {n_eligible / len(labels):.4g}."
        )
    limits: list[int | None] = [None] * len(targets)
    if not stratified:
        limit = smallest(keys[eligible], wanted)
        for c in movable:
            limits[c] = limit
        return tuple(limits)
    counts = shares(wanted, np.bincount(labels, minlength=len(targets))[movable])
    for c, count in zip(movable, counts.tolist()):
        limits[c] = smallest(keys[labels == c], count)
    return tuple(limits)


def smallest(keys: np.ndarray, count: int) -> int | None:
    """Returns the ``count``-th smallest key, None for count 0."""
    return int(np.partition(keys, count - 1)[count - 1]) if count else None
