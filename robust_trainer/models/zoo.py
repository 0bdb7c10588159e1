"""Image classifiers by name: two small ones to train from scratch, and every transformers image model by its name or folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ..data.class_names import names_of
from .peers import load_networks

try:  # without torchvision the plain name answers with a warning
    from transformers import ViTImageProcessorPil as PlainProcessor
except ImportError:  # transformers before 5.20
    from transformers import ViTImageProcessor as PlainProcessor  # type: ignore[assignment]


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


class _Classifier(PreTrainedModel):
    """pixel_values (B, C, H, W) -> logits (B, num_labels), and the mean cross-entropy where labels (B,) are given."""

    base_model_prefix = "classifier"
    main_input_name = "pixel_values"

    def logits(self, pixel_values: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None) -> Any:
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


class SmallCNN(_Classifier):
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


class PlainCNN(_Classifier):
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


class ResNet32(_Classifier):
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


SMALL: dict[str, tuple[Any, type[_Classifier]]] = {
    "small-cnn": (SmallCNNConfig, SmallCNN),
    "plain-cnn": (PlainCNNConfig, PlainCNN),
    "resnet32": (ResNet32Config, ResNet32),
    "resnet32-gn": (ResNet32GNConfig, ResNet32GN),
}
for _config, _model in SMALL.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)


def build_model(
    name: str,
    labels: list[str],
    *,
    channels: int = 3,
    image_size: int | None = None,
    from_scratch: bool = False,
    mean: float = 0.5,
    std: float = 0.5,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Returns the model and its image processor.

    Args:
        name: A key of `SMALL` (always from scratch, for ``channels`` and ``image_size`` as given, normalised with ``mean`` and
            ``std``, default 0.5: pixels in [-1, 1]), else a transformers model's hub name or folder, whose head is replaced where
            the number of classes differs; ``from_scratch`` takes its architecture with fresh weights.
        labels: The class names.
        channels: 1 or 3, of the images.
        image_size: Side in pixels.
        from_scratch: Fresh weights.
        mean: Of the normalisation, per channel.
        std: Of the normalisation, per channel.
        trust_remote_code: Run Python code that the named model brings.

    Raises:
        ValueError: When the model cannot be found, and when it brings code that is not to be run.
    """
    if len(labels) < 2:
        raise ValueError(f"the data set has {len(labels)} class ({', '.join(labels) or 'none'}): a classifier needs at least 2.")
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if name in SMALL:
        side = image_size or 32
        config_class, model_class = SMALL[name]
        processor = PlainProcessor(
            size={"height": side, "width": side}, image_mean=[mean] * channels, image_std=[std] * channels, do_resize=True
        )
        return model_class(config_class(num_channels=channels, image_size=side, **names)), processor
    config = _found(AutoConfig, name, trust_remote_code, **names)
    processor = _found(AutoImageProcessor, name, trust_remote_code)
    if from_scratch:
        return AutoModelForImageClassification.from_config(config, trust_remote_code=trust_remote_code), processor
    model = _found(AutoModelForImageClassification, name, trust_remote_code, config=config, ignore_mismatched_sizes=True)
    return model, processor


def known_classes(name: str, trust_remote_code: bool | None = False) -> list[str] | None:
    """Returns the class names that a transformers model was trained with, by number; None where it has none.

    Args:
        name: As for `build_model`.
        trust_remote_code: As for `build_model`.

    Raises:
        ValueError: When the model cannot be found.
    """
    return None if name in SMALL else names_of(_found(AutoConfig, name, trust_remote_code))


def load_model(folder: str, trust_remote_code: bool | None = False, alone: bool = False) -> tuple[PreTrainedModel, Any]:
    """Returns the model and the image processor saved in a folder by `RobustTrainer.save_model`.

    Args:
        folder: The ``output_dir`` of a training; where it trained several networks, the model is a `PeerModel` of all of them.
        trust_remote_code: Run Python code that the model brings; None: no, and nobody can say yes.
        alone: Of several networks the exported one, as a program that does not know this package opens it.

    Raises:
        ValueError: Where there is none, and where it brings code that is not to be run.
    """
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise ValueError(f"run={folder!r} holds no saved model (config.json): give the output_dir of a training.")

    def load(one: str) -> Any:
        return _found(AutoModelForImageClassification, one, trust_remote_code)

    return load(folder) if alone else load_networks(folder, load), _found(AutoImageProcessor, folder, trust_remote_code)


def _found(auto: Any, name: str, trust_remote_code: bool | None, **kwargs: Any) -> Any:
    try:
        return auto.from_pretrained(name, trust_remote_code=bool(trust_remote_code), **kwargs)
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, MemoryError, SafetensorError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):  # asked on the terminal where nobody says yes or no
            mend = "" if trust_remote_code is None else "give --trust_remote_code if you have read it or trust its author, or "
            raise ValueError(
                f"model={name!r} brings Python code of its own, which is not run: {mend}choose another model."
            ) from None
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model={name!r} could not be loaded by {auto.__name__}: choose {', '.join(SMALL)}, or the hub name or folder of an "
            f"image classification model ({reason})."
        ) from error
