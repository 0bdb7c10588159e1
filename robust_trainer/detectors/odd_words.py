"""ONION: words without which a text reads more smoothly are taken out, as inserted trigger words are.

The paper's language model is GPT-2. Here it is any causal language model of transformers or, where none is given, a trigram model
of words that is fitted on the texts themselves, each text's own words left out of the counts. That needs no download, but a trigger
in a tenth of the texts is a usual word to it: figures in docs/guides/text.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel

from ..data.columns import check_dataset
from ..data.mapping import formatted_as
from ..data.texts import check_texts
from ..data.texts import text_column as find_text_column
from ..models.modes import scoring_mode

#: The column that tells what was taken out of a text.
REMOVED = "removed_words"
#: Weights of trigrams, bigrams and words, and what every word is counted more than it was seen.
_WEIGHTS, _ADDED = (0.5, 0.3), 0.5
_START = "\0"
#: The logarithm of a perplexity counts at most so much.
_MOST = 50.0

#: Texts -> their perplexities. The last argument: the text's place among those that the model was fitted on, None for another text.
Perplexity = Callable[[Sequence[str], int | None], np.ndarray]


class NGramModel:
    """A trigram model of words, split at white space, lower case: interpolated relative frequencies (Jelinek and Mercer 1980).

    Called with texts it returns their perplexities, exp of the mean negative log-probability of a word, the text's end counted.

    Args:
        texts: it is fitted on.
    """

    def __init__(self, texts: Sequence[str]):
        self._own = [_words(text) for text in texts]
        self._counts: list[Counter[tuple[str, ...]]] = [Counter(), Counter(), Counter()]
        self._contexts: list[Counter[tuple[str, ...]]] = [Counter(), Counter(), Counter()]
        for words in self._own:
            for order, grams in enumerate(_grams(words)):
                self._counts[order].update(grams)
                self._contexts[order].update(gram[:-1] for gram in grams)
        self._vocabulary = len(self._counts[0]) + 1

    def __call__(self, texts: Sequence[str], place: int | None = None) -> np.ndarray:
        """Returns the perplexities (n,) of texts.

        Args:
            texts: to be told.
            place: of the fitted text whose counts are left out; None: none are.
        """
        own = [Counter(grams) for grams in _grams(self._own[place])] if place is not None else [Counter()] * 3
        contexts = [Counter(gram[:-1] for gram in counts.elements()) for counts in own]
        return np.array([self._perplexity(_words(text), own, contexts) for text in texts])

    def _perplexity(self, words: list[str], own: Sequence[Counter], contexts: Sequence[Counter]) -> float:
        total = 0.0
        trigrams = _grams(words)[2]
        for gram in trigrams:
            count = self._counts[0][gram[2:]] - own[0][gram[2:]]
            probability = (count + _ADDED) / (self._contexts[0][()] - contexts[0][()] + _ADDED * self._vocabulary)
            for order, weight in ((1, _WEIGHTS[1] / (1 - _WEIGHTS[0])), (2, _WEIGHTS[0])):
                part = gram[2 - order :]
                seen = self._contexts[order][part[:-1]] - contexts[order][part[:-1]]
                if seen > 0:
                    found = (self._counts[order][part] - own[order][part]) / seen
                    probability = weight * found + (1 - weight) * probability
            total -= math.log(probability)
        return math.exp(min(total / len(trigrams), _MOST))


def _words(text: str) -> list[str]:
    return text.lower().split()


def _grams(words: list[str]) -> list[list[tuple[str, ...]]]:
    """The words, bigrams and trigrams of a text with its start and end."""
    padded = [_START, _START, *words, _START]
    return [[tuple(padded[i - order : i + 1]) for i in range(2, len(padded))] for order in range(3)]


class CausalModel:
    """Perplexities by a causal language model of transformers: exp of the mean negative log-probability of a token.

    Args:
        model: of transformers, for causal language modelling; where it is, it stays.
        tokenizer: its own.
        batch_size: texts that it sees at a time.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, batch_size: int = 64):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        limit = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        self.most = int(min(limit, 512))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], place: int | None = None) -> np.ndarray:
        """Returns the perplexities (n,) of texts, that of one with fewer than two tokens is 1."""
        first = getattr(self.tokenizer, "bos_token_id", None)
        rows = [self.tokenizer(text, truncation=True, max_length=self.most - 1)["input_ids"] for text in texts]
        rows = [ids if first is None or ids[:1] == [first] else [first, *ids] for ids in rows]
        out = []
        device = next(self.model.parameters()).device
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            longest = max(max(map(len, part)), 1)
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in part], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in part], device=device)
            with scoring_mode(self.model):
                logits = self.model(input_ids=ids, attention_mask=mask).logits.float()
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
            seen = mask[:, 1:].float()
            out.append(((loss * seen).sum(1) / seen.sum(1).clamp_min(1.0)).clamp_max(_MOST).exp().cpu().numpy())
        return np.concatenate(out) if out else np.zeros(0)


def word_suspicions(text: str, perplexity: Perplexity, place: int | None = None) -> np.ndarray:
    """Returns of each word, split at white space, how much the text's perplexity falls without it, f_i = p_0 - p_i.

    Args:
        text: of n words.
        perplexity: an `NGramModel` or a `CausalModel`.
        place: of the text among those that an `NGramModel` was fitted on, None for another.

    References:
        Qi et al. 2021 (ONION), eq. 1.
    """
    words = text.split()
    if len(words) < 2:
        return np.zeros(len(words))
    variants = [" ".join(words), *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
    found = perplexity(variants, place)
    return found[0] - found[1:]


def onion(
    dataset: datasets.Dataset,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: Any = None,
    threshold: float = 0.0,
    fit_on: Sequence[str] | None = None,
    text_column: str | None = None,
    batch_size: int = 64,
) -> datasets.Dataset:
    """Returns the data set with its texts without the words whose suspicion is above the threshold; a text keeps one word at least.

    Adds ``removed_words``, the words that were taken out, joined by spaces ('' for none): rows where it holds a word are what the
    filter suspects. Texts of which nothing is taken keep their white space. To be used on training texts, test texts, or both.

    Args:
        dataset: texts.
        model: a causal language model of transformers, as GPT-2; None: an `NGramModel` fitted on ``fit_on``.
        tokenizer: the model's own.
        threshold: in perplexity; the paper tunes it on clean validation texts so that they lose little accuracy.
        fit_on: texts that the n-gram model is fitted on, best clean ones; None: the data set's own.
        text_column: default the one that holds texts.
        batch_size: texts that the model sees at a time.

    Raises:
        ValueError: for settings that do not fit, and rows without a text.

    References:
        Qi et al. 2021, ONION: A simple and effective defense against textual backdoor attacks.
    """
    check_dataset(dataset)
    if (model is None) != (tokenizer is None):
        raise ValueError(f"{'tokenizer' if model is None else 'model'} is given alone: give model and tokenizer, or neither.")
    if model is not None and fit_on is not None:
        raise ValueError("model and fit_on are both given, and a given model is not fitted: leave one of them out.")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ValueError(f"threshold={threshold!r} must be a finite number, in perplexity: give for instance 0.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number >= 1: give for instance 64.")
    column = find_text_column(dataset, text_column)
    check_texts(dataset, "dataset: ", column, column)
    texts = list(dataset.with_format(None)[column])
    perplexity: Perplexity
    if model is not None:
        perplexity, own = CausalModel(model, tokenizer, batch_size), False
    else:
        perplexity, own = NGramModel(texts if fit_on is None else list(fit_on)), fit_on is None
    kept, removed = list[str](), list[str]()
    for place, text in enumerate(texts):
        words, scores = text.split(), word_suspicions(text, perplexity, place if own else None)
        stays = scores <= threshold
        if len(words) and not stays.any():
            stays[int(scores.argmin())] = True
        kept.append(text if stays.all() else " ".join(word for word, stay in zip(words, stays) if stay))
        removed.append(" ".join(word for word, stay in zip(words, stays) if not stay))
    out = dataset.with_format(None).map(
        _Replace(column, tuple(kept), tuple(removed)), with_indices=True, batched=True, desc="onion"
    )
    return formatted_as(out, dataset)


class _Replace:
    """Puts the filtered texts in the place of a batch's."""

    def __init__(self, column: str, kept: tuple[str, ...], removed: tuple[str, ...]):
        self.column, self.kept, self.removed = column, kept, removed

    def __call__(self, batch: Any, rows: Sequence[int]) -> dict[str, list[str]]:
        """Returns the changed columns."""
        return {self.column: [self.kept[row] for row in rows], REMOVED: [self.removed[row] for row in rows]}
