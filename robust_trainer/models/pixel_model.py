"""A classifier of [0, 1] pixels, whatever its model takes, and frozen copies of it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import InputSpace, input_space
from .outputs import image_logits


class PixelModel(nn.Module):
    """A classifier of images (B, C, H, W) in [0, 1]: logits (B, K) float32 of the model that it normalises them for.

    Args:
        model: A transformers image classifier, or any module that returns logits, a tuple that begins with them or a mapping. Grey
            images are repeated to the channels of the model where its config names 3.
    """

    def __init__(self, model: nn.Module, space: InputSpace):
        super().__init__()
        self.model, self.space = model, space
        takes = inspect.signature(type(model).forward).parameters
        name = getattr(model, "main_input_name", None) or "pixel_values"
        self.input_name = "pixel_values" if name == "input_ids" else name  # PreTrainedModel's default, wrong for images
        self.by_name = self.input_name in takes
        self.channels = getattr(getattr(model, "config", None), "num_channels", None)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, K) float32 of images (B, C, H, W) in [0, 1]."""
        if x.shape[1] == 1 and self.channels == 3:
            x = x.expand(-1, 3, -1, -1)
        inputs = self.space.from_pixels(x)
        return image_logits(self.model(**{self.input_name: inputs}) if self.by_name else self.model(inputs), self.model, len(x))


def pixel_model(
    model: nn.Module,
    processing_class: Any = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> PixelModel:
    """Returns the model as a `PixelModel`; one that is a `PixelModel` already comes back as it is.

    Args:
        model: The model.
        processing_class: The image processor, None for none.
        image_mean: Per-channel mean, where no processor tells it.
        image_std: Per-channel standard deviation, likewise.


    Raises:
        ValueError: Where ``model`` is no torch module, or neither the image processor nor ``image_mean`` and ``image_std`` tell the
            normalisation.
    """
    if isinstance(model, PixelModel):
        return model
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}, expected a torch.nn.Module: give an image classification model.")
    space = input_space(processing_class, image_mean, image_std)
    if space is None:
        raise ValueError(
            "the normalisation of the images is unknown: pass processing_class (the image processor), or image_mean and image_std; "
            "image_mean=[0.0], image_std=[1.0] for a model that takes [0, 1] pixels."
        )
    return PixelModel(model, space)


def frozen_copy(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """Returns a copy in eval mode whose weights take no gradient, so that crafting leaves the model itself as it was.

    Args:
        model: The model.
        device: Where to put it; None: where the model is.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    return copied if device is None else copied.to(device)
