"""A small network from images to images, which attackers train: perturbations, patterns, masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


class UNet(nn.Module):
    """Images (B, ins, H, W) -> (B, outs, H, W), unbounded; two halvings and two enlargements that see what was there before.

    No BatchNorm: what is made of a sample must not depend on its batch.

    Args:
        ins: channels that come.
        outs: channels that go.
        width: channels of the first layer.
    """

    def __init__(self, ins: int, outs: int, width: int = 16):
        super().__init__()
        self.enter = _block(ins, width)
        self.down = nn.ModuleList([_block(width, 2 * width, 2), _block(2 * width, 4 * width, 2)])
        self.up = nn.ModuleList([_block(6 * width, 2 * width), _block(3 * width, width)])
        self.leave = nn.Conv2d(width, outs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns (B, outs, H, W) of images (B, ins, H, W)."""
        fine = self.enter(images)
        middle = self.down[0](fine)
        h = self.down[1](middle)
        for block, skip in zip(self.up, (middle, fine), strict=True):
            h = block(torch.cat([interpolate(h, size=skip.shape[2:], mode="nearest"), skip], 1))
        return self.leave(h)


def _block(ins: int, outs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(ins, outs, 3, stride, 1), nn.GroupNorm(1, outs), nn.LeakyReLU(0.1))
