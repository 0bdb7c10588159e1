"""SimCLR's random views of a batch of images (Chen et al. 2020, appendix A), on its device, drawn for each image on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

from ..data.images import InputSpace
from ..images.augmentations import _seeded, check

#: The names of `make_views`, and what each does.
VIEWS: Mapping[str, str] = {
    "simclr": "random resized crop, flip, colour jitter of strength 0.5 and random grey: the CIFAR-10 recipe",
    "simclr-digits": "a milder crop, rotation by up to 15 degrees and colour jitter, no flip: for digits and characters",
    "none": "the image as it is",
}
_LUMA = (0.299, 0.587, 0.114)
_YIQ = np.array([_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
#: An image's chroma turned by 90 degrees: (I, Q) becomes (-Q, I), Y zero.
_QUARTER: list[list[float]] = (np.linalg.inv(_YIQ) @ [[0, 0, 0], [0, 0, -1], [0, 1, 0]] @ _YIQ).tolist()
#: Candidates for a crop, of which the first that fits into the image is taken.
_TRIES = 10


@dataclass(frozen=True)
class SimCLRViews:
    """A callable (B, C, H, W) -> (B, C, H, W), float32 in [0, 1]: crop, rotation, flip, colour jitter, grey, blur, in this order.

    crop_scale: share of the image's area that is cropped and resized to the image's size, 0 < low <= high <= 1; None: no crop.
    crop_ratio: width / height of a crop, log-uniform. rotation: up to so many degrees either way, about the crop's centre; edge
    pixels are repeated outside. Crop and rotation are one bilinear sampling. flip: mirrored with probability 1/2. jitter: the share
    of images whose brightness, contrast and (three channels only) saturation change by factors from 1 -+ 0.8 ``strength`` and whose
    hue turns by up to 0.2 ``strength`` of the circle, strength in [0, 1]. grey: the share that loses its colour (three channels
    only). blur: the share blurred by a Gaussian of 0.1 to 2 pixels, in a window of a tenth of the side, at least 3 pixels.
    Deviations from SimCLR's code: the jitter's order is fixed (brightness, contrast, saturation, hue), the hue is rotated in YIQ,
    which keeps the luma (there HSV), and crops are not rounded to pixels. Draws from torch's global CPU generator on every device.
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
        if self.crop_scale is not None or self.rotation:
            theta = self.placement(len(x), *x.shape[-2:]).to(x.device, non_blocking=True)
            grid = affine_grid(theta, list(x.shape), align_corners=False)
            x = grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if self.flip:
            x = torch.where(_hits(x, 0.5), x.flip(3), x)
        if self.jitter and self.strength:
            x = self._jittered(x)
        if self.grey and x.shape[1] == 3:
            x = torch.where(_hits(x, self.grey), _luma(x), x)
        if self.blur:
            x = self._blurred(x)
        return x.clamp(0.0, 1.0)

    def placement(self, images: int, height: int, width: int) -> Tensor:
        """Draws where each output pixel comes from: (images, 2, 3) for ``affine_grid``, from output to input, on the CPU."""
        theta = torch.eye(2, 3, device="cpu").repeat(images, 1, 1)
        if self.rotation:
            angle = (torch.rand(images, device="cpu") * 2 - 1) * math.radians(self.rotation)
            theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
            theta[:, 0, 1], theta[:, 1, 0] = -angle.sin() * (height / width), angle.sin() * (width / height)
        if self.crop_scale is not None:
            area, ratio = torch.rand(2, _TRIES, images, device="cpu")
            (low, high), (narrow, wide) = self.crop_scale, map(math.log, self.crop_ratio)
            area, ratio = (low + area * (high - low)) * (height * width), (narrow + ratio * (wide - narrow)).exp()
            sides = torch.stack([(area * ratio).sqrt() / width, (area / ratio).sqrt() / height])  # shares, (2, tries, images)
            fits = (sides <= 1).all(0)
            first = fits.to(torch.uint8).argmax(0).expand(2, 1, images)
            # none fits: the whole image
            share = torch.where(fits.any(0), sides.gather(1, first).squeeze(1), 1.0).T
            theta[:, :, :2] *= share.unsqueeze(2)
            theta[:, :, 2] = (torch.rand(images, 2, device="cpu") * 2 - 1) * (1 - share)
        return theta

    def _jittered(self, x: Tensor) -> Tensor:
        hit, *draws = torch.rand(5, len(x), 1, 1, 1, device="cpu")
        most = torch.where(hit < self.jitter, self.strength, 0.0)
        moves = torch.stack([(u * 2 - 1) * most for u in draws]).to(x.device, non_blocking=True)
        brightness, contrast, saturation = 1 + 0.8 * moves[:3]
        x = (x * brightness).clamp(0.0, 1.0)
        x = _blend(x, _luma(x).mean((1, 2, 3), keepdim=True), contrast)
        if x.shape[1] != 3:
            return x
        x = _blend(x, _luma(x), saturation)
        return _hue_turned(x, moves[3] * (0.2 * math.tau))

    def _blurred(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        reach = max(1, round(0.05 * min(height, width)))
        hit, sigma = torch.rand(2, len(x), 1, device="cpu")
        far = torch.arange(-reach, reach + 1, device="cpu").square()
        kernel = (-far / (2 * (0.1 + 1.9 * sigma).square())).exp()
        kernel = torch.where(hit < self.blur, kernel / kernel.sum(1, keepdim=True), (far == 0).float())
        kernel = kernel.to(x.device, non_blocking=True).repeat_interleave(channels, 0).unsqueeze(1)
        rows = pad(x.reshape(1, -1, height, width), [reach] * 4, mode="replicate")
        rows = conv2d(rows, kernel.unsqueeze(3), groups=len(kernel))
        return conv2d(rows, kernel.unsqueeze(2), groups=len(kernel)).view_as(x)


_SETTINGS: Mapping[str, SimCLRViews] = {
    "simclr": SimCLRViews(),
    "simclr-digits": SimCLRViews(crop_scale=(0.5, 1.0), rotation=15.0, flip=False, grey=0.0),
    "none": SimCLRViews(crop_scale=None, flip=False, jitter=0.0, grey=0.0),
}


def make_views(name: str) -> SimCLRViews:
    """The views of a name in `VIEWS`. Raises a one-line ``ValueError`` for another name."""
    if name not in _SETTINGS:
        raise ValueError(f"views={name!r} is unknown: choose one of {', '.join(VIEWS)}, or pass a callable to the trainer.")
    return _SETTINGS[name]


@torch.no_grad()
def two_views(views: Callable[[Tensor], Tensor], x: Tensor, space: InputSpace, seed: int) -> tuple[Tensor, Tensor]:
    """Two views of x (B, C, H, W), drawn one after the other; both, as x, in the model's units and of x's dtype.

    views: `SimCLRViews`, or any callable on (B, C, H, W) float32 pixels in [0, 1], whose result is checked, which waits for the
    device. What it draws from torch's generators depends on ``seed`` alone; they are as before afterwards. No gradient passes.
    Raises a one-line ``ValueError`` where the callable returns another shape, or pixels outside [0, 1].
    """
    pixels = space.to_pixels(x).clamp_(0.0, 1.0)
    with _seeded(seed, x.device):
        pair = views(pixels.clone()), views(pixels)
    if not isinstance(views, SimCLRViews):
        for view in pair:
            check(view, x, "views")
    first, second = (space.from_pixels(view.clamp(0.0, 1.0)).to(x.dtype) for view in pair)
    return first, second


def _hits(x: Tensor, share: float) -> Tensor:
    """Which images (B, 1, 1, 1) an operation that takes a share of them is done to."""
    return (torch.rand(len(x), 1, 1, 1, device="cpu") < share).to(x.device, non_blocking=True)


def _luma(x: Tensor) -> Tensor:
    """The grey images, (B, 1, H, W)."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Away from ``other`` for a factor above 1, towards it below; exactly x at 1."""
    return (x * factor + other * (1 - factor)).clamp(0.0, 1.0)


def _hue_turned(x: Tensor, angle: Tensor) -> Tensor:
    """Three channels with their chroma turned in the plane of YIQ's I and Q by ``angle`` (B, 1, 1, 1); exactly x at 0."""
    red, green, blue = x.unbind(1)
    quarter = torch.stack([r * red + g * green + b * blue for r, g, b in _QUARTER], 1)
    return (x + (angle.cos() - 1) * (x - _luma(x)) + angle.sin() * quarter).clamp(0.0, 1.0)
