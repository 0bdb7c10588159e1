"""Pretrained networks whose features are wanted: opened by a name or folder, with what prepares their inputs."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from .modes import no_bars
from .pretrained import KINDS, WORDS, has_head, kinds_of, load_feature_extractor, open_encoder, open_pretrained
from .text_models import SMALL_TEXT, fit_tokenizer, load_tokenizer
from .zoo import SMALL, load_image_processor

#: A part that reads inputs of a kind has its configuration under this name.
_PART = {"image": "vision_config", "text": "text_config", "audio": "audio_config"}


def load_encoder(name: str, kind: str, *, max_length: int | None = None, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Returns a pretrained network and what prepares its inputs: a classifier where it was saved as one, else an encoder.

    Args:
        name: Hub name or folder.
        kind: What it is to read: image, text or audio.
        max_length: Tokens of a text that are read, special ones counted. Default: as many as the model takes, at most 512.
        trust_remote_code: Run Python code that the named model brings.

    Raises:
        ValueError: In one line, where it cannot be found, is not pretrained, takes the other kind, or brings code that is not to
            be run.
    """
    expected = f"the hub name or folder of a pretrained {kind} encoder or classifier"
    if name in SMALL or name in SMALL_TEXT:
        raise ValueError(f"model={name!r} is not pretrained, so its features say nothing: give {expected}.")
    if kind != "text" and max_length is not None:
        raise ValueError(f"max_length={max_length} is for texts, the data are {WORDS[kind]}: leave it out.")
    config = open_pretrained(AutoConfig, name, trust_remote_code, expected)
    known = kinds_of(config)
    if len(known) == 1 and kind not in known and not hasattr(config, _PART[kind]):
        raise ValueError(f"model={name!r} takes {WORDS[known.pop()]}, the data are {WORDS[kind]}: give {expected}.")
    load = {"text": load_tokenizer, "audio": load_feature_extractor, "image": load_image_processor}[kind]
    processor = load(name, trust_remote_code)
    with no_bars():
        if has_head(config, kind):
            model = open_pretrained(KINDS[kind], name, trust_remote_code, expected)
        else:
            model = open_encoder(name, trust_remote_code, expected)
    if kind == "text":
        fit_tokenizer(model, processor, name, max_length)
    return model, processor
