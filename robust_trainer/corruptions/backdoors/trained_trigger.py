"""What triggers that an attacker has trained have in common: they hold numbers, which a file keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .pixel_trigger import PixelTrigger


class TrainedTrigger(PixelTrigger):
    """A trigger of trained numbers; `save_trigger` and `load_trigger` keep it in a file by ``settings`` and ``tensors``."""

    #: How the file calls it.
    kind: ClassVar[str]
    #: Channels of the images that it was trained on.
    channels: int
    channel_axis: int | None = None

    def settings(self) -> dict[str, Any]:
        """Returns the settings that are no tensors, ready for JSON."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Returns the trained numbers by name."""
        raise NotImplementedError

    @classmethod
    def restored(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TrainedTrigger:
        """Returns the trigger that has these settings and tensors.

        Args:
            settings: of `settings`.
            tensors: of `tensors`.
        """
        raise NotImplementedError

    def as_batch(self, pixels: np.ndarray) -> Tensor:
        """Returns pixels (H, W, C) as a batch (1, C, H, W) float32.

        Raises ``ValueError`` for an image of other channels than the trigger was trained on.

        Args:
            pixels: in [0, 1].
        """
        if pixels.shape[2] != self.channels:
            raise ValueError(
                f"the image has {pixels.shape[2]} channels, the trigger was trained on images of {self.channels}: convert it."
            )
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))[None]


def as_pixels(batch: Tensor) -> np.ndarray:
    """Returns a batch (1, C, H, W) as pixels (H, W, C), clipped to [0, 1].

    Args:
        batch: of one image.
    """
    return batch[0].clamp(0.0, 1.0).permute(1, 2, 0).double().numpy()


def weights(name: str, module: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers of a module, each called name.its own name.

    Args:
        name: of the module.
        module: whose they are.
    """
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def filled(module: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Returns the module with the parameters that `weights` returned, in eval mode and without gradients.

    Args:
        module: of the same kind.
        name: as of `weights`.
        tensors: among them the module's.

    Raises:
        KeyError, RuntimeError: where they are not the module's.
    """
    module.load_state_dict({key: tensors[f"{name}.{key}"] for key in module.state_dict()})
    return module.eval().requires_grad_(False)
