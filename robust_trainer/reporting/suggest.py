"""Which name was meant: the one rule by which messages say "did you mean"."""

from __future__ import annotations

from collections.abc import Iterable

#: Names further away than this share of the longer one's letters are not suggested.
_FARTHEST = 0.4


def edit_distance(a: str, b: str) -> int:
    """Returns how many letters to insert, delete, change or swap with their neighbour turn one word into the other.

    Args:
        a: a word.
        b: another.

    References:
        Damerau 1964; the restricted form, in which no letter is edited twice.
    """
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                row[j] = min(row[j], before[j - 2] + 1)
        before, last = last, row
    return last[-1]


def nearest(word: object, names: Iterable[str]) -> str | None:
    """Returns the name that was most likely meant, None where none is like the word.

    Upper and lower case, ``-`` and ``_`` count as the same. Of names that are equally far the one that shares more of its beginning
    comes first; where no name is near, the longest one that the word holds, or the only one that holds the word.

    Args:
        word: what was written.
        names: what could have been written.
    """
    names = list(names)
    plain = _plain(str(word))

    def rank(name: str) -> tuple[int, int]:
        other = _plain(name)
        shared = next((i for i, (x, y) in enumerate(zip(plain, other)) if x != y), min(len(plain), len(other)))
        return edit_distance(plain, other), -shared

    def farthest(name: str) -> float:
        return max(1, _FARTHEST * max(len(plain), len(name)))

    # a distance is at least the difference in length, and a word of a million letters is compared with nothing
    best = min((n for n in names if abs(len(n) - len(plain)) <= farthest(n)), key=rank, default=None)
    if best is not None and rank(best)[0] <= farthest(best):
        if len(plain) > 2 or (plain and _plain(best).startswith(plain)):  # two letters are near too many names
            return best
    holding = [name for name in names if len(plain) > 2 and plain in _plain(name)]
    held = [name for name in names if len(name) > 2 and _plain(name) in plain]
    return max(held, key=len) if held else holding[0] if len(holding) == 1 else None


def did_you_mean(word: object, names: Iterable[str], pattern: str = "'{}'") -> str:
    """Returns ``did you mean 'name'? `` with a space at the end, or nothing where no name is like the word.

    Args:
        word: what was written.
        names: what could have been written.
        pattern: how the name is shown, ``{}`` standing for it.
    """
    name = nearest(word, names)
    return f"did you mean {pattern.format(name)}? " if name is not None else ""


def _plain(word: str) -> str:
    return word.lower().replace("_", "-")
