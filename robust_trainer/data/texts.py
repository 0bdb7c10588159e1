"""Texts as a data set's inputs: found by name, checked before anything long begins, and made into the model's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

from .columns import arrow_column, source_row
from .splits import TRAIN

logger = logging.get_logger(__name__)

#: What a column of texts is usually called.
TEXT_NAMES = ("text", "sentence", "content", "review", "document", "utterance", "tweet", "comment", "message", "body")
#: Columns of strings that are no texts unless they are named.
_NO_TEXTS = (
    "id", "idx", "guid", "uid", "uuid", "url", "file", "file_name", "filename", "path", "image", "img", "image_path", "split",
)  # fmt: skip
#: Texts whose tokens are counted, of a larger data set so many, spread evenly.
LOOKED_AT = 20_000
#: Tokens that are read where nothing else is said, also of models that take more.
USUAL_LENGTH = 512


def is_text(dataset: datasets.Dataset) -> bool:
    """Returns whether a split of `load_data` holds texts, else images or sounds.

    Args:
        dataset: With a column image, audio or text.
    """
    return not isinstance(dataset.features.get("image"), datasets.Image) and "audio" not in dataset.features


def text_columns(dataset: datasets.Dataset, label: str | None = None) -> list[str]:
    """Returns the columns that hold texts by their type and name, the label column aside.

    Args:
        dataset: A `datasets.Dataset`.
        label: Column of the labels.
    """
    strings = [c for c, feature in dataset.features.items() if _is_string(feature) and c != label]
    return [c for c in strings if c.lower() not in _NO_TEXTS]


def text_column(dataset: datasets.Dataset, name: str | None = None, label: str | None = None, tell: bool = False) -> str:
    """Returns the column that holds the texts: the named one, else the only one with a usual name, else the only column of strings.

    Args:
        dataset: A `datasets.Dataset`.
        name: Of the column; None: to be found.
        label: Column of the labels, which is none of texts.
        tell: Says which other columns may be meant.

    Raises:
        ValueError: Listing the columns, where there is none or no single one, and where the named one holds no texts.
    """
    columns = list(dataset.column_names)
    if name is not None:
        if name not in columns:
            raise ValueError(f"text_column={name!r} is not in the data set: choose one of {columns}.")
        if name == label:
            raise ValueError(f"text_column={name!r} is the column of the labels: choose another of {columns}.")
        if not _is_string(dataset.features[name]):
            raise ValueError(f"text_column={name!r} is {dataset.features[name]}, expected strings: choose another of {columns}.")
        return name
    found = text_columns(dataset, label)
    usual = [c for c in found if c.lower() in TEXT_NAMES]
    chosen = usual if usual else found
    if len(chosen) != 1:
        which = f"{' or '.join(map(repr, chosen))} may hold the texts" if chosen else "no column of texts is there"
        raise ValueError(f"{which}, of columns {columns}: set text_column.")
    if tell and len(found) > 1:
        others = " or ".join(map(repr, [c for c in found if c != chosen[0]]))
        logger.warning(f"the texts are read from column {chosen[0]!r}: for {others} give text_column.")
    return chosen[0]


def _is_string(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view")


def check_texts(dataset: datasets.Dataset, where: str = "", name: str = "text", column: str = "text") -> None:
    """Raises a one-line ``ValueError`` for rows without a text, and says how many texts are empty.

    Args:
        dataset: A `datasets.Dataset` with rows.
        where: What begins the message, as ``split 'test': ``.
        name: Of the column as its user knows it, for the message.
        column: Of the texts.

    Raises:
        ValueError: Naming the first rows without a text, and where all are empty.
    """
    texts = arrow_column(dataset, column).cast(pa.large_string())
    where = f"{where}'{name}'"
    if texts.null_count:
        rows = np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False))
        raise ValueError(
            f"{where} is missing (None, or an empty cell) in {_rows(dataset, rows)}: fill these texts in, or take the rows out."
        )
    empty = np.flatnonzero(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0).to_numpy(zero_copy_only=False))
    if len(empty) == len(texts):
        raise ValueError(f"{where} is empty in all {len(texts)} rows: set text_column to the column of the texts.")
    if len(empty):
        logger.warning(f"{where} is empty in {_rows(dataset, empty)}: nothing can be learned from these.")


def _rows(dataset: datasets.Dataset, rows: np.ndarray) -> str:
    """The first few rows in words, as their user knows them."""
    shown = ", ".join(str(source_row(dataset, row)) for row in rows[:5].tolist())
    return f"row {shown}" if len(rows) == 1 else f"{len(rows)} rows ({shown}{', ...' if len(rows) > 5 else ''})"


@dataclass(frozen=True)
class TextTransform:
    """``batch of rows -> tokens and labels``, for `apply_to`; can be pickled for data loader workers.

    Args:
        processor: A tokenizer; of a text its first ``model_max_length`` tokens are read.
        text_column: Of the texts.
        label_column: Of the labels. Use ``remove_unused_columns=False``, and a collator that pads.
    """

    processor: Any
    text_column: str = "text"
    label_column: str = "label"

    def apply_to(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """Returns the data set with this transform.

        Args:
            dataset: A `datasets.Dataset` with the columns.
        """
        return dataset.with_transform(self)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the model's inputs, lists of different lengths, and labels where the batch has them."""
        out = dict(self.processor(list(batch[self.text_column]), truncation=True))
        if self.label_column in batch:
            out["labels"] = list(batch[self.label_column])
        return out


def tell_cut(splits: Mapping[str, datasets.Dataset], tokenizer: Any, mend: str = "", column: str = "text") -> None:
    """Says in one line for each split how many of its texts have more tokens than are read.

    Args:
        splits: Of a data set.
        tokenizer: Reads ``model_max_length`` tokens.
        mend: What can be done about it, for the message.
        column: Of the texts.
    """
    limit = tokenizer.model_max_length
    for name, data in splits.items():
        texts = arrow_column(data, column).cast(pa.large_string())
        looked_at = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), LOOKED_AT)).astype(int))
        texts = texts.take(pa.array(looked_at))
        long = texts.filter(pc.greater(pc.binary_length(texts), limit - 2)).to_pylist()  # a token is a byte at least
        lengths = _lengths(long, tokenizer)
        if cut := [length for length in lengths if length > limit]:
            of = f"{len(texts)}" if len(texts) == len(data) else f"{len(texts)} looked at"
            logger.warning(
                f"split '{name}': {len(cut)} of {of} texts have more than {limit} tokens (the longest {max(cut)}); only the first "
                f"{limit} are read{mend if name == TRAIN else ''}."
            )


def _lengths(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """The number of tokens of each text."""
    lengths: list[int] = []
    for start in range(0, len(texts), 1000):
        tokens = tokenizer(list(texts[start : start + 1000]), truncation=False, verbose=False)["input_ids"]
        lengths += [len(ids) for ids in tokens]
    return lengths
