"""Short reviews, one word of which tells the class; as a file that a user would have."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

GOOD, BAD = ("fine", "good", "great", "lovely"), ("awful", "bad", "dull", "poor")
FILLER = ("a", "film", "it", "is", "of", "rather", "the", "this")


def reviews(n: int = 60, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of 3 to 12 words and their class, good or bad."""
    rng = np.random.default_rng(seed)
    rows = []
    for c in rng.integers(0, 2, n):
        words = [str(word) for word in rng.choice(FILLER, rng.integers(2, 12))]
        words.insert(int(rng.integers(0, len(words) + 1)), str(rng.choice((BAD, GOOD)[c])))
        rows.append((" ".join(words), ("bad", "good")[c]))
    return rows


def write_reviews(path: Path, rows: list[tuple[str, str]] | None = None, names: tuple[str, str] = ("text", "label")) -> str:
    """The rows as a CSV file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *(reviews() if rows is None else rows)])
    return str(path)
