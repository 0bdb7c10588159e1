"""Small networks to train from scratch; a copy of this file is saved with them, so that it imports torch and transformers alone.

With that copy ``from_pretrained(folder, trust_remote_code=True)`` opens them where this package is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class SmallCNNConfig(PreTrainedConfig):
    """Settings of `SmallCNN`: input channels, image side in pixels, width of the first layer."""

    model_type = "robust-small-cnn"

    def __init__(self, num_channels: int = 1, image_size: int = 28, width: int = 32, **kwargs: Any):
        self.num_channels, self.image_size, self.width = num_channels, image_size, width
        super().__init__(**kwargs)


class ResNet32Config(PreTrainedConfig):
    """Settings of `ResNet32`: input channels, image side in pixels, blocks per stage (5 is ResNet-32), width of stage one."""

    model_type = "robust-resnet32"

    def __init__(self, num_channels: int = 3, image_size: int = 32, blocks: int = 5, width: int = 16, **kwargs: Any):
        self.num_channels, self.image_size, self.blocks, self.width = num_channels, image_size, blocks, width
        super().__init__(**kwargs)


class ResNet32GNConfig(ResNet32Config):
    """Settings of `ResNet32GN`: as `ResNet32Config`."""

    model_type = "robust-resnet32-gn"

    def __init__(self, **kwargs: Any):  # transformers gives a config without a constructor one that knows no defaults
        super().__init__(**kwargs)


class Classifier(PreTrainedModel):
    """pixel_values (B, C, H, W) -> logits (B, num_labels), and the mean cross-entropy where labels (B,) are given."""

    base_model_prefix = "classifier"
    main_input_name = "pixel_values"

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W), normalised."""
        raise NotImplementedError

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None) -> Any:
        """Returns an `ImageClassifierOutput`, or without ``return_dict`` a tuple (loss where labels are given, logits)."""
        logits = self.logits(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear | nn.BatchNorm2d | nn.GroupNorm):
            module.reset_parameters()


class SmallCNN(Classifier):
    """Three 3x3 convolutions, the second with stride 2, and two linear layers; for images of 8 to 64 pixels."""

    config_class = SmallCNNConfig

    def __init__(self, config: SmallCNNConfig):
        super().__init__(config)
        w = config.width
        self.features = nn.Sequential(
            *_layer(config.num_channels, w), *_layer(w, w, 2), *_layer(w, 2 * w), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.hidden = nn.Linear(2 * w * 16, 4 * w)
        self.head = nn.Linear(4 * w, _classes(config))
        self.post_init()

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W), normalised."""
        return self.head(self.hidden(self.features(pixel_values)).relu())


def _layer(ins: int, outs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU()


class PlainCNNConfig(SmallCNNConfig):
    """Settings of `PlainCNN`: as `SmallCNNConfig`, of half the width."""

    model_type = "robust-plain-cnn"

    def __init__(self, num_channels: int = 1, image_size: int = 28, width: int = 16, **kwargs: Any):
        super().__init__(num_channels, image_size, width, **kwargs)


class PlainCNN(Classifier):
    """Convolutions of w (stride 2), 2w and 4w channels, max-pooling after the second and third, two linear layers; no BatchNorm."""

    config_class = PlainCNNConfig

    def __init__(self, config: PlainCNNConfig):
        super().__init__(config)
        w = config.width
        self.features = nn.Sequential(
            nn.Conv2d(config.num_channels, w, 3, 2, 1), nn.ReLU(), nn.Conv2d(w, 2 * w, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * w, 4 * w, 3, 1, 1), nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten(),
        )  # fmt: skip
        self.hidden = nn.Linear(4 * w * 9, 8 * w)
        self.head = nn.Linear(8 * w, _classes(config))
        self.post_init()

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W), normalised."""
        return self.head(self.hidden(self.features(pixel_values)).relu())


class _Block(nn.Module):
    """Two normalised 3x3 convolutions; the shortcut has no weights (option A: every second pixel, zero channels added)."""

    def __init__(self, ins: int, outs: int, stride: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = norm(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = norm(outs)
        self.stride, self.added = stride, outs - ins

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        short = x[:, :, :: self.stride, :: self.stride]
        half = self.added // 2
        return (out + nn.functional.pad(short, (0, 0, 0, 0, half, self.added - half))).relu()


class ResNet32(Classifier):
    """The CIFAR ResNet of He et al. 2016, sec. 4.2: stages of 16, 32, 64 channels, 6n+2 layers; n=5: 32 layers, 0.46 M weights."""

    config_class = ResNet32Config
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d

    def __init__(self, config: ResNet32Config):
        super().__init__(config)
        w = config.width
        norm = type(self).norm
        self.stem = nn.Sequential(nn.Conv2d(config.num_channels, w, 3, 1, 1, bias=False), norm(w), nn.ReLU())
        blocks, ins = [], w
        for stage in range(3):
            for number in range(config.blocks):
                blocks.append(_Block(ins, w * 2**stage, 2 if stage and not number else 1, norm))
                ins = w * 2**stage
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(ins, _classes(config))
        self.post_init()

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W), normalised."""
        return self.head(self.stages(self.stem(pixel_values)).mean((2, 3)))


class ResNet32GN(ResNet32):
    """`ResNet32` with GroupNorm(min(32, C), C) instead of BatchNorm, for methods that need each sample's gradient (PRL(G))."""

    config_class = ResNet32GNConfig  # type: ignore[assignment]
    norm = staticmethod(lambda channels: nn.GroupNorm(min(32, channels), channels))


def _classes(config: PreTrainedConfig) -> int:
    return int(config.num_labels or 2)
