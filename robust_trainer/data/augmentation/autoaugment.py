"""AutoAugment's CIFAR-10 policy on a batch on its device, one sub-policy per image. Needs kornia for the colour operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from ..randomness import RowDraws
from .load_kornia import load_kornia

#: The 25 sub-policies of Cubuk et al. 2018 for CIFAR-10: twice (operation, its probability, its level 0..9).
CIFAR10 = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("auto_contrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("auto_contrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 0)),
)

#: (n, C, H, W) pixels and (n,) strengths in [-1, 1], level / 9 with a random sign -> (n, C, H, W) pixels.
Operation = Callable[[Tensor, Tensor], Tensor]


def auto_augment(x: Tensor, draws: RowDraws) -> Tensor:
    """Returns each image through a sub-policy drawn for it, (B, C, H, W) in [0, 1].

    Strengths at level m are those of usual implementations: shear 0.3 m/9, translation 150/331 m/9 of the
    side, rotation 30 m/9 degrees, colour, contrast, sharpness and brightness 1 +- 0.9 m/9, signs at random; posterize to
    8 - 4 m/9 bits, solarize from 256 (1 - m/9). Kornia's own AutoAugment draws one sub-policy for a whole batch and has other
    strengths (a shear of up to 54 degrees, a shift of half the side, no random signs). Deviations: bilinear sampling and black
    outside, where ERAT's code has bicubic shears and grey; whole-pixel shifts; no rounding to 8 bits in between.

    Args:
        x: (B, C, H, W) pixels in [0, 1], C = 1 or 3.
        draws: of B rows, on the CPU, so that the groups are known without asking x's device.

    References:
        Cubuk et al. 2019, "AutoAugment: learning augmentation strategies from data".
    """
    names, codes, probabilities, strengths = _table()
    operations = _operations()
    policy = (draws.uniform() * len(CIFAR10)).long()
    for stage in (0, 1):
        draw, sign = draws.uniform(2).T
        chosen = torch.where(draw < probabilities[policy, stage], codes[policy, stage], len(names))
        counts = torch.bincount(chosen, minlength=len(names) + 1).tolist()
        order = chosen.argsort(stable=True)[: len(x) - counts[-1]]
        strength = strengths[policy, stage][order] * torch.where(sign[order] < 0.5, -1.0, 1.0)
        rows = order.to(x.device, non_blocking=True)
        groups = zip(names, x[rows].split(counts[:-1]), strength.to(x.device, non_blocking=True).split(counts[:-1]))
        done = [operations[name](images, by) for name, images, by in groups if len(images)]
        if done:
            x = x.index_copy(0, rows, torch.cat(done).clamp_(0.0, 1.0))
    return x


@lru_cache(maxsize=1)
def _table() -> tuple[tuple[str, ...], Tensor, Tensor, Tensor]:
    """Names, and for sub-policy and stage, (25, 2): the name's number, probability, level / 9."""
    names = tuple(sorted({name for pair in CIFAR10 for name, _, _ in pair}))
    code = torch.tensor([[names.index(name) for name, _, _ in pair] for pair in CIFAR10], device="cpu")
    probability = torch.tensor([[p for _, p, _ in pair] for pair in CIFAR10], device="cpu")
    level = torch.tensor([[float(m) for _, _, m in pair] for pair in CIFAR10], device="cpu")
    return names, code, probability, level / 9


@lru_cache(maxsize=1)
def _operations() -> Mapping[str, Operation]:
    enhance = load_kornia("enhance", "autoaugment")
    return {
        "shear_y": lambda x, s: _moved(x, tilt=0.3 * s),
        "translate_x": lambda x, s: _moved(x, right=150 / 331 * s),
        "translate_y": lambda x, s: _moved(x, down=150 / 331 * s),
        "rotate": lambda x, s: _moved(x, angle=math.radians(30) * s),
        "color": lambda x, s: enhance.adjust_saturation_with_gray_subtraction(x, 1 + 0.9 * s),
        "contrast": lambda x, s: enhance.adjust_contrast_with_mean_subtraction(x, 1 + 0.9 * s),
        "brightness": lambda x, s: enhance.adjust_brightness_accumulative(x, 1 + 0.9 * s),
        "sharpness": lambda x, s: enhance.sharpness(x, 1 + 0.9 * s),
        "solarize": lambda x, s: enhance.solarize(x, (1 - s.abs()) * (256 / 255)),
        "posterize": _posterized,
        "equalize": lambda x, s: enhance.equalize(x),
        "auto_contrast": lambda x, s: _stretched(x),
        "invert": lambda x, s: 1 - x,
    }


def _moved(
    x: Tensor, tilt: Tensor | None = None, right: Tensor | None = None, down: Tensor | None = None, angle: Tensor | None = None
) -> Tensor:
    """Sheared along y (tilt, about the left edge), shifted (shares of the sides) or rotated about the centre (radians)."""
    height, width = x.shape[-2:]
    theta = torch.eye(2, 3, device=x.device).repeat(len(x), 1, 1)
    # output to input, with -1..1 from edge to edge
    if tilt is not None:
        theta[:, 1, 0] = theta[:, 1, 2] = tilt * (width / height)
    if right is not None:
        theta[:, 0, 2] = (right * width).round() * (2 / width)
    if down is not None:
        theta[:, 1, 2] = (down * height).round() * (2 / height)
    if angle is not None:
        theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
        theta[:, 0, 1], theta[:, 1, 0] = -angle.sin() * (height / width), angle.sin() * (width / height)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _posterized(x: Tensor, strength: Tensor) -> Tensor:
    # kornia's truncates to 8 bits: a pixel that undoing a normalisation left just below a level would lose a whole step
    step = (2.0 ** (4 * strength.abs()).round()).view(-1, 1, 1, 1)
    return ((x * 255).round() / step).floor() * step / 255


def _stretched(x: Tensor) -> Tensor:
    """Each channel's range stretched to [0, 1]; a constant one stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1e-12), x)
