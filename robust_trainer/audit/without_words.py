"""Texts of a data set without the words that are tied to one label, to be read once more: does what is left say the label, too?"""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import numpy as np

from ..evidence.tied_tokens import TiedTokens, tied_tokens
from .inputs import Inputs, hashed_words

#: Of more rows words are not looked at.
MOST_ROWS = 20_000


@dataclass(frozen=True)
class WithoutWords:
    """Some rows' texts without words of theirs.

    Attributes:
        groups: the words, as `Inputs` of texts numbers them, and who has them.
        rows: which rows, (n,).
        texts: theirs, a data set of one column.
    """

    groups: list[TiedTokens]
    rows: np.ndarray
    texts: datasets.Dataset


def without_tied_words(
    train: datasets.Dataset, column: str, inputs: Inputs | None, labels: np.ndarray, classes: int
) -> WithoutWords | None:
    """Returns the rows that have words that are tied to one label, without these words; None where there are none.

    Args:
        train: the data set.
        column: of the texts.
        inputs: its texts as vectors; None where they are not looked at.
        labels: given class numbers (N,) in [0, C).
        classes: C.
    """
    if inputs is None or inputs.kind != "texts" or len(labels) > MOST_ROWS:
        return None
    groups = tied_tokens(inputs.read(np.arange(len(labels))) > 0, labels, classes)
    if not groups:
        return None
    having = np.stack([group.rows for group in groups])
    rows = np.flatnonzero(having.any(0))
    given = train.with_format(None).select_columns([column]).select(rows)[column]
    numbers: dict[str, frozenset[int]] = {}
    texts = []
    for row, text in zip(rows, given):
        gone = np.any([group.tokens for group, has in zip(groups, having[:, row]) if has], axis=0)
        kept = []
        for word in text.split():
            if word not in numbers:
                numbers[word] = frozenset(hashed_words().transform([word]).indices.tolist())
            if not any(gone[number] for number in numbers[word]):
                kept.append(word)
        texts.append(" ".join(kept) or text)  # of a text that is nothing else nothing can be taken
    return WithoutWords(groups, rows, datasets.Dataset.from_dict({column: texts}))
