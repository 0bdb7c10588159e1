"""The command line, and what scripts need that take the options of ``robust-trainer``: parser, options, data and models by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from ..data.load import label_names, load_data
    from ..data.preprocess import ImageTransform, image_shape, model_channels
    from ..data.texts import TextTransform
    from ..models.text_models import build_text_model
    from ..models.zoo import build_model
    from .options import CorruptionOptions, DataOptions, ModelOptions, PreprocessOptions
    from .parser import make_parser, parse
    from .pretraining import ContrastiveOptions, unlabelled_images
    from .stages import RunState, prepare

__all__ = [
    "ContrastiveOptions",
    "CorruptionOptions",
    "DataOptions",
    "ImageTransform",
    "ModelOptions",
    "PreprocessOptions",
    "RunState",
    "TextTransform",
    "build_model",
    "build_text_model",
    "image_shape",
    "label_names",
    "load_data",
    "make_parser",
    "model_channels",
    "parse",
    "prepare",
    "unlabelled_images",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ContrastiveOptions": "pretraining",
        "CorruptionOptions": "options",
        "DataOptions": "options",
        "ImageTransform": ".data.preprocess",
        "ModelOptions": "options",
        "PreprocessOptions": "options",
        "RunState": "stages",
        "TextTransform": ".data.texts",
        "build_model": ".models.zoo",
        "build_text_model": ".models.text_models",
        "image_shape": ".data.preprocess",
        "label_names": ".data.load",
        "load_data": ".data.load",
        "make_parser": "parser",
        "model_channels": ".data.preprocess",
        "parse": "parser",
        "prepare": "stages",
        "unlabelled_images": "pretraining",
    },
)
