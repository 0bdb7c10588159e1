"""The command line, and what scripts need that take the options of ``robust-trainer``: parser, options, data and models by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from ..data.audio import AudioTransform, undecoded_audio
    from ..data.load import label_names, load_data
    from ..data.preprocess import ImageTransform, image_shape, model_channels
    from ..data.texts import TextTransform
    from ..models.text_models import build_text_model
    from ..models.zoo import build_audio_model, build_model
    from .options import CorruptionOptions, DataOptions, ModelOptions, PreprocessOptions
    from .parser import make_parser, parse
    from .pretraining import ContrastiveOptions, unlabelled_images
    from .stages import RunState, prepare

__all__ = [
    "AudioTransform",
    "ContrastiveOptions",
    "CorruptionOptions",
    "DataOptions",
    "ImageTransform",
    "ModelOptions",
    "PreprocessOptions",
    "RunState",
    "TextTransform",
    "build_audio_model",
    "build_model",
    "build_text_model",
    "image_shape",
    "label_names",
    "load_data",
    "make_parser",
    "model_channels",
    "parse",
    "prepare",
    "undecoded_audio",
    "unlabelled_images",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AudioTransform": ".data.audio",
        "ContrastiveOptions": "pretraining",
        "CorruptionOptions": "options",
        "DataOptions": "options",
        "ImageTransform": ".data.preprocess",
        "ModelOptions": "options",
        "PreprocessOptions": "options",
        "RunState": "stages",
        "TextTransform": ".data.texts",
        "build_audio_model": ".models.zoo",
        "build_model": ".models.zoo",
        "build_text_model": ".models.text_models",
        "image_shape": ".data.preprocess",
        "label_names": ".data.load",
        "load_data": ".data.load",
        "make_parser": "parser",
        "model_channels": ".data.preprocess",
        "parse": "parser",
        "prepare": "stages",
        "undecoded_audio": ".data.audio",
        "unlabelled_images": "pretraining",
    },
)
