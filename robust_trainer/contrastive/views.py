"""SimCLR's random views of a batch of images, by kornia's augmentations, on its device, drawn for each image on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..data.augmentation.augmentations import check, seeded_generators
from ..data.augmentation.load_kornia import load_kornia
from ..data.images import InputSpace

#: The names of `make_views`, and what each does.
VIEWS: Mapping[str, str] = {
    "simclr": "random resized crop, flip, colour jitter of strength 0.5 and random grey: the CIFAR-10 recipe (needs kornia)",
    "simclr-digits": "rotation by up to 15 degrees, a milder crop and colour jitter, no flip: for digits (needs kornia)",
    "none": "the image as it is",
}


@dataclass(frozen=True)
class SimCLRViews:
    """A callable (B, C, H, W) -> (B, C, H, W), float32 in [0, 1]: rotation, crop, flip, colour jitter, grey, blur, in this order.

    Draws from torch's global CPU generator on every device.

    Args:
        crop_scale: share of the image's area that is cropped and resized to the image's size, 0 < low <= high <= 1; None: no crop.
        crop_ratio: width / height of a crop, log-uniform.
        rotation: up to so many degrees either way, about the middle; edge pixels are repeated outside.
        flip: mirrored with probability 1/2.
        jitter: the share of images whose brightness, contrast and (three channels only) saturation change by factors from
            1 -+ 0.8 ``strength`` and whose hue turns by up to 0.2 ``strength`` of the circle; in a random order, one for the batch.
        strength: of the jitter, in [0, 1].
        grey: the share that loses its colour (three channels only).
        blur: the share blurred by a Gaussian of 0.1 to 2 pixels, in a window of a tenth of the side, at least 3 pixels.

    Raises:
        ValueError: for settings out of range; when called, where kornia is not installed and something is to be done.

    References:
        Chen et al. 2020, "A simple framework for contrastive learning of visual representations" (SimCLR), appendix A and B.9.
    """

    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotation: float = 0.0
    flip: bool = True
    jitter: float = 0.8
    strength: float = 0.5
    grey: float = 0.2
    blur: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale={self.crop_scale!r} must be (low, high) with 0 < low <= high <= 1, or None: no crop.")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio={self.crop_ratio!r} must be (low, high) with 0 < low <= high.")
        for name, most in (("rotation", 180), ("jitter", 1), ("strength", 1), ("grey", 1), ("blur", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)!r} must be in [0, {most}].")

    def __call__(self, x: Tensor) -> Tensor:
        """Returns one view of each image.

        Args:
            x: (B, C, H, W) float32 pixels in [0, 1]; not changed.
        """
        return _pipeline(self, *x.shape[1:])(x).clamp(0.0, 1.0)


@lru_cache(maxsize=16)
def _pipeline(views: SimCLRViews, channels: int, height: int, width: int) -> nn.Sequential:
    """The views' transformations of images of one size, those that do nothing left out."""
    steps: list[Callable[[Any], nn.Module]] = []  # kornia.augmentation -> a transformation
    if views.rotation:
        steps.append(lambda k: k.RandomAffine(views.rotation, padding_mode="border", p=1.0))
    if views.crop_scale is not None:
        steps.append(lambda k: k.RandomResizedCrop((height, width), scale=views.crop_scale, ratio=views.crop_ratio))
    if views.flip:
        steps.append(lambda k: k.RandomHorizontalFlip())
    if views.jitter and views.strength:
        change, colours = 0.8 * views.strength, float(channels == 3)
        turn = 0.2 * views.strength * colours
        steps.append(lambda k: k.ColorJitter(change, change, change * colours, turn, p=views.jitter))
    if views.grey and channels == 3:
        steps.append(lambda k: k.RandomGrayscale(p=views.grey))
    if views.blur:
        window = 2 * max(1, round(0.05 * min(height, width))) + 1
        steps.append(lambda k: k.RandomGaussianBlur((window, window), (0.1, 2.0), border_type="replicate", p=views.blur))
    if not steps:
        return nn.Sequential()
    kornia = load_kornia("augmentation", "SimCLRViews")
    return nn.Sequential(*(step(kornia) for step in steps))


_SETTINGS: Mapping[str, SimCLRViews] = {
    "simclr": SimCLRViews(),
    "simclr-digits": SimCLRViews(crop_scale=(0.5, 1.0), rotation=15.0, flip=False, grey=0.0),
    "none": SimCLRViews(crop_scale=None, flip=False, jitter=0.0, grey=0.0),
}


def make_views(name: str) -> SimCLRViews:
    """Returns the views of a name.

    Args:
        name: a key of `VIEWS`.

    Raises:
        ValueError: for another name, and for other views than ``none`` where kornia is not installed.
    """
    if name not in _SETTINGS:
        raise ValueError(f"views={name!r} is unknown: choose one of {', '.join(VIEWS)}, or pass a callable to the trainer.")
    if name != "none":
        load_kornia("augmentation", f"views={name!r}")
    return _SETTINGS[name]


@torch.no_grad()
def two_views(views: Callable[[Tensor], Tensor], x: Tensor, space: InputSpace, seed: int) -> tuple[Tensor, Tensor]:
    """Returns two views of x, drawn one after the other; both, as x, in the model's units and of x's dtype. No gradient passes.

    Guarantee: what ``views`` draws from torch's generators depends on ``seed`` alone, and they are as before afterwards.

    Args:
        views: `SimCLRViews`, or any callable on (B, C, H, W) float32 pixels in [0, 1], whose result is checked, which waits for
            the device.
        x: the model's inputs (B, C, H, W).
        space: the inputs' normalisation.
        seed: of the draws.

    Raises:
        ValueError: where the callable returns another shape, or pixels outside [0, 1].
    """
    pixels = space.to_pixels(x).clamp_(0.0, 1.0)
    with seeded_generators(seed, x.device):
        pair = views(pixels.clone()), views(pixels)
    if not isinstance(views, SimCLRViews):
        for view in pair:
            check(view, x, "views")
    first, second = (space.from_pixels(view.clamp(0.0, 1.0)).to(x.dtype) for view in pair)
    return first, second
