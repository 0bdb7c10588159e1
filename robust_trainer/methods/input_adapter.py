"""What makes the adapter by which a perturbation enters the model: pixels of images, embeddings of texts, samples of sounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.utils import logging

from ..config import space_settings
from ..data.images import input_space
from ..models.peers import PeerModel
from ..perturbations.inputs import EmbeddingAdapter, InputAdapter, PixelAdapter
from ..perturbations.norms import NORMS
from ..perturbations.waves import WaveAdapter
from .recipe import Recipe

logger = logging.get_logger(__name__)

#: What transformers' models of sounds call their input: waveforms, or spectrograms.
AUDIO_INPUTS = ("input_values", "input_features")


def find_adapter(trainer: Trainer, recipe: Recipe, model: nn.Module) -> Callable[[Mapping[str, Any]], InputAdapter]:
    """Returns what makes, from the first batch's inputs, the adapter by which a perturbation enters the model.

    Args:
        trainer: whose processing class or arguments name the images' normalisation.
        recipe: the method.
        model: unwrapped.

    Raises:
        ValueError: for images whose normalisation is unknown, and (from the first batch) for inputs that cannot be perturbed.
    """
    main = getattr(model, "main_input_name", None)
    if main == "input_ids":
        if recipe.settings.get("scope") == "batch":
            raise ValueError(
                f"scope='batch' of method '{recipe.name}' is one perturbation for images of one size, texts have none: "
                "set scope='sample'."
            )
        if trainer.args.n_gpu > 1:
            raise ValueError(f"method '{recipe.name}' moves embeddings, not under DataParallel: use torchrun, a process per GPU.")
        if recipe.settings.get("eps", 1.0) < 0.1:
            logger.warning(
                f"eps={recipe.settings['eps']:.3g} of method '{recipe.name}' moves a word by that share of its embedding's norm, "
                "which changes next to nothing: on text give 0.3 or so, and a step_size (docs/guides/adversarial_training.md)."
            )
        if trainer.args.torch_compile:
            raise ValueError(f"method '{recipe.name}' moves word embeddings by a hook: switch torch_compile off.")
        text = EmbeddingAdapter.of(list(model.peers) if isinstance(model, PeerModel) else [model])
        return lambda inputs: text
    if main in AUDIO_INPUTS:
        return _of_sounds(trainer, recipe, str(main))
    space = input_space(trainer.processing_class, **space_settings(trainer.args))
    if space is None:
        raise ValueError(
            f"method '{recipe.name}' perturbs images within eps pixels and must know their normalisation: pass "
            "processing_class=<the image processor>, or RobustConfig(image_mean=[...], image_std=[...]) "
            "(0 and 1 for inputs already in [0, 1])."
        )
    norm, eps = NORMS.get(recipe.settings.get("norm", "")), recipe.settings.get("eps")
    if norm is not None and eps is not None and 0 < eps < 0.1 * norm.usual_eps:
        logger.warning(
            f"eps={eps:.3g} of method '{recipe.name}' in norm='{norm.name}' moves an image next to nothing: papers take "
            f"{norm.usual} for 32 x 32 colour images; give eps, and a step_size."
        )
    return lambda inputs: PixelAdapter(_image_key(inputs, main), space)


def _of_sounds(trainer: Trainer, recipe: Recipe, key: str) -> Callable[[Mapping[str, Any]], InputAdapter]:
    """The adapter of a model of sounds, told by the first batch."""
    given = [name for name, value in space_settings(trainer.args).items() if value is not None]
    if given:
        raise ValueError(f"image_{given[0]} is for images, the model reads sounds ({key}): leave it out; eps is in its own units.")
    if recipe.settings.get("scope") == "batch":
        raise ValueError(
            f"scope='batch' of method '{recipe.name}' is one perturbation for inputs of one size, sounds are of many: "
            "set scope='sample'."
        )
    return lambda inputs: WaveAdapter.of(key, inputs.get(key), trainer.processing_class, recipe.name)


def _image_key(inputs: Mapping[str, Any], main: str | None) -> str:
    """The one float input. Raises ``ValueError`` where there is none, or more than one."""
    floats = [k for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]
    if main in floats:
        return str(main)
    if not floats and isinstance(inputs.get(str(main)), Tensor) and inputs[str(main)].dim() == 4:
        kind = inputs[str(main)].dtype
        raise ValueError(f"'{main}' is {kind}: an attack needs float inputs; preprocess with the image processor.")
    if len(floats) != 1:
        raise ValueError(
            f"an image method perturbs one float input, found {floats} in {sorted(inputs)}: "
            "use an image or a transformers text model, or a method without an attack (prl, spl, bootstrap)."
        )
    return floats[0]
