"""Whatever transformers opens by a name or a folder: told in one line where it cannot, and what a model takes."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    SequenceFeatureExtractor,
)
from transformers.utils import logging

logger = logging.get_logger(__name__)

#: What a model of each kind is opened by.
KINDS: dict[str, Any] = {
    "image": AutoModelForImageClassification,
    "text": AutoModelForSequenceClassification,
    "audio": AutoModelForAudioClassification,
}
_MAPPINGS = {
    "image": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    "text": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "audio": MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
}
#: What messages call inputs of each kind.
WORDS = {"image": "images", "text": "texts", "audio": "sounds"}


def open_pretrained(auto: Any, name: str, trust_remote_code: bool | None, expected: str, **kwargs: Any) -> Any:
    """Returns what an auto class of transformers finds.

    Args:
        auto: As ``AutoConfig``.
        name: Hub name or folder.
        trust_remote_code: Run Python code that it brings; None: no, and nobody can say yes.
        expected: What could have been given, for the message.

        **kwargs: Further arguments of ``from_pretrained``.

    Raises:
        ValueError: Where it is not found or cannot be read, and where it brings code that is not to be run.
    """
    try:
        return auto.from_pretrained(name, trust_remote_code=bool(trust_remote_code), **kwargs)
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, MemoryError, SafetensorError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):  # asked on the terminal where nobody says yes or no
            mend = "" if trust_remote_code is None else "give --trust_remote_code if you have read it or trust its author, or "
            raise ValueError(
                f"model={name!r} brings Python code of its own, which is not run: {mend}choose another model."
            ) from None
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model={name!r} could not be loaded by {auto.__name__}: give {expected} ({reason}).") from error


def open_classifier(kind: str, name: str, trust_remote_code: bool | None, expected: str, config: Any) -> Any:
    """Returns a pretrained classifier with a head for the config's classes, and says which parts of it have fresh weights.

    Args:
        kind: A key of `KINDS`.
        name: Hub name or folder.
        trust_remote_code: As of `open_pretrained`.
        expected: As of `open_pretrained`.
        config: With the classes.

    Raises:
        ValueError: As `open_pretrained`.
    """
    more = {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.ERROR))  # the report of the weights, of which the line below tells what counts
    try:
        model, info = open_pretrained(KINDS[kind], name, trust_remote_code, expected, **more)
    finally:
        logging.set_verbosity(before)
    fresh = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    parts = list(dict.fromkeys(".".join(key.split(".")[:-1]) for key in sorted(fresh)))
    if parts:
        few = ", ".join(parts[:4]) + (f" and {len(parts) - 4} more layers" if len(parts) > 4 else "")
        rest = "; the rest is pretrained" if len(fresh) < len(model.state_dict()) / 2 else ": is it of another architecture?"
        logger.warning(f"model={name!r} has fresh weights in {few}{rest}")
    return model


def load_feature_extractor(name: str, trust_remote_code: bool | None = False) -> Any:
    """Returns the feature extractor of a transformers model of sounds.

    Args:
        name: Hub name or folder.
        trust_remote_code: Run Python code that it brings; None: no, and nobody can say yes.

    Raises:
        ValueError: Where there is none, or none of sounds.
    """
    expected = "the hub name or folder of a model of sounds with its preprocessor_config.json"
    extractor = open_pretrained(AutoFeatureExtractor, name, trust_remote_code, expected)
    extractor = getattr(extractor, "feature_extractor", extractor)
    if not isinstance(extractor, SequenceFeatureExtractor) or not isinstance(extractor.sampling_rate, int):
        raise ValueError(f"model={name!r} has a {type(extractor).__name__}, which reads no sounds: give {expected}.")
    return extractor


def kinds_of(config: Any) -> set[str]:
    """Returns what a model can classify: of `KINDS`; empty where nothing tells.

    Args:
        config: Of a transformers model.
    """
    own = getattr(config, "auto_map", None) or {}
    return {kind for kind, auto in KINDS.items() if type(config) in _MAPPINGS[kind] or auto.__name__ in own}


def has_head(config: Any, kind: str) -> bool:
    """Returns whether the network that was saved with a config is a classifier, by the name of its class.

    Args:
        config: Of a transformers model.
        kind: A key of `KINDS`.
    """
    saved = getattr(config, "architectures", None) or []
    known = _MAPPINGS[kind][type(config)] if type(config) in _MAPPINGS[kind] else ()
    names = {one.__name__ for one in (known if isinstance(known, tuple) else (known,)) if one is not None}
    names.add((getattr(config, "auto_map", None) or {}).get(KINDS[kind].__name__, "").rpartition(".")[2])
    return any(name in names for name in saved)


def open_encoder(name: str, trust_remote_code: bool | None, expected: str) -> Any:
    """Returns a pretrained network without a head.

    Args:
        name: As of `open_pretrained`.
        trust_remote_code: As of `open_pretrained`.
        expected: As of `open_pretrained`.

    Raises:
        ValueError: As `open_pretrained`, and where most of its weights are not there.
    """
    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.ERROR))  # the report of the weights, of which the line below tells what counts
    try:
        model, info = open_pretrained(AutoModel, name, trust_remote_code, expected, output_loading_info=True)
    finally:
        logging.set_verbosity(before)
    missing = len(info["missing_keys"]) + len(info["mismatched_keys"])
    if missing > len(model.state_dict()) / 2:
        of = f"{missing} of the {len(model.state_dict())} tensors of {type(model).__name__}"
        raise ValueError(f"model={name!r} has no weights for {of}, so its features say nothing: give {expected}.")
    return model
