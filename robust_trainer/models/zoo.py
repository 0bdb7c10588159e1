"""Image classifiers by name: small ones to train from scratch, and every transformers image model; and saved models of any kind."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    PreTrainedModel,
)

from ..data.class_names import names_of
from ..reporting.run_folders import why_no_run
from .peers import load_networks
from .pretrained import KINDS, kinds_of, load_feature_extractor, open_classifier, open_pretrained
from .small_networks import (
    Classifier,
    PlainCNN,
    PlainCNNConfig,
    ResNet32,
    ResNet32Config,
    ResNet32GN,
    ResNet32GNConfig,
    SmallCNN,
    SmallCNNConfig,
)
from .text_models import SMALL_TEXT, load_tokenizer

try:  # without torchvision the plain name answers with a warning
    from transformers import ViTImageProcessorPil as PlainProcessor
except ImportError:  # transformers before 5.20
    from transformers import ViTImageProcessor as PlainProcessor  # type: ignore[assignment]


#: Small networks by name: config and model.
SMALL: dict[str, tuple[Any, type[Classifier]]] = {
    "small-cnn": (SmallCNNConfig, SmallCNN),
    "plain-cnn": (PlainCNNConfig, PlainCNN),
    "resnet32": (ResNet32Config, ResNet32),
    "resnet32-gn": (ResNet32GNConfig, ResNet32GN),
}
for _config, _model in SMALL.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForImageClassification")

_IMAGE = f"{', '.join(SMALL)}, or the hub name or folder of an image classification model"
_ANY = f"{', '.join([*SMALL, *SMALL_TEXT])}, or the hub name or folder of an image, text or audio classification model"
_AUDIO = "the hub name or folder of an audio classification model"
#: Pixels; a processor that makes larger images is taken for a damaged one.
LARGEST_SIDE = 16_384


def build_model(
    name: str,
    labels: list[str],
    *,
    channels: int = 3,
    image_size: int | None = None,
    from_scratch: bool = False,
    mean: float = 0.5,
    std: float = 0.5,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Returns the model and its image processor.

    Args:
        name: A key of `SMALL` (always from scratch, for ``channels`` and ``image_size`` as given, normalised with ``mean`` and
            ``std``, default 0.5: pixels in [-1, 1]), else a transformers model's hub name or folder, whose head is replaced where
            the number of classes differs; ``from_scratch`` takes its architecture with fresh weights.
        labels: The class names.
        channels: 1 or 3, of the images.
        image_size: Side in pixels.
        from_scratch: Fresh weights.
        mean: Of the normalisation, per channel.
        std: Of the normalisation, per channel.
        trust_remote_code: Run Python code that the named model brings.

    Raises:
        ValueError: When the model cannot be found, and when it brings code that is not to be run.
    """
    if len(labels) < 2:
        raise ValueError(f"the data set has {len(labels)} class ({', '.join(labels) or 'none'}): a classifier needs at least 2.")
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if name in SMALL:
        side = image_size or 32
        config_class, model_class = SMALL[name]
        processor = PlainProcessor(
            size={"height": side, "width": side}, image_mean=[mean] * channels, image_std=[std] * channels, do_resize=True
        )
        return model_class(config_class(num_channels=channels, image_size=side, **names)), processor
    config = open_pretrained(AutoConfig, name, trust_remote_code, _IMAGE, **names)
    processor = load_image_processor(name, trust_remote_code)
    if from_scratch:
        return AutoModelForImageClassification.from_config(config, trust_remote_code=trust_remote_code), processor
    return open_classifier("image", name, trust_remote_code, _IMAGE, config), processor


def build_audio_model(
    name: str, labels: Sequence[str], from_scratch: bool = False, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, Any]:
    """Returns a classifier of sounds and its feature extractor.

    Args:
        name: A transformers model's hub name or folder, whose head is replaced where the number of classes differs;
            ``from_scratch`` takes its architecture with fresh weights.
        labels: The class names.
        from_scratch: Fresh weights.
        trust_remote_code: Run Python code that the named model brings.

    Raises:
        ValueError: When the model cannot be found, and when it brings code that is not to be run.
    """
    if len(labels) < 2:
        raise ValueError(f"the data set has {len(labels)} class ({', '.join(labels) or 'none'}): a classifier needs at least 2.")
    names: Any = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = open_pretrained(AutoConfig, name, trust_remote_code, _AUDIO, **names)
    extractor = load_feature_extractor(name, trust_remote_code)
    if from_scratch:
        return AutoModelForAudioClassification.from_config(config, trust_remote_code=trust_remote_code), extractor
    return open_classifier("audio", name, trust_remote_code, _AUDIO, config), extractor


def model_kinds(name: str, trust_remote_code: bool | None = False) -> set[str]:
    """Returns what a model can classify, of ``image``, ``text`` and ``audio``; empty where nothing tells.

    Args:
        name: As for `build_model` or `build_text_model`.
        trust_remote_code: As for `build_model`.

    Raises:
        ValueError: When the model cannot be found.
    """
    if name in SMALL or name in SMALL_TEXT:
        return {"image" if name in SMALL else "text"}
    return kinds_of(open_pretrained(AutoConfig, name, trust_remote_code, _ANY))


def known_classes(name: str, trust_remote_code: bool | None = False) -> list[str] | None:
    """Returns the class names that a transformers model was trained with, by number; None where it has none.

    Args:
        name: As for `build_model` or `build_text_model`.
        trust_remote_code: As for `build_model`.

    Raises:
        ValueError: When the model cannot be found.
    """
    return None if name in SMALL or name in SMALL_TEXT else names_of(open_pretrained(AutoConfig, name, trust_remote_code, _ANY))


def load_model(folder: str, trust_remote_code: bool | None = False, alone: bool = False) -> tuple[PreTrainedModel, Any]:
    """Returns the model and what prepares its inputs, saved in a folder by `RobustTrainer.save_model`.

    Args:
        folder: The ``output_dir`` of a training; where it trained several networks, the model is a `PeerModel` of all of them.
        trust_remote_code: Run Python code that the model brings; None: no, and nobody can say yes.
        alone: Of several networks the exported one, as a program that does not know this package opens it.

    Raises:
        ValueError: Where there is none, and where it brings code that is not to be run.
    """
    if not os.path.isfile(os.path.join(folder, "config.json")):
        told = why_no_run(folder, "holds no saved model (config.json)", "give the output_dir of a training.", checkpoints=True)
        raise ValueError(told)
    kind = _saved_kind(folder, trust_remote_code)

    def load(one: str) -> Any:
        return open_pretrained(KINDS[kind], one, trust_remote_code, _ANY)

    model: Any = load(folder) if alone else load_networks(folder, load)
    load_processor = {"text": load_tokenizer, "audio": load_feature_extractor, "image": load_image_processor}[kind]
    return model, load_processor(folder, trust_remote_code)


def _saved_kind(folder: str, trust_remote_code: bool | None) -> str:
    """What a saved model classifies; of one that could be either, or of which nothing is known, what lies beside it tells."""
    kinds = kinds_of(open_pretrained(AutoConfig, folder, trust_remote_code, _ANY))
    if len(kinds) == 1:
        return kinds.pop()
    beside = {file for file in ("preprocessor_config.json", "tokenizer_config.json") if os.path.isfile(os.path.join(folder, file))}
    return "text" if beside == {"tokenizer_config.json"} else "image"


def load_image_processor(name: str, trust_remote_code: bool | None = False) -> Any:
    """Returns the image processor of a transformers model.

    Args:
        name: Hub name or folder.
        trust_remote_code: Run Python code that it brings; None: no, and nobody can say yes.

    Raises:
        ValueError: Where there is none, and for settings that no image can be processed by: a side of 1e9 pixels would be a full
            memory.
    """
    processor = open_pretrained(AutoImageProcessor, name, trust_remote_code, _IMAGE)
    settings = processor.to_dict()
    sides = [side for key in ("size", "crop_size") for side in dict(settings.get(key) or {}).values()]
    per_channel = [settings[key] for key in ("image_mean", "image_std") if settings.get(key) is not None]
    numbers = [number for value in per_channel for number in (value if isinstance(value, list | tuple) else [value])]
    factor = settings.get("rescale_factor", 1)
    wrong = {
        "size": not all(side is None or (type(side) is int and 1 <= side <= LARGEST_SIDE) for side in sides),
        "image_mean or image_std": not all(_is_finite(number) for number in numbers) or 0 in numbers[len(numbers) // 2 :],
        "rescale_factor": factor is not None and not (_is_finite(factor) and factor > 0),
    }
    if (first := next((key for key, is_wrong in wrong.items() if is_wrong), None)) is not None:
        raise ValueError(f"model={name!r} has a {first} in preprocessor_config.json that no image can have: mend the file.")
    return processor


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
