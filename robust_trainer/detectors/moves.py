"""Images turned and shifted at random, as the consistency of features is measured by."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: The paper's transformations (Chen, Wu and Wang 2022): turned by up to 180 degrees, then shifted by up to a fifth of the side.
TURN, SHIFT = math.pi, 0.2


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns each image turned and shifted at random (bilinear); what comes in at the edges is the image's darkest level.

    Args:
        images: (B, channels, H, W).
        generator: on the CPU; three numbers of it for each image.
    """
    draws = (2 * torch.rand(len(images), 3, generator=generator) - 1).to(images)
    cos, sin = (TURN * draws[:, 0]).cos(), (TURN * draws[:, 0]).sin()
    ratio = images.shape[3] / images.shape[2]  # coordinates run from -1 to 1 along both sides
    across, down = (2 * SHIFT * draws[:, k] for k in (1, 2))
    theta = torch.stack([cos, -sin / ratio, across, sin * ratio, cos, down], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    dark = images.amin((2, 3), keepdim=True)
    return F.grid_sample(images - dark, grid, align_corners=False) + dark
