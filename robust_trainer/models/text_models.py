"""Text classifiers by name: a small one to train from scratch, and every transformers text model by its name or folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from ..data.texts import USUAL_LENGTH
from .pretrained import open_classifier, open_pretrained

logger = logging.get_logger(__name__)

#: Names of networks for texts, always from scratch.
SMALL_TEXT = ("small-bert",)
_EXPECTED = f"{', '.join(SMALL_TEXT)}, or the hub name or folder of a text classification model or a text encoder"
#: The most tokens that `SMALL_TEXT` reads where nothing is said, and the size of its vocabulary.
SMALL_LENGTH, VOCABULARY = 128, 8000
_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def build_text_model(
    name: str,
    labels: Sequence[str],
    texts: Iterable[str] = (),
    *,
    max_length: int | None = None,
    hidden_size: int = 128,
    from_scratch: bool = False,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Returns the model and its tokenizer, whose ``model_max_length`` is the number of tokens that are read of a text.

    Args:
        name: ``small-bert`` (a 2-layer BERT from scratch, with a vocabulary of at most 8,000 pieces learned from ``texts``, the
            same for the same texts), else a transformers model's hub name or folder, whose head is replaced where the number of
            classes differs; ``from_scratch`` takes its architecture with fresh weights.
        labels: The class names.
        texts: Of the training split; read for ``small-bert`` alone.
        max_length: Tokens of a text that are read, special ones counted. Default: as many as the model takes, at most 512; 128 for
            ``small-bert``.
        hidden_size: Width of ``small-bert``, a multiple of 4.
        from_scratch: Fresh weights.
        trust_remote_code: Run Python code that the named model brings.

    Raises:
        ValueError: When the model cannot be found, when it brings code that is not to be run, and for fewer than 2 classes or a
            ``max_length`` that the model does not take.
    """
    if len(labels) < 2:
        raise ValueError(f"the data set has {len(labels)} class ({', '.join(labels) or 'none'}): a classifier needs at least 2.")
    names: Any = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if name in SMALL_TEXT:
        length = _length(name, max_length, 100_000, SMALL_LENGTH, 3)
        tokenizer = train_tokenizer(texts, length)
        config = BertConfig(
            vocab_size=len(tokenizer), max_position_embeddings=length, pad_token_id=tokenizer.pad_token_id, hidden_size=hidden_size,
            intermediate_size=2 * hidden_size, num_hidden_layers=2, num_attention_heads=4, **names,
        )  # fmt: skip
        return BertForSequenceClassification(config), tokenizer
    config = open_pretrained(AutoConfig, name, trust_remote_code, _EXPECTED, **names)
    tokenizer = load_tokenizer(name, trust_remote_code)
    model: Any
    if from_scratch:
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    else:
        model = open_classifier("text", name, trust_remote_code, _EXPECTED, config)
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id  # decoders find a text's last token by it
    fit_tokenizer(model, tokenizer, name, max_length)
    return model, tokenizer


def fit_tokenizer(model: Any, tokenizer: Any, name: str, max_length: int | None = None) -> None:
    """Sets how many tokens of a text the tokenizer reads, its ``model_max_length``.

    Args:
        model: A transformers text model.
        tokenizer: Its own.
        name: As it was given, for messages.
        max_length: Special ones counted. Default: as many as the model takes, at most 512.

    Raises:
        ValueError: For a length that the model does not take, and a tokenizer that knows more tokens than the model.
    """
    pieces = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > pieces:
        raise ValueError(f"model={name!r} embeds {pieces} tokens but its tokenizer has {len(tokenizer)}: give the model's own.")
    usual, most = min(tokenizer.model_max_length, positions(model), USUAL_LENGTH), positions(model)
    tokenizer.model_max_length = _length(name, max_length, most, usual, tokenizer.num_special_tokens_to_add() + 1)


def _length(name: str, asked: int | None, most: int, usual: int, least: int) -> int:
    """The number of tokens of a text that are read."""
    if asked is None:
        return usual
    if not least <= asked <= most:
        raise ValueError(f"max_length={asked} must be in [{least}, {most}], the tokens that model={name!r} takes: change it.")
    return asked


def positions(model: nn.Module) -> int:
    """Returns how many tokens the model has positions for; a very large number where it tells none.

    Args:
        model: A transformers text model.
    """
    config: Any = model.config
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return 10**9
    tables = [m for n, m in model.named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding)]
    offset = next((m.padding_idx + 1 for m in tables if m.padding_idx is not None), 0)  # RoBERTa numbers them from there
    return most - offset


def load_tokenizer(name: str, trust_remote_code: bool | None = False) -> Any:
    """Returns the tokenizer of a transformers model; one that has no token to pad with pads with its end of text.

    Args:
        name: Hub name or folder.
        trust_remote_code: Run Python code that it brings; None: no, and nobody can say yes.

    Raises:
        ValueError: Where there is none, and where it has nothing to pad with.
    """
    tokenizer = open_pretrained(AutoTokenizer, name, trust_remote_code, _EXPECTED)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"model={name!r} has a tokenizer without a token to pad with: set its pad_token and save it.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_tokenizer(texts: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """Returns a lower-case tokenizer of at most 8,000 pieces of words, learned from the texts; the same for the same texts.

    Args:
        texts: Of the training split.
        max_length: Tokens of a text that are read.
    """
    pieces: Any = Tokenizer(models.BPE(unk_token="[UNK]"))  # WordPiece draws its ties anew in every process
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    learner = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(_SPECIAL.values()), show_progress=False)
    pieces.train_from_iterator(texts, learner)
    cls, sep = (("[CLS]", pieces.token_to_id("[CLS]")), ("[SEP]", pieces.token_to_id("[SEP]")))
    pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[cls, sep])
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=max_length, model_input_names=inputs, **_SPECIAL)
