"""Weak and strong views of a batch of images: random transformations on the batch's device, drawn for each image on its own.

ERAT's weak view is erasing and flip, its strong one AutoAugment (ERAT sec. III.E and IV.B).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..images import InputSpace
from ..randomness import RowDraws, keyed_seed
from .autoaugment import auto_augment
from .load_kornia import load_kornia

#: The names of `make_augmentation`, and what each does.
AUGMENTATIONS: Mapping[str, str] = {
    "none": "the image as it is",
    "flip": "mirrored from left to right, or not",
    "erase": "a black rectangle in every second image",
    "erase-flip": "erase and flip",
    "crop": "shifted by up to an eighth of the side, black outside",
    "crop-flip": "crop and flip",
    "autoaugment": "crop-flip, then AutoAugment's CIFAR-10 policy (needs kornia)",
}
#: How far beyond [0, 1] a user's own augmentation may go; clamped.
SLACK = 1e-3


@dataclass(frozen=True)
class Augmentation:
    """A callable (B, C, H, W) -> (B, C, H, W), float32 in [0, 1]: crop, erasing, flip and policy, in this order.

    Draws on the CPU for every device, by default from a seed that it takes from torch's global CPU generator.

    Args:
        crop: the share of each side (rounded down, at least a pixel) by which an image is shifted at most, up or down and left or
            right; black comes in.
        erase: the share of images in which a rectangle becomes black, cut to the image's size.
        flip: mirrored with probability 1/2.
        policy: AutoAugment's CIFAR-10 policy (`autoaugment.auto_augment`).
        erase_area: area of the rectangle, a share of the image's, (low, high).
        erase_ratio: its height / width, log-uniform, (low, high).

    Raises:
        ValueError: when called, for a policy on images of another number of channels than 1 and 3.

    References:
        Zhong et al. 2020, "Random erasing data augmentation"; Cubuk et al. 2019, "AutoAugment".
    """

    crop: float = 0.0
    erase: float = 0.0
    flip: bool = False
    policy: bool = False
    erase_area: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)

    def __call__(self, x: Tensor, draws: RowDraws | None = None) -> Tensor:
        """Returns the augmented images.

        Args:
            x: (B, C, H, W) float32 pixels in [0, 1].
            draws: of B rows, on the CPU.
        """
        if draws is None:
            draws = RowDraws(torch.arange(len(x), device="cpu"), int(torch.randint(2**62, (), device="cpu")))
        if self.policy and x.shape[1] not in (1, 3):
            raise ValueError(f"autoaugment takes images of 1 or 3 channels, these have {x.shape[1]}: choose crop-flip.")
        if self.crop:
            x = self._shifted(x, draws)
        if self.erase:
            x = self._erased(x, draws)
        if self.flip:
            mirror = (draws.uniform(1, 1, 1) < 0.5).to(x.device, non_blocking=True)
            x = torch.where(mirror, x.flip(3), x)
        return auto_augment(x, draws) if self.policy else x

    def _shifted(self, x: Tensor, draws: RowDraws) -> Tensor:
        """A window of each image, black outside; one gather."""
        height, width = x.shape[-2:]
        most = [max(1, int(self.crop * side)) for side in (height, width)]
        shift = torch.stack([(u * (2 * m + 1)).long() - m for u, m in zip(draws.uniform(2).T, most)])
        down, right = shift.to(x.device, non_blocking=True).unsqueeze(2)
        rows, columns = down + torch.arange(height, device=x.device), right + torch.arange(width, device=x.device)
        index = rows.clamp(0, height - 1).unsqueeze(2) * width + columns.clamp(0, width - 1).unsqueeze(1)
        inside = ((rows >= 0) & (rows < height)).unsqueeze(2) & ((columns >= 0) & (columns < width)).unsqueeze(1)
        out = x.flatten(2).gather(2, index.view(len(x), 1, -1).expand(-1, x.shape[1], -1))
        return out.view_as(x) * inside.unsqueeze(1)

    def _erased(self, x: Tensor, draws: RowDraws) -> Tensor:
        height, width = x.shape[-2:]
        hit, area, ratio, top, left = draws.uniform(5).T
        area = (self.erase_area[0] + area * (self.erase_area[1] - self.erase_area[0])) * (height * width)
        low, high = (math.log(r) for r in self.erase_ratio)
        ratio = (low + ratio * (high - low)).exp()
        tall = (area * ratio).sqrt().round().clamp(1, height)
        wide = (area / ratio).sqrt().round().clamp(1, width)
        tall = torch.where(hit < self.erase, tall, 0.0)
        top, left = (top * (height - tall + 1)).floor(), (left * (width - wide + 1)).floor()
        edges = torch.stack([top, top + tall, left, left + wide]).to(x.device, non_blocking=True).unsqueeze(2)
        rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
        black = ((rows >= edges[0]) & (rows < edges[1])).unsqueeze(2) & ((columns >= edges[2]) & (columns < edges[3])).unsqueeze(1)
        return x.masked_fill(black.unsqueeze(1), 0.0)


_SETTINGS: Mapping[str, Augmentation] = {
    "none": Augmentation(),
    "flip": Augmentation(flip=True),
    "erase": Augmentation(erase=0.5),
    "erase-flip": Augmentation(erase=0.5, flip=True),
    "crop": Augmentation(crop=1 / 8),
    "crop-flip": Augmentation(crop=1 / 8, flip=True),
    "autoaugment": Augmentation(crop=1 / 8, flip=True, policy=True),
}


def make_augmentation(name: str) -> Augmentation:
    """Returns the augmentation of a name.

    Args:
        name: a key of `AUGMENTATIONS`.

    Raises:
        ValueError: for another name, and for ``autoaugment`` where kornia is not installed.
    """
    if name not in _SETTINGS:
        raise ValueError(f"augmentation {name!r} is unknown: choose one of {', '.join(AUGMENTATIONS)}.")
    if _SETTINGS[name].policy:
        load_kornia("enhance", name)
    return _SETTINGS[name]


@torch.no_grad()
def augment(
    augmentation: Callable[[Tensor], Tensor], x: Tensor, space: InputSpace, seed: int, setting: str, rows: Tensor | None = None
) -> Tensor:
    """Returns augmented x, in the model's units and x's dtype as x is; exactly x where nothing is to be done.

    No gradient passes.

    Guarantee: what is drawn for an image by an `Augmentation` depends on ``seed`` and its row alone, whatever batch it is in. What
    another callable draws from torch's generators, for a whole batch, depends on ``seed`` and the first row alone. The generators
    are as before afterwards (Python's and numpy's, and Apple's MPS, are not touched).

    Args:
        augmentation: an `Augmentation`, or any callable on (B, C, H, W) float32 pixels in [0, 1], which is checked; that waits for
            the device once.
        x: the model's inputs (B, C, H, W).
        space: the inputs' normalisation.
        seed: of the draws.
        setting: name of the setting that the augmentation came by, for the messages of `check`.
        rows: the images' numbers (B,), on the CPU; by default their places in x.
    """
    if augmentation == _SETTINGS["none"]:
        return x
    pixels = space.to_pixels(x).clamp_(0.0, 1.0)
    rows = torch.arange(len(x), device="cpu") if rows is None else rows
    if isinstance(augmentation, Augmentation):
        augmented = augmentation(pixels, RowDraws(rows, "augmentation", seed))
    else:
        with seeded_generators(keyed_seed("augmentation", seed, int(rows[0])), x.device):
            augmented = augmentation(pixels)
        check(augmented, x, setting)
    return space.from_pixels(augmented.clamp(0.0, 1.0)).to(x.dtype)


def check(augmented: Tensor, x: Tensor, setting: str) -> None:
    """Checks augmented pixels; waits for the device.

    Args:
        augmented: what a user's augmentation returned for x.
        x: (B, C, H, W).
        setting: the name of the setting.

    Raises:
        ValueError: where they have another shape than x, are not finite or leave [0, 1] by more than 1e-3.
    """
    if not isinstance(augmented, Tensor) or augmented.shape != x.shape:
        got = f"shape {tuple(augmented.shape)}" if isinstance(augmented, Tensor) else type(augmented).__name__
        raise ValueError(f"{setting} returned {got} for images of shape {tuple(x.shape)}: return a tensor of the same shape.")
    low, high = torch.stack(augmented.detach().aminmax()).tolist()  # NaN passes through
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{setting} returned NaN or infinite pixels: return numbers in [0, 1].")
    if low < -SLACK or high > 1 + SLACK:
        raise ValueError(f"{setting} returned pixels in [{low:.4g}, {high:.4g}], expected [0, 1]: clamp them and do not normalise.")


@contextmanager
def seeded_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's global generators of the CPU and of the device inside; they are as before afterwards.

    Args:
        seed: of both generators.
        device: where the images are.
    """
    other = device.type not in ("cpu", "mps")
    index = device.index if device.index is not None else 0
    with torch.random.fork_rng([index] if other else [], device_type=device.type if other else "cuda"):
        torch.random.default_generator.manual_seed(seed)
        if other:
            module = torch.get_device_module(device)
            with module.device(index):
                module.manual_seed(seed)
        yield
