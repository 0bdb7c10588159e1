"""A frequency detector: a network that tells clean images from ones with drawn artefacts by their discrete cosine transform."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from torch import Tensor, nn

from .detection import Detection, count_setting
from .evidence import Evidence

_BATCH, _RATE = 64, 1e-3


def frequency(evidence: Evidence, rate: float | None, seed: int, *, epochs: int = 12, width: int = 8) -> Detection:
    """Returns suspicion by a network's probability of an artefact, in [0, 1]; flagged above 0.5.

    The network learns from clean images alone: each, and each with one artefact drawn anew every epoch (`artefacts`: a white block,
    a block of noise, Gaussian noise, a shadow, another image added), all as their discrete cosine transform. It knows neither the
    model nor the labels, so wrong labels are no matter to it, and a trigger without high frequencies is invisible.

    Args:
        evidence: with images, and clean images (some hundred; the paper has 50,000).
        rate: without effect.
        seed: of weights, artefacts and the order.
        epochs: over the clean images, >= 1.
        width: channels of the first pair of convolutions, >= 1; the paper's 32.

    Returns:
        The detection; in ``details`` ``accuracy``, on the artefacts of the last epoch.

    References:
        Zeng, Park, Mao and Jia 2021, "Rethinking the backdoor attacks' triggers: a frequency perspective", sec. 4.
    """
    count_setting("epochs", epochs)
    count_setting("width", width)
    clean = evidence.clean
    assert evidence.images is not None and clean is not None and clean.images is not None
    levels = clean.images.astype(np.float32)
    low, high = float(levels.min()), float(levels.max())
    if high <= low:
        raise ValueError("all clean images are one level: detector 'frequency' needs real ones.")
    levels = (levels - low) / (high - low)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FrequencyNetwork(levels.shape[1], min(levels.shape[2:]), width)
        accuracy = _trained(network, levels, epochs, rng)
        network.eval()
        scores = np.concatenate([
            _judged(network, (evidence.images[i : i + 256].astype(np.float32) - low) / (high - low))
            for i in range(0, len(evidence), 256)
        ])  # fmt: skip
    return Detection("frequency", scores.astype(np.float64), scores > 0.5, {"accuracy": accuracy})


def spectrum(images: np.ndarray) -> Tensor:
    """Returns the orthonormal two-dimensional cosine transform (type II) of every channel, as ``sign(z) log(1 + |z|)``, float32.

    The logarithm stands for the paper's batch of tens of thousands: it brings the coefficients, of which the first is a hundred
    times the others, to one order.

    Args:
        images: (B, channels, H, W), levels of 0 to 1.
    """
    z = torch.from_numpy(dctn(images * 255.0, axes=(2, 3), norm="ortho").astype(np.float32))
    return z.sign() * z.abs().log1p()


class FrequencyNetwork(nn.Module):
    """Six convolutions in three pairs, ELU and batch normalisation after each, pooling and dropout after each pair: (B, 2).

    Args:
        channels: of the images.
        side: of the images; above 63 the first convolution strides, so that it works on some 32 to 63 coefficients a side.
        width: channels of the first pair; the second has twice, the third four times as many.
    """

    def __init__(self, channels: int, side: int, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for pair, drop in enumerate((0.2, 0.3, 0.4)):
            for place in range(2):
                stride = max(side // 32, 1) if pair == place == 0 else 1
                after = width * 2**pair
                layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.ELU(), nn.BatchNorm2d(after)]
                before = after
            layers += [nn.MaxPool2d(2, ceil_mode=True), nn.Dropout(drop)]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * before, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of clean and artefact.

        Args:
            x: (B, channels, H, W), of `spectrum`.
        """
        return self.layers(x)


def artefacts(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns each image with one of five artefacts, as the authors' training has them.

    Args:
        images: (N, channels, H, W), levels of 0 to 1.
        rng: which artefact, where and how large.
    """
    found = images.copy()
    for i, kind in enumerate(rng.integers(0, len(ARTEFACTS), len(images))):
        found[i] = ARTEFACTS[kind](images[i], images[int(rng.integers(len(images)))], rng)
    return found.clip(0.0, 1.0)


def _block(image: np.ndarray, fill: Callable[[tuple[int, ...]], np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A block of 2 to 7 of 32 pixels a side, up to 5 of 32 from a corner."""
    height, width = image.shape[1:]
    unit = max(min(height, width) / 32, 1.0)
    tall, broad = (max(int(unit * rng.integers(2, 8)), 1) for _ in range(2))
    margin = int(unit * rng.integers(0, 6))
    top, left = rng.integers(0, 2, 2)
    y, x = (margin if top else height - margin - tall), (margin if left else width - margin - broad)
    found = image.copy()
    part = found[:, max(y, 0) : max(y, 0) + tall, max(x, 0) : max(x, 0) + broad]
    part[...] = fill(part.shape)
    return found


def _white(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _block(image, np.ones, rng)


def _noise_block(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _block(image, rng.random, rng)


def _gaussian(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mean 25 and variance 10 to 70 of 255 levels."""
    return image + (25 + np.sqrt(rng.uniform(10, 70)) * rng.standard_normal(image.shape)).astype(image.dtype) / 255


def _shadow(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One side of a random line across the lower half is half as bright."""
    height, width = image.shape[1:]
    y, x = np.mgrid[0:height, 0:width]
    left, right = rng.uniform(0, width, 2)
    beyond = x > left + (right - left) * (y - height / 2) / (height / 2)
    return np.where((y >= height / 2) & (beyond == bool(rng.integers(2))), 0.5 * image, image)


def _added(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image + 0.3 * other


ARTEFACTS = (_white, _noise_block, _gaussian, _shadow, _added)


def _trained(network: nn.Module, levels: np.ndarray, epochs: int, rng: np.random.Generator) -> float:
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    clean, accuracy = spectrum(levels), 0.0
    for _ in range(epochs):
        both = torch.cat([clean, spectrum(artefacts(levels, rng))])
        labels = torch.arange(len(both)) // len(clean)
        right = 0
        for rows in torch.from_numpy(rng.permutation(len(both))).split(_BATCH):
            if len(rows) < 2:
                continue  # batch normalisation has no variance of one
            logits = network(both[rows])
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            right += int((logits.argmax(1) == labels[rows]).sum())
        accuracy = right / len(both)
    return accuracy


@torch.no_grad()
def _judged(network: nn.Module, levels: np.ndarray) -> np.ndarray:
    return network(spectrum(levels)).softmax(1)[:, 1].numpy()
